"""The weighted mean of updates,  sum_i n_i u_i / sum_i n_i , as a running sum: no update is held after it is added.

The sum is float64, in the order in which updates are added; callers add in client order, so the order in which replies
arrive cannot change a bit.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from fedmask.aggregation.rule import Rule
from fedmask.errors import FedmaskError


class WeightedMean:
    """Running weighted mean of float32 vectors (k,)."""

    def __init__(self, size: int) -> None:
        self._sum = torch.zeros(size, dtype=torch.float64)
        self._added = torch.empty(size, dtype=torch.float64)
        self._weight = 0.0
        self.num_updates = 0

    def add(self, values: NDArray[np.float32], weight: float) -> None:
        """weight: num_examples, above 0."""
        if values.shape != tuple(self._sum.shape):
            raise FedmaskError(f"mean of vectors of {len(self._sum)} values: found one of shape {values.shape}")
        # Converting and adding by themselves are vectorised, both at once are not.
        self._added.copy_(torch.from_numpy(values))
        self._sum.add_(self._added, alpha=weight)
        self._weight += weight
        self.num_updates += 1

    @property
    def is_empty(self) -> bool:
        return self._weight == 0.0

    def result(self) -> NDArray[np.float64]:
        """float64 (k,). Raises FedmaskError where nothing was added."""
        if self.is_empty:
            raise FedmaskError("mean of no updates: no client's reply was accepted")
        return (self._sum / self._weight).numpy()


MEAN = Rule("mean", lambda size, _: WeightedMean(size), within_tasks=False)
