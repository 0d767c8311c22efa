"""The registry of sources."""

import subprocess
import sys
from pathlib import Path

import pytest

from fedmask.errors import FedmaskError
from fedmask.tasks import SOURCES, Task, load_tasks

ROWS = [("good", "yes"), ("bad", "no")]


def test_a_source_is_one_line_in_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tuple(Task(name, ROWS, ROWS, ROWS) for name in "ab")
    monkeypatch.setitem(SOURCES, "mine", lambda root, names: made)
    assert load_tasks("mine") == made


def test_faults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(FedmaskError, match=r"^unknown data source 'csv'; choose one of demo, tsv, hub, python, own$"):
        load_tasks("csv")
    with pytest.raises(FedmaskError, match=r"^data\.tasks is empty: name at least one task$"):
        load_tasks("tsv", str(tmp_path), [])
    task = Task("twice", ROWS, ROWS, ROWS)
    monkeypatch.setitem(SOURCES, "mine", lambda root, names: (task, task))
    with pytest.raises(
        FedmaskError, match=r"^data\.tasks has twice more than once: every task needs a name of its own$"
    ):
        load_tasks("mine")
    with pytest.raises(FedmaskError, match=r"^data=own: the data of deployed clients, .* take data=demo\|tsv\|hub"):
        load_tasks("own")


def test_the_library_of_data_sets_is_imported_only_when_needed() -> None:
    code = """
import sys
import fedmask.tasks.partition
from fedmask.tasks import load_tasks
from fedmask.errors import FedmaskError
try:
    load_tasks("tsv", ".", None)
except FedmaskError:
    pass
print([name for name in ("torch", "datasets", "flwr_datasets") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
