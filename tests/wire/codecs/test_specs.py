"""fedmask.wire.codecs, all of them alike: what they promise of errors and of bytes, sound and hostile."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from fedmask.errors import FedmaskError
from fedmask.wire.codecs import CodecError, codec, decode
from fedmask.wire.codecs.registry import TOPK, VALUE_CODECS, VALUE_CODECS_BY_NUMBER
from fuzz_codecs import NAMES, SPECS, fuzz

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
small = st.floats(-1, 1, width=32)
sizes = st.one_of(st.integers(1, 20), st.sampled_from([255, 256, 257, 600]))
vectors = stn.arrays(np.float32, sizes, elements=st.one_of(finite, small), fill=st.one_of(st.just(0.0), small))
seeds = st.integers(0, 2**63 - 1)

HARD = {
    "zeros": np.zeros(300),
    "minus zeros": -np.zeros(5),
    "one value": np.array([-0.3]),
    "subnormal": np.full(257, 1e-45),
    "subnormals": np.arange(-600, 600) * 1e-42,
    "one huge entry": np.append(np.full(511, 1e-6), 3e38),
    "largest": np.array([3.4028235e38, -3.4028235e38, 1.0]),
    "too large for fp16": np.array([65504, 65519, 65520, -1e6, 1]),
    "no multiple of the block": np.linspace(-1, 1, 700),
    "nothing": np.zeros(0),
}


def laplace(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).laplace(scale=1e-3, size=size).astype(np.float32)


def round_trip(spec: str, values: np.ndarray, seed: int = 0) -> np.ndarray:
    return decode(codec(spec).encode(values, seed), values.size)


def largest_error(name: str, values: np.ndarray) -> np.ndarray:
    """What the codec's module promises, for each entry."""
    v = np.abs(values.astype(np.float64))
    padded = np.zeros(-(-v.size // 256) * 256)
    padded[: v.size] = v
    counts = np.minimum(256, v.size - np.arange(0, v.size, 256))
    most = padded.reshape(-1, 256).max(axis=1, initial=0).repeat(256)[: v.size]
    mean = (padded.reshape(-1, 256).sum(axis=1) / counts).repeat(256)[: v.size]
    match name:
        case "fp32":
            return np.zeros(v.size)
        case "fp16":
            return np.where(v <= 65504, 2.0**-11 * v + 2.0**-25, v - 65504)
        case "bf16":
            return 2.0**-8 * v + 2.0**-134
        case "int8" | "int4":
            return most / (127 if name == "int8" else 7) * (1 + 2.0**-7) + 2.0**-133
        case "sign":
            return np.maximum(v, mean) * (1 + 2.0**-8) + 2.0**-134
    raise AssertionError(name)


def assert_within_stated_error(spec: str, values: np.ndarray, seed: int = 0) -> None:
    decoded = round_trip(spec, values, seed)
    assert decoded.dtype == np.float32
    assert decoded.shape == values.shape
    error = np.abs(decoded.astype(np.float64) - values)
    base = spec.removesuffix("+entropy")
    if not base.startswith("topk"):
        assert (error <= largest_error(base, values)).all()
        return
    _, fraction, name = base.split(":")
    count = min(values.size, max(1, round(float(fraction) * values.size)))
    chosen = np.sort(np.argsort(-np.abs(values), kind="stable")[:count])
    assert (error[chosen] <= largest_error(name, values[chosen])).all()
    left_out = np.setdiff1d(np.arange(values.size), chosen)
    assert not decoded[left_out].any()


@pytest.mark.parametrize("spec", SPECS)
@given(values=vectors, seed=seeds)
def test_what_is_decoded_is_within_the_stated_error(spec: str, values: np.ndarray, seed: int) -> None:
    assert_within_stated_error(spec, values, seed)


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("spec", SPECS)
def test_hard_vectors_are_within_the_stated_error(spec: str, name: str) -> None:
    assert_within_stated_error(spec, HARD[name].astype(np.float32))


@pytest.mark.parametrize("spec", ["fp32", "fp32+entropy"])
@given(values=stn.arrays(np.float32, st.integers(0, 300), elements=finite))
def test_lossless_is_bit_for_bit(spec: str, values: np.ndarray) -> None:
    assert codec(spec).is_lossless
    assert round_trip(spec, values).tobytes() == values.tobytes()


def test_only_fp32_of_all_entries_is_lossless() -> None:
    assert [spec for spec in SPECS if codec(spec).is_lossless] == ["fp32", "fp32+entropy"]


@pytest.mark.parametrize("spec", SPECS)
def test_the_same_seed_gives_the_same_bytes(spec: str) -> None:
    values = laplace(700)
    assert codec(spec).encode(values, 5) == codec(spec).encode(values.copy(), 5)
    differs = codec(spec).encode(values, 5) != codec(spec).encode(values, 6)
    assert differs == ("int" in spec)


@pytest.mark.parametrize("spec", SPECS)
def test_a_view_with_strides_is_encoded_as_its_copy(spec: str) -> None:
    values = laplace(1000)
    assert codec(spec).encode(values[::2], 0) == codec(spec).encode(values[::2].copy(), 0)


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_decoded_can_be_written_to(spec: str) -> None:
    data = codec(spec).encode(laplace(300), 0)
    decode(data, 300).fill(7)
    assert decode(data, 300).max() < 1


BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8 + 16 / 256, "int4": 4 + 16 / 256, "sign": 1 + 16 / 256}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [0, 1, 256, 106_608])
def test_packed_bytes_are_the_bits_of_the_values_and_a_header_of_8(name: str, size: int) -> None:
    taken = len(codec(name).encode(laplace(size), 0))
    assert BITS[name] * size / 8 <= taken - 8 <= BITS[name] * size / 8 + 4


