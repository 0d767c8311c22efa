"""Tables of a task's splits -> `Task`: what all sources that have rows in columns share.

In: by split a `Table`, columns by name and where each row stands; what a person says of columns and classes. Out: a
Task. Columns are found by the names that were given, else by usual ones. Labels that are hidden (no label column, none
in any row, the same mark in every row) make a split one without labels: validation then becomes the test split, and
what is missing is cut from train, seeded. All of that is told in the task's notes.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from fedmask.errors import FedmaskError
from fedmask.randomness import seed_for
from fedmask.shown import in_line
from fedmask.tasks import Reading
from fedmask.tasks import labels as names_of
from fedmask.tasks.checks import check_label, check_text, hidden_target, ignored_label
from fedmask.tasks.metrics import METRIC_BY_NAME
from fedmask.tasks.notes import counted, notes_on_found
from fedmask.tasks.task import (
    SPLIT_NAMES,
    Split,
    Task,
    class_indices,
    class_names,
    positive_last,
    regression_targets,
)

USUAL_TEXTS: tuple[tuple[str, ...], ...] = (
    ("text_a", "text_b"),
    ("text_a",),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("sentence",),
    ("text",),
    ("question",),
    ("content",),
)
"""Text columns of every source, first this library's own; the first entry that a table has in full is taken."""

USUAL_LABEL = "label"

USUAL_SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
"""By split the names that it may have in a source; the first that is there is taken."""


_DECIMAL_COMMA = re.compile(r"[-+]?[0-9]*,[0-9]+")


@dataclass(frozen=True)
class Table:
    """A split as a source finds it: columns of equal length."""

    place: str
    """A file, or a split of a task."""
    names: Sequence[str]
    """Of the columns as they stand there: one may stand twice."""
    values: Callable[[str], Sequence[Any]]
    """The name of a column -> its values, of all rows."""
    num_rows: int
    where: Callable[[int], str]
    """Row (from 0) -> where it stands."""
    there: str = "the header has"
    """Begins the list of its columns."""
    what: str = "column"
    """What a name names."""
    classes: Sequence[str] | None = None
    """Class names by index, where the label column says them."""

    @classmethod
    def of_rows(
        cls, place: str, names: Sequence[str], rows: Sequence[Sequence[Any]], where: Callable[[int], str]
    ) -> "Table":
        """rows: each as wide as `names`, blanks around which do not count."""
        names = [name.strip() for name in names]
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
        by_name = dict(zip(names, columns, strict=True))
        return cls(place, names, by_name.__getitem__, len(rows), where)

    def check(self, name: str, key: str) -> None:
        """key: by which a column can be named. Raises FedmaskError where it is not there, or is there twice."""
        if name not in self.names:
            there = names_of.listed([entry for entry in self.names if entry])
            raise FedmaskError(f"{self.place}: no column {name!r}; {self.there} {there}; name one with {key}=")
        if (number := Counter(self.names)[name]) > 1:
            raise FedmaskError(
                f"{self.place}: the column {name!r} stands there {'twice' if number == 2 else f'{number} times'}; "
                "leave one, or give them names of their own"
            )


@dataclass(frozen=True)
class Form:
    """How a source's tables are read where nobody says it."""

    domain: str | None = "domain"
    """The column of domains, which may lack; None: the source has none."""
    has_types: bool = False
    """Whether a label's value says whether it is a number; in files without types "0.5" is one."""
    leaves_out: bool = False
    """Whether a row without a label, among others with one, is left out; else it is a fault."""


@dataclass(frozen=True)
class _Rows:
    """Rows of a table on their way: None in the place of a label that is not there."""

    table: Table
    rows: np.ndarray
    """int64 (n,): which of the table's."""
    labels: Sequence[Any]

    def where(self, row: int) -> str:
        return self.table.where(int(self.rows[row]))

    def take(self, chosen: np.ndarray) -> "_Rows":
        """chosen: int64 (m,)."""
        return _Rows(self.table, self.rows[chosen], [self.labels[row] for row in chosen])


def usual_splits(found: Collection[str]) -> dict[str, str]:
    """By split, the name that it has among these; without those that are not there."""
    first = {split: next((name for name in names if name in found), None) for split, names in USUAL_SPLITS.items()}
    return {split: name for split, name in first.items() if name is not None}


