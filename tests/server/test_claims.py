"""What a client says of itself has a bound or a witness: by no claim it moves more, holds more or keeps others out."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo

from client.app import app as client_app
from faults.liars import LIAR, MOST_EXAMPLES, OWN_TASK, RegisteredGrid, absent, says, sends
from faults.malformed import rewrite
from faults.runs import is_train, unchanged
from fedmask.errors import FedmaskError
from fedmask.runs.registry import VARIABLE, Binding, bind, read_registry, unbind
from fedmask.wire.messages import facts_of
from server.members import MAX_HEADS_SIZE

from .conftest import FinishedRun as Run

GOES_ON = "server.min_clients=3"
Lied = Callable[..., Any]


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each of four clients is registered, with its own key."""
    path = tmp_path / "clients.json"
    for number in range(4):
        bind(path, f"key of client {number}", Binding(f"client-{number}.pub", number))
    monkeypatch.setenv(VARIABLE, str(path))
    return path


def registered(change: Any = unchanged) -> Callable[..., Any]:
    return lambda app, num_clients: RegisteredGrid(app, num_clients, change)


# ----------------------------------------------------------------------------------------------------------------------
# Examples
# ----------------------------------------------------------------------------------------------------------------------


def test_more_examples_than_a_client_was_set_up_with_weigh_nothing(
    federate: Callable[..., Run], filtering_grid: Lied
) -> None:
    """Its rows may have become more since: it is no fault, and no way to weigh more."""
    lied, honest = (federate("rounds=1", grid=filtering_grid(sends(1.0, *more))) for more in ((MOST_EXAMPLES,), ()))
    assert np.array_equal(lied.values, honest.values)
    assert lied.rounds[0]["failure_causes"] == {}


def test_an_update_weighs_by_at_most_max_examples(federate: Callable[..., Run], filtering_grid: Lied) -> None:
    lie = says({"num-examples": MOST_EXAMPLES}, sends(1.0, MOST_EXAMPLES))
    settings = ("rounds=1", "server.clip_norm=0.01")
    honest = federate(*settings, grid=filtering_grid(sends(1.0)))
    assert np.array_equal(federate(*settings, "server.max_examples=10", grid=filtering_grid(lie)).values, honest.values)
    assert np.linalg.norm(federate(*settings, grid=filtering_grid(lie)).values) > 1.5 * np.linalg.norm(honest.values)


def test_an_older_runs_digest_is_as_it_was_where_nothing_is_asked_for(federate: Callable[..., Run]) -> None:
    plain, bounded = (federate("rounds=1", *more).summary["run_digest"] for more in ((), ("server.max_examples=99",)))
    assert federate("rounds=1", GOES_ON).summary["run_digest"] == plain != bounded


# ----------------------------------------------------------------------------------------------------------------------
# Tasks and heads
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["median", "trimmed_mean"])
def test_a_task_of_its_own_moves_no_more_than_the_rule_lets_one_client(
    federate: Callable[..., Run], filtering_grid: Lied, rule: str
) -> None:
    """Within the values of the others, as in a task with three clients more."""
    settings = ("rounds=1", f"server.combine={rule}", 'data.tasks=["small:first"]')
    honest = federate(*settings)
    alone = federate(*settings, grid=filtering_grid(says(OWN_TASK, sends(1.0))))
    within = federate(*settings, grid=filtering_grid(sends(1.0)))
    assert np.abs(alone.values).max() < 0.5
    assert np.linalg.norm(alone.values - honest.values) <= 1.0001 * np.linalg.norm(within.values - honest.values)


def test_one_head_layout_belongs_to_one_task(federate: Callable[..., Run], filtering_grid: Lied) -> None:
    one_task, lie = 'data.tasks=["small:first"]', says({"task": "mine"})
    with pytest.raises(FedmaskError, match=r"^client 1 of task first and client 0 of task mine name one head layout, "):
        federate(one_task, grid=filtering_grid(lie))
    run = federate(one_task, GOES_ON, grid=filtering_grid(lie))
    assert list(run.summary["left_out"]) == ["client 0"]


