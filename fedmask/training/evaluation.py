"""A client's own model on its task's whole split -> additive counts: on the split, and on the client's own label mix.

In: outputs (n, C) and labels (n,). Out: three vectors of counts, from which the task's metric gives `score`,
`own_score` (the split reweighted to the client's own label mix: what this client would see) and what always guessing
the client's majority label would score there.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedmask.tasks.metrics import METRICS, majority_counts, own_weights
from fedmask.tasks.task import Task


@dataclass(frozen=True, eq=False)
class Counts:
    """Float64 vectors of the metric's counts, all of one length."""

    whole: NDArray[np.float64]
    own: NDArray[np.float64]
    majority: NDArray[np.float64]


def count(
    task: Task, outputs: Tensor, labels: NDArray[np.int64] | NDArray[np.float64], label_mix: NDArray[np.float64] | None
) -> Counts:
    """Counts of one client on one split. label_mix: (C,) fractions; None for regression, which has no mix."""
    metric = METRICS[task.metric]
    predicted = outputs.numpy()
    whole = metric.counts(predicted, labels)
    own = whole if label_mix is None else metric.counts(predicted, labels, own_weights(labels, label_mix))
    return Counts(whole, own, majority_counts(metric, labels, label_mix))
