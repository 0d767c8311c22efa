"""fedmask.wire.codecs: fp32 is lossless, four bytes a value, and takes no other length; numbers on the wire stay."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from fedmask.errors import FedmaskError
from fedmask.wire.codecs import CODECS, CODECS_BY_NUMBER

FP32 = CODECS["fp32"]


@given(stn.arrays(np.float32, st.integers(0, 200), elements=st.floats(width=32)))
def test_fp32_is_lossless_for_every_bit_pattern(values: np.ndarray) -> None:
    encoded = FP32.encode(values)
    assert len(encoded) == 4 * values.size
    assert FP32.decode(encoded, values.size).tobytes() == values.tobytes()


def test_fp32_is_little_endian() -> None:
    assert FP32.encode(np.array([1.5, -2.0], np.float32)) == struct.pack("<2f", 1.5, -2.0)


def test_fp32_encodes_a_view_with_strides() -> None:
    values = np.arange(10, dtype=np.float32)
    assert FP32.decode(FP32.encode(values[::2]), 5).tolist() == [0, 2, 4, 6, 8]


def test_what_fp32_decodes_can_be_written_to() -> None:
    decoded = FP32.decode(bytes(8), 2)
    decoded += 1
    assert decoded.tolist() == [1, 1]


@pytest.mark.parametrize("length", [0, 7, 9, 4])
def test_fp32_takes_no_other_length(length: int) -> None:
    with pytest.raises(FedmaskError) as caught:
        FP32.decode(bytes(length), 2)
    assert str(caught.value) == f"fp32: 2 values take 8 bytes, found {length}"


def test_names_and_numbers_are_one_to_one_and_never_change() -> None:
    assert {name: codec.number for name, codec in CODECS.items()}["fp32"] == 0
    assert all(CODECS[codec.name] is codec for codec in CODECS_BY_NUMBER.values())
    assert all(CODECS_BY_NUMBER[codec.number] is codec and 0 <= codec.number < 256 for codec in CODECS.values())
    assert len(CODECS) == len(CODECS_BY_NUMBER)
