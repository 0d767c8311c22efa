"""deploy.open_gate: calls of registered clients pass, and nothing else does, is held, or takes their places."""

import base64
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER, NodeStatus
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes

from deploy import callers, flower, gate, open_gate, signed
from deploy.callers import Callers, address_of
from deploy.gate import MAX_BODY_BYTES, MAX_CLIENT_BYTES
from deploy.make_keys import AUTHORITY, make_server_certificate
from faults.gate import CROWD
from faults.gate import KINDS as KINDS_OF_CROWDS
from fedmask.errors import FedmaskError

from .conftest import Caller, Client, Registry, Server, call, is_served, listens, opened, wait_until

MEGABYTE = 10**6


Own = Callable[[], AbstractContextManager[int]]


@pytest.fixture(scope="module")
def port(running_server: Server, keys: Path, registry: Registry) -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patch, opened(running_server.url, keys, registry.path) as port:
        patch.setattr(gate, "LINGER_SECONDS", 0.05)  # a second a test otherwise
        yield port


@pytest.fixture
def own(running_server: Server, keys: Path, registry: Registry) -> Own:
    """Opens a gate for one test, once its limits are set."""
    return lambda: opened(running_server.url, keys, registry.path)


# ---- what passes -----------------------------------------------------------------------------------------------------


def test_a_clients_calls_pass_and_so_do_the_answers(port: int, keys: Path, server: Server, client: Client) -> None:
    with Caller(port, keys) as caller:
        for body in (b"\0\xff", b"", b"another on the same connection"):
            head = call("push-object", len(body), **client.signature(), flwr_version="1", content_type="a/b")
            assert caller.ask(head + body) == (418, b"POST /v1/fleet/push-object? " + body)
    assert (server.headers[b"flwr-version"], server.headers[b"content-type"]) == (b"1", b"a/b")


def test_calls_may_follow_each_other_before_they_are_answered(port: int, keys: Path, client: Client) -> None:
    head = call(length=1, **client.signature())
    with Caller(port, keys) as caller:
        assert caller.ask(head + b"a" + head + b"b")[0] == 418
        assert caller.answer() == (418, b"POST /v1/fleet/pull-messages? b")


def test_a_body_is_passed_on_as_it_comes(port: int, keys: Path, server: Server, client: Client) -> None:
    with Caller(port, keys) as caller:
        caller.socket.sendall(call("push-object", MAX_BODY_BYTES, **client.signature()) + bytes(10**5))
        wait_until(lambda: sum(server.parts) == 10**5)
        assert caller.ask(bytes(MAX_BODY_BYTES - 10**5))[0] == 418
    assert sum(server.parts) == MAX_BODY_BYTES


def test_flowers_own_names_are_meant(registry: Registry) -> None:
    assert (signed.KEY, signed.SIGNATURE) == (FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER)
    assert (signed.SIGNED_AT, signed.UNREGISTERED) == (TIMESTAMP_HEADER, NodeStatus.UNREGISTERED)
    assert -SYSTEM_TIME_TOLERANCE == signed.EARLIEST_SECONDS
    assert TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE == signed.LATEST_SECONDS


