"""deploy.submit, deploy.flower, deploy.arguments: what a person gives, and what Flower's programs are told."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy import flower
from deploy.arguments import check_free, port_number, read_arguments, told_in_one_line
from deploy.local_demo import main as local_demo
from deploy.make_keys import make_client_key
from deploy.open_gate import main as open_gate
from deploy.register_client import main as register
from deploy.start_client import main as start_client
from deploy.start_server import main as start_server
from deploy.submit import checked, followed, main, overrides, status_of, statuses_of
from fedmask.errors import ConfigError, FedmaskError

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def test_a_new_run_has_the_clients_own_data_and_its_folder_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert overrides(["rounds=3", "output=run"]) == ["data=own", "rounds=3", f"output={tmp_path / 'run'}"]


def test_a_resumed_run_has_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert overrides(["resume=run"]) == [f"resume={tmp_path / 'run'}"]


def test_folders_of_a_run_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert overrides(["output=~/run"]) == ["data=own", f"output={tmp_path.resolve()}/run"]
    assert overrides(["resume=~/run"]) == [f"resume={tmp_path.resolve()}/run"]
    with pytest.raises(FedmaskError, match=r"^output=~nobody-has-this: there is no home folder"):
        overrides(["output=~nobody-has-this"])


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


# ---- before a run is begun -------------------------------------------------------------------------------------------


def test_a_configuration_is_checked_where_it_is_typed() -> None:
    assert checked(["data=own", "clients=7"]) == 7
    with pytest.raises(ConfigError) as caught:
        checked(["data=own", "lr=3", "client=2"])
    assert caught.value.faults == (
        "lr=3: no such key; did you mean client.learning_rate?",
        "client=2: must be default; write clients=2",
    )
    with pytest.raises(FedmaskError, match=r"^data=demo: deployed clients have data of their own; leave it out$"):
        checked(["data=own", "data=demo"])
    with pytest.raises(FedmaskError, match=r"^model\.path=bert: each client says in its own file, as model_path"):
        checked(["data=own", "model.path=bert"])


def listed(*statuses: str) -> str:
    return json.dumps({"success": True, "nodes": [{"node-id": "1", "status": status} for status in statuses]})


def test_clients_that_may_take_part_no_longer_are_not_counted() -> None:
    assert statuses_of(listed("online", "unregistered", "registered", "offline")) == ["online", "registered", "offline"]
    assert statuses_of(listed()) == []
    for nothing in ("", "[]", "{}", '{"success": false, "error-message": "no"}', '{"nodes": [{}]}'):
        assert statuses_of(nothing) is None


Submitted = Callable[..., tuple[int, str, str]]


@pytest.fixture
def submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Submitted:
    """submit.py with stand-ins for Flower's programs: exit code, what it printed, what it told of a fault."""
    (tmp_path / "flower").mkdir()
    (tmp_path / "flower" / "config.toml").touch()

    def printing(text: str) -> list[str]:
        return [sys.executable, "-c", f"print({text!r})"]

    def submit(nodes: str, said: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(flower, "nodes", lambda: printing(nodes))
        monkeypatch.setattr(flower, "run", lambda overrides: printing(f"Successfully started run 7\n{said}"))
        runs = json.dumps({"runs": [{"run-id": 7, "status": "finished:completed"}]})
        monkeypatch.setattr(flower, "runs", lambda: printing(runs))
        code = told_in_one_line(main, [f"folder={tmp_path}", *arguments], None)
        return code, *capfd.readouterr()

    return submit


WAITS = "the run waits for the others: start them with start_client.py; Ctrl-C stops the run"


def test_more_clients_than_are_registered_are_one_line(submitted: Submitted) -> None:
    assert submitted(listed("online"), "", "clients=2") == (
        2,
        "",
        "clients=2: with this server 1 are registered; register the others with register_client.py, or give fewer "
        "clients=\n",
    )


def test_a_server_that_does_not_answer_is_one_line(submitted: Submitted) -> None:
    said = json.dumps({"success": False, "error-message": "Using it\nThe connection is unavailable."})
    code, out, err = submitted(said, "", "clients=2")
    assert (code, out) == (2, "")
    assert err.startswith("no server of this folder answers; start it with start_server.py (The connection is unavai")
    assert err.count("\n") == 1


def test_whom_a_run_waits_for_is_said_at_once_and_whenever_it_changes(submitted: Submitted) -> None:
    waiting = [f"waiting for 3 clients, {connected} are connected" for connected in (0, 0, 2, 2)]
    code, out, err = submitted(listed("registered", "offline", "online"), "\n".join(waiting), "clients=3", "clients=3")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"1 of 3 clients are connected; {WAITS}, and clients=1 takes those that are there",
        "Successfully started run 7",
        waiting[0],
        WAITS,
        waiting[1],
        waiting[2],
        f"{WAITS}, and clients=2 takes those that are there",
        waiting[3],
    ]


