"""The folder a run leaves behind, one that explains itself.

config.yaml         the configuration, composes back
rounds.jsonl        a line a round, written when the round ends
clients.jsonl       a line a client and scoring: on the validation split by round, on the test split at the end
communication.jsonl a line a message and kind: the ledger
clients/            what stays on the clients of a simulation, heads among it
checkpoints/        the server after each of the last two rounds; `resume` goes on from there
resumes.jsonl       a line a resume: what was sent once more for it, which communication.jsonl does not count
adapter.safetensors the global delta; absent for the baselines, which have none
summary.json        model, mask, scores, communication; its being there marks a finished run
report.html         all of that as one page to look at, made from the other files
tensorboard/        scalars, with log.tensorboard=true
compare/NAME/       the same for each baseline beside it
.lock               while a process runs in the folder, and after a kill; holds nothing by being there
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from fedmask.errors import FedmaskError
from fedmask.files import LOCK, locked, make_folder, remove_scraps, through_no_link, write_atomically
from fedmask.runs.checkpoint import Checkpoint, load_checkpoint
from fedmask.runs.config import RunConfig, config_digest, read_config, to_dict
from fedmask.wire.ledger import LedgerLine

CONFIG, ROUNDS, COMMUNICATION = "config.yaml", "rounds.jsonl", "communication.jsonl"
CLIENT_SCORES = "clients.jsonl"
ADAPTER, SUMMARY, CLIENTS, COMPARE = "adapter.safetensors", "summary.json", "clients", "compare"
REPORT, TENSORBOARD, CHECKPOINTS, RESUMES = "report.html", "tensorboard", "checkpoints", "resumes.jsonl"
_ALL = (
    SUMMARY,
    REPORT,
    CONFIG,
    ROUNDS,
    COMMUNICATION,
    CLIENT_SCORES,
    ADAPTER,
    CLIENTS,
    TENSORBOARD,
    COMPARE,
    CHECKPOINTS,
    RESUMES,
)
_GROWING = (ROUNDS, COMMUNICATION, CLIENT_SCORES)
_ADDED_LATER = {CLIENT_SCORES: 0}
"""Growing files of which the checkpoint of an older run does not know, and how long each was then."""


def default_output(config: RunConfig, now: datetime) -> str:
    """A new folder under runs/, named by what is run and when."""
    from fedmask.models import shown_name  # torch and transformers: late

    model = shown_name(config.model.name, config.model.path).replace("/", "-")
    return f"runs/{model}-{config.data.source}-{config.mask.rule}-{now:%Y%m%d-%H%M%S}"


class RunFolder:
    """One run's files. An earlier run in the same place is put aside, and given up only when a round has ended."""

    def __init__(self, path: Path, overwrite: bool, resume: bool = False) -> None:
        """Touches nothing yet. resume: whether the run in the folder is to go on.

        Raises FedmaskError where the path is a file, where it already holds a run and neither overwrite nor resume is
        true, where it holds files of the names that a run uses, but no run, and where resume finds none.
        """
        self.path = path
        self._replaced = path / ".replaced"
        if path.exists() and not path.is_dir():
            raise FedmaskError(f"output={path}: this is a file; name a folder")
        found = [name for name in (*_ALL, self._replaced.name) if (path / name).exists()]
        if resume:
            if not holds_run(path):
                raise FedmaskError(f"resume={path}: holds no run, for it has no {CONFIG}; start one with output={path}")
            return
        if found and not self._holds_a_run():
            raise FedmaskError(f"output={path}: holds {found[0]}, but no run of fedmask; name another folder")
        if found and not overwrite:
            raise FedmaskError(
                f"output={path}: this folder already holds a run; name another, or say overwrite=true to replace it"
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep every other process out: two that write into one folder would leave a run that is none.

        Raises FedmaskError where one is in it, or runs a baseline of `compare` in it.
        """
        compared = [path.parent for path in sorted((self.path / COMPARE).glob(f"*/{LOCK}"))]
        with ExitStack() as stack:
            for folder in (self.path, *compared):
                refusal = f"{folder}: another process is running in this folder; wait for its end, or name another"
                stack.enter_context(locked(folder, refusal))
            yield

    def _holds_a_run(self) -> bool:
        """Here, or put aside by a beginning that was killed."""
        return holds_run(self.path) or holds_run(self._replaced)

    def begin(self, config: RunConfig) -> None:
        """Put an earlier run's files (and no others) aside and write the configuration."""
        if self._replaced.exists():  # an earlier beginning was killed
            self.abandon()
            if self._is_replaced():  # when a round of it had ended
                _remove(self._replaced)
        self._move(self.path, self._replaced)
        # First of all files: a folder without it holds no run that could be resumed or replaced.
        self._write_config(config)
        make_folder(self.clients)
        for name in _GROWING:
            (self.path / name).touch()

    def _write_config(self, config: RunConfig) -> None:
        raw = to_dict(config) | {"resume": None}
        write_atomically(self.path / CONFIG, yaml.safe_dump(raw, sort_keys=False).encode())

    def _is_replaced(self) -> bool:
        """Whether the earlier run is put aside whole: this one's configuration comes after all of that one's files."""
        return (self._replaced / CONFIG).exists() and (self.path / CONFIG).exists()

    def take_up(self, config: RunConfig) -> Checkpoint | None:
        """Go back to the last finished round: returns its checkpoint, and cuts off what was written after it.

        config: the run's, of which the number of rounds may have grown. None where there is no checkpoint: nothing is
        touched, and the run has to begin. Raises FedmaskError where a file cannot be what the checkpoint says of it,
        and where more rounds have ended than the run is to have.
        """
        checkpoint = load_checkpoint(self.checkpoints)
        if checkpoint is None:
            # A kill may come between a run's first line and its first checkpoint, but no later.
            if self._num_rounds() > 1 or (self.path / SUMMARY).exists():
                raise FedmaskError(
                    f"{self.checkpoints}: there is no checkpoint of a run that has finished rounds; put the folder "
                    "back, or start again with overwrite=true"
                )
            return None
        self._check_config(checkpoint)
        if checkpoint.state.round > config.rounds:
            raise FedmaskError(
                f"rounds={config.rounds}: round {checkpoint.state.round} of the run in {self.path} has ended; "
                f"give rounds={checkpoint.state.round} or more"
            )
        # In this order: a kill in between leaves a run that is not finished, and goes on when it is resumed.
        self._write_config(config)
        _remove(self.path / SUMMARY)
        lengths = _ADDED_LATER | dict(checkpoint.file_bytes)
        for name in _GROWING:
            _cut(self.path / name, lengths[name])
        _remove(self._replaced)
        remove_scraps(self.path)
        remove_scraps(self.checkpoints)
        remove_scraps(self.clients, in_subfolders=True)
        return checkpoint

    def _check_config(self, checkpoint: Checkpoint) -> None:
        """Raises FedmaskError where config.yaml is not what it was; an older version's checkpoint does not tell."""
        path = self.path / CONFIG
        if checkpoint.config_digest and config_digest(read_config(path)) != checkpoint.config_digest:
            raise FedmaskError(
                f"{path}: was changed since round {checkpoint.state.round} of this run ended, what in it is not known; "
                "put it back as it was, or start again with overwrite=true"
            )

    def abandon(self) -> None:
        """Undo `begin`: an earlier run's files are back, and nothing of this run is left; unless a round has ended."""
        if (self.path / ROUNDS).exists() and (self.path / ROUNDS).stat().st_size:
            return
        if self._replaced.exists():
            # A file without a counterpart there is the earlier run's own: the kill came before it was put aside.
            for name in _ALL:
                if (self._replaced / name).exists():
                    _remove(self.path / name)
            self._move(self._replaced, self.path)
            self._replaced.rmdir()
            return
        for name in _ALL:
            _remove(self.path / name)
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def _move(self, source: Path, target: Path) -> None:
        found = [name for name in _ALL if (source / name).exists()]
        if found:
            make_folder(target)
        for name in found:
            (source / name).rename(target / name)

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def clients(self) -> Path:
        return self.path / CLIENTS

    @property
    def adapter(self) -> Path:
        return self.path / ADAPTER

    @property
    def report(self) -> Path:
        return self.path / REPORT

    @property
    def tensorboard(self) -> Path:
        return self.path / TENSORBOARD

    def add_round(self, line: Mapping[str, Any]) -> None:
        _append(self.path / ROUNDS, [line])
        _remove(self._replaced)

    def add_client_scores(self, lines: Iterable[Mapping[str, Any]]) -> None:
        _append(self.path / CLIENT_SCORES, lines)

    def add_communication(self, lines: Iterable[Mapping[str, Any]]) -> None:
        _append(self.path / COMMUNICATION, lines)

    def communication(self) -> Iterator[LedgerLine]:
        """The ledger's lines. Raises FedmaskError for what is none."""
        for number, line in enumerate(read_lines(self.path / COMMUNICATION), 1):
            try:
                yield LedgerLine(**line)
            except TypeError as error:
                where = f"{self.path / COMMUNICATION}: line {number}"
                raise FedmaskError(f"{where} is none of the ledger's ({error})") from error

    def rounds(self) -> Iterator[dict[str, Any]]:
        """The lines of the rounds that have ended. Raises FedmaskError for what is none."""
        return read_lines(self.path / ROUNDS)

    def file_bytes(self) -> dict[str, int]:
        """How long the files are that grow from round to round."""
        return {name: (self.path / name).stat().st_size for name in _GROWING}

    def add_resume(self, line: Mapping[str, Any]) -> None:
        # Whole each time: no checkpoint says where this file was cut off by a kill.
        path = self.path / RESUMES
        before = path.read_bytes() if path.exists() else b""
        write_atomically(path, before + json.dumps(line).encode() + b"\n")

    def finished_before(self, rounds: int) -> dict[str, Any] | None:
        """The summary of a run that is to be resumed, but has had all its rounds and is finished; else None."""
        if self._replaced.exists() and not self._is_replaced():  # a kill while this run was put aside for another
            self._move(self._replaced, self.path)
            self._replaced.rmdir()
        path = self.path / SUMMARY
        if not path.exists():
            return None
        try:
            summary: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:
            raise FedmaskError(f"{path}: not JSON ({error})") from error
        return summary if self._num_rounds() >= rounds else None

    def _num_rounds(self) -> int:
        """Rounds that have ended."""
        return (self.path / ROUNDS).read_bytes().count(b"\n") if (self.path / ROUNDS).exists() else 0

    def finish(self, summary: Mapping[str, Any]) -> None:
        write_atomically(self.path / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())


def holds_run(path: Path) -> bool:
    """Whether a run has begun in a folder: it has the configuration of one."""
    try:
        read_config(path / CONFIG)
    except FedmaskError:
        return False
    return True


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file with one a line. Raises FedmaskError for what is none."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                found = json.loads(line)
            except ValueError:
                found = None
            if not isinstance(found, dict):
                raise FedmaskError(f"{path}: damaged, line {number} is no JSON object")
            yield found


def _cut(path: Path, length: int) -> None:
    """Cut a file off where it was `length` bytes long. Raises FedmaskError where it is shorter."""
    found = path.stat().st_size if path.exists() else 0
    if found < length:
        raise FedmaskError(
            f"{path}: has {found} bytes, the checkpoint is of a run whose {path.name} had {length}; put the whole file "
            "back, or start again with overwrite=true"
        )
    path.touch()
    os.truncate(path, length)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _append(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Whole lines, flushed to the disk before the next round begins."""
    with open(path, "a", opener=through_no_link) as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())
