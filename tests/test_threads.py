"""How torch's threads wait: libgomp says itself what it read when torch loaded it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def spin_count(module: str, **variables: str) -> str:
    """What libgomp prints of the turns that a waiting thread makes, in a new process that imports `module`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    finished = subprocess.run(
        [sys.executable, "-c", f"import {module}, torch"],
        env=kept | {"OMP_DISPLAY_ENV": "VERBOSE"} | variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"GOMP_SPINCOUNT = '(\d+)'", finished.stderr)
    if found is None:
        pytest.skip("this torch brings another OpenMP than libgomp")
    return found[1]


@pytest.mark.parametrize("module", ["fedmask", "server.app", "client.app"])
def test_waiting_threads_do_not_spin(module: str) -> None:
    assert spin_count(module) == "0"


def test_a_policy_that_is_set_stays() -> None:
    assert int(spin_count("fedmask", OMP_WAIT_POLICY="active")) > 0
