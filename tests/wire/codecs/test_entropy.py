"""fedmask.wire.codecs.entropy: any plane comes back, in hardly more than its entropy; every kind of damage is named."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from fedmask.errors import CodecError
from fedmask.wire.codecs import entropy
from fedmask.wire.codecs.planes import Plane, Reader, pack

DTYPES = {1: np.uint8, 4: np.uint8, 8: np.uint8, 16: np.uint16, 32: np.uint32}

planes = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda bits: st.tuples(
        st.just(bits),
        stn.arrays(DTYPES[bits], st.integers(0, 400), elements=st.integers(0, 2**bits - 1), fill=st.integers(0, 1)),
    )
)


def decoded(data: bytes, count: int, bits: int) -> np.ndarray:
    reader = Reader(data)
    symbols = entropy.decode(reader, Plane(count, bits))
    reader.finish()
    return symbols


@given(planes)
def test_planes_come_back(plane: tuple[int, np.ndarray]) -> None:
    bits, symbols = plane
    data = entropy.encode(symbols, bits)
    assert np.array_equal(decoded(data, symbols.size, bits), symbols)
    assert len(data) <= len(pack(symbols, bits)) + max(bits // 8, 1) * (symbols.size > 0)


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("share", [0.001, 0.02, 0.3])
def test_a_skewed_plane_takes_hardly_more_than_its_entropy(bits: int, share: float) -> None:
    symbols = np.minimum(np.random.default_rng(0).geometric(1 - share, 100_000) - 1, 2**bits - 1).astype(np.uint8)
    shares = np.bincount(symbols) / symbols.size
    bound_bytes = -(shares[shares > 0] * np.log2(shares[shares > 0])).sum() * symbols.size / 8
    assert len(entropy.encode(symbols, bits)) <= 1.003 * bound_bytes + 30


def test_one_symbol_alone_takes_two_bytes_and_none_no_byte() -> None:
    assert entropy.encode(np.full(10_000, 9, np.uint8), 4) == b"\x01\x09"
    assert entropy.encode(np.empty(0, np.uint16), 16) == b""


def test_bytes_on_the_wire_never_change() -> None:
    """What the installed constriction makes of a histogram and of words is part of the wire."""
    zeros_at_the_end = np.array([(number & -number).bit_length() - 1 for number in range(1, 201)], np.uint8)
    assert entropy.encode(zeros_at_the_end, 4).hex(" ", -4) == GOLDEN


GOLDEN = (
    "020007f8 f0e8e0d7 cfcac20d 0000009c 50cd1247 5b01af01 0940c1b0 011bfcda b90775fc 3337023c 3d0b8f90 "
    "0a9cd72f 9d431e57 32b1bc70 75b02699 4703aded c28996"
)

WORDS = struct.pack("<I", 1) + b"\x01\x00\x00\x00"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\x03\x00", "a plane of kind 3"),
        (b"\x01\x10", "symbols 16 to 16 in a plane of 4 bits"),
        (b"\x02\x02\x10", "symbols 2 to 16 in a plane of 4 bits"),
        (b"\x02\x02\x02\x05" + WORDS, "symbols 2 to 2 in a plane of 4 bits"),
        (b"\x02\x02\x03\x00\x00" + WORDS, "a histogram without weights"),
        (b"\x02\x02\x03\x09\x09" + struct.pack("<I", 2**32 - 1), "17,179,869,180 more are needed, 0 are left"),
        (b"\x02\x02\x03\x09\x09" + struct.pack("<II", 1, 0), "damaged entropy coding (Invalid compressed data"),
        (b"\x02\x02\x03\x09\x09" + struct.pack("<20I", 19, *range(1, 20)), "words are left over"),
        (b"\x00\x00", "5 more are needed, 1 are left"),
        (b"", "1 more are needed, 0 are left"),
    ],
)
def test_damage_is_named(data: bytes, what: str) -> None:
    with pytest.raises(CodecError) as caught:
        decoded(data, 10, 4)
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)
