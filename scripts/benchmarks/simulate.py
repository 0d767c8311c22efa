"""Federations in one process or several beside Flower's Ray engine: the time of a round, and the memory of all of it.

Two works. Clients that do no training take one vector in and give one back, in Flower messages, through fedmask's own
strategy: what is left is what an engine costs. Clients that train MiniLM do what a run does. Engines run in fresh
processes, by turns; a round is timed from its first message to its end, without the first round, in which workers warm
up.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import psutil
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from benchmarks.measure import MEGABYTE, in_fresh_process, peak_bytes, reset_peak, resident_bytes
from benchmarks.rows import Row, Settings
from client.app import app as client_app
from fedmask.errors import FedmaskError
from fedmask.masks import Mask
from fedmask.models import bundled_minilm
from fedmask.runs.config import RayConfig, usable_cpus
from fedmask.wire.codecs import codec
from fedmask.wire.ledger import Ledger
from fedmask.wire.messages import pack, payload_of
from fedmask.wire.vectors import frame, unframe
from server.app import SilentObserver, run_federation, settings_for
from server.compose import compose
from server.local_grid import LocalGrid
from server.ray_grid import grid_on_ray
from server.strategy import MaskedAveraging, RoundReport
from server.worker_grid import WorkerGrid

NUM_VALUES = 106_500
HIDDEN_SIZE = 64
"""Of the tiny model."""
NUM_CLIENTS = (100, 1_000, 10_000)
ROUNDS_A_TURN = 3
TURNS = 2
NUM_WORKERS = 2
LOCAL, RAY, WORKERS = "LocalGrid", "Flower's Ray engine", f"LocalGrid, workers={NUM_WORKERS}"
LEAST_FASTER, LEAST_SMALLER, MOST_SECONDS, MOST_BYTES = 20.0, 2.0, 10.0, 2_000
FLAT = 0.8
"""A client's time at a thousand clients over that at ten thousand: flat within the noise of this section."""


def rows(settings: Settings) -> Iterator[Row]:
    yield from _no_training(settings)
    yield from _training(settings)


# ----------------------------------------------------------------------------------------------------------------------
# Clients that do no training
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """One federation in a process of its own."""

    start_seconds: float
    """From the making of the grid to the first round."""
    round_seconds: tuple[float, ...]
    """Without the first."""
    round_cpu_seconds: tuple[float, ...]
    """Of all its processes; without the first."""
    peak_bytes: int
    """Proportional memory of all its processes, the most that was seen at the end of a round."""
    growth_bytes: int
    """Resident memory of its first process: its peak over what was resident before the grid was made."""


def _no_training(settings: Settings) -> Iterator[Row]:
    sizes = (2, 3) if settings.is_trial else NUM_CLIENTS
    turns = {size: list[Turn]() for size in sizes}
    on_ray = {size: list[Turn]() for size in sizes[:2]}
    for turn in range(1 if settings.is_trial else TURNS):
        for size in sizes:
            settings.say(f"{size:,} clients without training on {LOCAL}, turn {turn + 1}")
            turns[size].append(in_fresh_process(exchange_vectors, LOCAL, size, ROUNDS_A_TURN))
            if size in on_ray:
                settings.say(f"{size:,} clients without training on {RAY}, turn {turn + 1}")
                on_ray[size].append(in_fresh_process(exchange_vectors, RAY, size, ROUNDS_A_TURN))
    for size, theirs in on_ray.items():
        work = f"{size:,} clients without training, 426 KB each way"
        target = LEAST_FASTER if size == sizes[1] else None
        yield from _round_rows(work, LOCAL, RAY, turns[size], theirs, size, "a client and round", target)
    middle, most = sizes[1:] if len(sizes) > 2 else sizes
    many, fewer = _seconds(turns[most]), _seconds(turns[middle])
    work = f"{most:,} clients without training, 426 KB each way"
    yield Row("simulate", work, LOCAL, f"{MOST_SECONDS:g} s", many, MOST_SECONDS, "s a round", 1.0)
    flat = many / most, fewer / middle
    yield Row("simulate", work, LOCAL, f"{LOCAL}, {middle:,} clients", *flat, "s a client and round", FLAT)
    growth = [median(turn.growth_bytes for turn in turns[size]) for size in (middle, most)]
    slope = max(growth[1] - growth[0], 0) / (most - middle) or 1.0
    beside = f"{MOST_BYTES:,} bytes"
    yield Row("simulate", work, f"{LOCAL}, resident growth", beside, slope, MOST_BYTES, "bytes a client", 1.0)