# ---- what does not ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        *("/v1/control/start-run", "/v1/runtime/push-messages", "/health", "/", "*", "\\v1\\fleet\\x"),
        *("/v1/fleet", "/v1/fleet/", "/v1/fleet/x/", "/v1/fleet//x", "//v1/fleet/x", "/V1/fleet/x", "/v1/fleet/X_1"),
        *("/v1/fleet/../control/start-run", "/v1/fleet/..%2Fcontrol%2Fx", "/v1/fleet/%2e%2e/control/x"),
        *("/v1/fleet/..", "/v1/fleet/%2e%2e", "/v1/fleet/x/y", "/v1/fleet/x%2Fy", "/v1/fleet/x%00", "/v1/fleet/x;y"),
        *("/v1/fleet/x?y=1", "/v1/fleet/x?", "/v1/fleet/x#y", "https://gate/v1/fleet/x", "gate/v1/fleet/x"),
    ],
)
def test_another_path_is_none(target: str, port: int, keys: Path, server: Server, client: Client) -> None:
    head = call("here", **client.signature()).replace(b"/v1/fleet/here", target.encode())
    with Caller(port, keys) as caller:
        assert caller.ask(head) == (404, b"")
        assert caller.is_cut_off()
    assert not server.seen


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "CONNECT", "post"])
def test_another_method_is_none(method: str, port: int, keys: Path, server: Server, client: Client) -> None:
    head = call(**client.signature()).replace(b"POST", method.encode())
    with Caller(port, keys) as caller:
        assert caller.ask(head) == (404, b"")
    assert not server.seen


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (b"Host: gate", b"Host: gate\r\nX: \xff", 400),
        (b"Host: gate", b"Host: gate\r\nX: \0", 400),
        (b"Host: gate", b"Host: gate\r\nX: \x1b[2J", 400),
        (b"Host: gate", b"Host: gate\nX: lone line feed", 400),
        (b"Host: gate", b"Host: gate\rX: lone return", 400),
        (b"Host: gate", b"Host: gate\r\nX: folded\r\n over lines", 400),
        (b"Host: gate", b"Host: gate\r\n: no name", 400),
        (b"Host: gate", b"Host: gate\r\nspace before : colon", 400),
        (b"Host: gate", b"Host: gate\r\nno colon", 400),
        (b"Host: gate", b"Host: gate\r\nHost: other", 400),
        (b"Host: gate\r\n", b"", 400),
        (b"POST /v1/fleet/pull-messages", b"POST  /v1/fleet/pull-messages", 400),
        (b"HTTP/1.1", b"HTTP/2.0", 400),
        (b"HTTP/1.1", b"", 400),
        (b"Content-Length: 0", b"Content-Length: 0\r\nContent-Length: 5", 400),
        (b"Content-Length: 0", b"Content-Length: 5\r\nTransfer-Encoding: chunked", 400),
        (b"Content-Length: 0", b"Transfer-Encoding: chunked\r\nContent-Length: 5", 400),
        (b"Content-Length: 0", b"Transfer-Encoding: chunked", 400),
        (b"Content-Length: 0", b"Transfer-Encoding : chunked", 400),
        (b"Content-Length: 0", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", 400),
        (b"Content-Length: 0", b"Transfer-Encoding: xchunked", 400),
        (b"Content-Length: 0", b"Content-Length: -1", 400),
        (b"Content-Length: 0", b"Content-Length: +1", 400),
        (b"Content-Length: 0", b"Content-Length: 1_0", 400),
        (b"Content-Length: 0", b"Content-Length: 0x1", 400),
        (b"Content-Length: 0", b"Content-Length: 0\r\nExpect: 100-continue", 400),
        (b"Content-Length: 0\r\n", b"", 411),
        (b"Content-Length: 0", f"Content-Length: {MAX_BODY_BYTES + 1}".encode(), 413),
        (b"Content-Length: 0", b"Content-Length: " + b"9" * 400, 400),
        (b"Host: gate", b"Host: gate\r\nX: " + b"x" * 17_000, 431),
        (b"Host: gate", b"".join(b"X-%d: y\r\n" % number for number in range(65)) + b"Host: gate", 431),
    ],
)
def test_a_head_that_can_be_read_in_two_ways_is_not_read(
    old: bytes, new: bytes, status: int, port: int, keys: Path, server: Server, client: Client
) -> None:
    """What follows it is not taken for a call either."""
    head, another = call(**client.signature()).replace(old, new), call("other", **client.signature())
    with Caller(port, keys) as caller:
        assert caller.ask(head + another) == (status, b"")
        assert caller.is_cut_off()
    assert not server.seen


def test_a_call_to_another_part_hidden_in_a_body_is_a_body(
    port: int, keys: Path, server: Server, client: Client
) -> None:
    hidden = b"POST /v1/control/start-run HTTP/1.1\r\nHost: gate\r\n\r\n"
    upgrade = {"connection": "upgrade", "upgrade": "h2c", "http2_settings": "AAMAAABk"}
    with Caller(port, keys) as caller:
        assert caller.ask(call(length=len(hidden), **client.signature(), **upgrade) + hidden)[0] == 418
    assert server.seen == ["POST /v1/fleet/pull-messages?"]
    assert b"upgrade" not in server.headers


