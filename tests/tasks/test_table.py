"""What holds for every source of rows in columns: columns by name, classes given, hidden labels, missing splits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmask.errors import FedmaskError
from fedmask.tasks import AS_FOUND, Reading, Task, load_tasks
from fedmask.tasks.table import Form, Table, task_of

from .conftest import value_or_line, write_splits

Written = Callable[..., str]


def rows(count: int, first: int = 0, **columns: Any) -> list[dict[str, Any]]:
    """count rows of the columns text_a and label; those of other columns are added."""
    return [
        {"text_a": f"text {row}", "label": ("down", "up")[row % 2], **columns} for row in range(first, first + count)
    ]


def renamed(given: list[dict[str, Any]], **names: str) -> list[dict[str, Any]]:
    return [{names.get(key, key): value for key, value in row.items()} for row in given]


def load(source: str, root: Path, **reading: Any) -> Task:
    (task,) = load_tasks(source, str(root), ["t"], Reading(**reading))
    return task


def test_columns_are_found_by_their_usual_names(written: Written, tmp_path: Path) -> None:
    task = load(written(train=rows(4), validation=rows(2), test=rows(2)), tmp_path)
    assert (task.labels, task.train.text_a, task.train.text_b, task.notes) == (
        ("down", "up"),
        ("text 0", "text 1", "text 2", "text 3"),
        None,
        (),
    )


def test_columns_may_be_named(written: Written, tmp_path: Path) -> None:
    named = renamed(rows(4, text_b="second", more="m"), text_a="review", text_b="reply", label="sentiment")
    source = written(train=named, validation=named, test=named)
    task = load(source, tmp_path, text="review", text_b="reply", label="sentiment")
    assert task.train.text_b == ("second",) * 4
    assert task.train.labels.tolist() == [0, 1, 0, 1]
    assert load(source, tmp_path, text="reply", label="sentiment").train.text_b is None
    assert load(source, tmp_path, text="review", label="more", classes=("m", "n")).train.labels.tolist() == [0] * 4


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        ({}, "no column 'label'|no column 'text_a'|no text column among"),
        ({"text": "body", "label": "sentiment"}, "no column 'body'; .* review, sentiment; name one with data.text="),
        ({"text": "review"}, "no column 'label'; .* review, sentiment; name one with data.label="),
        ({"text": "review", "label": "review"}, "the column 'review' cannot be both text and label"),
        (
            {"text": "review", "text_b": "review", "label": "sentiment"},
            "data.text_b=review: the same column as data.text",
        ),
        ({"text_b": "review", "label": "sentiment"}, "data.text_b=review: .*; name the first with data.text="),
    ],
)
def test_a_column_that_is_not_there(written: Written, tmp_path: Path, reading: dict[str, str], message: str) -> None:
    named = renamed(rows(4), text_a="review", label="sentiment")
    source = written(train=named, validation=named, test=named)
    with pytest.raises(FedmaskError, match=message):
        load(source, tmp_path, **reading)


def test_a_column_that_lacks_in_a_later_split(written: Written, tmp_path: Path) -> None:
    with pytest.raises(FedmaskError, match=r"(test|validation).*no column 'text_a'; .* body, label"):
        load(written(train=rows(4), validation=rows(2), test=renamed(rows(2), text_a="body")), tmp_path)


def test_classes_may_be_given_and_a_client_may_lack_some(written: Written, tmp_path: Path) -> None:
    source = written(train=rows(4), validation=rows(2), test=rows(2))
    task = load(source, tmp_path, classes=("up", "aside", "down "))
    assert (task.labels, task.train.labels.tolist()) == (("up", "aside", "down"), [2, 0, 2, 0])
    assert task.notes == ("no training row has the class aside",)
    with pytest.raises(
        FedmaskError, match=r"(train\.\w+:[23]|train, row 2): label 'up' is not a class of data\.classes; the"
    ):
        load(source, tmp_path, classes=("down", "aside"))


NO_TEST = "no test split ({}): the validation split takes its place"
NO_VALIDATION = "validation cut from train: 2 rows (the set's own is the test split now)"


@pytest.mark.parametrize("mark", ["-1", "?", "hidden"])
def test_hidden_classes_of_a_test_split(written: Written, tmp_path: Path, mark: str) -> None:
    hidden = [row | {"label": mark} for row in rows(3)]
    task = load(written(train=rows(20), validation=rows(6, 30), test=hidden), tmp_path)
    assert task.notes == (NO_TEST.format(f"its labels are hidden: every one is {mark}"), NO_VALIDATION)
    assert task.test.text_a == tuple(f"text {row}" for row in range(30, 36))
    assert (len(task.train), len(task.validation)) == (18, 2)


@pytest.mark.parametrize("mark", [-1.0, 99.0])
@pytest.mark.parametrize("size", [2, 5])
def test_hidden_targets_of_a_test_split(written: Written, tmp_path: Path, mark: float, size: int) -> None:
    rated = [row | {"label": 0.5 + index % 5} for index, row in enumerate(rows(20))]
    hidden = [row | {"label": mark} for row in rows(size)]
    task = load(written(train=rated, validation=rated[:6], test=hidden), tmp_path)
    assert task.notes == (NO_TEST.format(f"its labels are hidden: every one is {mark}"), NO_VALIDATION)
    assert (task.metric, len(task.test)) == ("spearman", 6)


def test_labels_that_are_not_there(written: Written, tmp_path: Path) -> None:
    unlabelled = [{"text_a": "a"}, {"text_a": "b"}]
    task = load(written(train=rows(20), validation=rows(6), test=unlabelled), tmp_path)
    assert task.notes == (NO_TEST.format("it has no column 'label'"), NO_VALIDATION)


@pytest.mark.parametrize("empty", ["", " "])
def test_labels_that_are_empty(written: Written, tmp_path: Path, empty: str) -> None:
    task = load(written(train=rows(20), validation=rows(6), test=[row | {"label": empty} for row in rows(3)]), tmp_path)
    assert task.notes == (NO_TEST.format("its labels are hidden: there are none"), NO_VALIDATION)


def test_hidden_labels_of_both_splits_and_of_train(written: Written, tmp_path: Path) -> None:
    hidden = [row | {"label": "?"} for row in rows(3)]
    task = load(written(train=rows(20), validation=hidden, test=hidden), tmp_path)
    assert task.notes == (
        "test cut from train: 2 rows (its labels are hidden: every one is ?)",
        "validation cut from train: 2 rows (its labels are hidden: every one is ?)",
    )
    with pytest.raises(FedmaskError, match="task t: needs at least two distinct classes, and has \\?"):
        load(written(train=hidden, validation=rows(6), test=rows(6)), tmp_path)


def test_one_split_is_cut_in_three(written: Written, tmp_path: Path) -> None:
    source = written(train=rows(30))
    task = load(source, tmp_path)
    assert task.notes == (
        "test cut from train: 3 rows (there is none)",
        "validation cut from train: 3 rows (there is none)",
    )
    parts = [task.train.text_a, task.validation.text_a, task.test.text_a]
    assert sorted(sum(parts, ())) == sorted(row["text_a"] for row in rows(30))
    again = load(source, tmp_path)
    assert [again.train.text_a, again.validation.text_a, again.test.text_a] == parts


@pytest.mark.parametrize("name", ["valid", "val", "dev"])
def test_validation_has_other_usual_names(written: Written, tmp_path: Path, name: str) -> None:
    source = written(train=rows(4), test=rows(2), **{name: rows(3, 10)})
    task = load(source, tmp_path)
    assert (task.validation.text_a, task.notes) == (("text 10", "text 11", "text 12"), ())


def test_splits_that_are_not_read_are_named(written: Written, tmp_path: Path) -> None:
    more = {"validation_matched": rows(2), "dev": rows(2), "extra": rows(2)}
    source = written(train=rows(20), validation=rows(2, 10), test=rows(2), **more)
    task = load(source, tmp_path)
    names = [name if source == "hub" else f"{name}.{source}" for name in more]
    named = ", ".join(names if source == "hub" else sorted(names))
    assert task.notes == (f"not read, for no split has such a name: {named}",)
    assert task.validation.text_a == ("text 10", "text 11")


def test_a_split_of_another_kind_of_file_is_named_where_it_lacks(tmp_path: Path) -> None:
    write_splits("csv", tmp_path, "t", {"train": rows(20), "test": rows(2)})
    write_splits("tsv", tmp_path, "t", {"train": rows(20), "dev": rows(2), "test": rows(2)})
    (tmp_path / "t" / "README.md").touch()
    assert load("csv", tmp_path).notes[0] == "not read, for no split has such a name: dev.tsv"


def test_a_class_of_one_row_may_be_cut_off(written: Written, tmp_path: Path) -> None:
    rare = [{"text_a": f"t{row}", "label": f"c{row:02}"} for row in range(12)]
    task = load(written(train=rare), tmp_path)
    assert task.labels == tuple(f"c{row:02}" for row in range(12))
    assert any(note.startswith("no training row has the classes ") for note in task.notes)


def test_a_set_that_is_too_small_to_be_cut(written: Written, tmp_path: Path) -> None:
    with pytest.raises(
        FedmaskError, match=r"^task t: neither a test nor a validation split with labels, and train has 2 rows"
    ):
        load(written(train=rows(2)), tmp_path)
    assert len(load(written(train=rows(3)), tmp_path).train) == 1


def test_empty_texts_are_told(written: Written, tmp_path: Path) -> None:
    empty = [*rows(4), {"text_a": "", "label": "up"}, {"text_a": " ", "label": "up"}]
    task = load(written(train=empty, validation=rows(2), test=rows(2)), tmp_path)
    assert (len(task.train), len(task.notes)) == (6, 1)
    assert task.notes[0].startswith("2 empty texts (2 of train), kept")


def test_spelling_makes_no_class(written: Written, tmp_path: Path) -> None:
    spelled = [*rows(4), {"text_a": "a", "label": "up "}, {"text_a": "b", "label": "caf\u00e9"}]
    other = [{"text_a": "a", "label": "cafe\u0301"}]
    task = load(written(train=spelled, validation=other, test=other), tmp_path)
    assert task.labels == ("caf\u00e9", "down", "up")
    with pytest.raises(
        FedmaskError, match="label 'Up' is not a class of train: 'Up' and 'up' differ in case only; write"
    ):
        load(written(train=spelled, validation=[{"text_a": "a", "label": "Up"}], test=other), tmp_path)


def test_the_metric_goes_by_the_last_part_of_the_name() -> None:
    given = Table.of_rows("p", ["text", "label"], [("a", "1"), ("b", "2.5")] * 3, str)
    tables = dict.fromkeys(("train", "validation", "test"), given)
    assert task_of("glue/stsb", tables, AS_FOUND, Form()).metric == "spearman"
    with pytest.raises(FedmaskError, match=r"^data\.classes names classes, and task glue/stsb is a regression"):
        task_of("glue/stsb", tables, Reading(classes=("1", "2.5")), Form())
    assert task_of("rated", tables, Reading(classes=("1", "2.5")), Form()).metric == "accuracy"


def test_whole_numbers_with_a_point_are_a_regression_that_is_told_or_classes_that_are_named() -> None:
    given = Table.of_rows("p", ["text", "label"], [("a", "1.0"), ("b", "0.0")] * 3, str)
    tables = dict.fromkeys(("train", "validation", "test"), given)
    task = task_of("t", tables, AS_FOUND, Form())
    assert (task.metric, task.notes) == (
        "spearman",
        (
            "a regression, for labels such as 1.0 have a decimal point; where they are classes, name them with "
            "data.classes=",
        ),
    )
    assert task_of("t", tables, Reading(classes=("0", "1")), Form()).train.labels.tolist() == [1, 0] * 3


def labelled(*labels: Any) -> list[dict[str, Any]]:
    return [{"text": f"t{row}", "label": label} for row, label in enumerate(labels)]


@pytest.mark.parametrize(
    "others", [[0, 1], ["down", "up"], [0.5, 3.5], [-1, 0, 1]], ids=["numbers", "names", "targets", "with -1"]
)
def test_the_index_that_is_ignored_is_no_label(written: Written, tmp_path: Path, others: list[Any]) -> None:
    mark = str(-100) if isinstance(others[0], str) else type(others[0])(-100)
    source = written(train=labelled(*others * 6, mark, mark), validation=labelled(*others), test=labelled(*others))
    if source == "hub":
        task = load(source, tmp_path)
        assert (len(task.train), task.num_outputs) == (6 * len(others), 1 if others[0] == 0.5 else len(others))
        assert task.notes[0] == f"2 rows of train with the label {mark}, which stands for none, left out"
        return
    with pytest.raises(FedmaskError) as error:
        load(source, tmp_path)
    assert f": the label {mark} of this row and 1 more stands for none, as torch and transformers" in str(error.value)


def test_the_index_that_is_ignored_is_a_label_beside_others_below_zero_and_where_it_is_named(
    written: Written, tmp_path: Path
) -> None:
    split = labelled(-100, -50, 0, 50) * 2
    source = written(train=split, validation=split, test=split)
    assert load(source, tmp_path).labels is not None
    assert load(source, tmp_path, classes=("-100", "-50", "0", "50")).train.labels.tolist() == [0, 1, 2, 3] * 2
    write_splits(source, tmp_path / "n", "t", {name: labelled(-100, 0) * 2 for name in ("train", "validation", "test")})
    assert load(source, tmp_path / "n", classes=("-100", "0")).train.labels.tolist() == [0, 1] * 2


@pytest.mark.parametrize("word", ["?", "NULL", "N/A", "nan", "None", "null", "NaN", "-1"])
def test_a_class_that_often_stands_for_no_label_is_told(written: Written, tmp_path: Path, word: str) -> None:
    split = labelled("down", "up", word, word)
    source = written(train=split, validation=split, test=split)
    assert load(source, tmp_path).notes == (
        f"2 training rows with the label {word}, which often stands for no label: it counts as a class; leave such "
        "rows out, or name all classes with data.classes=",
    )
    assert load(source, tmp_path, classes=("down", "up", word)).notes == ()


def test_minus_one_is_a_class_beside_zero_and_one(written: Written, tmp_path: Path) -> None:
    for number, labels in enumerate([(-1, 0, 1), (-1, 1), (-2, -1, 0, 1, 2)]):
        root, split = tmp_path / str(number), labelled(*labels)
        source = written(train=split, validation=split, test=split)
        write_splits(source, root, "t", dict.fromkeys(("train", "validation", "test"), split))
        assert load(source, root).notes == ()


def test_hidden_rows_make_no_classes_of_a_regression(tmp_path: Path) -> None:
    for source in ("tsv", "csv"):
        write_splits(source, tmp_path, "t", {"train": labelled("0.5", "1.5", "NULL", "3.5")})
        with pytest.raises(FedmaskError, match=r":4: label 'NULL' is not a number, and this task is a regression$"):
            load(source, tmp_path)


@pytest.mark.parametrize(
    ("negative", "positive", "is_told"),
    [
        ("not_equivalent", "equivalent", False),
        ("0", "1", False),
        ("no", "yes", False),
        ("not_duplicate", "duplicate", True),
        ("paraphrase", "unrelated", True),
    ],
)
def test_the_positive_class_is_told_where_its_name_does_not_say_it(
    written: Written, tmp_path: Path, negative: str, positive: str, is_told: bool
) -> None:
    split = labelled(positive, negative)
    source = written(train=split)
    write_splits(source, tmp_path, "mrpc", dict.fromkeys(("train", "validation", "test"), split))
    (task,) = load_tasks(source, str(tmp_path), ["mrpc"])
    assert (task.metric, task.labels) == ("f1", (negative, positive))
    note = (
        f"f1 takes {positive} as the positive class and {negative} as the negative one; where that is wrong, write "
        f"data.classes=[{positive},{negative}], the positive one last"
    )
    assert task.notes == ((note,) if is_told else ())
    (named,) = load_tasks(source, str(tmp_path), ["mrpc"], Reading(classes=(positive, negative)))
    assert (named.labels, named.notes) == ((positive, negative), ())


@pytest.mark.parametrize(
    ("labels", "note"),
    [
        (
            ("0,5", "1,5", "2"),
            "labels such as 0,5 have a decimal comma, and count as classes; where they are numbers, ",
        ),
        (("0.5", "1.5", "1_0.5"), "labels such as 0.5 are numbers and others such as 1_0.5 are none: all count as cl"),
        (("0.5", "1.5", "high"), "labels such as 0.5 are numbers and others such as high are none: all count as cl"),
    ],
)
def test_classes_that_may_be_numbers_are_told(tmp_path: Path, labels: tuple[str, ...], note: str) -> None:
    for source in ("tsv", "csv"):
        write_splits(source, tmp_path, "t", dict.fromkeys(("train", "validation", "test"), labelled(*labels)))
        task = load(source, tmp_path)
        assert len(task.labels or ()) == 3
        (told,) = task.notes
        assert told.startswith(note)
        assert load(source, tmp_path, classes=labels).notes == ()


def test_a_number_has_no_underscores(tmp_path: Path) -> None:
    split = labelled("0.5", "1.5")
    for source in ("tsv", "csv"):
        write_splits(source, tmp_path, "t", {"train": split, "validation": split, "test": labelled("1_0.5", "1.5")})
        with pytest.raises(FedmaskError, match=r":2: label '1_0\.5' is not a number, and this task is a regression"):
            load(source, tmp_path)


def test_letters_that_look_alike_are_told(written: Written, tmp_path: Path) -> None:
    split = labelled("car", "c\u0430r")
    source = written(train=split, validation=split, test=split)
    assert load(source, tmp_path).notes == ("classes 'car' and 'c\\u0430r' differ in spelling only: they count as two",)


CELLS = st.one_of(st.none(), st.text(max_size=4), st.integers(), st.floats(), st.booleans(), st.lists(st.integers()))
NAMES = st.sampled_from(["text", "label", "text_a", "text_b", "domain", "", "x", " label"])


@settings(deadline=None)
@given(st.data(), st.booleans(), st.booleans())
def test_any_table_gives_a_task_or_one_line(data: st.DataObject, has_types: bool, leaves_out: bool) -> None:
    def table(split: str) -> Table:
        names = data.draw(st.lists(NAMES, min_size=1, max_size=4))
        cells = CELLS if has_types else st.text(max_size=4)
        found = data.draw(st.lists(st.tuples(*[cells] * len(names)), max_size=6))
        return Table.of_rows(split, names, found, lambda row: f"{split}:{row}")

    splits = data.draw(st.sets(st.sampled_from(["validation", "test"])))
    reading = Reading(*(data.draw(st.none() | NAMES) for _ in range(3)), data.draw(st.none() | st.just(("a", "b"))))
    form = Form(has_types=has_types, leaves_out=leaves_out)
    tables = {split: table(split) for split in ("train", *splits)}
    task = value_or_line(lambda: task_of("t", tables, reading, form))
    if task is None:
        return
    for split in (task.train, task.validation, task.test):
        assert len(split)
        assert np.isfinite(split.labels).all()
    assert all(len(note.splitlines()) == 1 for note in task.notes)
