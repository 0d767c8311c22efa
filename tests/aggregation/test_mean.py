"""fedmask.aggregation: the weighted mean against NumPy's, and its invariants."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from fedmask.aggregation import WeightedMean
from fedmask.errors import FedmaskError

finite = st.floats(-(2.0**60), 2.0**60, width=32)
shapes = st.tuples(st.integers(1, 6), st.integers(0, 20))
updates = shapes.flatmap(lambda shape: stn.arrays(np.float32, shape, elements=finite))
counts = st.lists(st.integers(1, 10**6), min_size=6, max_size=6)


def mean_of(rows: np.ndarray, weights: list[int] | list[float]) -> np.ndarray:
    mean = WeightedMean(rows.shape[1])
    for row, weight in zip(rows, weights, strict=False):
        mean.add(row, weight)
    return mean.result()


@given(updates, counts)
def test_it_is_numpys_weighted_average_in_float64(rows: np.ndarray, weights: list[int]) -> None:
    expected = np.average(rows.astype(np.float64), axis=0, weights=weights[: len(rows)])
    found = mean_of(rows, weights)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13 * float(np.abs(rows).max(initial=0)))


def test_by_hand() -> None:
    rows = np.array([[1, 10], [4, -2]], np.float32)
    assert mean_of(rows, [1, 3]).tolist() == [(1 + 3 * 4) / 4, (10 - 3 * 2) / 4]


def test_the_sum_does_not_lose_a_small_update_beside_large_ones() -> None:
    rows = np.array([[1e8], [1.0], [-1e8]], np.float32)  # in float32, 1e8 + 1 is 1e8
    assert mean_of(rows, [1, 1, 1]).tolist() == [1 / 3]


@given(stn.arrays(np.float32, st.integers(0, 20), elements=finite), st.lists(st.integers(1, 10**6), min_size=1))
def test_equal_updates_have_that_update_as_their_mean(update: np.ndarray, weights: list[int]) -> None:
    found = mean_of(np.repeat(update[None], len(weights), axis=0), weights)
    np.testing.assert_array_equal(found.astype(np.float32), update)


@given(updates, counts, st.integers(2, 1000))
def test_a_common_factor_of_the_weights_changes_nothing(rows: np.ndarray, weights: list[int], factor: int) -> None:
    found, scaled = mean_of(rows, weights), mean_of(rows, [weight * factor for weight in weights])
    np.testing.assert_allclose(scaled, found, rtol=1e-13, atol=1e-13 * float(np.abs(rows).max(initial=0)))
    doubled = mean_of(rows, [weight * 2 for weight in weights])
    assert doubled.tobytes() == found.tobytes()


@given(updates, counts)
def test_what_was_added_is_not_changed(rows: np.ndarray, weights: list[int]) -> None:
    before = rows.tobytes()
    first = mean_of(rows, weights)
    assert rows.tobytes() == before
    assert mean_of(rows, weights).tobytes() == first.tobytes()


def test_the_mean_of_nothing() -> None:
    mean = WeightedMean(3)
    assert mean.is_empty
    with pytest.raises(FedmaskError) as caught:
        mean.result()
    assert str(caught.value) == "mean of no updates: no client's reply was accepted"
    mean.add(np.zeros(3, np.float32), 2)
    assert not mean.is_empty


@pytest.mark.parametrize("shape", [(2,), (4,), (3, 1)])
def test_another_shape(shape: tuple[int, ...]) -> None:
    mean = WeightedMean(3)
    with pytest.raises(FedmaskError) as caught:
        mean.add(np.zeros(shape, np.float32), 1)
    assert str(caught.value) == f"mean of vectors of 3 values: found one of shape {shape}"
    assert mean.is_empty
