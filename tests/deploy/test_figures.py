"""deploy.figures and its parts, without a deployment: what is counted, who is harmed when, and the table."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from deploy import figures
from deploy.counting import CountingProxy
from deploy.survival import _harms
from fedmask.errors import FedmaskError


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back twice what it is sent."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    while part := connection.recv(100):
                        connection.sendall(part * 2)

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


def answer(port: int) -> bytes:
    """Six bytes, or fewer where the connection ends."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"abc")
        received = b""
        while len(received) < 6 and (part := connection.recv(100)):
            received += part
        return received


def test_a_proxy_counts_what_goes_through_it(echo: int) -> None:
    proxy = CountingProxy(echo)
    assert [answer(proxy.port), answer(proxy.port)] == [b"abcabc"] * 2
    assert (proxy.up_bytes, proxy.down_bytes, proxy.connections) == (6, 12, 2)
    proxy.close()


def test_a_proxy_that_is_cut_lets_nobody_through(echo: int) -> None:
    proxy = CountingProxy(echo)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=60) as before:
        before.sendall(b"abc")
        assert before.recv(6)
        cut = threading.Thread(target=proxy.cut, args=(2.0,))
        cut.start()
        with suppress(ConnectionResetError):
            while before.recv(6):  # what was under way
                pass
    with suppress(ConnectionError):
        assert answer(proxy.port) == b""
    cut.join()
    assert answer(proxy.port) == b"abcabc"
    proxy.close()


def test_harm_comes_in_the_order_of_the_rounds() -> None:
    assert _harms(12) == [
        (3, "is killed", "client-00001"),
        (4, "hangs", "client-00000"),
        (5, "is cut off", "client-00002"),
        (6, "is killed", "client-00002"),
        (7, "is killed", "server"),
        (9, "is killed", "client-00000"),
    ]
    assert _harms(4) == [(3, "is killed", "client-00001"), (3, "is killed", "server")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give output=DIR"),
        (["output=."], "is there already; name a new folder"),
        (["output=new", "rounds=0"], "rounds=0: must be a whole number of at least 1"),
        (["output=new", "report=true"], "there is no such file; run it without report=true first"),
    ],
)
def test_wrong_arguments_are_told_before_anything_starts(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FedmaskError, match=message):
        figures.main(arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_table_says_what_was_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{figures.BEGIN}\nold\n{figures.END}\nafter\n")
    monkeypatch.setattr(figures, "PAGE", page)
    rows = [("memory", "2 GB", "under 1 GB", False), ("adapter", "same", "same", True), ("calls", "3", "", None)]
    keys = ("what", "value", "limit", "met")
    told: dict[str, object] = {"command": "make it", "commit": "abc", "date": "today"}
    told["figures"] = [dict(zip(keys, row, strict=True)) for row in rows]
    (tmp_path / figures.RESULTS).write_text(json.dumps(told))
    figures.report(tmp_path)
    text = page.read_text()
    assert "| memory | 2 GB | under 1 GB | **no** |\n| adapter | same | same | yes |\n| calls | 3 |  |  |" in text
    assert "make it" in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
