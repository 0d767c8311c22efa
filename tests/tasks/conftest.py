"""Tasks' folders, made by the tests themselves in each format that has files."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import datasets
import pytest

from fedmask.errors import FedmaskError

T = TypeVar("T")
Rows = Sequence[Mapping[str, Any]]


def tsv(path: Path, rows: Rows) -> None:
    lines = ["\t".join(rows[0]), *("\t".join(str(value) for value in row.values()) for row in rows)]
    path.with_suffix(".tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def csv_file(path: Path, rows: Rows) -> None:
    with path.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([list(rows[0]), *(list(row.values()) for row in rows)])


def jsonl(path: Path, rows: Rows) -> None:
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_splits(source: str, root: Path, name: str, splits: Mapping[str, Rows]) -> None:
    """A task in the way of a source; each row has the same keys."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    if source == "hub":
        sets = {split: datasets.Dataset.from_list([dict(row) for row in rows]) for split, rows in splits.items()}
        datasets.DatasetDict(sets).save_to_disk(str(folder))  # with progress bars, on stderr
        return
    for split, rows in splits.items():
        {"tsv": tsv, "csv": csv_file, "jsonl": jsonl}[source](folder / split, rows)


@pytest.fixture(params=["tsv", "csv", "jsonl", "hub"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., str]:
    """Writes the splits of task `t` under tmp_path; returns the source that reads them."""

    def write(**splits: Rows) -> str:
        write_splits(request.param, tmp_path, "t", splits)
        return str(request.param)

    return write


def value_or_line(make: Callable[[], T]) -> T | None:
    """What is made; None for a fault that is told in one line. Any other exception goes on."""
    try:
        return make()
    except FedmaskError as fault:
        line = str(fault)
    assert len(line.splitlines()) == 1, line
    line.encode()
    return None