def unsigned(registry: Registry) -> dict[str, dict[str, str]]:
    """Headers by what is wrong with them."""
    client, other = registry.clients
    stranger, good = Client(*generate_key_pairs()), client.signature()
    now = datetime.now(UTC)
    edwards = b"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA" + b"A" * 43 + b"=\n-----END PUBLIC KEY-----\n"
    return {
        "none": {},
        "a stranger's key": stranger.signature(),
        "another's key": good | {"flwr_public_key": other.signature()["flwr_public_key"]},
        "another's signature": good | {"flwr_signature": other.signature(good["flwr_timestamp"])["flwr_signature"]},
        "no signature": {name: value for name, value in good.items() if name != "flwr_signature"},
        "no key": {name: value for name, value in good.items() if name != "flwr_public_key"},
        "no time": {name: value for name, value in good.items() if name != "flwr_timestamp"},
        "another time": good | {"flwr_timestamp": now.isoformat()},
        "an old time": client.signature((now - timedelta(seconds=306)).isoformat()),
        "a time to come": client.signature((now + timedelta(seconds=60)).isoformat()),
        "a time without a zone": client.signature(now.replace(tzinfo=None).isoformat()),
        "no time at all": client.signature("soon"),
        "a key of another kind": good | {"flwr_public_key": base64.b64encode(edwards).decode()},
        "not base64": good | {"flwr_signature": "!!!!"},
        "nothing": good | {"flwr_signature": "", "flwr_public_key": ""},
    }


KINDS = ("none", "a stranger's key", "another's key", "another's signature", "no signature", "no key", "no time")
KINDS += ("another time", "an old time", "a time to come", "a time without a zone", "no time at all")
KINDS += ("a key of another kind", "not base64", "nothing")


@pytest.mark.parametrize("kind", KINDS)
def test_who_has_not_signed_is_refused_before_the_body(
    kind: str, port: int, keys: Path, server: Server, registry: Registry
) -> None:
    """None of the body is sent before the answer."""
    with Caller(port, keys) as caller:
        status, content = caller.ask(call("push-object", 5_000_000, **unsigned(registry)[kind]))
        assert (status, b"no registered client has signed this call" in content) == (401, True)
        assert caller.is_cut_off()
    assert not server.seen


def test_a_client_that_starts_is_told_why_it_does_not_get_in(port: int, keys: Path, server: Server) -> None:
    """By Flower, at a 412 with an error of its form; at a 401 it ends without a word."""
    with Caller(port, keys) as caller:
        status, content = caller.ask(call("activate-node", 100, **Client(*generate_key_pairs()).signature()))
    error = FlowerError.from_json(content.decode())
    assert (status, error is not None and error.code) == (412, ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED)
    assert not server.seen


def test_each_call_on_a_connection_is_signed(port: int, keys: Path, server: Server, client: Client) -> None:
    with Caller(port, keys) as caller:
        assert caller.ask(call(**client.signature()))[0] == 418
        assert caller.ask(call())[0] == 401
    assert len(server.seen) == 1


def test_who_is_unregistered_is_out_at_once(port: int, keys: Path, registry: Registry) -> None:
    gone = Client(*generate_key_pairs())
    assert not is_served(port, keys, gone)
    node = registry.state.create_node("owner", "owner", public_key_to_bytes(gone.public), 30.0)
    assert is_served(port, keys, gone)
    registry.state.delete_node("owner", node)
    assert not is_served(port, keys, gone)


@pytest.mark.parametrize("lacking", ["server", "database", "its authority"])
def test_a_server_that_is_away_is_told_apart_from_one_that_refuses(
    lacking: str, server: Server, keys: Path, registry: Registry, client: Client, tmp_path: Path
) -> None:
    make_server_certificate(tmp_path, [])
    url = f"https://127.0.0.1:{flower.free_port()}" if lacking == "server" else server.url
    database = tmp_path / "none.db" if lacking == "database" else registry.path
    with (
        opened(url, keys, database, tmp_path if lacking == "its authority" else keys) as port,
        Caller(port, keys) as caller,
    ):
        assert caller.ask(call(length=1, **client.signature()) + b"x") == (503, b"")
    assert not server.seen


# ---- places, bytes and time ------------------------------------------------------------------------------------------


def test_strangers_drive_out_each_other_and_no_client(
    own: Own, keys: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers, "MAX_STRANGERS", 8)
    with own() as port, ExitStack() as stack:
        known = stack.enter_context(Caller(port, keys))
        assert known.ask(call(**client.signature()))[0] == 418
        strangers = [stack.enter_context(Caller(port, keys)) for _ in range(20)]
        assert is_served(port, keys, client)
        assert known.ask(call(**client.signature()))[0] == 418
        wait_until(lambda: sum(has_ended(stranger) for stranger in strangers) >= 12)


