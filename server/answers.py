"""One guarded way for a reply: every request's answer comes alone, and whatever goes wrong over it costs it alone.

In: a grid and requests. Out: `Answer`s, each with the node that was asked. `one_reply` is the block in which a reply is
read: any exception in it becomes a `RejectedMessage`, and one that no check of ours raised is told as our own fault.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from queue import Empty, Queue
from threading import Thread
from typing import Protocol

import httpx
from flwr.app import Message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid

from fedmask.errors import FedmaskError, RejectedMessage, cause_line

INTERNAL_ERROR = "internal-error"
"""The cause of a rejection that no check raised: a fault of fedmask's own, whatever the peer did to find it."""

PAUSE_SECONDS = 1.0
"""From one look for replies to the next, at least, unless a grid says how often; where a look takes longer, as long as
it takes."""

PULL_SECONDS = 2.0
"""That a look waits for one reply whose objects are not all there; it goes on without it, and finds it later."""


@dataclass(frozen=True)
class Answer:
    """What came for one request."""

    message_id: str
    """Of the request, by the grid's word; a reply's own word may differ."""
    reply: Message | None
    """None where Flower could not unpack it."""
    fault: str = ""
    """Why it could not."""
    found_at: float = 0.0
    """On the clock of time.monotonic: when the look for it began."""


class _StreamingGrid(Protocol):
    def stream(self, messages: Iterable[Message], timeout: float | None = None) -> Iterator[Message]: ...


def answers(grid: Grid, requests: Iterable[Message], timeout: float) -> Iterator[Answer]:
    """Send, and yield what comes back within `timeout` seconds, one by one."""
    if hasattr(grid, "stream"):  # clients of this process, or of its workers
        streaming: _StreamingGrid = grid
        for reply in streaming.stream(requests, timeout):
            yield Answer(reply.metadata.reply_to_message_id, reply, found_at=time.monotonic())
        return
    for answer in _pulled(grid, requests, timeout):
        # What a SuperLink says of a node that has gone comes from itself: that node has not answered.
        if answer.reply is None or answer.reply.metadata.src_node_id != SUPERLINK_NODE_ID:
            yield answer


def _pulled(grid: Grid, requests: Iterable[Message], timeout: float) -> Iterator[Answer]:
    """Each reply is asked for by itself: Flower unpacks all that it pulls at once, and where one of them cannot be
    unpacked, the others have already left the SuperLink."""
    deadline = time.monotonic() + timeout
    # A list: Flower's own grid goes over them twice.
    waiting = [message_id for message_id in grid.push_messages(list(requests)) if message_id]
    under_way: dict[str, _Pull] = {}
    while waiting:
        began = min(time.monotonic(), deadline)
        for message_id in list(waiting):
            is_new = message_id not in under_way
            pull = under_way.pop(message_id, None) or _Pull(grid, message_id)
            found = pull.found(PULL_SECONDS if is_new else 0.0)
            if found is None:
                under_way[message_id] = pull
            elif found:
                waiting.remove(message_id)
                yield from (replace(answer, found_at=began) for answer in found)
        if began == deadline:  # what came until then has been found
            return
        took = time.monotonic() - began
        time.sleep(max(0.0, min(max(getattr(grid, "pull_interval", PAUSE_SECONDS), took), deadline - time.monotonic())))


class _Pull:
    """One reply, fetched in a thread of its own: Flower waits, for minutes and more, for objects that a client has
    announced and not sent."""

    def __init__(self, grid: Grid, message_id: str) -> None:
        self._result: Queue[list[Answer] | Exception] = Queue()
        Thread(target=self._run, args=(grid, message_id), daemon=True).start()

    def _run(self, grid: Grid, message_id: str) -> None:
        try:
            self._result.put(_pull(grid, message_id))
        except Exception as error:  # raised again where it is waited for
            self._result.put(error)

    def found(self, seconds: float) -> list[Answer] | None:
        """As `_pull`; None where that goes on. Raises what it raised."""
        try:
            result = self._result.get(timeout=seconds) if seconds else self._result.get_nowait()
        except Empty:
            return None
        if isinstance(result, Exception):
            raise result
        return result


def _pull(grid: Grid, message_id: str) -> list[Answer]:
    """What has come for one request; nothing yet where the list is empty.

    Raises what Flower raises where the SuperLink itself is gone, or lets the run go on no longer.
    """
    try:
        replies = list(grid.pull_messages([message_id]))
    except httpx.HTTPError as error:
        if not isinstance(error, httpx.HTTPStatusError) or not error.response.is_server_error:
            raise
        return [Answer(message_id, None, f"the SuperLink fails over it ({cause_line(error)})")]
    except Exception as error:  # of many types, from what a client made of Flower's objects
        return [Answer(message_id, None, f"Flower cannot unpack it ({type(error).__name__}: {cause_line(error)})")]
    return [Answer(message_id, reply) for reply in replies]


@contextmanager
def one_reply(whose: str) -> Iterator[None]:
    """Read one reply in this block. whose: `round 1, client 2`, for the log.

    Raises RejectedMessage alone; a cause of INTERNAL_ERROR has its traceback in the log.
    """
    try:
        yield
    except RejectedMessage:
        raise
    except FedmaskError as error:
        raise RejectedMessage("undecodable", str(error)) from error
    except Exception as error:
        logging.getLogger("fedmask").exception(
            "%s: %s over its reply, which is rejected; please report this", whose, INTERNAL_ERROR
        )
        raise RejectedMessage(INTERNAL_ERROR, f"{type(error).__name__}: {cause_line(error)}") from error
