"""One small federation for all tests of the server: tiny model, two own tasks, four clients, two rounds.

`federate(*overrides)` runs it in process and gives the run back; `app=` and `grid=` let a test come between.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message

from client.app import app as client_app
from faults.runs import ChangingGrid
from fedmask.runs.config import RunConfig, from_yaml
from fedmask.training.delta import load_adapter
from fedmask.training.head import load_head
from fedmask.wire.ledger import Ledger
from server.app import num_clients, run_federation
from server.compose import compose
from server.local_grid import LocalGrid
from server.strategy import RoundReport

App = Callable[[Message, Context], Message]

TASKS = """
import random
from fedmask import Task


def rows(seed, size, words):
    generator = random.Random(seed)
    for _ in range(size):
        label = generator.randrange(2)
        text = " ".join(generator.choice(choices) for choices in (words[label], "abcdefgh", "klmno"))
        yield text, "ny"[label]


def task(name, *words):
    return Task(name, *(rows(name + split, size, words) for split, size in (("t", 40), ("v", 10), ("s", 12))))


def first():
    return task("first", ("bad", "dull"), ("good", "fine"))


def second():
    return task("second", ("cat", "dog"), ("car", "bus"))
"""


@dataclass
class Watcher:
    """Remembers what a run tells its observer."""

    failures: list[tuple[int, int, str, str]] = field(default_factory=list)
    reports: list[RoundReport] = field(default_factory=list)
    stages: list[tuple[int, str, int]] = field(default_factory=list)
    replied: list[int] = field(default_factory=list)
    resumes: list[tuple[int, int]] = field(default_factory=list)

    def stage_started(self, server_round: int, stage: str, num_clients: int) -> None:
        self.stages.append((server_round, stage, num_clients))

    def reply_arrived(self, client_id: int) -> None:
        self.replied.append(client_id)

    def client_failed(self, server_round: int, client_id: int, cause: str, detail: str) -> None:
        self.failures.append((server_round, client_id, cause, detail))

    def round_ended(self, report: RoundReport) -> None:
        self.reports.append(report)

    def resumed(self, after_round: int, resent: Ledger) -> None:
        self.resumes.append((after_round, resent.total_bytes))


@dataclass(frozen=True)
class FinishedRun:
    """A run's folder, read back."""

    config: RunConfig
    folder: Path
    summary: dict[str, Any]
    watched: Watcher

    @property
    def adapter(self) -> bytes:
        return (self.folder / "adapter.safetensors").read_bytes()

    @property
    def values(self) -> Any:
        return load_adapter(self.folder / "adapter.safetensors").values

    @property
    def rounds(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "rounds.jsonl").read_text().splitlines()]

    @property
    def ledger(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "communication.jsonl").read_text().splitlines()]

    def kept(self, client_id: int, name: str) -> bytes:
        return (self.folder / "clients" / f"client-{client_id:05d}" / f"{name}.safetensors").read_bytes()

    @property
    def heads(self) -> list[bytes]:
        return [path.read_bytes() for path in self._head_files()]

    @property
    def head_values(self) -> list[bytes]:
        return [load_head(path)[1].tobytes() for path in self._head_files()]

    def _head_files(self) -> list[Path]:
        return sorted((self.folder / "clients").glob("*/head.safetensors"))


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "small.py").write_text(TASKS)
    return folder


@pytest.fixture(scope="session")
def overrides(task_folder: Path) -> list[str]:
    """What every run of these tests has in common."""
    return [
        "model=tiny",
        "mask.density=0.01",
        "data=python",
        f"data.root={task_folder}",
        'data.tasks=["small:first","small:second"]',
        "data.examples_per_client=10",
        "data.max_length=16",
        "client.batch_size=5",
        "clients=4",
        "rounds=2",
        "threads=1",
    ]


@pytest.fixture(scope="session")
def federate(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., FinishedRun]:
    def run(
        *more: str,
        app: App = client_app,
        grid: Callable[[App, int], Any] = LocalGrid,  # type: ignore[assignment]
        output: Path | None = None,
        resume: bool = False,
        watcher: Watcher | None = None,
    ) -> FinishedRun:
        config = compose([*overrides, *more])
        folder = str(output or tmp_path_factory.mktemp("runs") / "run")
        config = replace(config, output=folder, resume=folder if resume else None)
        watcher = watcher or Watcher()
        summary = run_federation(grid(app, num_clients(config)), config, watcher)
        return FinishedRun(_with_rate_of(config, Path(folder)), Path(folder), summary, watcher)

    return run


def _with_rate_of(config: RunConfig, folder: Path) -> RunConfig:
    """A configuration with the rate that the run took, where it names none."""
    taken = from_yaml((folder / "config.yaml").read_text()).client.learning_rate
    return replace(config, client=replace(config.client, learning_rate=config.client.learning_rate or taken))


@pytest.fixture(scope="session")
def plain_run(federate: Callable[..., FinishedRun]) -> FinishedRun:
    """The run that others are compared with: every client answers."""
    return federate()


@pytest.fixture(scope="session")
def filtering_grid() -> Callable[..., Callable[[App, int], ChangingGrid]]:
    """`grid=filtering_grid(change)`: replies pass through change(client_id, request, reply)."""
    return lambda change: lambda app, num_clients: ChangingGrid(app, num_clients, change)  # type: ignore[arg-type]
