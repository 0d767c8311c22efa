"""server.answers: whatever goes wrong over one reply costs that reply alone, of the client that sent it."""

import logging
import time
from collections.abc import Callable, Iterable
from threading import Event
from typing import Any

import httpx
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import server.answers
from client.app import app as client_app
from faults.malformed import rewrite
from faults.runs import is_train
from fedmask.errors import FedmaskError, RejectedMessage
from fedmask.wire.messages import FACTS, facts_of
from server import strategy
from server.answers import INTERNAL_ERROR, Answer, answers, one_reply
from server.local_grid import LocalGrid
from server.members import Member, introduced
from server.scores import ClientScore

from .conftest import FinishedRun as Run

BAD = 2
"""The client that lies."""

VALUES: list[Any] = [None, True, -1, 2**63, 2**64, 10**400, 1e400, "\ud800", "x" * 60_000, [], [2**64, 1], ["a"], {}]
"""Of every type that JSON has."""

any_fact = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=5,
)


class PullingGrid:
    """As Flower's grid of a SuperLink: replies are pulled, by the ids of the requests."""

    def __init__(self, app: Any, num_clients: int) -> None:
        self._grid = LocalGrid(app, num_clients)
        self.keep_client_state_in, self.get_node_ids = self._grid.keep_client_state_in, self._grid.get_node_ids
        self._asked: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        ids = list(self._grid.push_messages(messages))
        self._asked |= dict(zip(ids, messages, strict=True))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        ids = list(message_ids)
        found = list(self._grid.pull_messages(ids))  # they have left the SuperLink, whatever comes now
        for message_id in ids:
            request = self._asked[message_id]
            self.unpack(int(self._grid.context(request.metadata.dst_node_id).node_config["partition-id"]), request)
        return found

    def unpack(self, client: int, request: Message) -> None:
        """Raises what Flower raises over this client's reply."""


class JunkGrid(PullingGrid):
    """Client 2 has pushed bytes that are no message, in round 1."""

    def unpack(self, client: int, request: Message) -> None:
        if client == BAD and is_train(request) and request.metadata.group_id == "1":
            raise DecodeError("Error parsing message")


def test_a_reply_that_flower_cannot_unpack_costs_itself_alone(
    federate: Callable[..., Run], filtering_grid: Callable[..., Any]
) -> None:
    def drop(client: int, request: Message, reply: Message) -> Message | None:
        is_junk = client == BAD and is_train(request) and request.metadata.group_id == "1"
        return None if is_junk else reply

    run, without = federate(grid=JunkGrid), federate(grid=filtering_grid(drop))
    assert run.rounds[0]["failure_causes"] == {"undecodable": 1}
    assert run.rounds[0]["failed"] == [BAD]
    assert run.adapter == without.adapter


def test_a_superlink_that_is_gone_ends_the_run() -> None:
    class GoneGrid(PullingGrid):
        def unpack(self, client: int, request: Message) -> None:
            raise httpx.ConnectError("refused")

    grid = GoneGrid(client_app, 1)
    with pytest.raises(httpx.ConnectError):
        list(answers(grid, _requests(grid), 1.0))  # type: ignore[arg-type]


@pytest.mark.parametrize(("status", "costs_itself"), [(500, True), (401, False)])
def test_a_superlink_that_fails_over_one_reply_costs_that_one(status: int, costs_itself: bool) -> None:
    class FailingGrid(PullingGrid):
        def unpack(self, client: int, request: Message) -> None:
            response = httpx.Response(status, request=httpx.Request("POST", "https://superlink"))
            response.raise_for_status()

    grid = FailingGrid(client_app, 1)
    if not costs_itself:
        with pytest.raises(httpx.HTTPStatusError):
            list(answers(grid, _requests(grid), 1.0))  # type: ignore[arg-type]
        return
    (answer,) = answers(grid, _requests(grid), 1.0)  # type: ignore[arg-type]
    assert answer.reply is None
    assert answer.fault.startswith("the SuperLink fails over it (")


def _requests(grid: PullingGrid) -> list[Message]:
    facts = RecordDict({FACTS: ConfigRecord({FACTS: b"\x01{}"})})
    return [Message(facts, node, "query.mask", group_id="0") for node in grid.get_node_ids()]


