"""Named vectors and the facts about them in one sealed safetensors file: checkpoints, a client's state.

The facts are JSON in a single metadata entry `fedmask`. One of them is a SHA-256 over the whole file, taken while zeros
stand in its place: a file that was cut or altered anywhere is refused. No time, no path, no pickle; same content, same
bytes.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedmask.errors import FedmaskError
from fedmask.file_facts import ENTRY
from fedmask.files import write_atomically
from fedmask.plain_json import plain_json

_FORMAT, _SEAL = "format", "sha256"
_UNSEALED = "0" * 64
_LENGTH = struct.Struct("<Q")


def write_sealed(
    path: Path, kind: str, vectors: Mapping[str, NDArray[Any]], facts: Mapping[str, Any], private: bool = False
) -> None:
    """kind: what the file is, told again when it is read. vectors: (k,) by name. facts: JSON values. private: whether
    its owner alone may read it."""
    described = json.dumps({**facts, _FORMAT: _format(kind), _SEAL: _UNSEALED}, sort_keys=True)
    unsealed = save(
        {name: np.ascontiguousarray(values) for name, values in vectors.items()}, metadata={ENTRY: described}
    )
    seal = hashlib.sha256(unsealed).hexdigest()
    header = unsealed[: _end_of_header(unsealed)].replace(_sealed(_UNSEALED), _sealed(seal))
    write_atomically(path, header + unsealed[len(header) :], private)


def read_sealed(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The facts, and the vectors by name. Raises FedmaskError where the file is missing, damaged or of another kind.

    A seal tells damage, not whose the file is: anybody can make one.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FedmaskError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        end = _end_of_header(content)
        facts = plain_json(plain_json(content[_LENGTH.size : end])["__metadata__"][ENTRY])
        seal, found = facts.pop(_SEAL), facts.pop(_FORMAT)
        header = content[:end].replace(_sealed(seal), _sealed(_UNSEALED))
        is_whole = hashlib.sha256(header + content[end:]).hexdigest() == seal
        vectors = load(content) if is_whole else {}
    # AttributeError, TypeError: of a header that is another kind of JSON, and of types of numbers that NumPy lacks.
    except (SafetensorError, struct.error, KeyError, TypeError, AttributeError, ValueError) as error:
        raise FedmaskError(f"{path}: damaged ({type(error).__name__})") from error
    if not is_whole:
        raise FedmaskError(f"{path}: damaged (it has not the bytes that its SHA-256 is of)")
    if found != _format(kind):
        raise FedmaskError(f"{path}: not a fedmask {kind} (format {found}, expected {_format(kind)})")
    return facts, vectors


def _end_of_header(content: bytes) -> int:
    (length,) = _LENGTH.unpack_from(content)
    return int(_LENGTH.size + length)


def _sealed(seal: str) -> bytes:
    """How the seal stands in the header: JSON inside a text of JSON."""
    return f'\\"{_SEAL}\\": \\"{seal}\\"'.encode()


def _format(kind: str) -> str:
    return f"fedmask-{kind}-1"
