"""fedmask.wire.messages: what is packed comes back, in one record; and the bytes of a message as Flower makes them."""

from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from fedmask.errors import RejectedMessage
from fedmask.wire.messages import (
    MAX_IN_CONFIG,
    error_reply,
    facts_of,
    pack,
    payload_of,
    whole_number,
    wire_bytes,
    word,
)

NODE = 2**62 + 1


@pytest.fixture(autouse=True, scope="module")
def flower_identity() -> None:
    """Flower makes no message outside a run."""
    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 7


def message(content: RecordDict, kind: str = "train") -> Message:
    return Message(content, NODE, kind, group_id="1")


fact_values = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(max_size=20),
    st.booleans(),
    st.lists(st.floats(allow_nan=False), max_size=5),
    st.lists(st.integers(0, 9), max_size=5),
)
some_facts = st.none() | st.dictionaries(st.text(max_size=10), fact_values, max_size=4)


@given(st.binary(max_size=100), some_facts)
def test_what_is_packed_comes_back(payload: bytes, facts: dict[str, Any] | None) -> None:
    content = pack(payload, facts)
    assert payload_of(content) == payload
    assert facts_of(content) == (facts or {})


def test_it_travels_as_one_record_and_large_payloads_in_an_array() -> None:
    entries = {"f": b'\x01{"round":1}', "p": b"abc"}
    assert dict(pack(b"abc", {"round": 1})) == {"f": ConfigRecord(entries)}
    assert dict(pack()) == {"f": ConfigRecord({"f": b"\x01{}"})}
    payload = bytes(MAX_IN_CONFIG + 1)
    large = pack(payload)
    (array,) = large.array_records["p"].values()
    assert (array.dtype, tuple(array.shape), array.stype) == ("uint8", (len(payload),), "fedmask")
    assert facts_of(large) == {}
    assert payload_of(large) is payload  # no copy


@given(
    st.binary(max_size=12).map(lambda start: start * 100), some_facts, st.integers(0, 2**63 - 1), st.text(max_size=8)
)
def test_wire_bytes_are_flowers_own_count_of_anything_that_is_packed(
    payload: bytes, facts: Any, node: int, group_id: str
) -> None:
    request = Message(pack(payload, facts), node, "train", group_id=group_id)
    reply = Message(pack(payload[:7], facts), reply_to=request)
    for sent in (request, reply):
        assert wire_bytes(sent) == flowers_count(sent)


@pytest.mark.parametrize("length", [2**15, 2**15 + 1, 1_500_000, 6_000_000])  # in the record, an array, two chunks
def test_wire_bytes_of_large_payloads_are_flowers_own_count(length: int) -> None:
    sent = message(pack(bytes(length), {"round": 1}))
    assert wire_bytes(sent) == flowers_count(sent)


def packed(name: str = "f", **entries: Any) -> RecordDict:
    return RecordDict({name: ConfigRecord(entries)})


def with_array(dtype: str, shape: tuple[int, ...], stype: str, data: bytes, entry: str = "p") -> RecordDict:
    return RecordDict(
        {"f": ConfigRecord({"f": b"\x01{}"}), "p": ArrayRecord({entry: Array(dtype, shape, stype, data)})}
    )


