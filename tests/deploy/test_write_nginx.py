"""deploy.write_nginx: the real nginx with that configuration, before the gate: what passes, who is cut off."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from deploy import write_nginx
from deploy.flower import free_port
from deploy.gate import MAX_BODY_BYTES
from deploy.make_keys import make_server_certificate
from fedmask.errors import FedmaskError

from .conftest import Caller, Client, Registry, Server, call, is_served, listens, opened, wait_until

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="needs nginx: apt-get install nginx-light")


@pytest.fixture(scope="module")
def port(
    running_server: Server, keys: Path, registry: Registry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """Of nginx, with shorter times than it has."""
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    with pytest.MonkeyPatch.context() as patch, opened(running_server.url, keys, registry.path) as gate_port:
        for name, value in (("HEAD_SECONDS", 1), ("BODY_SECONDS", 1), ("MAX_CALLS_OF_AN_ADDRESS", 3)):
            patch.setattr(write_nginx, name, value)
        where = [f"folder={folder}", f"keys={keys}", "host=127.0.0.1", f"port={port}", f"gate_port={gate_port}"]
        write_nginx.main(where)
        command = [str(NGINX), "-e", "stderr", "-c", str(folder / "nginx.conf")]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_until(lambda: process.poll() is not None or listens(port))
            assert process.poll() is None, (folder / "log").read_text()
            yield port
        finally:
            process.terminate()
            process.wait()
        told = (folder / "log").read_text().splitlines()
        assert [line for line in told if "setrlimit" not in line] == []  # of this machine, which may allow fewer files


@needs_nginx
def test_a_clients_calls_pass(port: int, keys: Path, server: Server, client: Client) -> None:
    with Caller(port, keys) as caller:
        for body in (b"\0\xff", b"", b"another on the same connection"):
            head = call("push-object", len(body), **client.signature(), flwr_version="1")
            assert caller.ask(head + body) == (418, b"POST /v1/fleet/push-object? " + body)
    assert server.headers[b"flwr-version"] == b"1"


@needs_nginx
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"POST", b"GET"),
        (b"fleet", b"control"),
        (b"/v1/fleet/", b"/v1/fleet/../fleet/"),
        (b"/v1/fleet/", b"/v1//fleet/"),
        (b"/v1/fleet/", b"/v1/%66leet/"),
        (b"pull-messages", b"pull-messages/"),
        (b"pull-messages", b"pull-messages?x=1"),
    ],
)
def test_nothing_else_does(old: bytes, new: bytes, port: int, keys: Path, server: Server, client: Client) -> None:
    with Caller(port, keys) as caller:
        assert caller.ask(call(**client.signature()).replace(old, new))[0] == 404
    assert not server.seen


@needs_nginx
def test_a_body_is_passed_on_as_it_comes(port: int, keys: Path, server: Server, client: Client) -> None:
    with Caller(port, keys) as caller:
        caller.socket.sendall(call("push-object", MAX_BODY_BYTES, **client.signature()) + bytes(10**5))
        wait_until(lambda: sum(server.parts) == 10**5)
        assert caller.ask(bytes(MAX_BODY_BYTES - 10**5))[0] == 418


@needs_nginx
@pytest.mark.parametrize(("length", "status"), [(5_000_000, 401), (MAX_BODY_BYTES + 1, 413)])
def test_a_strangers_body_is_refused_before_it_comes(
    length: int, status: int, port: int, keys: Path, server: Server
) -> None:
    with Caller(port, keys) as caller:
        assert caller.ask(call("push-object", length))[0] == status
    assert not server.seen


@needs_nginx
@pytest.mark.parametrize("sent", ["no head", "half a head", "half a body"])
def test_who_is_slow_is_cut_off(sent: str, port: int, keys: Path, client: Client) -> None:
    with Caller(port, keys) as caller:
        head = call(length=2, **client.signature())
        caller.socket.sendall({"no head": b"", "half a head": head[:-2], "half a body": head + b"x"}[sent])
        while not caller.is_cut_off():
            pass  # an answer of nginx's own comes before the end


@needs_nginx
def test_an_address_has_so_many_calls_at_once(port: int, keys: Path, client: Client) -> None:
    with ExitStack() as stack:
        for _ in range(3):
            caller = stack.enter_context(Caller(port, keys))
            caller.socket.sendall(call("push-object", 10**5, **client.signature()) + b"x")
        wait_until(lambda: not is_served(port, keys, client))
    wait_until(lambda: is_served(port, keys, client))


@needs_nginx
def test_only_its_certificate_is_shown(port: int, tmp_path: Path) -> None:
    make_server_certificate(tmp_path, [])
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        Caller(port, tmp_path)


@pytest.mark.parametrize("host", ["0.0.0.0; daemon on", "a b", "$x", "{}"])
def test_words_stay_words(host: str, tmp_path: Path) -> None:
    with pytest.raises(FedmaskError, match=r"must be of letters, digits and"):
        write_nginx.configuration(tmp_path, tmp_path, host, 1, 2)
