"""The folder a run leaves behind, one that explains itself.

config.yaml         the configuration, composes back
rounds.jsonl        a line a round, written when the round ends
communication.jsonl a line a message and kind: the ledger
clients/            what stays on the clients of a simulation, heads among it
adapter.safetensors the global delta; absent for the baselines, which have none
summary.json        model, mask, scores, communication; its being there marks a finished run
report.html         all of that as one page to look at, made from the other files
tensorboard/        scalars, with log.tensorboard=true
compare/NAME/       the same for each baseline beside it
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from fedmask.errors import FedmaskError
from fedmask.files import write_atomically
from fedmask.runs.config import RunConfig, from_yaml, to_dict

CONFIG, ROUNDS, COMMUNICATION = "config.yaml", "rounds.jsonl", "communication.jsonl"
ADAPTER, SUMMARY, CLIENTS, COMPARE = "adapter.safetensors", "summary.json", "clients", "compare"
REPORT, TENSORBOARD = "report.html", "tensorboard"
_ALL = (SUMMARY, REPORT, CONFIG, ROUNDS, COMMUNICATION, ADAPTER, CLIENTS, TENSORBOARD, COMPARE)


def default_output(config: RunConfig, now: datetime) -> str:
    """A new folder under runs/, named by what is run and when."""
    from fedmask.models import shown_name  # torch and transformers: late

    model = shown_name(config.model.name, config.model.path).replace("/", "-")
    return f"runs/{model}-{config.data.source}-{config.mask.rule}-{now:%Y%m%d-%H%M%S}"


class RunFolder:
    """One run's files. An earlier run in the same place is put aside, and given up only when a round has ended."""

    def __init__(self, path: Path, overwrite: bool) -> None:
        """Touches nothing yet.

        Raises FedmaskError where the path is a file, where it already holds a run and overwrite is false, and where it
        holds files of the names that a run uses, but no run.
        """
        self.path = path
        self._replaced = path / ".replaced"
        if path.exists() and not path.is_dir():
            raise FedmaskError(f"output={path}: this is a file; name a folder")
        found = [name for name in (*_ALL, self._replaced.name) if (path / name).exists()]
        if found and not overwrite:
            raise FedmaskError(
                f"output={path}: this folder already holds a run; name another, or say overwrite=true to replace it"
            )
        if found and not self._holds_a_run():
            raise FedmaskError(f"output={path}: holds {found[0]}, but no run of fedmask; name another folder")

    def _holds_a_run(self) -> bool:
        """Here, or put aside by a beginning that was killed."""
        return _is_configuration(self.path / CONFIG) or _is_configuration(self._replaced / CONFIG)

    def begin(self, config: RunConfig) -> None:
        """Put an earlier run's files (and no others) aside and write the configuration."""
        if self._replaced.exists():  # an earlier beginning was killed before a round of it had ended
            self.abandon()
        self._move(self.path, self._replaced)
        self.clients.mkdir(parents=True)
        write_atomically(self.path / CONFIG, yaml.safe_dump(to_dict(config), sort_keys=False).encode())
        for name in (ROUNDS, COMMUNICATION):
            (self.path / name).touch()

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
            target.mkdir(parents=True, exist_ok=True)
        for name in found:
            (source / name).rename(target / name)

    @property
    def clients(self) -> Path:
        return self.path / CLIENTS

    @property
    def adapter(self) -> Path:
        return self.path / ADAPTER

    @property
    def tensorboard(self) -> Path:
        return self.path / TENSORBOARD

    def add_round(self, line: Mapping[str, Any]) -> None:
        _append(self.path / ROUNDS, [line])
        _remove(self._replaced)

    def add_communication(self, lines: Iterable[Mapping[str, Any]]) -> None:
        _append(self.path / COMMUNICATION, lines)

    def finish(self, summary: Mapping[str, Any]) -> None:
        write_atomically(self.path / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())


def _is_configuration(path: Path) -> bool:
    try:
        from_yaml(path.read_text())
    except (OSError, UnicodeDecodeError, FedmaskError):
        return False
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _append(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Whole lines, flushed to the disk before the next round begins."""
    with path.open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())
