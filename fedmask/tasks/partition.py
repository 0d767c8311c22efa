"""Deals the training rows of tasks out to clients: tasks -> one `ClientData` a client.

Client i has task i mod (number of tasks). Inside a task the rows that its clients will have are drawn first, and the
partitioners of flwr-datasets deal them out; no row goes to two clients. iid and dirichlet deal out the same draw, which
keeps the label balance of the whole train split: they differ in who has a row, and in nothing else.
"""

import contextlib
import hashlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmask.errors import FedmaskError
from fedmask.randomness import seed_for
from fedmask.tasks.labels import listed
from fedmask.tasks.notes import counted
from fedmask.tasks.task import Split, Task

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

SCHEMES = ("iid", "dirichlet", "natural")

FEWEST_EXAMPLES = 2
"""Under dirichlet no client has fewer examples than this (or than the mean, where that is 1)."""


@dataclass(frozen=True, eq=False)
class ClientData:
    """What one client has: its task and its own training rows."""

    client_id: int
    """From 0."""
    task: Task
    rows: np.ndarray
    """int64 (n,): its rows of the task's train split."""
    label_mix: np.ndarray | None
    """Fractions (C,) of its own training labels, by class; None for regression."""

    @property
    def num_examples(self) -> int:
        return len(self.rows)

    @property
    def train(self) -> Split:
        """Its training examples, picked out anew at each call."""
        return self.task.train.take(self.rows)

    @property
    def digest(self) -> str:
        """16 hex digits that other rows to train on, or other rows to be scored on, would not give."""
        splits = (self.train, self.task.validation, self.task.test)
        return hashlib.sha256("".join(split.digest for split in splits).encode()).hexdigest()[:16]


def partition(
    tasks: Sequence[Task],
    num_clients: int,
    scheme: str = "natural",
    alpha: float = 0.5,
    examples_per_client: int | None = None,
    seed: int = 0,
) -> tuple[ClientData, ...]:
    """The clients 0 .. num_clients - 1 with their data; the same for the same arguments, in every process.

    - `iid`: rows at random, `examples_per_client` each; where it is None, or there are fewer rows, all of them, sizes
      differ by at most one.
    - `dirichlet`: each class is shared out over the task's clients by proportions from Dirichlet(alpha), alpha > 0,
      small is skewed; `examples_per_client` is the mean, nobody has fewer than `FEWEST_EXAMPLES`.
    - `natural`: by task and, inside a task with domains, by domain: its clients take the domains in sorted order by
      turns, and those of one domain share it iid. A task without domains is dealt out iid.

    Raises FedmaskError: an unknown scheme, fewer clients than tasks, alpha out of range, dirichlet on a regression, or
    more clients than rows.
    """
    _check_arguments(tasks, num_clients, scheme, alpha, examples_per_client)
    groups = [
        group
        for index, task in enumerate(tasks)
        for group in _groups(task, range(index, num_clients, len(tasks)), by_domain=scheme == "natural")
    ]
    _check_sizes(groups)
    rows: dict[int, np.ndarray] = {}
    for group in groups:
        drawn = _draw(group, examples_per_client, seed)
        if scheme == "dirichlet":
            parts = _dirichlet_parts(group, drawn, alpha, seed)
        else:
            parts = _iid_parts(len(drawn), len(group.client_ids))
        rows.update({client: drawn[part] for client, part in zip(group.client_ids, parts, strict=True)})
    return tuple(_client(client, tasks[client % len(tasks)], rows[client]) for client in range(num_clients))


def sole_client(client_id: int, task: Task, examples: int | None, seed: int) -> ClientData:
    """A client that shares its task's rows with nobody: at most `examples` of them, all where None.

    They are the rows that `partition` gives the only client of this task, under iid.
    """
    group = _Group(task, None, np.arange(len(task.train)), [client_id])
    return _client(client_id, task, _draw(group, examples, seed))


def notes_for(clients: Sequence[ClientData], examples_per_client: int | None) -> list[str]:
    """What a person should know of these clients' data before a run: the notes of their tasks, classes and domains that
    no client got, and tasks with fewer rows than were asked for."""
    by_task: dict[Task, list[ClientData]] = {}
    for client in clients:
        by_task.setdefault(client.task, []).append(client)
    return [
        f"task {task.name}: {note}"
        for task, group in by_task.items()
        for note in (*task.notes, *_dealing_notes(task, group, examples_per_client))
    ]


