"""Tasks: what clients train on and are scored by. In: the name of a source. Out: `Task`s, which `partition` deals out.

A new source is one file with `load` and `stamp`, one entry in `SOURCES`, and conf/data/NAME.yaml. This table is read by
the configuration too: numpy, and each source's file, are imported when they are used.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from fedmask.errors import FedmaskError
from fedmask.shown import in_line

if TYPE_CHECKING:
    from fedmask.tasks.task import Split, Task

__all__ = ["AS_FOUND", "SOURCES", "Reading", "Source", "Split", "Stamp", "Task", "load_tasks", "stamp", "stamp_of"]

Stamp = Mapping[str, tuple[int, int, int] | None]
"""By path what tells that a file was written anew: size, times of content and of entry in ns; None: it is not there."""


@dataclass(frozen=True)
class Reading:
    """What a person says of how rows are read; None: as a source finds it."""

    text: str | None = None
    """The column of texts; of a pair's first."""
    text_b: str | None = None
    """The column of a pair's second texts."""
    label: str | None = None
    """The column of labels."""
    classes: tuple[str, ...] | None = None
    """Class names in the order of their indices; the data may lack some of them."""


AS_FOUND = Reading()
"""Nobody says anything."""


class _Module(Protocol):
    """The file of a source."""

    def load(self, root: str | None, names: Sequence[str] | None, reading: Reading) -> "tuple[Task, ...]":
        """The tasks, in the order of the names."""

    def stamp(self, root: str | None, names: Sequence[str] | None) -> Stamp:
        """Of the files that these tasks come from."""


@dataclass(frozen=True)
class Source:
    """Where tasks come from, and what it has to be told."""

    meaning: str
    module: str | None
    """Its file, imported at first use; None where this process cannot load it."""
    needs: tuple[str, ...] = ()
    """Keys of `data` that may not be null: root, tasks."""
    reads_folder: bool = False
    """Whether data.root means something to it."""
    has_columns: bool = False
    """Whether its columns can be named."""
    runs_code: bool = False
    """Whether reading it runs what lies beside the data."""


SOURCES: dict[str, Source] = {
    "demo": Source("generated, offline", "fedmask.tasks.demo"),
    "tsv": Source("tab-separated files without quotes", "fedmask.tasks.tsv", ("root", "tasks"), True, True),
    "csv": Source("files with quotes, as spreadsheets write", "fedmask.tasks.csv", ("root", "tasks"), True, True),
    "jsonl": Source("files of one JSON object a line", "fedmask.tasks.jsonl", ("root", "tasks"), True, True),
    "hub": Source("the datasets library", "fedmask.tasks.hub", ("tasks",), True, True),
    "python": Source(
        "fedmask.Task objects of your own", "fedmask.tasks.python", ("root", "tasks"), True, runs_code=True
    ),
    "own": Source("each deployed client's, by its own file", None),
}


def load_tasks(
    source: str,
    root: str | None = None,
    names: Sequence[str] | None = None,
    reading: Reading = AS_FOUND,
) -> "tuple[Task, ...]":
    """The tasks called `names` (all where None, if the source can list them) of a source in `SOURCES`, in that order.

    Raises FedmaskError: unknown source or task, a task asked for twice, and whatever is wrong with the data.
    """
    module = _module(source)
    if names is not None:
        _check_names(names)
    tasks = module.load(root, names, reading)
    _check_distinct([task.name for task in tasks])
    return tasks


def stamp(source: str, root: str | None, names: Sequence[str] | None) -> Stamp:
    """Of the files that these tasks come from, as far as they are known: those that a module of one's own reads are
    known once it has been loaded. Raises FedmaskError for an unknown source."""
    return _module(source).stamp(root, names)


def stamp_of(files: Iterable[Path]) -> Stamp:
    """Of these files, whether they are there or not."""
    return {str(file): _facts(file) for file in files}


def _facts(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _module(source: str) -> _Module:
    if source not in SOURCES:
        raise FedmaskError(f"unknown data source {source!r}; choose one of {', '.join(SOURCES)}")
    module = SOURCES[source].module
    if module is None:
        loadable = "|".join(name for name, entry in SOURCES.items() if entry.module is not None)
        raise FedmaskError(
            f"data={source}: the data of deployed clients, each of which names them in its own file; this process has "
            f"no such file, so take data={loadable}"
        )
    return cast(_Module, import_module(module))


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise FedmaskError("data.tasks is empty: name at least one task")
    for name in names:
        if not isinstance(name, str):
            raise FedmaskError(f"data.tasks: {name!r} is no text; a task's name stands in quotes: {str(name)!r}")
    _check_distinct(names)


def _check_distinct(names: Sequence[str]) -> None:
    """Scores and seeds go by a task's name."""
    repeated = sorted({in_line(name) for name in names if names.count(name) > 1})
    if repeated:
        raise FedmaskError(f"data.tasks has {', '.join(repeated)} more than once: every task needs a name of its own")


def __getattr__(name: str) -> Any:
    """Import `Task` and `Split` when they are first used."""
    if name in ("Split", "Task"):
        return getattr(import_module("fedmask.tasks.task"), name)
    raise AttributeError(f"module 'fedmask.tasks' has no attribute {name!r}")
