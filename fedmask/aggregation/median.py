"""The median of updates, entry by entry: as many are above as below; with an even number the mean of the middle two.

Fewer than half of the vectors, whatever they hold, cannot move an entry beyond what the others hold. Every client
counts alike, for a number of examples is a claim. Needs all vectors at once: they wait on disk.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fedmask.aggregation.rule import Rule
from fedmask.aggregation.spilled import SpilledVectors


class Median:
    """Entrywise median of float32 vectors (k,)."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._vectors = SpilledVectors(size)

    @property
    def num_updates(self) -> int:
        return self._vectors.num_vectors

    def add(self, values: NDArray[np.float32], weight: float) -> None:
        """weight is not used."""
        self._vectors.append(values)

    def vectors(self) -> Iterator[NDArray[np.float32]]:
        """Those added so far, in that order."""
        return self._vectors.rows()

    def result(self) -> NDArray[np.float64]:
        """float64 (k,), the same bits in whatever order the vectors came. Raises FedmaskError for none."""
        result = np.empty(self._size)
        for columns, block in self._vectors.blocks():
            result[columns] = np.median(block, axis=0, overwrite_input=True)
        return result


MEDIAN = Rule("median", lambda size, _: Median(size), within_tasks=True)
