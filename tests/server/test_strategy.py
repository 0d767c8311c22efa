"""server.strategy, end to end with the real client on the tiny model: the result is plain federated averaging, whatever
the order of arrival; what cannot be used is rejected, counted, and leaves no trace.
"""

import dataclasses
import math
import random
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict

from client.app import app as client_app
from client.process import population, texts_for
from faults.malformed import rewrite
from fedmask.errors import FedmaskError
from fedmask.masks import select
from fedmask.models import BaseModel, load_base
from fedmask.randomness import seed_for
from fedmask.runs.config import RunConfig
from fedmask.training.delta import SelectedEntries, load_adapter
from fedmask.training.gradient import SelectedGradient
from fedmask.training.head import HeadLayout
from fedmask.training.local import LocalSettings, train_delta_and_head
from fedmask.training.reparametrisation import BiasNetworks, Direct
from fedmask.training.text import tokenize
from fedmask.wire.codecs import codec
from fedmask.wire.ledger import Ledger
from fedmask.wire.messages import FACTS, facts_of, payload_of
from fedmask.wire.vectors import frame, frames
from server.app import select_mask, settings_for, with_rate
from server.compose import compose
from server.local_grid import LocalGrid
from server.strategy import MaskedAveraging

Run = Any
Change = Callable[[Message], Message | None]


# ----------------------------------------------------------------------------------------------------------------------
# The result is plain federated averaging
# ----------------------------------------------------------------------------------------------------------------------


def plain_averaging(config: RunConfig, cohorts: list[list[int]] | None = None) -> tuple[np.ndarray, dict[int, Any]]:
    """Federated averaging as a loop: the global delta after the last round, and every client's head."""
    base = load_base(**dataclasses.asdict(config.model))
    mask = select(base.encoder, rule=config.mask.rule, density=config.mask.density)
    entries = SelectedEntries(base.encoder, mask)
    gradient = SelectedGradient(base.encoder, entries)
    clients = population(config.data, config.clients, config.seed)
    layouts = [HeadLayout.of(client.task, base.hidden_size) for client in clients]
    heads = {client.client_id: layouts[client.client_id].random_start(config.seed) for client in clients}
    delta = np.zeros(mask.num_selected, np.float32)
    for server_round in range(1, config.rounds + 1):
        total, num_examples = np.zeros(mask.num_selected), 0
        for number in cohorts[server_round - 1] if cohorts else range(config.clients):
            client, start = clients[number], torch.from_numpy(delta.copy())
            if config.mask.rank:
                seed = seed_for(config.seed, "hiwi", server_round, number)
                how: Any = BiasNetworks(entries, start, config.mask.rank, torch.Generator().manual_seed(seed))
            else:
                how = Direct(start)
            result = train_delta_and_head(
                base.encoder,
                gradient,
                how,
                layouts[number],
                heads[number],
                tokenize(client.train, base.tokenizer, base.encoder, config.data.max_length),
                LocalSettings(
                    config.client.local_epochs,
                    config.client.batch_size,
                    config.client.learning_rate,
                    config.client.head_learning_rate,
                    config.client.weight_decay,
                    seed_for(config.seed, "batches", server_round, number),
                ),
            )
            heads[number] = result.head
            update = result.delta.numpy() - delta
            total += len(client.train) * update.astype(np.float64)
            num_examples += len(client.train)
        delta = (delta + config.server.learning_rate * (total / num_examples)).astype(np.float32)
    return delta, {number: head.numpy() for number, head in heads.items()}


def test_two_rounds_are_plain_federated_averaging_bit_for_bit(plain_run: Run) -> None:
    values, heads = plain_averaging(plain_run.config)
    assert np.count_nonzero(values) > 0.9 * values.size
    assert plain_run.values.tobytes() == values.tobytes()
    for client, head in heads.items():
        assert plain_run.kept(client, "head").endswith(head.tobytes())


