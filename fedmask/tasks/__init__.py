"""Tasks: what clients train on and are scored by. In: the name of a source. Out: `Task`s, which `partition` deals out.

A new source is one file with a loader `(root, names) -> tasks`, and one line in `SOURCES`.
"""

from collections.abc import Callable, Sequence

from fedmask.errors import FedmaskError
from fedmask.tasks.task import Split, Task, unknown_task

__all__ = ["SOURCES", "Split", "Task", "load_tasks"]

Loader = Callable[[str | None, Sequence[str] | None], tuple[Task, ...]]
"""(root, names) -> tasks, in the order of the names."""


def load_tasks(source: str, root: str | None = None, names: Sequence[str] | None = None) -> tuple[Task, ...]:
    """The tasks called `names` (all where None, if the source can list them) of a source in `SOURCES`, in that order.

    Raises FedmaskError: unknown source or task, a task asked for twice, and whatever is wrong with the data.
    """
    if source not in SOURCES:
        raise FedmaskError(f"unknown data source {source!r}; choose one of {', '.join(SOURCES)}")
    if names is not None and not names:
        raise FedmaskError("data.tasks is empty: name at least one task")
    tasks = SOURCES[source](root, names)
    _check_distinct(tasks)
    return tasks


# Each loader imports its own file when it is called, so that only the hub needs the data set library.
def _demo(root: str | None, names: Sequence[str] | None) -> tuple[Task, ...]:
    from fedmask.tasks.demo import DEMO_TASKS

    names = tuple(DEMO_TASKS) if names is None else names
    for name in names:
        if name not in DEMO_TASKS:
            raise unknown_task(name, DEMO_TASKS, "the demo")
    return tuple(DEMO_TASKS[name]() for name in names)


def _tsv(root: str | None, names: Sequence[str] | None) -> tuple[Task, ...]:
    from fedmask.tasks.tsv import load

    return load(root, names)


def _hub(root: str | None, names: Sequence[str] | None) -> tuple[Task, ...]:
    from fedmask.tasks.hub import load

    return load(root, names)


def _python(root: str | None, names: Sequence[str] | None) -> tuple[Task, ...]:
    from fedmask.tasks.python import load

    return load(root, names)


def _own(root: str | None, names: Sequence[str] | None) -> tuple[Task, ...]:
    raise FedmaskError(
        "data=own: the data of deployed clients, each of which names them in its own file; this process has no such "
        "file, so take data=demo|tsv|hub|python"
    )


SOURCES: dict[str, Loader] = {"demo": _demo, "tsv": _tsv, "hub": _hub, "python": _python, "own": _own}


def _check_distinct(tasks: Sequence[Task]) -> None:
    """Scores and seeds go by a task's name."""
    names = [task.name for task in tasks]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise FedmaskError(f"data.tasks has {', '.join(repeated)} more than once: every task needs a name of its own")
