"""One named vector and the facts about it in one safetensors file: adapters, heads. Same content, same bytes.

The facts are JSON in a single metadata entry `fedmask`, because safetensors writes several entries in an order that
changes from call to call. No time, no path, no pickle.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedmask.errors import FedmaskError
from fedmask.files import write_atomically

_ENTRY, _TENSOR = "fedmask", "values"


def write_vector(path: Path, kind: str, values: NDArray[np.float32], facts: Mapping[str, Any]) -> None:
    """kind: what the file is (adapter, head), told again when it is read. values: float32 (k,)."""
    described = json.dumps({"format": _format(kind), **facts}, sort_keys=True)
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    write_atomically(path, save({_TENSOR: tensor}, metadata={_ENTRY: described}))


def read_vector(path: Path, kind: str) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """The facts and the values. Raises FedmaskError where the file is missing, damaged or of another kind."""
    if not path.is_file():
        raise FedmaskError(f"{path}: there is no such {kind} file")
    try:
        with safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {}).get(_ENTRY, "{}"))
            found = facts.pop("format", None)
            values = file.get_tensor(_TENSOR) if found == _format(kind) else None
    except (SafetensorError, AttributeError, TypeError, ValueError, OSError) as error:
        raise FedmaskError(f"{path}: damaged {kind} file ({error}); fetch or make it again") from error
    if values is None:
        raise FedmaskError(f"{path}: not a fedmask {kind} (format {found}, expected {_format(kind)})")
    if values.ndim != 1 or values.dtype != np.float32:
        raise FedmaskError(f"{path}: the values of a {kind} are float32 (k,), found {values.dtype} {values.shape}")
    return facts, values


def _format(kind: str) -> str:
    return f"fedmask-{kind}-1"
