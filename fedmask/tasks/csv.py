"""Tasks from folders of CSV files as spreadsheets and data frames write them: DIR/{task}/{split}.csv -> Task.

A file is UTF-8 with a header row. Cells are separated by commas, semicolons or tabs, whichever the header has; a cell
may stand in quotes, and then hold separators, line ends and, written twice, quotes. Columns are found by their usual
names unless they are named; others, such as a data frame's index, are ignored. What is a regression goes as in TSV.
"""

import csv
from pathlib import Path
from typing import TextIO

from fedmask.errors import FedmaskError
from fedmask.tasks.files import FileSource
from fedmask.tasks.table import Form, Table

SEPARATORS = (",", ";", "\t")
"""Of which a header has one; the first of those that it has equally often."""


def _read(path: Path) -> Table:
    """Rows as wide as the header; empty lines and rows of empty cells, as spreadsheets leave some, are passed over."""
    header: list[str] = []
    rows, lines = [], []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=_separator(file), strict=True)
        try:
            header = next(reader, [])
            last_line = reader.line_num
            for row in reader:
                line, last_line = last_line + 1, reader.line_num
                if not any(row):
                    continue
                if len(row) != len(header):
                    raise FedmaskError(f"{path}:{line}: {len(row)} fields, but the header has {len(header)}")
                rows.append(row)
                lines.append(line)
        except csv.Error as error:
            raise FedmaskError(f"{path}:{reader.line_num}: {error}; a quote inside a cell is written twice") from error
    return Table.of_rows(str(path), header, rows, lambda row: f"{path}:{lines[row]}")


def _separator(file: TextIO) -> str:
    """By the header, which is then read again; of a line `sep=;` that says it, the file goes on after it."""
    first = file.readline()
    if first.strip().removeprefix("sep=") in SEPARATORS and first.startswith("sep="):
        return first.strip().removeprefix("sep=")
    file.seek(0)
    return max(SEPARATORS, key=lambda separator: len(next(csv.reader([first], delimiter=separator))))


_SOURCE = FileSource("csv", _read, Form())
load, load_task, stamp = _SOURCE.load, _SOURCE.load_task, _SOURCE.stamp
