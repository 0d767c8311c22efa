"""Tasks from folders of TSV files: DIR/{task}/{train,validation,test}.tsv -> Task.

A file is UTF-8 with a header row, tab-separated, without quoting. Columns: `text_a`, `label`, for pairs `text_b`, and
optionally `domain`; others are ignored. The metric goes by the task's name (cola, mrpc, stsb) and is accuracy
elsewhere. A task is a regression if its name says so, or if every train label is a number and one has a decimal point.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmask.errors import FedmaskError
from fedmask.tasks.metrics import METRIC_BY_NAME
from fedmask.tasks.task import (
    SPLIT_NAMES,
    Split,
    Task,
    check_name,
    class_indices,
    positive_last,
    regression_targets,
    unknown_task,
)


def load(root: str | None, names: Sequence[str] | None) -> tuple[Task, ...]:
    """The tasks `names` under the folder `root`, in that order.

    Raises FedmaskError that names the folder, file, column or line at fault; `names=None` lists the folders.
    """
    if root is None:
        raise FedmaskError("data=tsv needs data.root=DIR, the folder that holds one folder a task")
    folder = Path(root)
    if not folder.is_dir():
        raise FedmaskError(f"data.root={root}: no such folder")
    found = sorted(path.parent.name for path in folder.glob("*/train.tsv"))
    if names is None:
        raise FedmaskError(f"data=tsv needs data.tasks=[...]; {root} has: {', '.join(found) or 'none'}")
    for name in names:
        if not (folder / name).is_dir():
            raise unknown_task(name, found, root)
    return tuple(load_task(folder / name, name) for name in names)


def load_task(folder: Path, name: str) -> Task:
    """One task from its folder. Raises FedmaskError: a missing file or column, no rows, a bad row or label."""
    check_name(name)
    tables = {split: _read(folder / f"{split}.tsv") for split in SPLIT_NAMES}
    metric = METRIC_BY_NAME.get(name, "spearman" if _is_regression(tables["train"].labels) else "accuracy")
    classes = None if metric == "spearman" else positive_last(sorted(set(tables["train"].labels)), metric)
    train, validation, test = (table.split(classes) for table in tables.values())
    return Task(name, train, validation, test, labels=classes, metric=metric)


@dataclass(frozen=True)
class _Table:
    """The columns of one file, and the line (from 1) each row stands on."""

    path: Path
    lines: tuple[int, ...]
    text_a: tuple[str, ...]
    text_b: tuple[str, ...] | None
    labels: tuple[str, ...]
    domains: tuple[str, ...] | None

    def split(self, classes: tuple[str, ...] | None) -> Split:
        def place(row: int) -> str:
            return f"{self.path}:{self.lines[row]}"

        if classes is None:
            labels = regression_targets(self.labels, place)
        else:
            labels = class_indices(self.labels, classes, place)
        return Split(self.text_a, self.text_b, labels, self.domains)


def _read(path: Path) -> _Table:
    header, rows, lines = _read_rows(path)
    for column in ("text_a", "label"):
        if column not in header:
            raise FedmaskError(f"{path}: no column {column!r}; the header has {', '.join(header)}")
    if not rows:
        raise FedmaskError(f"{path}: no rows under the header")
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    for line, label in zip(lines, columns["label"], strict=True):
        if not label:
            raise FedmaskError(f"{path}:{line}: the label is empty")
    return _Table(path, lines, columns["text_a"], columns.get("text_b"), columns["label"], columns.get("domain"))


def _read_rows(path: Path) -> tuple[list[str], list[list[str]], tuple[int, ...]]:
    """Header, rows as wide as the header, and their lines; empty lines are passed over."""
    if not path.is_file():
        raise FedmaskError(f"{path}: no such file; a task needs train.tsv, validation.tsv and test.tsv")
    header: list[str] = []
    rows, lines = [], []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        try:
            header = next(reader, [])
            for row in filter(None, reader):
                if len(row) != len(header):
                    raise FedmaskError(f"{path}:{reader.line_num}: {len(row)} fields, but the header has {len(header)}")
                rows.append(row)
                lines.append(reader.line_num)
        except UnicodeDecodeError as error:  # found block by block: the line is not known
            raise FedmaskError(f"{path}: not UTF-8 text: {error}") from error
        except csv.Error as error:
            raise FedmaskError(f"{path}:{reader.line_num}: {error}") from error
    return header, rows, tuple(lines)


def _is_regression(labels: Sequence[str]) -> bool:
    """Whether every label is a number and one has a decimal point ("0" and "1" alone are class names)."""
    try:
        for label in labels:
            float(label)
    except ValueError:
        return False
    return any("." in label for label in labels)