def test_a_bfloat16_base_is_averaged_alike_and_its_adapter_merges(
    federate: Callable[..., Run], plain_run: Run, tiny_bf16: BaseModel
) -> None:
    run = federate("model.dtype=bfloat16")
    values, _ = plain_averaging(run.config)
    assert np.count_nonzero(values) > 0.9 * values.size
    assert run.values.tobytes() == values.tobytes()
    assert run.summary["model"]["digest"] == tiny_bf16.digest != plain_run.summary["model"]["digest"]
    assert not any(line["failures"] for line in run.rounds)
    (setup,) = {line["payload_bytes"] for line in run.ledger if line["kind"] == "mask" and line["direction"] == "down"}
    assert setup < 1500  # every client made the mask itself, from its own bfloat16 weights

    adapter = load_adapter(run.folder / "adapter.safetensors")
    assert adapter.base_dtype == "bfloat16"
    merged = adapter.merge(tiny_bf16.encoder)
    entries = SelectedEntries(merged, adapter.mask_for(tiny_bf16.encoder))
    base = torch.cat(SelectedEntries(tiny_bf16.encoder, entries.mask).base_values)
    assert torch.equal(torch.cat(entries.base_values), (base.float() + torch.from_numpy(values)).bfloat16())


def test_clients_weigh_by_their_number_of_examples(federate: Callable[..., Run]) -> None:
    run = federate("data.partition=dirichlet", "data.alpha=0.5", "client.head=shared", "rounds=1")
    sizes = [len(client.train) for client in population(run.config.data, 4, 0)]
    assert len(set(sizes)) > 1
    values, _ = plain_averaging(run.config)
    assert run.values.tobytes() == values.tobytes()


def test_the_servers_rate_stretches_the_mean_of_the_deltas(federate: Callable[..., Run], plain_run: Run) -> None:
    run = federate("server.learning_rate=2.5")
    values, _ = plain_averaging(run.config)
    assert run.values.tobytes() == values.tobytes()
    assert run.values.tobytes() != plain_run.values.tobytes()


def test_the_servers_rate_leaves_shared_heads_alone(federate: Callable[..., Run]) -> None:
    once, thrice = (federate("client.head=shared", "rounds=1", f"server.learning_rate={rate}") for rate in (1, 3))
    assert once.head_values == thrice.head_values
    np.testing.assert_allclose(thrice.values, 3 * once.values, rtol=1e-6)


def test_validation_is_scored_every_few_rounds_and_at_the_end(federate: Callable[..., Run], plain_run: Run) -> None:
    sparse, every = (federate("rounds=5", f"score_every={rounds}") for rounds in (2, 1))
    assert [bool(line["score"]) for line in sparse.rounds] == [False, True, False, True, True]
    assert sparse.adapter == every.adapter
    assert sparse.summary["score"] == every.summary["score"]
    assert sparse.rounds[3]["score"] == every.rounds[3]["score"]
    evaluated = {line["round"] for line in sparse.ledger if line["kind"] == "evaluate"}
    assert evaluated == {2, 4, 5}


def test_the_test_split_can_be_left_for_later(federate: Callable[..., Run], plain_run: Run) -> None:
    run = federate("score_test=false")
    assert run.summary["score"] == {}
    assert run.summary["mean_score"] is None
    assert run.adapter == plain_run.adapter
    assert run.rounds[-1]["score"] == plain_run.rounds[-1]["score"]


def test_heads_start_from_the_label_names(federate: Callable[..., Run], plain_run: Run) -> None:
    run = federate("client.head_init=label_names", "client.head=frozen")
    config = run.config
    texts = texts_for(settings_for(config))
    client = population(config.data, 4, config.seed)[0]
    start = texts.head_start(HeadLayout.of(client.task, 64), "label_names", config.seed)
    assert run.kept(0, "head").endswith(start.numpy().tobytes())
    assert run.adapter != plain_run.adapter


def test_hiwi_averages_the_deltas_its_networks_made(federate: Callable[..., Run]) -> None:
    run = federate("mask=hiwi", "mask.density=null")
    assert run.summary["mask"]["num_selected"] == 2 * (256 + 64)
    values, _ = plain_averaging(run.config)
    assert run.values.tobytes() == values.tobytes()


def test_the_same_run_leaves_the_same_bytes_and_another_seed_others(
    federate: Callable[..., Run], plain_run: Run
) -> None:
    again = federate()
    assert again.adapter == plain_run.adapter
    assert again.heads == plain_run.heads
    assert federate("seed=1").values.tobytes() != plain_run.values.tobytes()


