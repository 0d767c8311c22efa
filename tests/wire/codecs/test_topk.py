"""fedmask.wire.codecs.topk: the largest, ties to the lowest index, and which they are in hardly more than entropy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from fedmask.wire.codecs import codec, decode


def sent(fraction: float, values: np.ndarray) -> list[int]:
    """Indices that travelled, of values without zeros."""
    return np.flatnonzero(decode(codec(f"topk:{fraction}:fp32").encode(values, 0), values.size)).tolist()


def test_ties_go_to_the_lowest_index() -> None:
    values = np.array([1, -2, 2, 1, -1, 2, 1], np.float32)
    assert sent(1 / 7, values) == [1]
    assert sent(2 / 7, values) == [1, 2]
    assert sent(4 / 7, values) == [0, 1, 2, 5]
    assert sent(5 / 7, values) == [0, 1, 2, 3, 5]


@given(
    values=stn.arrays(np.float32, st.integers(1, 300), elements=st.sampled_from([-3.0, -1.0, 1.0, 2.0, 3.0])),
    fraction=st.floats(1e-6, 1),
)
def test_exactly_the_largest_travel(values: np.ndarray, fraction: float) -> None:
    count = max(1, round(fraction * values.size))
    assert sent(fraction, values) == sorted(np.argsort(-np.abs(values), kind="stable")[:count].tolist())


@pytest.mark.parametrize("spec", ["topk:0.0001", "topk:1.0:int4"])
def test_at_least_one_travels_and_at_most_all(spec: str) -> None:
    assert np.count_nonzero(decode(codec(spec).encode(np.ones(50, np.float32), 0), 50)) == (50 if "1.0" in spec else 1)


def entropy_bound_bytes(size: int, count: int) -> float:
    """log2 C(size, count) / 8"""
    nats = math.lgamma(size + 1) - math.lgamma(count + 1) - math.lgamma(size - count + 1)
    return nats / math.log(2) / 8


def index_bytes(fraction: float, size: int, seed: int) -> tuple[int, int]:
    """Bytes that say which entries travel, and how many do."""
    values = np.random.default_rng(seed).standard_normal(size, dtype=np.float32)
    spec, count = f"topk:{fraction}:fp32", max(1, round(fraction * size))
    headers, value_bytes = 2 * 8, 4 * count
    return len(codec(spec).encode(values, 0)) - headers - value_bytes, count


@pytest.mark.parametrize("fraction", [0.005, 0.01, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_indices_take_at_most_a_tenth_more_than_the_entropy_bound(fraction: float) -> None:
    taken, count = index_bytes(fraction, 106_608, seed=0)
    assert taken <= 1.1 * entropy_bound_bytes(106_608, count)


@given(fraction=st.floats(0.001, 1), size=st.integers(1, 3000), seed=st.integers(0, 2**32 - 1))
def test_indices_of_any_size_take_that_and_16_bytes(fraction: float, size: int, seed: int) -> None:
    taken, count = index_bytes(fraction, size, seed)
    assert taken <= 1.1 * entropy_bound_bytes(size, count) + 16
