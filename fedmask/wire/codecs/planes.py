"""Planes: arrays of small symbols, which is what every codec makes of values; and the bytes they take when packed.

A plane is unsigned integers (count,) below 2^bits, packed little-endian: two symbols of 4 bits and eight of 1 bit share
a byte, the first in its lowest bits. Both ends know count and bits from the number of values alone.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmask.errors import CodecError

Symbols = NDArray[np.unsignedinteger[Any]]
"""(count,) of uint8, uint16 or uint32: the smallest that holds `bits`."""


@dataclass(frozen=True)
class Plane:
    count: int
    bits: int
    """1, 4, 8, 16 or 32."""

    @property
    def packed_bytes(self) -> int:
        return (self.count * self.bits + 7) // 8


class Reader:
    """Bytes from anywhere, taken one piece after the other."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._left = memoryview(data)

    def take(self, num_bytes: int) -> memoryview:
        """The next bytes, exactly so many. Raises CodecError where there are fewer."""
        if num_bytes > len(self._left):
            raise CodecError(f"codec bytes: {num_bytes:,} more are needed, {len(self._left):,} are left")
        taken, self._left = self._left[:num_bytes], self._left[num_bytes:]
        return taken

    def rest(self) -> memoryview:
        return self.take(len(self._left))

    def finish(self) -> None:
        """Raises CodecError where something is left."""
        if len(self._left):
            raise CodecError(f"codec bytes: {len(self._left):,} are left over at the end")


def pack(symbols: Symbols, bits: int) -> bytes | memoryview:
    """The bytes of a plane: a view of the symbols where those are the bytes already."""
    match bits:
        case 1:
            return np.packbits(symbols, bitorder="little").tobytes()
        case 4:
            pairs = np.zeros((len(symbols) + 1) // 2 * 2, np.uint8)
            pairs[: len(symbols)] = symbols
            return (pairs[0::2] | pairs[1::2] << 4).tobytes()
    return np.ascontiguousarray(symbols, f"<u{bits // 8}").data.cast("B")


def unpack(reader: Reader, plane: Plane) -> Symbols:
    """The inverse of `pack`. Raises CodecError, before anything is allocated, where bytes are missing."""
    data = reader.take(plane.packed_bytes)
    match plane.bits:
        case 1:
            return np.unpackbits(np.frombuffer(data, np.uint8), count=plane.count, bitorder="little")
        case 4:
            pairs = np.frombuffer(data, np.uint8)
            return np.stack([pairs & 15, pairs >> 4], axis=1).reshape(-1)[: plane.count]
    return np.frombuffer(data, f"<u{plane.bits // 8}")
