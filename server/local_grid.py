"""Flower's `Grid` in one process: messages are answered by calling the ClientApp, one client after the other.

In: messages to nodes, a ClientApp. Out: replies, in the order of the messages, as a list or one by one. No Ray, no
server process. Any Flower strategy runs on it: clients are nodes with a `partition-id`, an exception in a client is an
error reply, and what a client keeps in its Context stays there from message to message.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedmask.randomness import seed_for
from fedmask.wire.messages import error_reply


class LocalGrid(Grid):
    """A federation of `num_clients` nodes in this process.

    Node ids are 63-bit numbers like Flower's own, so that messages have the length they have on a network, but seeded.
    """

    def __init__(self, client_app: ClientApp, num_clients: int, seed: int = 0) -> None:
        self._client_app = client_app
        self._run_id = seed_for(seed, "flower-run")
        self._contexts: dict[int, Context] = {}
        for partition_id in range(num_clients):
            node_id = seed_for(seed, "flower-node", partition_id)
            node_config: dict[str, bool | float | int | str] = {
                "partition-id": partition_id,
                "num-partitions": num_clients,
            }
            self._contexts[node_id] = Context(self._run_id, node_id, node_config, RecordDict(), {})
        self._kept_replies: dict[str, Message] = {}
        self._num_messages = 0
        _identify(self._run_id, SUPERLINK_NODE_ID)

    def set_run(self, run: Run) -> None:
        """There is one run; its id is the grid's."""

    @property
    def run(self) -> Run:
        return Run.create_empty(self._run_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def keep_client_state_in(self, folder: Path) -> None:
        """Tell every node where it may keep files of its own. This stays on the machine: no message carries a path."""
        for context in self._contexts.values():
            context.node_config["state-folder"] = str(folder)

    def context(self, node_id: int) -> Context:
        """What a node holds between messages."""
        return self._contexts[node_id]

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def stream(self, messages: Iterable[Message], timeout: float | None = None) -> Iterator[Message]:
        """Replies one by one, in the order of the messages; each is made when it is asked for.

        timeout has no effect: a client's work is not interrupted; whoever makes the messages can stop to.
        """
        for message in messages:
            self._name(message)
            reply = self.answer(message)
            self._name(reply)
            yield reply

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """All replies, in the order of the messages. timeout has no effect: a client's work is not interrupted."""
        return list(self.stream(messages))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        for reply in self.stream(messages):
            self._kept_replies[reply.metadata.reply_to_message_id] = reply
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._kept_replies.pop(message_id) for message_id in message_ids if message_id in self._kept_replies]

    def answer(self, message: Message) -> Message:
        """The reply of the node that a named message goes to."""
        context = self._contexts.get(message.metadata.dst_node_id)
        if context is None:
            error = Error(ErrorCode.NODE_UNAVAILABLE, f"node {message.metadata.dst_node_id} is not in this federation")
            return Message(error, reply_to=message)
        return self._call(message, context)

    def _call(self, message: Message, context: Context) -> Message:
        with acting_as(self._run_id, context.node_id):
            try:
                return self._client_app(message, context)
            except Exception as error:  # what a client raises must cost its own reply only
                return error_reply(message, error)

    def named(self, message: Message) -> Message:
        """The message, with an id."""
        self._name(message)
        return message

    def _name(self, message: Message) -> None:
        """Give a message an id as long as a SuperLink's (64 hex digits). Flower leaves this to its SuperLink."""
        self._num_messages += 1
        message.metadata.__dict__["_message_id"] = f"{self._num_messages:064x}"


@contextmanager
def acting_as(run_id: int, node_id: int) -> Iterator[None]:
    """Messages made inside the block are the node's own."""
    _identify(run_id, node_id)
    try:
        yield
    finally:
        _identify(run_id, SUPERLINK_NODE_ID)


def _identify(run_id: int, node_id: int) -> None:
    """Flower makes no message before its private TaskIdentity is set; nothing else in fedmask touches it."""
    TaskIdentity.run_id = run_id
    TaskIdentity.task_id = run_id
    TaskIdentity.node_id = node_id
