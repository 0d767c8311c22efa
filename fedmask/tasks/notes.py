"""What a person should know of a task's data before a run, and is no error: splits and classes -> lines."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from fedmask.shown import in_line
from fedmask.tasks.labels import alike, difference, listed, may_be_none, shown_both

if TYPE_CHECKING:
    from fedmask.tasks.task import Split

POSITIVE = frozenset({"equivalent", "positive", "true", "True", "yes", "1"})
"""Names of a positive class on which nothing is said."""

LARGEST_PLAIN_TARGET = 100.0
"""Above it a regression's targets are counted in a unit while a client trains: see `Task.unit`."""


def notes_on(splits: Mapping[str, "Split"], classes: tuple[str, ...] | None) -> list[str]:
    notes = _notes_on_targets(splits) if classes is None else _notes_on_classes(splits["train"], classes)
    empty = {name: _num_empty(split) for name, split in splits.items()}
    if total := sum(empty.values()):
        where = ", ".join(f"{count:,} of {name}" for name, count in empty.items() if count)
        notes.append(
            f"{counted(total, 'empty text')} ({where}), kept: a model reads its marks of beginning and end alone"
        )
    return notes


def notes_on_found(train: "Split", classes: tuple[str, ...], metric: str) -> list[str]:
    """On classes that nobody named: they are those of the data."""
    notes = []
    counts = np.bincount(train.labels, minlength=len(classes))
    for name, count in zip(classes, counts, strict=True):
        if count and may_be_none(name, classes):
            notes.append(
                f"{counted(int(count), 'training row')} with the label {in_line(name)}, which often stands for no "
                "label: it counts as a class; leave such rows out, or name all classes with data.classes="
            )
    if metric == "f1" and len(classes) == 2 and classes[-1] not in POSITIVE:
        negative, positive = map(in_line, classes)
        notes.append(
            f"f1 takes {positive} as the positive class and {negative} as the negative one; where that is wrong, write "
            f"data.classes=[{positive},{negative}], the positive one last"
        )
    return notes


def _num_empty(split: "Split") -> int:
    columns = (split.text_a,) if split.text_b is None else (split.text_a, split.text_b)
    return sum(not text.strip() for column in columns for text in column)


def _notes_on_classes(train: "Split", classes: tuple[str, ...]) -> list[str]:
    notes = []
    for one, other in alike(classes):
        what = difference(one, other)
        notes.append(f"classes {shown_both(one, other)} differ in {what} only: they count as two")
    counts = np.bincount(train.labels, minlength=len(classes))
    if missing := [name for name, count in zip(classes, counts, strict=True) if not count]:
        notes.append(f"no training row has the {'class' if len(missing) == 1 else 'classes'} {listed(missing)}")
    if len(classes) > max(50, len(train) / 2):
        notes.append(f"{len(classes):,} classes for {len(train):,} training rows: is the label column the right one?")
    return notes


def _notes_on_targets(splits: Mapping[str, "Split"]) -> list[str]:
    notes = []
    if (unit := unit_of(splits["train"])) != 1.0:
        largest = np.abs(splits["train"].labels).max()
        notes.append(
            f"labels reach {largest:,.10g}: while a client trains, it counts them, and its loss, in units of "
            f"{unit:,.0f}; its head answers in the labels' own"
        )
    marked = {name: int((split.labels == -1.0).sum()) for name, split in splits.items()}
    others = np.concatenate([split.labels[split.labels != -1.0] for split in splits.values()])
    if any(marked.values()) and len(others) and others.min() >= 0:
        where = ", ".join(f"{count:,} of {name}" for name, count in marked.items() if count)
        notes.append(
            f"labels of -1 ({where}), all others 0 or more: taken as they stand; leave these rows out if hidden"
        )
    for name in ("validation", "test"):
        labels = splits[name].labels
        if len(labels) > 1 and labels.min() == labels.max():
            notes.append(f"every label of {name} is {labels[0]:g}: a rank correlation of it is 0")
    return notes


def unit_of(train: "Split") -> float:
    largest = float(np.abs(train.labels).max())
    return 1.0 if largest <= LARGEST_PLAIN_TARGET else 10.0 ** math.floor(math.log10(largest))


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
