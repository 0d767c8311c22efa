"""sign: one bit a value and the mean magnitude of its block: v comes back as mean |v| or -mean |v|.

|error| <= max(|v|, mean |v| of the block) (1 + 2^-8). It shrinks: what is lost is shorter than v, so that error
feedback comes to its end. Signs are as good as random, so entropy coding wins nothing here and costs 3 bytes.
"""

import numpy as np

from fedmask.wire.codecs.blocks import in_blocks, num_blocks, spread
from fedmask.wire.codecs.floats import bf16_bits, from_bf16_bits
from fedmask.wire.codecs.planes import Plane, Symbols
from fedmask.wire.codecs.value_codec import ValueCodec, Values

BLOCK = 256


def _layout(size: int, block: int) -> list[Plane]:
    return [Plane(num_blocks(size, block), 16), Plane(size, 1)]


def _to_planes(values: Values, block: int, seed: int) -> list[Symbols]:
    blocks = in_blocks(values, block)
    lengths = np.minimum(block, values.size - block * np.arange(len(blocks)))
    means = np.abs(blocks).sum(axis=1, dtype=np.float64) / lengths
    return [bf16_bits(means.astype(np.float32)), np.signbit(values).view(np.uint8)]


def _from_planes(planes: list[Symbols], size: int, block: int) -> Values:
    scales, is_negative = from_bf16_bits(planes[0]), planes[1].astype(bool)
    values = spread(scales, block, size)
    return np.negative(values, out=values, where=is_negative)


SIGN = ValueCodec(
    "sign",
    number=5,
    block=BLOCK,
    is_lossless=False,
    layout=_layout,
    to_planes=_to_planes,
    from_planes=_from_planes,
)
