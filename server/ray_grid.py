"""Flower's `Grid` on Ray: many worker processes answer the messages, on this machine or on a Ray cluster.

In: messages to nodes, a ClientApp. Out: replies, one by one, as they come. Flower's simulation engine starts Ray, or
connects to it, and ends what it started. A worker takes messages of any client, one at a time, and keeps what the
client app's modules hold: one base model a worker, however many clients there are.

To Flower a dead worker is an error of the client whose message it held, and of each that is given to it later. Here it
ends the run.
"""

import logging
import os
import re
import socket
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import ray
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from flwr.supercore.run import Run

from fedmask.errors import FedmaskError
from fedmask.runs.config import RayConfig, usable_cpus
from fedmask.shown import shown
from fedmask.wire.messages import error_reply

POLL_SECONDS = 0.05
"""How often replies are looked for."""


@contextmanager
def grid_on_ray(client_app: ClientApp, num_clients: int, config: RayConfig) -> Iterator["RayGrid"]:
    """A grid of `num_clients` nodes for the time of the block. A Ray that was started for it has ended after it.

    Raises FedmaskError where nobody answers at ray.address; inside the block the grid raises it where Ray does not
    start, and where a worker dies.
    """
    _check_reachable(config)
    client, handed_over, served = RayClient(client_app), Future[Grid](), threading.Event()
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, _: Context) -> None:
        """Flower runs the server in a thread, and ends Ray when it returns: the server itself stays in this one."""
        handed_over.set_result(grid)
        served.wait()

    with _quiet_guest(), ThreadPoolExecutor(1) as executor:
        engine: Future[Any] = executor.submit(
            run_simulation,
            server_app,
            client,  # type: ignore[arg-type]
            num_clients,
            backend_config=_backend_config(config),
        )
        try:
            wait(list[Future[Any]]([handed_over, engine]), return_when=FIRST_COMPLETED)
            yield RayGrid(handed_over, engine, client, config)
        except BaseException:
            _kill_workers()
            raise
        finally:
            served.set()


def _check_reachable(config: RayConfig) -> None:
    """Ray itself would try for many minutes."""
    place = re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", config.address or "")
    if place is None:
        return
    try:
        socket.create_connection((place[1], int(place[2])), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise FedmaskError(
            f"ray.address={shown(config.address)}: nobody answers there ({error}); start a cluster with ray start, or "
            "leave the address out"
        ) from error


def _backend_config(config: RayConfig) -> dict[str, dict[str, Any]]:
    # What Ray has to say comes as errors of this module; its own lines would stand between those of the run.
    init: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    # Without an address Ray would take any cluster that it finds; with another than "local" it counts CPUs itself.
    init |= {"address": config.address} if config.address else {"address": "local", "num_cpus": usable_cpus()}
    return {"client_resources": {"num_cpus": config.client_cpus, "num_gpus": config.client_gpus}, "init_args": init}


@contextmanager
def _quiet_guest() -> Iterator[None]:
    """Flower says nothing, for its errors come as replies and exceptions, and leaves the process as it was.

    Nor does it say that `run_simulation` is deprecated in favour of `flwr run`: that leaves a SuperLink behind.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # without it Ray warns at every start
    logger, python_path = logging.getLogger("flwr"), os.environ.get("PYTHONPATH")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        # Flower puts sys.path there, so that workers can import what this process can.
        os.environ.pop("PYTHONPATH", None)
        os.environ |= {} if python_path is None else {"PYTHONPATH": python_path}


def _kill_workers() -> None:
    """End all workers of this process at once: Flower would wait until each has done the message it holds.

    Flower keeps the workers' handles to itself, and Ray has no public list of them. Through ray:// there is no list at
    all: there Flower waits.
    """
    worker: Any = ray._private.worker.global_worker
    if not worker.connected:
        return
    for actor_id in ray._private.state.actors(job_id=worker.current_job_id):
        worker.core_worker.kill_actor(ray.ActorID.from_hex(actor_id), True)


class RayClient:
    """The ClientApp on its way to a worker: Flower pickles it anew for every message, with the folder set by then."""

    def __init__(self, client_app: ClientApp) -> None:
        self._client_app = client_app
        self.state_folder: str | None = None

    def __call__(self, message: Message, context: Context) -> Message:
        if self.state_folder is not None:
            context.node_config["state-folder"] = self.state_folder
        try:
            return self._client_app(message, context)
        except Exception as error:  # told as it is told in one process; Flower would send the traceback
            return error_reply(message, error)


class RayGrid(Grid):
    """Flower's grid of simulated nodes, with replies one by one, and a dead worker as an error."""

    def __init__(self, grid: Future[Grid], engine: Future[None], client: RayClient, config: RayConfig) -> None:
        """grid: Flower's own. engine: done when Ray runs no more."""
        self._given = grid
        self._engine = engine
        self._client = client
        self._config = config

    @property
    def _grid(self) -> Grid:
        """Flower's own. Raises FedmaskError where its engine has ended."""
        if self._engine.done():
            raise _not_running(self._config, self._engine.exception())
        return self._given.result()

    def keep_client_state_in(self, folder: Path) -> None:
        """Tell every node where it may keep files of its own; on a cluster, a folder that all its machines share."""
        self._client.state_folder = str(folder.resolve())

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that have come. Raises FedmaskError where one of them tells of a dead worker."""
        replies = list(self._grid.pull_messages(message_ids))
        for reply in replies:
            if reply.has_error() and reply.error.code == ErrorCode.UNKNOWN:  # raised by Ray, not by a client
                raise _worker_lost(reply)
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return list(self.stream(messages, timeout))

    def stream(self, messages: Iterable[Message], timeout: float | None = None) -> Iterator[Message]:
        """Replies one by one, as they come; none after `timeout` seconds. Raises FedmaskError for a dead worker."""
        deadline = None if timeout is None else monotonic() + timeout
        waiting = set(self.push_messages(messages))
        try:
            while waiting and (deadline is None or monotonic() < deadline):
                for reply in self.pull_messages(waiting):
                    waiting.discard(reply.metadata.reply_to_message_id)
                    yield reply
                sleep(POLL_SECONDS)
        except (FedmaskError, KeyboardInterrupt):
            _kill_workers()  # before the run's folder is tidied up: none of them may write into it after that
            raise


def _not_running(config: RayConfig, error: BaseException | None) -> FedmaskError:
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    return FedmaskError(
        f"Ray cannot run clients with ray.address={shown(config.address)}, ray.client_cpus={config.client_cpus:g} and "
        f"ray.client_gpus={config.client_gpus:g}: {' '.join(str(error).split()) or type(error).__name__}"
    )


def _worker_lost(reply: Message) -> FedmaskError:
    """One line from the many of `<class 'ray.exceptions.ActorDiedError'>:<'...'>`."""
    reason = str(reply.error.reason)
    kind = re.search(r"([\w()]+)'>:", reason)
    process = re.search(r"pid: (\d+)", reason)
    last_line = reason.rstrip(" '>\n").rpartition("\n")[2]
    return FedmaskError(
        f"round {reply.metadata.group_id}: a Ray worker{f' (process {process[1]})' if process else ''} was lost over a "
        f"{reply.metadata.message_type} message: {kind[1] if kind else 'error'}: {last_line.split('. ')[0]}; the run "
        "is stopped, for clients would be missing from every round. If memory ran out, let fewer clients work side by "
        "side (a larger ray.client_cpus); Ray's logs are in /tmp/ray/session_latest/logs"
    )