def _dealing_notes(task: Task, clients: Sequence[ClientData], examples_per_client: int | None) -> Iterator[str]:
    rows = np.concatenate([client.rows for client in clients])
    sizes = [client.num_examples for client in clients]
    if examples_per_client is not None and len(rows) < examples_per_client * len(clients):
        dealt = f"{min(sizes):,}" if min(sizes) == max(sizes) else f"{min(sizes):,} to {max(sizes):,}"
        asked = f"data.examples_per_client={examples_per_client} for {counted(len(clients), 'client')}"
        yield f"fewer training rows than {asked}: {dealt} each, all there are"
    if task.labels is not None:
        there, dealt_out = set(task.train.labels.tolist()), set(task.train.labels[rows].tolist())
        left = [task.labels[index] for index in sorted(there - dealt_out)]
        yield from _left_out("classes", left, len(there))
    if (domains := task.train.domains) is not None:
        left = sorted(set(domains) - {domains[row] for row in rows})
        yield from _left_out("domains", left, len(set(domains)))


def _left_out(what: str, names: Sequence[str], number: int) -> Iterator[str]:
    if names:
        yield f"no client got a row of {len(names)} of its {number} {what}: {listed(names)}"


@dataclass(frozen=True, eq=False)
class _Group:
    """Clients that share rows: all rows of a task, or those of one domain of it."""

    task: Task
    domain: str | None
    rows: np.ndarray
    client_ids: Sequence[int]

    @property
    def name(self) -> str:
        name = f"task {self.task.name}"
        return name if self.domain is None else f"{name}, domain {self.domain},"


def pool(clients: Sequence[ClientData]) -> tuple[ClientData, ...]:
    """One client a task, in the order of the tasks, with the training rows of all of the task's clients."""
    by_task: dict[str, list[ClientData]] = {}
    for client in clients:
        by_task.setdefault(client.task.name, []).append(client)
    return tuple(_pooled(client_id, group) for client_id, group in enumerate(by_task.values()))


def _pooled(client_id: int, group: Sequence[ClientData]) -> ClientData:
    return _client(client_id, group[0].task, np.concatenate([client.rows for client in group]))


def _groups(task: Task, client_ids: Sequence[int], by_domain: bool) -> list[_Group]:
    domains = task.train.domains
    if not by_domain or domains is None or len(set(domains)) == 1:
        return [_Group(task, None, np.arange(len(task.train)), client_ids)]
    rows = _rows_by_domain(domains)
    return [
        _Group(task, domain, rows[domain], client_ids[turn :: len(rows)])
        for turn, domain in enumerate(sorted(rows)[: len(client_ids)])
    ]


def _draw(group: _Group, examples_per_client: int | None, seed: int) -> np.ndarray:
    """The rows (m,) that the group's clients share, in random order; each class keeps its fraction to within a row."""
    generator = np.random.default_rng(seed_for(seed, "partition", group.task.name, group.domain or ""))
    rows = generator.permutation(group.rows)
    wanted = len(rows) if examples_per_client is None else examples_per_client * len(group.client_ids)
    size = min(wanted, len(rows))
    if group.task.labels is None:
        return rows[:size]
    _, classes, counts = np.unique(group.task.train.labels[rows], return_inverse=True, return_counts=True)
    # Largest remainder: the quotas count * size / n rounded so that they sum to size.
    quotas, remainders = np.divmod(counts * size, len(rows))
    quotas[np.argsort(-remainders, kind="stable")[: size - quotas.sum()]] += 1
    chosen = [rows[classes == index][:quota] for index, quota in enumerate(quotas)]
    return generator.permutation(np.concatenate(chosen))


def _iid_parts(size: int, num_parts: int) -> list[list[int]]:
    """Positions 0 .. size - 1 of a draw, which is in random order already; sizes of the parts differ by at most one."""
    from flwr_datasets.partitioner import IidPartitioner

    return _load(IidPartitioner(num_parts), {"row": np.arange(size)})


