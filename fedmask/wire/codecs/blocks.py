"""Blocks of neighbouring values that share a scale; the last may be shorter. A scale is a bf16: it has float32's range,
so that no block is too large or too small for it."""

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fedmask.wire.codecs.value_codec import Values

_Float = TypeVar("_Float", bound=np.floating[Any])


def num_blocks(size: int, block: int) -> int:
    return -(-size // block)


def in_blocks(values: Values, block: int) -> Values:
    """(k,) -> (blocks, block), the last filled up with zeros."""
    filled = np.zeros((num_blocks(values.size, block), block), np.float32)
    filled.reshape(-1)[: values.size] = values
    return filled


def spread(scales: npt.NDArray[_Float], block: int, size: int) -> npt.NDArray[_Float]:
    """Scales (blocks,) -> the scale of each value (k,)."""
    return np.repeat(scales, min(block, size))[:size]  # a block from the wire may be far longer than the vector
