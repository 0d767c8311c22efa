"""What a client and its server send each other, counted from outside: bytes on the wire, and bodies by call.

A client's connections come in at a port of this machine and go on to the server's. `CountingProxy` passes them on as
they are, encrypted: what the network sees. `CountedGate` is the server's gate with a count of what passes through it.
"""

import asyncio
import socket
import threading
import time
from collections import defaultdict
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deploy import flower
from deploy.gate import Gate
from deploy.open_gate import listener


class CountingProxy:
    """Passes connections of a port of this machine on to another one."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._is_cut = False
        self.up_bytes = self.down_bytes = self.connections = 0
        self._listener = socket.create_server((flower.LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def cut(self, seconds: float) -> None:
        """Let nobody through for so long, nor those that are connected."""
        self._is_cut = True
        while self._open:
            _close(self._open.pop())
        time.sleep(seconds)
        self._is_cut = False

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                self._pass_on(client)

    def _pass_on(self, client: socket.socket) -> None:
        try:
            if self._is_cut:
                raise OSError("cut off")
            server = socket.create_connection((flower.LOOPBACK, self.target_port))
        except OSError:
            client.close()
            return
        self._open += [client, server]
        for source, sink, is_up in ((client, server, True), (server, client, False)):
            threading.Thread(target=self._pump, args=(source, sink, is_up), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_up: bool) -> None:
        with suppress(OSError):
            while part := source.recv(2**16):
                with self._lock:
                    self.up_bytes += len(part) if is_up else 0
                    self.down_bytes += 0 if is_up else len(part)
                sink.sendall(part)
        for end in (source, sink):
            _close(end)


def _close(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@dataclass
class Calls:
    """Of one name."""

    number: int = 0
    up_bytes: int = 0
    down_bytes: int = 0
    """Bodies alone: no header, no TLS."""


class CountedGate:
    """The gate of this server in a thread of this process; ends with the process."""

    def __init__(self, server: Path, keys: Path, server_port: int) -> None:
        self.calls: MutableMapping[str, Calls] = defaultdict(Calls)
        """By the last part of the path."""
        self._listener = listener(flower.LOOPBACK, 0)
        self.port: int = self._listener.getsockname()[1]
        behind, trusted = f"https://{flower.LOOPBACK}:{server_port}", flower.authority(keys)
        gate = Gate(behind, trusted, flower.own_tls(keys), flower.database(server), self._count)
        threading.Thread(target=lambda: asyncio.run(gate.serve(self._listener)), daemon=True).start()

    def _count(self, name: str, up_bytes: int, down_bytes: int) -> None:
        calls = self.calls[name]
        calls.number += 1
        calls.up_bytes += up_bytes
        calls.down_bytes += down_bytes
