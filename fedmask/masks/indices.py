"""Sorted indices of one tensor <-> few bytes: Golomb-Rice coding of the gaps between neighbours.

k indices of n entries become gaps g >= 0 (entries skipped before each index); a gap is written as its b low bits, all
k of them first, then floor(g / 2^b) zeros and a one, k such runs. With b near log2(n/k) that is about
k (log2(n/k) + 1.5) bits, within a few per cent of the entropy log2 C(n, k). Where more than half of the entries are
selected, those left out are coded instead, so that a whole tensor costs nothing.
"""

import numpy as np
import numpy.typing as npt

from fedmask.errors import FedmaskError

Indices = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]


def encode(indices: Indices, size: int) -> tuple[int, bytes]:
    """Sorted unique indices (k,) of a tensor of `size` entries -> (b, payload)."""
    coded = indices if 2 * len(indices) <= size else _complement(indices, size)
    if not len(coded):
        return 0, b""
    gaps = np.diff(coded, prepend=-1) - 1
    low_bits = _best_low_bits(gaps)
    bits = np.concatenate([_low_parts(gaps, low_bits), _unary(gaps >> low_bits)])
    return low_bits, np.packbits(bits).tobytes()


def decode(payload: bytes, count: int, size: int, low_bits: int) -> Indices:
    """The inverse of `encode`: `count` sorted indices below `size`, int64.

    Memory is of the order of 8 len(payload) + count bytes. Raises FedmaskError where the payload is not one that
    `encode` writes for this count, size and b.
    """
    coded = count if 2 * count <= size else size - count
    if coded * (low_bits + 1) > 8 * len(payload) or low_bits > size.bit_length():
        raise FedmaskError(f"index payload of {len(payload)} bytes is too short for {coded:,} indices")
    bits = np.unpackbits(np.frombuffer(payload, dtype=np.uint8))
    low_parts, unary = bits[: coded * low_bits], bits[coded * low_bits :]
    ends = np.flatnonzero(unary)
    used_bits = coded * low_bits + (int(ends[-1]) + 1 if len(ends) else 0)
    if len(ends) != coded or (used_bits + 7) // 8 != len(payload):
        raise FedmaskError(f"index payload of {len(payload)} bytes does not hold exactly {coded:,} indices")
    quotients = np.diff(ends, prepend=-1) - 1
    low = _join_low_parts(low_parts.reshape(coded, low_bits))
    # Added up in floating point: the gaps of a hostile payload need not fit into 64 bits.
    entries = np.sum(quotients, dtype=np.float64) * 2.0**low_bits + np.sum(low, dtype=np.float64) + coded
    if entries > size:
        raise FedmaskError(f"index payload names entries beyond the tensor's {size:,}")
    indices = np.cumsum((quotients << low_bits) + low + 1) - 1
    return indices if coded == count else _complement(indices, size)


def _complement(indices: Indices, size: int) -> Indices:
    left_out = np.ones(size, dtype=bool)
    left_out[indices] = False
    return np.flatnonzero(left_out)


def _best_low_bits(gaps: Indices) -> int:
    guess = int(gaps.mean() + 1).bit_length() - 1
    return min(range(max(guess - 1, 0), guess + 2), key=lambda b: len(gaps) * b + int((gaps >> b).sum()))


def _low_parts(gaps: Indices, low_bits: int) -> Bits:
    """(k,) gaps -> (k * low_bits,) zeros and ones, lowest bit first."""
    bits = np.empty((len(gaps), low_bits), dtype=np.uint8)
    for position in range(low_bits):
        bits[:, position] = (gaps >> position) & 1
    return bits.reshape(-1)


def _join_low_parts(bits: Bits) -> Indices:
    """(k, low_bits) zeros and ones -> (k,) numbers."""
    numbers = np.zeros(len(bits), dtype=np.int64)
    for position in range(bits.shape[1]):
        numbers |= bits[:, position].astype(np.int64) << position
    return numbers


def _unary(quotients: Indices) -> Bits:
    """(k,) quotients q -> for each, q zeros and a one."""
    ends = np.cumsum(quotients + 1) - 1
    bits = np.zeros(int(ends[-1]) + 1, dtype=np.uint8)
    bits[ends] = 1
    return bits
