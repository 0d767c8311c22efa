"""server.local_grid: Flower's own strategy runs on it unchanged, and a node is what Flower says a node is."""

from collections.abc import Callable, Iterable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp.strategy import FedAvg

from server.local_grid import LocalGrid

START = np.array([1.0, -2.0, 3.0])


def target(client: int, server_round: int) -> np.ndarray:
    return np.array([client, client**2, server_round], float)


def toy_app() -> ClientApp:
    """Each client goes half of the way to a target of its own, and has client + 1 examples."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        (array,) = message.content.array_records["arrays"].values()
        moved = (array.numpy() + target(client, int(message.content.config_records["config"]["server-round"]))) / 2
        content = RecordDict(
            {"arrays": ArrayRecord({"w": Array(moved)}), "metrics": MetricRecord({"num-examples": client + 1})}
        )
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        return Message(
            RecordDict({"metrics": MetricRecord({"num-examples": 1, "client": float(client)})}), reply_to=message
        )

    return app


def counting_app(context_key: str = "seen") -> ClientApp:
    """Replies how many messages this node has had; raises for node 1."""
    app = ClientApp()

    @app.query()
    def count(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 1:
            raise RuntimeError("disk is full")
        kept = context.state.config_records.get(context_key, ConfigRecord({"n": 0}))
        number = int(kept["n"]) + 1  # type: ignore[call-overload]
        context.state[context_key] = ConfigRecord({"n": number})
        return Message(RecordDict({"count": ConfigRecord({"n": number})}), reply_to=message)

    return app


def asked(nodes: Iterable[int]) -> list[Message]:
    return [Message(RecordDict(), node, "query", group_id="1") for node in nodes]


def number_of(reply: Message) -> object:
    return reply.content.config_records["count"]["n"]


def test_flowers_own_fedavg_gives_the_plain_numpy_result() -> None:
    grid = LocalGrid(toy_app(), num_clients=4)
    result = FedAvg(fraction_train=1.0, fraction_evaluate=1.0, min_available_nodes=4).start(
        grid, ArrayRecord({"w": Array(START)}), num_rounds=3
    )
    expected = START
    for server_round in (1, 2, 3):
        moved = [(expected + target(client, server_round)) / 2 for client in range(4)]
        expected = np.average(moved, axis=0, weights=[1, 2, 3, 4])
    np.testing.assert_allclose(result.arrays["w"].numpy(), expected, rtol=1e-12)
    assert result.evaluate_metrics_clientapp[3]["client"] == pytest.approx((0 + 1 + 2 + 3) / 4)


def test_node_ids_are_distinct_seeded_and_as_long_as_flowers_own() -> None:
    ids = list(LocalGrid(toy_app(), 50, seed=1).get_node_ids())
    assert len(set(ids)) == 50
    assert all(0 < node_id < 2**63 for node_id in ids)
    assert sum(node_id > 2**55 for node_id in ids) > 40
    assert list(LocalGrid(toy_app(), 50, seed=1).get_node_ids()) == ids
    assert list(LocalGrid(toy_app(), 50, seed=2).get_node_ids()) != ids


def test_a_node_knows_its_partition() -> None:
    grid = LocalGrid(toy_app(), 3)
    configs = [grid.context(node).node_config for node in grid.get_node_ids()]
    assert configs == [{"partition-id": number, "num-partitions": 3} for number in range(3)]


def test_an_exception_is_an_error_reply_and_the_others_answer() -> None:
    grid = LocalGrid(counting_app(), 3)
    nodes = list(grid.get_node_ids())
    replies = list(grid.send_and_receive(asked(nodes)))
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert str(replies[1].error.reason).startswith("RuntimeError: disk is full (count, line ")
    assert [reply.metadata.src_node_id for reply in replies] == nodes


def test_what_a_client_keeps_in_its_context_stays_with_that_node() -> None:
    grid = LocalGrid(counting_app(), 3)
    first, _, third = grid.get_node_ids()
    replies = list(grid.send_and_receive(asked([first, first, third, first])))
    assert [number_of(reply) for reply in replies] == [1, 2, 1, 3]
    assert grid.context(first).state.config_records["seen"]["n"] == 3


def test_a_node_that_does_not_exist() -> None:
    grid = LocalGrid(counting_app(), 1)
    (reply,) = grid.send_and_receive(asked([99]))
    assert reply.has_error()
    assert (reply.error.code, reply.error.reason) == (
        ErrorCode.NODE_UNAVAILABLE,
        "node 99 is not in this federation",
    )
    assert reply.metadata.src_node_id == 99


def test_replies_name_the_message_they_answer_and_their_own_node() -> None:
    grid = LocalGrid(counting_app(), 3)
    messages = asked(grid.get_node_ids())
    for message, reply in zip(messages, grid.send_and_receive(messages), strict=True):
        assert reply.metadata.reply_to_message_id == message.metadata.message_id
        assert reply.metadata.src_node_id == message.metadata.dst_node_id
        assert reply.metadata.dst_node_id == message.metadata.src_node_id
        assert len(reply.metadata.message_id) == len(message.metadata.message_id) == 64
    ids = {message.metadata.message_id for message in messages}
    assert len(ids) == 3


def test_push_and_pull_give_each_reply_once() -> None:
    grid = LocalGrid(counting_app(), 3)
    nodes = list(grid.get_node_ids())
    ids = list(grid.push_messages(asked(nodes)))
    assert len(set(ids)) == 3
    replies = list(grid.pull_messages(reversed(ids)))
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids[::-1]
    assert list(grid.pull_messages(ids)) == []
    assert list(grid.pull_messages(["unheard of"])) == []


def test_the_stream_makes_each_reply_when_it_is_asked_for() -> None:
    grid = LocalGrid(counting_app(), 3)
    first = next(iter(grid.get_node_ids()))

    def seen() -> object:
        return grid.context(first).state.config_records.get("seen", {}).get("n", 0)  # type: ignore[union-attr]

    stream = grid.stream(asked([first] * 3))
    assert seen() == 0
    next(stream)
    assert seen() == 1
    next(stream)
    assert seen() == 2


def test_messages_made_between_replies_are_the_servers_own() -> None:
    grid = LocalGrid(counting_app(), 3)
    (before,) = asked([5])
    list(grid.send_and_receive(asked(grid.get_node_ids())))  # one of them raises
    (after,) = asked([5])
    assert after.metadata.src_node_id == before.metadata.src_node_id
    assert after.metadata.src_node_id not in list(grid.get_node_ids())


def test_only_what_a_client_raises_is_caught() -> None:
    app = ClientApp()

    @app.query()
    def interrupted(message: Message, context: Context) -> Message:
        raise KeyboardInterrupt

    grid = LocalGrid(app, 1)
    with pytest.raises(KeyboardInterrupt):
        list(grid.send_and_receive(asked(grid.get_node_ids())))


def test_create_message_and_run() -> None:
    grid = LocalGrid(counting_app(), 1)
    (node,) = grid.get_node_ids()
    make: Callable[..., Message] = grid.create_message
    message = make(RecordDict(), "query", node, "7")
    assert (message.metadata.dst_node_id, message.metadata.message_type, message.metadata.group_id) == (
        node,
        "query",
        "7",
    )
    assert message.metadata.run_id == grid.run.run_id
