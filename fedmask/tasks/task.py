"""A task: texts with labels in three splits, and the metric that scores them.

In: rows `(text, label)` or `(text_a, text_b, label)`, from any source. Out: a `Task` whose labels are numbers, class
indices or regression targets, checked row by row, so that nothing behind it meets a bad text or label again. What a
person should know of the data, and no error, stands in the task's notes.
"""

import difflib
import hashlib
import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from fedmask.errors import FedmaskError
from fedmask.shown import in_line, quoted
from fedmask.tasks import labels as names_of
from fedmask.tasks.checks import check_label, check_text, hidden_target, ignored_label, short
from fedmask.tasks.metrics import METRICS
from fedmask.tasks.notes import notes_on, notes_on_found, unit_of

Rows = Iterable[Sequence[Any]]
"""Rows (text, label) or (text_a, text_b, label); a label is a class name, a whole number, or a float (regression)."""

SPLIT_NAMES = ("train", "validation", "test")

MAX_NAME = 200
"""Characters of a task's name."""

# Task names become keys of summaries and names of files: every part between slashes starts with a letter, digit or _.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")


@dataclass(frozen=True, eq=False)
class Split:
    """n texts (or pairs) with their labels.

    `labels` has shape (n,): int64 class indices, or float64 targets for regression. `domains`, where a source has
    them, says where each row comes from; only the natural partition reads it.
    Raises FedmaskError when the columns differ in length or the labels are not a flat array of numbers.
    """

    text_a: tuple[str, ...]
    text_b: tuple[str, ...] | None
    labels: np.ndarray
    domains: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        if labels.ndim != 1 or labels.dtype.kind not in "iuf":
            raise FedmaskError(f"a split's labels must be a flat array of numbers, not {labels.dtype}{labels.shape}")
        object.__setattr__(self, "labels", labels.astype(np.float64 if labels.dtype.kind == "f" else np.int64))
        for column in ("text_a", "text_b", "domains"):
            values = getattr(self, column)
            if values is None:
                continue
            object.__setattr__(self, column, tuple(values))
            if len(values) != len(labels):
                raise FedmaskError(f"a split has {len(labels)} labels but {len(values)} entries in {column}")

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of texts and labels in their order, 64 hex digits; of domains it knows nothing."""
        sha = hashlib.sha256(self.labels.dtype.kind.encode() + self.labels.tobytes())
        add_texts(sha, self)
        return sha.hexdigest()

    def take(self, indices: Sequence[int] | np.ndarray) -> "Split":
        """The rows at `indices` (m,), in that order."""
        rows = [int(index) for index in indices]

        def pick(column: tuple[str, ...] | None) -> tuple[str, ...] | None:
            return None if column is None else tuple(column[row] for row in rows)

        text_a = tuple(self.text_a[row] for row in rows)
        return Split(text_a, pick(self.text_b), self.labels[rows], pick(self.domains))


def add_texts(sha: "hashlib._Hash", split: Split) -> None:
    """A split's texts go into a digest, so that no other texts give the same bytes."""
    for texts in (split.text_a, split.text_b or ()):
        sha.update(b"%d texts" % len(texts))
        for text in texts:
            encoded = text.encode("utf-8", "surrogatepass")
            sha.update(b"%d\n" % len(encoded))
            sha.update(encoded)


