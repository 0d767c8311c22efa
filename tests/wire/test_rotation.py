"""fedmask.wire.rotation: in each cycle every index once, in parts of one length, from round and seed alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmask.errors import FedmaskError
from fedmask.wire.rotation import rotation


@given(size=st.integers(1, 300), data=st.data(), cycle=st.integers(0, 5), seed=st.integers(0, 2**32))
def test_in_a_cycle_every_index_travels_once(size: int, data: st.DataObject, cycle: int, seed: int) -> None:
    parts = data.draw(st.integers(1, size))
    drawn = [rotation(size, parts, cycle * parts + part, seed) for part in range(1, parts + 1)]
    assert np.array_equal(np.sort(np.concatenate(drawn)), np.arange(size))
    lengths = {len(indices) for indices in drawn}
    assert max(lengths) - min(lengths) <= 1
    assert all(indices.dtype == np.int64 and (np.diff(indices) > 0).all() for indices in drawn)


def test_it_is_the_same_on_every_machine() -> None:
    assert [rotation(10, 3, server_round, 7).tolist() for server_round in (1, 2, 3, 4)] == GOLDEN


GOLDEN = [[0, 1, 2, 3], [7, 8, 9], [4, 5, 6], [2, 3, 4, 6]]


def test_cycles_and_seeds_differ() -> None:
    first = rotation(1000, 4, 1, 0)
    assert not np.array_equal(first, rotation(1000, 4, 5, 0))
    assert not np.array_equal(first, rotation(1000, 4, 1, 1))


@pytest.mark.parametrize("parts", [0, 11])
def test_as_many_parts_as_there_are_entries_at_most(parts: int) -> None:
    with pytest.raises(FedmaskError) as caught:
        rotation(10, parts, 1, 0)
    assert str(caught.value) == f"codec.rotate={parts}: must be from 1 to 10, the length of the vector"


def test_rounds_are_counted_from_1() -> None:
    with pytest.raises(FedmaskError, match="round 0"):
        rotation(10, 2, 0, 0)