def test_who_makes_room_sees_a_reset(own: Own, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any other end in a handshake, Flower's client gives up."""
    monkeypatch.setattr(callers, "MAX_STRANGERS", 1)
    with own() as port, socket.create_connection(("127.0.0.1", port), Caller.SECONDS) as first:
        first.sendall(b"\x16\x03\x01")  # a handshake begins
        with socket.create_connection(("127.0.0.1", port)), pytest.raises(ConnectionResetError):
            first.recv(1)


def has_ended(caller: Caller) -> bool:
    caller.socket.settimeout(0.01)
    try:
        return not caller.socket.recv(1)
    except TimeoutError:
        return False
    except OSError:
        return True


def test_the_address_with_most_strangers_loses_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "MAX_STRANGERS", 4)
    gone, everybody = list[str](), Callers()
    for address in ("a", "b", "b", "b", "c", "c", "b"):
        everybody.come(callers.Caller(address, lambda address=address: gone.append(address)))
    assert gone == ["b", "b", "c"]


def test_a_newcomer_has_time_for_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "MAX_STRANGERS", 8)
    came, later, everybody = list[int](), list[int](), Callers()
    for number in range(40):
        everybody.come(callers.Caller("a", lambda number=number: later.append(len(came) - number - 1)))
        came.append(number)
    assert len(later) == 32
    assert min(later) >= 4  # came after it, before it had to go


def test_addresses_of_one_household_are_one() -> None:
    assert address_of("2001:db8::1") == address_of("2001:db8::ffff:1") != address_of("2001:db8:0:1::1")
    assert address_of("192.0.2.1") != address_of("192.0.2.2")
    assert address_of("::ffff:192.0.2.1") != address_of("::ffff:192.0.2.2")
    assert address_of("fe80::1%eth0") == address_of("fe80::2%eth0")


def test_a_client_takes_no_place_from_another(
    own: Own, keys: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers, "MAX_OF_A_KEY", 3)
    greedy, other = registry.clients
    with own() as port, ExitStack() as stack:
        for _ in range(3):
            assert stack.enter_context(Caller(port, keys)).ask(call(**greedy.signature()))[0] == 418
        assert stack.enter_context(Caller(port, keys)).ask(call(**greedy.signature()))[0] == 503
        assert is_served(port, keys, other)
    with own() as port:  # a place that is left is free again
        assert all(is_served(port, keys, greedy) for _ in range(5))


