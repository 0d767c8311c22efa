"""The Flower Strategy: one shared mask, masked updates, combined by server.combine: by default their weighted mean.

Round t:  cohort -> global delta down -> updates up -> check each, clip -> combine in client order -> global delta +=
server learning rate * combined update -> counts of the cohort's models on the validation split. After the last round,
every client that took part is scored on the test split. A reply that cannot be used is counted by cause and leaves no
trace in any sum; with too few usable updates the same cohort is asked again, from the same global delta.

What is sent down is what the clients lack of what they hold (`fedmask.wire.downlink`): training brings nothing that
scoring brought before. Where the codec loses something, clients hold, and the run's adapter is, what they were sent.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from numpy.typing import NDArray

from fedmask.aggregation import RULES, Combination, average_over_tasks, clipped, l2_norm
from fedmask.errors import FedmaskError, RejectedMessage
from fedmask.masks import Mask
from fedmask.randomness import seed_for
from fedmask.runs.checkpoint import ClientRecord, ServerState
from fedmask.runs.config import ServerConfig
from fedmask.runs.registry import Binding
from fedmask.shown import shown
from fedmask.wire.downlink import Downlink, Expected
from fedmask.wire.ledger import UNKNOWN_CLIENT, Ledger
from fedmask.wire.messages import Fact, Facts, facts_of, pack, payload_of
from fedmask.wire.setup import Settings
from fedmask.wire.uplink import decode_updates
from fedmask.wire.vectors import NamedVector
from server.answers import one_reply
from server.exchange import Exchange, ReplyObserver
from server.losses import MAX_LOSS, RoundLosses
from server.members import MAX_EXAMPLES, Member
from server.scores import ClientScore, Scores

SETUP_SECONDS = 3600.0
"""That clients have to connect and to load what they need, before the first round; a round's time is a round's."""

MAX_NORM = 1e30
"""L2 norm above which an update is rejected whatever server.max_norm says: a few of them overflow a float32."""


@dataclass(frozen=True)
class RoundReport:
    """What a round came to."""

    round: int
    cohort: tuple[int, ...]
    failure_causes: dict[str, int]
    failed: tuple[int, ...]
    """client_ids with at least one failure, ascending."""
    lost: Mapping[int, str]
    """By client_id, ascending, the last cause for those of whom no update was accepted, or no score came."""
    train_loss: float
    scores: Scores
    """On the validation split."""
    states_lost: tuple[int, ...]
    """client_ids whose own state was not found, and made anew, ascending."""
    seconds: float
    state: ServerState
    """What the server needs to go on after this round."""
    retries: int = 0
    """How often training was repeated because too few updates could be used."""


class TooFewRepliesError(FedmaskError):
    """Not enough updates of a round can be used."""


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
        server: ServerConfig,
        hidden_size: int,
        registry: Mapping[str, Binding] | None = None,
        score_every: int = 1,
        score_test: bool = True,
    ) -> None:
        """mask: None for the baseline without a delta. num_clients: how many nodes to wait for.

        hidden_size, registry: as of `Exchange`. score_every: rounds from one scoring on validation to the next.
        """
        self._settings = settings
        self._server = server
        self._score_every = score_every
        self._score_test = score_test
        self._clients_per_round = clients_per_round
        self._num_clients = num_clients
        self._observer = observer
        self._exchange = Exchange(settings, mask, ledger, observer, hidden_size, registry or {})
        self._losses = RoundLosses()
        self._failures: Counter[str] = Counter()
        self._failed: dict[int, str] = {}
        """By client_id the last cause of a failure in this round."""
        self._drawn: set[int] = set()
        self._state_rounds: dict[int, int] = {}
        """By client_id the last round in which its reply was accepted: which of its own states it goes on from."""
        self._states_lost: set[int] = set()
        self._resumed: ServerState | None = None
        self._downlink = Downlink(settings.codec, settings.seed)
        self.state = GlobalState(np.zeros(mask.num_selected if mask is not None else 0, np.float32))
        self.test_scores = Scores(())
        self.test_failure_causes: dict[str, int] = {}
        self.lost_on_test: dict[int, str] = {}
        """By client_id why one that took part has no test score."""

    @property
    def num_never_drawn(self) -> int:
        """Clients that no cohort had; they are left out of the test scores."""
        return len(set(self._exchange.members) - self._drawn)

    @property
    def left_out(self) -> dict[str, str]:
        """Who does not take part though it was asked to, and why."""
        return self._exchange.left_out

    @property
    def held_delta(self) -> NDArray[np.float32]:
        """The global delta as the clients hold it, float32 (k,): what they are scored with."""
        return self._downlink.held("delta", self._exchange.mask_digest, self.state.delta.size)

    @property
    def heads(self) -> dict[str, str]:
        """By the digest of its layout the task of each head that the clients have."""
        records = self._records()
        return {records[client_id].head_layout: records[client_id].task for client_id in sorted(records)}

    def arrays(self) -> ArrayRecord:
        """The global delta as the clients hold it, as Flower's record."""
        return ArrayRecord({"delta": Array(self.held_delta)})

    def summary(self) -> None:
        """Nothing to log: the run folder holds the configuration."""

    # ---- stopped and resumed -----------------------------------------------------------------------------------

    def resume(self, state: ServerState) -> None:
        """Before `start`: go on after the last round of another process of this run.

        Raises FedmaskError where that one had another mask, a base model with another tokenizer, other settings or
        other weights, or another configuration.
        """
        if state.mask_digest != self._exchange.mask_digest or state.delta.size != self.state.delta.size:
            raise FedmaskError(
                f"the run was begun with mask {state.mask_digest}, this machine's base model and configuration give "
                f"{self._exchange.mask_digest}; resume it where its base model is"
            )
        if state.inputs_digest and state.inputs_digest != self._settings.inputs_digest:
            raise FedmaskError(
                "the run was begun with a base model of another tokenizer or other settings (inputs digest "
                f"{state.inputs_digest[:12]}, this one's is {self._settings.inputs_digest[:12]}); resume it where its "
                "base model is"
            )
        if state.run_digest and state.run_digest != self._settings.run_digest:
            raise FedmaskError(
                "the run was begun with other weights of the base model, or its config.yaml has been edited since "
                f"(run digest {state.run_digest}, this one's is {self._settings.run_digest}); put back what it was "
                "begun with"
            )
        self._resumed = state
        self.state = GlobalState(state.delta, dict(state.heads), version=state.round)
        self._drawn = {client_id for client_id, record in state.clients.items() if record.is_drawn}
        self._state_rounds = {client: record.state_round for client, record in state.clients.items()}
        self._downlink = Downlink(self._settings.codec, self._settings.seed, state.broadcast)

    def _server_state(self) -> ServerState:
        return ServerState(
            run_id=self._settings.run_id,
            round=self.state.version,
            mask_digest=self._exchange.mask_digest,
            delta=self.state.delta,
            heads=dict(self.state.heads),
            broadcast=self._downlink.broadcast,
            clients=self._records(),
            inputs_digest=self._settings.inputs_digest,
            run_digest=self._settings.run_digest,
        )

    def _records(self) -> dict[int, ClientRecord]:
        """Of the clients that take part, and of those that a resume goes on without: they may be back at the next."""
        known = {} if self._resumed is None else self._resumed.clients
        members = self._exchange.members
        return {**known, **{client_id: self._record_of(member) for client_id, member in members.items()}}

    def _record_of(self, member: Member) -> ClientRecord:
        return ClientRecord(
            member.task,
            member.metric,
            member.head_layout,
            member.head_size,
            member.data_digest,
            state_round=self._state_rounds.get(member.client_id, 0),
            is_drawn=member.client_id in self._drawn,
            held_version=self._exchange.held_version(member),
        )

    def _introduce_again(self, grid: Grid, state: ServerState, timeout: float) -> None:
        """The mask to every client, for their processes are new ones, and to those that held vectors the newest ones.

        Raises FedmaskError where a client is not what it was.
        """
        with self._exchange.counting_apart() as resent:
            least = self._least
            self._exchange.send_mask(grid, self._num_clients, timeout, least, state.clients)
            changed = self._changed_members(state.clients)
            if least is not None:
                here = state.clients.keys() & self._exchange.members.keys()
                self._exchange.leave_out({client: why for client, why in changed.items() if client in here}, least)
            elif changed:
                client_id, why = next(iter(changed.items()))
                raise FedmaskError(f"client {client_id} {why}; resume with the data that the run was begun with")
            self._hand_over(grid, state, timeout)
        self._observer.resumed(state.round, resent)

    @property
    def _least(self) -> int | None:
        """Clients without whom nothing begins; None: all."""
        least = self._server.min_clients
        return None if least is None else min(least, self._num_clients)

    def _changed_members(self, known: Mapping[int, ClientRecord]) -> dict[int, str]:
        """By client_id, ascending, of those that are not what they were, what has changed."""
        members = self._exchange.members
        changed = {}
        for client_id in sorted(known.keys() | members.keys()):
            before, now = known.get(client_id), members.get(client_id)
            words = [
                "no client"
                if one is None
                else f"task {shown(one.task)}, {one.metric}, head {one.head_layout[:12]}, data {one.data_digest}"
                for one in (before, now)
            ]
            if words[0] != words[1]:
                changed[client_id] = f"is not what it was when the run stopped: it was {words[0]}, and is {words[1]}"
        return changed

    def _hand_over(self, grid: Grid, state: ServerState, timeout: float) -> None:
        members = self._exchange.members
        held = {client: record.held_version for client, record in sorted(state.clients.items()) if client in members}
        # Version 0 are zeros, which nobody has to be sent.
        holders = [client_id for client_id, version in held.items() if version and self._settings.exchanges_delta]
        requests = (
            self._request("query.vectors", self._exchange.members[client_id], state.round, send_whole=True)
            for client_id in holders
        )
        self._exchange.hand_over(grid, state.round, held, requests, timeout)

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

        timeout: seconds that a round's clients have to train, and again to be scored.
        Raises FedmaskError where a round has too few usable updates, however often it is repeated.
        """
        result = Result()
        result.arrays = initial_arrays
        train_config, evaluate_config = train_config or ConfigRecord(), evaluate_config or ConfigRecord()
        # Where some may be left out, nobody waits an hour for them.
        patience = timeout if self._least is not None else max(timeout, SETUP_SECONDS)
        if self._resumed is None:
            self._exchange.send_mask(grid, self._num_clients, patience, self._least)
            self._evaluate_on_server(evaluate_fn, 0, result)
        else:
            self._introduce_again(grid, self._resumed, patience)
        for server_round in range(self.state.version + 1, num_rounds + 1):
            started = time.perf_counter()
            self._failures.clear()
            self._failed.clear()
            self._states_lost.clear()
            arrays, train_metrics, retries = self._train(server_round, result.arrays, train_config, grid, timeout)
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
                    lost=self._lost(server_round, scores if is_scored else None),
                    train_loss=float(train_metrics["train-loss"]),  # type: ignore[arg-type]
                    scores=scores,
                    states_lost=tuple(sorted(self._states_lost)),
                    seconds=time.perf_counter() - started,
                    state=self._server_state(),
                    retries=retries,
                )
            )
        if self._score_test:
            self._score_on_test(grid, num_rounds, timeout)
        return result

    def _lost(self, server_round: int, scores: Scores | None) -> dict[int, str]:
        """Of the round's cohort. scores: None where nobody was to be scored."""
        cohort = self._cohort(server_round)
        kept = {client_id for client_id in cohort if self._state_rounds.get(client_id) == server_round}
        if scores is not None:
            kept &= {client.client_id for client in scores.clients}
        return {client_id: self._failed[client_id] for client_id in cohort if client_id not in kept}

    def _score_on_test(self, grid: Grid, server_round: int, timeout: float) -> None:
        self._failures.clear()
        self._failed.clear()
        asked = sorted(self._drawn & self._exchange.members.keys())
        requests = self._score_requests(server_round, asked, "test")
        replies = self._replies(grid, server_round, "evaluate", requests, timeout, "test")
        self.test_scores = self._scores(server_round, replies)
        self.test_failure_causes = dict(self._failures)
        scored = {client.client_id for client in self.test_scores.clients}
        self.lost_on_test = {client_id: self._failed[client_id] for client_id in asked if client_id not in scored}

    @staticmethod
    def _evaluate_on_server(
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None, server_round: int, result: Result
    ) -> None:
        metrics = evaluate_fn(server_round, result.arrays) if evaluate_fn is not None else None
        if metrics is not None:
            result.evaluate_metrics_serverapp[server_round] = metrics

    # ---- training ----------------------------------------------------------------------------------------------

    def _train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid, timeout: float
    ) -> tuple[ArrayRecord, MetricRecord, int]:
        """One round's training, repeated while too few updates can be used; the last value: how often it was."""
        for retries in range(self._server.max_retries + 1):
            requests = self.configure_train(server_round, arrays, config, grid)
            replies = self._replies(grid, server_round, "train", requests, timeout)
            try:
                stepped, metrics = self.aggregate_train(server_round, replies)
            except TooFewRepliesError as error:
                if retries == self._server.max_retries:
                    raise FedmaskError(f"{error}; the run is stopped") from error
                logging.getLogger("fedmask").warning("%s; the round is repeated", error)
                self._exchange.wait_for_clients(grid, timeout)
                continue
            assert stepped is not None
            assert metrics is not None
            return stepped, metrics, retries
        raise AssertionError("the last attempt returns or raises")

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """What every client of the round's cohort lacks of the global vectors, in client order."""
        cohort = self._cohort(server_round)
        self._drawn.update(cohort)
        self._observer.stage_started(server_round, "training", len(cohort))
        members = [self._exchange.members[client_id] for client_id in cohort]
        return (self._request("train", member, server_round) for member in members)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add the combination of the accepted updates, vector by vector, to the global state.

        Raises TooFewRepliesError, and leaves the state as it was, where fewer than server.min_replies can be used.
        """
        rule = RULES[self._server.combine]
        combined: dict[tuple[str, str], dict[str, Combination]] = {}
        """By name and layout, and by task where the rule works within tasks."""
        sizes: dict[tuple[str, str], int] = {}
        self._losses.clear()
        accepted = []
        for reply in replies:
            member = self._exchange.member_of(reply)
            try:
                with one_reply(f"round {server_round}, client {member.client_id}"):
                    facts = _facts_of_answer(reply)
                    vectors, num_examples, train_loss = self._accepted(server_round, member, reply, facts)
            except RejectedMessage as rejection:
                self._reject(server_round, reply, rejection)
                continue
            accepted.append(member.client_id)
            self._note_lost_state(server_round, member.client_id, facts)
            for vector in vectors:
                by_task = combined.setdefault((vector.name, vector.layout_digest), {})
                sizes[(vector.name, vector.layout_digest)] = vector.values.size
                task = member.task if rule.within_tasks else ""
                if task not in by_task:
                    by_task[task] = rule.start(vector.values.size, self._server.trim)
                by_task[task].add(vector.values, num_examples)
            self._losses.add(member.client_id, member.task, train_loss, num_examples)
        if len(accepted) < self._server.min_replies:
            raise self._too_few(server_round, len(accepted))
        for (name, layout_digest), by_task in combined.items():
            everyone = partial(rule.start, sizes[(name, layout_digest)], self._server.trim)
            self._step(name, layout_digest, average_over_tasks(list(by_task.values()), everyone))
        self.state.version = server_round
        self._downlink.advance(server_round, self._vectors_by_key())
        # Only now: a client whose round does not count goes on from where it was before.
        self._state_rounds.update(dict.fromkeys(accepted, server_round))
        return self.arrays(), MetricRecord({"train-loss": self._losses.mean(server_round)})

    def _too_few(self, server_round: int, num_usable: int) -> TooFewRepliesError:
        needed = self._server.min_replies
        causes = ", ".join(f"{cause} x {number}" for cause, number in sorted(self._failures.items()))
        usable = "no client's reply could be used"
        if num_usable:
            usable = f"replies of {num_usable} clients could be used, server.min_replies={needed} are needed"
        return TooFewRepliesError(f"round {server_round}: {usable} ({causes})")

    def _vectors_by_key(self) -> dict[tuple[str, str], NDArray[np.float32]]:
        """All global vectors that travel, by name and layout digest."""
        if not self._settings.exchanges_delta:
            return {}
        heads = {("head", layout_digest): head for layout_digest, head in self.state.heads.items()}
        return {("delta", self._exchange.mask_digest): self.state.delta, **heads}

    def _accepted(
        self, server_round: int, member: Member, reply: Message, facts: Facts
    ) -> tuple[list[NamedVector], float, float]:
        """A reply's vectors, clipped where asked for, weight and loss, if all of it can be trusted.

        Raises RejectedMessage, with the cause.
        """
        vectors = self._updates(server_round, member, reply)
        norm, limit = l2_norm([vector.values for vector in vectors]), self._server.max_norm or MAX_NORM
        if norm > limit:
            raise RejectedMessage("too-large", f"the update has norm {norm:.6g}, allowed is {limit:g}")
        num_examples = _number(facts, "num-examples", 1, MAX_EXAMPLES)
        # Its rows may have become more since it was set up; what it was bound to then is what it weighs by.
        num_examples = min(num_examples, member.num_examples, self._server.max_examples or num_examples)
        train_loss = _number(facts, "train-loss", 0, MAX_LOSS)
        if self._server.clip_norm is not None:
            values = clipped([vector.values for vector in vectors], self._server.clip_norm)
            vectors = [replace(vector, values=scaled) for vector, scaled in zip(vectors, values, strict=True)]
        return vectors, num_examples, train_loss

    def _updates(self, server_round: int, member: Member, reply: Message) -> list[NamedVector]:
        """All vectors that travel; decoding takes finite values alone. Raises RejectedMessage."""
        expected, settings = self._expected(member), self._settings
        found = decode_updates(payload_of(reply.content), expected, settings.codec, server_round, settings.seed)
        if len(found) != len(expected):
            held, names = [vector.name for vector in found], [name for name, _, _ in expected]
            raise RejectedMessage("missing-vector", f"the reply holds {held}, expected {names}")
        return found

    def _note_lost_state(self, server_round: int, client_id: int, facts: Facts) -> None:
        """A client whose own state is gone has begun anew and says so; its reply is as good as a new client's."""
        if (detail := facts.get("state-lost")) is not None:
            self._states_lost.add(client_id)
            logging.getLogger("fedmask").warning(
                "round %d: client %d has begun anew: %s", server_round, client_id, shown(detail)
            )

    def _step(self, name: str, layout_digest: str, update: NDArray[np.float64]) -> None:
        """global(t+1) = global(t) + server learning rate * combined update, summed in float64, held in float32."""
        held = self.state.delta if name == "delta" else self._head(layout_digest)
        # Clients with other tasks cancel much of each other in the delta's mean; a head's mean is over one task's few.
        rate = self._server.learning_rate if name == "delta" else 1.0
        stepped = (held.astype(np.float64) + rate * update).astype(np.float32)
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
                with one_reply(f"round {server_round}, client {member.client_id}"):
                    scores.append(ClientScore.of(member, _facts_of_answer(reply)))
            except RejectedMessage as rejection:
                self._reject(server_round, reply, rejection)
        return Scores(tuple(scores))

    # ---- messages ----------------------------------------------------------------------------------------------

    def _cohort(self, server_round: int) -> list[int]:
        """The clients of a round, ascending: seeded, and by client_id, for Flower's node ids are random."""
        members = sorted(self._exchange.members)
        if self._clients_per_round is None or self._clients_per_round >= len(members):
            return members
        generator = np.random.default_rng(seed_for(self._settings.seed, "cohort", server_round))
        return sorted(int(client) for client in generator.choice(members, self._clients_per_round, replace=False))

    def _expected(self, member: Member) -> Expected:
        """The vectors that travel to and from this client."""
        if not self._settings.exchanges_delta:
            return []
        expected = [("delta", self._exchange.mask_digest, self.state.delta.size)]
        if self._settings.client.head == "shared":
            expected.append(("head", member.head_layout, member.head_size))
        return expected

    def _request(
        self, kind: str, member: Member, server_round: int, split: str = "", send_whole: bool = False
    ) -> Message:
        """A message to one client, with what it lacks of the global vectors, or where asked for with all of them."""
        facts: dict[str, Fact] = {"round": server_round, "version": self.state.version}
        if split:
            facts["split"] = split
        if self._settings.keeps_state:
            facts["state-round"] = self._state_rounds.get(member.client_id, 0)
        payload = b""
        if expected := self._expected(member):
            payload = self._downlink.payload(expected, None if send_whole else self._exchange.held_version(member))
            facts["sum"] = self._downlink.checksum(expected)
        return Message(pack(payload, facts), member.node_id, kind, group_id=str(server_round))

    def _replies(
        self,
        grid: Grid,
        server_round: int,
        kind: str,
        requests: Iterable[Message],
        timeout: float,
        split: str = "",
    ) -> Iterator[Message]:
        """Replies in client order; a client of which nothing came is counted as a failure, and so is what no request
        asked for."""
        silent = set[int]()

        def asked() -> Iterator[Message]:
            for request in requests:
                silent.add(request.metadata.dst_node_id)
                yield request

        def ask_again(member: Member) -> Message:
            return self._request(kind, member, server_round, split, send_whole=True)

        def rejected(client_id: int, rejection: RejectedMessage) -> None:
            if client_id != UNKNOWN_CLIENT:
                silent.discard(self._exchange.members[client_id].node_id)
            self._fail(server_round, client_id, rejection)

        version = self.state.version
        for reply in self._exchange.replies(grid, server_round, kind, version, asked(), ask_again, timeout, rejected):
            silent.discard(reply.metadata.src_node_id)
            yield reply
        for member in self._exchange.members.values():
            if member.node_id in silent:
                self._fail(server_round, member.client_id, RejectedMessage("no-reply", "no reply arrived in time"))

    def _reject(self, server_round: int, reply: Message, rejection: RejectedMessage) -> None:
        self._exchange.reject(reply)
        self._fail(server_round, self._exchange.member_of(reply).client_id, rejection)

    def _fail(self, server_round: int, client_id: int, rejection: RejectedMessage) -> None:
        self._failures[rejection.cause] += 1
        if client_id != UNKNOWN_CLIENT:
            self._failed[client_id] = f"{rejection.cause}: {rejection}"
        self._observer.client_failed(server_round, client_id, rejection.cause, str(rejection))


def _facts_of_answer(reply: Message) -> dict[str, Fact]:
    """Raises RejectedMessage where the client answered with an error, or lacks what it was sent again."""
    if reply.has_error():
        raise RejectedMessage("client-error", reply.error.reason or f"error {reply.error.code}")
    facts = facts_of(reply.content)
    if (missing := facts.get("missing")) is not None:
        raise RejectedMessage("still-missing", f"the client still lacks what it was sent again: {missing!r}")
    return facts


def _number(facts: Facts, name: str, low: float, high: float) -> float:
    """Raises RejectedMessage where the number is missing, of another type, or not from low to high."""
    value = facts.get(name)
    # The type itself: a bool is an int to Python. NaN is not from low to high.
    if type(value) not in (int, float) or not low <= value <= high:  # type: ignore[operator]
        found = f"a list of {len(value)}" if isinstance(value, list) else value
        raise RejectedMessage(f"bad-{name}", f"{name} is {found}, allowed is {low:,.10g} to {high:,.10g}")
    return float(value)  # type: ignore[arg-type]


def _score_metrics(scores: Scores) -> MetricRecord:
    return MetricRecord({f"score/{task}": value for task, value in scores.score().items()})
