"""The Flower Strategy: one shared mask, masked updates, their weighted mean.

Round t:  cohort -> global delta down -> updates up -> check each -> weighted mean in client order -> global delta +=
server learning rate * mean -> counts of the cohort's models on the validation split. After the last round, every client
that took part is scored on the test split. A reply that cannot be used is counted by cause and leaves no trace in any
sum.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from numpy.typing import NDArray

from fedmask.aggregation import WeightedMean
from fedmask.errors import FedmaskError, RejectedMessage
from fedmask.masks import Mask
from fedmask.randomness import seed_for
from fedmask.runs.checkpoint import ClientRecord, ServerState
from fedmask.runs.config import shown
from fedmask.wire.ledger import Ledger
from fedmask.wire.messages import config_of, metrics_of, pack, payload_of
from fedmask.wire.setup import Settings
from fedmask.wire.vectors import NamedVector, frame, unframe
from server.exchange import Exchange, Member, ReplyObserver
from server.scores import ClientScore, Scores

MAX_EXAMPLES = 10**9
"""num_examples above this is no client's number of examples but a fault or an attack on the mean."""


@dataclass(frozen=True)
class RoundReport:
    """What a round came to."""

    round: int
    cohort: tuple[int, ...]
    failure_causes: dict[str, int]
    failed: tuple[int, ...]
    """client_ids with at least one failure, ascending."""
    train_loss: float
    scores: Scores
    """On the validation split."""
    states_lost: tuple[int, ...]
    """client_ids whose own state was not found, and made anew, ascending."""
    seconds: float
    state: ServerState
    """What the server needs to go on after this round."""


class Observer(ReplyObserver, Protocol):
    """Whoever watches a run: the run folder, the terminal."""

    def client_failed(self, server_round: int, client_id: int, cause: str, detail: str) -> None: ...
    def round_ended(self, report: RoundReport) -> None: ...

    def resumed(self, after_round: int, resent: Ledger) -> None:
        """The run goes on after this round. resent: what was sent once more for it, counted nowhere else."""


