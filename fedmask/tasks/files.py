"""Tasks from folders of files: DIR/{task}/{train,validation,test}.SUFFIX -> Task.

A source of files is a suffix, a reader of one file, and how its tables are read. Validation and test may lack, and
validation may have another of its usual names. Files that may be meant and are not read are named in the task's notes.
"""

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedmask.errors import FedmaskError
from fedmask.shown import in_line
from fedmask.tasks import AS_FOUND, Reading, Stamp, stamp_of
from fedmask.tasks.table import USUAL_SPLITS, Form, Table, task_of, usual_splits
from fedmask.tasks.task import Task, check_name, is_the_task, unknown_task

_SUFFIXES = ("tsv", "csv", "jsonl")
"""Of all sources of files."""

MAX_CELL = 10_000_000
"""Characters of one cell; the csv library's own limit, 131,072, is below that of long documents."""


@dataclass(frozen=True)
class FileSource:
    name: str
    """In `SOURCES`, and the files' suffix."""
    read: Callable[[Path], Table]
    """Raises FedmaskError with file and line, or an error of opening or decoding."""
    form: Form

    def load(self, root: str | None, names: Sequence[str] | None, reading: Reading = AS_FOUND) -> tuple[Task, ...]:
        """The tasks `names` under the folder `root`, in that order.

        Raises FedmaskError that names the folder, file, column or line at fault; `names=None` lists the folders.
        """
        if root is None:
            raise FedmaskError(f"data={self.name} needs data.root=DIR, the folder that holds one folder a task")
        folder = Path(root)
        if not os.path.isdir(folder):  # noqa: PTH112 (without an error for a name that is too long)
            raise FedmaskError(f"data.root={in_line(root)}: no such folder")
        if names is None:
            found = ", ".join(self._found(folder)) or f"none, for no folder below it holds a train.{self.name}"
            raise FedmaskError(f"data={self.name} needs data.tasks=[...]; {root} has: {found}")
        for name in names:
            check_name(name)
            if not os.path.isdir(folder / name):  # noqa: PTH112
                raise self._unknown(name, folder)
        return tuple(self.load_task(folder / name, name, reading) for name in names)

    def load_task(self, folder: Path, name: str, reading: Reading = AS_FOUND) -> Task:
        """One task from its folder. Raises FedmaskError: a missing file or column, no rows, a bad row or label."""
        check_name(name)
        try:
            there = [path for path in sorted(folder.iterdir()) if path.is_file()] if folder.is_dir() else []
        except OSError as error:
            raise FedmaskError(f"{folder}: cannot be read: {error.strerror}") from error
        splits = usual_splits([path.stem for path in there if path.suffix == f".{self.name}"])
        if "train" not in splits:
            raise self._no_train(folder, there)
        paths = {split: folder / f"{stem}.{self.name}" for split, stem in splits.items()}
        tables = {split: self._table(path) for split, path in paths.items()}
        unread = [path.name for path in there if path not in paths.values() and self._may_be_meant(path, splits)]
        return task_of(name, tables, reading, self.form, unread)

    def _no_train(self, folder: Path, there: Sequence[Path]) -> FedmaskError:
        other = next((suffix for suffix in _SUFFIXES if folder / f"train.{suffix}" in there), None)
        return FedmaskError(
            f"{folder / f'train.{self.name}'}: no such file; a task needs train.{self.name}, and where there are any "
            f"validation.{self.name} and test.{self.name}"
            + (f"; train.{other} is there: take data={other}" if other is not None else "")
        )

    def _may_be_meant(self, path: Path, splits: Mapping[str, str]) -> bool:
        """Whether a file beside those that are read may hold rows of the task: others of the kind, and a split that
        lacks in this one."""
        lacking = {stem for split, stems in USUAL_SPLITS.items() if split not in splits for stem in stems}
        is_other_kind = path.suffix.removeprefix(".") in _SUFFIXES
        return path.suffix == f".{self.name}" or (is_other_kind and path.stem in lacking)

    def stamp(self, root: str | None, names: Sequence[str] | None) -> Stamp:
        stems = [stem for stems in USUAL_SPLITS.values() for stem in stems]
        return stamp_of(Path(root or "") / name / f"{stem}.{self.name}" for name in names or () for stem in stems)

    def _found(self, folder: Path) -> list[str]:
        """The tasks under a folder; where it holds none, those one folder below."""
        files = list(folder.glob(f"*/train.{self.name}")) or folder.glob(f"*/*/train.{self.name}")
        return sorted(path.parent.relative_to(folder).as_posix() for path in files)

    def _unknown(self, name: str, folder: Path) -> FedmaskError:
        found = self._found(folder)
        if not found and (folder / f"train.{self.name}").is_file():
            return is_the_task(folder)
        return unknown_task(name, found, str(folder), f"no folder below it holds a train.{self.name}")

    def _table(self, path: Path) -> Table:
        try:
            table = self.read(path)
        except UnicodeDecodeError as error:  # found block by block: the line is not known
            raise FedmaskError(f"{path}: not UTF-8 text: {error}; save it as UTF-8") from error
        except OSError as error:
            raise FedmaskError(f"{path}: cannot be read: {error.strerror}") from error
        if not table.num_rows:
            raise FedmaskError(f"{path}: {'no rows under the header' if table.names else 'the file is empty'}")
        return table


@contextmanager
def cells_up_to_limit() -> Iterator[None]:
    """The csv library reads cells of up to MAX_CELL characters; its limit is then as it was."""
    before = csv.field_size_limit(MAX_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def csv_fault(error: csv.Error, quotes: str = "") -> str:
    """What the csv library says of a file. quotes: what to do where it reads them."""
    if "field limit" in str(error):
        lacks_end = ", or give the quote before it its end" if quotes else ""
        return f"a cell has more than {MAX_CELL:,} characters; shorten it{lacks_end}"
    return f"{error}{quotes}"
