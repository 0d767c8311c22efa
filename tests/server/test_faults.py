"""Faults in a round, injected at LocalGrid and at the codec boundary: each is rejected, counted by cause, and leaves no
trace in any sum, state or ledger of accepted bytes; the good clients' result has the bits it has without bad replies.
"""

import copy
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from client.app import app as client_app
from faults.malformed import KINDS, OBJECTS, malformed, rewrite
from fedmask.errors import MAX_DETAIL_CHARACTERS, FedmaskError, RejectedMessage
from fedmask.wire.codecs import codec
from fedmask.wire.messages import facts_of, pack, payload_of, wire_bytes
from fedmask.wire.vectors import frame, unframe
from server.local_grid import LocalGrid

Run = Any
Change = Callable[[int, Message, Message], Message | None]

BAD = 1
"""The client that goes wrong."""


def is_train(request: Message) -> bool:
    return request.metadata.message_type == "train"


def round_of(request: Message) -> int:
    return int(facts_of(request.content)["round"])  # type: ignore[arg-type]


def lines_of(run: Run, client: int, *kinds: str, direction: str = "up") -> list[dict[str, Any]]:
    lines = [line for line in run.ledger if (line["client"], line["direction"]) == (client, direction)]
    return [line for line in lines if line["kind"] in kinds]


# ----------------------------------------------------------------------------------------------------------------------
# Malformed replies
# ----------------------------------------------------------------------------------------------------------------------


TRAINED = [name for name, kind in KINDS.items() if kind.stage == "train" and name not in OBJECTS]


@pytest.mark.parametrize("head", ["local", "shared"])
def test_malformed_replies_of_every_kind_leave_no_trace(
    head: str, federate: Callable[..., Run], filtering_grid: Callable[..., Any]
) -> None:
    generator, sent_bytes = np.random.default_rng(7), [0]

    def spoil(client: int, request: Message, reply: Message) -> Message:
        if client != BAD or not is_train(request):
            return reply
        bad = malformed(TRAINED[round_of(request) - 1], request, reply, generator)
        sent_bytes[0] += wire_bytes(bad)
        return bad

    def drop(client: int, request: Message, reply: Message) -> Message | None:
        return None if client == BAD and is_train(request) else reply

    settings = (f"client.head={head}", f"rounds={len(TRAINED)}", f"score_every={len(TRAINED)}")
    run, without = (federate(*settings, grid=filtering_grid(change)) for change in (spoil, drop))
    assert run.adapter == without.adapter
    for client in {0, 1, 2, 3} - {BAD}:
        assert run.kept(client, "head") == without.kept(client, "head")
    assert [line["train_loss"] for line in run.rounds] == [line["train_loss"] for line in without.rounds]
    assert run.summary["score"] == without.summary["score"]
    for line, name in zip(run.rounds, TRAINED, strict=True):
        assert line["failure_causes"], name
        assert set(line["failure_causes"]) <= KINDS[name].causes, name
        assert line["failed"] == [BAD]

    asked_twice = len(lines_of(run, BAD, "train", direction="down")) - len(TRAINED)
    assert asked_twice == 1  # the one that always lacks something; its first answer was no fault yet
    accepted = lines_of(run, BAD, "train", "head")
    assert [line["payload_bytes"] for line in accepted] == [0]
    rejected = [line for line in run.ledger if line["kind"] == "rejected"]
    assert {BAD} <= {line["client"] for line in rejected} <= {BAD, -1}
    assert all((line["direction"], line["payload_bytes"]) == ("up", 0) for line in rejected)
    assert sum(line["wire_bytes"] for line in rejected + accepted) == sent_bytes[0]
    assert run.summary["communication"]["total_bytes"] == sum(line["wire_bytes"] for line in run.ledger)
    report = (run.folder / "report.html").read_text()
    assert "rejected, up" in report
    assert ">-1</th>" not in report  # what no client sent makes no client


def sound_reply() -> tuple[Message, Message]:
    grid = LocalGrid(client_app, 1)
    request = Message(RecordDict(), next(iter(grid.get_node_ids())), "train", group_id="1")
    reply = Message(RecordDict(), reply_to=request)
    values = np.random.default_rng(0).standard_normal(30).astype(np.float32)
    payload = frame("delta", "ab" * 32, codec("fp32").encode(values, 0))
    reply.content = pack(payload, {"num-examples": 5, "train-loss": 0.3})
    return request, reply


def read(reply: Message) -> None:
    facts_of(reply.content)
    unframe(payload_of(reply.content), [("delta", "ab" * 32, 30)])


