"""deploy.submit, deploy.flower, deploy.arguments: what a person gives, and what Flower's programs are told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import flower
from deploy.arguments import port_number, read_arguments, told_in_one_line
from deploy.start_server import main as start_server
from deploy.submit import followed, main, overrides, status_of
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
    for override in ('a="1"', "a='1'", "a=1\\", "a=1\n"):
        with pytest.raises(FedmaskError, match="no quote in them, no backslash"):
            flower.run([override])


def test_the_run_that_was_begun_counts() -> None:
    runs = [{"run-id": "7", "status": "finished:failed"}, {"run-id": 8, "status": "finished:completed"}]
    listed = json.dumps({"success": True, "runs": runs})
    assert [status_of(run_id, listed) for run_id in ("7", "8", "9")] == [
        "finished:failed",
        "finished:completed",
        "unknown",
    ]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Using SuperLink\nSuccessfully started run 4711\nlog", ("4711", None)),
        ("Successfully started run 8\nTraceback:\n  File\nfedmask.errors.FedmaskError: no rows", ("8", "no rows")),
        ("no", (None, None)),
    ],
)
def test_what_flower_says_is_shown_and_names_the_run_and_its_fault(
    said: str, told: tuple[str | None, str | None], capfd: pytest.CaptureFixture[str]
) -> None:
    assert followed([sys.executable, "-c", f"print({said!r}); raise SystemExit(1)"], dict(os.environ)) == told
    assert capfd.readouterr().out == said + "\n"


def test_an_interrupt_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    stopped = tmp_path / "stopped"
    stop = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"
    monkeypatch.setattr(flower, "stop", lambda run_id: [sys.executable, "-c", stop, str(stopped), run_id])
    monkeypatch.setattr("builtins.print", interrupted)
    with pytest.raises(KeyboardInterrupt):
        followed([sys.executable, "-c", "print('Successfully started run 4711')"], dict(os.environ))
    assert not stopped.exists()  # it was interrupted before the id was known
    shown = []
    monkeypatch.setattr("builtins.print", lambda line, **_: interrupted() if shown else shown.append(line))
    with pytest.raises(KeyboardInterrupt):
        followed([sys.executable, "-c", "print('Successfully started run 4711'); print('log')"], dict(os.environ))
    assert stopped.read_text() == "4711"


@pytest.mark.parametrize("listed", ["", "no JSON", '{"runs": []}', '{"runs": [{}]}', "[]", '{"success": false}'])
def test_a_list_without_runs_says_nothing_of_them(listed: str) -> None:
    assert status_of("7", listed) == "unknown"


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
