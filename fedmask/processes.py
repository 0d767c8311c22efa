"""Processes: that end when the one that started them does, however it ends; how long this one has been there; and how
much memory there is for it."""

import multiprocessing
import multiprocessing.connection
import os
import threading
from contextlib import suppress
from pathlib import Path


def end_with_parent() -> None:
    """Called in a process of `multiprocessing`: a killed parent must leave none behind that still writes its files."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def seconds_since_start() -> float:
    """Wall time since this process was forked or started, to 10 ms. Raises OSError where there is no /proc."""
    after_its_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started_seconds = int(after_its_name[19]) / os.sysconf("SC_CLK_TCK")  # the 22nd field; the first two are cut off
    return float(Path("/proc/uptime").read_text().split()[0]) - started_seconds


def machine_memory_bytes() -> int:
    """Of this machine, or of the container that this process is in, where that has a limit."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # there is none, or it says "max"
            found.append(int(Path(limit).read_text()))
    return min(found)
