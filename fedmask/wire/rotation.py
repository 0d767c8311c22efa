"""Rotating sub-masks: which of the k entries travel in a round, the same for every client, without index bytes.

Rounds form cycles of `parts`; in each, every index travels exactly once. Server and clients compute it from the round
and the run's seed, so that what the clients send can be added up entry by entry, as secure summation needs.
"""

import numpy as np
from numpy.typing import NDArray

from fedmask.errors import FedmaskError
from fedmask.randomness import seed_for


def rotation(size: int, parts: int, server_round: int, seed: int) -> NDArray[np.int64]:
    """Indices (about size / parts,) below `size`, ascending, that travel in this round (from 1).

    The parts of a cycle differ by at most one in length. Their order is that of numbers from the raw stream of PCG64,
    which is the same on every machine and NumPy version, as is a stable sort. Raises FedmaskError for parts not in
    1..size and rounds below 1.
    """
    if not 1 <= parts <= size:
        raise FedmaskError(f"codec.rotate={parts}: must be from 1 to {size:,}, the length of the vector")
    if server_round < 1:
        raise FedmaskError(f"round {server_round}: rounds are counted from 1")
    cycle, part = divmod(server_round - 1, parts)
    drawn = np.random.PCG64(seed_for(seed, "rotation", cycle)).random_raw(size)
    return np.sort(np.argsort(drawn, kind="stable")[part::parts])
