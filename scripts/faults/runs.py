"""Federations in this process whose replies pass through a function; each leaves a run folder, and is made once.

In: overrides, a folder, a function of a client's reply. Out: what the run folder says. A run that was stopped goes on
where it was, so a function must answer alike in every process: what it draws, it draws by seed, round and client.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from flwr.app import Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode

from client.app import app as client_app
from fedmask.errors import FedmaskError
from fedmask.runs.config import RunConfig
from fedmask.runs.console import RunProgress
from fedmask.runs.folder import ADAPTER, ROUNDS, SUMMARY, holds_run
from fedmask.runs.trust import TRUST, code_of
from fedmask.wire.messages import facts_of
from server.app import num_clients, resolved, run_federation
from server.compose import compose
from server.local_grid import LocalGrid
from server.strategy import Observer, RoundReport

Change = Callable[[int, Message, Message], Message | None]
"""client_id, request, reply -> the reply that arrives; None: none does."""

LONG = ("rounds=20", "score_every=20", "threads=1", "server.max_retries=2")
"""Of the runs whose scores are compared."""
SCORED = "at most 2 points below, on each task"
MOST_POINTS = 2.0


class ChangingGrid(LocalGrid):
    """A grid whose replies pass through a function."""

    def __init__(self, client_app: ClientApp, num_clients: int, change: Change, seed: int = 0) -> None:
        super().__init__(client_app, num_clients, seed)
        self._change = change

    def stream(self, messages: Iterable[Message], timeout: float | None = None) -> Iterator[Message]:
        for message in messages:
            for reply in super().stream([message]):
                client_id = int(self.context(message.metadata.dst_node_id).node_config["partition-id"])
                changed = self._change(client_id, message, reply)
                if changed is not None:
                    yield changed


class PulledGrid:
    """As Flower's grid of a SuperLink: requests are pushed, and replies pulled by their ids, through a function.

    Where the function raises, Flower could not unpack the reply; where it gives none, the SuperLink says that the node
    has gone.
    """

    def __init__(self, client_app: ClientApp, num_clients: int, change: Change, seed: int = 0) -> None:
        self._grid = LocalGrid(client_app, num_clients, seed)
        self._change = change
        self._pushed: dict[str, Message] = {}
        self.keep_client_state_in = self._grid.keep_client_state_in
        self.get_node_ids = self._grid.get_node_ids
        self.context = self._grid.context

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        named = [self._grid.named(message) for message in messages]
        self._pushed |= {message.metadata.message_id: message for message in named}
        return [message.metadata.message_id for message in named]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._reply(self._pushed.pop(message_id)) for message_id in message_ids]

    def _reply(self, request: Message) -> Message:
        client_id = int(self.context(request.metadata.dst_node_id).node_config["partition-id"])
        changed = self._change(client_id, request, self._grid.answer(request))
        if changed is None:
            changed = Message(Error(ErrorCode.NODE_UNAVAILABLE, "gone"), reply_to=request)
            changed.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
        return changed


def unchanged(client_id: int, request: Message, reply: Message) -> Message:
    return reply


def is_train(request: Message) -> bool:
    return bool(request.metadata.message_type == "train")


def round_of(request: Message) -> int:
    return int(facts_of(request.content)["round"])  # type: ignore[arg-type]


class BarOnly(RunProgress):
    """What is tampered with fails all the time: no line a failure, none a round."""

    def client_failed(self, server_round: int, client_id: int, cause: str, detail: str) -> None: ...
    def round_ended(self, report: RoundReport) -> None: ...


@dataclass(frozen=True)
class Finished:
    """A run's folder, read back."""

    folder: Path
    config: RunConfig

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / SUMMARY).read_text())
        return found

    @property
    def rounds(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / ROUNDS).read_text().splitlines()]

    @property
    def adapter(self) -> bytes:
        return (self.folder / ADAPTER).read_bytes()


def finished_run(
    folder: Path,
    overrides: Sequence[str],
    change: Change = unchanged,
    observer: Observer | None = None,
    grid: Callable[[ClientApp, int, Change, int], Any] = ChangingGrid,
) -> Finished:
    """The run of these overrides: made, gone on with, or found. Raises FedmaskError where the folder holds another.

    observer: a bar by default.
    """
    config = resolved(compose(arguments_for(folder, overrides)), datetime.now())
    if not (folder / SUMMARY).exists():
        federation = grid(client_app, num_clients(config), change, config.seed)
        with BarOnly(folder.name, config.rounds) as bar:
            run_federation(federation, config, observer or bar)
    return Finished(folder, config)


def arguments_for(folder: Path, overrides: Sequence[str]) -> list[str]:
    """The overrides, and where the run begins or goes on. Raises FedmaskError where the folder holds another run."""
    if not holds_run(folder):
        return [*overrides, f"output={folder}"]
    arguments = [*overrides, *resume(folder, overrides)]
    try:
        compose(arguments)
    except FedmaskError as error:
        differences = "; ".join(str(error).splitlines())
        raise FedmaskError(f"{folder}: holds a run of other overrides, name another output ({differences})") from error
    return arguments


def resume(folder: Path, overrides: Sequence[str]) -> list[str]:
    """The arguments that take up a run of these overrides: whoever gave them trusts the code that they name."""
    return [f"resume={folder}", *([f"{TRUST}=true"] if any(code_of(compose(overrides))) else [])]


def forget_peak() -> None:
    """From now on `peak_megabytes` counts anew. Needs Linux's /proc."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_megabytes() -> float:
    """The largest memory that this process has had since it was forgotten."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def points_below(scores: dict[str, float], without: dict[str, float]) -> float:
    """By how many points (hundredths) the task that fares worst is below."""
    return max(100 * (without[task] - scores[task]) for task in without)