def test_all_shared_heads_together_have_a_budget(federate: Callable[..., Run], filtering_grid: Lied) -> None:
    classes = 64_000

    def lie(client: int, request: Message, reply: Message) -> Message:
        if request.metadata.message_type == "query.mask":
            own = {"task": f"mine {client}", "head-layout": f"{client:064x}"}
            facts = own | {"num-classes": classes + client, "head-size": (classes + client) * 65}
            rewrite(reply, facts=facts_of(reply.content) | facts)
        return reply

    assert 4 * classes * 65 < MAX_HEADS_SIZE < 5 * classes * 65
    said = "client 4 brings another shared head, and all of them together would have 20,800,650 numbers, allowed are "
    with pytest.raises(FedmaskError, match=said):
        federate("clients=5", "client.head=shared", grid=filtering_grid(lie))
    with pytest.raises(FedmaskError, match=r"^round 1: no client's reply could be used"):  # local heads: no budget
        federate("clients=5", grid=filtering_grid(lie), app=failing_to_train)


def failing_to_train(message: Message, context: Context) -> Message:
    if is_train(message):
        raise ValueError("no")
    return client_app(message, context)


# ----------------------------------------------------------------------------------------------------------------------
# Who a client is
# ----------------------------------------------------------------------------------------------------------------------


def test_a_registered_client_may_be_nobody_else(federate: Callable[..., Run], registry: Path) -> None:
    lie = says({"client-id": 3})
    with pytest.raises(FedmaskError) as caught:
        federate(grid=registered(lie))
    assert str(caught.value).startswith("1 of 4 clients cannot take part: node ")
    assert str(caught.value).endswith("(client-0.pub) is registered as client 0, and claims to be client 3")
    run, without = (federate(GOES_ON, grid=registered(change)) for change in (lie, absent))
    assert list(run.summary["left_out"]) == ["client 0"]
    assert run.adapter == without.adapter
    assert {line["client"] for line in run.ledger if line["kind"] == "train"} == {1, 2, 3}


@pytest.mark.parametrize(
    ("binding", "said"),
    [
        (
            Binding("x.pub", 0, task="poems"),
            "client 0 (x.pub) is registered for task poems, and claims task first",
        ),
        (Binding("x.pub", 0, max_examples=9), "client 0 (x.pub) is registered with at most 9 examples, and claims 10"),
    ],
)
def test_what_a_key_was_not_registered_for_is_refused(
    federate: Callable[..., Run], registry: Path, binding: Binding, said: str
) -> None:
    bind(registry, "key of client 0", binding)
    with pytest.raises(FedmaskError) as caught:
        federate(grid=registered())
    assert said in str(caught.value)


def test_a_key_that_was_registered_for_no_client_is_refused(federate: Callable[..., Run], registry: Path) -> None:
    class OneUnknown(RegisteredGrid):
        def get_nodes(self) -> Iterable[NodeInfo]:
            first, *others = super().get_nodes()
            return [NodeInfo(node_id=first.node_id, public_key=b"another"), *others]

    with pytest.raises(
        FedmaskError, match=r"claims to be client 0, and its key was registered for no client; register"
    ):
        federate(grid=lambda app, num_clients: OneUnknown(app, num_clients, unchanged))


def test_registered_clients_that_say_the_truth_run_as_ever(
    federate: Callable[..., Run], plain_run: Run, registry: Path
) -> None:
    run = federate(grid=registered())
    assert run.adapter == plain_run.adapter
    assert run.summary["left_out"] == {}


def test_two_keys_are_not_registered_for_one_client(registry: Path) -> None:
    with pytest.raises(FedmaskError, match=r"^client_id=1: is registered for another key, client-1\.pub; give every"):
        bind(registry, "another key", Binding("new.pub", 1))
    bind(registry, "another key", Binding("new.pub", 1), replace=True)  # for a client that has lost its own
    assert "key of client 1" not in read_registry(registry)
    unbind(registry, "another key")
    bind(registry, "key of client 1", Binding("client-1.pub", 7, "poems", 3))
    assert read_registry(registry)["key of client 1"] == Binding("client-1.pub", 7, "poems", 3)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"k": 3}', '{"k": {"more": 1}}', "[" * 100_000])
