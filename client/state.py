"""What stays on a client from round to round: its task's head, in the baselines without exchange its own delta, and
what a codec left out of its last update.

A state belongs to (run, client, round): `client-00003/state/round-00002.safetensors` is what the client had after
training in round 2, sealed with the three. A round begins from the state that the server names, the last whose reply it
accepted; so a round that is done again, for its reply was lost or a process was killed, begins where it began the first
time. Beside the new state stay those of two rounds before it: the one it began from, and one for a server that has to
fall back on its last checkpoint but one.

`client-00003/head.safetensors` and `client-00003/adapter.safetensors` show the newest to people. Nothing reads them
back. Each file is whole or not there.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmask.errors import FedmaskError
from fedmask.files import remove_scraps
from fedmask.masks import Mask
from fedmask.models import BaseModel
from fedmask.sealed_file import read_sealed, write_sealed
from fedmask.training.delta import Delta
from fedmask.training.head import HeadLayout, HeadOrigin, save_head
from fedmask.training.vector_file import read_vector

KEPT_BEFORE = 2
"""States of rounds before the newest that are kept beside it."""

_NAME = re.compile(r"round-(\d{5,})\.safetensors")
_HEAD, _DELTA, _OF = "head", "delta", "residual/"


class LostStateError(FedmaskError):
    """The state that a round is to begin from is not there, damaged, or of another run or client."""


@dataclass(frozen=True, eq=False)
class Kept:
    """A client's state after one round."""

    head: Tensor | None = None
    """float32 (size,); None where the client has not trained one yet, or none of its own."""
    delta: Tensor | None = None
    """float32 (k,); None where the client has no delta of its own."""
    residuals: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """By vector what has not been sent of its updates, float32 (k,); zeros where there is none."""


class ClientState:
    """The files of one client in one run."""

    def __init__(self, root: Path, run_id: str, client_id: int) -> None:
        self._key = {"run_id": run_id, "client_id": client_id}
        self._client_id = client_id
        self.folder = root / f"client-{client_id:05d}"
        self._states = self.folder / "state"

    def load(self, state_round: int, layout: HeadLayout) -> Kept:
        """The state after a round; of round 0, before the client has trained, an empty one.

        Raises LostStateError where it cannot be had, FedmaskError where its head is of another task.
        """
        if state_round == 0:
            return Kept()
        path = self._path(state_round)
        try:
            facts, vectors = read_sealed(path, "client-state")
        except FedmaskError as error:
            raise LostStateError(
                f"client {self._client_id}: its state of round {state_round} is lost: {error}"
            ) from error
        expected = self._key | {"round": state_round}
        found = {key: facts.get(key) for key in expected}
        if found != expected:
            raise LostStateError(f"client {self._client_id}: {path} is of {_words(found)}, not of {_words(expected)}")
        if any(values.ndim != 1 or values.dtype != np.float32 for values in vectors.values()):
            raise LostStateError(f"client {self._client_id}: {path} holds other values than float32 vectors")
        if vectors.keys() & {_HEAD, f"{_OF}{_HEAD}"} and facts.get("head_layout") != layout.digest:
            raise FedmaskError(f"{path}: a head of another task than {layout.task} {layout.labels}")
        head, delta = (torch.from_numpy(vectors[name]) if name in vectors else None for name in (_HEAD, _DELTA))
        residuals = {name.removeprefix(_OF): values for name, values in vectors.items() if name.startswith(_OF)}
        return Kept(head, delta, residuals)

    def keep(self, server_round: int, state_round: int, layout: HeadLayout, kept: Kept) -> None:
        """Write the state after server_round, which began from that of state_round; forget what neither needs.

        States of rounds in between go: the server has accepted none of them.
        """
        vectors: dict[str, NDArray[np.float32]] = {
            name: values.numpy() for name, values in ((_HEAD, kept.head), (_DELTA, kept.delta)) if values is not None
        }
        vectors |= {f"{_OF}{name}": residual for name, residual in kept.residuals.items()}
        facts = self._key | {"round": server_round, "head_layout": layout.digest}
        write_sealed(self._path(server_round), "client-state", vectors, facts, private=True)
        before = [number for number in self._rounds() if number <= state_round]
        for number in set(self._rounds()) - {server_round, *before[-KEPT_BEFORE:]}:
            self._path(number).unlink()
        remove_scraps(self._states)

    def show_head(self, layout: HeadLayout, head: Tensor | None, origin: HeadOrigin | None = None) -> None:
        """head.safetensors is this head, float32 (size,), of that origin; for None it is gone."""
        path = self.folder / "head.safetensors"
        if head is None:
            path.unlink(missing_ok=True)
        elif not _holds(path, "head", head):
            save_head(path, layout, head.numpy(), origin)

    def show_delta(
        self,
        mask: Mask,
        base: BaseModel,
        delta: Tensor | None,
        layout: HeadLayout | None = None,
        origin: HeadOrigin | None = None,
    ) -> None:
        """adapter.safetensors is this delta of the client's own, float32 (k,); for None it is gone.

        layout, origin: of the head that was trained beside it.
        """
        path = self.folder / "adapter.safetensors"
        if delta is None:
            path.unlink(missing_ok=True)
        elif not _holds(path, "adapter", delta):
            assert mask.recipe is not None, "the mask of a baseline is made from a recipe"
            adapter = Delta(np.ascontiguousarray(delta.numpy()), mask.recipe, base.name, base.weights, mask, base.dtype)
            if layout is not None and origin is not None:
                heads = {layout.digest: layout.task}
                adapter = replace(adapter, run=origin.run, max_length=origin.max_length, heads=heads)
            adapter.save(path)

    def _path(self, server_round: int) -> Path:
        return self._states / f"round-{server_round:05d}.safetensors"

    def _rounds(self) -> list[int]:
        """Rounds whose states are there, ascending."""
        names = (_NAME.fullmatch(path.name) for path in self._states.glob("*"))
        return sorted(int(match[1]) for match in names if match)


def _holds(path: Path, kind: str, values: Tensor) -> bool:
    """Whether a file of this run holds these very values: writing it again would cost more than reading it."""
    try:
        _, found = read_vector(path, kind)
    except FedmaskError:
        return False
    return np.array_equal(found, values.numpy())


def _words(key: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in key.items())