def _round_rows(
    work: str,
    variant: str,
    rival: str,
    ours: list[Turn],
    theirs: list[Turn],
    divisor: int,
    per: str,
    target: float | None,
) -> Iterator[Row]:
    yield Row(
        "simulate", work, variant, rival, _seconds(ours) / divisor, _seconds(theirs) / divisor, f"s {per}", target
    )
    cpu = (_cpu_seconds(turns) / divisor for turns in (ours, theirs))
    yield Row("simulate", work, variant, rival, *cpu, f"s of CPU {per}")
    start = (median(turn.start_seconds for turn in turns) for turns in (ours, theirs))
    yield Row("simulate", work, variant, rival, *start, "s to the first round")


def _seconds(turns: list[Turn]) -> float:
    return median(seconds for turn in turns for seconds in turn.round_seconds)


def _cpu_seconds(turns: list[Turn]) -> float:
    return median(seconds for turn in turns for seconds in turn.round_cpu_seconds)


idle_app = ClientApp()


@lru_cache
def _mask() -> Mask:
    """Of a model of which it is 0.03%."""
    return Mask({"weight": (2 * NUM_VALUES,)}, {"weight": np.arange(NUM_VALUES)}, round(NUM_VALUES / 0.0003))


@idle_app.query("mask")
def _introduce(message: Message, context: Context) -> Message:
    facts: dict[str, int | float | str | bool] = {
        "client-id": int(context.node_config["partition-id"]),
        "task": "none",
        "metric": "accuracy",
        "mask-digest": _mask().digest,
        "head-layout": "0" * 64,
        "head-size": HIDDEN_SIZE + 1,
        "num-classes": 0,
        "classes-digest": "0" * 16,
        "num-examples": 1,
        "data-digest": "0" * 16,
    }
    return Message(pack(facts=facts), reply_to=message)


@idle_app.train()
def _answer(message: Message, context: Context) -> Message:
    """Decode what came, encode it again: no update is as large. In the first round nothing comes, for it is zeros."""
    found = unframe(payload_of(message.content), [("delta", _mask().digest, NUM_VALUES)])
    values = found["delta"].values if found else np.zeros(NUM_VALUES, np.float32)
    payload = frame("delta", _mask().digest, codec("fp32").encode(values, 0))
    return Message(pack(payload, {"num-examples": 1, "train-loss": 0.0}), reply_to=message)


def exchange_vectors(engine: str, size: int, num_rounds: int) -> Turn:
    """A federation of `idle_app`; nothing is scored."""
    config = compose(["model=tiny", "client.head=local", f"clients={size}", "threads=1"])
    ledger = Ledger()
    observer = _Timing(num_rounds, ledger)
    with _grid(engine, idle_app, size) as grid:
        strategy = MaskedAveraging(
            settings_for(config),
            _mask(),
            None,
            size,
            ledger,
            observer,
            config.server,
            hidden_size=HIDDEN_SIZE,
            score_every=num_rounds + 3,
        )
        with suppress(_EnoughRounds):
            strategy.start(grid, strategy.arrays(), num_rounds + 2)
    return observer.turn()


# ----------------------------------------------------------------------------------------------------------------------
# Clients that train
# ----------------------------------------------------------------------------------------------------------------------


