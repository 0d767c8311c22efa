"""Tasks from the `datasets` library: "glue/sst2", "org/name" or "org/name/config" -> Task.

With a folder as root, ROOT/{name} is a set written by `save_to_disk`, of several splits or of one, which is then train;
without one the hub, or its local cache, is asked. Columns are found by their usual names unless they are named; class
names come from a `ClassLabel` feature. Rows without a label are left out. What becomes of hidden labels (GLUE's test)
and missing splits stands in `fedmask.tasks.table`.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.utils.logging as hub_logging

from fedmask.errors import FedmaskError, cause_line
from fedmask.shown import in_line
from fedmask.tasks import AS_FOUND, Reading, Stamp, stamp_of
from fedmask.tasks.table import USUAL_LABEL, Form, Table, task_of, usual_splits
from fedmask.tasks.task import Task, check_name, is_the_task, unknown_task

# Collections that are known by a name without an organisation: "glue/sst2" is configuration sst2 of nyu-mll/glue.
COLLECTIONS = {"glue": "nyu-mll/glue", "tweet_eval": "cardiffnlp/tweet_eval"}

# What tells the folder of a saved set of several splits, and of one.
_MARKERS = ("dataset_dict.json", "state.json")

_FORM = Form(domain=None, has_types=True, leaves_out=True)


def load(root: str | None, names: Sequence[str] | None, reading: Reading = AS_FOUND) -> tuple[Task, ...]:
    """The tasks `names`, in that order.

    Raises FedmaskError: no names, no such folder or set, the hub out of reach, no text or label column, no train split.
    """
    if names is None:
        raise FedmaskError("data=hub needs data.tasks=[...], such as [glue/sst2]")
    return tuple(load_task(root, name, reading) for name in names)


def load_task(root: str | None, name: str, reading: Reading = AS_FOUND) -> Task:
    """One task of `load`."""
    check_name(name)
    with _silent():
        splits = _download(name) if root is None else _read_folder(Path(root), name)
    read = usual_splits(splits)
    if "train" not in read:
        raise FedmaskError(f"task {name}: no train split; there are: {', '.join(splits)}")
    if not splits["train"].num_rows:
        raise FedmaskError(f"task {name}: the train split has no rows; give it some")
    label = reading.label or USUAL_LABEL
    tables = {split: _table(splits[found], name, found, label) for split, found in read.items()}
    return task_of(name, tables, reading, _FORM, [split for split in splits if split not in read.values()])


def stamp(root: str | None, names: Sequence[str] | None) -> Stamp:
    """Of the files of saved sets; what the hub has is not asked for."""
    folders = [Path(root) / name for name in names or ()] if root is not None else []
    return stamp_of(file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file())


def _read_folder(root: Path, name: str) -> Mapping[str, datasets.Dataset]:
    if not root.is_dir():
        raise FedmaskError(f"data.root={in_line(str(root))}: no such folder")
    if not any((root / name / marker).is_file() for marker in _MARKERS):
        found = {path.parent for marker in _MARKERS for path in root.rglob(marker)}
        if root in found:
            raise is_the_task(root)
        sets = [path.relative_to(root).as_posix() for path in found if path.parent not in found]
        none = f"no folder below it has a {' or a '.join(_MARKERS)}"
        raise unknown_task(name, sets, f"{root} (sets written by save_to_disk)", none)
    return _read_set(root / name)


def _read_set(folder: Path) -> dict[str, datasets.Dataset]:
    """The splits of a saved set."""
    names = folder / _MARKERS[0]
    if not names.is_file():
        return {"train": _read_split(folder, folder)}
    with _readable(folder):
        splits = [str(split) for split in json.loads(names.read_text(encoding="utf-8"))["splits"]]
    return {split: _read_split(folder, folder / split) for split in splits}


def _read_split(folder: Path, place: Path) -> datasets.Dataset:
    with _readable(folder):
        # A split without rows is saved without files, and the library cannot load that.
        has_rows = json.loads((place / _MARKERS[1]).read_text(encoding="utf-8"))["_data_files"]
        return datasets.load_from_disk(str(place)) if has_rows else datasets.Dataset.from_dict({})


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Around libraries' calls alone: whatever is wrong inside the folder, their own words say it best."""
    try:
        yield
    except Exception as error:
        raise FedmaskError(f"{folder}: not a readable data set: {_one_line(error)}") from error


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


def _table(split: datasets.Dataset, name: str, split_name: str, label: str) -> Table:
    place = f"task {name}" if split_name == "train" else f"task {name}, {split_name}"

    def values(column: str) -> list[Any]:
        """With class names in the place of a `ClassLabel`'s indices."""
        found = _column(split, column, place)
        feature = split.features[column]
        if not isinstance(feature, datasets.ClassLabel):
            return found
        return [None if index is None or index < 0 else feature.names[index] for index in found]

    of_label = split.features.get(label)
    return Table(
        place,
        split.column_names,
        values,
        split.num_rows,
        lambda row: f"task {name}, {split_name}, row {row + 1}",
        there="there are:",
        classes=tuple(of_label.names) if isinstance(of_label, datasets.ClassLabel) else None,
    )


def _column(split: datasets.Dataset, name: str, place: str) -> list[Any]:
    try:
        return list(split[name][:])
    except Exception as error:  # damaged files, a feature whose decoder is not installed
        raise FedmaskError(f"{place}: the column {name!r} cannot be read ({cause_line(error)})") from error


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