AT_THE_CODECS = [name for name in TRAINED if KINDS[name].causes <= {"undecodable", "wrong-length", "wrong-layout"}]


@pytest.mark.parametrize("name", AT_THE_CODECS)
def test_no_malformed_payload_is_decoded(name: str) -> None:
    generator = np.random.default_rng(3)
    for _ in range(100):
        request, reply = sound_reply()
        assert len(unframe(payload_of(reply.content), [("delta", "ab" * 32, 30)])) == 1
        bad = malformed(name, request, reply, generator)
        with pytest.raises(RejectedMessage) as caught:
            read(bad)
        assert caught.value.cause in KINDS[name].causes


def test_there_are_many_kinds_and_a_seed_repeats_them() -> None:
    assert len(KINDS) >= 12
    for name in KINDS.keys() - OBJECTS.keys():
        replies = [malformed(name, *sound_reply(), np.random.default_rng(5)) for _ in range(2)]
        first, second = (
            (reply.error.reason,) if reply.has_error() else (str(reply.metadata.group_id), repr(reply.content))
            for reply in replies
        )
        assert first == second


def test_what_a_peer_says_is_shown_on_one_printable_line() -> None:
    text = str(RejectedMessage("client-error", "line\nline \x1b[2J" + "x" * 10**6))
    assert text.isprintable()
    assert len(text) <= MAX_DETAIL_CHARACTERS + 3


# ----------------------------------------------------------------------------------------------------------------------
# Twice, of another time, late
# ----------------------------------------------------------------------------------------------------------------------


class TwiceGrid(LocalGrid):
    """Every client says everything twice."""

    def stream(self, messages: Iterable[Message], timeout: float | None = None) -> Iterator[Message]:
        for reply in super().stream(messages):
            yield reply
            yield copy.deepcopy(reply)


def test_who_answers_twice_counts_once(federate: Callable[..., Run], plain_run: Run) -> None:
    run = federate(grid=TwiceGrid)
    assert run.adapter == plain_run.adapter
    assert [line["failure_causes"] for line in run.rounds] == [{"duplicate": 8}] * 2  # training and scoring
    assert run.summary["test_failure_causes"] == {"duplicate": 4}
    assert run.summary["score"] == plain_run.summary["score"]
    for client in range(4):
        assert lines_of(run, client, "train", "evaluate") == lines_of(plain_run, client, "train", "evaluate")
        assert len(lines_of(run, client, "rejected")) == 6  # mask, twice train and evaluate, test


def test_a_reply_to_another_round_is_none_to_this_one(
    federate: Callable[..., Run], filtering_grid: Callable[..., Any]
) -> None:
    kept: list[Message] = []

    def a_round_later(client: int, request: Message, reply: Message) -> Message | None:
        if client != BAD or not is_train(request):
            return reply
        kept.append(reply)
        return kept[-2] if len(kept) > 1 else None

    def never(client: int, request: Message, reply: Message) -> Message | None:
        return None if client == BAD and is_train(request) else reply

    run, without = (federate("rounds=3", grid=filtering_grid(change)) for change in (a_round_later, never))
    stray = {"other-message": 1, "no-reply": 1}  # in this round nobody was sent what it answers
    assert [line["failure_causes"] for line in run.rounds] == [{"no-reply": 1}, stray, stray]
    assert run.adapter == without.adapter


