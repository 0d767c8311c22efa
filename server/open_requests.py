"""The requests of one asking: a reply that answers none of them is rejected, with the cause.

Flower hands a server the replies that were pulled for it; that each is of this run, of this round, to the message that
its node was sent, the first and in time, is checked here, whatever the grid.
"""

import time

from flwr.app import Message, Metadata

from fedmask.errors import RejectedMessage

_MUST_AGREE = (
    ("run_id", "other-run"),
    ("group_id", "other-round"),
    ("message_type", "other-message"),
    ("message_id", "other-message"),
)
"""What a request and its reply have in common, and the cause where they have not; compared in this order."""


class OpenRequests:
    """Who was asked what; one request a node."""

    def __init__(self, deadline: float) -> None:
        """deadline: on the clock of time.monotonic; a reply is late after it."""
        self._deadline = deadline
        self._asked: dict[int, Metadata] = {}
        self._answered: set[int] = set()

    def add(self, request: Message) -> None:
        """The grid gives the request its id later: its metadata are kept, not copied."""
        self._asked[request.metadata.dst_node_id] = request.metadata

    def settle(self, reply: Message) -> None:
        """Take a reply as the answer to the request of its node. Raises RejectedMessage."""
        node_id = reply.metadata.src_node_id
        if node_id not in self._asked:
            raise RejectedMessage("unknown-node", f"a message of node {node_id}, which was asked nothing")
        self._check_agreement(self._asked[node_id], reply.metadata)
        if node_id in self._answered:
            raise RejectedMessage("duplicate", "the client answered before")
        if time.monotonic() > self._deadline:
            raise RejectedMessage("late", "the reply came after the time was over")
        if not reply.has_error() and not reply.has_content():
            raise RejectedMessage("undecodable", "the reply holds nothing, not even an empty record")
        self._answered.add(node_id)

    @staticmethod
    def _check_agreement(asked: Metadata, found: Metadata) -> None:
        for name, cause in _MUST_AGREE:
            ours, theirs = getattr(asked, name), getattr(found, "reply_to_message_id" if name == "message_id" else name)
            if ours != theirs:
                raise RejectedMessage(cause, f"a reply to {name} {theirs!r}, the client was asked with {ours!r}")
