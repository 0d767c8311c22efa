"""The Flower Strategy: one shared mask, masked updates, their weighted mean.

Round t:  cohort -> global delta down -> updates up -> check each -> weighted mean in client order -> new global delta
-> counts of the cohort's models on the validation split. After the last round, every client that took part is scored on
the test split. Each message's bytes go into the ledger. A reply that cannot be used is counted by cause and leaves no
trace in any sum.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from numpy.typing import NDArray

from fedmask.aggregation import WeightedMean
from fedmask.errors import FedmaskError, RejectedMessage
from fedmask.masks import Mask
from fedmask.randomness import seed_for
from fedmask.wire.ledger import Ledger
from fedmask.wire.messages import config_of, metrics_of, pack, payload_of, wire_bytes
from fedmask.wire.setup import Settings, Setup
from fedmask.wire.vectors import NamedVector, frame, unframe
from server.scores import ClientScore, Scores

MAX_EXAMPLES = 10**9
"""num_examples above this is no client's number of examples but a fault or an attack on the mean."""


@dataclass(frozen=True)
class Member:
    """A client as it introduced itself in round 0."""

    client_id: int
    node_id: int
    task: str
    metric: str
    head_layout: str
    head_size: int


@dataclass(frozen=True)
class RoundReport:
    """What a round came to."""

    round: int
    cohort: tuple[int, ...]
    failure_causes: dict[str, int]
    train_loss: float | None
    scores: Scores
    seconds: float


class Observer(Protocol):
    """Whoever watches a run: the run folder, the terminal."""

    def stage_started(self, server_round: int, stage: str, num_clients: int) -> None: ...
    def reply_arrived(self, client_id: int) -> None: ...
    def client_failed(self, server_round: int, client_id: int, cause: str, detail: str) -> None: ...
    def round_ended(self, report: RoundReport) -> None: ...


@dataclass
class GlobalState:
    """What the server holds: the global delta, the shared heads (as differences from their seeded starts), a version."""

    delta: NDArray[np.float32]
    heads: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """By head layout digest."""
    version: int = 0
    """Rounds whose updates are in it."""


@dataclass(frozen=True, eq=False)
class _Reply:
    member: Member
    message: Message


