"""The requests of one asking: a reply that answers none of them is rejected, with the cause.

Flower hands a server the replies that were pulled for it; that each is of this run, of this round, to the message that
its node was sent, by that node, the first and in time, is checked here, whatever the grid. Who sent a reply is told by
the id of the request that it came for, never by the reply: a SuperLink compares the sender of the envelope alone.
"""

from flwr.app import Message, Metadata

from fedmask.errors import RejectedMessage
from server.answers import Answer

_MUST_AGREE = (
    ("run_id", "other-run"),
    ("group_id", "other-round"),
    ("message_type", "other-message"),
    ("message_id", "other-message"),
)
"""What a request and its reply have in common, and the cause where they have not; compared in this order."""


class OpenRequests:
    """Who was asked what."""

    def __init__(self, deadline: float) -> None:
        """deadline: on the clock of time.monotonic; a reply is late after it."""
        self._deadline = deadline
        self._nodes: set[int] = set()
        self._unnamed: list[Metadata] = []
        self._by_id: dict[str, Metadata] = {}
        self._answered: set[str] = set()

    def add(self, request: Message) -> None:
        """The grid gives the request its id later: its metadata are kept, not copied."""
        self._nodes.add(request.metadata.dst_node_id)
        self._unnamed.append(request.metadata)

    def node_of(self, answer: Answer) -> int | None:
        """The node that was asked; None where no request has the id that the answer came for."""
        asked = self._request_of(answer)
        return None if asked is None else asked.dst_node_id

    def settle(self, answer: Answer) -> Message:
        """The reply, as the answer to the request that it came for. Raises RejectedMessage."""
        asked, reply = self._request_of(answer), answer.reply
        if reply is None:
            raise RejectedMessage("undecodable", answer.fault)
        node_id = reply.metadata.src_node_id
        if asked is None:
            if node_id not in self._nodes:
                raise RejectedMessage("unknown-node", f"a message of node {node_id}, which was asked nothing")
            raise RejectedMessage("other-message", f"a reply to message {answer.message_id!r}, which nobody was sent")
        if node_id != asked.dst_node_id:
            raise RejectedMessage("other-sender", f"the reply says that it is node {node_id}'s")
        self._check_agreement(asked, reply.metadata)
        if asked.message_id in self._answered:
            raise RejectedMessage("duplicate", "the client answered before")
        if answer.found_at > self._deadline:
            raise RejectedMessage("late", "the reply came after the time was over")
        if not reply.has_error() and not reply.has_content():
            raise RejectedMessage("undecodable", "the reply holds nothing, not even an empty record")
        self._answered.add(asked.message_id)
        return reply

    def _request_of(self, answer: Answer) -> Metadata | None:
        if answer.message_id not in self._by_id:
            self._by_id |= {request.message_id: request for request in self._unnamed if request.message_id}
            self._unnamed = [request for request in self._unnamed if not request.message_id]
        return self._by_id.get(answer.message_id)

    @staticmethod
    def _check_agreement(asked: Metadata, found: Metadata) -> None:
        for name, cause in _MUST_AGREE:
            ours, theirs = getattr(asked, name), getattr(found, "reply_to_message_id" if name == "message_id" else name)
            if ours != theirs:
                raise RejectedMessage(cause, f"a reply to {name} {theirs!r}, the client was asked with {ours!r}")