def test_a_damaged_registry_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "clients.json").write_text(content)
    with pytest.raises(FedmaskError, match=r"clients\.json: not what register_client\.py writes \(\w+\); register"):
        read_registry(tmp_path / "clients.json")


# ----------------------------------------------------------------------------------------------------------------------
# A run goes on without who cannot be set up
# ----------------------------------------------------------------------------------------------------------------------


def refuses(client: int, request: Message, reply: Message) -> Message:
    return failed(request) if client == LIAR and request.metadata.message_type == "query.mask" else reply


def failed(request: Message) -> Message:
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "OSError: disk full"), reply_to=request)


@pytest.mark.parametrize(
    "lie", [refuses, says({"mask-digest": "0" * 16}), says({"head-size": 2**22}), says({"task": 3})]
)
def test_a_start_goes_on_without_who_cannot_be_set_up(
    federate: Callable[..., Run], filtering_grid: Lied, lie: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(FedmaskError, match=r"^1 of 4 clients cannot take part: "):
        federate(grid=filtering_grid(lie))
    caplog.clear()
    run, without = (federate(GOES_ON, grid=filtering_grid(change)) for change in (lie, absent))
    assert run.adapter == without.adapter
    assert len(run.summary["left_out"]) == 1
    assert caplog.messages[0].startswith("the run goes on without node ")
    assert run.rounds[0]["cohort"] == [1, 2, 3]


def test_too_few_clients_are_one_line(federate: Callable[..., Run], filtering_grid: Lied) -> None:
    with pytest.raises(
        FedmaskError, match=r"^server\.min_clients=4: only 3 clients can take part; node \d+: .*disk full"
    ):
        federate("server.min_clients=4", grid=filtering_grid(refuses))


@pytest.mark.parametrize("lie", [absent, refuses, says({"client-id": 3}), says({"data-digest": "0" * 16})])
def test_a_resume_goes_on_without_whoever_it_is(
    federate: Callable[..., Run], registry: Path, lie: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "run"
    federate("rounds=1", output=output, grid=registered())
    run = federate(GOES_ON, "rounds=2", output=output, resume=True, grid=registered(lie))
    assert run.rounds[1]["cohort"] == [1, 2, 3]
    assert list(run.summary["left_out"]) == ["client 0"]
    assert sum("the run goes on without" in message for message in caplog.messages) == 1
    assert federate(GOES_ON, "rounds=3", output=output, resume=True, grid=registered()).rounds[2]["cohort"] == [
        0,
        1,
        2,
        3,
    ]


def test_a_resume_goes_on_without_who_has_changed_and_takes_it_back_later(
    federate: Callable[..., Run], filtering_grid: Lied, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    federate(GOES_ON, "rounds=1", output=output)
    changed = filtering_grid(says({"data-digest": "0" * 16}))
    with pytest.raises(
        FedmaskError, match=r"^client 0 is not what it was when the run stopped: .*; resume with the data"
    ):
        federate("rounds=2", output=output, resume=True, grid=changed)
    run = federate(GOES_ON, "rounds=2", output=output, resume=True, grid=changed)
    assert run.rounds[1]["cohort"] == [1, 2, 3]
    assert list(run.summary["left_out"]) == ["client 0"]
    back = federate(GOES_ON, "rounds=3", output=output, resume=True)
    assert back.rounds[2]["cohort"] == [0, 1, 2, 3]
    assert back.summary["left_out"] == {}
    assert set(back.summary["score"]) == {"first", "second"}
    scored = [json.loads(line) for line in (output / "clients.jsonl").read_text().splitlines()]
    assert {line["client"] for line in scored if line["split"] == "test" and line["round"] == 3} == {0, 1, 2, 3}
