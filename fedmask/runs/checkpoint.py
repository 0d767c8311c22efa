"""What a server needs to go on after its last finished round, in `checkpoints/round-00003.safetensors`.

In: the global vectors, what is known of each client, and how long the run folder's growing files were. Out: the same,
from the newest file that is whole. The last two are kept; a file is written under another name, flushed and renamed. A
round's randomness is seeded by (run, purpose, round, client), so there is no random stream to keep; and the ledger's
totals follow from communication.jsonl, of which a checkpoint says up to where it goes.
"""

import dataclasses
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmask.errors import FedmaskError
from fedmask.file_facts import FileFacts
from fedmask.sealed_file import read_sealed, write_sealed
from fedmask.shown import shown
from fedmask.wire.downlink import Broadcast, Key
from fedmask.wire.vectors import MAX_STEPS

KEPT = 2
"""Checkpoints in a folder: the last one, and the one to fall back on."""

_NAME = re.compile(r"round-(\d{5,})\.safetensors")
_DELTA, _HEAD = "delta", "head/"
_HELD, _CHANGE = "held/", "change/"
"""Before a vector's name: what clients hold of it; with a number, how they came to hold it."""
_VECTOR_NAME = re.compile(r"(held/)?(delta|head/[0-9a-f]{64})")
_CHANGE_NAME = re.compile(r"change/(0|[1-9][0-9]{0,8})/(delta|head/[0-9a-f]{64})")

MAX_ROUND = 10**9


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """What the server knows of one client between two rounds."""

    task: str
    metric: str
    head_layout: str
    head_size: int
    data_digest: str
    state_round: int
    """The last round in which its reply was accepted: which of its states it goes on from; 0: of none."""
    is_drawn: bool
    """Whether a cohort had it."""
    held_version: int | None
    """The newest version of the global vectors that it holds; 0: the zeros that all begin with; None: perhaps none."""


_CLIENT_KINDS = (str, str, str, int, str, int, bool)
"""Of a ClientRecord's values but the last, which may be None."""


@dataclass(frozen=True, eq=False)
class ServerState:
    """The server between two rounds."""

    run_id: str
    round: int
    """The last finished one; as many rounds' updates are in the vectors."""
    mask_digest: str
    delta: NDArray[np.float32]
    """float32 (k,); k = 0 in a run without a mask."""
    heads: Mapping[str, NDArray[np.float32]]
    """Shared heads by layout digest."""
    broadcast: Broadcast
    """What the clients hold of these vectors, and the changes that lead to it."""
    clients: Mapping[int, ClientRecord]
    """By client_id."""
    inputs_digest: str = ""
    """`BaseModel.inputs_digest`; empty where an older version wrote the checkpoint."""
    run_digest: str = ""
    """`Settings.run_digest`, of base model and configuration; empty as above."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    state: ServerState
    seconds: float
    """How long the run has taken until then."""
    file_bytes: Mapping[str, int]
    """By name how long the run folder's growing files were."""
    config_digest: str = ""
    """`config_digest` of the run's configuration; empty where an older version wrote the checkpoint."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint; only then remove those beyond the last two."""
    state = checkpoint.state
    vectors = {_DELTA: state.delta} | {f"{_HEAD}{layout}": values for layout, values in state.heads.items()}
    vectors |= _vectors_of(state.broadcast)
    facts = {
        "run_id": state.run_id,
        "round": state.round,
        "mask_digest": state.mask_digest,
        "inputs_digest": state.inputs_digest,
        "run_digest": state.run_digest,
        "num_changes": len(state.broadcast.changes),
        "clients": [[client_id, *_row(record)] for client_id, record in state.clients.items()],
        "seconds": checkpoint.seconds,
        "file_bytes": dict(checkpoint.file_bytes),
        "config_digest": checkpoint.config_digest,
    }
    write_sealed(folder / f"round-{state.round:05d}.safetensors", "checkpoint", vectors, facts)
    for path in _newest_first(folder)[KEPT:]:
        path.unlink()


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest one that is whole, None where there is none at all; says of each that is damaged that it was left out.

    Raises FedmaskError where there are some, but none is whole.
    """
    damaged = []
    for path in _newest_first(folder):
        try:
            checkpoint = _load(path)
        except FedmaskError as error:
            damaged.append(str(error))
            continue
        for line in damaged:
            logging.getLogger("fedmask").warning("%s; taking the checkpoint before it", line)
        return checkpoint
    if damaged:
        raise FedmaskError(f"no checkpoint can be used: {'; '.join(damaged)}; start again with overwrite=true")
    return None


def _newest_first(folder: Path) -> list[Path]:
    names = [match for path in folder.glob("*") if (match := _NAME.fullmatch(path.name))]
    return [folder / match[0] for match in sorted(names, key=lambda match: int(match[1]), reverse=True)]


def _load(path: Path) -> Checkpoint:
    found, vectors = read_sealed(path, "checkpoint")
    facts = FileFacts(path, "checkpoint", found, remedy="")
    _check_vectors(facts, vectors)
    state = ServerState(
        run_id=facts.text("run_id"),
        round=facts.whole("round", 1, MAX_ROUND),
        mask_digest=facts.text("mask_digest"),
        delta=vectors[_DELTA],
        heads={name.removeprefix(_HEAD): values for name, values in vectors.items() if name.startswith(_HEAD)},
        broadcast=_broadcast(facts, vectors),
        clients=dict(_client(facts, row) for row in facts.list("clients")),
        inputs_digest=facts.text("inputs_digest", otherwise=""),
        run_digest=facts.text("run_digest", otherwise=""),
    )
    lengths = facts.mapping("file_bytes")
    file_bytes = {name: lengths.whole(name, 0, 2**60) for name in lengths.found}
    return Checkpoint(state, facts.seconds("seconds"), file_bytes, facts.text("config_digest", otherwise=""))


def _check_vectors(facts: FileFacts, vectors: Mapping[str, NDArray[Any]]) -> None:
    """Raises FedmaskError for what a server's vectors and their coded changes cannot be."""
    if _DELTA not in vectors:
        facts.refuse(f"it has no {_DELTA}")
    for name, values in vectors.items():
        is_change = _CHANGE_NAME.fullmatch(name) is not None
        if not is_change and not _VECTOR_NAME.fullmatch(name):
            facts.refuse(f"it has a tensor {shown(name)}")
        if values.ndim != 1 or values.dtype != (np.uint8 if is_change else np.float32):
            facts.refuse(f"{shown(name)} is {values.dtype} of shape {values.shape}")
        if not is_change and not np.isfinite(values).all():
            facts.refuse(f"{shown(name)} has a value that is not finite")


