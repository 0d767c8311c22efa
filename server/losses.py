"""The training losses of a round: what each client says of its own -> their mean, weighted by examples.

A loss decides nothing: it is a figure for people. So no update is rejected for it, as long as it is one that a float32
model can have: a regression on prices begins at 1e10. But one client that lies must not swamp the mean: a loss far
above those of the other clients of its task in this round is left out of it, and told.
"""

import logging
import statistics
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from fedmask.aggregation import WeightedMean

MAX_LOSS = float(np.finfo(np.float32).max)
"""A loss above this is no loss of a float32 model."""

FAR_ABOVE = 1e3
"""Times the median of its task's losses, beyond which a loss is left out of the mean; and a loss below this is near
enough whatever the median: where the other clients have learnt all their texts, theirs are close to 0."""

MIN_WITNESSES = 3
"""Replies of one task in a round, without which nobody can tell which of them is far off."""


class RoundLosses:
    """The losses of the replies that a round accepts."""

    def __init__(self) -> None:
        self._losses: list[tuple[int, str, float, float]] = []
        """client_id, task, loss, number of examples."""
        self._told: set[int] = set()

    def clear(self) -> None:
        """A round's training begins."""
        self._losses.clear()

    def add(self, client_id: int, task: str, loss: float, num_examples: float) -> None:
        self._losses.append((client_id, task, loss, num_examples))

    def mean(self, server_round: int) -> float:
        """Over the losses that are not left out; says once of a client that its are. Wants at least one loss."""
        limits, mean = dict(self._limits()), WeightedMean(1)
        for client_id, task, loss, num_examples in self._losses:
            if loss <= limits[task]:
                mean.add(np.array([loss], np.float32), num_examples)
            elif client_id not in self._told:
                self._told.add(client_id)
                logging.getLogger("fedmask").warning(
                    "round %d: client %d has a train loss of %.3g, far above the others of task %s: it is left out of "
                    "the rounds' mean loss; its updates count",
                    server_round,
                    client_id,
                    loss,
                    task,
                )
        return float(mean.result()[0])

    def _limits(self) -> Iterator[tuple[str, float]]:
        """By task the largest loss that the mean takes."""
        by_task: dict[str, list[float]] = defaultdict(list)
        for _, task, loss, _ in self._losses:
            by_task[task].append(loss)
        for task, losses in by_task.items():
            has_witnesses = len(losses) >= MIN_WITNESSES
            yield task, FAR_ABOVE * max(statistics.median(losses), 1.0) if has_witnesses else MAX_LOSS
