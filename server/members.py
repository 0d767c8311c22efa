"""Who takes part. In: what a client says of itself in round 0. Out: a `Member`; and whether the members of one task
mean the same by it.

A score of a task is a mean over its clients, and so is its shared head: both need one metric, and the same classes in
one order. What the classes are called stays with the clients; their number and digests tell whether they differ.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedmask.errors import FedmaskError
from fedmask.runs.registry import Binding
from fedmask.shown import harmless, shown
from fedmask.tasks.metrics import METRICS
from fedmask.wire.messages import Facts, whole_number, word

MAX_HEAD_SIZE = 2**22
"""Numbers in a head above which a client's word is not taken for it: the server holds shared heads in memory."""

MAX_HEADS_SIZE = 2**24
"""Numbers in all shared heads together, one a layout: the server holds each, some codecs twice."""

MAX_TASK_CHARACTERS = 200
"""Of a task's name; each member's is held and shown."""

MAX_EXAMPLES = 10**9
"""A larger number of examples is no client's, but a fault or an attack on the mean."""

_LAYOUT_DIGEST = re.compile("[0-9a-f]{64}")
_SHORT_DIGEST = re.compile("[0-9a-f]{16}")
_NAME_THE_CLASSES = (
    "give all of them the same classes in one order: data.classes=[...] of the run, or data: {classes: [...]} in "
    "client.yaml"
)


@dataclass(frozen=True, slots=True)
class Member:
    """A client as it introduced itself in round 0."""

    client_id: int
    node_id: int
    task: str
    metric: str
    head_layout: str
    head_size: int
    num_classes: int
    """0: a regression."""
    classes_digest: str
    """16 hex digits: of the class names in whatever order."""
    num_examples: int
    """That it trains on in a round."""
    data_digest: str
    """Tells whether a client's rows are those that it had before, and nothing of them."""


def introduced(client_id: int, node_id: int, facts: Facts) -> Member:
    """The member that a client is by its reply to the mask. Raises FedmaskError for what no client can be."""
    metric, layout, size = word(facts, "metric"), word(facts, "head-layout"), whole_number(facts, "head-size")
    if metric not in METRICS or not _LAYOUT_DIGEST.fullmatch(layout) or not 0 < size <= MAX_HEAD_SIZE:
        raise FedmaskError(
            f"client {client_id} has metric {metric[:80]!r}, head layout {layout[:80]!r} and head size "
            f"{shown(size)}, which this server does not know; run the same version of fedmask on both"
        )
    task = word(facts, "task")
    if len(task) > MAX_TASK_CHARACTERS:
        raise FedmaskError(f"client {client_id} has a task whose name is {len(task):,} characters long")
    if harmless(task) != task or {"\n", "\t"} & set(task):  # escape sequences, and halves of characters
        raise FedmaskError(f"client {client_id} has a task named {shown(task)}; it must have printable characters only")
    # Interned: thousands of clients share a few tasks, and each reply brings the words anew.
    return Member(
        client_id=client_id,
        node_id=node_id,
        task=sys.intern(task),
        metric=sys.intern(metric),
        head_layout=sys.intern(layout),
        head_size=size,
        num_classes=_count(client_id, facts, "num-classes", 0, MAX_HEAD_SIZE),
        classes_digest=sys.intern(_short_digest(client_id, facts, "classes-digest")),
        num_examples=_count(client_id, facts, "num-examples", 1, MAX_EXAMPLES),
        data_digest=_short_digest(client_id, facts, "data-digest"),
    )


def check_head(member: Member, hidden_size: int) -> None:
    """Raises FedmaskError for a head that is not the linear one of the base model and the task's classes."""
    expected = max(member.num_classes, 1) * (hidden_size + 1)
    if member.head_size != expected:
        raise FedmaskError(
            f"client {member.client_id} has head size {member.head_size}; with {member.num_classes} classes and "
            f"features of {hidden_size} numbers it would be {expected}; run the same version of fedmask on both"
        )


def check_budget(sizes: Mapping[str, int], member: Member) -> None:
    """Raises FedmaskError where one more shared head is more than the server holds. sizes: by layout, of the others."""
    total = sum(sizes.values()) + (0 if member.head_layout in sizes else member.head_size)
    if total > MAX_HEADS_SIZE:
        raise FedmaskError(
            f"client {member.client_id} brings another shared head, and all of them together would have {total:,} "
            f"numbers, allowed are {MAX_HEADS_SIZE:,}; take client.head=local, or fewer tasks"
        )


def check_binding(member: Member, binding: Binding) -> None:
    """Raises FedmaskError where a client claims what its key was not registered for."""
    whose = f"client {member.client_id} ({binding.key_name})"
    if binding.task is not None and member.task != binding.task:
        raise FedmaskError(f"{whose} is registered for task {binding.task}, and claims task {member.task}")
    if binding.max_examples is not None and member.num_examples > binding.max_examples:
        raise FedmaskError(
            f"{whose} is registered with at most {binding.max_examples} examples, and claims {member.num_examples}"
        )


