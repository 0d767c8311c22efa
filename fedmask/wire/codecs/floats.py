"""fp32, fp16 and bf16: one plane of the numbers' own bits.

fp32    4 bytes a value, lossless
fp16    2 bytes, rounded to the nearest: |error| <= 2^-11 |v| + 2^-25; beyond 65504 it saturates there
bf16    2 bytes, rounded to the nearest: |error| <= 2^-8 |v| + 2^-134, at any size
"""

import numpy as np
import numpy.typing as npt

from fedmask.wire.codecs.planes import Plane, Symbols
from fedmask.wire.codecs.value_codec import ValueCodec, Values

LARGEST_FP16 = np.float32(65504)
LARGEST_BF16 = np.uint32(0x7F7F0000).view(np.float32)


def bf16_bits(values: Values) -> npt.NDArray[np.uint16]:
    """The upper halves of finite float32 values, rounded to the nearest even; saturating, never infinite."""
    bits = np.clip(values, -LARGEST_BF16, LARGEST_BF16).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bf16_bits(bits: Symbols) -> Values:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _fp32_planes(values: Values, block: int, seed: int) -> list[Symbols]:
    return [values.view(np.uint32)]


def _fp32_values(planes: list[Symbols], size: int, block: int) -> Values:
    return planes[0].astype(np.uint32).view(np.float32)


def _fp16_planes(values: Values, block: int, seed: int) -> list[Symbols]:
    return [np.clip(values, -LARGEST_FP16, LARGEST_FP16).astype(np.float16).view(np.uint16)]


def _fp16_values(planes: list[Symbols], size: int, block: int) -> Values:
    return planes[0].astype(np.uint16).view(np.float16).astype(np.float32)


def _bf16_planes(values: Values, block: int, seed: int) -> list[Symbols]:
    return [bf16_bits(values)]


def _bf16_values(planes: list[Symbols], size: int, block: int) -> Values:
    return from_bf16_bits(planes[0])


FP32 = ValueCodec(
    "fp32",
    number=0,
    block=1,
    is_lossless=True,
    layout=lambda size, block: [Plane(size, 32)],
    to_planes=_fp32_planes,
    from_planes=_fp32_values,
)
FP16 = ValueCodec(
    "fp16",
    number=1,
    block=1,
    is_lossless=False,
    layout=lambda size, block: [Plane(size, 16)],
    to_planes=_fp16_planes,
    from_planes=_fp16_values,
)
BF16 = ValueCodec(
    "bf16",
    number=2,
    block=1,
    is_lossless=False,
    layout=lambda size, block: [Plane(size, 16)],
    to_planes=_bf16_planes,
    from_planes=_bf16_values,
)