def task_of(name: str, tables: Mapping[str, Table], reading: Reading, form: Form, unread: Sequence[str] = ()) -> Task:
    """The task of these splits; train has to be there. unread: what lies beside them and is not read.

    Raises FedmaskError that names the place at fault: a missing column, a bad text or label, too few rows.
    """
    texts = _text_columns(tables["train"], reading)
    label = reading.label or USUAL_LABEL
    if label in texts:
        raise FedmaskError(f"{tables['train'].place}: the column {label!r} cannot be both text and label")
    for split, table in tables.items():
        _check_columns(table, texts, label, form, is_train=split == "train")
    notes = [f"not read, for no split has such a name: {names_of.listed(unread)}"] if unread else list[str]()
    rows = {split: _rows(table, label) for split, table in tables.items()}
    ignores = names_of.ignores(rows["train"].labels)
    train = _with_labels(rows["train"], "train", ignores, reading, form, notes)
    metric = METRIC_BY_NAME.get(name.rpartition("/")[2])
    classes = _classes(name, train, reading, metric, form, notes)
    train_targets = _targets(train, classes, reading)
    splits, missing = {"train": _split(train, texts, train_targets, form)}, dict[str, str]()
    if classes is not None and reading.classes is None:
        notes += notes_on_found(splits["train"], classes, metric or "accuracy")
    for split in SPLIT_NAMES[1:]:
        why = _hidden(rows[split], label, classes, train_targets) if split in rows else "there is none"
        if why is not None:
            missing[split] = why
        else:
            found = _with_labels(rows[split], split, ignores, reading, form, notes)
            splits[split] = _split(found, texts, _targets(found, classes, reading), form)
    complete = _complete(name, splits, missing, notes)
    return Task(name, *complete, labels=classes, metric=metric, notes=notes)


# ----------------------------------------------------------------------------------------------------------------------
# Columns
# ----------------------------------------------------------------------------------------------------------------------


def _text_columns(train: Table, reading: Reading) -> tuple[str, ...]:
    """The names of the text column, or of both of a pair."""
    if reading.text is not None:
        given = (reading.text,) if reading.text_b is None else (reading.text, reading.text_b)
        if len(set(given)) < len(given):
            raise FedmaskError(f"data.text_b={reading.text_b}: the same column as data.text; leave it out")
        return given
    if reading.text_b is not None:
        raise FedmaskError(f"data.text_b={reading.text_b}: the second text of a pair; name the first with data.text=")
    for usual in USUAL_TEXTS:
        if set(usual) <= set(train.names):
            return usual
    known = ", ".join("+".join(usual) for usual in USUAL_TEXTS)
    raise FedmaskError(
        f"{train.place}: no text column among {names_of.listed(train.names)}; known are {known}; name another with "
        "data.text="
    )


def _check_columns(table: Table, texts: Sequence[str], label: str, form: Form, is_train: bool) -> None:
    """Raises FedmaskError for a column that is read and lacks, or is there twice; labels may lack but in train."""
    if label not in table.names and not is_train:
        return
    for name, key in zip(texts, ("data.text", "data.text_b"), strict=False):
        table.check(name, key)
    table.check(label, "data.label")
    if form.domain is not None and form.domain in table.names:
        table.check(form.domain, "")


def _rows(table: Table, label: str) -> _Rows:
    """All rows; without labels where there is no such column."""
    values = table.values(label) if label in table.names else [None] * table.num_rows
    return _Rows(table, np.arange(table.num_rows), _label_values(values))


def _label_values(values: Sequence[Any]) -> list[Any]:
    """Names cleaned; None for what is no label: nothing, an empty name, NaN."""
    texts = {value: names_of.clean(value) or None for value in values if isinstance(value, str)}
    return [
        texts[value] if isinstance(value, str) else None if isinstance(value, float) and value != value else value
        for value in values
    ]


