"""Drawn positions: the same on every machine, every one equally often."""

import math

import numpy as np
import pytest

from fedmask.masks.drawn import drawn_positions


def test_the_draw_is_that_of_the_raw_stream_one_by_one() -> None:
    stream, drawn = np.random.PCG64(5), set[int]()
    while len(drawn) < 10:
        drawn.add(int(stream.random_raw()) % 100)
    assert drawn_positions(10, 100, 5).tolist() == sorted(drawn)


def test_above_one_half_it_draws_what_it_leaves_out() -> None:
    few, many = (drawn_positions(count, 100, 5) for count in (10, 90))
    np.testing.assert_array_equal(np.setdiff1d(np.arange(100), few), many)


@pytest.mark.parametrize("count", [6, 21])
def test_every_position_is_drawn_equally_often(count: int) -> None:
    hits = np.zeros(30)
    for seed in range(600):
        positions = drawn_positions(count, 30, seed)
        assert len(positions) == count
        hits[positions] += 1
    deviation = math.sqrt(600 * count / 30 * (1 - count / 30))
    assert np.all(np.abs(hits - 600 * count / 30) < 4.5 * deviation)
