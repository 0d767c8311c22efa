"""A task turns rows into numbers, and says which row it cannot."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmask.errors import FedmaskError
from fedmask.tasks.labels import clean
from fedmask.tasks.task import Split, Task

ROWS = [("good", "positive"), ("bad", "negative"), ("fine", "positive")]
PAIRS = [("a", "b", "equivalent"), ("a", "c", "not_equivalent")]
REGRESSION = [("a", "b", 0.5), ("a", "c", 5.0)]


def make(**changes: Any) -> Task:
    return Task(**({"name": "reviews", "train": ROWS, "validation": ROWS, "test": ROWS} | changes))


def test_classes_are_the_sorted_names_of_train() -> None:
    task = make(test=[("ok", "negative")])
    assert task.labels == ("negative", "positive")
    assert task.train.labels.tolist() == [1, 0, 1]
    assert task.train.labels.dtype == np.int64
    assert task.test.labels.tolist() == [0]
    assert task.train.text_a == ("good", "bad", "fine")
    assert (task.metric, task.num_outputs, (task.train.text_b is not None)) == ("accuracy", 2, False)


NAMES = st.text(min_size=1).filter(clean)


@given(st.lists(st.tuples(st.text(), NAMES), min_size=2).filter(lambda rows: len({clean(r[1]) for r in rows}) > 1))
def test_indices_give_the_names_back(rows: list[tuple[str, str]]) -> None:
    task = make(train=rows, validation=rows, test=rows)
    assert task.labels is not None
    assert list(task.labels) == sorted({clean(label) for _, label in rows})
    assert [task.labels[index] for index in task.train.labels] == [clean(label) for _, label in rows]


def test_names_that_differ_in_outer_blanks_or_form_are_one_class() -> None:
    rows = [("a", "caf\u00e9"), ("b", "cafe\u0301 "), ("c", "down"), ("d", "\ufeffdown\0")]
    task = make(train=rows, validation=rows[1:2], test=rows[3:])
    assert task.labels == ("caf\u00e9", "down")
    assert (task.train.labels.tolist(), task.validation.labels.tolist(), task.test.labels.tolist()) == (
        [0, 0, 1, 1],
        [0],
        [1],
    )
    assert make(train=rows, validation=rows, test=rows, labels=[" down", "cafe\u0301"]).train.labels.tolist() == [
        1,
        1,
        0,
        0,
    ]


def test_classes_that_look_alike_are_told() -> None:
    rows = [("a", "Up"), ("b", "up"), ("c", "a b"), ("d", "ab")]
    assert make(train=rows, validation=rows, test=rows).notes == (
        "classes 'a b' and 'ab' differ in blanks only: they count as two",
        "classes 'Up' and 'up' differ in case only: they count as two",
    )


def test_large_targets_have_a_unit_and_that_is_told() -> None:
    def priced(*labels: float) -> Task:
        rows = [("a", label) for label in labels]
        return Task("prices", rows, rows, rows)

    assert (priced(0.0, 100.0).unit, priced(0.0, 100.0).notes, make().unit) == (1.0, (), 1.0)
    assert priced(40_000.0, 134_500.0).notes == (
        "labels reach 134,500: while a client trains, it counts them, and its loss, in units of 100,000; its head "
        "answers in the labels' own",
    )
    assert [priced(-largest, 1.0).unit for largest in (100.5, 999.0, 1000.0, 1e300)] == [100.0, 100.0, 1000.0, 1e300]
    assert priced(40_000.0, 134_500.0).train.labels.tolist() == [40_000.0, 134_500.0]


def test_empty_texts_are_counted_and_kept() -> None:
    task = make(train=[*ROWS, ("", "positive"), (" \n", "positive")], test=[("", "positive")])
    assert task.notes == (
        "3 empty texts (2 of train, 1 of test), kept: a model reads its marks of beginning and end alone",
    )
    assert len(task.train) == 5


def test_classes_may_be_given_anew() -> None:
    task = make().with_classes(["positive", "none", "negative"])
    assert (task.labels, task.train.labels.tolist()) == (("positive", "none", "negative"), [0, 2, 0])
    assert task.notes == ("no training row has the class none",)
    assert make().with_classes(None).labels == ("negative", "positive")
    with pytest.raises(
        FedmaskError, match=r"^task reviews, train, row 2: label 'negative' is not a class of data\.clas"
    ):
        make().with_classes(["positive", "neutral"])
    with pytest.raises(
        FedmaskError, match=r"^data\.classes names classes, and task reviews is a regression; leave it out"
    ):
        make(train=REGRESSION, validation=REGRESSION, test=REGRESSION).with_classes(["a", "b"])


HALF = "cut \ud83d here"


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"test": [*ROWS, (HALF, "positive")]}, "task reviews, test, row 4"),
        ({"train": PAIRS, "validation": PAIRS, "test": [("a", HALF, "equivalent")]}, "task reviews, test, row 1"),
        ({"train": Split(("a", HALF), None, np.array([0, 1]))}, "task reviews, train, row 2"),
        ({"train": Split(("a", "b"), ("c", HALF), np.array([0, 1]))}, "task reviews, train, row 2"),
        ({"train": Split(("a", "b"), None, np.array([0, 1]), ("d", HALF))}, "task reviews, train, row 2"),
    ],
)
def test_half_a_surrogate_pair_is_refused_by_row(changes: dict[str, Any], place: str) -> None:
    with pytest.raises(FedmaskError) as error:
        make(**changes)
    assert str(error.value) == (
        f"{place}: a text has half of a surrogate pair, '\\ud83d', at character 5; cut text between characters, or "
        "replace what cannot be encoded"
    )
    str(error.value).encode()


@settings(deadline=None)
@given(st.text())
def test_odd_characters_of_a_text_stay(text: str) -> None:
    assert make(train=[*ROWS, (f"\0\u2028{text}", "positive")]).train.text_a[-1] == f"\0\u2028{text}"


def test_given_labels_keep_their_order_and_may_be_more_than_train_has() -> None:
    task = make(labels=["positive", "neutral", "negative"])
    assert task.labels == ("positive", "neutral", "negative")
    assert task.train.labels.tolist() == [0, 2, 0]
    assert task.num_outputs == 3


def test_whole_numbers_are_classes_in_numerical_order() -> None:
    rows = [("a", 10), ("b", 2), ("c", np.int64(10))]
    task = make(train=rows, validation=rows, test=rows)
    assert task.labels == ("2", "10")
    assert task.train.labels.tolist() == [1, 0, 1]


def test_floats_everywhere_are_a_regression() -> None:
    task = make(train=REGRESSION, validation=REGRESSION, test=[("a", "b", 3)])
    assert task.labels is None
    assert (task.metric, task.num_outputs, (task.train.text_b is not None)) == ("spearman", 1, True)
    assert task.train.labels.tolist() == [0.5, 5.0]
    assert task.test.labels.dtype == np.float64


def test_under_f1_equivalent_is_the_last_class_and_so_the_positive_one() -> None:
    task = make(train=PAIRS, validation=PAIRS, test=PAIRS, metric="f1")
    assert task.labels == ("not_equivalent", "equivalent")
    assert task.train.labels.tolist() == [1, 0]
    assert make(train=PAIRS, validation=PAIRS, test=PAIRS).labels == ("equivalent", "not_equivalent")


@pytest.mark.parametrize(
    "rows",
    [
        [("a", 0), ("b", 1), ("c", -100)],
        [("a", "up"), ("b", "down"), ("c", "-100")],
        [("a", 0.5), ("b", 1.5), ("c", -100.0)],
        Split(("a", "b", "c"), None, np.array([0.5, 1.5, -100.0])),
    ],
)
def test_rows_with_the_index_that_is_ignored_are_refused(rows: Any) -> None:
    with pytest.raises(
        FedmaskError, match=r"^task reviews, train, row 3: the label -100(\.0)? of this row stands for no"
    ):
        make(train=rows, validation=rows, test=rows)


def test_classes_that_nobody_named_are_told_and_those_that_are_named_are_not() -> None:
    rows = [("a", "down"), ("b", "N/A")]
    task = make(train=rows, validation=rows, test=rows, metric="f1")
    assert [note.partition(" ")[0] for note in task.notes] == ["1", "f1"]
    assert task.with_classes(["N/A", "down"]).notes == ()
    assert make(train=rows, validation=rows, test=rows, metric="f1", labels=["N/A", "down"]).notes == ()


def test_rows_may_come_from_a_generator() -> None:
    assert len(make(train=(row for row in ROWS)).train) == 3


def test_a_ready_split_is_kept() -> None:
    split = Split(("x", "y"), None, np.array([1, 0]), domains=("d", "e"))
    task = make(train=split, validation=split, test=split)
    assert task.train is split
    assert task.labels == ("0", "1")
    assert make(train=split, validation=split, test=split, labels=["no", "yes"]).labels == ("no", "yes")


def test_take_keeps_rows_together() -> None:
    split = Split(("a", "b", "c"), ("d", "e", "f"), np.array([0, 1, 2]), ("x", "y", "z"))
    taken = split.take(np.array([2, 0, 2]))
    assert taken.text_a == ("c", "a", "c")
    assert taken.text_b == ("f", "d", "f")
    assert taken.labels.tolist() == [2, 0, 2]
    assert taken.domains == ("z", "x", "z")
    assert len(taken) == 3
    assert len(split.take([])) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": []}, "task reviews, train: there are no rows; give at least one"),
        (
            {"test": [*ROWS, ("odd", "neutral")]},
            "task reviews, test, row 4: label 'neutral' is not a class of train; the classes are negative, positive",
        ),
        ({"train": [*ROWS, PAIRS[0]]}, "task reviews, train, row 4: has 3 fields, but the first row has 2"),
        ({"validation": PAIRS}, "task reviews, validation: rows are pairs, unlike those of train"),
        (
            {"train": ["text"]},
            "task reviews, train, row 1: a row is (text, label) or (text_a, text_b, label), not 'text'",
        ),
        ({"train": [*ROWS, (None, "positive")]}, "task reviews, train, row 4: a text must be a str, not None"),
        (
            {"train": [("a", "")]},
            "task reviews, train, row 1: a label must be a class name or a number, not ''",
        ),
        (
            {"train": [("a", "b"), ("a", 0.5)]},
            "task reviews, train, row 2: label 0.5 is a float among class names",
        ),
        (
            {"train": [("a", 0.5)], "validation": [("a", 0.5)], "test": [("a", 0.5), ("a", float("nan"))]},
            "task reviews, test, row 2: label nan is not a number, and this task is a regression",
        ),
        (
            {"train": [("a", 0.5)], "validation": [("a", "high")]},
            "task reviews, validation, row 1: label 'high' is not a number, and this task is a regression",
        ),
        (
            {"train": ROWS[:1]},
            "task reviews: needs at least two distinct classes, and has positive",
        ),
        (
            {"metric": "recall"},
            "task reviews: unknown metric 'recall'; choose one of accuracy, matthews, f1, spearman",
        ),
        (
            {"test": [("a", "Positive")]},
            "task reviews, test, row 1: label 'Positive' is not a class of train: 'Positive' and 'positive' differ in "
            "case only; write them alike",
        ),
        (
            {"test": [("a", "p\u043esitive")]},
            "task reviews, test, row 1: label 'p\u043esitive' is not a class of train: 'p\\u043esitive' and 'positive' "
            "differ in spelling only; write them alike",
        ),
        ({"test": [("a", " \0")]}, "task reviews, test, row 1: a label must be a class name or a number, not ' \\x00'"),
        (
            {"test": [("a", "\ud83d")]},
            "task reviews, test, row 1: a label must be a class name or a number, not '\\ud83d'",
        ),
        ({"labels": ["a", ""]}, "task reviews, labels: a label must be a class name or a number, not ''"),
        ({"labels": ["a", "a "]}, "task reviews: needs at least two distinct classes, and has a, a"),
        (
            {"train": [("a", 0.0), ("b", 5.0)], "validation": [("a", 0.5)], "test": [("a", -1.0), ("b", -1.0)]},
            "task reviews, test: every label is -1, and those of train run from 0 to 5: these are hidden; give a split "
            "that has its labels",
        ),
        (
            {"train": [("a", -1.0), ("b", -1.0)], "validation": [("a", -1.0)], "test": [("a", 2.0)]},
            "task reviews, train: every label is -1; a regression has nothing to learn from it",
        ),
        (
            {"train": [("a", 2**70)]},
            "task reviews, train, row 1: a label must be a whole number below 2^63, or a class name",
        ),
        ({"train": Split((1, 2), None, np.array([0, 1]))}, "task reviews, train, row 1: a text must be a str, not 1"),
        ({"name": "a" * 201}, f"task name '{'a' * 56}...: has 201 characters, at most 200 will do"),
        ({"metric": "spearman"}, "task reviews: metric spearman does not fit a classification"),
        ({"train": [("a", 0.5)], "metric": "accuracy"}, "task reviews: metric accuracy does not fit a regression"),
        (
            {"labels": ["positive", "neutral", "negative"], "metric": "f1"},
            "task reviews: metric f1 is for two classes, and this task has 3",
        ),
        (
            {"train": Split(("a", "b"), None, np.array([0, 2])), "labels": ["x", "y"]},
            "task reviews, train, row 2: label index 2 is not a class of train; there are 2, from 0",
        ),
        ({"test": Split(("a",), None, np.array([0.5]))}, "task reviews, test: has float64 labels, unlike train"),
    ],
)
def test_bad_rows_are_told_with_their_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FedmaskError) as error:
        make(**changes)
    assert str(error.value) == message


@pytest.mark.parametrize("name", ["", "two words", "../up", "/root", "a//b", "a/", ".hidden", "naïve", "a\n", 3])
def test_a_name_must_be_plain(name: Any) -> None:
    with pytest.raises(FedmaskError, match=r"use letters, digits and _ \. - /"):
        make(name=name)


@pytest.mark.parametrize("name", ["sst2", "glue/sst2", "org/some-set/v1.0", "_x", "3"])
def test_plain_names_pass(name: str) -> None:
    assert make(name=name).name == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("a", "b"), None, np.array([0])), "a split has 1 labels but 2 entries in text_a"),
        ((("a",), ("b", "c"), np.array([0])), "a split has 1 labels but 2 entries in text_b"),
        ((("a",), None, np.array([0]), ()), "a split has 1 labels but 0 entries in domains"),
        ((("a",), None, np.array([[0]])), r"must be a flat array of numbers, not int64\(1, 1\)"),
        ((("a",), None, np.array(["x"])), "must be a flat array of numbers"),
    ],
)
def test_a_split_must_be_rectangular(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(FedmaskError, match=message):
        Split(*arguments)
