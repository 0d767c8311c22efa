"""The registry of sources."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from fedmask.errors import FedmaskError
from fedmask.tasks import SOURCES, Source, Task, load_tasks, stamp

CONF = Path(__file__).resolve().parents[2] / "conf"
ROWS = [("good", "yes"), ("bad", "no")]


def source_of(monkeypatch: pytest.MonkeyPatch, *tasks: Task) -> None:
    """A source `mine` with these tasks: a file, and one entry in the table."""
    module = ModuleType("mine")
    module.load = lambda root, names, reading: tasks
    monkeypatch.setitem(sys.modules, "mine", module)
    monkeypatch.setitem(SOURCES, "mine", Source("a test's", "mine"))


def test_a_source_is_a_file_and_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tuple(Task(name, ROWS, ROWS, ROWS) for name in "ab")
    source_of(monkeypatch, *made)
    assert load_tasks("mine") == made


@pytest.mark.parametrize("name", SOURCES)
def test_each_source_can_be_chosen_and_loads_and_stamps(name: str) -> None:
    chosen = yaml.safe_load((CONF / "data" / f"{name}.yaml").read_text())
    assert chosen["source"] == name
    if (module := SOURCES[name].module) is not None:
        assert {"load", "stamp"} <= vars(importlib.import_module(module)).keys()
        assert isinstance(stamp(name, "/nowhere", ["m:t"]), dict)


def test_faults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(FedmaskError, match=r"^unknown data source 'xml'; choose one of demo, tsv, csv, jsonl, hub, "):
        load_tasks("xml")
    with pytest.raises(FedmaskError, match=r"^data\.tasks is empty: name at least one task$"):
        load_tasks("tsv", str(tmp_path), [])
    task = Task("twice", ROWS, ROWS, ROWS)
    source_of(monkeypatch, task, task)
    with pytest.raises(
        FedmaskError, match=r"^data\.tasks has twice more than once: every task needs a name of its own$"
    ):
        load_tasks("mine")
    with pytest.raises(FedmaskError, match=r"^data=own: the data of deployed clients, .* take data=demo\|tsv\|csv\|"):
        load_tasks("own")
    with pytest.raises(FedmaskError, match=r"^data\.tasks has a more than once"):
        load_tasks("tsv", str(tmp_path), ["a", "b", "a"])
    with pytest.raises(FedmaskError, match=r"^data\.tasks: 2024 is no text; a task's name stands in quotes: '2024'$"):
        load_tasks("tsv", str(tmp_path), [2024])  # type: ignore[list-item]


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


def test_a_configuration_knows_the_sources_without_numpy() -> None:
    code = "import sys, fedmask.runs.config; print([name for name in ('torch', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