# ----------------------------------------------------------------------------------------------------------------------
# Order and node ids do not matter; cohorts are by client_id
# ----------------------------------------------------------------------------------------------------------------------


class ShufflingGrid:
    """A grid like a network's: all replies at once, in another order each time; node ids in any order."""

    def __init__(self, app: Any, num_clients: int) -> None:
        self._grid = LocalGrid(app, num_clients, seed=99)
        self._random = random.Random(num_clients)

    def keep_client_state_in(self, folder: Path) -> None:
        self._grid.keep_client_state_in(folder)

    def get_node_ids(self) -> list[int]:
        ids = list(self._grid.get_node_ids())
        self._random.shuffle(ids)
        return ids

    def stream(self, messages: Iterable[Message], timeout: float | None = None) -> list[Message]:
        replies = list(self._grid.stream(messages))
        self._random.shuffle(replies)
        return replies


def test_order_of_arrival_and_node_ids_change_no_bit(federate: Callable[..., Run], plain_run: Run) -> None:
    shuffled = federate(grid=ShufflingGrid)
    assert shuffled.adapter == plain_run.adapter
    assert shuffled.heads == plain_run.heads
    assert sorted(shuffled.watched.replied[:4]) == [0, 1, 2, 3]  # the mask, in whatever order
    assert shuffled.watched.replied[4:] == plain_run.watched.replied[4:] == [0, 1, 2, 3] * 5
    assert [line["score"] for line in shuffled.rounds] == [line["score"] for line in plain_run.rounds]


def test_updates_are_added_in_client_order_whatever_their_size(
    federate: Callable[..., Run], filtering_grid: Callable[..., Any]
) -> None:
    """Updates so unlike in size that another order of adding gives other bits."""

    def scaled(client: int, request: Message, reply: Message) -> Message:
        return rescaled(reply, [1e20, 1.0, -1e20, 1e3][client]) if is_train(request) else reply

    def shuffled(app: Any, num_clients: int) -> Any:
        grid = ShufflingGrid(app, num_clients)
        grid._grid = filtering_grid(scaled)(app, num_clients)
        return grid

    in_order = federate("rounds=1", grid=filtering_grid(scaled))
    assert federate("rounds=1", grid=shuffled).adapter == in_order.adapter


def test_cohorts_are_seeded_and_by_client_id(federate: Callable[..., Run]) -> None:
    settings = ("clients_per_round=2", "rounds=4")
    run = federate(*settings)
    cohorts = [line["cohort"] for line in run.rounds]
    assert all(len(set(cohort)) == 2 and cohort == sorted(cohort) for cohort in cohorts)
    assert len({tuple(cohort) for cohort in cohorts}) > 1
    other_nodes = federate(*settings, grid=ShufflingGrid)
    assert [line["cohort"] for line in other_nodes.rounds] == cohorts
    assert other_nodes.adapter == run.adapter
    assert [line["cohort"] for line in federate(*settings, "seed=5").rounds] != cohorts
    values, _ = plain_averaging(run.config, cohorts)
    assert run.values.tobytes() == values.tobytes()
    assert [line["clients"] for line in run.rounds] == [2] * 4


def test_clients_never_drawn_are_left_out_of_the_scores_and_counted(federate: Callable[..., Run]) -> None:
    run = federate("clients_per_round=1", "rounds=2")
    drawn = {line["cohort"][0] for line in run.rounds}
    assert run.summary["clients_never_drawn"] == 4 - len(drawn)
    assert set(run.summary["score"]) == {("first", "second")[client % 2] for client in drawn}
    assert {line["client"] for line in run.ledger if line["kind"] != "mask"} == drawn
    assert {line["client"] for line in run.ledger if line["kind"] == "mask"} == {0, 1, 2, 3}
    for line in run.rounds:
        assert set(line["score"]) == {("first", "second")[line["cohort"][0] % 2]}


# ----------------------------------------------------------------------------------------------------------------------
# What must not enter any sum
# ----------------------------------------------------------------------------------------------------------------------