@pytest.mark.parametrize(
    ("spec", "most_bytes"), [("fp32", 383_000), ("fp16", 183_000), ("int8", 92_000), ("int4", 42_000), ("sign", 14_175)]
)
def test_entropy_coding_comes_to_what_limits_say_of_it(spec: str, most_bytes: int) -> None:
    values = laplace(106_608)
    packed, coded = (len(codec(spec + form).encode(values, 0)) for form in ("", "+entropy"))
    assert coded <= most_bytes
    assert coded <= packed + 5


@pytest.mark.parametrize("name", NAMES)
def test_entropy_coding_costs_at_most_a_few_bytes_where_it_wins_nothing(name: str) -> None:
    values = np.random.default_rng(0).integers(0, 2**32, 40, dtype=np.uint32).view(np.float32)
    values = values[np.isfinite(values)]
    assert len(codec(f"{name}+entropy").encode(values, 0)) <= len(codec(name).encode(values, 0)) + 5


# ----------------------------------------------------------------------------------------------------------------------
# Bad input
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("spec", SPECS)
def test_values_that_are_not_finite_are_not_encoded(spec: str, bad: float) -> None:
    values = laplace(10)
    values[[3, 7]] = bad
    with pytest.raises(FedmaskError) as caught:
        codec(spec).encode(values, 0)
    assert str(caught.value) == "codec: 2 of 10 values are not finite, the first is number 3; they cannot travel"


def test_only_vectors_are_encoded() -> None:
    with pytest.raises(FedmaskError, match=r"values of shape \(2, 3\)"):
        codec("fp32").encode(np.zeros((2, 3), np.float32), 0)


@pytest.mark.parametrize(
    "spec",
    [
        *("", "int3", "FP32", "int4+", "int4+zip", "+entropy", "int4+entropy+entropy", "int4:0.5"),
        *("topk", "topk:0.1:int3", "topk:0.1:topk:0.1", "topk:0.1:", "topk:0.1:int4:256", "topk:0.1:topk"),
    ],
)
def test_a_spec_that_says_nothing(spec: str) -> None:
    with pytest.raises(FedmaskError) as caught:
        codec(spec)
    assert str(caught.value) == (
        f"codec {spec!r}: there is no such codec; known are fp32, fp16, bf16, int8, int4, sign, topk:FRACTION and "
        "topk:FRACTION:NAME with NAME one of these, each with +entropy behind it or without"
    )


@pytest.mark.parametrize("fraction", ["0", "-0.1", "1.01", "nan", "inf", "a", "", "1e-400"])
def test_a_fraction_that_is_none(fraction: str) -> None:
    with pytest.raises(FedmaskError) as caught:
        codec(f"topk:{fraction}:int4")
    message = f"codec 'topk:{fraction}:int4': the fraction {fraction!r} must be a number above 0 and at most 1"
    assert str(caught.value) == message


def test_a_spec_is_read_once() -> None:
    assert codec("topk:0.25+entropy") is codec("topk:0.25+entropy")
    assert codec("topk:0.25+entropy").spec == "topk:0.25+entropy"


def test_the_values_of_topk_are_fp16_unless_said() -> None:
    values = laplace(100)
    assert codec("topk:0.1").encode(values, 0) == codec("topk:0.1:fp16").encode(values, 0)


