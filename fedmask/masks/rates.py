"""k -> AdamW's rate for k single entries of a model."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class RateByCount:
    """AdamW's rate for k single entries: a power law between bounds. The fewer entries there are, the further each has
    to go; docs/studies/rates.md has what it was fitted to."""

    at_45_000: float
    """The rate for 45,000 entries."""
    exponent: float
    """By which power of 1 / k it grows."""
    lowest: float
    highest: float = 0.1

    def __call__(self, num_selected: int) -> float:
        rate = self.at_45_000 * math.pow(45_000 / num_selected, self.exponent)
        return min(max(rate, self.lowest), self.highest)
