"""fedmask.wire.ledger: the lines of a message sum to its length, and the means are the arithmetic written here."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmask.wire.ledger import Ledger


@pytest.fixture
def ledger() -> Ledger:
    """Two clients; the first takes part in rounds 1 and 2, the second in round 2 and is sent its mask again there."""
    ledger = Ledger()
    ledger.record(0, 0, "down", "mask", 300, 900)
    ledger.record(0, 0, "up", "mask", 0, 600)
    ledger.record(0, 1, "down", "mask", 300, 901)
    ledger.record(0, 1, "up", "mask", 0, 601)
    ledger.record(1, 0, "down", "train", 40, 100, {"head": 10})
    ledger.record(1, 0, "up", "train", 44, 110, {"head": 12})
    ledger.record(1, 0, "down", "evaluate", 40, 90)
    ledger.record(1, 0, "up", "evaluate", 0, 50)
    ledger.record(2, 0, "down", "train", 40, 100)
    ledger.record(2, 0, "up", "train", 50, 120)
    ledger.record(2, 1, "down", "train", 40, 101)
    ledger.record(2, 1, "up", "train", 0, 60)
    ledger.record(2, 1, "down", "mask", 300, 901)
    ledger.record(2, 1, "up", "mask", 0, 601)
    ledger.record(2, 1, "down", "train", 40, 101)
    ledger.record(2, 1, "up", "train", 50, 121)
    return ledger


def test_a_ledger_that_is_replayed_has_the_totals_and_no_line_to_write(ledger: Ledger) -> None:
    again = Ledger()
    again.replay(ledger.take_lines())
    assert again.take_lines() == []
    for total in (again, ledger):  # and both go on alike
        total.record(3, 0, "down", "train", 40, 100)
    assert again.total_bytes == ledger.total_bytes
    assert again.mask_bytes_per_client() == ledger.mask_bytes_per_client()
    assert again.bytes_of("mask") == 900 + 600 + 2 * (901 + 601)
    for way in ("up", "down"):
        assert again.payload_bytes_per_client_round(way) == ledger.payload_bytes_per_client_round(way)
        assert again.bytes_per_client_round(way) == ledger.bytes_per_client_round(way)


def test_a_message_of_two_kinds_gives_two_lines_that_sum_to_its_length() -> None:
    ledger = Ledger()
    ledger.record(3, 7, "up", "train", 40, 100, {"head": 12})
    assert [line.as_dict() for line in ledger.take_lines()] == [
        {"round": 3, "client": 7, "direction": "up", "kind": "train", "payload_bytes": 40, "wire_bytes": 88},
        {"round": 3, "client": 7, "direction": "up", "kind": "head", "payload_bytes": 12, "wire_bytes": 12},
    ]


def test_a_kind_without_bytes_gives_no_line() -> None:
    ledger = Ledger()
    ledger.record(1, 0, "down", "evaluate", 0, 50, {"head": 0})
    assert [line.kind for line in ledger.take_lines()] == ["evaluate"]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 10**6),
            st.integers(0, 2000),
            st.dictionaries(st.sampled_from(["head", "control", "own"]), st.integers(0, 10**4)),
        ),
        max_size=8,
    )
)
def test_wire_bytes_of_all_lines_are_those_of_all_messages(messages: list[tuple[int, int, dict[str, int]]]) -> None:
    ledger, total = Ledger(), 0
    for payload_bytes, framing_bytes, others in messages:
        length = payload_bytes + framing_bytes + sum(others.values())
        ledger.record(1, 0, "up", "train", payload_bytes, length, others)
        total += length
    assert ledger.total_bytes == total
    lines = ledger.take_lines()
    assert sum(line.wire_bytes for line in lines) == total
    assert all(line.wire_bytes >= line.payload_bytes for line in lines)


def test_lines_are_handed_over_once_and_the_totals_stay(ledger: Ledger) -> None:
    total = ledger.total_bytes
    assert len(ledger.take_lines()) == 18
    assert ledger.take_lines() == []
    ledger.record(3, 0, "down", "train", 40, 100)
    assert [line.round for line in ledger.take_lines()] == [3]
    assert ledger.total_bytes == total + 100


def test_total_bytes(ledger: Ledger) -> None:
    masks = 900 + 600 + 901 + 601 + 901 + 601
    rounds = 100 + 110 + 90 + 50 + 100 + 120 + 101 + 60 + 101 + 121
    assert ledger.total_bytes == masks + rounds


def test_mask_bytes_are_both_ways_over_the_clients(ledger: Ledger) -> None:
    assert ledger.mask_bytes_per_client() == ((900 + 600) + (901 + 601 + 901 + 601)) / 2


def test_payload_bytes_are_those_of_everything_but_the_mask(ledger: Ledger) -> None:
    lines = ledger.take_lines()
    for way in ("up", "down"):
        sizes = [line.payload_bytes for line in lines if line.kind != "mask" and line.direction == way]
        assert ledger.payload_bytes_per_client_round(way) == sum(sizes) / 3
        assert sum(sizes) > 0


def test_bytes_are_everything_but_the_mask_over_the_rounds_taken_part_in(ledger: Ledger) -> None:
    assert ledger.bytes_per_client_round("down") == ((100 + 90) + 100 + (101 + 101)) / 3
    assert ledger.bytes_per_client_round("up") == ((110 + 50) + 120 + (60 + 121)) / 3


def test_scoring_alone_is_not_taking_part(ledger: Ledger) -> None:
    ledger.record(3, 1, "down", "evaluate", 0, 80)  # scored at the end, in a round it did not train in
    assert ledger.bytes_per_client_round("down") == ((100 + 90) + 100 + (101 + 101) + 80) / 3


def test_an_empty_ledger_has_zeros() -> None:
    ledger = Ledger()
    assert (ledger.total_bytes, ledger.mask_bytes_per_client()) == (0, 0.0)
    assert (ledger.payload_bytes_per_client_round("up"), ledger.bytes_per_client_round("down")) == (0.0, 0.0)


def test_a_rejected_message_travelled_and_was_not_accepted(ledger: Ledger) -> None:
    before = ledger.total_bytes
    uplink = ledger.payload_bytes_per_client_round("up")
    sound = ledger.record(2, 0, "up", "train", 40, 100, {"head": 12})
    bad = ledger.record(2, 1, "up", "train", 40, 100, {"head": 12})
    ledger.reject(bad)
    lines = ledger.take_lines()
    assert lines[-3:-1] == sound
    assert lines[-1].as_dict() == {
        "round": 2,
        "client": 1,
        "direction": "up",
        "kind": "rejected",
        "payload_bytes": 0,
        "wire_bytes": 100,
    }
    assert ledger.total_bytes == before + 200
    assert ledger.payload_bytes_per_client_round("up") == (3 * uplink + 40 + 12) / 3  # round 2 counts once a client
    assert ledger.bytes_per_client_round("up") == ((110 + 50) + 120 + (60 + 121) + 200) / 3
