"""fedmask.wire.vectors: frames come back bit for bit, and whatever else arrives is rejected with a cause."""

import math
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from numpy.typing import NDArray

from fedmask.errors import FedmaskError, RejectedMessage
from fedmask.wire.codecs import codec, decode
from fedmask.wire.vectors import COMBINE_NUMBERS, WHOLE, NamedVector, frame, frame_sizes, frames, unframe

LAYOUT, OTHER_LAYOUT = "ab" * 32, "cd" * 32
BODY_LENGTH_AT, SIZE_AT = 12, 16 + len("delta") + 4
"""In the first frame's header, and in its codec's."""
CAUSES = {"undecodable", "wrong-layout", "wrong-length", "not-finite"}
FIVE = np.arange(5, dtype=np.float32)
EXPECTED = [("delta", LAYOUT, 5), ("head", OTHER_LAYOUT, 3)]

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=32).filter(lambda name: len(name.encode()) <= 32)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = stn.arrays(np.float32, st.integers(0, 100), elements=finite)


def two_frames() -> bytes:
    return delta_frame() + delta_frame("head", OTHER_LAYOUT, np.ones(3, np.float32))


def delta_frame(
    name: str = "delta",
    layout_digest: str = LAYOUT,
    values: NDArray[np.float32] = FIVE,
    spec: str = "fp32",
    steps: int = WHOLE,
) -> bytes:
    return frame(name, layout_digest, codec(spec).encode(values, 9), steps)


def rejection(payload: bytes, expected: list[tuple[str, str, int]] = EXPECTED) -> RejectedMessage:
    with pytest.raises(RejectedMessage) as caught:
        unframe(payload, expected)
    assert "\n" not in str(caught.value)
    return caught.value


def unframed_or_rejected(payload: bytes) -> dict[str, NamedVector] | RejectedMessage:
    try:
        return unframe(payload, EXPECTED)
    except RejectedMessage as error:
        return error


# ----------------------------------------------------------------------------------------------------------------------
# Round trips and sizes
# ----------------------------------------------------------------------------------------------------------------------


@given(st.dictionaries(names, st.tuples(vectors, st.binary(min_size=32, max_size=32)), max_size=4))
def test_frames_come_back_bit_for_bit(sent: dict[str, tuple[np.ndarray, bytes]]) -> None:
    framed = {name: delta_frame(name, digest.hex(), values) for name, (values, digest) in sent.items()}
    payload = b"".join(framed.values())
    found = unframe(payload, [(name, digest.hex(), values.size) for name, (values, digest) in sent.items()])
    assert list(found) == list(sent)
    for name, (values, digest) in sent.items():
        vector = found[name]
        assert (vector.name, vector.layout_digest, vector.combine) == (name, digest.hex(), "mean")
        assert vector.values.dtype == np.float32
        assert vector.values.tobytes() == values.tobytes()
    assert frame_sizes(payload) == {name: len(data) for name, data in framed.items()}


@given(names, st.integers(0, 1000))
def test_a_frame_costs_sixteen_bytes_and_its_name(name: str, size: int) -> None:
    body = codec("fp32").encode(np.zeros(size, np.float32), 0)
    assert len(frame(name, LAYOUT, body)) == len(body) + 16 + len(name.encode())


def test_the_bytes_of_a_frame_are_those_of_the_docstring() -> None:
    header = struct.pack("<BBBB8sI", 2, 0, 5, 7, bytes.fromhex(LAYOUT)[:8], 16)
    body = struct.pack("<BBBBI2f", 1, 0, 0, 0, 2, 1, 2)
    assert delta_frame(values=np.array([1, 2], np.float32), steps=7) == header + b"delta" + body


def test_a_body_of_any_codec_is_decoded() -> None:
    values = np.random.default_rng(0).standard_normal(600, dtype=np.float32)
    for spec in ("int4+entropy", "topk:0.1:sign"):
        found = unframe(delta_frame(values=values, spec=spec), [("delta", LAYOUT, 600)])["delta"].values
        assert np.array_equal(found, decode(codec(spec).encode(values, 9), 600))


def test_frames_of_several_versions_stand_side_by_side() -> None:
    payload = delta_frame(steps=2) + delta_frame(steps=1)
    assert [(each.name, each.steps, each.num_bytes) for each in frames(payload)] == [("delta", 2, 49), ("delta", 1, 49)]
    assert frame_sizes(payload) == {"delta": 98}
    found = rejection(payload)  # a client sends nothing but whole vectors
    assert (found.cause, "vector 'delta' is not expected here" in str(found)) == ("undecodable", True)


def test_a_vector_that_may_come_need_not() -> None:
    assert unframe(b"", EXPECTED) == {}
    assert list(unframe(delta_frame(), EXPECTED)) == ["delta"]


@pytest.mark.parametrize("name", ["", "x" * 33, "ü" * 17])
def test_names_take_1_to_32_bytes(name: str) -> None:
    with pytest.raises(FedmaskError) as caught:
        delta_frame(name=name)
    message = f"vector name {name!r} takes {len(name.encode())} bytes; 1 to 32 are allowed"
    assert str(caught.value) == message


def test_numbers_of_combine_rules_never_change() -> None:
    assert COMBINE_NUMBERS["mean"] == 0
    assert len(set(COMBINE_NUMBERS.values())) == len(COMBINE_NUMBERS)


# ----------------------------------------------------------------------------------------------------------------------
# Rejected, by cause
# ----------------------------------------------------------------------------------------------------------------------


