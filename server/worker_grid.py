"""Flower's `Grid` over a few processes of this machine: each answers for its share of the clients, one after the other.

In: messages to nodes. Out: replies as they come. Client i belongs to worker i mod (number of workers) for good, so that
what a client's process keeps is found again; a worker is a LocalGrid of its own, and gives the same bits as one process
with as many threads. Workers are forked from a process that has imported everything and computed nothing: they share
its memory.

A worker that dies costs the reply that it worked on, which is an error; one that still works when the time is over is
ended, and its replies never come. Either way another takes its place, which knows nothing: its clients' next messages
are answered with what they lack, and the server sends it.
"""

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from queue import SimpleQueue
from threading import Thread, Timer
from time import monotonic
from types import TracebackType

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from fedmask.processes import end_with_parent
from server.local_grid import LocalGrid

END_SECONDS = 5.0
"""What a worker may take to end when there is nothing left to do."""

MOST_AHEAD = 64
"""Messages from the oldest without a reply to the newest that is sent: replies are taken in client order, so those
behind a slow client are held until it is done."""

MESSAGES_AHEAD = 2
"""Messages that a worker has at a time: one to work on, one that is there when it has done with it."""


_IMPORTED_LATE = ("transformers.modeling_utils", "transformers.models.bert.modeling_bert")
"""What loading a model imports: 100 MB and two seconds, which workers share when it is there before them."""


class WorkerGrid(LocalGrid):
    """A federation of `num_clients` nodes in `num_workers` processes, which end with the block."""

    def __init__(self, client_app: str, num_clients: int, num_workers: int, seed: int = 0) -> None:
        """client_app: where the ClientApp is found, `module:attribute`; each worker imports it for itself."""
        super().__init__(_load(client_app), num_clients, seed)
        self._worker_of = {node: number % num_workers for number, node in enumerate(self.get_node_ids())}
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload([client_app.partition(":")[0], __name__, *_IMPORTED_LATE])
        self._work_arguments = (client_app, num_clients, seed)
        self._state_folder: Path | None = None
        self._workers = [self._start_worker() for _ in range(num_workers)]

    def __enter__(self) -> "WorkerGrid":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.end()

    def keep_client_state_in(self, folder: Path) -> None:
        self._state_folder = folder.resolve()
        for worker in self._workers:
            worker.send(self._state_folder)

    def stream(self, messages: Iterable[Message], timeout: float | None = None) -> Iterator[Message]:
        """Replies as they come; a message is taken when a worker is ready for it.

        timeout: seconds after which no message is taken, and workers that have not done are ended and replaced.
        """
        self._restart_workers_that_are_over()
        queues = _Queues(messages, self._worker_of, len(self._workers))
        deadline = None if timeout is None else monotonic() + timeout
        with self._ended_after(timeout):
            self._send(queues)
            while busy := {worker.connection: number for number, worker in enumerate(self._workers) if worker.held}:
                for connection in wait(list(busy)):
                    number = busy[connection]  # type: ignore[index]
                    queues.done(self._workers[number].held[0])
                    reply = self._workers[number].receive()
                    if reply is None:
                        reply = self._replace(number, is_over=deadline is not None and monotonic() >= deadline)
                    if reply is not None:
                        self._send(queues)
                        self._name(reply)
                        yield reply

    @contextmanager
    def _ended_after(self, timeout: float | None) -> Iterator[None]:
        """From a thread of its own: the server may itself be waiting for a worker to take or to give a message."""
        timer = None if timeout is None else Timer(timeout, self._end_busy_workers)
        if timer is None:
            yield
            return
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _end_busy_workers(self) -> None:
        for worker in self._workers:
            if worker.held:
                worker.is_over = True
                worker.process.kill()

    def _restart_workers_that_are_over(self) -> None:
        """One that was ended, died while it had nothing to do, or still works for a caller that has gone."""
        for number, worker in enumerate(self._workers):
            if worker.is_over or worker.held or not worker.process.is_alive():
                worker.end()
                self._workers[number] = self._start_worker()

    def _send(self, queues: "_Queues") -> None:
        """To every worker as many messages as it may have."""
        for number, worker in enumerate(self._workers):
            while len(worker.held) < MESSAGES_AHEAD and (message := queues.next_for(number)) is not None:
                self._name(message)
                worker.hold(message)

    def _replace(self, number: int, is_over: bool) -> Message | None:
        """Another worker in place of one that is gone; the reply to what that one worked on, unless the time is over.

        What it had not begun with goes to the new one.
        """
        lost = self._workers[number]
        lost.end()
        self._workers[number] = self._start_worker()
        if is_over:
            return None
        message = lost.held.popleft()
        for waiting in lost.held:
            self._workers[number].hold(waiting)
        reason = (
            f"worker {number} (process {lost.process.pid}) died over this message with exit code "
            f"{lost.process.exitcode}. If memory ran out, take fewer workers"
        )
        return Message(Error(ErrorCode.CLIENT_APP_CRASHED, reason), reply_to=message)

    def _start_worker(self) -> "_Worker":
        ours, theirs = self._processes.Pipe()
        process = self._processes.Process(target=_work, args=(theirs, *self._work_arguments), daemon=True)
        process.start()
        theirs.close()
        worker = _Worker(process, ours)
        if self._state_folder is not None:
            worker.send(self._state_folder)
        return worker


