"""What it costs to keep a run's state on the disk, round by round: the server's, its clients', both in a real round.

Files are written where the benchmark is started, under runs/, for TMPDIR may be memory, where a flush costs nothing.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.measure import alternate, in_fresh_process
from benchmarks.rows import Row, Settings
from client.app import app as client_app
from client.state import ClientState, Kept
from fedmask.models import bundled_minilm
from fedmask.runs.checkpoint import Checkpoint, ClientRecord, ServerState, save_checkpoint
from fedmask.training.head import HeadLayout
from fedmask.wire.downlink import Broadcast
from server.app import SilentObserver, run_federation
from server.compose import compose
from server.local_grid import LocalGrid
from server.strategy import RoundReport

NUM_VALUES, NUM_CLIENTS = 106_500, 1_000
HIDDEN_SIZE = 384
ROUND_CLIENTS, EXAMPLES, ROUNDS = 14, 100, 5
SERVER, CLIENTS, BOTH = "the server's state", "all clients' states", "the server's state and all clients'"
MOST_SECONDS, MOST_OF_A_ROUND = 0.050, 0.02


def rows(settings: Settings) -> Iterator[Row]:
    Path("runs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-checkpoint-", dir="runs") as folder:
        yield from _written_alone(settings, Path(folder))
        yield from _in_a_round(settings, Path(folder))


# ----------------------------------------------------------------------------------------------------------------------
# Written alone
# ----------------------------------------------------------------------------------------------------------------------


def _written_alone(settings: Settings, folder: Path) -> Iterator[Row]:
    num_clients = 3 if settings.is_trial else NUM_CLIENTS
    work = f"{NUM_VALUES:,} values, {num_clients:,} clients with a head each"
    settings.say(work)
    works = {SERVER: server_writes(folder, num_clients), CLIENTS: clients_write(folder, num_clients)}
    timings = alternate(works, settings.repeats)
    seconds = {name: timing.wall for name, timing in timings.items()}
    yield Row(
        "checkpoint", work, SERVER, f"{1000 * MOST_SECONDS:g} ms", seconds[SERVER], MOST_SECONDS, "s a round", 1.0
    )
    yield Row("checkpoint", work, CLIENTS, SERVER, seconds[CLIENTS], seconds[SERVER], "s a round")


def server_writes(folder: Path, num_clients: int) -> Callable[[], None]:
    """Writes the state after one round more at every call, as a run does: the oldest of three goes."""
    generator = np.random.default_rng(0)
    delta = generator.standard_normal(NUM_VALUES, dtype=np.float32)
    record = ClientRecord("sst2", "accuracy", "0" * 64, 2 * (HIDDEN_SIZE + 1), "0" * 16, 1, True, 1)
    clients, rounds = dict.fromkeys(range(num_clients), record), count(1)

    def write() -> None:
        server_round = next(rounds)
        broadcast = Broadcast(server_round, {("delta", "0" * 64): delta})
        state = ServerState("0" * 16, server_round, "0" * 64, delta, {}, broadcast, clients)
        save_checkpoint(folder / "checkpoints", Checkpoint(state, 0.0, {}))

    return write


def clients_write(folder: Path, num_clients: int) -> Callable[[], None]:
    """Every client keeps its head after one round more; what is older than the server can ask for goes."""
    layout = HeadLayout("sst2", ("negative", "positive"), HIDDEN_SIZE)
    states = [ClientState(folder / "clients", "0" * 16, client_id) for client_id in range(num_clients)]
    kept, rounds = Kept(torch.zeros(layout.size)), count(1)

    def write() -> None:
        server_round = next(rounds)
        for state in states:
            state.keep(server_round, server_round - 1, layout, kept)

    return write


# ----------------------------------------------------------------------------------------------------------------------
# In a round
# ----------------------------------------------------------------------------------------------------------------------


def _in_a_round(settings: Settings, folder: Path) -> Iterator[Row]:
    model, clients, examples, rounds = (
        ("tiny", 5, 4, 2) if settings.is_trial else ("minilm", ROUND_CLIENTS, EXAMPLES, ROUNDS)
    )
    work = f"{model}, {clients} clients x {examples} examples, local heads"
    settings.say(f"{work}, {rounds} rounds")
    timed: list[tuple[float, float, float]] = in_fresh_process(
        rounds_of, folder / "run", model, clients, examples, rounds
    )
    server, all_clients, whole = (median(column) for column in zip(*timed, strict=True))
    limit = f"{100 * MOST_OF_A_ROUND:g}% of the round"
    yield Row("checkpoint", work, BOTH, limit, server + all_clients, MOST_OF_A_ROUND * whole, "s a round", target=1.0)
    yield Row("checkpoint", work, SERVER, CLIENTS, server, all_clients, "s a round")


def rounds_of(
    folder: Path, model: str, clients: int, examples: int, num_rounds: int
) -> list[tuple[float, float, float]]:
    """Of each round but the first, seconds: the server's state written, the clients' states written, all of it."""
    weights = "pretrained" if model == "minilm" and bundled_minilm() is not None else "random"
    sizes = [f"clients={clients}", f"data.examples_per_client={examples}", f"rounds={num_rounds}", "score_test=false"]
    config = compose([f"model={model}", f"model.weights={weights}", *sizes, f"output={folder}"])
    server, states = Stopwatch(), Stopwatch()
    observer = _Rounds(server, states)
    with (
        patch.object(ClientState, "keep", states.around(ClientState.keep)),
        patch.object(ClientState, "show_head", states.around(ClientState.show_head)),
        patch("server.app.save_checkpoint", server.around(save_checkpoint)),
    ):
        run_federation(LocalGrid(client_app, clients), config, observer)
    return observer.timed[1:]


class Stopwatch:
    """Adds up the seconds that are spent in a function."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def around(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*arguments)
            finally:
                self._seconds += time.perf_counter() - began

        return timed

    def take(self) -> float:
        """Seconds since the last time."""
        taken, self._seconds = self._seconds, 0.0
        return taken


class _Rounds(SilentObserver):
    """Hears of a round when all of it is on the disk."""

    def __init__(self, server: Stopwatch, clients: Stopwatch) -> None:
        self._server, self._clients = server, clients
        self.timed: list[tuple[float, float, float]] = []

    def round_ended(self, report: RoundReport) -> None:
        server = self._server.take()
        self.timed.append((server, self._clients.take(), report.seconds + server))
