"""A training step of MiniLM's geometry with a thread a core, beside one thread and beside threads that spin while they
wait, on a machine left alone and on one whose cores are all taken by other processes.

How threads wait is read when torch is imported, so each side is a process of its own; the sides take turns, so that
what else the machine does meets all of them. A process takes steps until it has enough, or for MOST_SECONDS.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.rows import Row, Settings
from fedmask.runs.config import usable_cpus

OURS, ONE, SPINNING = "a thread a core", "one thread", "a thread a core, waiting as torch's do by default"
TORCHS_OWN = {"GOMP_SPINCOUNT": "300000"}
"""What libgomp does where nothing is said: turns of a loop before a waiting thread gives its core back."""
LEAST_OF_ONE_THREAD = 1 / 1.5
"""What "never much worse than one thread" means: at most 1.5 times its time."""
STEPS, PROCESSES, MOST_SECONDS = 15, 3, 60.0
_SCRIPTS = Path(__file__).resolve().parent.parent
_STEP = "from benchmarks.threads import print_seconds; print_seconds({threads}, {geometry!r}, {steps})"
_BUSY = "while True: pass"


def rows(settings: Settings) -> Iterator[Row]:
    cores = usable_cpus()
    for others in (0,) if settings.is_trial else (0, cores, 2 * cores):
        beside = f"beside {others} busy processes on {cores} cores" if others else f"on {cores} cores"
        work = f"a step, 8 x 32 tokens, {beside}"
        settings.say(work)
        with _busy(others):
            seconds = _in_turn(settings, cores)
        target = LEAST_OF_ONE_THREAD
        yield Row("threads", work, OURS, ONE, seconds[OURS], seconds[ONE], "s", target)
        yield Row("threads", work, OURS, SPINNING, seconds[OURS], seconds[SPINNING], "s")


@contextmanager
def _busy(number: int) -> Iterator[None]:
    """So many processes that do nothing but take a core each, while the block runs."""
    processes = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _in_turn(settings: Settings, cores: int) -> dict[str, float]:
    """By side the median over its processes of a step's seconds."""
    sides: dict[str, tuple[int, dict[str, str]]] = {OURS: (cores, {}), ONE: (1, {}), SPINNING: (cores, TORCHS_OWN)}
    taken: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(1 if settings.is_trial else PROCESSES):
        for side, (threads, waiting) in sides.items():
            taken[side].append(_seconds_a_step(threads, waiting, settings.is_trial))
    return {side: statistics.median(seconds) for side, seconds in taken.items()}


def _seconds_a_step(threads: int, waiting: dict[str, str], is_trial: bool) -> float:
    """waiting: variables that say how threads wait; fedmask's own way where there are none."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    environment = kept | waiting | {"PYTHONPATH": os.pathsep.join([str(_SCRIPTS), str(_SCRIPTS.parent)])}
    code = _STEP.format(threads=threads, geometry="tiny" if is_trial else "minilm", steps=1 if is_trial else STEPS)
    line = [sys.executable, "-c", code]
    return float(subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stdout.split()[-1])


def print_seconds(threads: int, geometry: str, steps: int) -> None:
    """In a process of its own: the median wall seconds of a step, forward and backward."""
    import torch

    from benchmarks.encoders import random_encoder, random_inputs
    from fedmask.masks import select
    from fedmask.training.delta import SelectedEntries
    from fedmask.training.gradient import SelectedGradient
    from fedmask.training.text import mean_pooled

    torch.set_num_threads(threads)
    encoder = random_encoder(geometry)
    inputs = random_inputs(encoder, 8, 32)
    taken: list[float] = []
    with SelectedGradient(encoder, SelectedEntries(encoder, select(encoder))) as gradient:
        while len(taken) <= steps and sum(taken) < MOST_SECONDS:
            began = time.perf_counter()
            mean_pooled(encoder, inputs).square().mean().backward()  # type: ignore[no-untyped-call]
            gradient.take()
            taken.append(time.perf_counter() - began)
    print(statistics.median(taken[1:] or taken))  # the first one warms up
