"""Tasks from folders of files: DIR/{task}/{train,validation,test}.SUFFIX -> Task.

A source of files is a suffix, a reader of one file, and how its tables are read. Validation and test may lack.
"""

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedmask.errors import FedmaskError
from fedmask.tasks import AS_FOUND, Reading, Stamp, stamp_of
from fedmask.tasks.labels import in_line
from fedmask.tasks.table import Form, Table, task_of
from fedmask.tasks.task import SPLIT_NAMES, Task, check_name, unknown_task

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
            found = ", ".join(self._found(folder)) or "none"
            raise FedmaskError(f"data={self.name} needs data.tasks=[...]; {root} has: {found}")
        for name in names:
            check_name(name)
            if not os.path.isdir(folder / name):  # noqa: PTH112
                raise unknown_task(name, self._found(folder), root)
        return tuple(self.load_task(folder / name, name, reading) for name in names)

    def load_task(self, folder: Path, name: str, reading: Reading = AS_FOUND) -> Task:
        """One task from its folder. Raises FedmaskError: a missing file or column, no rows, a bad row or label."""
        check_name(name)
        paths = {split: folder / f"{split}.{self.name}" for split in SPLIT_NAMES}
        if not paths["train"].is_file():
            raise FedmaskError(
                f"{paths['train']}: no such file; a task needs train.{self.name}, and where there are any "
                f"validation.{self.name} and test.{self.name}"
            )
        tables = {split: self._table(path) for split, path in paths.items() if path.is_file()}
        return task_of(name, tables, reading, self.form)

    def stamp(self, root: str | None, names: Sequence[str] | None) -> Stamp:
        return stamp_of(
            Path(root or "") / name / f"{split}.{self.name}" for name in names or () for split in SPLIT_NAMES
        )

    def _found(self, folder: Path) -> list[str]:
        return sorted(path.parent.name for path in folder.glob(f"*/train.{self.name}"))

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
