"""deploy.submit, deploy.flower, deploy.arguments: what a person gives, and what Flower's programs are told."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import flower
from deploy.arguments import port_number, read_arguments, told_in_one_line
from deploy.start_server import main as start_server
from deploy.submit import main, newest_status, overrides
from fedmask.errors import FedmaskError

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def test_a_new_run_has_the_clients_own_data_and_its_folder_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert overrides(["rounds=3", "output=run"]) == ["data=own", "rounds=3", f"output={tmp_path / 'run'}"]


def test_a_resumed_run_has_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert overrides(["resume=run"]) == [f"resume={tmp_path / 'run'}"]


def test_overrides_travel_in_one_string_of_flowers() -> None:
    assert flower.run(["a=1", "output=a folder"])[-1] == "hydra=\"a=1 'output=a folder'\""
    with pytest.raises(FedmaskError, match="write single ones"):
        flower.run(['a="1"'])


def test_the_newest_run_counts() -> None:
    runs = [
        {"pending-at": "2026-11-21T08:00:00Z", "status": "finished:failed"},
        {"pending-at": "2026-11-21T09:00:00Z", "status": "finished:completed"},
        {"pending-at": "2026-11-20T23:00:00Z", "status": "finished:stopped"},
    ]
    assert newest_status(json.dumps({"success": True, "runs": runs})) == "finished:completed"


@pytest.mark.parametrize("listed", ["", "no JSON", '{"runs": []}', '{"runs": [{}]}', "[]", '{"success": false}'])
def test_a_list_without_runs_says_nothing_of_them(listed: str) -> None:
    assert newest_status(listed) == "unknown"


def test_a_folder_without_a_server_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedmaskError, match="must be the folder of a server that"):
        main([f"folder={tmp_path}", "clients=3"])


def test_a_server_without_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedmaskError, match=r"authority\.crt: there is none; make it with make_keys\.py server"):
        start_server([f"folder={tmp_path}", f"keys={tmp_path}"])


def test_the_server_listens_on_its_own_machine_alone(tmp_path: Path) -> None:
    for name in ("authority.crt", "server.crt", "server.key"):
        (tmp_path / name).touch()
    command = flower.superlink(tmp_path, tmp_path, 8000)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert "--enable-supernode-auth" in command
    assert "--insecure" not in command


@pytest.mark.parametrize("port", ["0", "65536", "-1", "x", "8_000"])
def test_a_port_is_a_port(port: str) -> None:
    with pytest.raises(FedmaskError, match=f"port={port}: must be a whole number from 1 to 65535"):
        port_number({"port": port}, "port", 1)


def test_keys_are_checked() -> None:
    assert read_arguments(["a=1=2"], ("a", "b"), required=("a",)) == {"a": "1=2"}
    with pytest.raises(FedmaskError, match=r"^c=1: must be one of a=\.\.\., b=\.\.\."):
        read_arguments(["c=1"], ("a", "b"))
    with pytest.raises(FedmaskError, match=r"^missing: a="):
        read_arguments([], ("a", "b"), required=("a",))


def test_faults_are_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(arguments: list[str]) -> None:
        raise FedmaskError("what to do")

    assert told_in_one_line(fails, [], "usage") == 2
    assert told_in_one_line(fails, ["--help"], "usage") == 0
    assert capsys.readouterr() == ("usage\n", "what to do\n")


@pytest.mark.parametrize("script", ["start_client", "start_server", "open_gate", "submit", "register_client"])
def test_what_stays_running_beside_flower_loads_no_model_library(script: str) -> None:
    code = f"import sys; sys.path.insert(0, sys.argv[1]); import deploy.{script}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(SCRIPTS)], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