# ----------------------------------------------------------------------------------------------------------------------
# The wire
# ----------------------------------------------------------------------------------------------------------------------


def test_numbers_on_the_wire_never_change() -> None:
    numbers = {name: each.number for name, each in VALUE_CODECS.items()}
    assert numbers == {"fp32": 0, "fp16": 1, "bf16": 2, "int8": 3, "int4": 4, "sign": 5}
    assert len(VALUE_CODECS_BY_NUMBER) == len(VALUE_CODECS)
    assert TOPK == 255


VALUES = np.array([0.5, -1.0, 0.25, 0.0, 3.0, -0.125], np.float32)
GOLDEN = {
    "fp32": "01000000 06000000 0000003f 000080bf 0000803e 00000000 00004040 000000be",
    "fp16": "01010000 06000000 003800bc 00340000 004200b0",
    "bf16": "01020000 06000000 003f80bf 803e0000 404000be",
    "int8": "01030008 06000000 c23c9455 8a7ffd79",
    "int4": "01040008 06000000 dc3e5878 6e",
    "sign": "01050008 06000000 503f22",
    "topk:0.4:fp32": "01ff0100 06000000 00120100 00000200 00000000 80bf0000 4040",
}


@pytest.mark.parametrize("spec", GOLDEN)
def test_bytes_on_the_wire_never_change(spec: str) -> None:
    assert codec(spec).encode(VALUES, 1).hex(" ", -4) == GOLDEN[spec]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("size", [0, 9, 11, 2**32 - 1])
def test_another_length_than_expected(spec: str, size: int) -> None:
    data = codec(spec).encode(laplace(10), 0)
    with pytest.raises(CodecError) as caught:
        decode(data, size)
    assert (str(caught.value), caught.value.cause) == (
        f"codec bytes: they hold 10 values, {size:,} are expected",
        "wrong-length",
    )


@pytest.mark.parametrize(("position", "number"), [(0, 2), (1, 9), (1, 254), (2, 2), (3, 17), (3, 0)])
def test_headers_that_are_not_known(position: int, number: int) -> None:
    data = bytearray(codec("int4").encode(laplace(10), 0))
    data[position] = number
    with pytest.raises(CodecError):
        decode(bytes(data), 10)


@pytest.mark.parametrize("spec", ["fp32", "fp16", "bf16", "topk:0.5:fp32"])
def test_bytes_that_are_not_finite_have_a_cause_of_their_own(spec: str) -> None:
    data = bytearray(codec(spec).encode(np.ones(4, np.float32), 0))
    data[-2:] = b"\xff\xff"
    with pytest.raises(CodecError, match=r"1 of \d values are not finite") as caught:
        decode(bytes(data), 4)
    assert caught.value.cause == "not-finite"


def test_a_topk_inside_a_topk() -> None:
    inner = codec("topk:0.5").encode(laplace(2), 0)
    outer = codec("topk:0.5:fp32").encode(laplace(4), 0)
    values = codec("fp32").encode(laplace(2), 0)
    with pytest.raises(CodecError, match="a top-k stands inside a top-k"):
        decode(outer[: -len(values)] + inner, 4)


@pytest.mark.parametrize("spec", SPECS)
def test_bytes_behind_the_end(spec: str) -> None:
    with pytest.raises(CodecError, match="1 are left over at the end"):
        decode(codec(spec).encode(laplace(300), 0) + b"\0", 300)


@pytest.mark.parametrize("spec", SPECS)
def test_hostile_bytes_end_in_an_error_or_a_vector(spec: str) -> None:
    outcome = fuzz(spec, 200, seed=0)
    assert outcome.failures == []
    assert outcome.rejected > 50
    assert outcome.rejected + outcome.valid == 200


@pytest.mark.parametrize("name", ["int8", "int4", "sign"])
def test_a_block_far_longer_than_the_vector_allocates_nothing(name: str) -> None:
    data = bytearray(codec(name).encode(laplace(2), 0))
    data[3] = 16
    tracemalloc.start()
    assert np.array_equal(decode(bytes(data), 2), round_trip(name, laplace(2)))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 50_000


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spec", ["{}", "topk:0.5:{}"])
def test_a_huge_size_that_header_and_receiver_agree_on_allocates_nothing_without_its_bytes(
    spec: str, name: str
) -> None:
    data = bytearray(codec(spec.format(name)).encode(laplace(1000), 0))
    data[4:8] = b"\xff\xff\xff\xff"
    tracemalloc.start()
    with pytest.raises(CodecError):
        decode(bytes(data), 2**32 - 1)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 100_000