def _count(client_id: int, facts: Facts, name: str, low: int, high: int) -> int:
    value = whole_number(facts, name)
    if not low <= value <= high:
        raise FedmaskError(f"client {client_id} has {name} {value}, allowed is {low:,} to {high:,}")
    return value


def _short_digest(client_id: int, facts: Facts, name: str) -> str:
    digest = word(facts, name)
    if not _SHORT_DIGEST.fullmatch(digest):
        raise FedmaskError(f"client {client_id} has {name} {digest[:80]!r}, expected 16 hex digits")
    return digest


# ----------------------------------------------------------------------------------------------------------------------
# One task, one meaning
# ----------------------------------------------------------------------------------------------------------------------


def check_tasks(members: Iterable[Member]) -> None:
    """Raises FedmaskError, in one line, where clients of one task differ in metric, classes or the order of classes, or
    clients of two tasks have one head."""
    members = list(members)
    if differing := _differing(members):
        first, *others = sorted(differing)
        also = f" (and so do those of {', '.join(others)})" if others else ""
        raise FedmaskError(f"the clients of task {first} do not mean the same by it{also}: {_told(differing[first])}")
    for groups in _sharing_a_head(members).values():
        one, other, *_ = (group[0] for group in _by_size(groups))
        raise FedmaskError(
            f"client {one.client_id} of task {one.task} and client {other.client_id} of task {other.task} name one "
            "head layout, which belongs to one task; run the same version of fedmask on both"
        )


def apart(members: Iterable[Member], witnessed: Collection[int] = ()) -> dict[int, str]:
    """By client_id, of those who mean another thing by their task than most of its clients, what differs.

    witnessed: client_ids of those whose task does not rest on their word alone: a group with more of them counts as
    larger.
    """
    members = list(members)

    def by_trust(groups: Sequence[Sequence[Member]]) -> list[Sequence[Member]]:
        return sorted(_by_size(groups), key=lambda group: -sum(member.client_id in witnessed for member in group))

    left_out = {
        member.client_id: f"names the head of task {most[0].task}, and has task {member.task}"
        for groups in _sharing_a_head(members).values()
        for most, *others in [by_trust(groups)]
        for group in others
        for member in group
    }
    return left_out | {
        member.client_id: f"does not mean by task {task} what most of its clients do: {_told(groups)}"
        for task, groups in _differing(each for each in members if each.client_id not in left_out).items()
        for group in by_trust(groups)[1:]
        for member in group
    }


def _differing(members: Iterable[Member]) -> dict[str, list[list[Member]]]:
    """By task the groups that mean the same by it, of the tasks that have more than one."""
    return _split(members, lambda member: member.task, _meaning)


def _sharing_a_head(members: Iterable[Member]) -> dict[str, list[list[Member]]]:
    """By head layout the groups of one task each, of the layouts that have more than one."""
    return _split(members, lambda member: member.head_layout, lambda member: (member.task,))


def _split(
    members: Iterable[Member], within: Callable[[Member], str], by: Callable[[Member], tuple[object, ...]]
) -> dict[str, list[list[Member]]]:
    groups: dict[str, dict[tuple[object, ...], list[Member]]] = defaultdict(lambda: defaultdict(list))
    for member in sorted(members, key=lambda member: member.client_id):
        groups[within(member)][by(member)].append(member)
    return {name: list(found.values()) for name, found in groups.items() if len(found) > 1}


def _by_size(groups: Sequence[Sequence[Member]]) -> list[Sequence[Member]]:
    return sorted(groups, key=lambda group: (-len(group), group[0].client_id))


def _meaning(member: Member) -> tuple[object, ...]:
    return member.metric, member.num_classes, member.classes_digest, member.head_layout


def _told(groups: Sequence[Sequence[Member]]) -> str:
    """How the largest group and the one after it differ, and what to do."""
    most, other, *_ = _by_size(groups)
    (one, ones), (two, twos) = ((group[0], _named(group)) for group in (most, other))
    if (one.num_classes == 0) != (two.num_classes == 0):
        kinds = ("a regression" if each.num_classes == 0 else f"of {each.num_classes} classes" for each in (one, two))
        return f"it is {next(kinds)} at {ones} and {next(kinds)} at {twos}; call one of them another task"
    if one.metric != two.metric:
        scored = f"{one.metric} at {ones} and by {two.metric} at {twos}"
        return f"it is scored by {scored}; give it one metric, or call one of them another task"
    if one.num_classes != two.num_classes:
        return f"{ones} with {one.num_classes} classes, {twos} with {two.num_classes}; {_NAME_THE_CLASSES}"
    if one.classes_digest != two.classes_digest:
        return f"{ones} and {twos} with {one.num_classes} classes each, but not the same; {_NAME_THE_CLASSES}"
    if one.head_size != two.head_size:
        sizes = f"{one.head_size} numbers at {ones} and {two.head_size} at {twos}"
        return f"their heads have {sizes}, for the same classes; use one base model"
    return f"{ones} and {twos} with the same {one.num_classes} classes in another order; {_NAME_THE_CLASSES}"


def _named(group: Sequence[Member]) -> str:
    """The first by its id, the others counted."""
    others = f" and {len(group) - 1} more" if len(group) > 1 else ""
    return f"client {group[0].client_id}{others}"
