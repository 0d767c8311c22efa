"""Metrics as additive counts: outputs and labels -> counts (m,) -> one score.

Counts are sums over rows, so parts of a split, or clients, can be added before the score is taken:
accuracy = correct / total;  F1 = 2 tp / (2 tp + fp + fn);
Matthews = (tp tn - fp fn) / sqrt((tp + fp)(tp + fn)(tn + fp)(tn + fn)).
Spearman's rank correlation is no sum over rows: its counts are (rho, 1) of a whole split, and adding them gives the
mean over clients. A zero denominator gives 0.0 everywhere.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedmask.errors import FedmaskError


class Counts(Protocol):
    """(n, num_outputs) outputs, (n,) labels and optional (n,) weights -> (m,) float64 sums over the rows."""

    def __call__(self, outputs: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray: ...


@dataclass(frozen=True)
class Metric:
    """What is counted over the rows, and the score the counts give."""

    counts: Counts
    value: Callable[[np.ndarray], float]
    """A fraction 0..1; -1..1 for matthews and spearman."""
    binary: bool = False
    """Whether it is defined for two classes only; class 1, the last label, is the positive one."""
    regression: bool = False
    """Whether it scores real numbers instead of classes."""


def accuracy_counts(outputs: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """[correct, total]: the predicted class is the largest of the row's outputs."""
    correct = outputs.argmax(axis=1) == labels
    return _sums([correct, np.ones(len(labels))], weights)


def confusion_counts(outputs: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """[tp, fp, fn, tn] of the binary task whose positive class is 1."""
    guessed, positive = outputs.argmax(axis=1) == 1, labels == 1
    return _sums([guessed & positive, guessed & ~positive, ~guessed & positive, ~guessed & ~positive], weights)


def f1_counts(outputs: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """[tp, fp, fn] of the positive class 1."""
    return confusion_counts(outputs, labels, weights)[:3]


def spearman_counts(outputs: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """[rho, 1] of the whole split: Pearson's correlation of the ranks, ties sharing their average rank.

    rho is 0 where it is undefined: fewer than two rows, a constant column, outputs that are not finite. Raises
    FedmaskError for weights that differ: rank correlations are not reweighted (a regression has no label mix).
    """
    if weights is not None and np.ptp(weights) > 0:
        raise FedmaskError("spearman takes no row weights: a regression task has no label mix to weight by")
    outputs = outputs.reshape(len(labels))
    if len(labels) < 2 or not np.isfinite(outputs).all():
        return np.array([0.0, 1.0])
    first, second = (ranks - ranks.mean() for ranks in (average_ranks(outputs), average_ranks(labels)))
    rho = _ratio(float(first @ second), math.sqrt(float(first @ first) * float(second @ second)))
    return np.array([_within_one(rho), 1.0])


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks (n,) from 1, float64; equal values share the mean of the ranks they take."""
    _, inverse, repeats = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(repeats)
    return np.asarray((ends - (repeats - 1) / 2)[inverse], dtype=np.float64)


def fraction_value(counts: np.ndarray) -> float:
    """counts[0] / counts[1]: accuracy from [correct, total], the mean rho from [sum of rho, clients]."""
    return _ratio(counts[0], counts[1])


def f1_value(counts: np.ndarray) -> float:
    """F1 from [tp, fp, fn]."""
    tp, fp, fn = counts
    return _ratio(2 * tp, 2 * tp + fp + fn)


def matthews_value(counts: np.ndarray) -> float:
    """Matthews correlation from [tp, fp, fn, tn]."""
    tp, fp, fn, tn = map(float, counts)
    return _within_one(_ratio(tp * tn - fp * fn, math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))))


METRICS: dict[str, Metric] = {
    "accuracy": Metric(accuracy_counts, fraction_value),
    "matthews": Metric(confusion_counts, matthews_value, binary=True),
    "f1": Metric(f1_counts, f1_value, binary=True),
    "spearman": Metric(spearman_counts, fraction_value, regression=True),
}

METRIC_BY_NAME = {"cola": "matthews", "mrpc": "f1", "stsb": "spearman"}
"""The metric of a task that is known by its name; any other has accuracy, or spearman if it is a regression."""


def own_weights(labels: np.ndarray, label_mix: np.ndarray | None) -> np.ndarray:
    """Row weights (n,) that give a split the label mix of one client.

    w_c = mix_c / (fraction of class c in the split). `labels` (n,) are class indices, `label_mix` (C,) fractions.
    Classes of the mix that the split lacks drop out. `label_mix=None` (regression): all ones.
    """
    if label_mix is None:
        return np.ones(len(labels))
    fractions = np.bincount(labels, minlength=len(label_mix)) / len(labels)
    by_class = np.divide(label_mix, fractions, out=np.zeros(len(label_mix)), where=fractions > 0)
    return np.asarray(by_class[labels], dtype=np.float64)


def majority_counts(metric: Metric, labels: np.ndarray, label_mix: np.ndarray | None) -> np.ndarray:
    """Counts (m,) of always guessing the client's most frequent label, on the split weighted to its own mix.

    The lowest class wins a tie. A regression (`label_mix=None`) guesses a constant.
    """
    if label_mix is None:
        return metric.counts(np.zeros((len(labels), 1)), labels)
    guesses = np.zeros((len(labels), len(label_mix)))
    guesses[:, int(np.argmax(label_mix))] = 1.0
    return metric.counts(guesses, labels, own_weights(labels, label_mix))


def _sums(columns: list[np.ndarray], weights: np.ndarray | None) -> np.ndarray:
    """Sum of each (n,) column over the rows, weighted where weights (n,) are given: (m,) float64."""
    stacked = np.stack(columns).astype(np.float64)
    return stacked.sum(axis=1) if weights is None else np.asarray(stacked @ weights, dtype=np.float64)


def _within_one(correlation: float) -> float:
    """Rounding may carry a perfect correlation past 1 by a bit."""
    return max(-1.0, min(1.0, correlation))


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator > 0 else 0.0
