"""deploy.open_gate: calls of clients pass, and nothing else does."""

import asyncio
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deploy.flower import free_port
from deploy.make_keys import make_server_certificate
from deploy.open_gate import MAX_BODY_BYTES, gate


async def echo(request: Request) -> Response:
    """What a server would be told: path, a header, the body."""
    told = f"{request.method} {request.url.path} {request.headers.get('flwr-signature', '-')} ".encode()
    return Response(told + await request.body(), status_code=418, headers={"flwr-version": "1"})


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_server_certificate(folder, [])
    return folder


@pytest.fixture(scope="module")
def server(keys: Path) -> Iterator[str]:
    """The address of a server that answers to everything."""
    port = free_port()
    anything = Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "POST"])])
    files = {"ssl_certfile": keys / "server.crt", "ssl_keyfile": str(keys / "server.key")}
    process = uvicorn.Server(uvicorn.Config(anything, port=port, log_level="error", **files))
    thread = threading.Thread(target=process.run, daemon=True)
    thread.start()
    while not process.started:
        time.sleep(0.01)
    yield f"https://127.0.0.1:{port}"
    process.should_exit = True
    thread.join()


Ask = Callable[..., httpx.Response]


def asked(server: str, authority: Path, method: str, path: str, **more: Any) -> httpx.Response:
    """The answer of a gate before this server."""

    async def ask() -> httpx.Response:
        app = gate(server, ssl.create_default_context(cafile=str(authority)))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gate") as client:
            return await client.request(method, path, **more)

    return asyncio.run(ask())


@pytest.fixture
def ask(server: str, keys: Path) -> Ask:
    return partial(asked, server, keys / "authority.crt")


def test_a_clients_call_passes_with_its_headers_and_so_does_the_answer(ask: Ask) -> None:
    reply = ask("POST", "/v1/fleet/pull-messages", content=b"\0\xff", headers={"flwr-signature": "s"})
    assert (reply.status_code, reply.content) == (418, b"POST /v1/fleet/pull-messages s \0\xff")
    assert reply.headers["flwr-version"] == "1"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/runtime/push-messages",
        "/health",
        "/",
        "/v1/fleet/",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/..%2Fcontrol%2Fstart-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/pull-messages/x",
        "/v1/fleet/..",
        "/v1/fleet/%2e%2e",
        "/v1/fleet/pull-messages%3Fx=1",
        "/v1/fleet/pull-messages%23x",
        "/v1/fleet/Pull_Messages",
        "//v1/control/start-run",
    ],
)
def test_nothing_else_passes(ask: Ask, path: str) -> None:
    assert ask("POST", path).status_code == 404


def test_clients_only_post(ask: Ask) -> None:
    assert ask("GET", "/v1/fleet/pull-messages").status_code == 405


def test_a_body_beyond_reason_is_refused(ask: Ask) -> None:
    assert ask("POST", "/v1/fleet/push-object", content=bytes(MAX_BODY_BYTES + 1)).status_code == 413


def test_a_server_that_is_away_is_told_apart_from_one_that_refuses(keys: Path) -> None:
    nobody = f"https://127.0.0.1:{free_port()}"
    assert asked(nobody, keys / "authority.crt", "POST", "/v1/fleet/pull-messages").status_code == 503


def test_a_server_of_another_authority_is_not_spoken_to(server: str, tmp_path: Path) -> None:
    make_server_certificate(tmp_path, [])
    other = tmp_path / "authority.crt"
    assert asked(server, other, "POST", "/v1/fleet/pull-messages").status_code == 503