def test_a_client_has_so_many_bytes_on_their_way(own: Own, keys: Path, server: Server, registry: Registry) -> None:
    greedy, other = registry.clients
    with own() as port, ExitStack() as stack:
        for number in range(1, MAX_CLIENT_BYTES // MAX_BODY_BYTES + 1):
            caller = stack.enter_context(Caller(port, keys))
            caller.socket.sendall(call("push-object", MAX_BODY_BYTES, **greedy.signature()) + b"x")
            wait_until(lambda number=number: sum(server.parts) == number)
        assert stack.enter_context(Caller(port, keys)).ask(call(length=1, **greedy.signature()) + b"x")[0] == 503
        assert is_served(port, keys, other)


@pytest.mark.parametrize("sent", ["no TLS", "no head", "half a head", "half a body"])
def test_who_is_slow_is_cut_off(
    sent: str, own: Own, keys: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HANDSHAKE_SECONDS", "HEAD_SECONDS", "BODY_SECONDS"):
        monkeypatch.setattr(gate, name, 0.3)
    with own() as port:
        if sent == "no TLS":
            with socket.create_connection(("127.0.0.1", port), Caller.SECONDS) as plain:
                assert plain.recv(1) == b""
            return
        with Caller(port, keys) as caller:
            head = call(length=2, **client.signature())
            caller.socket.sendall({"no head": b"", "half a head": head[:-2], "half a body": head + b"x"}[sent])
            assert caller.is_cut_off()


def test_a_byte_now_and_then_is_slow(own: Own, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "HEAD_SECONDS", 0.3)
    with own() as port, Caller(port, keys) as caller:
        deadline = time.monotonic() + Caller.SECONDS
        with suppress(OSError):
            for byte in call():
                caller.socket.sendall(bytes([byte]))
                time.sleep(0.05)
                if has_ended(caller):
                    break
        assert time.monotonic() < deadline
        assert has_ended(caller)


# ---- what it says and holds ------------------------------------------------------------------------------------------


def test_what_strangers_do_is_told_by_the_minute(
    own: Own, keys: Path, client: Client, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gate, "TELL_SECONDS", 0.5)
    lines = list[str]()

    def told() -> Counter[str]:
        """How often, by what."""
        lines.extend(capfd.readouterr().err.splitlines())
        counted = Counter[str]()
        for line in lines:
            for number, what in re.findall(r"(\d+) (\D[^,]*)", line.partition(": ")[2]):
                counted[what] += int(number)
        return counted

    with own() as port:
        for _ in range(5):
            with Caller(port, keys) as caller:
                caller.socket.sendall(call("push-object", 2, **client.signature()) + b"x")
            with Caller(port, keys) as caller:
                assert caller.ask(call().replace(b"gate", b"\xff"))[0] == 400
            with Caller(port, keys) as caller:
                assert caller.ask(call(length=10**6), bytes(10**5))[0] in (401, 0)
            with socket.create_connection(("127.0.0.1", port)) as plain:
                plain.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(100))
        wait_until(lambda: told().total() == 20)
    expected = dict.fromkeys(("left in mid-call", "answered with 400", "answered with 401", "broke off"), 5)
    assert told() == expected
    assert [line for line in lines if not line.startswith("gate, turned away in the last ")] == []


def test_an_error_of_the_gate_shows_its_traceback(
    own: Own, keys: Path, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with own() as port:
        with monkeypatch.context() as patch, Caller(port, keys) as caller:
            patch.setattr(gate, "signer_of", lambda headers, database: 1 // 0)
            assert caller.ask(call(**client.signature())) == (0, b"")
        assert "ZeroDivisionError" in caplog.text
        assert is_served(port, keys, client)


def test_what_is_held_of_strangers_is_bounded(server: Server, keys: Path, registry: Registry, tmp_path: Path) -> None:
    """A real process; all that is sent comes to 300 MB, and the buffers of all connections to 180."""
    flower.connect(registry.path.parent, keys, server.port)
    port, log = flower.free_port(), tmp_path / "gate.log"
    where = [f"folder={registry.path.parent}", f"keys={keys}", "host=127.0.0.1", f"port={port}"]
    with log.open("wb") as file:
        command = [sys.executable, str(Path(open_gate.__file__)), *where, f"server_port={server.port}"]
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        wait_until(lambda: listens(port))
        before = most_memory(process)
        body, part = call("push-object", 10_000_000), bytes(MEGABYTE)
        head = call().replace(b"Host: gate", b"X: " + b"x" * MEGABYTE)
        for sent in (body + part, head):
            with ExitStack() as stack:
                strangers = [stack.enter_context(Caller(port, keys)) for _ in range(50)]
                for stranger in strangers:
                    with suppress(OSError):  # it has been refused before it has said all
                        stranger.socket.sendall(sent)
                        stranger.socket.sendall(part)
        assert is_served(port, keys, registry.clients[0])
        assert most_memory(process) - before < 40 * MEGABYTE
        with ExitStack() as stack:
            for _ in range(600):
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            assert is_served(port, keys, registry.clients[0])
        assert most_memory(process) - before < 90 * MEGABYTE
    finally:
        process.terminate()
        process.wait()
    assert not log.read_text()
    assert len(server.seen) == 2


def test_the_folder_is_a_servers(keys: Path, tmp_path: Path) -> None:
    where = [f"folder={tmp_path}", f"keys={keys}", "host=127.0.0.1", f"port={flower.free_port()}"]
    with pytest.raises(FedmaskError, match=r"must be the folder of a server that start_server\.py has started"):
        open_gate.main(where)


@pytest.mark.parametrize("kind", KINDS_OF_CROWDS)
def test_a_crowd_shuts_nobody_out(kind: str, own: Own, keys: Path, server: Server, client: Client) -> None:
    """The callers of `chaos.py gate=`, for a moment."""
    with own() as port, Caller(port, keys) as known:
        assert known.ask(call(**client.signature()))[0] == 418
        crowd = [sys.executable, CROWD, kind, "20", "1", str(port), keys / AUTHORITY]
        with subprocess.Popen(crowd, stdout=subprocess.PIPE, text=True) as process:
            while process.poll() is None:
                assert known.ask(call(**client.signature()))[0] == 418
                assert is_served(port, keys, client)
            assert process.stdout is not None
            assert int(process.stdout.read()) > 0
    assert set(server.seen) == {"POST /v1/fleet/pull-messages?"}


def most_memory(process: subprocess.Popen[bytes]) -> int:
    """Bytes that the process has had in memory at most."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
