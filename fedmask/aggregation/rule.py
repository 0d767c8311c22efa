"""What a rule of combination is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Combination(Protocol):
    """Vectors (k,) of one name and layout on their way to one vector."""

    @property
    def num_updates(self) -> int:
        """Vectors added so far."""

    def add(self, values: NDArray[np.float32], weight: float) -> None:
        """Take one client's vector in. weight: its num_examples, above 0. Raises FedmaskError for another shape."""

    def result(self) -> NDArray[np.float64]:
        """float64 (k,). Raises FedmaskError where nothing was added."""


@dataclass(frozen=True)
class Rule:
    """A way of combining vectors."""

    name: str
    start: Callable[[int, float], Combination]
    """(k, trim) -> a combination of nothing yet; trim: server.trim, for the rules that take it."""
    within_tasks: bool
    """Whether it is applied to the clients of each task by themselves, the tasks' results then averaged."""


def average_over_tasks(by_task: Sequence[Combination]) -> NDArray[np.float64]:
    """sum_t c_t r_t / sum_t c_t , with r_t a task's result and c_t its clients; float64 (k,).

    Clients count, not their examples: a number of examples is a claim, and one bad claim would mute all other tasks.
    """
    if len(by_task) == 1:
        return by_task[0].result()
    total = by_task[0].num_updates * by_task[0].result()
    for combination in by_task[1:]:
        total += combination.num_updates * combination.result()
    return np.asarray(total / sum(combination.num_updates for combination in by_task))
