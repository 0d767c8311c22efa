"""Clients that lie in what they say of themselves, beside the same federation in which they do not.

What a lie moves is compared with what the same client could move anyway: by the same vector, sent as one of its own
task, with the number of examples that it has. Who cannot be believed is left out, and the others' run goes on.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from shutil import rmtree
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from numpy.typing import NDArray

from client.app import app as client_app
from faults.malformed import rewrite
from faults.outcome import Outcome, Settings
from faults.runs import Change, ChangingGrid, forget_peak, is_train, peak_megabytes, unchanged
from faults.updates import payload_with, vectors_of
from fedmask.errors import FedmaskError
from fedmask.runs.folder import ADAPTER
from fedmask.runs.registry import FILE, VARIABLE, Binding, bind
from fedmask.training.delta import load_adapter
from fedmask.wire.messages import Fact, facts_of, payload_of
from server.app import SilentObserver, num_clients, resolved, run_federation
from server.compose import compose

DEFAULTS = (
    "model=tiny",
    "mask.density=0.01",
    "threads=1",
    "clients=8",
    "data.tasks=[topic,question_type]",
    "data.examples_per_client=8",
    "data.max_length=16",
    "rounds=1",
)
LIAR = 0
"""The client that lies."""

OWN_TASK = {"task": "mine", "head-layout": "f" * 64}
MOST_EXAMPLES = 10**9
LARGEST_HEAD, CLASSES = 2**22, 64_000
MOST_MB = 100
"""That the server's process may grow by over a lie."""

ROUNDING = 1e-6
"""A fraction of a movement: sums in another order."""


def is_set_up(request: Message) -> bool:
    return bool(request.metadata.message_type == "query.mask")


def says(facts: dict[str, Fact], then: Change = unchanged) -> Change:
    """The liar claims these facts when it is set up; its other replies are `then`'s."""

    def change(client_id: int, request: Message, reply: Message) -> Message | None:
        if client_id == LIAR and is_set_up(request) and not reply.has_error():
            rewrite(reply, facts={**facts_of(reply.content), **facts})
        return then(client_id, request, reply)

    return change


def sends(value: float, num_examples: int | None = None) -> Change:
    """The liar's update is this value in every entry, of as many examples as it is told to claim."""

    def change(client_id: int, request: Message, reply: Message) -> Message:
        if client_id == LIAR and is_train(request):
            vectors = [
                replace(each, values=np.full_like(each.values, value)) for each in vectors_of(payload_of(reply.content))
            ]
            more = {} if num_examples is None else {"num-examples": num_examples}
            rewrite(reply, payload_with(vectors), {**facts_of(reply.content), **more})
        return reply

    return change


class RegisteredGrid(ChangingGrid):
    """A grid whose nodes have keys, as a SuperLink tells them: `key of client 3`."""

    def get_nodes(self) -> Iterable[NodeInfo]:
        for node_id in self.get_node_ids():
            number = self.context(node_id).node_config["partition-id"]
            yield NodeInfo(node_id=node_id, public_key=f"key of client {number}".encode())


@dataclass(frozen=True)
class Lie:
    """What a client says, how the server is set up against it, and what it is held against."""

    name: str
    change: Change
    protection: tuple[str, ...]
    beside: Change
    """What the same client does that is no lie: its movement is the honest share; `absent` where it is to have none."""


def absent(client_id: int, request: Message, reply: Message) -> Message | None:
    """Nothing ever comes of the liar."""
    return None if client_id == LIAR else reply


def refuses(client_id: int, request: Message, reply: Message) -> Message:
    if client_id == LIAR and is_set_up(request):
        reply.content = RecordDict()
    return reply


WITHOUT_ONE = "server.min_clients=7"
LIES = (
    *(
        Lie("a task of its own", says(OWN_TASK, sends(1.0)), (f"server.combine={rule}",), sends(1.0))
        for rule in ("median", "trimmed_mean")
    ),
    Lie("10^9 examples, in its updates", sends(1.0, MOST_EXAMPLES), ("server.clip_norm=0.01",), sends(1.0)),
    Lie(
        "10^9 examples, from the start",
        says({"num-examples": MOST_EXAMPLES}, sends(1.0, MOST_EXAMPLES)),
        ("server.clip_norm=0.01", "server.max_examples=8"),
        sends(1.0),
    ),
    Lie("a head of 2^22 numbers", says({"head-size": LARGEST_HEAD}), ("client.head=shared", WITHOUT_ONE), absent),
    Lie(
        "a head of 2^22 numbers, with as many classes",
        says({"head-size": CLASSES * 65, "num-classes": CLASSES, **OWN_TASK}),
        ("client.head=shared", WITHOUT_ONE),
        absent,
    ),
    Lie("another client's id", says({"client-id": 3}), (WITHOUT_ONE,), absent),
    Lie("nothing that can be read", refuses, (WITHOUT_ONE,), absent),
)


