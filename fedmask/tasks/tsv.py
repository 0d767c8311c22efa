"""Tasks from folders of TSV files: DIR/{task}/{train,validation,test}.tsv -> Task.

A file is UTF-8 with a header row, tab-separated, without quoting: a quote is a character like any other, and a file
whose cells stand in quotes is refused. Columns are found by their usual names unless they are named; others are
ignored. The metric goes by the task's name (cola, mrpc, stsb) and is accuracy
elsewhere. A task is a regression if its name says so, or if every train label is a number and one has a decimal point.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from fedmask.errors import FedmaskError
from fedmask.tasks.files import FileSource, cells_up_to_limit, csv_fault
from fedmask.tasks.table import Form, Table

_REMEDY = (
    "data=tsv takes a quote as a part of the text; write the file without quotes, or name it .csv and take data=csv"
)


def _read(path: Path) -> Table:
    """Rows as wide as the header; empty lines are passed over."""
    header: list[str] = []
    rows, lines = [], []
    with path.open(encoding="utf-8-sig", newline="") as file, cells_up_to_limit():
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        try:
            header = next(reader, [])
            for row in filter(None, reader):
                if len(row) != len(header):
                    hint = f" ({_REMEDY})" if any(cell.startswith('"') for cell in row) else ""
                    raise FedmaskError(
                        f"{path}:{reader.line_num}: {len(row)} fields, but the header has {len(header)}{hint}"
                    )
                rows.append(row)
                lines.append(reader.line_num)
        except csv.Error as error:
            raise FedmaskError(f"{path}:{reader.line_num}: {csv_fault(error)}") from error
    _check_unquoted(path, header, rows, lines)
    return Table.of_rows(str(path), header, rows, lambda row: f"{path}:{lines[row]}")


def _check_unquoted(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], lines: Sequence[int]) -> None:
    """Raises FedmaskError where the file was written with quotes around cells, as tables are exported."""
    if any(_stands_in_quotes(name) for name in header):
        raise FedmaskError(f"{path}:1: the header's cells stand in quotes: {_REMEDY}")
    quoted = [_first_quoted(column) for column in zip(*rows, strict=True)]
    if len(rows) > 1 and any(number == len(rows) for number, _ in quoted):
        row = next(first for number, first in quoted if number == len(rows))
    elif _are_quoted_where_needed([cell for row in rows for cell in row]):
        row = min(first for number, first in quoted if number)
    else:
        return
    raise FedmaskError(f"{path}:{lines[row]}: cells stand in quotes: {_REMEDY}")


def _first_quoted(column: Sequence[str]) -> tuple[int, int]:
    """How many cells of a column stand in quotes, and the row of the first; (0, 0) for none."""
    found = [row for row, cell in enumerate(column) if _stands_in_quotes(cell)]
    return len(found), found[0] if found else 0


def _are_quoted_where_needed(cells: Sequence[str]) -> bool:
    """Whether quotes stand only around whole cells, those inside written twice, and where a table's writer needs them:
    around every cell with a quote, or with a comma."""
    cells = [cell.strip() for cell in cells]
    with_quote = [cell for cell in cells if '"' in cell]
    if not with_quote or not all(_stands_in_quotes(cell) and _is_doubled(cell[1:-1]) for cell in with_quote):
        return False
    with_comma = [cell for cell in cells if "," in cell]
    return any('"' in cell[1:-1] for cell in with_quote) or (
        len(with_comma) > 1 and all(cell.startswith('"') for cell in with_comma)
    )


def _is_doubled(inner: str) -> bool:
    return '"' not in inner.replace('""', "")


def _stands_in_quotes(cell: str) -> bool:
    """Blanks around the quotes do not count."""
    bare = cell.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


_SOURCE = FileSource("tsv", _read, Form())
load, load_task, stamp = _SOURCE.load, _SOURCE.load_task, _SOURCE.stamp