def test_a_client_that_names_another_as_the_sender_is_itself_rejected(
    federate: Callable[..., Run], filtering_grid: Callable[..., Any]
) -> None:
    nodes: dict[int, int] = {}

    def forged(client: int, request: Message, reply: Message) -> Message:
        nodes[client] = request.metadata.dst_node_id
        if client == BAD and is_train(request):
            reply.metadata.__dict__["_src_node_id"] = nodes[0]
        return reply

    def dropped(client: int, request: Message, reply: Message) -> Message | None:
        return None if client == BAD and is_train(request) else reply

    run, without = federate(grid=filtering_grid(forged)), federate(grid=filtering_grid(dropped))
    for line in run.rounds:
        assert (line["failure_causes"], line["failed"]) == ({"other-sender": 1}, [BAD])
    assert run.adapter == without.adapter


def test_a_reply_to_a_message_that_nobody_was_sent_is_nobodys(
    federate: Callable[..., Run], filtering_grid: Callable[..., Any]
) -> None:
    def other(client: int, request: Message, reply: Message) -> Message:
        if client == BAD and is_train(request):
            reply.metadata.__dict__["_reply_to_message_id"] = "f" * 64
        return reply

    run = federate("rounds=1", grid=filtering_grid(other))
    assert run.rounds[0]["failure_causes"] == {"other-message": 1, "no-reply": 1}
    assert (0, -1) not in [(line["round"], line["client"]) for line in run.ledger]
    assert [line["client"] for line in run.ledger if line["kind"] == "rejected"] == [-1]


# ----------------------------------------------------------------------------------------------------------------------
# Facts of any type
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("trained", "scored"), [("num-examples", "counts"), ("missing", "missing")])
def test_a_fact_of_any_type_costs_its_client_alone(
    federate: Callable[..., Run], filtering_grid: Callable[..., Any], trained: str, scored: str
) -> None:
    def is_bad(client: int, request: Message) -> bool:
        return client == BAD and request.metadata.message_type != "query.mask"

    def lie(client: int, request: Message, reply: Message) -> Message:
        if is_bad(client, request):
            value = VALUES[(int(request.metadata.group_id) - 1) % len(VALUES)]
            key = trained if is_train(request) else scored
            rewrite(reply, facts=facts_of(reply.content) | {key: value})
        return reply

    def drop(client: int, request: Message, reply: Message) -> Message | None:
        return None if is_bad(client, request) else reply

    rounds = f"rounds={len(VALUES)}"
    run, without = (federate(rounds, grid=filtering_grid(change)) for change in (lie, drop))
    assert [(line["failed"], line["failures"]) for line in run.rounds] == [([BAD], 2)] * len(VALUES)
    assert run.adapter == without.adapter
    assert [line["score"] for line in run.rounds] == [line["score"] for line in without.rounds]


MEMBER = Member(0, 1, "first", "accuracy", "a" * 64, 10, 2, "b" * 16, 10, "c" * 16)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(st.sampled_from(["counts", "own-counts", "majority-counts"]), any_fact))
def test_any_counts_give_a_score_or_a_rejection(counts: dict[str, Any]) -> None:
    try:
        score = ClientScore.of(MEMBER, counts)
    except RejectedMessage:
        return
    assert -1 <= score.score <= 1


SOUND = {
    "task": "first",
    "metric": "accuracy",
    "head-layout": "a" * 64,
    "head-size": 10,
    "num-classes": 2,
    "classes-digest": "b" * 16,
    "num-examples": 10,
    "data-digest": "c" * 16,
}


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(SOUND)), any_fact, min_size=1))
def test_any_introduction_is_a_member_or_one_line(facts: dict[str, Any]) -> None:
    try:
        said = introduced(0, 1, SOUND | facts).task
    except FedmaskError as error:
        said = str(error)
    assert said.isprintable()
    assert len(said) < 1000


@pytest.mark.parametrize("task", ["\ud800", "\x1b]0;pwned\x07\x1b[2Jx", "first\n"])
def test_a_task_that_cannot_be_shown_is_refused(task: str) -> None:
    with pytest.raises(FedmaskError, match=r"^client 0 has a task named .*; it must have printable characters only$"):
        introduced(0, 1, SOUND | {"task": task})


def test_a_metric_of_many_letters_is_not_told_whole() -> None:
    with pytest.raises(FedmaskError) as caught:
        introduced(0, 1, SOUND | {"metric": "x" * 60_000})
    assert len(str(caught.value)) < 500


