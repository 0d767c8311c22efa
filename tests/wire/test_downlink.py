"""fedmask.wire.downlink: whatever a client missed, in the end it holds the server's bits, or says that it does not."""

from collections.abc import Iterator

import numpy as np
import pytest

from fedmask.errors import RejectedMessage
from fedmask.runs.config import CodecConfig
from fedmask.wire.downlink import Downlink, Received, Values
from fedmask.wire.vectors import WHOLE, frames

DELTA, HEAD, OTHER_HEAD = ("delta", "ab" * 32, 700), ("head", "cd" * 32, 9), ("head", "ef" * 32, 11)
EXPECTED = [DELTA, HEAD]
SEED = 5
LOSSY = ["int8", "int4+entropy", "sign", "topk:0.05:int4+entropy"]


def config(down: str, rotate: int = 1) -> CodecConfig:
    return CodecConfig("fp32", down, rotate, True)


def steps(down: Downlink, number: int, first: int = 1) -> Iterator[int]:
    """The server moves on, a version at a time."""
    vectors = dict[tuple[str, str], Values]()
    generator = np.random.default_rng(0)
    for version in range(1, first + number):
        for name, layout, size in (DELTA, HEAD, OTHER_HEAD):
            if name == "delta" or version > 2:  # heads begin to move later
                moved = generator.standard_normal(size).astype(np.float32) / version
                vectors[name, layout] = vectors.get((name, layout), np.zeros(size, np.float32)) + moved
        if version >= first:
            down.advance(version, vectors)
            yield version


def taken(down: Downlink, received: Received, held_version: int | None) -> dict[str, Values] | None:
    return received.take(
        down.payload(EXPECTED, held_version), EXPECTED, down.broadcast.version, down.checksum(EXPECTED)
    )


def is_held(found: dict[str, Values] | None, down: Downlink) -> bool:
    assert found is not None
    return all(found[name].tobytes() == down.held(name, layout, size).tobytes() for name, layout, size in EXPECTED)


@pytest.mark.parametrize("down", ["fp32", "fp32+entropy", *LOSSY])
@pytest.mark.parametrize("rotate", [1, 3])
def test_a_client_that_follows_holds_what_the_server_says_it_holds(down: str, rotate: int) -> None:
    server, client = Downlink(config(down, rotate), SEED), Received(config(down, rotate), SEED)
    assert is_held(taken(server, client, 0), server)  # zeros, and nothing was sent for them
    assert server.payload(EXPECTED, 0) == b""
    for version in steps(server, 8):
        assert is_held(taken(server, client, version - 1), server)
        assert is_held(taken(server, client, version), server)
        assert server.payload(EXPECTED, version) == b""


@pytest.mark.parametrize("held_version", [None, 0])
def test_zeros_are_never_sent(held_version: int | None) -> None:
    server = Downlink(config("sign"), SEED)
    assert server.payload(EXPECTED, held_version) == b""
    assert is_held(taken(server, Received(config("sign"), SEED), held_version), server)


def test_a_part_travels_down_as_well_where_the_codec_is_lossless() -> None:
    server, client = Downlink(config("fp32", 4), SEED), Received(config("fp32", 4), SEED)
    for version in steps(server, 5):
        payload = server.payload(EXPECTED, version - 1)
        assert [len(each.body) for each in frames(payload) if each.name == "delta"] == [8 + 4 * 175]
        assert is_held(taken(server, client, version - 1), server)


def test_a_lossless_codec_holds_the_servers_own_bits() -> None:
    server = Downlink(config("fp32+entropy"), SEED)
    vectors = {DELTA[:2]: np.random.default_rng(0).standard_normal(700, dtype=np.float32)}
    server.advance(1, vectors)
    assert server.held(*DELTA) is vectors[DELTA[:2]]
    assert server.broadcast.changes == ()
    assert [each.steps for each in frames(server.payload(EXPECTED, 0))] == [WHOLE, WHOLE]


@pytest.mark.parametrize("down", LOSSY)
def test_what_a_codec_lost_travels_later(down: str) -> None:
    server, vectors = Downlink(config(down), SEED), {DELTA[:2]: np.linspace(-1, 1, 700, dtype=np.float32)}
    errors = []
    for version in range(1, 150):  # the server stands still, and its clients come ever closer
        server.advance(version, vectors)
        errors.append(np.linalg.norm(server.held(*DELTA) - vectors[DELTA[:2]]) / np.linalg.norm(vectors[DELTA[:2]]))
    assert errors[-1] < 0.05
    assert errors[-1] < 0.5 * errors[0] or errors[0] < 0.01


