"""What a deployed client has done for a server, counted by the client itself and not by what the server calls a round.

In: a client's own file, a run. Out: nothing, or one line where the client does no more. In each run's folder,
`runs/RUN_ID/trained` has a byte for every message that was to train: appended, so that it counts across processes, and
where one is killed.
"""

import os
from pathlib import Path

from fedmask.errors import FedmaskError
from fedmask.files import make_folder
from fedmask.runs.client_file import ClientFile

_TRAINED = "trained"


def count_training(own: ClientFile, run_id: str) -> None:
    """Raises FedmaskError where this client has trained in this run as often as it does."""
    folder = own.states / run_id
    make_folder(folder, private=True)
    how = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(folder / _TRAINED, how, 0o600)
    try:
        if os.fstat(descriptor).st_size >= own.limits.rounds:
            raise FedmaskError(
                f"client {own.client_id}: has trained {own.limits.rounds} times in run {run_id}, repeated rounds "
                "counted, which is this client's limits.rounds"
            )
        os.write(descriptor, b".")
    finally:
        os.close(descriptor)


def check_room(own: ClientFile, run_id: str) -> None:
    """Raises FedmaskError where the folders of runs are as many, or as large, as this client lets them be."""
    if not own.states.is_dir():
        return
    runs = [folder.name for folder in own.states.iterdir() if folder.is_dir()]
    if run_id not in runs and len(runs) >= own.limits.runs:
        raise FedmaskError(
            f"client {own.client_id}: has the folders of {len(runs)} runs in {own.states}, this client's limits.runs "
            f"is {own.limits.runs}; remove those of runs that are over"
        )
    size = sum(_size(Path(folder) / name) for folder, _, names in os.walk(own.states) for name in names)
    if size > own.disk_bytes:
        raise FedmaskError(
            f"client {own.client_id}: has {size:,} bytes of runs in {own.states}, this client's limits.disk_bytes is "
            f"{own.disk_bytes:,}; remove the folders of runs that are over"
        )


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:  # removed meanwhile, as an older state is
        return 0