def test_when_the_time_is_over_nobody_is_asked_and_what_comes_is_late(
    federate: Callable[..., Run], filtering_grid: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    passed, monotonic = [0.0], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + passed[0])

    def app(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if int(context.node_config["partition-id"]) == BAD and is_train(message):
            passed[0] += 600
        return reply

    def only_the_first(client: int, request: Message, reply: Message) -> Message | None:
        return None if client > 0 and is_train(request) and round_of(request) == 1 else reply

    run = federate("rounds=1", "server.timeout_seconds=500", app=app)
    without = federate("rounds=1", grid=filtering_grid(only_the_first))
    assert run.rounds[0]["failure_causes"] == {"late": 1, "no-reply": 2}
    assert run.rounds[0]["failed"] == [1, 2, 3]
    assert run.adapter == without.adapter
    assert set(run.rounds[0]["score"]) == {"first", "second"}  # scoring has a time of its own
    asked = [line["client"] for line in run.ledger if (line["kind"], line["direction"]) == ("train", "down")]
    assert asked == [0, 1]
    assert len(lines_of(run, BAD, "rejected")) == 1


class WholeGrid:
    """A grid that takes all messages at once, as the one on Ray, and is told how long it may wait."""

    def __init__(self, app: Any, num_clients: int) -> None:
        self._grid = LocalGrid(app, num_clients)
        self.keep_client_state_in, self.get_node_ids = self._grid.keep_client_state_in, self._grid.get_node_ids
        self.timeouts: list[tuple[str, float]] = []

    def stream(self, messages: Iterable[Message], timeout: float | None = None) -> list[Message]:
        messages = list(messages)
        assert timeout is not None
        self.timeouts.append((messages[0].metadata.message_type, timeout))
        return list(self._grid.stream(messages))


def test_grids_are_told_how_long_they_may_wait(federate: Callable[..., Run], plain_run: Run) -> None:
    grids: list[WholeGrid] = []

    def grid(app: Any, num_clients: int) -> WholeGrid:
        grids.append(WholeGrid(app, num_clients))
        return grids[0]

    run = federate("server.timeout_seconds=500", grid=grid)
    assert run.adapter == plain_run.adapter
    (kind, setup_seconds), *others = grids[0].timeouts
    assert (kind, setup_seconds) == ("query.mask", 3600.0)  # to connect and to load is no part of a round
    assert [kind for kind, _ in others] == ["train", "evaluate"] * 2 + ["evaluate"]
    assert all(0 < seconds <= 500 for _, seconds in others)


def test_a_client_that_changes_its_task_when_it_is_set_up_again_is_not_believed(federate: Callable[..., Run]) -> None:
    introductions = []

    def app(message: Message, context: Context) -> Message:
        if int(context.node_config["partition-id"]) != BAD:
            return client_app(message, context)
        if is_train(message) and round_of(message) == 2:
            context.state = RecordDict()
        reply = client_app(message, context)
        if message.metadata.message_type == "query.mask":
            introductions.append(message)
            if len(introductions) > 1:
                rewrite(reply, facts=facts_of(reply.content) | {"task": "another"})
        return reply

    run = federate(app=app)
    assert len(introductions) > 1
    assert set(run.summary["score"]) == {"first", "second"}


# ----------------------------------------------------------------------------------------------------------------------
# Too few replies
# ----------------------------------------------------------------------------------------------------------------------


def losing_first_attempts(number: int, lost: set[int]) -> Change:
    """In the first `number` attempts of round 2 the replies of these clients are lost."""
    attempts: dict[int, int] = {}

    def change(client: int, request: Message, reply: Message) -> Message | None:
        if not is_train(request) or round_of(request) != 2:
            return reply
        attempts[client] = attempts.get(client, 0) + 1
        return None if client in lost and attempts[client] <= number else reply

    return change


def test_a_round_with_too_few_replies_is_repeated_as_if_it_had_not_been(
    federate: Callable[..., Run], filtering_grid: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    settings = ("client.head=frozen", "clients_per_round=3", "server.min_replies=3", "server.max_retries=2")
    undisturbed = federate(*settings)
    lost = set(undisturbed.rounds[1]["cohort"][:2])
    with caplog.at_level(logging.WARNING, "fedmask"):
        run = federate(*settings, grid=filtering_grid(losing_first_attempts(2, lost)))
    assert run.adapter == undisturbed.adapter
    assert [line["cohort"] for line in run.rounds] == [line["cohort"] for line in undisturbed.rounds]
    assert [line["retries"] for line in run.rounds] == [0, 2]
    assert run.rounds[1]["failure_causes"] == {"no-reply": 4}
    assert run.rounds[1]["train_loss"] == undisturbed.rounds[1]["train_loss"]
    assert caplog.messages == [
        "round 2: replies of 1 clients could be used, server.min_replies=3 are needed "
        f"(no-reply x {number}); the round is repeated"
        for number in (2, 4)
    ]


def test_the_run_goes_on_with_enough_replies(federate: Callable[..., Run], filtering_grid: Callable[..., Any]) -> None:
    run = federate("server.min_replies=2", grid=filtering_grid(losing_first_attempts(1, {0, 3})))
    assert [line["retries"] for line in run.rounds] == [0, 0]
    assert run.rounds[1]["failed"] == [0, 3]


def test_a_round_that_never_has_enough_replies_ends_the_run_in_one_line(
    federate: Callable[..., Run], filtering_grid: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(FedmaskError) as caught:
        federate(
            "server.min_replies=3",
            "server.max_retries=1",
            grid=filtering_grid(losing_first_attempts(2, {0, 3})),
            output=tmp_path / "run",
        )
    assert str(caught.value) == (
        "round 2: replies of 2 clients could be used, server.min_replies=3 are needed "
        "(no-reply x 4); the run is stopped"
    )
    assert not (tmp_path / "run" / "summary.json").exists()
    assert len((tmp_path / "run" / "rounds.jsonl").read_text().splitlines()) == 1


# ----------------------------------------------------------------------------------------------------------------------
# Norms and rules
# ----------------------------------------------------------------------------------------------------------------------

DELTA = 2061


def delta_of(reply: Message) -> np.ndarray:
    return np.frombuffer(payload_of(reply.content)[-4 * DELTA :], "<f4")


def times(factor: float, updates: dict[int, np.ndarray]) -> Change:
    """The bad client's update is so many times as large; `updates` gets what each client sent."""

    def change(client: int, request: Message, reply: Message) -> Message:
        if is_train(request):
            if client == BAD:
                payload = payload_of(reply.content)
                scaled = (delta_of(reply) * np.float32(factor)).tobytes()
                rewrite(reply, payload[: -4 * DELTA] + scaled)
            updates[client] = delta_of(reply).astype(np.float64)
        return reply

    return change


def sent_with(run: Callable[..., Run], grid: Callable[..., Any], factor: float, *settings: str) -> tuple[Run, Any]:
    updates: dict[int, np.ndarray] = {}
    found = run("rounds=1", *settings, grid=grid(times(factor, updates)))
    return found, updates


def test_an_update_beyond_the_largest_norm_is_rejected(
    federate: Callable[..., Run], filtering_grid: Callable[..., Any]
) -> None:
    _, updates = sent_with(federate, filtering_grid, 100)
    largest = max(np.linalg.norm(update) for client, update in updates.items() if client != BAD)
    run, _ = sent_with(federate, filtering_grid, 100, f"server.max_norm={largest * 1.01}")
    assert run.rounds[0]["failure_causes"] == {"too-large": 1}
    assert run.rounds[0]["failed"] == [BAD]
    assert run.watched.failures[0][3].startswith("the update has norm ")
    good = np.mean([update for client, update in updates.items() if client != BAD], axis=0)
    np.testing.assert_allclose(run.values, good, rtol=1e-6, atol=1e-12)


def test_updates_are_clipped_to_a_norm(federate: Callable[..., Run], filtering_grid: Callable[..., Any]) -> None:
    plain, updates = sent_with(federate, filtering_grid, 1)
    norms = sorted(np.linalg.norm(update) for update in updates.values())
    none_above = federate("rounds=1", f"server.clip_norm={norms[-1] * 1.01}")
    assert none_above.values.tobytes() == plain.values.tobytes()
    run, updates = sent_with(federate, filtering_grid, 1e4, f"server.clip_norm={norms[1]}")
    scaled = [update * min(1.0, norms[1] / np.linalg.norm(update)) for update in updates.values()]
    np.testing.assert_allclose(run.values, np.mean(scaled, axis=0), rtol=1e-5, atol=1e-8)  # of values up to 0.1
    assert run.rounds[0]["failures"] == 0


@pytest.mark.parametrize("rule", ["median", "trimmed_mean"])
@pytest.mark.parametrize("factor", [1.0, -1e6])
def test_a_rule_is_applied_within_tasks_and_the_tasks_are_averaged(
    rule: str, factor: float, federate: Callable[..., Run], filtering_grid: Callable[..., Any]
) -> None:
    run, updates = sent_with(federate, filtering_grid, factor, f"server.combine={rule}", "clients=7")
    of_tasks = [np.array([updates[client] for client in range(first, 7, 2)]) for first in (0, 1)]
    if rule == "median":
        combined = [np.median(rows, axis=0) for rows in of_tasks]
    else:
        combined = [np.sort(rows, axis=0)[1:-1].mean(axis=0) for rows in of_tasks]
    expected = (4 * combined[0] + 3 * combined[1]) / 7
    np.testing.assert_allclose(run.values, expected, rtol=1e-6, atol=1e-12)
    assert np.abs(run.values).max() < 1  # one of three clients cannot carry its task away


def test_a_rule_combines_shared_heads_within_their_task(federate: Callable[..., Run]) -> None:
    """With two clients a task, the median is their mean: the same heads but for rounding, from another code."""
    mean, median = (federate("client.head=shared", "rounds=1", f"server.combine={rule}") for rule in ("mean", "median"))
    for first, second in zip(mean.heads, median.heads, strict=True):
        np.testing.assert_allclose(*(np.frombuffer(head[-4 * 130 :], "<f4") for head in (first, second)), atol=1e-6)
    assert mean.heads[0] != mean.heads[1]