BAD = 1
"""The client that goes wrong in these tests."""


def is_train(message: Message) -> bool:
    return message.metadata.message_type == "train"


def delta_of(reply: Message) -> np.ndarray:
    payload = payload_of(reply.content)
    return np.frombuffer(payload[len(payload) % 4 :], "<f4")[-2061:].copy()


def rewritten(reply: Message, payload: bytes | None = None, **facts: Any) -> Message:
    """The reply with another payload or other facts; a fact that is None is left out."""
    told = facts_of(reply.content) | {name.replace("_", "-"): value for name, value in facts.items()}
    rewrite(reply, payload, {name: fact for name, fact in told.items() if fact is not None})
    return reply


def with_value(reply: Message, value: float) -> Message:
    return rewritten(reply, payload_of(reply.content)[:-4] + struct.pack("<f", value))


def rescaled(reply: Message, factor: float) -> Message:
    payload = payload_of(reply.content)
    return rewritten(reply, payload[: -4 * 2061] + (delta_of(reply) * np.float32(factor)).tobytes())


def reframed(reply: Message, name: str = "delta", layout: str | None = None, size: int = 2061) -> Message:
    digest = frames(payload_of(reply.content))[0].layout.hex() if layout is None else layout
    return rewritten(reply, frame(name, digest, codec("fp32").encode(np.zeros(size, np.float32), 0)))


def of_another_form(reply: Message) -> Message:
    reply.content = RecordDict({FACTS: ArrayRecord({FACTS: Array(np.zeros(3, np.float32))})})
    return reply


def empty(reply: Message) -> Message:
    reply.content = RecordDict()
    return reply


def twice(reply: Message) -> Message:
    return rewritten(reply, payload_of(reply.content) * 2)


FAULTS: dict[str, tuple[str, str, Change]] = {
    "no reply": ("no-reply", "no reply arrived in time", lambda reply: None),
    "NaN": ("not-finite", "1 of 2,061 values are not finite", lambda reply: with_value(reply, math.nan)),
    "infinity": ("not-finite", "1 of 2,061 values are not finite", lambda reply: with_value(reply, -math.inf)),
    "too short": (
        "wrong-length",
        "they hold 2,060 values, 2,061 are expected",
        lambda reply: reframed(reply, size=2060),
    ),
    "too long": (
        "wrong-length",
        "they hold 2,062 values, 2,061 are expected",
        lambda reply: reframed(reply, size=2062),
    ),
    "other mask": ("wrong-layout", "has layout abababab", lambda reply: reframed(reply, layout="ab" * 32)),
    "other name": ("undecodable", "vector 'head' is not expected", lambda reply: reframed(reply, name="head")),
    "twice": ("undecodable", "stands twice in the payload", twice),
    "random bytes": ("undecodable", "payload of 3 bytes", lambda reply: rewritten(reply, b"abc")),
    "an array of floats": ("undecodable", "the content must be packed facts and a payload", of_another_form),
    "no vector": ("missing-vector", "holds [], expected ['delta']", lambda reply: rewritten(reply, b"")),
    "nothing at all": ("undecodable", "must be packed facts and a payload, found {}", empty),
    "no examples": ("bad-num-examples", "num-examples is 0,", lambda reply: rewritten(reply, num_examples=0)),
    "negative": ("bad-num-examples", "num-examples is -5,", lambda reply: rewritten(reply, num_examples=-5)),
    "NaN examples": ("bad-num-examples", "is nan,", lambda reply: rewritten(reply, num_examples=math.nan)),
    "infinite examples": ("bad-num-examples", "is inf,", lambda reply: rewritten(reply, num_examples=math.inf)),
    "absurd": (
        "bad-num-examples",
        "allowed is 1 to 1,000,000,000",
        lambda reply: rewritten(reply, num_examples=10**10),
    ),
    "a list of examples": ("bad-num-examples", "is a list of 1,", lambda reply: rewritten(reply, num_examples=[10])),
    "number left out": ("bad-num-examples", "is None,", lambda reply: rewritten(reply, num_examples=None)),
    "NaN loss": ("bad-train-loss", "train-loss is nan", lambda reply: rewritten(reply, train_loss=math.nan)),
    "loss left out": ("bad-train-loss", "train-loss is None", lambda reply: rewritten(reply, train_loss=None)),
}


