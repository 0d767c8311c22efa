"""What the tests of the gate and of nginx before it share: keys, registered clients, a server behind the gate, callers.

Connections are real ones over TLS, keys lie in a database that Flower's own code has made; what stands behind the gate
is a server that remembers what comes through. Callers say byte by byte what they send.
"""

import asyncio
import base64
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes, sign_message
from flwr.superlink.federation import NoOpFederationManager
from starlette.types import Receive, Scope, Send

from deploy import flower, open_gate
from deploy.flower import authority, free_port
from deploy.gate import Gate
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


@dataclass
class Client:
    key: ec.EllipticCurvePrivateKey
    public: ec.EllipticCurvePublicKey

    def signature(self, signed_at: str | None = None) -> dict[str, str]:
        """Headers of a call, as a SuperNode makes them."""
        signed_at = datetime.now(UTC).isoformat() if signed_at is None else signed_at
        told = {"flwr_public_key": public_key_to_bytes(self.public), "flwr_signature": self._sign(signed_at)}
        return {name: base64.b64encode(value).decode() for name, value in told.items()} | {"flwr_timestamp": signed_at}

    def _sign(self, signed_at: str) -> bytes:
        return sign_message(self.key, signed_at.encode())


@dataclass
class Registry:
    """Flower's database with two registered clients."""

    path: Path
    state: SqlLinkState
    clients: tuple[Client, Client]
    node_ids: tuple[int, int]


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    path = flower.database(tmp_path_factory.mktemp("server"))
    state = SqlLinkState(str(path), NoOpFederationManager(), ObjectStoreFactory().store())
    state.initialize()
    clients = (Client(*generate_key_pairs()), Client(*generate_key_pairs()))
    nodes = [state.create_node("owner", "owner", public_key_to_bytes(client.public), 30.0) for client in clients]
    return Registry(path, state, clients, (nodes[0], nodes[1]))


@pytest.fixture(scope="session")
def client(registry: Registry) -> Client:
    return registry.clients[0]


@contextmanager
def opened(server_url: str, keys: Path, database: Path, trusted: Path | None = None) -> Iterator[int]:
    """The port of a gate in a thread of this process."""
    listener = open_gate.listener("127.0.0.1", 0)
    it = Gate(server_url, flower.authority(trusted or keys), flower.own_tls(keys), database)
    loop = asyncio.new_event_loop()
    task = loop.create_task(it.serve(listener))

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        listener.close()


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + Caller.SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_served(port: int, keys: Path, client: Client) -> bool:
    """On a connection of its own."""
    with Caller(port, keys) as caller:
        return caller.ask(call(**client.signature()))[0] == 418


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False
