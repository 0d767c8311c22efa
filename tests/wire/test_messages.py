"""fedmask.wire.messages: what is packed comes back, in one array; and the bytes of a message as Flower makes them."""

from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from fedmask.errors import RejectedMessage
from fedmask.wire.messages import (
    config_of,
    error_reply,
    metrics_of,
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


config_values = st.one_of(st.integers(-(2**62), 2**62), st.floats(allow_nan=False), st.text(max_size=20), st.booleans())


@given(st.binary(max_size=100), st.dictionaries(st.text(min_size=1, max_size=10), config_values, max_size=4))
def test_what_is_packed_comes_back(payload: bytes, config: dict[str, int | float | str | bool]) -> None:
    content = pack(payload, config=config, metrics={"loss": 0.25, "counts": [1, 2]})
    assert payload_of(content) == payload
    assert dict(config_of(content)) == config
    assert dict(metrics_of(content)) == {"loss": 0.25, "counts": [1, 2]}


def test_it_travels_as_one_array_and_what_is_empty_takes_no_record() -> None:
    (array,) = pack(b"abc").array_records["payload"].values()
    assert (array.dtype, tuple(array.shape), array.stype, array.data) == ("uint8", (3,), "fedmask.frames", b"abc")
    assert list(pack()) == []
    assert list(pack(b"abc", config={"round": 1})) == ["payload", "config"]
    empty = pack()
    assert (payload_of(empty), dict(config_of(empty)), dict(metrics_of(empty))) == (b"", {}, {})


@given(st.binary(min_size=1, max_size=3000), st.dictionaries(st.sampled_from("abc"), st.integers(), max_size=3))
def test_wire_bytes_are_those_of_all_deflated_objects(payload: bytes, config: dict[str, int]) -> None:
    config = {key: value % 2**60 for key, value in config.items()}
    sent = message(pack(payload, config=config))
    assert wire_bytes(sent) == sum(len(part.deflate()) for part in get_all_nested_objects(sent).values())


metric_values = st.one_of(
    st.integers(-(2**62), 2**62),
    st.floats(),
    st.lists(st.floats(), max_size=5),
    st.lists(st.integers(0, 9), max_size=5),
)


@given(
    st.binary(max_size=12).map(lambda start: start * 100),
    st.none() | st.dictionaries(st.text(min_size=1, max_size=10), config_values, max_size=4),
    st.none() | st.dictionaries(st.text(min_size=1, max_size=10), metric_values, max_size=4),
    st.integers(0, 2**63 - 1),
    st.text(max_size=8),
)
def test_wire_bytes_are_flowers_own_count_of_anything_that_is_packed(
    payload: bytes, config: Any, metrics: Any, node: int, group_id: str
) -> None:
    request = Message(pack(payload, config, metrics), node, "train", group_id=group_id)
    reply = Message(pack(payload[:7], metrics, config and {}), reply_to=request)
    for sent in (request, reply):
        assert wire_bytes(sent) == flowers_count(sent)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"payload": ConfigRecord({"a": 1})}),
        RecordDict({"payload": ArrayRecord({"p": Array("uint8", (1,), "numpy.ndarray", b"x")})}),
        RecordDict({"payload": ArrayRecord({"p": Array("float32", (2, 2), "fedmask.frames", bytes(16))})}),
        RecordDict({"payload": ArrayRecord({"p": Array("uint8", (0,), "fedmask.frames", b"")})}),
        RecordDict({"other": ArrayRecord({"p": Array("uint8", (1,), "fedmask.frames", b"x")})}),
        RecordDict({"payload": ArrayRecord({name: Array("uint8", (1,), "fedmask.frames", b"x") for name in "pq"})}),
        pack(bytes(6_000_000)),  # more than one chunk, and two chunks that are the same
    ],
)
def test_wire_bytes_of_any_other_message_are_flowers_own_count(content: RecordDict) -> None:
    assert wire_bytes(message(content)) == flowers_count(message(content))


def test_wire_bytes_of_an_error_are_flowers_own_count() -> None:
    failed = Message(Error(1, "no memory"), reply_to=message(pack(b"x")))
    assert wire_bytes(failed) == flowers_count(failed)


def flowers_count(sent: Message) -> int:
    return sum(len(part.deflate()) for part in get_all_nested_objects(sent).values())


def test_wire_bytes_grow_one_for_one_with_the_payload() -> None:
    # Framing holds the lengths as decimal texts: within one number of digits it is the same for every payload.
    sizes = (1000, 1001, 5000, 9000)
    framing = {wire_bytes(message(pack(bytes(size), config={"round": 1}))) - size for size in sizes}
    assert len(framing) == 1
    assert 0 < framing.pop() < 1300


def test_framing_is_small_for_a_large_payload_too() -> None:
    assert 0 < wire_bytes(message(pack(bytes(2_000_000), config={"round": 10**6, "version": 10**6}))) - 2_000_000 < 1300


@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        ({"p": Array("uint8", (1,), "numpy.ndarray", b"x")}, "['numpy.ndarray']"),
        ({}, "[]"),
        ({name: Array("uint8", (1,), "fedmask.frames", b"x") for name in "pq"}, "['fedmask.frames', 'fedmask.frames']"),
    ],
)
def test_a_payload_of_another_form_is_rejected(arrays: dict[str, Array], found: str) -> None:
    content = RecordDict({"payload": ArrayRecord(arrays)})
    with pytest.raises(RejectedMessage) as caught:
        payload_of(content)
    assert caught.value.cause == "undecodable"
    assert str(caught.value) == f"the payload must be one array of stype fedmask.frames, found {found}"


def test_a_record_of_another_kind_under_our_name_is_as_good_as_none() -> None:
    content = RecordDict({"payload": ConfigRecord({"a": 1}), "config": ArrayRecord(), "metrics": ConfigRecord()})
    assert (payload_of(content), dict(config_of(content)), dict(metrics_of(content))) == (b"", {}, {})


@pytest.mark.parametrize("value", ["1", 1.0, True, None, [1]])
def test_a_fact_that_is_no_whole_number(value: object) -> None:
    config = ConfigRecord({} if value is None else {"round": value})  # type: ignore[dict-item]
    with pytest.raises(RejectedMessage) as caught:
        whole_number(config, "round")
    assert (caught.value.cause, str(caught.value)) == ("undecodable", f"round is {value!r}, expected a whole number")


@pytest.mark.parametrize("value", [1, b"x", None])
def test_a_fact_that_is_no_text(value: object) -> None:
    config = ConfigRecord({} if value is None else {"task": value})  # type: ignore[dict-item]
    with pytest.raises(RejectedMessage) as caught:
        word(config, "task")
    assert (caught.value.cause, str(caught.value)) == ("undecodable", f"task is {value!r}, expected a text")


def test_facts() -> None:
    config = ConfigRecord({"round": 3, "task": "sst2"})
    assert (whole_number(config, "round"), word(config, "task")) == (3, "sst2")


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