def _with_labels(found: _Rows, split: str, ignores: bool, reading: Reading, form: Form, notes: list[str]) -> _Rows:
    """The rows that have a label. Raises FedmaskError for one that has none, in a source that leaves none out.

    ignores: whether the mark names_of.IGNORED is none; as a class that was named it is one.
    """
    if not ignores or str(int(names_of.IGNORED)) in (reading.classes or ()):
        ignored = list[int]()
    else:
        ignored = [row for row, label in enumerate(found.labels) if names_of.is_ignored(label)]
    empty = [row for row, label in enumerate(found.labels) if label is None]
    labelled = np.setdiff1d(np.arange(len(found.labels)), np.array([*ignored, *empty], np.int64))
    if not len(labelled):
        raise FedmaskError(f"{found.table.place}: no row has a label; give at least one")
    if empty and not form.leaves_out:
        raise FedmaskError(f"{found.where(empty[0])}: the label is empty")
    if ignored and not form.leaves_out:
        raise ignored_label(found.labels[ignored[0]], found.where(ignored[0]), len(ignored))
    if empty:
        notes.append(f"{counted(len(empty), 'row')} of {split} without a label, left out")
    if ignored:
        mark = found.labels[ignored[0]]
        notes.append(
            f"{counted(len(ignored), 'row')} of {split} with the label {mark}, which stands for none, left out"
        )
    kept = found.take(labelled)
    for row, label in enumerate(kept.labels):
        check_label(label, kept.where(row))
    return kept


def _split(found: _Rows, texts: tuple[str, ...], targets: np.ndarray, form: Form) -> Split:
    columns = [_texts(found, name) for name in texts]
    domains = None
    if form.domain is not None and form.domain in found.table.names:
        values = found.table.values(form.domain)
        domains = tuple("" if values[row] is None else str(values[row]) for row in found.rows)
    return Split(columns[0], columns[1] if len(columns) == 2 else None, targets, domains)


def _texts(found: _Rows, name: str) -> tuple[str, ...]:
    values = found.table.values(name)
    for row in found.rows:
        check_text(values[row], found.table.where(int(row)), f"{found.table.what} {name!r}")
    return tuple(values[row] for row in found.rows)


# ----------------------------------------------------------------------------------------------------------------------
# Labels
# ----------------------------------------------------------------------------------------------------------------------


def _classes(
    name: str, train: _Rows, reading: Reading, metric: str | None, form: Form, notes: list[str]
) -> tuple[str, ...] | None:
    """Class names by index: those that were given, those that the column says, those of train; None: a regression."""
    if reading.classes is not None:
        if metric == "spearman":
            raise FedmaskError(f"data.classes names classes, and task {name} is a regression; leave it out")
        return tuple(names_of.cleaned(reading.classes))
    if train.table.classes is not None:
        return positive_last(names_of.cleaned(train.table.classes), metric)
    if metric == "spearman":
        return None
    if metric is None and (_are_numbers(train.labels) if form.has_types else _read_as_numbers(train.labels)):
        if all(float(label).is_integer() for label in train.labels if names_of.number(label) is not None):
            with_point = next(label for label in train.labels if not isinstance(label, Integral) and "." in str(label))
            notes.append(
                f"a regression, for labels such as {with_point} have a decimal point; where they are classes, name "
                "them with data.classes="
            )
        return None
    notes += _notes_on_numbers(train.labels, form)
    classes = class_names(train.labels, metric, train.where)
    if len(classes) < 2:
        raise FedmaskError(
            f"task {name}: needs at least two distinct classes, and has {names_of.listed(classes)}; where other "
            "clients have more, name all of them with data.classes="
        )
    return classes


def _are_numbers(labels: Sequence[Any]) -> bool:
    """Whether every label is a number and one is no whole number by its type."""
    numbers = all(isinstance(label, Real) and not isinstance(label, bool) for label in labels)
    return numbers and not all(isinstance(label, Integral) for label in labels)


def _read_as_numbers(labels: Sequence[str]) -> bool:
    """Whether every label reads as a number and one has a decimal point ("0" and "1" alone are class names). Words that
    stand for no label make no other task of it: where it is a regression, they are told by their rows."""
    if any(names_of.number(label) is None and label.casefold() not in names_of.NO_WORD for label in labels):
        return False
    return any(_has_point(label) for label in labels)


def _has_point(label: str) -> bool:
    return "." in label and names_of.number(label) is not None


