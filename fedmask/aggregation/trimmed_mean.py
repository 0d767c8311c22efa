"""The trimmed mean of updates, entry by entry:  the largest and the smallest values are left out, the rest averaged.

Of n values ceil(trim n) are left out at each end, but never all: at most floor((n - 1) / 2). One or two vectors are
averaged as they are. So many vectors, whatever they hold, cannot move an entry beyond what the others hold. Every
client counts alike, for a number of examples is a claim. Needs all vectors at once: they wait on disk.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fedmask.aggregation.rule import Rule
from fedmask.aggregation.spilled import SpilledVectors


class TrimmedMean:
    """Entrywise trimmed mean of float32 vectors (k,)."""

    def __init__(self, size: int, trim: float) -> None:
        """trim: the fraction left out at each end, above 0 and below 0.5."""
        self._size = size
        self._trim = trim
        self._vectors = SpilledVectors(size)

    @property
    def num_updates(self) -> int:
        return self._vectors.num_vectors

    @property
    def num_cut(self) -> int:
        """Values left out at each end."""
        return min(math.ceil(self._trim * self.num_updates), (self.num_updates - 1) // 2)

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
            block.sort(axis=0)
            result[columns] = block[self.num_cut : self.num_updates - self.num_cut].mean(axis=0)
        return result


TRIMMED_MEAN = Rule("trimmed_mean", TrimmedMean, within_tasks=True)
