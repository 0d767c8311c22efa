"""k, n, seed -> k of n positions, drawn alike on every machine."""

import numpy as np

from fedmask.masks.indices import Indices


def drawn_positions(count: int, total: int, seed: int) -> Indices:
    """`count` distinct sorted positions below `total`, every such set equally likely, in O(count) memory.

    The raw stream of PCG64 is the same on every machine and NumPy version; NumPy's own samplers do not promise that.
    """
    if 2 * count > total:
        selected = np.ones(total, dtype=bool)
        selected[drawn_positions(total - count, total, seed)] = False
        return np.flatnonzero(selected)
    stream = np.random.PCG64(seed)
    # Numbers from here on would make some remainders likelier than others.
    fair_end = np.uint64(2**64 // total * total - 1)
    drawn = np.empty(0, dtype=np.int64)
    while len(drawn) < count:
        raw = stream.random_raw(count - len(drawn) + 16)
        drawn = np.concatenate([drawn, (raw[raw <= fair_end] % np.uint64(total)).astype(np.int64)])
        _, first_places = np.unique(drawn, return_index=True)
        drawn = drawn[np.sort(first_places)][:count]
    return np.sort(drawn)
