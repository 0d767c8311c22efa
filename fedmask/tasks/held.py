"""Tasks that a process holds: the same objects for as long as the files they came from are as they were."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedmask.tasks import Reading, Stamp, load_tasks, stamp

if TYPE_CHECKING:
    from fedmask.tasks.task import Task

MAX_HELD = 4
"""Sets of tasks: those of a run, and of the runs that it is compared with."""

_held: dict[tuple[str, str | None, tuple[str, ...] | None, Reading], tuple[Stamp, "tuple[Task, ...]"]] = {}


def held_tasks(source: str, root: str | None, names: Sequence[str] | None, reading: Reading) -> "tuple[Task, ...]":
    """`load_tasks`, once for the same arguments while no file has changed. Raises FedmaskError as it does."""
    key = (source, root, None if names is None else tuple(names), reading)
    found, now = _held.pop(key, None), stamp(source, root, names)
    if found is None or found[0] != now:
        tasks = load_tasks(source, root, names, reading)
        # A file that changes while it is read counts as it was before; those that only loading finds are added.
        found = {**stamp(source, root, names), **now}, tasks
    _held[key] = found
    while len(_held) > MAX_HELD:
        del _held[next(iter(_held))]
    return found[1]


def forget_tasks() -> None:
    """Hold none."""
    _held.clear()