class MaskedAveraging(Strategy):
    """Federated averaging of masked deltas; of shared heads too, within their task, where clients send them."""

    def __init__(
        self,
        settings: Settings,
        mask: Mask | None,
        clients_per_round: int | None,
        num_clients: int,
        ledger: Ledger,
        observer: Observer,
    ) -> None:
        """mask: None for the baseline without a delta. num_clients: how many nodes to wait for."""
        self._settings = settings
        self._mask = mask
        self._clients_per_round = clients_per_round
        self._num_clients = num_clients
        self._ledger = ledger
        self._observer = observer
        self._members: dict[int, Member] = {}
        self._client_ids: dict[int, int] = {}
        self._held_version: dict[int, int] = {}
        self._frames: tuple[int, dict[tuple[str, str], bytes]] = (-1, {})
        self._failures: Counter[str] = Counter()
        self._drawn: set[int] = set()
        self.state = GlobalState(np.zeros(mask.num_selected if mask is not None else 0, np.float32))
        self.test_scores: Scores = Scores(())

    # ---- the loop ----------------------------------------------------------------------------------------------

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the federation. Flower's own loop, with the mask before the first round and the test split after the last.

        Raises FedmaskError where no client can be used at all.
        """
        result = Result()
        train_config, evaluate_config = train_config or ConfigRecord(), evaluate_config or ConfigRecord()
        self.send_mask(grid, timeout)
        arrays = initial_arrays
        for server_round in range(1, num_rounds + 1):
            started = time.perf_counter()
            self._failures.clear()
            requests = self.configure_train(server_round, arrays, train_config, grid)
            train_replies = self._exchange(grid, server_round, "train", requests, timeout)
            new_arrays, train_metrics = self.aggregate_train(server_round, train_replies)
            arrays = new_arrays if new_arrays is not None else arrays
            requests = self.configure_evaluate(server_round, arrays, evaluate_config, grid)
            evaluate_replies = self._exchange(grid, server_round, "evaluate", requests, timeout)
            scores = self._scores(server_round, evaluate_replies)
            result.train_metrics_clientapp[server_round] = train_metrics or MetricRecord()
            result.evaluate_metrics_clientapp[server_round] = _score_metrics(scores)
            loss = None if train_metrics is None else float(train_metrics["train-loss"])  # type: ignore[arg-type]
            cohort = tuple(self._cohort(server_round))
            seconds = time.perf_counter() - started
            self._observer.round_ended(RoundReport(server_round, cohort, dict(self._failures), loss, scores, seconds))
        self.test_scores = self._score_test_split(grid, num_rounds, timeout)
        result.arrays = arrays
        return result

    @property
    def num_never_drawn(self) -> int:
        """Clients that no cohort had; they are left out of the test scores."""
        return len(set(self._members) - self._drawn)

    def summary(self) -> None:
        """Nothing to log: the run folder holds the configuration."""

    # ---- round 0: the mask -------------------------------------------------------------------------------------

    def send_mask(self, grid: Grid, timeout: float = 3600) -> None:
        """Send the mask and the settings to every node, once; learn which client each node is.

        A recipe goes out first. Where a client's rebuilt mask has another digest, it is sent the indices themselves.
        Raises FedmaskError where a client cannot take part, or two nodes claim one client_id.
        """
        nodes = self._await_nodes(grid, timeout)
        self._observer.stage_started(0, "mask", len(nodes))
        refused = self._introduce(grid, nodes, self._setup_bytes(explicit=False), timeout)
        if refused:
            refused = self._introduce(grid, refused, self._setup_bytes(explicit=True), timeout)
        if refused:
            raise FedmaskError(f"{len(refused)} of {len(nodes)} clients cannot use the mask {self._mask_digest[:12]}, not even by its indices")
        if not self._members:
            raise FedmaskError("no client took the mask; see the failures above")

    def _await_nodes(self, grid: Grid, timeout: float) -> list[int]:
        deadline = time.monotonic() + timeout
        while len(nodes := list(grid.get_node_ids())) < self._num_clients:
            if time.monotonic() > deadline:
                raise FedmaskError(f"waited {timeout:.0f} s for {self._num_clients} clients, {len(nodes)} are connected")
            time.sleep(0.1)
        return nodes

    def _setup_bytes(self, explicit: bool) -> bytes:
        mask = self._mask if explicit or self._mask is None or self._mask.recipe is None else self._mask.recipe
        return Setup(self._settings, mask).to_bytes()

    def _introduce(self, grid: Grid, nodes: list[int], setup: bytes, timeout: float) -> list[int]:
        """Send the setup to these nodes; returns those whose base weights give another mask."""
        messages = [Message(pack(setup), node_id, "query.mask", group_id="0") for node_id in nodes]
        sent_bytes = wire_bytes(messages[0]) if messages else 0
        refused = []
        for reply in _replies(grid, messages, timeout):
            node_id = reply.metadata.src_node_id
            if reply.has_error():
                raise FedmaskError(f"a client could not be set up: {reply.error.reason}")
            facts = config_of(reply.content)
            if "mask-mismatch" in facts:
                refused.append(node_id)
                continue
            member = self._enrol(node_id, facts)
            self._ledger.record(0, member.client_id, "down", "mask", len(setup), sent_bytes)
            self._ledger.record(0, member.client_id, "up", "mask", 0, wire_bytes(reply))
            self._observer.reply_arrived(member.client_id)
        return refused

    def _enrol(self, node_id: int, facts: ConfigRecord) -> Member:
        client_id = int(facts["client-id"])  # type: ignore[arg-type]
        if client_id in self._members and self._members[client_id].node_id != node_id:
            raise FedmaskError(f"two nodes claim client_id {client_id}; give every client a partition-id of its own")
        if facts["mask-digest"] != self._mask_digest:
            raise FedmaskError(f"client {client_id} has mask {facts['mask-digest']}, the server's is {self._mask_digest}")
        member = Member(
            client_id, node_id, str(facts["task"]), str(facts["metric"]), str(facts["head-layout"]), int(facts["head-size"])  # type: ignore[arg-type]
        )
        self._members[client_id] = member
        self._client_ids[node_id] = client_id
        return member

    @property
    def _mask_digest(self) -> str:
        return "" if self._mask is None else self._mask.digest

    # ---- training ----------------------------------------------------------------------------------------------

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """The global vectors to every client of the round's cohort, in client order."""
        cohort = self._cohort(server_round)
        self._drawn.update(cohort)
        self._observer.stage_started(server_round, "train", len(cohort))
        return [self._request("train", self._members[client_id], server_round, with_vectors=True) for client_id in cohort]

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add the weighted mean of the accepted updates, vector by vector, to the global state.

        Raises FedmaskError where not one reply can be used.
        """
        means: dict[tuple[str, str], WeightedMean] = {}
        loss, accepted = WeightedMean(1), 0
        for reply in replies:
            member = self._member_of(reply)
            try:
                vectors, num_examples, train_loss = self._accepted(member, reply)
            except RejectedMessage as rejection:
                self._fail(server_round, member.client_id, rejection.cause, str(rejection))
                continue
            for vector in vectors:
                key = (vector.name, vector.layout_digest)
                means.setdefault(key, WeightedMean(vector.values.size)).add(vector.values, num_examples)
            loss.add(np.array([train_loss], np.float32), num_examples)
            accepted += 1
        if not accepted:
            causes = ", ".join(f"{cause} x {number}" for cause, number in sorted(self._failures.items()))
            raise FedmaskError(f"round {server_round}: not one client's reply could be used ({causes}); the run is stopped")
        for (name, layout_digest), mean in means.items():
            self._step(name, layout_digest, mean)
        self.state.version = server_round
        return self.arrays(), MetricRecord({"train-loss": float(loss.result()[0]), "num-replies": accepted})

    def _step(self, name: str, layout_digest: str, mean: WeightedMean) -> None:
        """global(t+1) = global(t) + mean update, summed in float64, held in float32."""
        held = self.state.delta if name == "delta" else self._head(layout_digest)
        stepped = (held.astype(np.float64) + mean.result()).astype(np.float32)
        if name == "delta":
            self.state.delta = stepped
        else:
            self.state.heads[layout_digest] = stepped

    def _head(self, layout_digest: str) -> NDArray[np.float32]:
        if layout_digest not in self.state.heads:
            size = next(member.head_size for member in self._members.values() if member.head_layout == layout_digest)
            self.state.heads[layout_digest] = np.zeros(size, np.float32)
        return self.state.heads[layout_digest]

    def _accepted(self, member: Member, reply: Message) -> tuple[list[NamedVector], float, float]:
        """A reply's vectors, weight and loss, if all of it can be trusted. Raises RejectedMessage, with the cause."""
        if reply.has_error():
            raise RejectedMessage("client-error", reply.error.reason or f"error {reply.error.code}")
        expected = self._expected(member)
        found = unframe(_payload(reply), expected)
        if len(found) != len(expected):
            raise RejectedMessage("missing-vector", f"sent {sorted(found)}, expected {[name for name, _, _ in expected]}")
        vectors = [vector for vector, _ in found.values()]
        for vector in vectors:
            if not np.isfinite(vector.values).all():
                raise RejectedMessage("not-finite", f"{np.count_nonzero(~np.isfinite(vector.values))} values of {vector.name} are not finite")
        metrics = metrics_of(reply.content)
        num_examples, train_loss = metrics.get("num-examples"), metrics.get("train-loss")
        if not isinstance(num_examples, (int, float)) or not 0 < num_examples <= MAX_EXAMPLES:
            raise RejectedMessage("bad-num-examples", f"num-examples is {num_examples}, allowed is 1 to {MAX_EXAMPLES}")
        if not isinstance(train_loss, (int, float)) or not math.isfinite(train_loss):
            raise RejectedMessage("not-finite", f"train-loss is {train_loss}")
        return vectors, float(num_examples), float(train_loss)

    def arrays(self) -> ArrayRecord:
        """The global delta as Flower's record."""
        return ArrayRecord({"delta": Array(self.state.delta)})

    # ---- evaluation --------------------------------------------------------------------------------------------

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Ask the round's cohort for its counts on the validation split."""
        return self._score_requests(server_round, self._cohort(server_round), "validation")

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The task scores as Flower's record."""
        return _score_metrics(self._scores(server_round, replies))

    def _score_test_split(self, grid: Grid, server_round: int, timeout: float) -> Scores:
        requests = self._score_requests(server_round, sorted(self._drawn), "test")
        return self._scores(server_round, self._exchange(grid, server_round, "evaluate", requests, timeout))

    def _score_requests(self, server_round: int, client_ids: list[int], split: str) -> list[Message]:
        self._observer.stage_started(server_round, split, len(client_ids))
        return [self._request("evaluate", self._members[client_id], server_round, split=split) for client_id in client_ids]

    def _scores(self, server_round: int, replies: Iterable[Message]) -> Scores:
        scores = []
        for reply in replies:
            member = self._member_of(reply)
            try:
                if reply.has_error():
                    raise RejectedMessage("client-error", reply.error.reason or f"error {reply.error.code}")
                scores.append(ClientScore.of(member.client_id, member.task, member.metric, metrics_of(reply.content)))
            except RejectedMessage as rejection:
                self._fail(server_round, member.client_id, rejection.cause, str(rejection))
        return Scores(tuple(scores))

    # ---- messages ----------------------------------------------------------------------------------------------

    def _cohort(self, server_round: int) -> list[int]:
        """The clients of a round, ascending: seeded, and by client_id, so that Flower's random node ids do not matter."""
        members = sorted(self._members)
        if self._clients_per_round is None or self._clients_per_round >= len(members):
            return members
        generator = np.random.default_rng(seed_for(self._settings.seed, "cohort", server_round))
        return sorted(int(client) for client in generator.choice(members, self._clients_per_round, replace=False))

    def _expected(self, member: Member) -> list[tuple[str, str, int]]:
        """(name, layout digest, size) of the vectors that travel to and from this client."""
        expected = []
        if self._settings.exchanges_delta:
            expected.append(("delta", self._mask_digest, self.state.delta.size))
            if self._settings.client.head == "shared":
                expected.append(("head", member.head_layout, member.head_size))
        return expected

    def _request(self, message_type: str, member: Member, server_round: int, split: str = "", with_vectors: bool = False) -> Message:
        """A message to one client; the vectors of a version that the client was just sent are left out."""
        config: dict[str, int | float | str | bool] = {"round": server_round, "version": self.state.version}
        if split:
            config["split"] = split
        payload = b""
        if with_vectors or self._held_version.get(member.client_id) != self.state.version:
            payload = b"".join(self._frame(name, layout_digest) for name, layout_digest, _ in self._expected(member))
        return Message(pack(payload, config=config), member.node_id, message_type, group_id=str(server_round))

    def _frame(self, name: str, layout_digest: str) -> bytes:
        """A global vector's frame: encoded once a version, one object for all messages."""
        if self._frames[0] != self.state.version:
            self._frames = (self.state.version, {})
        frames = self._frames[1]
        if (name, layout_digest) not in frames:
            values = self.state.delta if name == "delta" else self._head(layout_digest)
            frames[(name, layout_digest)] = frame(NamedVector(name, layout_digest, values))
        return frames[(name, layout_digest)]

    def _exchange(self, grid: Grid, server_round: int, kind: str, requests: Iterable[Message], timeout: float) -> Iterator[Message]:
        """Send, and yield the replies in client order, each as soon as all before it have come; count every byte.

        A client that says it has lost its mask or vectors is sent them again, and asked again, in the same round.
        A client that never answers is counted as a failure and yields nothing.
        """
        by_client = {self._client_ids[request.metadata.dst_node_id]: request for request in requests}
        waiting, arrived = deque(sorted(by_client)), dict[int, Message]()
        asking = list(by_client.values())
        for may_ask_again in (True, False):
            again: list[int] = []
            for request in asking:
                self._record(server_round, "down", kind, request)
            for reply in _replies(grid, asking, timeout):
                client_id = self._client_ids[reply.metadata.src_node_id]
                self._record(server_round, "up", kind, reply)
                if may_ask_again and not reply.has_error() and "missing" in config_of(reply.content):
                    again.append(client_id)
                    continue
                arrived[client_id] = reply
                self._note_held(by_client[client_id], client_id, reply)
                while waiting and waiting[0] in arrived:
                    self._observer.reply_arrived(waiting[0])
                    yield arrived.pop(waiting.popleft())
            if not again:
                break
            asking = self._ask_again(grid, server_round, kind, [by_client[client_id] for client_id in sorted(again)], timeout)
        for client_id in waiting:
            if client_id in arrived:
                self._observer.reply_arrived(client_id)
                yield arrived.pop(client_id)
            else:
                self._fail(server_round, client_id, "no-reply", "no reply arrived in time")

    def _ask_again(self, grid: Grid, server_round: int, kind: str, requests: list[Message], timeout: float) -> list[Message]:
        """Send mask and settings again, and make the same requests anew, with their vectors."""
        nodes = [request.metadata.dst_node_id for request in requests]
        self._introduce(grid, nodes, self._setup_bytes(explicit=False), timeout)
        members = [self._members[self._client_ids[node_id]] for node_id in nodes]
        return [
            self._request(kind, member, server_round, str(config_of(request.content).get("split", "")), with_vectors=True)
            for member, request in zip(members, requests, strict=True)
        ]

    def _note_held(self, request: Message, client_id: int, reply: Message) -> None:
        """A client that answered holds the version its request carried."""
        if reply.has_error():
            self._held_version.pop(client_id, None)
        else:
            self._held_version[client_id] = int(config_of(request.content)["version"])  # type: ignore[arg-type]

    def _record(self, server_round: int, direction: str, kind: str, message: Message) -> None:
        node_id = message.metadata.dst_node_id if direction == "down" else message.metadata.src_node_id
        client_id = self._client_ids[node_id]
        head_bytes, payload_bytes = 0, 0
        if message.has_content():
            payload = _payload_or_nothing(message)
            payload_bytes = len(payload)
            head_bytes = self._head_bytes(self._members[client_id], payload)
        self._ledger.record(
            server_round,
            client_id,
            "down" if direction == "down" else "up",
            kind,
            payload_bytes - head_bytes,
            wire_bytes(message),
            {"head": head_bytes},
        )

    def _head_bytes(self, member: Member, payload: bytes) -> int:
        """Bytes that the head's frame takes of a payload; 0 for a payload that cannot be read."""
        if self._settings.client.head != "shared" or not payload:
            return 0
        try:
            found = unframe(payload, self._expected(member))
        except RejectedMessage:
            return 0
        return found["head"][1] if "head" in found else 0

    def _member_of(self, reply: Message) -> Member:
        return self._members[self._client_ids[reply.metadata.src_node_id]]

    def _fail(self, server_round: int, client_id: int, cause: str, detail: str) -> None:
        self._failures[cause] += 1
        self._observer.client_failed(server_round, client_id, cause, detail)


class _StreamingGrid(Protocol):
    def stream(self, messages: Iterable[Message]) -> Iterator[Message]: ...


def _replies(grid: Grid, messages: list[Message], timeout: float) -> Iterable[Message]:
    """Replies one by one where the grid can hand them over so, else all at once."""
    if hasattr(grid, "stream"):
        streaming: _StreamingGrid = grid
        return streaming.stream(messages)
    return grid.send_and_receive(messages, timeout=timeout)


def _payload(reply: Message) -> bytes:
    try:
        return payload_of(reply.content)
    except FedmaskError as error:
        raise RejectedMessage("undecodable", str(error)) from error


def _payload_or_nothing(message: Message) -> bytes:
    try:
        return payload_of(message.content)
    except FedmaskError:
        return b""


def _score_metrics(scores: Scores) -> MetricRecord:
    return MetricRecord({f"score/{task}": value for task, value in scores.score().items()})
