"""top-k: the largest entries alone travel, and which they are; the others come back as zeros.

Bytes: a header | one bit an entry, entropy-coded | the values of those entries, a whole body of their own.

k' = max(1, round(fraction k)) entries of the largest magnitude, ties to the lowest index. The bits take k times the
entropy of k'/k and about 16 bytes, which is log2 C(k, k') but for less than 1%; where every entry travels, 2 bytes.
|error| of an entry left out is |v|, at most the least that travels; it is for error feedback.
"""

import numpy as np
import numpy.typing as npt

from fedmask.wire.codecs import body, entropy
from fedmask.wire.codecs.body import CODED, Header
from fedmask.wire.codecs.planes import Plane, Reader
from fedmask.wire.codecs.registry import TOPK
from fedmask.wire.codecs.value_codec import ValueCodec, Values


def encode(fraction: float, codec: ValueCodec, form: int, values: Values, seed: int) -> bytes:
    """Finite values (k,) -> bytes, fraction in (0, 1]; codec, form and seed are of those that travel."""
    count = min(values.size, max(1, round(fraction * values.size)))
    is_chosen = _is_among_largest(np.abs(values), count)
    header = Header(TOPK, CODED, 0, values.size).to_bytes()
    chosen = body.encode(codec, form, values[is_chosen], seed)
    return header + entropy.encode(is_chosen.view(np.uint8), 1) + chosen


def decode(header: Header, reader: Reader) -> Values:
    """All that follows a header of top-k -> (k,), finite. Raises CodecError."""
    is_chosen = entropy.decode(reader, Plane(header.size, 1)).astype(bool)
    inner = body.read_header(reader, int(is_chosen.sum()))
    chosen = body.decode(inner, reader)
    values = np.zeros(header.size, np.float32)
    values[is_chosen] = chosen
    return values


def _is_among_largest(magnitudes: Values, count: int) -> npt.NDArray[np.bool_]:
    """bool (k,): exactly `count` of the largest, ties to the lowest index."""
    if count == magnitudes.size:
        return np.ones(magnitudes.size, bool)
    least = np.partition(magnitudes, magnitudes.size - count)[magnitudes.size - count]
    chosen: npt.NDArray[np.bool_] = magnitudes > least
    tied = np.flatnonzero(magnitudes == least)
    chosen[tied[: count - np.count_nonzero(chosen)]] = True
    return chosen
