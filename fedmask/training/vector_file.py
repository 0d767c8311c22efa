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

from fedmask.errors import FedmaskError, cause_line
from fedmask.file_facts import ENTRY, FileFacts
from fedmask.files import write_atomically

MAX_LENGTH = 2**20
"""Tokens above which no text of any training was."""

_TENSOR = "values"


def write_vector(
    path: Path, kind: str, values: NDArray[np.float32], facts: Mapping[str, Any], private: bool = False
) -> None:
    """kind: what the file is (adapter, head), told again when it is read. values: float32 (k,). private: whether its
    owner alone may read it."""
    described = json.dumps({"format": _format(kind), **facts}, sort_keys=True)
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    write_atomically(path, save({_TENSOR: tensor}, metadata={ENTRY: described}), private)


def read_vector(path: Path, kind: str) -> tuple[FileFacts, NDArray[np.float32]]:
    """The facts and the values, which are finite. Raises FedmaskError where the file is missing, damaged or of another
    kind."""
    if not path.is_file():
        raise FedmaskError(f"{path}: there is no such {kind} file")
    what = f"{kind} file"
    try:
        with safe_open(path, framework="numpy") as file:
            described = (file.metadata() or {}).get(ENTRY, "{}")
            values = file.get_tensor(_TENSOR) if _TENSOR in file.keys() else None  # noqa: SIM118
    # AttributeError, TypeError: of safetensors, for a type of numbers that NumPy lacks.
    except (SafetensorError, AttributeError, TypeError, ValueError, OSError) as error:
        FileFacts(path, what, {}).refuse(cause_line(error))
    facts = FileFacts.read(path, what, described)
    if (found := facts.found.get("format")) != _format(kind):
        raise FedmaskError(f"{path}: not a fedmask {kind} (format {found}, expected {_format(kind)})")
    if values is None:
        facts.refuse("it holds no values")
    if values.ndim != 1 or values.dtype != np.float32:
        raise FedmaskError(f"{path}: the values of a {kind} are float32 (k,), found {values.dtype} {values.shape}")
    if not np.isfinite(values).all():
        facts.refuse("a value is not finite")
    return facts, values


def _format(kind: str) -> str:
    return f"fedmask-{kind}-1"
