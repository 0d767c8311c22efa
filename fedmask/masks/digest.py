"""Base model -> SHA-256 of its values: how two processes know that they hold the same weights.

The digest covers every named parameter in model order: name, dtype, shape, and the values as little-endian bytes in
logical (row-major) order, whatever their layout in memory. It is streamed: no tensor is ever copied whole.
"""

import hashlib
import json
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from fedmask.errors import FedmaskError

CHUNK_ENTRIES = 1 << 18
"""Entries looked at together: small enough for a core's cache, large enough that the loop costs nothing."""

INTEGERS_OF_WIDTH = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes a value takes, the integers that show its bits."""


def base_digest(model: nn.Module, look: Callable[[str, Tensor], None] | None = None) -> str:
    """SHA-256 (64 hexadecimal characters) of the model's parameters; independent of memory layout and thread count.

    look: is shown each parameter's name and values, piece by piece on the way, so that nothing is read twice.
    Raises FedmaskError where a parameter has no values (meta device).
    """
    sha = hashlib.sha256()
    for name, parameter in model.named_parameters():
        dtype = str(parameter.dtype).removeprefix("torch.")
        sha.update(json.dumps([name, dtype, list(parameter.shape)]).encode() + b"\n")
        for chunk in logical_chunks(name, parameter):
            if look is not None:
                look(name, chunk)
            bits = chunk.view(INTEGERS_OF_WIDTH[chunk.element_size()]).numpy()
            sha.update(bits.astype(bits.dtype.newbyteorder("<"), copy=False).data)
    return sha.hexdigest()


def logical_chunks(name: str, tensor: Tensor) -> Iterator[Tensor]:
    """Contiguous 1-D pieces on the CPU, at most CHUNK_ENTRIES long, which together are the tensor in row-major order.

    `name` is for the error alone. Raises FedmaskError for a tensor on the meta device.
    """
    if tensor.is_meta:
        raise FedmaskError(f"parameter {name}: it has no values (meta device); load the model's weights first")
    yield from _pieces(tensor.detach())


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    if tensor.is_contiguous():
        yield from (piece.cpu() for piece in torch.split(tensor.reshape(-1), CHUNK_ENTRIES))
    elif tensor[0].numel() > CHUNK_ENTRIES:
        for row in tensor:
            yield from _pieces(row)
    else:
        for rows in torch.split(tensor, CHUNK_ENTRIES // tensor[0].numel()):
            yield rows.reshape(-1).contiguous().cpu()