def _dirichlet_parts(group: _Group, drawn: np.ndarray, alpha: float, seed: int) -> list[list[int]]:
    """Positions in the draw: each class shared out by Dirichlet(alpha) over the group's clients.

    Proportions are drawn per class, not a label mix per client: every row drawn is dealt out, so that the
    population keeps the draw's label balance. A part that is above the mean already gets no more (`self_balancing`).
    """
    from flwr_datasets.partitioner import DirichletPartitioner

    num_parts = len(group.client_ids)
    # The partitioner's own minimum draws again and gives up after ten times: it is out of reach for a small alpha.
    partitioner = DirichletPartitioner(
        num_parts,
        partition_by="label",
        alpha=float(alpha),
        min_partition_size=0,
        self_balancing=True,
        seed=seed_for(seed, "dirichlet", group.task.name),
    )
    # A tiny alpha can leave a class no proportion above zero; it then goes to the last part as a whole.
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = _load(partitioner, {"row": np.arange(len(drawn)), "label": group.task.train.labels[drawn]})
    _fill_up(parts, min(FEWEST_EXAMPLES, len(drawn) // num_parts))
    return parts


def _fill_up(parts: list[list[int]], fewest: int) -> None:
    """Moves rows, each from the largest part of the moment, until every part has `fewest`."""
    sizes = np.array([len(part) for part in parts])
    for short in np.flatnonzero(sizes < fewest):
        while sizes[short] < fewest:
            largest = int(sizes.argmax())
            parts[short].append(parts[largest].pop())
            sizes[short] += 1
            sizes[largest] -= 1


def _rows_by_domain(domains: Sequence[str]) -> dict[str, np.ndarray]:
    from flwr_datasets.partitioner import NaturalIdPartitioner

    partitioner = NaturalIdPartitioner(partition_by="domain")
    with contextlib.redirect_stderr(io.StringIO()):  # it shows a progress bar of its own
        parts = _load(partitioner, {"row": np.arange(len(domains)), "domain": list(domains)})
    return {partitioner.partition_id_to_natural_id[index]: np.array(part) for index, part in enumerate(parts)}


def _load(partitioner: "Partitioner", columns: Mapping[str, Any]) -> list[list[int]]:
    """The column `row` of each of the partitioner's parts."""
    from datasets import Dataset

    partitioner.dataset = Dataset.from_dict(dict(columns))
    return [partitioner.load_partition(index)[:]["row"] for index in range(partitioner.num_partitions)]


def _client(client_id: int, task: Task, rows: np.ndarray) -> ClientData:
    return ClientData(client_id, task, rows, _label_mix(task, rows))


def _label_mix(task: Task, rows: np.ndarray) -> np.ndarray | None:
    """Fractions (C,) of the classes in these rows; None for regression."""
    if task.labels is None:
        return None
    return np.bincount(task.train.labels[rows], minlength=len(task.labels)) / len(rows)


def _check_arguments(
    tasks: Sequence[Task], num_clients: int, scheme: str, alpha: float, examples_per_client: int | None
) -> None:
    if scheme not in SCHEMES:
        raise FedmaskError(f"unknown data.partition={scheme!r}; choose one of {', '.join(SCHEMES)}")
    if not tasks or num_clients < len(tasks):
        raise FedmaskError(f"clients={num_clients} for {len(tasks)} tasks: each task needs at least one client")
    if examples_per_client is not None and examples_per_client < 1:
        raise FedmaskError(f"data.examples_per_client={examples_per_client}: it must be at least 1, or null for all")
    if scheme != "dirichlet":
        return
    if not (alpha > 0 and math.isfinite(alpha)):
        raise FedmaskError(f"data.alpha={alpha}: it must be a number above 0")
    for task in tasks:
        if task.labels is None:
            raise FedmaskError(
                f"data.partition=dirichlet skews class labels, and task {task.name} is a regression; "
                "take iid or natural"
            )


def _check_sizes(groups: Sequence[_Group]) -> None:
    """Every client of a group must have a row of it."""
    for group in groups:
        if len(group.rows) < len(group.client_ids):
            raise FedmaskError(
                f"{group.name} has {len(group.rows)} training rows for {len(group.client_ids)} clients: ask for fewer "
                "clients"
            )
