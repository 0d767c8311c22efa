"""fedmask.aggregation, the rules beside the mean: against NumPy and SciPy, and what one bad vector can do."""

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from scipy.stats import trim_mean

import fedmask.aggregation.spilled
from fedmask.aggregation import RULES, Combination, average_over_tasks, clipped, l2_norm
from fedmask.aggregation.median import Median
from fedmask.aggregation.trimmed_mean import TrimmedMean
from fedmask.errors import FedmaskError
from fedmask.runs.config import KEYS

finite = st.floats(-(2.0**60), 2.0**60, width=32)
vectors = st.tuples(st.integers(1, 9), st.integers(0, 12)).flatmap(
    lambda shape: stn.arrays(np.float32, shape, elements=finite)
)
trims = st.floats(0.01, 0.49)
robust = st.sampled_from(["median", "trimmed_mean"])


def combined(rule: str, rows: np.ndarray, trim: float = 0.2) -> np.ndarray:
    combination = RULES[rule].start(rows.shape[1], trim)
    for weight, row in enumerate(rows, start=1):
        combination.add(row, weight)
    assert combination.num_updates == len(rows)
    return combination.result()


def test_every_rule_can_be_asked_for_and_no_other() -> None:
    assert set(KEYS["server.combine"].allowed.choices or ()) == set(RULES)


@given(vectors)
def test_the_median_is_numpys(rows: np.ndarray) -> None:
    np.testing.assert_array_equal(combined("median", rows), np.median(rows.astype(np.float64), axis=0))


@given(vectors)
def test_the_trimmed_mean_is_scipys_where_the_fraction_is_a_whole_number_of_values(rows: np.ndarray) -> None:
    for cut in range(1, (len(rows) - 1) // 2 + 1):
        # SciPy rounds down: a little more than the fraction is the same number of values to it.
        expected = trim_mean(rows.astype(np.float64), (cut + 1e-6) / len(rows), axis=0)
        found = combined("trimmed_mean", rows, (cut - 1e-6) / len(rows))
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * float(np.abs(rows).max(initial=0)))


@pytest.mark.parametrize(
    ("count", "trim", "cut"),
    [(1, 0.4, 0), (2, 0.4, 0), (3, 0.01, 1), (4, 0.49, 1), (8, 0.1, 1), (8, 0.25, 2), (9, 0.49, 4), (20, 0.1, 2)],
)
def test_how_many_are_left_out(count: int, trim: float, cut: int) -> None:
    mean = TrimmedMean(1, trim)
    rows = np.arange(count, dtype=np.float32)[:, None] ** 2
    for row in rows:
        mean.add(row, 1)
    assert mean.num_cut == cut
    assert mean.result() == [rows[cut : count - cut].mean(dtype=np.float64)]


@given(vectors)
def test_most_trimmed_it_is_the_median(rows: np.ndarray) -> None:
    np.testing.assert_allclose(combined("trimmed_mean", rows, 0.4999), combined("median", rows), rtol=1e-15)


@given(robust, vectors, trims, st.randoms())
def test_the_order_of_arrival_changes_no_bit(rule: str, rows: np.ndarray, trim: float, random: st.DataObject) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert combined(rule, rows, trim).tobytes() == combined(rule, rows[order], trim).tobytes()


def test_no_zero_keeps_its_sign() -> None:
    """Zeros of either sign sort as equals: which of them stands in the middle would be a matter of arrival."""
    median = Median(1)
    for value in (-0.0, 0.0, -0.0):
        median.add(np.array([value], np.float32), 1)
    ((_, block),) = median._vectors.blocks()
    assert not np.signbit(block).any()


@given(robust, vectors, trims)
def test_no_entry_leaves_the_range_of_its_values(rule: str, rows: np.ndarray, trim: float) -> None:
    found = combined(rule, rows, trim).astype(np.float32)
    assert (found >= rows.min(axis=0)).all()
    assert (found <= rows.max(axis=0)).all()


@given(robust, vectors.filter(lambda rows: len(rows) > 2), st.integers(0, 8), st.sampled_from([3e38, -3e38, 0.0]))
def test_one_vector_of_three_or_more_cannot_leave_the_range_of_the_others(
    rule: str, rows: np.ndarray, bad: int, value: float
) -> None:
    bad %= len(rows)
    others = np.delete(rows, bad, axis=0)
    rows[bad] = value
    found = combined(rule, rows, 0.1).astype(np.float32)
    assert (found >= others.min(axis=0)).all()
    assert (found <= others.max(axis=0)).all()
    outlier = combined("mean", rows)
    assert value == 0.0 or (np.abs(outlier) > 1e36).all()  # the mean is carried away


@given(robust, vectors, trims)
def test_blocks_of_columns_give_the_bits_of_the_whole(rule: str, rows: np.ndarray, trim: float) -> None:
    whole = combined(rule, rows, trim)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fedmask.aggregation.spilled, "MAX_BLOCK_VALUES", 2 * len(rows) + 1)
        assert combined(rule, rows, trim).tobytes() == whole.tobytes()


