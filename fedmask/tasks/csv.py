"""Tasks from folders of CSV files as spreadsheets and data frames write them: DIR/{task}/{split}.csv -> Task.

A file is UTF-8 with a header row. Cells are separated by commas, semicolons or tabs, whichever the header has; a cell
may stand in quotes, and then hold separators, line ends and, written twice, quotes. Columns are found by their usual
names unless they are named; others, such as a data frame's index, are ignored. What is a regression goes as in TSV.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from fedmask.errors import FedmaskError
from fedmask.tasks.files import FileSource, cells_up_to_limit, csv_fault
from fedmask.tasks.table import Form, Table

SEPARATORS = (",", ";", "\t")
"""Of which a header has one; the first of those that it has equally often."""

_QUOTES = "; a quote inside a cell is written twice"


def _read(path: Path) -> Table:
    """Rows as wide as the header; empty lines and rows of empty cells, as spreadsheets leave some, are passed over."""
    header: list[str] = []
    rows, lines = [], []
    with path.open(encoding="utf-8-sig", newline="") as file, cells_up_to_limit():
        records = _Records(file, _separator(path, file))
        try:
            header = next(records, [])
            _check_quotes(path, 1, header, records)
            last_line = records.line
            for row in records:
                line, last_line = last_line + 1, records.line
                if not any(row):
                    continue
                _check_quotes(path, line, row, records)
                if len(row) != len(header):
                    raise FedmaskError(f"{path}:{line}: {len(row)} fields, but the header has {len(header)}")
                rows.append(row)
                lines.append(line)
        except csv.Error as error:
            raise FedmaskError(f"{path}:{records.line}: {csv_fault(error, _QUOTES)}") from error
    return Table.of_rows(str(path), header, rows, lambda row: f"{path}:{lines[row]}")


class _Records:
    """The rows of a file, with the lines that the last of them was read from."""

    def __init__(self, file: TextIO, separator: str) -> None:
        self.separator = separator
        self.lines: list[str] = []
        self._file = file
        self._reader = csv.reader(self._noted(), delimiter=separator, strict=True)

    def _noted(self) -> Iterator[str]:
        for line in self._file:
            self.lines.append(line)
            yield line

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        self.lines.clear()
        return next(self._reader)

    @property
    def line(self) -> int:
        """Lines read."""
        return self._reader.line_num


def _check_quotes(path: Path, line: int, row: Sequence[str], records: _Records) -> None:
    """Raises FedmaskError where a quote stands behind a blank: it does not begin a cell then, but is a part of it."""
    if not any(cell[:1].isspace() and cell.lstrip().startswith('"') for cell in row):
        return
    # A cell that says the same in quotes of its own reads alike both ways.
    without = next(csv.reader(records.lines, delimiter=records.separator, skipinitialspace=True))
    if len(without) != len(row) or any(
        other not in (cell, cell.lstrip()) for cell, other in zip(row, without, strict=True)
    ):
        raise FedmaskError(
            f"{path}:{line}: a blank stands between the separator and a quote, which then is a part of the cell; "
            "write them without a blank"
        )


def _separator(path: Path, file: TextIO) -> str:
    """By the header, which is then read again; of a line `sep=;` that says it, the file goes on after it."""
    first = file.readline()
    if first.strip().removeprefix("sep=") in SEPARATORS and first.startswith("sep="):
        return first.strip().removeprefix("sep=")
    file.seek(0)
    try:
        return max(SEPARATORS, key=lambda separator: len(next(csv.reader([first], delimiter=separator))))
    except csv.Error as error:
        raise FedmaskError(f"{path}:1: {csv_fault(error, _QUOTES)}") from error


_SOURCE = FileSource("csv", _read, Form())
load, load_task, stamp = _SOURCE.load, _SOURCE.load_task, _SOURCE.stamp
