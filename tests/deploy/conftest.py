"""What the tests of both gates share: keys, a server behind, and callers that say byte by byte what they send."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from deploy.flower import authority, free_port
from deploy.make_keys import SERVER_CERTIFICATE, SERVER_KEY, make_server_certificate


@dataclass
class Server:
    """Stands behind a gate, answers 418 to everything with what it was told, and remembers it."""

    port: int = field(default_factory=free_port)
    seen: list[str] = field(default_factory=list)
    """Method and path of every call."""
    parts: list[int] = field(default_factory=list)
    """Of all bodies, in bytes, as they came."""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    """Of the last call."""

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        self.seen.append(f"{scope['method']} {scope['raw_path'].decode()}?{scope['query_string'].decode()}")
        self.headers = dict(scope["headers"])
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            part, more = message.get("body", b""), message.get("more_body", False)
            self.parts.append(len(part))
            body += part[:100]
        content = f"{self.seen[-1]} ".encode() + body
        length = str(len(content)).encode()
        await send({"type": "http.response.start", "status": 418, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": content})


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_server_certificate(folder, [])
    return folder


@pytest.fixture
def server(running_server: Server) -> Server:
    """That has seen nothing yet."""
    running_server.seen.clear()
    running_server.parts.clear()
    return running_server


@pytest.fixture(scope="session")
def running_server(keys: Path) -> Iterator[Server]:
    server = Server()
    files = {"ssl_certfile": keys / SERVER_CERTIFICATE, "ssl_keyfile": str(keys / SERVER_KEY)}
    config = uvicorn.Config(server, port=server.port, log_level="critical", lifespan="off", **files)  # type: ignore[arg-type]
    process = uvicorn.Server(config)
    thread = threading.Thread(target=process.run, daemon=True)
    thread.start()
    while not process.started:
        time.sleep(0.01)
    yield server
    process.should_exit = process.force_exit = True
    thread.join()


def call(name: str = "pull-messages", length: int = 0, **headers: str) -> bytes:
    """The head of a client's call. headers: with _ for -."""
    lines = [f"POST /v1/fleet/{name} HTTP/1.1", "Host: gate", f"Content-Length: {length}"]
    lines += [f"{key.replace('_', '-')}: {value}" for key, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


class Caller:
    """A TLS connection to a port of this machine."""

    SECONDS = 20.0
    """For which an answer is waited for; no test waits for it to pass."""

    def __init__(self, port: int, keys: Path) -> None:
        plain = socket.create_connection(("127.0.0.1", port), self.SECONDS)
        try:
            self.socket = authority(keys).wrap_socket(plain, server_hostname="127.0.0.1")
        except OSError:
            plain.close()
            raise

    def __enter__(self) -> "Caller":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, *parts: bytes) -> tuple[int, bytes]:
        """Status and content of the answer; 0 where the connection ended without one."""
        try:
            for part in parts:
                self.socket.sendall(part)
        except OSError:
            pass  # it may have been answered before all was sent
        return self.answer()

    def answer(self) -> tuple[int, bytes]:
        received = b""
        while b"\r\n\r\n" not in received:
            received += (part := self._received())
            if not part:
                return 0, received
        head, _, content = received.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next((int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")), 0)
        while len(content) < length and (part := self._received()):
            content += part
        return int(head.split()[1]), content

    def is_cut_off(self) -> bool:
        """Waits until it is. Fails where it is not."""
        return not self._received()

    def _received(self) -> bytes:
        try:
            return self.socket.recv(2**16)
        except TimeoutError:
            raise
        except (ssl.SSLError, OSError):  # ended without a word
            return b""
