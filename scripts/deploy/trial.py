"""A deployment that is measured: its processes, what counts around them, and what was found out."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deploy.counting import CountedGate, CountingProxy
from deploy.local_demo import Site, processes_of
from fedmask.runs.console import console

MEGABYTE = 1e6


@dataclass
class Figure:
    """One line of the table."""

    what: str
    value: str
    limit: str = ""
    met: bool | None = None


@dataclass
class Trial:
    """The deployment, and what counts around it."""

    site: Site
    gate: CountedGate
    """Of client 0; the others come through the server's own."""
    proxies: list[CountingProxy]
    """By client."""
    overrides: tuple[str, ...]
    output: Path
    figures: list[Figure] = field(default_factory=list)

    def tell(self, what: str, value: str, limit: str = "", met: bool | None = None) -> None:
        self.figures.append(Figure(what, value, limit, met))
        judged = "" if met is None else f" ({limit}: {'met' if met else 'MISSED'})"
        console.print(f"{what}: {value}{judged}", markup=False)


def memory_bytes(folder: Path) -> int:
    """Proportional set size of all processes whose Flower files lie in this folder."""
    return sum(_pss(number) for number in processes_of(folder))


def server_memory_bytes(site: Site) -> int:
    """Of the server's processes, a run's and the gate."""
    return memory_bytes(site.server) + _pss(site.processes["gate"].pid)


def _pss(process_id: int) -> int:
    try:
        lines = Path(f"/proc/{process_id}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


@contextmanager
def most_memory(site: Site) -> Iterator[list[int]]:
    """Bytes of the server, again and again while the block runs."""
    seen, over = [server_memory_bytes(site)], threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            seen.append(server_memory_bytes(site))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


def megabytes(num_bytes: float) -> str:
    return f"{num_bytes / MEGABYTE:,.0f} MB"


def lines_of(path: Path) -> list[dict[str, object]]:
    """Of a JSONL file; none where it is not there yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
