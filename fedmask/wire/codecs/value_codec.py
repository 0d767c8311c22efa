"""What a codec of values is: a pair of pure functions between a vector and planes of symbols."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmask.wire.codecs.planes import Plane, Symbols

Values = NDArray[np.float32]


@dataclass(frozen=True)
class ValueCodec:
    """How float32 values (k,) become planes, and planes values; whether planes are packed or coded is no part of it."""

    name: str
    """As a spec says it: letters and digits."""
    number: int
    """0..254, on the wire; never reused."""
    block: int
    """Values that share a scale, a power of 2 up to 2^16; 1 where none do. Written beside every vector."""
    is_lossless: bool
    """Whether finite values come back bit for bit."""
    layout: Callable[[int, int], list[Plane]]
    """(k, block) -> the planes of k values."""
    to_planes: Callable[[Values, int, int], list[Symbols]]
    """(finite values (k,), block, seed of stochastic rounding) -> symbols, one array a plane of `layout`."""
    from_planes: Callable[[list[Symbols], int, int], Values]
    """(symbols by `layout`, k, block) -> new values (k,). Symbols may be anything that fits their bits: what comes out
    need not be finite (`body.decode` looks), but nothing may raise."""