OTHERS = {
    "nothing": RecordDict(),
    "no bytes": packed(f=1),
    "no facts": packed(p=b"abc"),
    "another entry": packed(f=b"\x01{}", q=b""),
    "a payload of no bytes": packed(f=b"\x01{}", p="abc"),
    "another record": packed(name="g", f=b"\x01{}"),
    "metrics": RecordDict({"f": MetricRecord({"f": 1})}),
    "two records": RecordDict({name: ConfigRecord({"f": b"\x01{}"}) for name in "fg"}),
    "two payloads": RecordDict(
        {"f": ConfigRecord({"f": b"\x01{}", "p": b"x"}), "p": with_array("uint8", (1,), "fedmask", b"x")["p"]}
    ),
    "another stype": with_array("uint8", (1,), "numpy.ndarray", b"x"),
    "another shape": with_array("float32", (2, 2), "fedmask", bytes(16)),
    "another array": with_array("uint8", (1,), "fedmask", b"x", entry="q"),
    "an empty array": with_array("uint8", (0,), "fedmask", b""),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_content_that_is_not_packed_is_rejected(name: str) -> None:
    for read in (payload_of, facts_of):
        with pytest.raises(RejectedMessage) as caught:
            read(OTHERS[name])
        assert caught.value.cause == "undecodable"
    assert wire_bytes(message(OTHERS[name])) == flowers_count(message(OTHERS[name]))


NONSENSE = {
    "empty": b"",
    "another version": b"\x02{}",
    "beyond all measure": b"\x01" + b" " * 2**17 + b"{}",
    "no JSON": b"\x01{",
    "no text": b'\x01{"\xff":1}',
    "deep": b"\x01" + b"[" * 60_000,
    "a list": b"\x01[1]",
    "a mapping": b'\x01{"a":{}}',
    "null": b'\x01{"a":null}',
    "a list of texts": b'\x01{"a":["b"]}',
    "a number without end": b'\x01{"a":' + b"1" * 5000 + b"}",
}


@pytest.mark.parametrize("name", NONSENSE)
def test_facts_that_are_none_are_rejected(name: str) -> None:
    content = packed(f=NONSENSE[name])
    with pytest.raises(RejectedMessage) as caught:
        facts_of(content)
    assert caught.value.cause == "undecodable"
    assert wire_bytes(message(content)) == flowers_count(message(content))


def test_wire_bytes_of_an_error_are_flowers_own_count() -> None:
    failed = Message(Error(1, "no memory"), reply_to=message(pack(b"x")))
    assert wire_bytes(failed) == flowers_count(failed)


def flowers_count(sent: Message) -> int:
    return sum(len(part.deflate()) for part in get_all_nested_objects(sent).values())


def test_wire_bytes_grow_one_for_one_with_the_payload() -> None:
    # Framing holds the lengths as decimal texts: within one number of digits it is the same for every payload.
    sizes = (1000, 1001, 5000, 9000)
    framing = {wire_bytes(message(pack(bytes(size), {"round": 1}))) - size for size in sizes}
    assert len(framing) == 1
    assert 0 < framing.pop() < 400


def test_framing_is_small_for_a_large_payload_too() -> None:
    assert 0 < wire_bytes(message(pack(bytes(2_000_000), {"round": 10**6, "version": 10**6}))) - 2_000_000 < 900


@pytest.mark.parametrize("value", ["1", 1.0, True, None, [1]])
def test_a_fact_that_is_no_whole_number(value: object) -> None:
    facts: Any = {} if value is None else {"round": value}
    with pytest.raises(RejectedMessage) as caught:
        whole_number(facts, "round")
    assert (caught.value.cause, str(caught.value)) == ("undecodable", f"round is {value!r}, expected a whole number")


@pytest.mark.parametrize("value", [1, b"x", None])
def test_a_fact_that_is_no_text(value: object) -> None:
    facts: Any = {} if value is None else {"task": value}
    with pytest.raises(RejectedMessage) as caught:
        word(facts, "task")
    assert (caught.value.cause, str(caught.value)) == ("undecodable", f"task is {value!r}, expected a text")


def test_facts() -> None:
    facts = {"round": 3, "task": "sst2"}
    assert (whole_number(facts, "round"), word(facts, "task")) == (3, "sst2")


def test_an_error_is_told_on_one_line_with_its_kind_and_place() -> None:
    def read() -> None:
        raise OSError("no disk\n  left")

    request = message(RecordDict())
    try:
        read()
    except OSError as error:
        reply = error_reply(request, error)
    assert reply.has_error()
    reason = str(reply.error.reason)
    assert reason.startswith("OSError: no disk left (read, line ")
    assert reply.metadata.dst_node_id == request.metadata.src_node_id