def test_memory_is_that_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fedmask.aggregation.spilled, "MAX_BLOCK_VALUES", 100)
    median = Median(95)
    for number in range(7):
        median.add(np.full(95, number, np.float32), 1)
    blocks = [(columns, block.shape) for columns, block in median._vectors.blocks()]
    assert [shape for _, shape in blocks] == [(7, 14)] * 6 + [(7, 11)]
    assert [(columns.start, columns.stop) for columns, _ in blocks][-2:] == [(70, 84), (84, 95)]
    assert (median.result() == 3).all()


@pytest.mark.parametrize("rule", ["median", "trimmed_mean"])
def test_nothing_and_another_shape(rule: str) -> None:
    combination = RULES[rule].start(3, 0.1)
    with pytest.raises(FedmaskError, match=r"^a combination of no updates: no client's reply was accepted$"):
        combination.result()
    with pytest.raises(FedmaskError, match=r"^vectors of 3 values: found one of shape \(2,\)$"):
        combination.add(np.zeros(2, np.float32), 1)
    assert combination.num_updates == 0


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, data: object) -> None:
            raise OSError(28, "No space left on device")

    median = Median(3)
    monkeypatch.setattr(median._vectors, "_file", Full())
    with pytest.raises(FedmaskError) as caught:
        median.add(np.zeros(3, np.float32), 1)
    assert str(caught.value).startswith("1 updates of 3 values cannot be held in ")
    assert "No space left on device; set TMPDIR to a folder with room, or take server.combine=mean" in str(caught.value)


def of_numbers(rule: str, *values: float) -> Combination:
    """Of vectors of one entry."""
    combination = RULES[rule].start(1, 0.1)
    for value in values:
        combination.add(np.array([value], np.float32), 10)
    return combination


@pytest.mark.parametrize("rule", RULES)
def test_tasks_are_averaged_by_their_clients(rule: str) -> None:
    of = partial(of_numbers, rule)
    assert average_over_tasks([of(1, 2, 3), of(10, 20, 30, 40)], of) == [(3 * 2 + 4 * 25) / 7]


@pytest.mark.parametrize("rule", ["median", "trimmed_mean"])
def test_a_task_that_nobody_else_has_is_no_way_around_the_rule(rule: str) -> None:
    """One of eight vectors, under a task of its own, moves the result by no more than it would within another's."""
    honest = [float(value) for value in range(7)]

    of = partial(of_numbers, rule)
    (alone,) = average_over_tasks([of(*honest), of(1e20)], of)
    assert min(honest) <= alone <= max(honest)
    (two,) = average_over_tasks([of(*honest[:5]), of(*honest[5:]), of(1e20)], of)
    assert min(honest) <= two <= max(honest)


@pytest.mark.parametrize("rule", ["median", "trimmed_mean"])
def test_tasks_of_few_clients_alone_are_combined_as_one(rule: str) -> None:
    of = partial(of_numbers, rule)
    assert average_over_tasks([of(1, 2), of(30)], of) == of(1, 2, 30).result() == average_over_tasks([of(1, 2, 30)], of)


@pytest.mark.parametrize("rule", RULES)
def test_of_a_task_alone_not_a_bit_is_changed(rule: str) -> None:
    combination = RULES[rule].start(1000, 0.1)
    for row in np.random.default_rng(0).standard_normal((7, 1000)).astype(np.float32):
        combination.add(row, 10)
    assert average_over_tasks([combination], lambda: combination).tobytes() == combination.result().tobytes()


@given(st.lists(stn.arrays(np.float32, st.integers(0, 20), elements=finite), max_size=3))
def test_the_norm_is_that_of_all_vectors_as_one(rows: list[np.ndarray]) -> None:
    whole = np.concatenate([*rows, np.zeros(1, np.float32)]).astype(np.float64)
    assert math.isclose(l2_norm(rows), float(np.linalg.norm(whole)), rel_tol=1e-12, abs_tol=1e-300)


@given(st.lists(stn.arrays(np.float32, st.integers(1, 20), elements=finite), max_size=3), st.floats(1e-3, 1e12))
def test_clipping_bounds_the_norm_keeps_the_direction_and_leaves_the_small_alone(
    rows: list[np.ndarray], limit: float
) -> None:
    norm, found = l2_norm(rows), clipped(rows, limit)
    if norm <= limit:
        assert [row.tobytes() for row in found] == [row.tobytes() for row in rows]
    else:
        assert math.isclose(l2_norm(found), limit, rel_tol=1e-6)
        for before, after in zip(rows, found, strict=True):
            np.testing.assert_allclose(after, before * (limit / norm), rtol=1e-6, atol=1e-44)


def test_the_norm_of_the_largest_floats_is_finite() -> None:
    assert math.isclose(l2_norm([np.full(100, 3e38, np.float32)]), 3e39, rel_tol=1e-6)