@pytest.mark.parametrize("down", LOSSY)
@pytest.mark.parametrize("rotate", [1, 3])
def test_who_missed_versions_is_sent_all_changes_while_they_are_short(down: str, rotate: int) -> None:
    server = Downlink(config(down, rotate), SEED)
    behind = [Received(config(down, rotate), SEED) for _ in range(9)]
    for version in steps(server, 8):
        if version < len(behind):
            assert is_held(taken(server, behind[version], None), server)
    kept = len(server.broadcast.changes)
    assert kept >= 3
    whole = server.payload(EXPECTED, None)
    for version in range(8):
        payload = server.payload(EXPECTED, version)
        if 8 - version <= kept:
            assert max(each.steps for each in frames(payload)) <= 8 - version
            assert is_held(taken(server, behind[version], version), server)
        else:
            assert payload == whole


def test_changes_that_are_longer_than_the_vectors_are_forgotten() -> None:
    server = Downlink(config("int8"), SEED)
    for _ in steps(server, 20):
        pass
    sizes = [sum(map(len, bodies.values())) for bodies in server.broadcast.changes]
    assert 1 < len(sizes) < 6
    assert sum(sizes) <= sum(values.nbytes for values in server.broadcast.held.values())


def test_the_last_change_is_kept_whatever_its_length() -> None:
    server, client = Downlink(config("fp16"), SEED), Received(config("fp16"), SEED)
    tiny = [("delta", "ab" * 32, 1)]
    for version in (1, 2):  # eight bytes of header and two of a value, of a vector of four bytes
        server.advance(version, {tiny[0][:2]: np.full(1, version / 3, np.float32)})
        assert len(server.broadcast.changes) == 1
        found = client.take(server.payload(tiny, version - 1), tiny, version, server.checksum(tiny))
        assert found is not None
        assert found["delta"].tobytes() == server.held(*tiny[0]).tobytes()


@pytest.mark.parametrize("down", ["fp32", "sign"])
def test_who_lacks_something_says_so_and_is_helped_by_whole_vectors(down: str) -> None:
    server = Downlink(config(down), SEED)
    for _ in steps(server, 4):
        pass
    client = Received(config(down), SEED)
    assert taken(server, client, 4) is None  # a new process: it is taken to hold what it does not
    if down == "sign":
        assert taken(server, client, 2) is None  # changes from a version that it does not hold
    assert is_held(taken(server, client, None), server)


def test_what_was_held_in_another_course_of_the_run_is_not_mixed_in() -> None:
    client = Received(config("sign"), SEED)
    first, again = Downlink(config("sign"), SEED), Downlink(config("sign"), SEED)
    for version in steps(first, 4):
        taken(first, client, version - 1)
    for version in (1, 2, 3, 4):  # a server that took up an older checkpoint, and then had other replies
        again.advance(version, {DELTA[:2]: np.full(700, version, np.float32)})
    assert taken(again, client, 4) is None
    assert is_held(taken(again, client, None), again)
    for version in (5, 6):
        again.advance(version, {DELTA[:2]: np.full(700, version, np.float32)})
        if version == 6:
            assert is_held(taken(again, client, 4), again)


def test_a_process_that_is_further_than_its_client_needs_nothing() -> None:
    server, client = Downlink(config("int4"), SEED), Received(config("int4"), SEED)
    for version in steps(server, 3):
        found = taken(server, client, version - 1)  # one client of the process follows ...
    again = taken(server, client, 0)  # ... another holds nothing, and is sent all changes
    assert found is not None
    assert again is not None
    assert again["delta"] is found["delta"]


def test_a_resumed_server_goes_on_with_the_same_bytes() -> None:
    whole, first = Downlink(config("int4+entropy", 3), SEED), Downlink(config("int4+entropy", 3), SEED)
    for _ in steps(whole, 6):
        pass
    for _ in steps(first, 3):
        pass
    second = Downlink(config("int4+entropy", 3), SEED, first.broadcast)
    for _ in steps(second, 3, first=4):
        pass
    for held_version in (None, *range(7)):
        assert second.payload(EXPECTED, held_version) == whole.payload(EXPECTED, held_version)
    assert second.checksum(EXPECTED) == whole.checksum(EXPECTED)


@pytest.mark.parametrize("spoil", ["another vector", "another layout", "cut"])
def test_a_payload_that_is_not_of_these_vectors_is_rejected(spoil: str) -> None:
    server, client = Downlink(config("sign"), SEED), Received(config("sign"), SEED)
    for _ in steps(server, 3):
        pass
    expected = {
        "another vector": [DELTA],
        "another layout": [("delta", "00" * 32, 700), HEAD],
        "cut": EXPECTED,
    }[spoil]
    payload = server.payload(EXPECTED, None)
    with pytest.raises(RejectedMessage):
        client.take(payload[:-1] if spoil == "cut" else payload, expected, 3, 0)
