"""fp32: the values themselves, 4 bytes each, little-endian. Lossless."""

import numpy as np
from numpy.typing import NDArray

from fedmask.errors import FedmaskError
from fedmask.wire.codecs.codec import Codec


def _encode(values: NDArray[np.float32]) -> memoryview:
    return np.ascontiguousarray(values, "<f4").data.cast("B")


def _decode(data: bytes | memoryview, size: int) -> NDArray[np.float32]:
    if len(data) != 4 * size:
        raise FedmaskError(f"fp32: {size} values take {4 * size} bytes, found {len(data)}")
    return np.frombuffer(data, "<f4").astype(np.float32)


FP32 = Codec("fp32", 0, _encode, _decode)
