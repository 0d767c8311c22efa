"""The global vectors that a deployed client holds, from process to process: Flower starts one for every message.

In: what a message brought. Out, in the next process: the same vectors with their versions. One sealed file a run in the
client's own folder, `runs/RUN_ID/held.safetensors`, whole or not there. A file that is damaged or of another run counts
as nothing held, and one that is behind as what it is: the checksum in every message tells, and the client asks for the
whole.

A simulation has no such file: its processes outlive their messages and hold the vectors once for all their clients.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmask.errors import FedmaskError
from fedmask.file_facts import FileFacts
from fedmask.sealed_file import read_sealed, write_sealed
from fedmask.wire.downlink import Received

_KIND = "held-vectors"


def keep_held(folder: Path, run_id: str, received: Received) -> None:
    """folder: of this run on this client."""
    held = received.held
    vectors = {name: version.values for (name, _), version in held.items()}
    of = {name: [layout, version.number] for (name, layout), version in held.items()}
    write_sealed(_path(folder), _KIND, vectors, {"run_id": run_id, "of": of}, private=True)


def take_up_held(folder: Path, run_id: str, received: Received) -> None:
    """Give `received`, of a new process, what the last one kept; nothing where that cannot be had."""
    try:
        held = _read(_path(folder), run_id)
    except FedmaskError:
        return
    for name, layout, number, values in held:
        received.hold((name, layout), number, values)


def _read(path: Path, run_id: str) -> list[tuple[str, str, int, NDArray[np.float32]]]:
    """Name, layout digest, version and values (k,) of each vector of this run. Raises FedmaskError."""
    found, vectors = read_sealed(path, _KIND)
    facts = FileFacts(path, "file of held vectors", found)
    if facts.text("run_id") != run_id:
        return []
    of, held = facts.mapping("of"), []
    for name in of.found:
        match of.list(name), vectors.get(name):
            case [str(layout), int(number)], np.ndarray(ndim=1, dtype=np.float32) as values if 0 < number < 2**31:
                held.append((name, layout, number, values))
            case _:
                facts.refuse(f"{name} is no vector with its version")
    return held


def _path(folder: Path) -> Path:
    return folder / "held.safetensors"
