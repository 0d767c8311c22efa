"""Time and memory of pieces of work, measured so that both sides of a comparison meet the same machine.

Time: all works in turn, again and again, after one run of each that warms up; medians of wall time and of the CPU time
of all of the process's threads. Memory: one fresh process a work; the most that was resident in it while it worked.
"""

import gc
import multiprocessing
import multiprocessing.connection
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks.rows import Row
from fedmask.errors import FedmaskError

Result = TypeVar("Result")
Work = Callable[[], object]

MEGABYTE = 1e6
PAGE_BYTES = 4096
"""The least growth of memory that is told: less cannot be seen."""


@dataclass(frozen=True)
class Timing:
    """Of one work, over its timed runs."""

    wall_seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]

    @property
    def wall(self) -> float:
        """Median, seconds."""
        return statistics.median(self.wall_seconds)

    @property
    def cpu(self) -> float:
        """Median, seconds; of all threads together."""
        return statistics.median(self.cpu_seconds)


def alternate(works: Mapping[str, Work], repeats: int) -> dict[str, Timing]:
    """Time each work `repeats` times, in turn with the others, after one run of each that is not counted."""
    for work in works.values():
        work()
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    gc.collect()
    gc.freeze()  # so that collecting between the runs looks at what they left, and not at all that was imported
    try:
        for _ in range(repeats):
            for name, work in works.items():
                runs[name].append(_seconds(work))
    finally:
        gc.unfreeze()
    return {name: Timing(*map(tuple, zip(*taken, strict=True))) for name, taken in runs.items()}


def _seconds(work: Work) -> tuple[float, float]:
    """(wall, CPU) of one run; garbage of the work before is not its burden."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def time_rows(
    section: str, work: str, variant: str, rival: str, timings: Mapping[str, Timing], target: float | None = None
) -> Iterator[Row]:
    """Wall time, which the target is for, and CPU time beside it; variant and rival name the timings."""
    ours, theirs = timings[variant], timings[rival]
    yield Row(section, work, variant, rival, ours.wall, theirs.wall, "s", target)
    yield Row(section, work, variant, rival, ours.cpu, theirs.cpu, "s of CPU")


@dataclass(frozen=True)
class Memory:
    """Of one process, in bytes."""

    loaded_bytes: int
    """Resident when everything that the work needs was in place."""
    peak_bytes: int
    """The most that was resident while it worked."""

    @property
    def growth_bytes(self) -> int:
        """What the work itself took; at least a page."""
        return max(self.peak_bytes - self.loaded_bytes, PAGE_BYTES)


def memory_of(prepare: Callable[[], Work]) -> Memory:
    """Measure what `prepare()` returns, in a fresh process; `prepare` is importable there (a partial of a function).

    Raises FedmaskError where the process does not come to its end.
    """
    return in_fresh_process(_measure_memory, prepare)


def _measure_memory(prepare: Callable[[], Work]) -> Memory:
    work = prepare()
    gc.collect()
    loaded_bytes = resident_bytes()
    reset_peak()  # loading had a peak of its own
    work()
    return Memory(loaded_bytes, peak_bytes())


def resident_bytes() -> int:
    """Memory of this process now. Raises FedmaskError where there is no /proc."""
    return _status_bytes("VmRSS")


def reset_peak() -> None:
    """From here on `peak_bytes` counts what is resident now, and what comes."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most that was resident in this process."""
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    if not sys.platform.startswith("linux"):
        raise FedmaskError("memory is read from /proc: run the benchmark on Linux")
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line for line in lines if line.startswith(f"{field}:")).split()[1]
    return 1024 * int(kilobytes)


def in_fresh_process(function: Callable[..., Result], *arguments: object) -> Result:
    """`function(*arguments)` in a process that shares nothing with this one, not even its high-water mark.

    Raises FedmaskError where the function raises or the process dies.
    """
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sending, function, arguments))
    process.start()
    sending.close()
    try:
        succeeded, answer = receiving.recv()
    except EOFError:
        process.join()
        raise FedmaskError(f"a measuring process died with exit code {process.exitcode}; is memory short?") from None
    finally:
        receiving.close()
        process.join()
    if not succeeded:
        raise FedmaskError(answer)
    return answer  # type: ignore[no-any-return]


def _answer(
    sending: multiprocessing.connection.Connection, function: Callable[..., object], arguments: tuple[object, ...]
) -> None:
    try:
        answer = (True, function(*arguments))
    except FedmaskError as error:
        answer = (False, str(error))
    except Exception as error:
        traceback.print_exc()
        answer = (False, f"a measuring process failed: {type(error).__name__}: {error}")
    sending.send(answer)