def test_where_all_are_there_nothing_is_said_but_what_was_given_twice(submitted: Submitted) -> None:
    code, out, err = submitted(listed("online", "online"), "done", "clients=3", "clients=2")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "note: clients is given 2 times; the last counts: clients=2",
        "Successfully started run 7",
        "done",
    ]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_is_taken_is_told_before_anything_is_written(tmp_path: Path, host: str) -> None:
    for name in ("authority.crt", "server.crt", "server.key"):
        (tmp_path / name).touch()
    with socket.create_server((host, 0)) as other:
        port = other.getsockname()[1]
        taken = (
            rf"^port={port}: another process of this machine listens on 127\.0\.0\.1:{port} already; end it, or name"
        )
        with pytest.raises(FedmaskError, match=taken):
            start_server([f"folder={tmp_path / 'server'}", f"keys={tmp_path}", f"port={port}"])
        with pytest.raises(FedmaskError, match=taken):
            open_gate([f"folder={tmp_path}", f"keys={tmp_path}", f"port={port}", "host=127.0.0.1"])
    assert not (tmp_path / "server").exists()
    check_free("port", port)  # what has ended holds none


def test_a_host_that_is_not_this_machines_is_told(tmp_path: Path) -> None:
    with pytest.raises(FedmaskError, match=r"^host=192\.0\.2\.1: nothing can listen there \(Cannot assign"):
        check_free("port", flower.free_port(), "192.0.2.1")


def test_what_is_no_public_key_is_not_registered(tmp_path: Path) -> None:
    make_client_key(tmp_path / "me")
    (tmp_path / "flower").mkdir()
    (tmp_path / "flower" / "config.toml").touch()
    with pytest.raises(FedmaskError, match=r"client\.key: a private key, which stays with its client; give its client"):
        register([f"folder={tmp_path}", f"key={tmp_path}/me/client.key", "client_id=0"])
    with pytest.raises(FedmaskError, match=r"gone\.pub: there is no such file$"):
        register([f"folder={tmp_path}", f"key={tmp_path}/gone.pub", "client_id=0"])
    with pytest.raises(FedmaskError, match=r"must be the folder of a server that start_server\.py has started"):
        register([f"folder={tmp_path}/me", f"key={tmp_path}/me/client.pub", "client_id=0"])
    with pytest.raises(FedmaskError, match=r"^client_id=x: must be a whole number of at least 0$"):
        register([f"folder={tmp_path}", f"key={tmp_path}/me/client.pub", "client_id=x"])
    (tmp_path / "other.pub").write_text("ssh-rsa AAAA")
    with pytest.raises(FedmaskError, match=r"other\.pub: no public key; give what make_keys\.py client made"):
        register([f"folder={tmp_path}", f"key={tmp_path}/other.pub", "client_id=0"])
    assert not (tmp_path / "clients.json").exists()


@pytest.mark.parametrize("program", [start_server, open_gate, register, start_client, local_demo, main])
def test_a_program_without_arguments_says_what_it_needs(program: Callable[[list[str]], None]) -> None:
    with pytest.raises(FedmaskError, match=r"^(missing: \w+=|give output=DIR|folder=DIR: must be)"):
        program([])


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
