"""Error feedback: what a codec could not send this time is added to what is sent next time.

    sent = codec(values + residual)        residual' = values + residual - sent
so that over rounds everything arrives but the last residual. Pure: whose state the residual is, is decided elsewhere.
"""

import numpy as np
from numpy.typing import NDArray

from fedmask.wire.codecs import Codec, decode

Values = NDArray[np.float32]


def encode_with_feedback(
    codec: Codec, values: Values, residual: Values, seed: int, part: NDArray[np.int64] | None = None
) -> tuple[bytes, Values]:
    """Values and residual (k,) -> the bytes to send, and the new residual (k,).

    part: indices (k',) that travel this time (`fedmask.wire.rotation`): the bytes are of those k' values, and all else
    stays in the residual. None: all k. seed: of the codec's rounding.
    Raises FedmaskError where the sum is not finite.
    """
    travels = slice(None) if part is None else part
    with np.errstate(over="ignore"):  # the codec says it
        new_residual = values + residual
    corrected = new_residual[travels]
    data = codec.encode(corrected, seed)
    new_residual[travels] = corrected - decode(data, corrected.size)
    return data, new_residual
