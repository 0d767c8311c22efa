"""Counts of a client's model against loops over the rows."""

import numpy as np
import pytest
import torch

from fedmask.tasks import Task
from fedmask.tasks.metrics import METRICS
from fedmask.training.evaluation import count

ROWS = [("one", "a"), ("two", "b"), ("three", "c")]


def guesses_and_labels(n: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    outputs = torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))
    # Skewed, so that a client's mix differs from the split's.
    labels = np.random.default_rng(seed).choice(classes, size=n, p=np.arange(1, classes + 1) / sum(range(classes + 1)))
    return outputs, labels


def test_accuracy_counts_on_the_split_and_on_the_clients_own_label_mix() -> None:
    outputs, labels = guesses_and_labels(50, 3)
    mix = np.array([0.7, 0.1, 0.2])
    counts = count(Task("t", ROWS, ROWS, ROWS), outputs, labels, mix)

    correct = [
        int(max(range(3), key=lambda c: row[c].item()) == label) for row, label in zip(outputs, labels, strict=True)
    ]
    assert counts.whole.tolist() == [sum(correct), 50]
    # What the client would see: the accuracy within each class, weighted by how often the client meets the class.
    recall = [np.mean([hit for hit, label in zip(correct, labels, strict=True) if label == c]) for c in range(3)]
    assert METRICS["accuracy"].value(counts.own) == pytest.approx(sum(m * r for m, r in zip(mix, recall, strict=True)))
    assert METRICS["accuracy"].value(counts.own) != pytest.approx(METRICS["accuracy"].value(counts.whole))
    # Always guessing class 0 is right as often as the client meets it.
    assert METRICS["accuracy"].value(counts.majority) == pytest.approx(0.7)


def test_f1_counts_on_the_clients_own_label_mix() -> None:
    task = Task("pairs", ROWS[:2], ROWS[:2], ROWS[:2], metric="f1")
    outputs, labels = guesses_and_labels(40, 2, seed=1)
    mix = np.array([0.2, 0.8])
    counts = count(task, outputs, labels, mix)
    tp = fp = fn = 0.0
    own_tp = own_fp = own_fn = 0.0
    for row, label in zip(outputs.tolist(), labels.tolist(), strict=True):
        weight = mix[label] / np.mean(labels == label)
        guess = int(row[1] > row[0])
        tp, fp, fn = tp + (guess and label), fp + (guess and not label), fn + (label and not guess)
        own_tp += weight * (guess and label)
        own_fp += weight * (guess and not label)
        own_fn += weight * (label and not guess)
    assert counts.whole.tolist() == [tp, fp, fn]
    assert counts.own.tolist() == pytest.approx([own_tp, own_fp, own_fn])
    # Always guessing the positive class: all positives found, all negatives wrong.
    assert counts.majority.tolist() == pytest.approx([0.8 * 40, 0.2 * 40, 0])


def test_a_regression_has_no_label_mix() -> None:
    rows = [("one", 1.0), ("two", 2.0)]
    task = Task("scores", rows, rows, rows)
    outputs = torch.tensor([[0.1], [0.4], [0.2], [0.9]])
    labels = np.array([1.0, 2.0, 3.0, 4.0])
    counts = count(task, outputs, labels, None)
    # Ranks 1 3 2 4 against 1 2 3 4: rho = 1 - 6 (0 + 1 + 1 + 0) / (4 (16 - 1)) = 0.8
    assert counts.whole.tolist() == pytest.approx([0.8, 1.0])
    assert counts.own.tolist() == counts.whole.tolist()
    assert counts.majority.tolist() == [0.0, 1.0]
