"""Counts from clients -> scores by task.

A client's score is its task's metric of its own counts; a task's score is the mean over its clients, the worst client
beside it; the mean score is the mean over tasks. Fractions, or correlations from -1 to 1.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from fedmask.errors import RejectedMessage
from fedmask.tasks.metrics import METRICS
from server.members import Member

_Value = TypeVar("_Value")

MAX_COUNTS = 8
"""Numbers in a metric's counts; a client's list may be of any length."""


@dataclass(frozen=True, slots=True)
class ClientScore:
    """One client's model on one split."""

    client_id: int
    task: str
    score: float
    """On the task's whole split."""
    own_score: float
    """On that split weighted to the client's own label mix."""
    majority_score: float
    """Of always guessing the client's majority label, weighted likewise."""
    num_examples: int
    """That the client trains on."""

    @classmethod
    def of(cls, member: Member, counts: Mapping[str, object]) -> "ClientScore":
        """Raises RejectedMessage for counts that cannot be counted or give no score."""
        names = ("counts", "own-counts", "majority-counts")
        score, own_score, majority_score = (_score(member.metric, name, counts.get(name)) for name in names)
        return cls(member.client_id, member.task, score, own_score, majority_score, member.num_examples)


def _score(metric: str, name: str, counts: object) -> float:
    """Of a client's counts under this name, which may be anything. Raises RejectedMessage."""
    if not isinstance(counts, list) or len(counts) > MAX_COUNTS:
        found = f"a list of {len(counts):,}" if isinstance(counts, list) else repr(counts)
        raise RejectedMessage("undecodable", f"{name} {found} are no counts of {metric}")
    try:
        # Once: numpy makes no numbers of whole ones beyond 2^64 by itself.
        numbers = np.asarray(counts, np.float64)
        value = METRICS[metric].value(numbers)
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        raise RejectedMessage("undecodable", f"{name} {counts} are no counts of {metric}") from error
    if not np.isfinite(numbers).all() or not -1.0 <= value <= 1.0:
        raise RejectedMessage("not-finite", f"{name} {counts} give {value}")
    if numbers.min() < 0 and not METRICS[metric].regression:  # a correlation is the one count that may be negative
        raise RejectedMessage("negative-counts", f"{name} {counts}: nothing is counted less than no times")
    return float(value)


@dataclass(frozen=True)
class Scores:
    """The scores of the clients that answered."""

    clients: tuple[ClientScore, ...]

    def score(self) -> dict[str, float]:
        """By task: mean over the task's clients."""
        return self._by_task(lambda client: client.score, _mean)

    def own_score(self) -> dict[str, float]:
        return self._by_task(lambda client: client.own_score, _mean)

    def majority_score(self) -> dict[str, float]:
        return self._by_task(lambda client: client.majority_score, _mean)

    def worst_client_score(self) -> dict[str, float]:
        return self._by_task(lambda client: client.score, min)

    def mean_score(self) -> float | None:
        """Mean over tasks; None where no client was scored."""
        by_task = self.score()
        return _mean(list(by_task.values())) if by_task else None

    def lines(self, server_round: int, split: str) -> Iterator[dict[str, Any]]:
        """A line of clients.jsonl a client, in the order of the clients."""
        for client in self.clients:
            yield {
                "round": server_round,
                "split": split,
                "client": client.client_id,
                "task": client.task,
                "score": client.score,
                "own_score": client.own_score,
                "majority_score": client.majority_score,
                "num_examples": client.num_examples,
            }

    def by_client(self) -> dict[str, list[float]]:
        """By task the scores of its clients, in the order of the clients."""
        return self._by_task(lambda client: client.score, list)

    def _by_task(self, of: Callable[[ClientScore], float], over: Callable[[list[float]], _Value]) -> dict[str, _Value]:
        values: dict[str, list[float]] = defaultdict(list)
        for client in self.clients:
            values[client.task].append(of(client))
        return {task: over(values[task]) for task in sorted(values)}


def _mean(values: list[float]) -> float:
    return float(np.mean(values))
