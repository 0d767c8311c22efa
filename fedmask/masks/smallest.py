"""Tensors, k -> positions of their k smallest magnitudes, or of the k largest, in their concatenation.

The weights are read once, in pieces: a strided sample gives an upper bound of the k-th smallest |w|, one pass collects
what lies below, and whenever more than about 2 k are held the surplus is dropped, so memory stays O(k) however many
weights are tied. As many threads as torch has share the pass: each finds the k smallest of its run of tensors, and the
k smallest of those are the answer, whatever the number of threads.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedmask.errors import FedmaskError
from fedmask.masks.digest import logical_chunks
from fedmask.masks.indices import Indices

Tensors = Mapping[str, Tensor]
Keys = npt.NDArray[np.uint32]

_MAGNITUDE_BITS = np.uint32(0x7FFFFFFF)
_INFINITY_BITS = np.uint32(0x7F800000)
_SAMPLE_STRIDE = 997
_SAMPLE_ENTRIES = 4096
_SLACK_ENTRIES = 1 << 16
_ENTRIES_WORTH_A_THREAD = 1 << 19


def smallest(tensors: Tensors, count: int) -> Indices:
    """Sorted positions (count,) of the smallest |w|; ties go to the lowest position.

    Raises FedmaskError at a NaN, and for a dtype other than float32, float16 and bfloat16.
    """
    return _bottom(tensors, count, _keys)


def largest(tensors: Tensors, count: int) -> Indices:
    """Sorted positions (count,) of the largest |w|; ties and errors as of `smallest`."""
    return _bottom(tensors, count, _reversed_keys)


def refuse_nan(tensors: Tensors) -> None:
    """Raises FedmaskError at a NaN, and for a dtype that no rule takes."""
    for _ in _magnitude_chunks(tensors):
        pass


def _keys(magnitudes: Keys) -> Keys:
    """Bits of |w| as float32 order as |w| does, without rounding and with 0 = -0."""
    return magnitudes


def _reversed_keys(magnitudes: Keys) -> Keys:
    return np.subtract(_INFINITY_BITS, magnitudes, out=magnitudes)


def _bottom(tensors: Tensors, count: int, to_keys: Callable[[Keys], Keys]) -> Indices:
    """Positions, in the concatenation of the tensors, of the `count` smallest keys; ties to the lowest position."""
    sample = to_keys(_sample(tensors))
    total = sum(tensor.numel() for tensor in tensors.values())
    expected = count * len(sample) / total
    rank = math.ceil(expected + 6 * math.sqrt(expected)) + 16
    while True:
        is_bounded = rank < len(sample)
        # Exclusive bound; every key is at most that of infinity.
        bound = int(np.partition(sample, rank)[rank]) + 1 if is_bounded else int(_INFINITY_BITS) + 1
        positions = _collect(tensors, count, bound, to_keys)
        if len(positions) == count:
            return positions
        rank *= 2


def _sample(tensors: Tensors) -> Keys:
    """Magnitude bits of every 997th entry (of more where there are few): a guess at the bound, never the answer."""
    total = sum(tensor.numel() for tensor in tensors.values())
    stride = min(_SAMPLE_STRIDE, max(1, total // _SAMPLE_ENTRIES))
    taken = [t.detach().take(torch.arange(0, t.numel(), stride, device=t.device)) for t in tensors.values()]
    return np.concatenate([_bits(piece.cpu()) & _MAGNITUDE_BITS for piece in taken])


def _collect(tensors: Tensors, count: int, bound: int, to_keys: Callable[[Keys], Keys]) -> Indices:
    """Positions of the `count` smallest keys below `bound` (of all of them, where there are fewer), ascending."""
    runs = _runs(tensors, torch.get_num_threads())
    with ThreadPoolExecutor(len(runs)) as pool:  # NumPy lets other threads work while it does
        futures = [pool.submit(_collect_run, run, start, count, bound, to_keys) for start, run in runs]
        keys, positions = zip(*(future.result() for future in futures), strict=True)
    return _lowest(np.concatenate(keys), np.concatenate(positions), count)[1]


def _runs(tensors: Tensors, most: int) -> Sequence[tuple[int, Tensors]]:
    """The tensors in at most `most` runs of about the same size, each with the position where it starts."""
    total = sum(tensor.numel() for tensor in tensors.values())
    most = max(1, min(most, total // _ENTRIES_WORTH_A_THREAD))
    runs: list[tuple[int, dict[str, Tensor]]] = []
    start = 0
    for name, tensor in tensors.items():
        if start * most >= len(runs) * total:
            runs.append((start, {}))
        runs[-1][1][name] = tensor
        start += tensor.numel()
    return runs


def _collect_run(
    tensors: Tensors, start: int, count: int, bound: int, to_keys: Callable[[Keys], Keys]
) -> tuple[Keys, Indices]:
    """The `count` smallest keys below `bound` of tensors that start at position `start`, and their positions."""
    keys, positions = [np.empty(0, dtype=np.uint32)], [np.empty(0, dtype=np.int64)]
    held = 0
    for offset, magnitudes in _magnitude_chunks(tensors):
        chunk = to_keys(magnitudes)
        below = np.flatnonzero(chunk < np.uint32(bound))
        if not len(below):
            continue
        keys.append(chunk[below])
        positions.append(below + (start + offset))
        held += len(below)
        if held > 2 * count + _SLACK_ENTRIES:
            kept_keys, kept_positions = _lowest(np.concatenate(keys), np.concatenate(positions), count)
            keys, positions, held = [kept_keys], [kept_positions], count
            # Later positions lose every tie, so only smaller keys are of interest from here on.
            bound = int(kept_keys.max(initial=0))
    return _lowest(np.concatenate(keys), np.concatenate(positions), count)


def _lowest(keys: Keys, positions: Indices, count: int) -> tuple[Keys, Indices]:
    """The `count` smallest keys and their positions; among ties, and in the result, by ascending position."""
    if len(keys) <= count:
        return keys, positions
    if count == 0:
        return keys[:0], positions[:0]
    largest = np.partition(keys, count - 1)[count - 1]
    kept = keys < largest
    ties = np.flatnonzero(keys == largest)
    kept[ties[: count - np.count_nonzero(kept)]] = True
    return keys[kept], positions[kept]


def _magnitude_chunks(tensors: Tensors) -> Iterator[tuple[int, Keys]]:
    """(position, magnitude bits) of piece after piece of the tensors; a piece is overwritten by the next one.

    Raises FedmaskError at a NaN, and for a dtype whose values float32 does not hold exactly.
    """
    buffer: Keys = np.empty(0, dtype=np.uint32)
    start = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise FedmaskError(
                f"parameter {name}: masks are chosen in float32, float16 or bfloat16, not {tensor.dtype}"
            )
        for chunk in logical_chunks(name, tensor):
            bits = _bits(chunk)
            if len(buffer) < len(bits):
                buffer = np.empty(len(bits), dtype=np.uint32)
            magnitudes = np.bitwise_and(bits, _MAGNITUDE_BITS, out=buffer[: len(bits)])
            # Among magnitude bits, NaN is what lies above infinity.
            if magnitudes.max(initial=0) > _INFINITY_BITS:
                raise FedmaskError(f"parameter {name}: it holds NaN; load the base weights again")
            yield start, magnitudes
            start += len(bits)


def _bits(values: Tensor) -> Keys:
    """float16 and bfloat16 fit into float32 exactly, and one order then holds for models that mix them."""
    bits: Keys = values.to(torch.float32).view(torch.int32).numpy().view(np.uint32)
    return bits
