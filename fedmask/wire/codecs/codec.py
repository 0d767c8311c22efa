"""What a codec is."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Codec:
    """A pair of pure functions between a vector and bytes."""

    name: str
    number: int
    """0..255, on the wire; never reused."""
    encode: Callable[[NDArray[np.float32]], bytes | memoryview]
    """float32 (k,) -> bytes; a view of the values themselves will do."""
    decode: Callable[[bytes | memoryview, int], NDArray[np.float32]]
    """(bytes, k) -> float32 (k,), a new array. Raises FedmaskError for bytes that are not a vector of k values."""
