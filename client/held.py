"""The global vectors that a deployed client holds, from process to process: Flower starts one for every message.

In: what a message brought. Out, in the next process: the same vectors with their versions. One sealed file a run in the
client's own folder, `runs/RUN_ID/held.safetensors`, whole or not there. A file that is damaged or of another run counts
as nothing held, and one that is behind as what it is: the checksum in every message tells, and the client asks for the
whole.

A simulation has no such file: its processes outlive their messages and hold the vectors once for all their clients.
"""

from pathlib import Path

from fedmask.errors import FedmaskError
from fedmask.sealed_file import read_sealed, write_sealed
from fedmask.wire.downlink import Received

_KIND = "held-vectors"


def keep_held(folder: Path, run_id: str, received: Received) -> None:
    """folder: of this run on this client."""
    held = received.held
    vectors = {name: version.values for (name, _), version in held.items()}
    of = {name: [layout, version.number] for (name, layout), version in held.items()}
    write_sealed(_path(folder), _KIND, vectors, {"run_id": run_id, "of": of})


def take_up_held(folder: Path, run_id: str, received: Received) -> None:
    """Give `received`, of a new process, what the last one kept; nothing where that cannot be had."""
    try:
        facts, vectors = read_sealed(_path(folder), _KIND)
    except FedmaskError:
        return
    if facts.get("run_id") != run_id:
        return
    for name, (layout, number) in facts["of"].items():
        received.hold((name, layout), number, vectors[name])


def _path(folder: Path) -> Path:
    return folder / "held.safetensors"