@pytest.fixture(scope="module")
def without_bad(federate: Callable[..., Run], filtering_grid: Callable[..., Any]) -> Run:
    """The bits that are right: in round 1 the good clients alone are averaged, by the plain loop."""
    run = federate("rounds=1", grid=filtering_grid(drop_bad))
    values, _ = plain_averaging(run.config, [[0, 2, 3]])
    assert run.values.tobytes() == values.tobytes()
    return run


def drop_bad(client: int, request: Message, reply: Message) -> Message | None:
    return None if client == BAD and is_train(request) else reply


@pytest.mark.parametrize("fault", FAULTS)
def test_a_reply_that_cannot_be_used_is_counted_and_leaves_no_trace(
    fault: str, federate: Callable[..., Run], filtering_grid: Callable[..., Any], without_bad: Run
) -> None:
    cause, detail, change = FAULTS[fault]

    def at_the_bad_client(client: int, request: Message, reply: Message) -> Message | None:
        return change(reply) if client == BAD and is_train(request) else reply

    run = federate("rounds=1", grid=filtering_grid(at_the_bad_client))
    (line,) = run.rounds
    assert (line["clients"], line["failures"], line["failure_causes"]) == (4, 1, {cause: 1})
    ((server_round, client, found_cause, found_detail),) = run.watched.failures
    assert (server_round, client, found_cause) == (1, BAD, cause)
    assert detail in found_detail
    assert run.adapter == without_bad.adapter
    assert line["train_loss"] == without_bad.rounds[0]["train_loss"]


def raising_app(message: Message, context: Context) -> Message:
    if context.node_config["partition-id"] == BAD and is_train(message):
        raise MemoryError("out of memory")
    return client_app(message, context)


def test_a_client_that_raises_costs_its_own_reply_only(federate: Callable[..., Run], without_bad: Run) -> None:
    run = federate("rounds=1", app=raising_app)
    assert run.rounds[0]["failure_causes"] == {"client-error": 1}
    ((_, client, _, detail),) = run.watched.failures
    assert client == BAD
    assert detail.startswith("MemoryError: out of memory (raising_app, line ")
    assert run.adapter == without_bad.adapter


def test_failures_are_counted_a_round_at_a_time(
    federate: Callable[..., Run], filtering_grid: Callable[..., Any]
) -> None:
    def once(client: int, request: Message, reply: Message) -> Message | None:
        first = facts_of(request.content).get("round") == 1
        if is_train(request) and first and client in (0, 3):
            return None if client == 0 else rewritten(reply, num_examples=0)
        return reply

    run = federate(grid=filtering_grid(once))
    assert [line["failure_causes"] for line in run.rounds] == [{"bad-num-examples": 1, "no-reply": 1}, {}]
    assert [line["failures"] for line in run.rounds] == [2, 0]
    assert [line["failed"] for line in run.rounds] == [[0, 3], []]


def test_a_score_that_cannot_be_used_is_left_out_and_counted(
    federate: Callable[..., Run], filtering_grid: Callable[..., Any], plain_run: Run
) -> None:
    def bad_scores(client: int, request: Message, reply: Message) -> Message | None:
        if request.metadata.message_type != "evaluate" or facts_of(request.content)["split"] == "test":
            return reply
        return rewritten(reply, counts=[math.nan, 1.0]) if client == 0 else None if client == 2 else reply

    run = federate(grid=filtering_grid(bad_scores))
    assert [line["failure_causes"] for line in run.rounds] == [{"not-finite": 1, "no-reply": 1}] * 2
    assert [set(line["score"]) for line in run.rounds] == [{"second"}] * 2  # tasks alternate: 0 and 2 have the first
    assert run.adapter == plain_run.adapter
    assert run.summary["score"] == plain_run.summary["score"]


