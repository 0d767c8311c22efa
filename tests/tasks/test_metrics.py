"""Metrics against plain loops and scipy; counts add; own weights give a split a client's label mix."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from fedmask.errors import FedmaskError
from fedmask.tasks.metrics import METRICS, average_ranks, majority_counts, own_weights

SIZES = st.integers(1, 40)
SEEDS = st.integers(0, 2**32 - 1)


def draw(seed: int, size: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Outputs (n, C) and labels (n,)."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(size, classes)), generator.integers(0, classes, size)


def confusion(outputs: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> list[float]:
    """tp, fp, fn, tn by a plain loop."""
    counts = [0.0, 0.0, 0.0, 0.0]
    for output, label, weight in zip(outputs, labels, weights, strict=True):
        guess = int(output[1] > output[0])
        counts[{(1, 1): 0, (1, 0): 1, (0, 1): 2, (0, 0): 3}[guess, int(label)]] += weight
    return counts


@given(SEEDS, SIZES, st.integers(2, 5))
def test_accuracy_is_the_fraction_of_right_rows(seed: int, size: int, classes: int) -> None:
    outputs, labels = draw(seed, size, classes)
    right = sum(max(range(classes), key=lambda c: row[c]) == label for row, label in zip(outputs, labels, strict=True))
    counts = METRICS["accuracy"].counts(outputs, labels)
    assert counts.tolist() == [right, size]
    assert counts.dtype == np.float64
    assert METRICS["accuracy"].value(counts) == right / size


@given(SEEDS, SIZES)
def test_binary_counts_are_a_confusion_matrix(seed: int, size: int) -> None:
    outputs, labels = draw(seed, size, 2)
    weights = np.random.default_rng(seed).random(size)
    expected = confusion(outputs, labels, weights)
    np.testing.assert_allclose(METRICS["matthews"].counts(outputs, labels, weights), expected)
    np.testing.assert_allclose(METRICS["f1"].counts(outputs, labels, weights), expected[:3])
    np.testing.assert_array_equal(METRICS["f1"].counts(outputs, labels), confusion(outputs, labels, np.ones(size))[:3])


@given(SEEDS, st.integers(2, 60))
def test_matthews_is_the_correlation_of_guesses_and_labels(seed: int, size: int) -> None:
    outputs, labels = draw(seed, size, 2)
    guesses = outputs.argmax(axis=1)
    constant = np.ptp(guesses) == 0 or np.ptp(labels) == 0
    expected = 0.0 if constant else float(np.corrcoef(guesses, labels)[0, 1])
    metric = METRICS["matthews"]
    assert metric.value(metric.counts(outputs, labels)) == pytest.approx(expected, abs=1e-12)


def test_f1_by_hand() -> None:
    assert METRICS["f1"].value(np.array([3.0, 1.0, 2.0])) == pytest.approx(2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5))


@given(
    hnp.arrays(np.float64, st.shared(SIZES, key="n"), elements=st.integers(0, 6)),
    hnp.arrays(np.float64, st.shared(SIZES, key="n"), elements=st.integers(0, 6)),
)
def test_spearman_is_scipys_with_ties(outputs: np.ndarray, labels: np.ndarray) -> None:
    undefined = len(labels) < 2 or np.ptp(outputs) == 0 or np.ptp(labels) == 0
    expected = 0.0 if undefined else stats.spearmanr(outputs, labels).statistic
    rho, number = METRICS["spearman"].counts(outputs[:, None], labels)
    assert rho == pytest.approx(expected, abs=1e-12)
    assert number == 1
    np.testing.assert_array_equal(average_ranks(labels), stats.rankdata(labels))


def test_spearman_of_outputs_that_are_not_finite_is_zero() -> None:
    labels = np.array([1.0, 2.0, 3.0])
    for bad in (math.nan, math.inf):
        assert METRICS["spearman"].counts(np.array([[1.0], [2.0], [bad]]), labels).tolist() == [0.0, 1.0]


def test_spearman_takes_equal_weights_only() -> None:
    outputs, labels = np.array([[1.0], [2.0], [3.0]]), np.array([1.0, 3.0, 2.0])
    metric = METRICS["spearman"]
    np.testing.assert_array_equal(
        metric.counts(outputs, labels, own_weights(labels, None)), metric.counts(outputs, labels)
    )
    with pytest.raises(FedmaskError, match="spearman takes no row weights"):
        metric.counts(outputs, labels, np.array([1.0, 1.0, 2.0]))


def test_spearmans_counts_average_over_clients() -> None:
    assert METRICS["spearman"].value(np.array([0.5, 1.0]) + np.array([-0.1, 1.0])) == pytest.approx(0.2)


@given(SEEDS, st.integers(2, 40), st.data())
def test_counts_of_parts_add_up(seed: int, size: int, data: st.DataObject) -> None:
    outputs, labels = draw(seed, size, 2)
    cut = data.draw(st.integers(1, size - 1))
    for name in ("accuracy", "matthews", "f1"):
        counts = METRICS[name].counts
        whole = counts(outputs[:cut], labels[:cut]) + counts(outputs[cut:], labels[cut:])
        np.testing.assert_array_equal(counts(outputs, labels), whole)


@pytest.mark.parametrize(("name", "size"), [("accuracy", 2), ("f1", 3), ("matthews", 4), ("spearman", 2)])
def test_nothing_counted_scores_zero(name: str, size: int) -> None:
    assert METRICS[name].value(np.zeros(size)) == 0.0


@given(SEEDS, SIZES, st.integers(2, 4))
def test_weights_of_whole_numbers_repeat_rows(seed: int, size: int, classes: int) -> None:
    outputs, labels = draw(seed, size, classes)
    repeats = np.random.default_rng(seed).integers(0, 4, size)
    weighted = METRICS["accuracy"].counts(outputs, labels, repeats.astype(float))
    repeated = METRICS["accuracy"].counts(np.repeat(outputs, repeats, axis=0), np.repeat(labels, repeats))
    np.testing.assert_array_equal(weighted, repeated)


@given(SEEDS, SIZES, st.integers(2, 5))
def test_own_weights_give_the_split_the_clients_mix(seed: int, size: int, classes: int) -> None:
    generator = np.random.default_rng(seed)
    labels, mix = generator.integers(0, classes, size), generator.dirichlet(np.ones(classes))
    weights = own_weights(labels, mix)
    assert weights.shape == (size,)
    for c in range(classes):
        expected = size * mix[c] if c in labels else 0.0
        assert weights[labels == c].sum() == pytest.approx(expected)


def test_own_weights_by_hand() -> None:
    # The split is 3/4 class 0; the client's mix is 1/4 class 0, 1/2 class 1 and 1/4 of a class the split lacks.
    weights = own_weights(np.array([0, 0, 0, 1]), np.array([0.25, 0.5, 0.25]))
    np.testing.assert_allclose(weights, [1 / 3, 1 / 3, 1 / 3, 2.0])


@given(SEEDS, st.integers(10, 60))
def test_guessing_the_majority_is_right_as_often_as_the_mix_says(seed: int, size: int) -> None:
    generator = np.random.default_rng(seed)
    labels = np.concatenate([[0, 1, 2], generator.integers(0, 3, size)])
    mix = generator.dirichlet(np.ones(3))
    metric = METRICS["accuracy"]
    assert metric.value(majority_counts(metric, labels, mix)) == pytest.approx(mix.max())


def test_majority_of_a_binary_metric_and_of_a_regression() -> None:
    labels = np.array([0, 0, 0, 1])
    np.testing.assert_allclose(majority_counts(METRICS["f1"], labels, np.array([0.4, 0.6])), [2.4, 1.6, 0.0])
    np.testing.assert_allclose(majority_counts(METRICS["matthews"], labels, np.array([0.7, 0.3])), [0, 0, 1.2, 2.8])
    assert majority_counts(METRICS["spearman"], np.array([0.5, 1.5]), None).tolist() == [0.0, 1.0]


@given(st.lists(st.floats(0.01, 100.0), min_size=2, max_size=40), st.booleans())
def test_a_perfect_correlation_is_never_above_one(weights: list[float], reverse: bool) -> None:
    labels = np.arange(len(weights)) % 2
    outputs = np.eye(2)[1 - labels if reverse else labels]
    metric = METRICS["matthews"]
    value = metric.value(metric.counts(outputs, labels, np.array(weights)))
    assert -1.0 <= value <= 1.0
    assert value == pytest.approx(-1.0 if reverse else 1.0)
