"""int8 and int4: integers of -127..127 or -7..7 and one scale a block, rounded at random so that the mean is right.

    scale = max |v| of the block / top, rounded up to bf16        q = floor(v / scale + u), u uniform in [0, 1)
Over the seeds E[q scale] = v, and |q scale - v| < scale <= max |v| / top (1 + 2^-7) + 2^-133, whatever the seed.
A block of zeros has scale 0 and comes back as zeros. What scale q would carry beyond float32 saturates there.
"""

from functools import partial

import numpy as np
import numpy.typing as npt

from fedmask.wire.codecs.blocks import in_blocks, num_blocks, spread
from fedmask.wire.codecs.floats import from_bf16_bits
from fedmask.wire.codecs.planes import Plane, Symbols
from fedmask.wire.codecs.value_codec import ValueCodec, Values

BLOCK = 256
_LARGEST = np.finfo(np.float32).max


def _layout(size: int, block: int, bits: int) -> list[Plane]:
    return [Plane(num_blocks(size, block), 16), Plane(size, bits)]


def _to_planes(values: Values, block: int, seed: int, bits: int) -> list[Symbols]:
    top = _top(bits)
    blocks = in_blocks(values, block)
    scale_bits = _rounded_up(np.abs(blocks).max(axis=1, initial=0) / np.float32(top))
    scales = from_bf16_bits(scale_bits)
    # In float64: in float32 a small value's share of the scale would drown in u, and its mean be wrong.
    divisors = np.where(scales == 0, 1, scales).astype(np.float64)
    rounded = np.floor(values / spread(divisors, block, values.size) + _uniform(values.size, seed))
    return [scale_bits, (np.minimum(rounded, top) + top).astype(np.uint8)]


def _from_planes(planes: list[Symbols], size: int, block: int, bits: int) -> Values:
    scales = from_bf16_bits(planes[0])
    levels = planes[1].astype(np.float32) - np.float32(_top(bits))
    with np.errstate(over="ignore", invalid="ignore"):  # of bytes from anywhere
        values = levels * spread(scales, block, size)
    return np.clip(values, -_LARGEST, _LARGEST, out=values)


def _top(bits: int) -> int:
    return (1 << bits - 1) - 1


def _rounded_up(scales: Values) -> npt.NDArray[np.uint16]:
    """Positive float32 -> bf16 that is at least as large: the largest value must not round to top + 1."""
    return ((scales.view(np.uint32) + np.uint32(0xFFFF)) >> 16).astype(np.uint16)


def _uniform(size: int, seed: int) -> npt.NDArray[np.float64]:
    """(k,) in [0, 1), in steps of 2^-32.

    The raw stream of PCG64 is the same on every machine and NumPy version; NumPy's own samplers do not promise that.
    """
    raw = np.random.PCG64(seed).random_raw((size + 1) // 2)
    return raw.astype("<u8").view("<u4")[:size] * 2.0**-32


def _integers(name: str, number: int, bits: int) -> ValueCodec:
    return ValueCodec(
        name,
        number,
        BLOCK,
        is_lossless=False,
        layout=partial(_layout, bits=bits),
        to_planes=partial(_to_planes, bits=bits),
        from_planes=partial(_from_planes, bits=bits),
    )


INT8 = _integers("int8", 3, bits=8)
INT4 = _integers("int4", 4, bits=4)
