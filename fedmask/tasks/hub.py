"""Tasks from the `datasets` library: "glue/sst2", "org/name" or "org/name/config" -> Task.

With a folder as root, ROOT/{name} is a set written by `DatasetDict.save_to_disk`; without one the hub, or its local
cache, is asked. Text columns are found by their usual names, the label column is `label`, class names come from its
`ClassLabel` feature. Rows without a label are left out. A test split whose labels are all hidden (GLUE's) cannot score
anything: the validation split then becomes the test split, and a seeded tenth of train becomes the validation split,
as it does wherever a set has no validation split of its own.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.utils.logging as hub_logging
import numpy as np

from fedmask.errors import FedmaskError
from fedmask.randomness import seed_for
from fedmask.tasks.metrics import METRIC_BY_NAME
from fedmask.tasks.task import Task, check_name, positive_last, unknown_task

TEXT_COLUMNS: tuple[tuple[str, ...], ...] = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text_a", "text_b"),
    ("sentence",),
    ("text",),
    ("question",),
    ("text_a",),
    ("content",),
)
"""Text columns, pairs first; the first entry that a set has in full is taken."""

# Collections that are known by a name without an organisation: "glue/sst2" is configuration sst2 of nyu-mll/glue.
COLLECTIONS = {"glue": "nyu-mll/glue", "tweet_eval": "cardiffnlp/tweet_eval"}

Row = tuple[Any, ...]


def load(root: str | None, names: Sequence[str] | None) -> tuple[Task, ...]:
    """The tasks `names`, in that order.

    Raises FedmaskError: no names, no such folder or set, the hub out of reach, no text or label column, a split that is
    missing.
    """
    if names is None:
        raise FedmaskError("data=hub needs data.tasks=[...], such as [glue/sst2]")
    return tuple(load_task(root, name) for name in names)


def load_task(root: str | None, name: str) -> Task:
    """One task of `load`."""
    check_name(name)
    with _silent():
        splits = _download(name) if root is None else _read_folder(Path(root), name)
    if "train" not in splits:
        raise FedmaskError(f"task {name}: no train split; there are: {', '.join(splits)}")
    columns = _text_columns(splits["train"], name)
    rows = {
        split: _labelled_rows(splits[split], columns) for split in ("train", "validation", "test") if split in splits
    }
    train, validation, test = _usable_splits(rows, name)
    metric = METRIC_BY_NAME.get(name.rpartition("/")[2])
    feature = splits["train"].features["label"]
    labels = positive_last(feature.names, metric) if isinstance(feature, datasets.ClassLabel) else None
    return Task(name, train, validation, test, labels=labels, metric=metric)


def _read_folder(root: Path, name: str) -> Mapping[str, datasets.Dataset]:
    if not root.is_dir():
        raise FedmaskError(f"data.root={root}: no such folder")
    if not (root / name / "dataset_dict.json").is_file():
        found = [path.parent.relative_to(root).as_posix() for path in root.rglob("dataset_dict.json")]
        raise unknown_task(name, found, f"{root} (sets written by DatasetDict.save_to_disk)")
    try:
        return dict(datasets.load_from_disk(str(root / name)))
    except Exception as error:  # whatever is wrong inside the folder, the library's own words say it best
        raise FedmaskError(f"{root / name}: not a readable data set: {_one_line(error)}") from error


def _download(name: str) -> Mapping[str, datasets.Dataset]:
    path, config = _hub_name(name)
    try:
        return dict(datasets.load_dataset(path, config))
    except ConnectionError as error:
        raise FedmaskError(
            f"task {name}: the hub is not reachable and {path} is not in its local cache; "
            "give data.root=FOLDER with a set saved by DatasetDict.save_to_disk, or take data=tsv or data=demo"
        ) from error
    except Exception as error:  # the library raises a dozen kinds: no such set, no such configuration, a script, ...
        raise FedmaskError(f"task {name}: {path} cannot be loaded: {_one_line(error)}") from error


def _hub_name(name: str) -> tuple[str, str | None]:
    """Our name -> (repository, configuration)."""
    first, _, rest = name.partition("/")
    if first in COLLECTIONS:
        return COLLECTIONS[first], rest or None
    parts = name.split("/", 2)
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None


def _text_columns(train: datasets.Dataset, name: str) -> tuple[str, ...]:
    there = ", ".join(train.column_names)
    if "label" not in train.column_names:
        raise FedmaskError(f"task {name}: no column 'label'; there are: {there}")
    for columns in TEXT_COLUMNS:
        if set(columns) <= set(train.column_names):
            return columns
    known = ", ".join("+".join(columns) for columns in TEXT_COLUMNS)
    raise FedmaskError(f"task {name}: no text column among {there}; known are {known}")


def _labelled_rows(split: datasets.Dataset, columns: tuple[str, ...]) -> list[Row]:
    """Rows (text, label) or (text_a, text_b, label) with class names for indices; none if every label is hidden."""
    data, feature = split[:], split.features["label"]
    rows = [row for row in zip(*(data[column] for column in (*columns, "label")), strict=True) if row[-1] is not None]
    if all(row[-1] == -1 for row in rows):
        return []
    if not isinstance(feature, datasets.ClassLabel):
        return rows
    return [(*row[:-1], feature.names[row[-1]]) for row in rows if row[-1] >= 0]


def _usable_splits(rows: Mapping[str, list[Row]], name: str) -> tuple[list[Row], list[Row], list[Row]]:
    """Train, validation and test as the module's head says."""
    train, validation, test = (rows.get(split, []) for split in ("train", "validation", "test"))
    if not test:
        validation, test = [], validation
    if not test:
        raise FedmaskError(f"task {name}: neither a test nor a validation split with labels")
    if not validation:
        train, validation = _hold_out_a_tenth(train, name)
    return train, validation, test


def _hold_out_a_tenth(rows: list[Row], name: str) -> tuple[list[Row], list[Row]]:
    """(the rest, a tenth) of the rows, each in its old order; the same for every run, whatever its seed."""
    count = -(-len(rows) // 10)
    chosen = np.random.default_rng(seed_for(0, "validation", name)).choice(len(rows), size=count, replace=False)
    held_out = set(chosen.tolist())
    rest = [row for index, row in enumerate(rows) if index not in held_out]
    return rest, [rows[index] for index in sorted(held_out)]


@contextmanager
def _silent() -> Iterator[None]:
    """No progress bars and no retry warnings; the settings are then as they were."""
    bars, verbosity = datasets.are_progress_bars_disabled(), hub_logging.get_verbosity()
    datasets.disable_progress_bars()
    hub_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
