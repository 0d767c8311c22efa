"""fedmask.wire.codecs.integers: the mean over the seeds is the value, and the extremes come back."""

import numpy as np
import pytest

from fedmask.wire.codecs import codec, decode

TOPS = {"int8": 127, "int4": 7}
NUM_SEEDS = 2000


def decoded(name: str, values: np.ndarray, seed: int) -> np.ndarray:
    return decode(codec(name).encode(values, seed), values.size)


@pytest.mark.parametrize("name", TOPS)
def test_the_mean_over_the_seeds_is_the_value(name: str) -> None:
    """Within five standard errors."""
    values = np.random.default_rng(0).laplace(size=300).astype(np.float32)
    mean = np.mean([decoded(name, values, seed) for seed in range(NUM_SEEDS)], axis=0, dtype=np.float64)
    step = np.abs(values).max() / TOPS[name] * (1 + 2.0**-7)
    assert (np.abs(mean - values) <= 5 * step / 2 / np.sqrt(NUM_SEEDS)).all()


@pytest.mark.parametrize("name", TOPS)
def test_values_far_smaller_than_a_step_come_up_as_often_as_they_should(name: str) -> None:
    share, size = 0.001, 256 * 2000
    values = np.full(size, share, np.float32)
    values[::256] = TOPS[name]  # so that a step is 1
    others = np.arange(size) % 256 != 0
    assert abs(decoded(name, values, 0)[others].mean() - share) <= 5 * np.sqrt(share / size)


@pytest.mark.parametrize("name", TOPS)
def test_a_huge_entry_costs_its_own_block_alone(name: str) -> None:
    values = np.full(512, 0.5, np.float32)
    values[300] = 1e30
    assert np.abs(decoded(name, values, 0)[:256] - 0.5).max() <= 0.5 / TOPS[name] * (1 + 2.0**-7)


@pytest.mark.parametrize("name", TOPS)
def test_integers_of_a_fitting_scale_come_back_exactly(name: str) -> None:
    values = np.arange(-TOPS[name], TOPS[name] + 1, dtype=np.float32)
    assert np.array_equal(decoded(name, values, 3), values)


@pytest.mark.parametrize("name", TOPS)
def test_what_would_leave_float32_saturates(name: str) -> None:
    largest = np.finfo(np.float32).max
    for seed in range(20):
        found = decoded(name, np.array([largest, -largest], np.float32), seed)
        assert np.isfinite(found).all()
        assert (np.abs(found) >= 0.85 * largest).all()
