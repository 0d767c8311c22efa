"""A finished run's folder, read: its configuration, rounds, ledger, summary, and its clients' last scores."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmask.errors import FedmaskError
from fedmask.runs.config import RunConfig, from_yaml
from fedmask.runs.folder import CLIENT_SCORES, COMMUNICATION, CONFIG, ROUNDS, SUMMARY, read_lines
from fedmask.runs.page import figure
from fedmask.wire.ledger import UNKNOWN_CLIENT, LedgerLine


@dataclass(frozen=True, slots=True)
class ClientLine:
    """A line of clients.jsonl: one client, scored once."""

    round: int
    split: str
    client: int
    task: str
    score: float
    own_score: float
    majority_score: float
    num_examples: int
    """That the client trains on."""


@dataclass(frozen=True)
class Run:
    """What a finished run's folder says."""

    config: RunConfig
    config_text: str
    rounds: list[dict[str, Any]]
    ledger: list[LedgerLine]
    summary: dict[str, Any]
    scores: list[ClientLine]
    """Of the clients' last scoring, by client_id; none in a run of a version that kept none."""
    prefix: str
    """Before the names of its figures: nothing, or compare/NAME/."""

    @property
    def clients(self) -> list[int]:
        """All client_ids: everyone is sent the mask, or the settings alone, before the first round."""
        return sorted({line.client for line in self.ledger} - {UNKNOWN_CLIENT})

    def figure(self, name: str, form: str) -> str:
        """A figure of the summary by its dotted name, as HTML; a dash where there is none."""
        value: Any = self.summary
        for part in name.split(".", 1):  # a task, cause or tensor may have dots in its own name
            value = value.get(part)
        return figure(self.prefix + name, value, form)


def read_run(folder: Path, prefix: str = "") -> Run:
    """Raises FedmaskError where a file cannot be read as what it should be; OSError where one is missing."""
    text = (folder / CONFIG).read_text()
    return Run(
        config=from_yaml(text),
        config_text=text,
        rounds=list(read_lines(folder / ROUNDS)),
        ledger=[LedgerLine(**line) for line in read_lines(folder / COMMUNICATION)],
        summary=_summary(folder / SUMMARY),
        scores=_last_scores(folder / CLIENT_SCORES),
        prefix=prefix,
    )


def _summary(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise FedmaskError(f"{path}: damaged, it is no JSON object")
    return found


def _last_scores(path: Path) -> list[ClientLine]:
    """The last lines that belong together: on the test split where it was scored, else those of one round."""
    last: list[ClientLine] = []
    for raw in read_lines(path) if path.exists() else ():
        try:
            line = ClientLine(**raw)
        except TypeError as error:
            raise FedmaskError(f"{path}: damaged, a line of it is no client's score ({error})") from error
        if last and (last[0].round, last[0].split) != (line.round, line.split):
            last.clear()
        last.append(line)
    return sorted(last, key=lambda line: line.client)
