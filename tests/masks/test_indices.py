"""Index coding: exact round trips, near the entropy, and a FedmaskError for anything else."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmask.errors import FedmaskError
from fedmask.masks.indices import decode, encode

subsets = st.integers(1, 400).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1)))


def entropy_bytes(size: int, count: int) -> float:
    """log2 C(size, count) / 8."""
    log_choose = math.lgamma(size + 1) - math.lgamma(count + 1) - math.lgamma(size - count + 1)
    return log_choose / math.log(2) / 8


@given(subsets)
@settings(max_examples=60, deadline=None)
def test_decode_inverts_encode(case: tuple[int, set[int]]) -> None:
    size, chosen = case
    indices = np.array(sorted(chosen), dtype=np.int64)
    low_bits, payload = encode(indices, size)
    decoded = decode(payload, len(indices), size, low_bits)
    assert decoded.dtype == np.int64
    np.testing.assert_array_equal(decoded, indices)


def test_the_code_is_the_one_that_the_module_describes() -> None:
    # Gaps 2, 0, 6, 1 with b = 1: low bits 0 0 0 1, then quotients 1, 0, 3, 0 as 01 1 0001 1: 0001_0110_0011.
    low_bits, payload = encode(np.array([2, 3, 10, 12]), 13)
    assert (low_bits, payload) == (1, bytes([0b0001_0110, 0b0011_0000]))


@pytest.mark.parametrize("density", [3e-4, 1e-3, 5e-3, 0.03, 0.1, 0.9])
def test_uniform_indices_take_at_most_a_tenth_more_than_their_entropy(density: float) -> None:
    size = 1_000_000
    count = round(size * density)
    indices = np.sort(np.random.default_rng(1).choice(size, count, replace=False))
    _, payload = encode(indices, size)
    assert len(payload) <= 1.1 * entropy_bytes(size, count)


def test_a_whole_tensor_costs_nothing_and_all_but_one_next_to_nothing() -> None:
    everything = np.arange(1_000_000)
    assert encode(everything, 1_000_000)[1] == b""
    assert len(encode(np.delete(everything, 777), 1_000_000)[1]) <= 4


def test_clustered_indices_stay_within_two_bits_an_index_of_evenly_spread_ones() -> None:
    indices = np.arange(500_000, 510_000)
    _, payload = encode(indices, 1_000_000)
    assert len(payload) <= (math.log2(100) + 2) * len(indices) / 8


@given(payload=st.binary(max_size=40), count=st.integers(1, 60), size=st.integers(1, 100), low_bits=st.integers(0, 45))
@settings(max_examples=150, deadline=None)
def test_any_payload_gives_valid_indices_or_one_error(payload: bytes, count: int, size: int, low_bits: int) -> None:
    count = min(count, size)
    try:
        indices = decode(payload, count, size, low_bits)
    except FedmaskError:
        return
    assert len(indices) == count
    assert indices[0] >= 0
    assert indices[-1] < size
    assert np.all(np.diff(indices) > 0)


def test_errors_say_what_is_wrong_with_the_payload() -> None:
    low_bits, payload = encode(np.array([2, 3, 10, 12]), 13)
    with pytest.raises(FedmaskError, match=r"^index payload of 2 bytes is too short for 40 indices$"):
        decode(payload, 40, 100, low_bits)
    with pytest.raises(FedmaskError, match=r"^index payload of 3 bytes does not hold exactly 4 indices$"):
        decode(payload + b"\0", 4, 13, low_bits)
    with pytest.raises(FedmaskError, match=r"^index payload names entries beyond the tensor's 12$"):
        decode(payload, 4, 12, low_bits)
    with pytest.raises(FedmaskError, match=r"^index payload names entries beyond"):
        # One index whose gap has 41 low bits, all ones.
        decode(b"\xff" * 5 + b"\xc0", 1, 1 << 40, 41)