class _Worker:
    """A process, the pipe to it, and the messages that it has not answered."""

    def __init__(self, process: ForkServerProcess, connection: Connection) -> None:
        self.process = process
        self.connection = connection
        self.held: deque[Message] = deque()
        self.is_over = False

    def send(self, what: Message | Path) -> None:
        with suppress(OSError):  # it is gone: told by the pipe's end when its replies are read
            self.connection.send(what)

    def hold(self, message: Message) -> None:
        self.held.append(message)
        self.send(message)

    def receive(self) -> Message | None:
        """The reply to the first message that it holds; None where the worker is gone."""
        try:
            reply: Message = self.connection.recv()
        except (EOFError, OSError):
            return None
        self.held.popleft()
        return reply

    def end(self) -> None:
        """A worker that waits for a message ends by itself, and tidies up; else at once, whatever it does: what it
        writes is whole or not there."""
        self.connection.close()
        self.process.join(0 if self.held else END_SECONDS)
        self.process.kill()
        self.process.join()


class _Queues:
    """Messages by worker, taken from where they are made only until there is one for the worker that asks."""

    def __init__(self, messages: Iterable[Message], worker_of: Mapping[int, int], num_workers: int) -> None:
        self._messages = iter(messages)
        self._worker_of = worker_of
        self._waiting: list[deque[Message]] = [deque() for _ in range(num_workers)]
        self._num_taken = 0
        self._open: dict[int, int] = {}
        """By identity of a message that is taken and not done its number, ascending."""

    def next_for(self, worker: int) -> Message | None:
        """None where there is none for this worker, or only far ahead of the oldest that is not done.

        Nodes that nobody knows are the first worker's, which says so.
        """
        while not self._waiting[worker]:
            if self._open and self._num_taken - next(iter(self._open.values())) >= MOST_AHEAD:
                return None
            message = next(self._messages, None)
            if message is None:
                return None
            self._open[id(message)] = self._num_taken
            self._num_taken += 1
            self._waiting[self._worker_of.get(message.metadata.dst_node_id, 0)].append(message)
        return self._waiting[worker].popleft()

    def done(self, message: Message) -> None:
        """There will be no reply to it beside one that is here."""
        self._open.pop(id(message), None)


def _load(client_app: str):  # type: ignore[no-untyped-def]
    module, _, attribute = client_app.partition(":")
    return getattr(import_module(module), attribute)


def _work(connection: Connection, client_app: str, num_clients: int, seed: int) -> None:
    """What a worker does until the other end is closed."""
    end_with_parent()
    received: SimpleQueue[Message | Path | None] = SimpleQueue()
    Thread(target=_receive, args=(connection, received), daemon=True).start()
    grid = LocalGrid(_load(client_app), num_clients, seed)
    with suppress(KeyboardInterrupt, OSError):  # the server tells, or is gone
        while (what := received.get()) is not None:
            if isinstance(what, Path):
                grid.keep_client_state_in(what)
            else:
                connection.send(grid.answer(what))


def _receive(connection: Connection, received: "SimpleQueue[Message | Path | None]") -> None:
    """In a thread of its own: a worker takes what it is sent also while it sends a reply. Else server and worker would
    wait for each other as soon as a message each way is larger than the pipe."""
    try:
        while True:
            received.put(connection.recv())
    except (EOFError, OSError):
        received.put(None)