def _notes_on_numbers(labels: Sequence[Any], form: Form) -> Iterator[str]:
    """On classes that may have been meant as numbers."""
    texts = [label for label in labels if isinstance(label, str)]
    with_comma = next((label for label in texts if _DECIMAL_COMMA.fullmatch(label)), None)
    plain = next((label for label in texts if _has_point(label)), None)
    other = next((label for label in texts if names_of.number(label) is None), None)
    if with_comma is not None and all(names_of.number(label.replace(",", ".")) is not None for label in texts):
        yield (
            f"labels such as {with_comma} have a decimal comma, and count as classes; where they are numbers, write "
            f"{with_comma.replace(',', '.')}"
        )
    elif plain is not None and other is not None and not form.has_types:
        yield (
            f"labels such as {plain} are numbers and others such as {in_line(other)} are none: all count as "
            "classes; for a regression write each as a decimal number"
        )


def _targets(found: _Rows, classes: tuple[str, ...] | None, reading: Reading) -> np.ndarray:
    """(n,) class indices, or the numbers of a regression."""
    if classes is None:
        return regression_targets(found.labels, found.where)
    if reading.classes is None:
        return class_indices([str(label) for label in found.labels], classes, found.where)
    names = [_class_meant(label, classes) for label in found.labels]
    return class_indices(names, classes, found.where, "data.classes")


def _class_meant(label: Any, classes: tuple[str, ...]) -> str:
    """The class that a label names; 1.0 names class 1, as a table writes it that had gaps."""
    name = str(label)
    if name not in classes and name.endswith(".0") and name[:-2] in classes:
        return name[:-2]
    return name


def _hidden(found: _Rows, label: str, classes: tuple[str, ...] | None, train_targets: np.ndarray) -> str | None:
    """Why a split has no labels; None where it has."""
    if not found.labels:
        return "it has no rows"
    if label not in found.table.names:
        return f"it has no column {label!r}"
    marks = {str(value) for value in found.labels}
    mark = min(marks)
    if len(marks) > 1 or mark in (classes or ()):
        return None
    if found.labels[0] is None:
        return "its labels are hidden: there are none"
    is_number = classes is None and mark.casefold() not in names_of.NO_LABEL - names_of.NO_NUMBER
    if is_number:
        is_hidden = hidden_target(regression_targets(found.labels, found.where), train_targets) is not None
    else:
        is_hidden = mark.casefold() in names_of.NO_LABEL
    return f"its labels are hidden: every one is {mark}" if is_hidden else None


# ----------------------------------------------------------------------------------------------------------------------
# Splits
# ----------------------------------------------------------------------------------------------------------------------


def _complete(
    name: str, splits: Mapping[str, Split], missing: Mapping[str, str], notes: list[str]
) -> tuple[Split, Split, Split]:
    """Train, validation and test, with what is missing made of the others."""
    train, validation, test = (splits.get(split) for split in SPLIT_NAMES)
    assert train is not None
    if len(train) <= (num_cut := len(missing)):
        what = "neither a test nor a validation split" if num_cut == 2 else "no validation split beside the test split"
        raise FedmaskError(
            f"task {name}: {what} with labels, and train has {counted(len(train), 'row')}: too few to cut some off"
        )
    why = missing.get("validation")
    if test is None and validation is not None:
        notes.append(f"no test split ({missing['test']}): the validation split takes its place")
        validation, test, why = None, validation, "the set's own is the test split now"
    if test is None:
        train, test = _cut(train, name, "test", missing["test"], notes)
    if validation is None:
        assert why is not None
        train, validation = _cut(train, name, "validation", why, notes)
    return train, validation, test


def _cut(train: Split, name: str, split: str, why: str, notes: list[str]) -> tuple[Split, Split]:
    """(the rest, a tenth) of train, each in its old order; the same for every run, whatever its seed."""
    count = -(-len(train) // 10)
    chosen = np.random.default_rng(seed_for(0, split, name)).choice(len(train), size=count, replace=False)
    notes.append(f"{split} cut from train: {counted(count, 'row')} ({why})")
    return train.take(np.setdiff1d(np.arange(len(train)), chosen)), train.take(np.sort(chosen))