def test_another_layout() -> None:
    found = rejection(delta_frame(layout_digest=OTHER_LAYOUT))
    assert found.cause == "wrong-layout"
    assert str(found) == (
        f"vector 'delta' has layout {OTHER_LAYOUT[:16]}, expected {LAYOUT[:16]}: "
        "sender and receiver hold different masks or heads"
    )


@pytest.mark.parametrize("size", [0, 4, 6])
def test_another_length(size: int) -> None:
    found = rejection(delta_frame(values=np.zeros(size, np.float32)))
    assert found.cause == "wrong-length"
    assert str(found) == f"vector 'delta': codec bytes: they hold {size} values, 5 are expected"


def test_a_name_that_is_not_expected() -> None:
    found = rejection(delta_frame(name="control"))
    assert found.cause == "undecodable"
    assert str(found) == "vector 'control' is not expected here; expected whole ['delta', 'head']"


def test_a_vector_that_stands_in_it_twice() -> None:
    once = delta_frame()
    found = rejection(once + once)
    assert found.cause == "undecodable"
    assert str(found) == "vector 'delta' stands twice in the payload"
    with pytest.raises(RejectedMessage, match="twice"):
        frame_sizes(once + once)


@pytest.mark.parametrize(("position", "what"), [(0, "version 9"), (1, "combine 9")])
def test_numbers_that_are_not_known(position: int, what: str) -> None:
    payload = bytearray(delta_frame())
    payload[position] = 9
    found = rejection(bytes(payload))
    assert found.cause == "undecodable"
    assert what in str(found)
    assert str(found).endswith("are not all known")


def test_a_body_that_is_not_what_the_codec_makes() -> None:
    payload = bytearray(delta_frame())
    struct.pack_into("<I", payload, BODY_LENGTH_AT, 8 + 16)
    found = rejection(bytes(payload[:-4]))
    assert found.cause == "undecodable"
    assert str(found) == "vector 'delta': codec bytes: 20 more are needed, 16 are left"


def test_a_value_that_is_not_finite_has_a_cause_of_its_own() -> None:
    payload = delta_frame()[:-4] + struct.pack("<f", math.nan)
    found = rejection(payload)
    assert found.cause == "not-finite"
    assert str(found) == "vector 'delta': codec bytes: 1 of 5 values are not finite"


@given(st.integers(1, len(two_frames()) - 1))
def test_a_payload_that_was_cut(length: int) -> None:
    whole, first = two_frames(), len(delta_frame())
    if length == first:
        assert list(unframe(whole[:length], EXPECTED)) == ["delta"]
    else:
        assert rejection(whole[:length]).cause == "undecodable"


def test_where_a_cut_payload_ends_is_told() -> None:
    whole = delta_frame()
    assert str(rejection(whole[:10])) == "payload of 10 bytes ends inside the header at 0"
    assert str(rejection(whole[:-1])) == f"frame at byte 0 claims to end at {len(whole)} of {len(whole) - 1}"
    assert (
        str(rejection(whole + b"\x01")) == f"payload of {len(whole) + 1} bytes ends inside the header at {len(whole)}"
    )


def test_what_many_empty_frames_cost_is_bounded() -> None:
    payload = b"".join(frame(f"v{number}", LAYOUT, b"") for number in range(50_000))
    tracemalloc.start()
    found = rejection(payload)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found.cause, str(found)) == ("undecodable", "the payload has more than 1020 frames")
    assert peak_bytes < 1_000_000


@settings(max_examples=300)
@given(st.one_of(st.binary(max_size=200), st.binary(max_size=80).map(lambda tail: b"\x02\x00\x05\x00" + tail)))
def test_random_bytes_are_rejected_with_a_known_cause(payload: bytes) -> None:
    if payload:
        assert rejection(payload).cause in CAUSES


@settings(max_examples=300)
@given(st.integers(0, 8 * len(two_frames()) - 1))
def test_one_flipped_bit_is_rejected_or_changes_one_value(bit: int) -> None:
    payload = bytearray(two_frames())
    payload[bit // 8] ^= 1 << bit % 8
    found = unframed_or_rejected(bytes(payload))
    if isinstance(found, RejectedMessage):
        assert found.cause in CAUSES
        return
    sent = unframe(two_frames(), EXPECTED)
    assert found.keys() == sent.keys()
    differing = sum(
        int(np.count_nonzero(found[name].values.view(np.uint32) != sent[name].values.view(np.uint32))) for name in sent
    )
    assert differing == 1


@pytest.mark.parametrize("size_at", [SIZE_AT, BODY_LENGTH_AT])
def test_a_huge_claimed_size_allocates_nothing(size_at: int) -> None:
    payload = bytearray(delta_frame())
    struct.pack_into("<I", payload, size_at, 2**32 - 1)
    tracemalloc.start()
    found = rejection(bytes(payload))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.cause == ("wrong-length" if size_at == SIZE_AT else "undecodable")
    assert peak_bytes < 100_000


def test_a_huge_size_that_both_claim_is_held_against_the_body() -> None:
    payload = bytearray(delta_frame())
    struct.pack_into("<I", payload, SIZE_AT, 2**32 - 1)
    tracemalloc.start()
    found = rejection(bytes(payload), [("delta", LAYOUT, 2**32 - 1)])
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.cause == "undecodable"
    assert peak_bytes < 100_000


@pytest.mark.parametrize("size", [11_520, 6_814, 106_608])  # hiwi and 0.03% on MiniLM, 0.03% on roberta-large
def test_a_delta_takes_four_bytes_a_value_and_at_most_64_more(size: int) -> None:
    taken = len(delta_frame(values=np.zeros(size, np.float32)))
    assert 4 * size < taken <= 4 * size + 64