def _client(facts: FileFacts, row: Any) -> tuple[int, ClientRecord]:
    """A row of clients, by client_id."""
    kinds = [type(value) for value in row] if isinstance(row, list) else []
    if kinds not in ([int, *_CLIENT_KINDS, int], [int, *_CLIENT_KINDS, type(None)]):
        facts.refuse("a client's row is not one of this version of fedmask")
    client_id, *values = row
    return client_id, ClientRecord(*values)


def _vectors_of(broadcast: Broadcast) -> dict[str, Any]:
    """By their names in the file; none where the codec is lossless, for then clients hold the server's own vectors."""
    if not broadcast.changes:
        return {}
    held = {f"{_HELD}{_name(key)}": values for key, values in broadcast.held.items()}
    return held | {
        f"{_CHANGE}{number}/{_name(key)}": np.frombuffer(body, np.uint8)
        for number, bodies in enumerate(broadcast.changes)
        for key, body in bodies.items()
    }


def _broadcast(facts: FileFacts, vectors: Mapping[str, NDArray[Any]]) -> Broadcast:
    num_changes = facts.whole("num_changes", 0, MAX_STEPS)
    mask_digest = facts.text("mask_digest")
    prefix = _HELD if num_changes else ""
    found = {name.removeprefix(prefix): values for name, values in vectors.items() if name.startswith(prefix)}
    held = {_key(name, mask_digest): values for name, values in found.items()}
    changes = [dict[Key, bytes]() for _ in range(num_changes)]
    for name, body in vectors.items():
        if name.startswith(_CHANGE):
            number, _, vector = name.removeprefix(_CHANGE).partition("/")
            if int(number) >= num_changes:
                facts.refuse(f"it has {shown(name)}, and num_changes is {num_changes}")
            changes[int(number)][_key(vector, mask_digest)] = body.tobytes()
    return Broadcast(facts.whole("round", 1, MAX_ROUND), held, tuple(changes))


def _name(key: Key) -> str:
    return _DELTA if key[0] == "delta" else f"{_HEAD}{key[1]}"


def _key(name: str, mask_digest: str) -> Key:
    return ("delta", mask_digest) if name == _DELTA else ("head", name.removeprefix(_HEAD))


def _row(record: ClientRecord) -> list[Any]:
    return [getattr(record, field.name) for field in dataclasses.fields(record)]
