"""The L2 norm of an update, all its vectors together, and the update scaled down to one.

norm = sqrt(sum over vectors and entries of v^2);  clipped = v min(1, limit / norm)
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray


def l2_norm(vectors: Sequence[NDArray[np.float32]]) -> float:
    """Of float32 vectors (k_i,) as one; summed in float64, so finite for finite values."""
    norms = [float(torch.linalg.vector_norm(torch.from_numpy(vector), dtype=torch.float64)) for vector in vectors]
    return math.hypot(*norms)


def clipped(vectors: Sequence[NDArray[np.float32]], limit: float) -> list[NDArray[np.float32]]:
    """The vectors, all scaled by one factor to an L2 norm of `limit` where it is above that; else as they are."""
    norm = l2_norm(vectors)
    if norm <= limit:
        return list(vectors)
    return [(vector.astype(np.float64) * (limit / norm)).astype(np.float32) for vector in vectors]