def _training(settings: Settings) -> Iterator[Row]:
    model, clients, examples = ("tiny", 5, 4) if settings.is_trial else ("minilm", 20, 16)
    work = f"{model}, {clients} clients x {examples} examples, threads=1"
    turns: dict[str, list[Turn]] = {WORKERS: [], RAY: []}
    for turn in range(1 if settings.is_trial else TURNS):
        for engine, taken in turns.items():
            settings.say(f"{work} on {engine}, turn {turn + 1}")
            taken.append(in_fresh_process(train, engine, model, clients, examples, ROUNDS_A_TURN))
    yield from _round_rows(work, WORKERS, RAY, turns[WORKERS], turns[RAY], 1, "a round", 1.0)
    peaks = (max(turn.peak_bytes for turn in turns[engine]) / MEGABYTE for engine in turns)
    yield Row("simulate", work, WORKERS, RAY, *peaks, "MB of all processes", LEAST_SMALLER)


def train(engine: str, model: str, clients: int, examples: int, num_rounds: int) -> Turn:
    """A federation as `scripts/simulate.py` runs it, two clients at a time; nothing is scored."""
    observer = _Timing(num_rounds)
    with tempfile.TemporaryDirectory() as folder:
        weights = "pretrained" if model == "minilm" and bundled_minilm() is not None else "random"
        size = [f"clients={clients}", f"data.examples_per_client={examples}", "data.partition=iid"]
        rounds = [f"rounds={num_rounds + 2}", f"score_every={num_rounds + 3}"]
        config = compose([f"model={model}", f"model.weights={weights}", *size, *rounds, "threads=1"])
        config = replace(config, output=str(Path(folder) / "run"))
        with _grid(engine, client_app, clients) as grid, suppress(_EnoughRounds):
            run_federation(grid, config, observer)
    return observer.turn()


def _grid(engine: str, app: ClientApp, size: int) -> AbstractContextManager[Grid]:
    if engine == RAY:
        # As many clients at a time as there are workers on the other side, where clients train.
        cpus = usable_cpus() / NUM_WORKERS if app is client_app else 1
        return grid_on_ray(app, size, RayConfig(None, cpus, 0))
    if engine == WORKERS:
        return WorkerGrid("client.app:app", size, NUM_WORKERS)
    return nullcontext(LocalGrid(app, size))


class _EnoughRounds(Exception):  # noqa: N818 - no error
    """The rounds that are timed are over."""


class _Timing(SilentObserver):
    """Made before the grid; watches a warm-up round and `num_rounds` more, and then ends the run."""

    def __init__(self, num_rounds: int, ledger: Ledger | None = None) -> None:
        """ledger: emptied after each round, where no run folder does so."""
        self._num_rounds = num_rounds
        self._ledger = ledger
        self._loaded_bytes = resident_bytes()
        reset_peak()
        self._began = time.perf_counter()
        self._start_seconds = 0.0
        self._round_seconds: list[float] = []
        self._cpu_seconds = [0.0]
        self._peak_bytes = 0

    def stage_started(self, server_round: int, stage: str, num_clients: int) -> None:
        if (server_round, stage) == (1, "training"):
            self._start_seconds = time.perf_counter() - self._began

    def round_ended(self, report: RoundReport) -> None:
        if report.scores.clients or report.failure_causes:
            raise FedmaskError("simulate: a timed round was scored, or failed in part")
        if self._ledger is not None:
            self._ledger.take_lines()
        self._round_seconds.append(report.seconds)
        processes = _all_processes()
        times = [process.cpu_times() for process in processes]
        self._cpu_seconds.append(sum(each.user + each.system for each in times))
        self._peak_bytes = max(self._peak_bytes, sum(process.memory_full_info().pss for process in processes))
        if report.round > self._num_rounds:
            raise _EnoughRounds

    def turn(self) -> Turn:
        cpu_seconds = [after - before for before, after in pairwise(self._cpu_seconds)]
        return Turn(
            self._start_seconds,
            tuple(self._round_seconds[1:]),
            tuple(cpu_seconds[1:]),
            self._peak_bytes,
            peak_bytes() - self._loaded_bytes,
        )


def _all_processes() -> list[psutil.Process]:
    """This one and all that it, or Ray for it, has started."""
    this = psutil.Process()
    return [this, *this.children(recursive=True)]
