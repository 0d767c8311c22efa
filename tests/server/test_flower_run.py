"""`flwr run .`: what Flower bundles of this project, and that the bundle's run is the run of one process.

The test starts the SuperLink that `flwr run` would start, in a Flower home of its own, and ends whatever has that home.
"""

import io
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.cli.build import build_fab_from_disk

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAMS = Path(sys.executable).parent

Run = Any


def test_the_bundle_holds_the_code_and_its_configuration_and_nothing_else() -> None:
    names = zipfile.ZipFile(io.BytesIO(build_fab_from_disk(ROOT))).namelist()
    sources = [path for folder in ("fedmask", "server", "client") for path in (ROOT / folder).rglob("*.py")]
    files = [*sources, *(ROOT / "conf").rglob("*.yaml"), ROOT / "pyproject.toml"]
    assert sorted(names) == sorted([*(path.relative_to(ROOT).as_posix() for path in files), ".info/CONTENT"])


@pytest.fixture
def flower(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a user with a Flower home of its own, and a SuperLink that answers there."""
    with socket.socket() as first, socket.socket() as second:
        for free in (first, second):
            free.bind(("127.0.0.1", 0))
        ports = [str(free.getsockname()[1]) for free in (first, second)]
    environment = os.environ | {
        "FLWR_HOME": str(tmp_path / "flower"),
        "PATH": f"{PROGRAMS}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": ports[0],
        "FLWR_LOCAL_CONTROL_API_PORT": ports[1],
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FEDMASK_STATE_FOLDER": str(tmp_path / "clients"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [str(PROGRAMS / "flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"]
    command += ["--host", "127.0.0.1", "--port", ports[0], "--control-api-address", f"127.0.0.1:{ports[1]}"]
    superlink = subprocess.Popen(
        [*command, "--database", str(tmp_path / "state.db")],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _await_answer(f"http://127.0.0.1:{ports[0]}/health", seconds=180)
        yield environment
    finally:
        for number in _processes_with(f"FLWR_HOME={tmp_path / 'flower'}"):
            os.kill(number, signal.SIGKILL)
        superlink.wait()


def _await_answer(url: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"{url} has not answered for {seconds} s")


def _processes_with(setting: str) -> list[int]:
    """Every process whose environment has this setting: the SuperLink, what it started, and their children."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if setting.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # gone, or not ours
            continue
    return found


def flwr_run(environment: dict[str, str], *overrides: str) -> str:
    """What `flwr run` prints until the run has ended."""
    command = [str(PROGRAMS / "flwr"), "run", str(ROOT), "local", "--stream", "--federation-config"]
    command += ["num-supernodes=4 client-resources-num-cpus=1 init-args-num-cpus=2"]
    command += ["--run-config", f'hydra="{shlex.join(overrides)}"']
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_flwr_run_gives_the_run_of_one_process(
    flower: dict[str, str], overrides: list[str], plain_run: Run, tmp_path: Path
) -> None:
    # The string stands in double quotes of Flower's, so that none can stand inside.
    printed = flwr_run(flower, *(override.replace('"', "") for override in overrides), f"output={tmp_path / 'run'}")
    run = type(plain_run)(plain_run.config, tmp_path / "run", {}, plain_run.watched)
    assert run.adapter == plain_run.adapter, printed
    # Messages are shorter there, and a worker may lack what another has.
    apart = dict.fromkeys(("seconds", "payload_bytes", "wire_bytes"), 0)
    alike = [[line | apart for line in each.rounds] for each in (run, plain_run)]
    assert alike[0] == alike[1]
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["score"] == plain_run.summary["score"]
    heads = sorted((tmp_path / "clients" / summary["run_id"]).glob("*/head.safetensors"))
    assert [head.read_bytes() for head in heads] == plain_run.heads
    assert "federated, round 2/2: 4 clients, 0 failures" in printed
    assert f"run folder: {tmp_path / 'run'}" in printed
