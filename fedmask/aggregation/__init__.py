"""Combining vectors of the same name and layout."""

from fedmask.aggregation.mean import WeightedMean

__all__ = ["WeightedMean"]