# ----------------------------------------------------------------------------------------------------------------------
# Running
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """One lie's run beside the others."""

    moved: float
    """L2 norm of what the lie moves of the global delta, away from the run in which nobody lies or is absent."""
    share: float
    """The same for what its client does without the lie."""
    megabytes: float
    """By which this process has grown at most."""
    left_out: tuple[str, ...]

    @property
    def held(self) -> bool:
        return self.moved <= self.share * (1 + ROUNDING) and self.megabytes <= MOST_MB


def liars(number: int, settings: Settings) -> Outcome:
    """Let client 0 tell each of LIES. Raises FedmaskError for more liars than one."""
    if number != 1:
        raise FedmaskError(f"liars={number}: must be 1: one client of eight lies, in every way in turn")
    told = {lie: _told(lie, settings) for lie in LIES}
    told_again = _resumed_with_other_rows(settings)
    rows = [(lie.name, " ".join(lie.protection), *_shown(found)) for lie, found in told.items()]
    rows.append(("other rows, on a resume", WITHOUT_ONE, "", "", "", "yes" if told_again else "no"))
    failed = [row[0] for row in rows if row[-1] != "yes"]
    return Outcome(
        title="Clients that lie",
        limit="nothing moves the global delta by more than the client's honest share, the others' run goes on, and the "
        f"process grows by at most {MOST_MB} MB",
        figure=f"{len(rows)} lies of one of eight clients: "
        + (f"not held: {', '.join(failed)}" if failed else "all held"),
        passed=not failed,
        columns=("what client 0 says", "the server's settings", "moved", "honest share", "MB more", "held"),
        rows=tuple(rows),
        notes=(
            "Moved: L2 norm of the change of the global delta after one round, beside the run in which client 0 is "
            "honest, or, where the lie leaves it out, absent. Honest share: the same for the same vector, all ones, "
            "sent by client 0 without the lie; 0 where nothing may move. MB more: growth of the process's largest "
            "memory over the run. Clients are registered: each key is bound to its client_id, as register_client.py "
            "does it.",
        ),
    )


def _shown(found: Told) -> tuple[str, ...]:
    return f"{found.moved:.4g}", f"{found.share:.4g}", f"{found.megabytes:.0f}", "yes" if found.held else "no"


def _told(lie: Lie, settings: Settings) -> Told:
    settings.say(f"liars: {lie.name}, {' '.join(lie.protection)}")
    reference = absent if lie.beside is absent else unchanged
    honest, _ = _delta(reference, lie, settings, "honest")
    beside, _ = _delta(lie.beside, lie, settings, "beside")
    forget_peak()
    before = peak_megabytes()
    lied, left_out = _delta(lie.change, lie, settings, "lie")
    return Told(
        float(np.linalg.norm(lied - honest)),
        float(np.linalg.norm(beside - honest)),
        peak_megabytes() - before,
        left_out,
    )


def _delta(change: Change, lie: Lie, settings: Settings, name: str) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """The global delta after the run, and who was left out of it."""
    folder = settings.output / "liars" / name
    if folder.exists():
        rmtree(folder)
    summary = _run([*DEFAULTS, *settings.overrides, *lie.protection, f"output={folder}"], change, settings)
    return load_adapter(folder / ADAPTER).values.astype(np.float64), tuple(summary["left_out"])


def _run(overrides: list[str], change: Change, settings: Settings) -> dict[str, Any]:
    config = resolved(compose(overrides), datetime.now())
    registry = settings.output / "liars" / FILE
    for number in range(config.clients):
        bind(registry, f"key of client {number}", Binding(f"client-{number}.pub", number))
    grid = RegisteredGrid(client_app, num_clients(config), change, config.seed)
    os.environ[VARIABLE] = str(registry)
    try:
        return run_federation(grid, config, SilentObserver())
    finally:
        del os.environ[VARIABLE]


def _resumed_with_other_rows(settings: Settings) -> bool:
    """Whether a run of two rounds, stopped after one, goes on without a client whose rows are others now."""
    settings.say("liars: other rows, on a resume")
    folder = settings.output / "liars" / "resumed"
    if folder.exists():
        rmtree(folder)
    overrides = [*DEFAULTS, *settings.overrides, WITHOUT_ONE]
    _run([*overrides, f"output={folder}"], unchanged, settings)
    summary = _run([f"resume={folder}", "rounds=2"], says({"data-digest": "0" * 16}), settings)
    return list(summary["left_out"]) == [f"client {LIAR}"] and summary["mean_score"] is not None