@dataclass(frozen=True, eq=False, init=False)
class Task:
    """One task: three splits, class names and a metric.

    >>> train = [("good", "positive"), ("bad", "negative")]
    >>> task = Task("reviews", train=train, validation=train, test=train)
    >>> task.labels, task.num_outputs, task.train.labels.tolist()
    (('negative', 'positive'), 2, [1, 0])
    """

    name: str
    train: Split
    validation: Split
    test: Split
    labels: tuple[str, ...] | None
    """Class names, by class index; None for regression."""
    metric: str
    """A key of `METRICS`; f1 takes the last label as the positive class."""
    notes: tuple[str, ...]
    """What a person should know of the data before a run, a line each."""

    def __init__(
        self,
        name: str,
        train: Rows | Split,
        validation: Rows | Split,
        test: Rows | Split,
        labels: Sequence[str] | None = None,
        metric: str | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        """Checks every row and turns class names into indices.

        `labels=None`: the sorted names found in train; where every label of train is a float, the task is a
        regression. (Under f1, a class found there and named "equivalent", or negated by the other, comes last: it is
        the positive one.)
        A class name counts without blanks at its ends and in Unicode's composed form.
        A ready `Split` holds indices already: without `labels` its classes are named "0", "1", ...
        `metric=None`: accuracy, or spearman for a regression. `notes`: what a source has to say of the data.
        Raises FedmaskError that names the task, the split and the row (counted from 1).
        """
        check_name(name)
        columns = {
            split: _Columns.of(rows, f"task {name}, {split}")
            for split, rows in zip(SPLIT_NAMES, (train, validation, test), strict=True)
        }
        _check_same_shape(columns, name)
        if labels is None:
            _check_not_ignored(list(columns.values()))
        classes = _classes_of(columns["train"], metric) if labels is None else _classes_given(labels, name)
        metric = metric or ("spearman" if classes is None else "accuracy")
        _check_metric(name, metric, classes)
        splits = {split: column.split(classes) for split, column in columns.items()}
        if classes is None:
            _check_targets(name, splits)
        found = notes_on_found(splits["train"], classes, metric) if labels is None and classes is not None else []
        notes = tuple(dict.fromkeys([*notes, *found, *notes_on(splits, classes)]))
        for field, value in {"name": name, "labels": classes, "metric": metric, "notes": notes, **splits}.items():
            object.__setattr__(self, field, value)

    @property
    def num_outputs(self) -> int:
        """Outputs of the task's head: one a class, or 1 for regression."""
        return 1 if self.labels is None else len(self.labels)

    @cached_property
    def unit(self) -> float:
        """What a client divides its labels by while it trains, a power of ten: 1.0 for classes and for targets of up to
        `notes.LARGEST_PLAIN_TARGET`, above that the largest that no training target is below.

        A head starts near zero and takes small steps: it never comes to a price of 134,500, but to 1.345.
        """
        return unit_of(self.train) if self.labels is None else 1.0

    def with_classes(self, classes: Sequence[str] | None) -> "Task":
        """This task with these classes, in this order; itself for None. The data may lack some of them.

        Raises FedmaskError for a regression and, with its row, for a label that is none of them.
        """
        if classes is None:
            return self
        if self.labels is None:
            raise FedmaskError(f"data.classes names classes, and task {self.name} is a regression; leave it out")
        train, validation, test = (self._split_with(split, classes) for split in SPLIT_NAMES)
        named = notes_on_found(self.train, self.labels, self.metric)  # what is said now
        notes = [note for note in self.notes if note not in named]
        return Task(self.name, train, validation, test, labels=classes, metric=self.metric, notes=notes)

    def _split_with(self, name: str, classes: Sequence[str]) -> Split:
        assert self.labels is not None
        split: Split = getattr(self, name)
        names = [self.labels[index] for index in split.labels]
        classes = [names_of.clean(entry) for entry in classes]
        labels = class_indices(names, classes, lambda row: f"task {self.name}, {name}, row {row + 1}", "data.classes")
        return Split(split.text_a, split.text_b, labels, split.domains)


def check_name(name: str) -> None:
    """Raises FedmaskError unless `name` can stand in a file name and in a summary."""
    if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
        raise FedmaskError(
            f"task name {short(name)}: use letters, digits and _ . - /, each part starting with a letter, a digit or _"
        )
    if len(name) > MAX_NAME:
        raise FedmaskError(f"task name {short(name)}: has {len(name):,} characters, at most {MAX_NAME} will do")


def positive_last(classes: Sequence[str], metric: str | None) -> tuple[str, ...]:
    """The classes as they stand; under f1 the class "equivalent", or the one that another negates, comes last, as the
    positive one."""

    def is_positive(name: str) -> bool:
        return name == "equivalent" or any(names_of.negates(other, name) for other in classes)

    return tuple(sorted(classes, key=lambda name: metric == "f1" and is_positive(name)))


def class_indices(
    names: Sequence[str], classes: Sequence[str], place: Callable[[int], str], source: str = "train"
) -> np.ndarray:
    """Class names -> int64 indices (n,). `place(row)` says where row (from 0) stands, and `source` where the classes
    come from, for the error."""
    index_of = {name: index for index, name in enumerate(classes)}
    for row, name in enumerate(names):
        if name not in index_of:
            raise FedmaskError(f"{place(row)}: {_no_class(name, classes, source)}")
    return np.array([index_of[name] for name in names], dtype=np.int64)


def _no_class(name: str, classes: Sequence[str], source: str) -> str:
    if (near := names_of.like(name, classes)) is not None:
        both, what = names_of.shown_both(name, near), names_of.difference(name, near)
        return f"label {quoted(name)} is not a class of {source}: {both} differ in {what} only; write them alike"
    close = difflib.get_close_matches(name, classes, n=1)
    # Letters of other alphabets may look the same.
    unlike = f", {name!a} is not {close[0]!a}" if close and not f"{name}{close[0]}".isascii() else ""
    known = f"the classes are {names_of.listed(classes)}"
    return f"label {quoted(name)} is not a class of {source}{unlike}; {known}"


def class_names(labels: Sequence[Any], metric: str | None, place: Callable[[int], str]) -> tuple[str, ...]:
    """The classes that training labels name: whole numbers in their order, names sorted.

    Raises FedmaskError with its row for a label that is a float.
    """
    for row, label in enumerate(labels):
        if isinstance(label, Real) and not isinstance(label, Integral):
            raise FedmaskError(f"{place(row)}: label {label!r} is a float among class names")
    if all(isinstance(label, Integral) for label in labels):
        return tuple(str(label) for label in sorted(set(labels)))
    return positive_last(sorted(set(names_of.cleaned([str(label) for label in labels]))), metric)


def regression_targets(values: Sequence[Any] | np.ndarray, place: Callable[[int], str]) -> np.ndarray:
    """Numbers, or texts of numbers -> float64 targets (n,); anything not finite is an error at `place(row)`."""
    targets = np.empty(len(values), dtype=np.float64)
    for row, value in enumerate(values):
        target = names_of.number(value)
        targets[row] = math.nan if target is None else target
        if not math.isfinite(targets[row]):
            raise FedmaskError(f"{place(row)}: label {short(value)} is not a number, and this task is a regression")
    return targets


def unknown_task(name: str, known: Collection[str], where: str, why_none: str = "") -> FedmaskError:
    """The error for a task that is not there: what there is, and the nearest name; why_none: what was looked for."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    there = ", ".join(sorted(known)) or f"none, for {why_none}"
    return FedmaskError(f"unknown task {name!r} in {where}; there are: {there}.{hint}")


def is_the_task(root: Path) -> FedmaskError:
    """The error for a root that is the folder of one task."""
    folder = root.resolve()
    return FedmaskError(
        f"data.root={root}: this is the folder of a task; name the one that it lies in: data.root={folder.parent} "
        f"data.tasks=[{in_line(folder.name)}]"
    )


@dataclass(frozen=True)
class _Columns:
    """A split on its way in: texts checked, labels still as they were given (indices in a ready split)."""

    place: str
    text_a: tuple[str, ...]
    text_b: tuple[str, ...] | None
    labels: Sequence[Any] | np.ndarray
    ready: Split | None

    @classmethod
    def of(cls, rows: Rows | Split, place: str) -> "_Columns":
        rows = rows if isinstance(rows, Split) else list(rows)
        if len(rows) == 0:
            raise FedmaskError(f"{place}: there are no rows; give at least one")
        if isinstance(rows, Split):
            _check_texts(rows, place)
            return cls(place, rows.text_a, rows.text_b, rows.labels, rows)
        for number, row in enumerate(rows, start=1):
            _check_row(row, rows[0], f"{place}, row {number}")
        text_b = None if len(rows[0]) == 2 else tuple(row[1] for row in rows)
        return cls(place, tuple(row[0] for row in rows), text_b, [row[-1] for row in rows], None)

    @property
    def is_regression(self) -> bool:
        if self.ready is not None:
            return bool(self.ready.labels.dtype.kind == "f")
        return all(isinstance(label, Real) and not isinstance(label, Integral) for label in self.labels)

    def split(self, classes: tuple[str, ...] | None) -> Split:
        if self.ready is not None:
            _check_ready(self.ready, classes, self.place)
            return self.ready

        def place(row: int) -> str:
            return f"{self.place}, row {row + 1}"

        if classes is None:
            return Split(self.text_a, self.text_b, regression_targets(self.labels, place))
        names = names_of.cleaned([str(label) for label in self.labels])
        return Split(self.text_a, self.text_b, class_indices(names, classes, place))


def _check_row(row: Sequence[Any], first: Sequence[Any], place: str) -> None:
    if not isinstance(row, (tuple, list)) or len(row) not in (2, 3):
        raise FedmaskError(f"{place}: a row is (text, label) or (text_a, text_b, label), not {short(row)}")
    if len(row) != len(first):
        raise FedmaskError(f"{place}: has {len(row)} fields, but the first row has {len(first)}")
    for text in row[:-1]:
        check_text(text, place)
    check_label(row[-1], place)


def _check_texts(split: Split, place: str) -> None:
    for column in (split.text_a, split.text_b or (), split.domains or ()):
        for row, text in enumerate(column, start=1):
            check_text(text, f"{place}, row {row}")


def _check_same_shape(columns: dict[str, _Columns], name: str) -> None:
    """Train, validation and test must all be pairs or all single texts."""
    pair = columns["train"].text_b is not None
    for column in columns.values():
        if (column.text_b is not None) != pair:
            raise FedmaskError(f"{column.place}: rows are {'single texts' if pair else 'pairs'}, unlike those of train")


def _check_not_ignored(columns: Sequence[_Columns]) -> None:
    """Raises FedmaskError where rows are marked as having no label; class indices are checked by their classes."""
    given = [column for column in columns if column.ready is None or column.ready.labels.dtype.kind == "f"]
    ignored = [[row for row, label in enumerate(column.labels) if names_of.is_ignored(label)] for column in given]
    if not any(ignored) or not names_of.ignores(label for column in given for label in column.labels):
        return
    column, rows = next((column, rows) for column, rows in zip(given, ignored, strict=True) if rows)
    raise ignored_label(column.labels[rows[0]], f"{column.place}, row {rows[0] + 1}", len(rows))


def _classes_of(train: _Columns, metric: str | None) -> tuple[str, ...] | None:
    if train.is_regression:
        return None
    if train.ready is not None:
        return tuple(str(index) for index in range(int(train.ready.labels.max()) + 1))
    return class_names(list(train.labels), metric, lambda row: f"{train.place}, row {row + 1}")


def _classes_given(labels: Sequence[str], name: str) -> tuple[str, ...]:
    for label in labels:
        check_label(label, f"task {name}, labels")
    return tuple(names_of.clean(str(label)) for label in labels)


def _check_targets(name: str, splits: dict[str, Split]) -> None:
    """Raises FedmaskError for targets that are no values: all alike in train, or a mark in the place of hidden ones."""
    train = splits["train"].labels
    if len(train) > 1 and train.min() == train.max():
        raise FedmaskError(
            f"task {name}, train: every label is {train[0]:g}; a regression has nothing to learn from it"
        )
    for split in SPLIT_NAMES[1:]:
        if (mark := hidden_target(splits[split].labels, train)) is not None:
            raise FedmaskError(
                f"task {name}, {split}: every label is {mark:g}, and those of train run from {train.min():g} to "
                f"{train.max():g}: these are hidden; give a split that has its labels"
            )


def _check_ready(split: Split, classes: tuple[str, ...] | None, place: str) -> None:
    if (split.labels.dtype.kind == "f") != (classes is None):
        raise FedmaskError(f"{place}: has {split.labels.dtype} labels, unlike train")
    if classes is None:
        regression_targets(split.labels, lambda row: f"{place}, row {row + 1}")
        return
    bad = np.flatnonzero((split.labels < 0) | (split.labels >= len(classes)))
    if len(bad):
        raise FedmaskError(
            f"{place}, row {bad[0] + 1}: label index {split.labels[bad[0]]} is not a class of train; "
            f"there are {len(classes)}, from 0"
        )


def _check_metric(name: str, metric: str, classes: tuple[str, ...] | None) -> None:
    if metric not in METRICS:
        raise FedmaskError(f"task {name}: unknown metric {metric!r}; choose one of {', '.join(METRICS)}")
    if (classes is None) != METRICS[metric].regression:
        kind = "a regression" if classes is None else "a classification"
        raise FedmaskError(f"task {name}: metric {metric} does not fit {kind}")
    if classes is None:
        return
    if len(set(classes)) != len(classes) or len(classes) < 2:
        raise FedmaskError(f"task {name}: needs at least two distinct classes, and has {names_of.listed(classes)}")
    if METRICS[metric].binary and len(classes) != 2:
        raise FedmaskError(f"task {name}: metric {metric} is for two classes, and this task has {len(classes)}")
