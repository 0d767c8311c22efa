"""Flower's `Grid` over a few processes of this machine: each answers for its share of the clients, one after the other.

In: messages to nodes. Out: replies as they come. Client i belongs to worker i mod (number of workers) for good, so that
what a client's process keeps is found again; a worker is a LocalGrid of its own, and gives the same bits as one process
with as many threads. Workers are forked from a process that has imported everything and computed nothing: they share
its memory.
"""

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType

from flwr.app import Message

from fedmask.errors import FedmaskError
from fedmask.processes import end_with_parent
from server.local_grid import LocalGrid

MESSAGES_AHEAD = 2
"""Messages that a worker has at a time: one to work on, one that is there when it has done with it."""


class WorkerGrid(LocalGrid):
    """A federation of `num_clients` nodes in `num_workers` processes, which end with the block."""

    def __init__(self, client_app: str, num_clients: int, num_workers: int, seed: int = 0) -> None:
        """client_app: where the ClientApp is found, `module:attribute`; each worker imports it for itself."""
        super().__init__(_load(client_app), num_clients, seed)
        self._worker_of = {node: number % num_workers for number, node in enumerate(self.get_node_ids())}
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload([client_app.partition(":")[0], __name__])
        self._workers = []
        self._connections: list[Connection] = []
        for _ in range(num_workers):
            ours, theirs = processes.Pipe()
            worker = processes.Process(target=_work, args=(theirs, client_app, num_clients, seed), daemon=True)
            worker.start()
            theirs.close()
            self._workers.append(worker)
            self._connections.append(ours)

    def __enter__(self) -> "WorkerGrid":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._connections:
            connection.close()
        for worker in self._workers:
            worker.terminate()
            worker.join()

    def keep_client_state_in(self, folder: Path) -> None:
        for connection in self._connections:
            connection.send(folder.resolve())

    def stream(self, messages: Iterable[Message]) -> Iterator[Message]:
        """Replies as they come; a message is taken when a worker is ready for it. Raises FedmaskError where a worker
        dies."""
        queues = _Queues(messages, self._worker_of, len(self._workers))
        ahead = [self._send(number, queues, MESSAGES_AHEAD) for number in range(len(self._workers))]
        while busy := [self._connections[number] for number, sent in enumerate(ahead) if sent]:
            for connection in wait(busy):
                number = self._connections.index(connection)  # type: ignore[arg-type]
                reply = self._receive(number)
                ahead[number] += self._send(number, queues, 1) - 1
                self._name(reply)
                yield reply

    def _send(self, number: int, queues: "_Queues", most: int) -> int:
        """How many were sent."""
        sent = 0
        while sent < most and (message := queues.next_for(number)) is not None:
            self._name(message)
            try:
                self._connections[number].send(message)
            except OSError as error:
                raise self._lost(number) from error
            sent += 1
        return sent

    def _receive(self, number: int) -> Message:
        try:
            reply: Message = self._connections[number].recv()
        except (EOFError, OSError) as error:
            raise self._lost(number) from error
        return reply

    def _lost(self, number: int) -> FedmaskError:
        worker = self._workers[number]
        worker.join(5)
        return FedmaskError(
            f"worker {number} (process {worker.pid}) died with exit code {worker.exitcode}; the run is stopped, for "
            "its clients would be missing from every round. If memory ran out, take fewer workers"
        )


class _Queues:
    """Messages by worker, taken from where they are made only until there is one for the worker that asks."""

    def __init__(self, messages: Iterable[Message], worker_of: Mapping[int, int], num_workers: int) -> None:
        self._messages = iter(messages)
        self._worker_of = worker_of
        self._waiting: list[deque[Message]] = [deque() for _ in range(num_workers)]

    def next_for(self, worker: int) -> Message | None:
        """None once there are no more for this worker. Nodes that nobody knows are the first one's, which says so."""
        while not self._waiting[worker]:
            message = next(self._messages, None)
            if message is None:
                return None
            self._waiting[self._worker_of.get(message.metadata.dst_node_id, 0)].append(message)
        return self._waiting[worker].popleft()


def _load(client_app: str):  # type: ignore[no-untyped-def]
    module, _, attribute = client_app.partition(":")
    return getattr(import_module(module), attribute)


def _work(connection: Connection, client_app: str, num_clients: int, seed: int) -> None:
    """What a worker does until the other end is closed."""
    end_with_parent()
    grid = LocalGrid(_load(client_app), num_clients, seed)
    while True:
        try:
            received = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        if isinstance(received, Path):
            grid.keep_client_state_in(received)
        else:
            connection.send(grid.answer(received))
