"""deploy.start_client: a process that is started again, and ends with the one that started it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.start_client import main
from fedmask.errors import FedmaskError

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
KEEPER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from deploy import start_client
start_client.PAUSE_SECONDS = 0.01
program = "import os, sys, time; print(os.getpid(), file=open(sys.argv[1], 'a')); time.sleep(float(sys.argv[2]))"
start_client.keep_running([sys.executable, "-c", program, sys.argv[2], sys.argv[3]], dict(os.environ))
"""


def started(log: Path, keeper: "subprocess.Popen[bytes]", at_least: int) -> list[int]:
    """The ids of the processes it has started, once there are so many."""
    while True:
        ids = [int(line) for line in log.read_text().split()] if log.exists() else []
        if len(ids) >= at_least:
            return ids
        assert keeper.poll() is None
        time.sleep(0.02)


def keep(log: Path, seconds: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", KEEPER, str(SCRIPTS), str(log), seconds], stderr=subprocess.DEVNULL)


def test_a_process_that_ends_is_started_again(tmp_path: Path) -> None:
    keeper = keep(tmp_path / "log", "0")
    assert len(set(started(tmp_path / "log", keeper, 3))) >= 3
    keeper.send_signal(signal.SIGTERM)
    assert keeper.wait() == 0


def test_it_ends_with_whoever_keeps_it_running(tmp_path: Path) -> None:
    keeper = keep(tmp_path / "log", "600")
    (process,) = started(tmp_path / "log", keeper, 1)
    keeper.send_signal(signal.SIGTERM)
    assert keeper.wait() == 0
    assert not Path(f"/proc/{process}").exists()


def test_a_key_that_is_not_there_is_told_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "client.yaml").write_text(
        "{client_id: 0, superlink: 'host:1', authority: authority.crt, key: client.key, folder: state, device: cpu, "
        "threads: null, model_path: null, data: {source: demo, root: null, task: topic}, "
        "limits: {rounds: 1, steps: 1, batch_size: 1, memory_bytes: null}}"
    )
    with pytest.raises(FedmaskError, match=r"authority\.crt: there is no such file"):
        main([f"file={tmp_path / 'client.yaml'}"])
    assert not (tmp_path / "state").exists()


def supernode(folder: Path, does: str) -> "subprocess.Popen[str]":
    """scripts/deploy/supernode.py with a stand-in for Flower's program, which does this."""
    cli = folder / "flwr" / "supernode" / "cli"
    cli.mkdir(parents=True)
    for package in (cli.parent, cli.parent.parent):
        (package / "__init__.py").touch()
    (cli / "__init__.py").write_text(f"import threading, time\ndef flower_supernode():\n    {does}\n")
    return subprocess.Popen(
        [sys.executable, str(SCRIPTS / "deploy" / "supernode.py")],
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_supernode_that_leaves_its_loop_ends_though_a_thread_of_it_goes_on(tmp_path: Path) -> None:
    with supernode(tmp_path, "threading.Thread(target=time.sleep, args=(600,)).start(); print('left')") as process:
        assert process.wait(300) == 1
        assert process.stdout is not None
        assert process.stdout.read() == "left\n"


def test_a_supernode_ends_with_whoever_started_it(tmp_path: Path) -> None:
    with supernode(tmp_path, "print('begun', flush=True); time.sleep(600)") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "begun\n"
        process.stdin.close()
        assert process.wait(300) == 1
