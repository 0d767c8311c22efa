"""Malformed replies of all kinds in a running federation, beside the same federation in which nothing arrives instead.

Half of the clients are bad: in each round one reply of each of them is spoiled, by the kinds of malformed.py in turn,
to whichever message the kind is of, and the others do not arrive. To be set up again, a client says that it lacks the
mask. None may be accepted, none may end the run, and what the good half comes to must have the same bits. Replies are
pulled one by one, as from a SuperLink.
"""

import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message

from faults.malformed import KINDS, malformed, rewrite
from faults.outcome import Outcome, Settings
from faults.runs import Finished, PulledGrid, finished_run, forget_peak, peak_megabytes
from fedmask.errors import FedmaskError
from fedmask.randomness import seed_for
from fedmask.runs.folder import holds_run
from fedmask.wire.ledger import UNKNOWN_CLIENT
from fedmask.wire.messages import facts_of
from server.app import SilentObserver
from server.compose import compose

DEFAULTS = (
    "model=tiny",
    "threads=1",
    "clients=10",
    "data.examples_per_client=8",
    "client.batch_size=8",
    "data.max_length=16",
)


MOST_MB = 10


@dataclass
class Bad:
    """The clients whose replies are spoiled, and which kind each reply is of."""

    clients: range
    number: int
    """Of replies to spoil; later ones do not arrive."""
    seed: int
    kinds: dict[tuple[int, int], str] = field(default_factory=dict)
    """By (round, client_id), of the spoiled replies."""

    def spoil(self, client_id: int, request: Message, reply: Message) -> Message | None:
        server_round, stage = int(request.metadata.group_id), request.metadata.message_type
        if not self._is_bad(client_id, request):
            return reply
        place = (server_round - 1) * len(self.clients) + client_id - self.clients.start
        if place >= self.number:
            return None
        kind = list(KINDS)[place % len(KINDS)]
        if stage == "train" and KINDS[kind].stage == "query.mask" and (server_round, client_id) not in self.kinds:
            self.kinds[(server_round, client_id)] = kind
            rewrite(reply, b"", {"missing": "mask"})  # it is sent the mask again, and asked again
            return reply
        if stage != KINDS[kind].stage:
            return None
        self.kinds[(server_round, client_id)] = kind
        generator = np.random.default_rng(seed_for(self.seed, "malformed", server_round, client_id))
        return malformed(kind, request, reply, generator)

    def drop(self, client_id: int, request: Message, reply: Message) -> Message | None:
        return None if self._is_bad(client_id, request) else reply

    def _is_bad(self, client_id: int, request: Message) -> bool:
        """Whether the reply is a bad client's, and of a round: the first set-up and the last scoring are sound."""
        if client_id not in self.clients or request.metadata.group_id == "0":
            return False
        return request.metadata.message_type != "evaluate" or facts_of(request.content).get("split") != "test"


class Causes(SilentObserver):
    """Remembers why replies were not accepted."""

    def __init__(self) -> None:
        self.by_reply: defaultdict[tuple[int, int], set[str]] = defaultdict(set)
        """By (round, client_id)."""

    def client_failed(self, server_round: int, client_id: int, cause: str, detail: str) -> None:
        if client_id != UNKNOWN_CLIENT:  # its client is counted as silent
            self.by_reply[(server_round, client_id)].add(cause)


def replies(number: int, settings: Settings) -> Outcome:
    """Spoil `number` replies. Both runs are made anew each time: what was rejected before a stop would not be known.

    Raises FedmaskError for a federation of one client.
    """
    config = compose([*DEFAULTS, *settings.overrides])
    if config.clients < 2:
        raise FedmaskError("clients=1: replies needs a good client and a bad one")
    bad = Bad(range((config.clients + 1) // 2, config.clients), number, config.seed)
    rounds = -(-number // len(bad.clients))
    overrides = [*DEFAULTS, *settings.overrides, f"rounds={rounds}", "score_every=1", "clients_per_round=null"]
    runs, causes, peaks = {}, Causes(), []
    for name, change, observer in (("silent", bad.drop, SilentObserver()), ("spoiled", bad.spoil, causes)):
        settings.say(f"replies: {rounds} rounds, the replies of {len(bad.clients)} of {config.clients} clients {name}")
        folder = settings.output / "replies" / name
        if holds_run(folder):
            shutil.rmtree(folder)
        forget_peak()
        runs[name] = finished_run(folder, overrides, change, observer, PulledGrid)
        peaks.append(peak_megabytes())
    different = _differences(runs["spoiled"], runs["silent"], bad.clients.start)
    return _outcome(bad, causes.by_reply, different, peaks[1] - peaks[0])


def _differences(spoiled: Finished, silent: Finished, num_good: int) -> list[str]:
    """What of the good clients' result differs from what it is when the bad ones are silent."""
    heads = [
        [path.read_bytes() for path in sorted(run.folder.glob("clients/*/head.safetensors"))[:num_good]]
        for run in (spoiled, silent)
    ]
    pairs = {
        "adapter": (spoiled.adapter, silent.adapter),
        "heads": heads,
        "train loss": [[line["train_loss"] for line in run.rounds] for run in (spoiled, silent)],
        "test scores": (spoiled.summary["score"], silent.summary["score"]),
    }
    return [name for name, (one, other) in pairs.items() if one != other]


def _outcome(bad: Bad, causes: Mapping[tuple[int, int], set[str]], different: list[str], megabytes: float) -> Outcome:
    sent, accepted = Counter(bad.kinds.values()), Counter[str]()
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for reply, kind in bad.kinds.items():
        told = causes.get(reply, set())
        if "no-reply" not in KINDS[kind].causes:  # the client's other reply of the round, which did not arrive
            told = told - {"no-reply"}
        accepted[kind] += not told or not told <= KINDS[kind].causes
        found[kind].update(told)
    rows = [
        (kind, ", ".join(sorted(found[kind])), str(sent[kind]), str(sent[kind] - accepted[kind]))
        for kind in sorted(sent)
    ]
    same = f"not the same bits: {', '.join(different)}" if different else "the good clients' result has the same bits"
    return Outcome(
        title="Malformed replies",
        limit="none is accepted, none ends the run, the good clients' result has the bits that it has without them, "
        f"and none takes more than {MOST_MB} MB",
        figure=f"{sent.total():,} of {len(sent)} kinds: {accepted.total()} accepted, the run came to its end, {same}, "
        f"{megabytes:.0f} MB more at most",
        passed=sent.total() == bad.number and not accepted.total() and not different and megabytes <= MOST_MB,
        columns=("what was wrong", "counted as", "sent", "rejected"),
        rows=tuple(rows),
        notes=(
            f"Clients {bad.clients.start} to {bad.clients.stop - 1} send one malformed reply a round, to be trained, "
            "scored or set up again, the kinds in turn; a kind draws its details by seed. A reply counts as rejected "
            "where the server told its client's failure in that round, with a cause that the kind may have.",
            "MB more: of the process's largest memory, beyond the run in which none of them arrives.",
            "Same bits: adapter, the good clients' heads, each round's train loss and the test scores, beside a run in "
            "which the replies of the same clients never arrive.",
        ),
    )