def test_a_run_without_one_usable_reply_ends_in_one_line_and_without_a_summary(
    federate: Callable[..., Run], filtering_grid: Callable[..., Any], tmp_path: Any
) -> None:
    def all_bad(client: int, request: Message, reply: Message) -> Message | None:
        if not is_train(request) or facts_of(request.content)["round"] == 1:
            return reply
        return None if client == 0 else with_value(reply, math.nan)

    with pytest.raises(FedmaskError) as caught:
        federate(grid=filtering_grid(all_bad), output=tmp_path / "run")
    assert str(caught.value) == (
        "round 2: no client's reply could be used (no-reply x 1, not-finite x 3); the run is stopped"
    )
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not (tmp_path / "run" / "adapter.safetensors").exists()
    assert len((tmp_path / "run" / "rounds.jsonl").read_text().splitlines()) == 1


# ----------------------------------------------------------------------------------------------------------------------
# Heads
# ----------------------------------------------------------------------------------------------------------------------


def test_local_heads_never_travel_and_stay_with_their_client(plain_run: Run) -> None:
    assert {line["kind"] for line in plain_run.ledger} == {"mask", "train", "evaluate"}
    trained = [line for line in plain_run.ledger if line["kind"] == "train"]
    assert {line["payload_bytes"] for line in trained} == {0, 16 + len("delta") + 8 + 4 * 2061}
    assert len(set(plain_run.heads)) == 4


def test_shared_heads_are_averaged_within_their_task_and_counted_under_their_own_kind(
    federate: Callable[..., Run],
) -> None:
    run = federate("client.head=shared", "rounds=1")
    _, heads = plain_averaging(run.config)
    for first, second in ((0, 2), (1, 3)):
        assert run.kept(first, "head") == run.kept(second, "head")
        clients = population(run.config.data, 4, 0)
        start = HeadLayout.of(clients[first].task, 64).random_start(0).numpy()
        mean = start + ((heads[first] - start) + (heads[second] - start)) / 2  # ten examples each
        found = np.frombuffer(run.kept(first, "head")[-4 * mean.size :], "<f4")
        np.testing.assert_allclose(found, mean, rtol=0, atol=1e-6)
        assert np.abs(found - start).max() > 1e-3
    assert run.kept(0, "head") != run.kept(1, "head")
    lines = [line for line in run.ledger if line["kind"] == "head"]
    assert len(lines) == 4 * 2  # train up, validation down: zeros to begin with are not sent, nor anything twice
    assert {line["payload_bytes"] for line in lines} == {16 + len("head") + 8 + 4 * 2 * 65}
    assert all(line["wire_bytes"] == line["payload_bytes"] for line in lines)


def test_frozen_heads_keep_the_bits_their_task_seeds(federate: Callable[..., Run]) -> None:
    run = federate("client.head=frozen", "rounds=1")
    for client in population(run.config.data, 4, 0):
        start = HeadLayout.of(client.task, 64).random_start(0).numpy()
        assert run.kept(client.client_id, "head").endswith(start.tobytes())
    assert {line["kind"] for line in run.ledger} == {"mask", "train", "evaluate"}
    assert np.count_nonzero(run.values) > 0


def test_flowers_evaluate_fn_sees_the_delta_before_the_first_round_and_after_each(
    overrides: list[str], plain_run: Run, tmp_path: Path
) -> None:
    config = compose([*overrides, f"output={tmp_path / 'run'}"])
    base = load_base("tiny", geometry=config.model.geometry)
    grid = LocalGrid(client_app, 4)
    grid.keep_client_state_in(tmp_path / "clients")
    mask = select_mask(config, base)
    config = with_rate(config, mask)
    strategy = MaskedAveraging(
        settings_for(config), mask, None, 4, Ledger(), plain_run.watched, config.server, base.hidden_size
    )
    seen: dict[int, np.ndarray] = {}

    def evaluate_fn(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        seen[server_round] = arrays["delta"].numpy()
        return MetricRecord({"largest": float(np.abs(seen[server_round]).max())}) if server_round else None

    result = strategy.start(grid, strategy.arrays(), 2, evaluate_fn=evaluate_fn)
    assert list(seen) == [0, 1, 2]
    assert not seen[0].any()
    assert seen[2].tobytes() == plain_run.values.tobytes()
    assert set(result.evaluate_metrics_serverapp) == {1, 2}
