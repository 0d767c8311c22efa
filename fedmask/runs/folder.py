"""The folder a run leaves behind, one that explains itself.

config.yaml         the configuration, composes back
rounds.jsonl        a line a round, written when the round ends
communication.jsonl a line a message and kind: the ledger
clients/            what stays on the clients of a simulation, heads among it
adapter.safetensors the global delta; absent for the baselines, which have none
summary.json        model, mask, scores, communication; written last, so that it marks a finished run
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
from fedmask.runs.config import RunConfig, to_dict
from fedmask.runs.files import write_atomically

CONFIG, ROUNDS, COMMUNICATION = "config.yaml", "rounds.jsonl", "communication.jsonl"
ADAPTER, SUMMARY, CLIENTS, COMPARE = "adapter.safetensors", "summary.json", "clients", "compare"
_ALL = (SUMMARY, CONFIG, ROUNDS, COMMUNICATION, ADAPTER, CLIENTS, COMPARE)


def default_output(config: RunConfig, now: datetime) -> str:
    """A new folder under runs/, named by what is run and when."""
    return f"runs/{config.model.name}-{config.data.source}-{config.mask.rule}-{now:%Y%m%d-%H%M%S}"


class RunFolder:
    """One run's files."""

    def __init__(self, path: Path, overwrite: bool) -> None:
        """Touches nothing yet.

        Raises FedmaskError where the path is a file, or already holds a run and overwrite is false.
        """
        self.path = path
        if path.exists() and not path.is_dir():
            raise FedmaskError(f"output={path}: this is a file; name a folder")
        if self._holds_a_run() and not overwrite:
            raise FedmaskError(
                f"output={path}: this folder already holds a run; name another, or say overwrite=true to replace it"
            )

    def _holds_a_run(self) -> bool:
        return any((self.path / name).exists() for name in _ALL)

    def begin(self, config: RunConfig) -> None:
        """Clear an earlier run's files (and no others) and write the configuration."""
        for name in _ALL:
            old = self.path / name
            if old.is_dir():
                shutil.rmtree(old)
            else:
                old.unlink(missing_ok=True)
        self.clients.mkdir(parents=True)
        write_atomically(self.path / CONFIG, yaml.safe_dump(to_dict(config), sort_keys=False).encode())
        for name in (ROUNDS, COMMUNICATION):
            (self.path / name).touch()

    @property
    def clients(self) -> Path:
        return self.path / CLIENTS

    @property
    def adapter(self) -> Path:
        return self.path / ADAPTER

    def add_round(self, line: Mapping[str, Any]) -> None:
        _append(self.path / ROUNDS, [line])

    def add_communication(self, lines: Iterable[Mapping[str, Any]]) -> None:
        _append(self.path / COMMUNICATION, lines)

    def finish(self, summary: Mapping[str, Any]) -> None:
        write_atomically(self.path / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())


def _append(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Whole lines, flushed to the disk before the next round begins."""
    with path.open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())
