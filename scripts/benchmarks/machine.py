"""Where and with what it was measured: what stands beside every figure."""

import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch

from fedmask.runs.commit import commit_of
from fedmask.runs.config import usable_cpus


def machine(root: Path, is_trial: bool) -> dict[str, Any]:
    """Facts of this machine and of the code in the clone `root`."""
    return {
        "cpu": _cpu_model(),
        "cores": usable_cpus(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "load_average": os.getloadavg()[0],
        "commit": commit_of(root),
        "date": date.today().isoformat(),
        "is_trial": is_trial,
    }


def machine_line(facts: dict[str, Any]) -> str:
    """The same for a person."""
    omp = facts["OMP_NUM_THREADS"] or "not set"
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_bytes'] / 2**30:.0f} GiB; {facts['system']}, Python "
        f"{facts['python']}, torch {facts['torch']}, {facts['threads']} threads (OMP_NUM_THREADS {omp}), load "
        f"{facts['load_average']:.1f} at the start; commit {facts['commit']}, {facts['date']}"
    )


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown CPU"