@dataclass
class GlobalState:
    """What the server holds between rounds."""

    delta: NDArray[np.float32]
    heads: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Shared heads by layout digest, as differences from the starts that their tasks seed."""
    version: int = 0
    """Rounds whose updates are in it."""


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
        learning_rate: float = 1.0,
        score_every: int = 1,
        score_test: bool = True,
    ) -> None:
        """mask: None for the baseline without a delta. num_clients: how many nodes to wait for.

        learning_rate: the server's. score_every: rounds from one scoring on validation to the next.
        """
        self._settings = settings
        self._learning_rate = learning_rate
        self._score_every = score_every
        self._score_test = score_test
        self._clients_per_round = clients_per_round
        self._num_clients = num_clients
        self._observer = observer
        self._exchange = Exchange(settings, mask, ledger, observer)
        self._failures: Counter[str] = Counter()
        self._failed: set[int] = set()
        self._drawn: set[int] = set()
        self._state_rounds: dict[int, int] = {}
        """By client_id the last round in which its reply was accepted: which of its own states it goes on from."""
        self._states_lost: set[int] = set()
        self._resumed: ServerState | None = None
        self._frames: tuple[int, dict[tuple[str, str], bytes]] = (-1, {})
        self.state = GlobalState(np.zeros(mask.num_selected if mask is not None else 0, np.float32))
        self.test_scores = Scores(())
        self.test_failure_causes: dict[str, int] = {}

    @property
    def num_never_drawn(self) -> int:
        """Clients that no cohort had; they are left out of the test scores."""
        return len(set(self._exchange.members) - self._drawn)

    def arrays(self) -> ArrayRecord:
        """The global delta as Flower's record."""
        return ArrayRecord({"delta": Array(self.state.delta)})

    def summary(self) -> None:
        """Nothing to log: the run folder holds the configuration."""

    # ---- stopped and resumed -----------------------------------------------------------------------------------

    def resume(self, state: ServerState) -> None:
        """Before `start`: go on after the last round of another process of this run.

        Raises FedmaskError where that one had another mask.
        """
        if state.mask_digest != self._exchange.mask_digest or state.delta.size != self.state.delta.size:
            raise FedmaskError(
                f"the run was begun with mask {state.mask_digest}, this machine's base model and configuration give "
                f"{self._exchange.mask_digest}; resume it where its base model is"
            )
        self._resumed = state
        self.state = GlobalState(state.delta, dict(state.heads), version=state.round)
        self._drawn = {client_id for client_id, record in state.clients.items() if record.is_drawn}
        self._state_rounds = {client: record.state_round for client, record in state.clients.items()}

    def _server_state(self) -> ServerState:
        return ServerState(
            run_id=self._settings.run_id,
            round=self.state.version,
            mask_digest=self._exchange.mask_digest,
            delta=self.state.delta,
            heads=dict(self.state.heads),
            clients={client_id: self._record_of(member) for client_id, member in self._exchange.members.items()},
        )

    def _record_of(self, member: Member) -> ClientRecord:
        return ClientRecord(
            member.task,
            member.metric,
            member.head_layout,
            member.head_size,
            state_round=self._state_rounds.get(member.client_id, 0),
            is_drawn=member.client_id in self._drawn,
            holds_vectors=self._exchange.holds(member, self.state.version),
        )

    def _introduce_again(self, grid: Grid, state: ServerState, num_rounds: int, timeout: float) -> None:
        """The mask to every client, for their processes are new ones; before the test split the vectors as well.

        Raises FedmaskError where a client is not what it was.
        """
        with self._exchange.counting_apart() as resent:
            self._exchange.send_mask(grid, self._num_clients, timeout)
            self._check_members(state.clients)
            # Of a round that is still to come, training brings them.
            if state.round == num_rounds and self._score_test and self._settings.exchanges_delta:
                holders = [client_id for client_id, record in state.clients.items() if record.holds_vectors]
                self._hand_over(grid, state.round, sorted(holders), timeout)
        self._observer.resumed(state.round, resent)

    def _check_members(self, known: Mapping[int, ClientRecord]) -> None:
        members = self._exchange.members
        for client_id in sorted(known.keys() | members.keys()):
            before, now = known.get(client_id), members.get(client_id)
            words = [
                "no client" if one is None else f"task {one.task}, {one.metric}, head {one.head_layout[:12]}"
                for one in (before, now)
            ]
            if words[0] != words[1]:
                raise FedmaskError(
                    f"client {client_id} is not what it was when the run stopped: it was {words[0]}, and is "
                    f"{words[1]}; resume with the data that the run was begun with"
                )

    def _hand_over(self, grid: Grid, server_round: int, client_ids: list[int], timeout: float) -> None:
        members = [self._exchange.members[client_id] for client_id in client_ids]
        requests = (self._request("query.vectors", member, server_round, with_vectors=True) for member in members)
        self._exchange.hand_over(grid, server_round, self.state.version, requests, timeout)

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
        """Run the federation: Flower's own loop, the mask before the first round, the test split after the last.

        A resumed run goes on with the round after its last finished one, from the vectors of then.

        Raises FedmaskError where no client can be used at all.
        """
        result = Result()
        result.arrays = initial_arrays
        train_config, evaluate_config = train_config or ConfigRecord(), evaluate_config or ConfigRecord()
        if self._resumed is None:
            self._exchange.send_mask(grid, self._num_clients, timeout)
            self._evaluate_on_server(evaluate_fn, 0, result)
        else:
            self._introduce_again(grid, self._resumed, num_rounds, timeout)
        for server_round in range(self.state.version + 1, num_rounds + 1):
            started = time.perf_counter()
            self._failures.clear()
            self._failed.clear()
            self._states_lost.clear()
            requests = self.configure_train(server_round, result.arrays, train_config, grid)
            replies = self._replies(grid, server_round, "train", requests, timeout)
            arrays, train_metrics = self.aggregate_train(server_round, replies)
            assert arrays is not None
            assert train_metrics is not None
            is_scored = server_round % self._score_every == 0 or server_round == num_rounds
            requests = self.configure_evaluate(server_round, arrays, evaluate_config, grid) if is_scored else []
            replies = self._replies(grid, server_round, "evaluate", requests, timeout, "validation")
            scores = self._scores(server_round, replies)
            result.arrays = arrays
            result.train_metrics_clientapp[server_round] = train_metrics
            result.evaluate_metrics_clientapp[server_round] = _score_metrics(scores)
            self._evaluate_on_server(evaluate_fn, server_round, result)
            self._observer.round_ended(
                RoundReport(
                    round=server_round,
                    cohort=tuple(self._cohort(server_round)),
                    failure_causes=dict(self._failures),
                    failed=tuple(sorted(self._failed)),
                    train_loss=float(train_metrics["train-loss"]),  # type: ignore[arg-type]
                    scores=scores,
                    states_lost=tuple(sorted(self._states_lost)),
                    seconds=time.perf_counter() - started,
                    state=self._server_state(),
                )
            )
        if self._score_test:
            self._score_on_test(grid, num_rounds, timeout)
        return result

    def _score_on_test(self, grid: Grid, server_round: int, timeout: float) -> None:
        self._failures.clear()
        requests = self._score_requests(server_round, sorted(self._drawn), "test")
        replies = self._replies(grid, server_round, "evaluate", requests, timeout, "test")
        self.test_scores = self._scores(server_round, replies)
        self.test_failure_causes = dict(self._failures)

    @staticmethod
    def _evaluate_on_server(
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None, server_round: int, result: Result
    ) -> None:
        metrics = evaluate_fn(server_round, result.arrays) if evaluate_fn is not None else None
        if metrics is not None:
            result.evaluate_metrics_serverapp[server_round] = metrics

    # ---- training ----------------------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The global vectors to every client of the round's cohort, in client order."""
        cohort = self._cohort(server_round)
        self._drawn.update(cohort)
        self._observer.stage_started(server_round, "training", len(cohort))
        members = [self._exchange.members[client_id] for client_id in cohort]
        return (self._request("train", member, server_round, with_vectors=True) for member in members)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add the weighted mean of the accepted updates, vector by vector, to the global state.

        Raises FedmaskError where not one reply can be used.
        """
        means: dict[tuple[str, str], WeightedMean] = {}
        loss = WeightedMean(1)
        accepted = []
        for reply in replies:
            member = self._exchange.member_of(reply)
            try:
                vectors, num_examples, train_loss = self._accepted(member, reply)
            except RejectedMessage as rejection:
                self._fail(server_round, member.client_id, rejection)
                continue
            accepted.append(member.client_id)
            self._note_lost_state(server_round, member.client_id, reply)
            for vector in vectors:
                key = (vector.name, vector.layout_digest)
                if key not in means:
                    means[key] = WeightedMean(vector.values.size)
                means[key].add(vector.values, num_examples)
            loss.add(np.array([train_loss], np.float32), num_examples)
        if loss.is_empty:
            causes = ", ".join(f"{cause} x {number}" for cause, number in sorted(self._failures.items()))
            raise FedmaskError(f"round {server_round}: no client's reply could be used ({causes}); the run is stopped")
        for (name, layout_digest), mean in means.items():
            self._step(name, layout_digest, mean)
        self.state.version = server_round
        # Only now: a client whose round does not count goes on from where it was before.
        self._state_rounds.update(dict.fromkeys(accepted, server_round))
        return self.arrays(), MetricRecord({"train-loss": float(loss.result()[0])})

    def _accepted(self, member: Member, reply: Message) -> tuple[list[NamedVector], float, float]:
        """A reply's vectors, weight and loss, if all of it can be trusted. Raises RejectedMessage, with the cause."""
        _raise_client_error(reply)
        expected = self._expected(member)
        found = unframe(payload_of(reply.content), expected)
        if len(found) != len(expected):
            names = [name for name, _, _ in expected]
            raise RejectedMessage("missing-vector", f"the reply holds {sorted(found)}, expected {names}")
        for vector in found.values():
            num_bad = np.count_nonzero(~np.isfinite(vector.values))
            if num_bad:
                raise RejectedMessage("not-finite", f"{num_bad} values of {vector.name} are not finite")
        metrics = metrics_of(reply.content)
        num_examples, train_loss = metrics.get("num-examples"), metrics.get("train-loss")
        if not isinstance(num_examples, (int, float)) or not 0 < num_examples <= MAX_EXAMPLES:
            allowed = f"allowed is 1 to {MAX_EXAMPLES}"
            raise RejectedMessage("bad-num-examples", f"num-examples is {num_examples}, {allowed}")
        if not isinstance(train_loss, (int, float)) or not math.isfinite(train_loss):
            raise RejectedMessage("not-finite", f"train-loss is {train_loss}")
        return list(found.values()), float(num_examples), float(train_loss)

    def _note_lost_state(self, server_round: int, client_id: int, reply: Message) -> None:
        """A client whose own state is gone has begun anew and says so; its reply is as good as a new client's."""
        if (detail := config_of(reply.content).get("state-lost")) is not None:
            self._states_lost.add(client_id)
            logging.getLogger("fedmask").warning(
                "round %d: client %d has begun anew: %s", server_round, client_id, shown(detail)
            )

    def _step(self, name: str, layout_digest: str, mean: WeightedMean) -> None:
        """global(t+1) = global(t) + server learning rate * mean update, summed in float64, held in float32."""
        held = self.state.delta if name == "delta" else self._head(layout_digest)
        # Clients with other tasks cancel much of each other in the delta's mean; a head's mean is over one task's few.
        rate = self._learning_rate if name == "delta" else 1.0
        stepped = (held.astype(np.float64) + rate * mean.result()).astype(np.float32)
        if name == "delta":
            self.state.delta = stepped
        else:
            self.state.heads[layout_digest] = stepped

    def _head(self, layout_digest: str) -> NDArray[np.float32]:
        if layout_digest not in self.state.heads:
            members = self._exchange.members.values()
            size = next(member.head_size for member in members if member.head_layout == layout_digest)
            self.state.heads[layout_digest] = np.zeros(size, np.float32)
        return self.state.heads[layout_digest]

    # ---- evaluation --------------------------------------------------------------------------------------------

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the round's cohort for its counts on the validation split."""
        return self._score_requests(server_round, self._cohort(server_round), "validation")

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The task scores as Flower's record."""
        return _score_metrics(self._scores(server_round, replies))

    def _score_requests(self, server_round: int, client_ids: list[int], split: str) -> Iterable[Message]:
        self._observer.stage_started(server_round, f"scoring on {split}", len(client_ids))
        members = [self._exchange.members[client_id] for client_id in client_ids]
        return (self._request("evaluate", member, server_round, split) for member in members)

    def _scores(self, server_round: int, replies: Iterable[Message]) -> Scores:
        scores = []
        for reply in replies:
            member = self._exchange.member_of(reply)
            try:
                _raise_client_error(reply)
                counts = metrics_of(reply.content)
                scores.append(ClientScore.of(member.client_id, member.task, member.metric, counts))
            except RejectedMessage as rejection:
                self._fail(server_round, member.client_id, rejection)
        return Scores(tuple(scores))

    # ---- messages ----------------------------------------------------------------------------------------------

    def _cohort(self, server_round: int) -> list[int]:
        """The clients of a round, ascending: seeded, and by client_id, for Flower's node ids are random."""
        members = sorted(self._exchange.members)
        if self._clients_per_round is None or self._clients_per_round >= len(members):
            return members
        generator = np.random.default_rng(seed_for(self._settings.seed, "cohort", server_round))
        return sorted(int(client) for client in generator.choice(members, self._clients_per_round, replace=False))

    def _expected(self, member: Member) -> list[tuple[str, str, int]]:
        """(name, layout digest, size) of the vectors that travel to and from this client."""
        if not self._settings.exchanges_delta:
            return []
        expected = [("delta", self._exchange.mask_digest, self.state.delta.size)]
        if self._settings.client.head == "shared":
            expected.append(("head", member.head_layout, member.head_size))
        return expected

    def _request(
        self, kind: str, member: Member, server_round: int, split: str = "", with_vectors: bool = False
    ) -> Message:
        """A message to one client; vectors that the client was just sent are left out, unless asked for."""
        config: dict[str, int | float | str | bool] = {"round": server_round, "version": self.state.version}
        if split:
            config["split"] = split
        if self._settings.keeps_state:
            config["state-round"] = self._state_rounds.get(member.client_id, 0)
        payload = b""
        if with_vectors or not self._exchange.holds(member, self.state.version):
            payload = b"".join(self._frame(name, layout_digest) for name, layout_digest, _ in self._expected(member))
        return Message(pack(payload, config=config), member.node_id, kind, group_id=str(server_round))

    def _frame(self, name: str, layout_digest: str) -> bytes:
        """A global vector's frame: encoded once a version, one object for all messages."""
        if self._frames[0] != self.state.version:
            self._frames = (self.state.version, {})
        frames = self._frames[1]
        if (name, layout_digest) not in frames:
            values = self.state.delta if name == "delta" else self._head(layout_digest)
            frames[(name, layout_digest)] = frame(NamedVector(name, layout_digest, values))
        return frames[(name, layout_digest)]

    def _replies(
        self,
        grid: Grid,
        server_round: int,
        kind: str,
        requests: Iterable[Message],
        timeout: float,
        split: str = "",
    ) -> Iterator[Message]:
        """Replies in client order; a client that never answers is counted as a failure."""
        silent = set[int]()

        def asked() -> Iterator[Message]:
            for request in requests:
                silent.add(request.metadata.dst_node_id)
                yield request

        def ask_again(member: Member) -> Message:
            return self._request(kind, member, server_round, split, with_vectors=True)

        version = self.state.version
        for reply in self._exchange.replies(grid, server_round, kind, version, asked(), ask_again, timeout):
            silent.discard(reply.metadata.src_node_id)
            yield reply
        for member in self._exchange.members.values():
            if member.node_id in silent:
                self._fail(server_round, member.client_id, RejectedMessage("no-reply", "no reply arrived in time"))

    def _fail(self, server_round: int, client_id: int, rejection: RejectedMessage) -> None:
        self._failures[rejection.cause] += 1
        self._failed.add(client_id)
        self._observer.client_failed(server_round, client_id, rejection.cause, str(rejection))


def _raise_client_error(reply: Message) -> None:
    """Raises RejectedMessage where the client answered with an error, or lacks what it was sent again."""
    if reply.has_error():
        raise RejectedMessage("client-error", reply.error.reason or f"error {reply.error.code}")
    if (missing := config_of(reply.content).get("missing")) is not None:
        raise RejectedMessage("still-missing", f"the client still lacks what it was sent again: {missing!r}")


def _score_metrics(scores: Scores) -> MetricRecord:
    return MetricRecord({f"score/{task}": value for task, value in scores.score().items()})
