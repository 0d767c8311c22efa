"""What a rule of combination is."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

MIN_WITNESSES = 3
"""Vectors of one task, of which one cannot move a robust rule's result beyond what the others hold."""


class Combination(Protocol):
    """Vectors (k,) of one name and layout on their way to one vector."""

    @property
    def num_updates(self) -> int:
        """Vectors added so far."""

    def add(self, values: NDArray[np.float32], weight: float) -> None:
        """Take one client's vector in. weight: its num_examples, above 0. Raises FedmaskError for another shape."""

    def result(self) -> NDArray[np.float64]:
        """float64 (k,). Raises FedmaskError where nothing was added."""


class RobustCombination(Combination, Protocol):
    """One that needs all of its vectors at once."""

    def vectors(self) -> Iterator[NDArray[np.float32]]:
        """Those added so far, (k,) each, in that order."""


@dataclass(frozen=True)
class Rule:
    """A way of combining vectors."""

    name: str
    start: Callable[[int, float], Combination]
    """(k, trim) -> a combination of nothing yet; trim: server.trim, for the rules that take it."""
    within_tasks: bool
    """Whether it is applied to the clients of each task by themselves, the tasks' results then averaged. Its
    combinations are `RobustCombination`s."""


def average_over_tasks(by_task: Sequence[Combination], everyone: Callable[[], Combination]) -> NDArray[np.float64]:
    """sum_t c_t r_t / sum_t c_t , with r_t a task's result and c_t its clients; float64 (k,).

    Clients count, not their examples: a number of examples is a claim, and one bad claim would mute all other tasks.
    A task with fewer than MIN_WITNESSES vectors has nobody to outvote a liar, and a client can name a task of its own:
    in place of its result stands that of the rule over the vectors of all tasks. everyone: makes an empty combination
    of that rule.
    """
    if len(by_task) == 1:
        return by_task[0].result()
    witnessed = [combination for combination in by_task if combination.num_updates >= MIN_WITNESSES]
    parts = [(combination.num_updates, combination.result()) for combination in witnessed]
    if len(witnessed) < len(by_task):
        few = sum(combination.num_updates for combination in by_task if combination.num_updates < MIN_WITNESSES)
        parts.append((few, _over_all(by_task, everyone())))
    total = sum(count * result for count, result in parts)
    return np.asarray(total / sum(count for count, _ in parts))


def _over_all(by_task: Sequence[Combination], everyone: Combination) -> NDArray[np.float64]:
    for combination in by_task:
        for values in cast(RobustCombination, combination).vectors():
            everyone.add(values, 1.0)
    return everyone.result()