# ----------------------------------------------------------------------------------------------------------------------
# A fault of our own
# ----------------------------------------------------------------------------------------------------------------------


def test_a_fault_of_our_own_over_one_reply_is_told_with_its_traceback_and_costs_that_reply(
    federate: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, internal_errors: list[str]
) -> None:
    sound = strategy.decode_updates
    calls = []

    def broken(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise ZeroDivisionError("a bug")
        return sound(*arguments)

    monkeypatch.setattr(strategy, "decode_updates", broken)
    run = federate()
    assert run.rounds[0]["failure_causes"] == {INTERNAL_ERROR: 1}
    assert run.rounds[0]["lost"] == {"1": f"{INTERNAL_ERROR}: ZeroDivisionError: a bug"}
    (told,) = internal_errors
    assert "in broken" in told
    internal_errors.clear()


def test_no_check_is_told_as_a_fault_of_our_own(caplog: pytest.LogCaptureFixture) -> None:
    for error in (RejectedMessage("late", "x"), FedmaskError("y")):
        with pytest.raises(RejectedMessage), one_reply("round 1"):
            raise error
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_the_server_itself_can_be_stopped_over_a_reply() -> None:
    with pytest.raises(KeyboardInterrupt), one_reply("round 1"):
        raise KeyboardInterrupt


def test_what_a_superlink_says_of_a_node_is_no_answer() -> None:
    class Gone(PullingGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            replies = super().pull_messages(message_ids)
            for reply in replies:
                reply.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
            return replies

    grid = Gone(lambda message, context: Message(RecordDict(), reply_to=message), 2)
    assert list(answers(grid, _requests(grid), 0.0)) == []  # type: ignore[arg-type]


def test_an_answer_bears_the_id_by_which_it_was_found() -> None:
    def forger(message: Message, context: Context) -> Message:
        reply = Message(RecordDict(), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = 7
        return reply

    grid = PullingGrid(forger, 2)
    requests = _requests(grid)
    found = list(answers(grid, requests, 0.0))  # type: ignore[arg-type]
    assert [answer.message_id for answer in found] == [request.metadata.message_id for request in requests]
    assert all(isinstance(answer, Answer) for answer in found)


# ----------------------------------------------------------------------------------------------------------------------
# Time
# ----------------------------------------------------------------------------------------------------------------------


class HangingGrid(PullingGrid):
    """Client 0 has announced objects that it never sends: Flower waits for them, for minutes."""

    released = Event()

    def unpack(self, client: int, request: Message) -> None:
        if client == 0:
            self.released.wait(60)


def test_who_never_finishes_its_upload_costs_its_own_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.answers, "PULL_SECONDS", 0.2)
    grid = HangingGrid(lambda message, context: Message(RecordDict(), reply_to=message), 3)
    requests = _requests(grid)
    began = time.monotonic()
    found = list(answers(grid, requests, 0.5))  # type: ignore[arg-type]
    assert [answer.message_id for answer in found] == [request.metadata.message_id for request in requests[1:]]
    assert all(began <= answer.found_at <= began + 0.5 for answer in found)
    assert time.monotonic() < began + 30
    grid.released.set()


class LaterGrid(PullingGrid):
    """Replies come when the time is nearly over."""

    looks = 0

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self.looks += 1
        return super().pull_messages(message_ids) if self.looks > 1 else []


def test_a_last_look_finds_what_came_until_the_deadline() -> None:
    grid = LaterGrid(lambda message, context: Message(RecordDict(), reply_to=message), 1)
    requests, began = _requests(grid), time.monotonic()
    (answer,) = answers(grid, requests, 0.3)  # type: ignore[arg-type]
    assert grid.looks == 2
    assert answer.found_at < began + server.answers.PAUSE_SECONDS  # not a pause after the first look


def test_a_grid_may_say_how_often_it_is_looked_at() -> None:
    grid = LaterGrid(lambda message, context: Message(RecordDict(), reply_to=message), 1)
    grid.pull_interval = 0.01  # type: ignore[attr-defined]
    began = time.monotonic()
    assert len(list(answers(grid, _requests(grid), 60.0))) == 1  # type: ignore[arg-type]
    assert time.monotonic() < began + 30
