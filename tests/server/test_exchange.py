"""server.exchange: the mask goes out once; who lost it is sent it again in the same round; every byte is counted."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

import client.process
import server.exchange
from client.app import app as client_app
from faults.malformed import rewrite
from fedmask.errors import FedmaskError, MaskMismatchError
from fedmask.masks import Mask, MaskRecipe
from fedmask.wire.messages import facts_of, pack, payload_of
from fedmask.wire.setup import Setup
from server.local_grid import LocalGrid
from server.members import MAX_HEAD_SIZE

Run = Any


def number_of(context: Context) -> int:
    return int(context.node_config["partition-id"])


def masks_of(run: Run, server_round: int) -> list[tuple[int, str]]:
    lines = [line for line in run.ledger if line["kind"] == "mask" and line["round"] == server_round]
    return [(line["client"], line["direction"]) for line in lines]


def test_the_mask_is_sent_once_to_every_client(plain_run: Run) -> None:
    assert masks_of(plain_run, 0) == [(client, way) for client in range(4) for way in ("down", "up")]
    assert masks_of(plain_run, 1) == masks_of(plain_run, 2) == []


@pytest.mark.parametrize("codec", ["fp32", "sign"])
def test_every_message_is_counted_with_its_length_and_framing_is_small(
    codec: str, federate: Callable[..., Run], filtering_grid: Callable[..., Any]
) -> None:
    seen = Counter[str]()

    def most(kind: str) -> int:
        """In the set-up, once a run, a client says who it is and what its task means."""
        return 1000 if kind.endswith("mask") else 800

    def watch(client: int, request: Message, reply: Message) -> Message:
        for way, message in (("down", request), ("up", reply)):
            serialised = sum(len(part.deflate()) for part in get_all_nested_objects(message).values())
            seen[way] += serialised
            assert 0 < serialised - len(payload_of(message.content)) <= most(request.metadata.message_type)
        return reply

    run = federate("client.head=shared", f"codec={codec}", grid=filtering_grid(watch))
    for way in ("up", "down"):
        assert sum(line["wire_bytes"] for line in run.ledger if line["direction"] == way) == seen[way]
    assert run.summary["communication"]["total_bytes"] == seen.total()
    for line in run.ledger:
        assert 0 <= line["wire_bytes"] - line["payload_bytes"] <= most(line["kind"])


def test_what_a_client_was_just_sent_is_not_sent_again(plain_run: Run) -> None:
    payloads = [
        line["payload_bytes"]
        for line in plain_run.ledger
        if (line["client"], line["direction"], line["kind"]) == (0, "down", "evaluate")
    ]
    full = 16 + len("delta") + 8 + 4 * 2061
    assert payloads == [full, full, 0]  # after each round the new delta; for the test split nothing new


def test_only_who_lacks_the_last_delta_is_sent_it_for_the_test_split(federate: Callable[..., Run]) -> None:
    run = federate("clients_per_round=1", "rounds=2", "seed=2")
    cohorts = [line["cohort"][0] for line in run.rounds]
    assert cohorts[0] != cohorts[1], "choose a seed that draws two clients"
    last = [line for line in run.ledger if line["direction"] == "down"][-2:]
    assert {line["client"]: line["payload_bytes"] > 0 for line in last} == {cohorts[0]: True, cohorts[1]: False}


class TwiceGrid:
    """As Flower's grid of a SuperLink: it gives no replies by itself, and goes over the messages twice."""

    def __init__(self, app: Any, num_clients: int) -> None:
        self._grid = LocalGrid(app, num_clients)
        self.keep_client_state_in, self.get_node_ids = self._grid.keep_client_state_in, self._grid.get_node_ids

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        assert all(isinstance(message, Message) for message in messages)
        return list(self._grid.push_messages(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return list(self._grid.pull_messages(message_ids))


def test_a_grid_may_go_over_the_messages_twice(federate: Callable[..., Run], plain_run: Run) -> None:
    run = federate(grid=TwiceGrid)
    assert run.adapter == plain_run.adapter
    assert payloads(run) == payloads(plain_run)


class LosingGrid(TwiceGrid):
    """As Flower's: of client 2, whose node goes in round 2, the SuperLink says that it has gone."""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        requests = list(messages)
        ids = super().push_messages(requests)
        self._requests = dict(zip(ids, requests, strict=True))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        (message_id,) = message_ids
        request = self._requests[message_id]
        if not self.is_lost(number_of(self._grid.context(request.metadata.dst_node_id)), request):
            return super().pull_messages([message_id])
        gone = Message(Error(ErrorCode.NODE_UNAVAILABLE, "gone"), reply_to=request)
        gone.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
        return [gone]

    def is_lost(self, client: int, request: Message) -> bool:
        return (client, request.metadata.message_type, request.metadata.group_id) == (2, "train", "2")


def test_a_node_that_has_gone_has_not_answered(federate: Callable[..., Run]) -> None:
    run = federate(grid=LosingGrid)
    assert [line["failure_causes"] for line in run.rounds] == [{}, {"no-reply": 1}]
    assert run.rounds[1]["failed"] == [2]
    assert not [line for line in run.ledger if line["kind"] == "rejected"]


def payloads(run: Run) -> list[tuple[Any, ...]]:
    """Whose, which and how long, in any order."""
    keys = ("round", "client", "direction", "kind", "payload_bytes")
    return sorted(tuple(line[key] for key in keys) for line in run.ledger)


# ----------------------------------------------------------------------------------------------------------------------
# A client that lost something
# ----------------------------------------------------------------------------------------------------------------------


def forgetful(kind: str) -> Callable[[Message, Context], Message]:
    """The client, whose number 2 forgets its mask before the first message of this kind in round 2."""
    done: list[bool] = []

    def app(message: Message, context: Context) -> Message:
        asked = number_of(context) == 2 and message.metadata.message_type == kind
        if asked and not done and facts_of(message.content)["round"] == 2:
            done.append(True)
            context.state = RecordDict()
        return client_app(message, context)

    return app


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_client_that_lost_its_mask_is_sent_it_again_in_the_same_round(
    kind: str, federate: Callable[..., Run], plain_run: Run
) -> None:
    run = federate(app=forgetful(kind))
    assert run.adapter == plain_run.adapter
    assert run.heads == plain_run.heads
    assert [line["failures"] for line in run.rounds] == [0, 0]
    assert run.summary["score"] == plain_run.summary["score"]
    assert masks_of(run, 2) == [(2, "down"), (2, "up")]
    extra = sum(line["wire_bytes"] for line in run.ledger) - sum(line["wire_bytes"] for line in plain_run.ledger)
    again = [line for line in run.ledger if line["kind"] == "mask" and line["round"] == 2]
    assert extra > sum(line["wire_bytes"] for line in again)  # beside them its request and answer, once more


def test_a_client_that_lost_its_vectors_is_sent_them_again(federate: Callable[..., Run], plain_run: Run) -> None:
    def forget_before_test(message: Message, context: Context) -> Message:
        is_test = facts_of(message.content).get("split") == "test"
        if number_of(context) == 2 and is_test and not payload_of(message.content):
            client.process._run_in_process.cache_clear()
        return client_app(message, context)

    run = federate(app=forget_before_test)
    assert run.adapter == plain_run.adapter
    assert run.summary["score"] == plain_run.summary["score"]
    test_split = [line for line in run.ledger if line["kind"] == "evaluate" and line["direction"] == "down"][8:]
    sent_again = {line["client"] for line in test_split if line["payload_bytes"]}
    assert 2 in sent_again
    assert run.watched.failures == []


def test_a_client_that_never_finds_what_it_lacks_is_counted(
    federate: Callable[..., Run], filtering_grid: Callable[..., Any]
) -> None:
    def lacking(number: int, request: Message, reply: Message) -> Message:
        if number == 1 and request.metadata.message_type == "train":
            reply.content = pack(facts={"missing": "vectors"})
        return reply

    run = federate("rounds=1", grid=filtering_grid(lacking))
    assert run.rounds[0]["failure_causes"] == {"still-missing": 1}
    kinds = [line["kind"] for line in run.ledger if line["client"] == 1 and line["kind"] in ("train", "rejected")]
    assert kinds == ["train", "train", "train", "rejected"]  # asked twice, no more; the second answer is of no use


# ----------------------------------------------------------------------------------------------------------------------
# Another mask, another client
# ----------------------------------------------------------------------------------------------------------------------


def test_a_client_with_another_tokenizer_or_activation_stops_the_run_with_one_line_and_is_sent_no_indices(
    federate: Callable[..., Run],
) -> None:
    sent = []

    def app(message: Message, context: Context) -> Message:
        """Client 2's base model computes otherwise: as if the run's recipe came from another one."""
        if message.metadata.message_type == "query.mask" and number_of(context) == 2:
            setup = Setup.from_bytes(payload_of(message.content))
            assert isinstance(setup.mask, MaskRecipe)
            assert setup.mask.inputs is not None
            sent.append(setup.mask)
            other = {**setup.mask.inputs, "hidden_act": "relu", "tokenizer": "0" * 16}
            recipe = dataclasses.replace(setup.mask, inputs=other)
            message.content = pack(Setup(setup.settings, recipe).to_bytes())
        return client_app(message, context)

    with pytest.raises(FedmaskError) as caught:
        federate(app=app)
    assert str(caught.value) == (
        "1 of 4 clients cannot take part: client 2: this base model reads or computes otherwise than the run's: "
        "hidden_act its default instead of relu, another tokenizer; take the same copy of tiny on server and clients"
    )
    assert len(sent) == 1


@pytest.mark.parametrize("baseline", ["none", "frozen"])
def test_a_client_that_does_not_prove_its_inputs_is_refused(
    federate: Callable[..., Run], filtering_grid: Callable[..., Any], baseline: str
) -> None:
    def change(client: int, request: Message, reply: Message) -> Message:
        if request.metadata.message_type == "query.mask" and client == 1:
            rewrite(reply, facts=facts_of(reply.content) | {"inputs-digest": "0" * 64})
        return reply

    with pytest.raises(FedmaskError, match=r"client 1 has a base model with inputs digest '0{64}', the server's has"):
        federate(f"baseline={baseline}", grid=filtering_grid(change))


def test_what_a_client_says_of_its_inputs_is_shown_on_one_line_of_bounded_length(
    federate: Callable[..., Run], filtering_grid: Callable[..., Any]
) -> None:
    def change(client: int, request: Message, reply: Message) -> Message:
        if request.metadata.message_type == "query.mask" and client == 1:
            rewrite(reply, facts={"client-id": 1, "inputs-mismatch": "\x1b[2J\n" + "x" * 9000})
        return reply

    with pytest.raises(FedmaskError) as caught:
        federate(grid=filtering_grid(change))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700


def test_a_client_whose_base_gives_another_mask_is_sent_the_indices(
    federate: Callable[..., Run], plain_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, other = MaskRecipe.rebuild, [False]

    def rebuild(recipe: MaskRecipe, *args: Any) -> Mask:
        if other[0]:
            raise MaskMismatchError("this base gives mask aa, the recipe names bb")
        return real(recipe, *args)

    def app(message: Message, context: Context) -> Message:
        other[0] = number_of(context) == 3
        if message.metadata.message_type == "query.mask":
            client.process._run_in_process.cache_clear()
        return client_app(message, context)

    monkeypatch.setattr(MaskRecipe, "rebuild", rebuild)
    run = federate("rounds=1", app=app)
    assert masks_of(run, 0)[6:] == [(3, "down"), (3, "up")] * 2
    sizes = [line["payload_bytes"] for line in run.ledger if line["kind"] == "mask" and line["direction"] == "down"]
    assert sizes[:4] == [sizes[0]] * 4
    assert sizes[4] > sizes[0] + 1000  # 2,061 indices
    assert run.rounds[0]["failures"] == 0
    assert run.rounds[0]["train_loss"] == plain_run.rounds[0]["train_loss"]


def introduced(**facts: object) -> Callable[[Message, Context], Message]:
    """A client whose number 1 says other things of itself in round 0."""

    def app(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if message.metadata.message_type == "query.mask" and number_of(context) == 1:
            rewrite(
                reply, facts=facts_of(reply.content) | {key.replace("_", "-"): value for key, value in facts.items()}
            )
        return reply

    return app


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            {"client_id": 0},
            "two nodes claim client_id 0; give every client an id of its own: client_id in its client.yaml",
        ),
        ({"client_id": -1}, "a node claims client_id -1; there are 0 to 3"),
        ({"client_id": 4}, "a node claims client_id 4; there are 0 to 3"),
        ({"task": "x" * 201}, "client 1 has a task whose name is 201 characters long"),
        ({"client_id": "one"}, "client-id is 'one', expected a whole number"),
        ({"mask_digest": "abc"}, "client 1 has mask abc, the server's is "),
        ({"task": 3}, "task is 3, expected a text"),
        ({"metric": "bleu"}, "client 1 has metric 'bleu', head layout "),
        ({"head_layout": "not hex"}, "head layout 'not hex' and head size 130, which this server does not know"),
        ({"head_size": -1}, "head size -1, which this server does not know"),
        ({"head_size": MAX_HEAD_SIZE + 1}, f"head size {MAX_HEAD_SIZE + 1}, which"),
    ],
)
def test_a_client_that_cannot_be_what_it_says_stops_the_run_in_one_line(
    facts: dict[str, object], message: str, federate: Callable[..., Run]
) -> None:
    with pytest.raises(FedmaskError) as caught:
        federate(app=introduced(**facts))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_client_that_cannot_be_set_up_stops_the_run_before_the_first_round(federate: Callable[..., Run]) -> None:
    def app(message: Message, context: Context) -> Message:
        if number_of(context) == 1:
            raise RuntimeError("no disk")
        return client_app(message, context)

    with pytest.raises(FedmaskError, match=r"^1 of 4 clients cannot take part: .*RuntimeError: no disk"):
        federate(app=app)


def test_a_client_that_cannot_be_set_up_again_is_counted_and_the_round_goes_on(federate: Callable[..., Run]) -> None:
    def app(message: Message, context: Context) -> Message:
        if number_of(context) == 0 and facts_of(message.content).get("round") == 2:
            context.state = RecordDict()
        if number_of(context) == 0 and message.metadata.message_type == "query.mask" and told:
            raise RuntimeError("no disk")
        told.append(number_of(context))
        return client_app(message, context)

    told: list[int] = []
    run = federate(app=app)
    assert run.rounds[0]["failures"] == 0
    assert run.rounds[1]["clients"] == 4
    assert run.rounds[1]["failure_causes"]["still-missing"] == 2  # training and scoring
    assert {client for _, client, _, _ in run.watched.failures} == {0}


def test_clients_that_do_not_answer_the_mask(federate: Callable[..., Run], filtering_grid: Callable[..., Any]) -> None:
    with pytest.raises(FedmaskError) as caught:
        federate(grid=filtering_grid(lambda *_: None))
    assert str(caught.value) == "4 of 4 clients did not answer when they were sent the mask"
    with pytest.raises(FedmaskError) as caught:
        federate(grid=filtering_grid(lambda client, _, reply: None if client == 2 else reply))
    assert str(caught.value) == "1 of 4 clients did not answer when they were sent the mask"


class RestartedGrid(LosingGrid):
    """Client 2's node goes when it is sent the mask, and the SuperLink says so; later it is there again."""

    lost = 0

    def is_lost(self, client: int, request: Message) -> bool:
        if client != 2 or request.metadata.message_type != "query.mask":
            return False
        self.lost += 1
        return self.lost < server.exchange.MASK_TRIES


def test_a_client_that_is_started_again_while_the_mask_goes_out_is_sent_it_again(
    federate: Callable[..., Run], plain_run: Run
) -> None:
    run = federate(grid=RestartedGrid)
    assert run.adapter == plain_run.adapter
    assert sorted(masks_of(run, 0)) == sorted(masks_of(plain_run, 0))


def test_a_head_has_the_size_that_follows_from_the_model_and_the_task(federate: Callable[..., Run]) -> None:
    def app(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if message.metadata.message_type == "query.mask" and number_of(context) == 3:
            rewrite(reply, facts=facts_of(reply.content) | {"head-size": 7})
        return reply

    with pytest.raises(
        FedmaskError, match="client 3 has head size 7; with 2 classes and features of 64 numbers it would be"
    ):
        federate(app=app)


def test_what_a_stopped_run_has_sent_is_in_its_ledger(federate: Callable[..., Run], tmp_path: Path) -> None:
    def app(message: Message, context: Context) -> Message:
        if facts_of(message.content).get("round") == 2:
            raise RuntimeError("no disk")
        return client_app(message, context)

    with pytest.raises(FedmaskError, match="round 2: no client's reply could be used"):
        federate(app=app, output=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "communication.jsonl").read_text().splitlines()]
    kinds = [line["kind"] for line in lines if line["round"] == 2]
    assert kinds == ["train", "rejected"] * 4  # requests and error replies


def test_failures_while_scoring_on_test_are_counted(federate: Callable[..., Run]) -> None:
    def app(message: Message, context: Context) -> Message:
        if facts_of(message.content).get("split") == "test" and number_of(context) == 1:
            raise RuntimeError("no disk")
        return client_app(message, context)

    run = federate(app=app)
    assert run.summary["test_failure_causes"] == {"client-error": 1}
    assert all(line["failures"] == 0 for line in run.rounds)


class LateGrid(LocalGrid):
    """Nodes register while the server already runs: one more whenever it looks."""

    connected = 0

    def get_node_ids(self) -> list[int]:
        self.connected += 1
        return list(super().get_node_ids())[: self.connected]


def test_the_server_waits_for_all_its_clients_and_says_so(
    federate: Callable[..., Run], plain_run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert federate(grid=LateGrid).adapter == plain_run.adapter
    assert caplog.messages == []
    monkeypatch.setattr(server.exchange, "NOTICE_SECONDS", 0.0)
    federate("rounds=1", grid=LateGrid)
    assert caplog.messages == [f"waiting for 4 clients, {connected} are connected" for connected in (1, 2, 3)]
    assert {record.name for record in caplog.records} == {"fedmask"}


def test_clients_that_never_connect() -> None:
    with pytest.raises(FedmaskError) as caught:
        server.exchange._await_nodes(LocalGrid(client_app, 2), 3, timeout=0.2)
    assert str(caught.value) == (
        "waited 0 s for 3 clients, 2 are connected; connect the others (with flwr run: num-supernodes=3)"
    )
