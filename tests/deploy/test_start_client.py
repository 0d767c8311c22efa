"""deploy.start_client: a process that is started again, and ends with the one that started it."""

import os
import signal
import socket
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


def client_file(folder: Path, data: str, more: str = "") -> Path:
    """client.yaml beside its key and certificate; the server is nowhere."""
    (folder / "authority.crt").touch()
    (folder / "client.key").touch()
    (folder / "client.yaml").write_text(
        "client_id: 0\nsuperlink: 127.0.0.1:9\nauthority: authority.crt\nkey: client.key\nfolder: state\ndevice: cpu\n"
        f"data: {data}\nlimits: {{rounds: 1, steps: 1, batch_size: 1, memory_bytes: null}}\n{more}\n"
    )
    return folder / "client.yaml"


@pytest.mark.parametrize(
    ("data", "more", "fault"),
    [
        ("{source: demo, task: topick}", "", "unknown task 'topick' in the demo; there are: film_reviews, "),
        ("{source: tsv, root: gone, task: a}", "", "data.root={folder}/gone: no such folder"),
        ("{source: tsv, root: ., task: a}", "", "unknown task 'a' in {folder}; there are: "),
        ("{source: python, root: ., task: 'gone:a'}", "", "{folder}/gone.py: no such file; {folder}"),
        ("{source: demo, task: topic}", "model_path: gone", "model_path={folder}/gone: there is no model's folder"),
        ("{source: demo, task: topic}", "model_path: .", "model_path={folder}: there is no model's folder"),
        (
            "{source: demo, task: 2024}",
            "",
            "data.task=2024: must be the name of its task; as a text it stands in quotes",
        ),
    ],
)
def test_what_the_file_names_and_is_not_there_is_told_before_anything_starts(
    data: str, more: str, fault: str, tmp_path: Path
) -> None:
    file = client_file(tmp_path, data, more)
    command = [sys.executable, str(SCRIPTS / "deploy" / "start_client.py"), f"file={file}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{file}: {fault.format(folder=tmp_path)}")
    assert not (tmp_path / "state").exists()


def test_a_fault_of_the_reader_itself_keeps_its_traceback(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from deploy import start_client\n"
        "if __name__ == '__main__': start_client.data_fault(None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(SCRIPTS)], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith("AttributeError: ")


def test_sound_data_is_read_and_leaves_nothing_in_the_process_that_stays(tmp_path: Path) -> None:
    file = client_file(tmp_path, "{source: demo, task: topic}")
    (tmp_path / "check.py").write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from deploy import start_client\n"
        "if __name__ == '__main__':\n"
        "    start_client.check(Path(sys.argv[2]), start_client.read_client_file(Path(sys.argv[2])))\n"
        "    print([name for name in ('datasets', 'numpy', 'torch') if name in sys.modules])\n"
    )
    command = [sys.executable, str(tmp_path / "check.py"), str(SCRIPTS), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    file = client_file(tmp_path, "{source: demo, task: topic}")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(FedmaskError, match=rf"^port={port}: another process of this machine listens"):
            main([f"file={file}", f"port={port}"])


def test_a_file_begins_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FedmaskError, match=rf"^{tmp_path}/client\.yaml: there is no such file$"):
        main(["file=~/client.yaml"])


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
