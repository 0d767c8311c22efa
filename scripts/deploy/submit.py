"""A run on the clients of a deployment, on the server while it runs; ends with the run:

    python scripts/deploy/submit.py folder=DIR clients=3 [key=value ...]

folder: the server's. All else are the overrides of simulate.py; data=own is set, for clients have their own data. A
run that was stopped is taken up with resume=RUN. Ctrl-C stops the run.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import preparation  # noqa: F401

# isort: split
import json
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence

from deploy import flower
from deploy.arguments import told_in_one_line
from fedmask.errors import FedmaskError, cause_line
from fedmask.runs.command import own_arguments, usable_path
from server.compose import compose
from server.overrides import given_twice

COMPLETED = "finished:completed"
GONE = ("unregistered", "deleted")
"""Of a client that is told of and may take part no longer."""
_FOLDERS = ("output", "resume")
_STARTED = re.compile(r"Successfully started run (\d+)")
_WAITING = re.compile(r"waiting for (\d+) clients, (\d+) are connected")
_CAUSE = re.compile(r"\bfedmask\.errors\.\w+: (.+)")
"""The last line of what Flower shows of an error of ours."""


def main(arguments: list[str]) -> None:
    own, given = own_arguments(arguments, ("folder",), paths=("folder",))
    environment = flower.environment_of(own.get("folder", ""))
    num_clients = checked(overrides(given))
    for note in given_twice(given):
        print(f"note: {note}")
    say_who_is_there(num_clients, environment)
    run_id, cause = followed(flower.run(overrides(given)), environment)
    if run_id is None:
        raise FedmaskError("no run was begun; see above (does the server of this folder run? start_server.py)")
    # What `flwr run` says of itself is not what became of the run.
    listed = subprocess.run(flower.runs(), env=environment, capture_output=True, text=True, check=False)
    status = status_of(run_id, listed.stdout)
    if status != COMPLETED:
        raise FedmaskError(
            cause or f"the run did not come to its end: {status}; a run folder with rounds is taken up by resume="
        )


def checked(given: Sequence[str]) -> int:
    """How many clients the run takes. Raises FedmaskError for what is wrong with its configuration, all at once."""
    config = compose(given)
    if config.data.source != "own":
        raise FedmaskError(f"data={config.data.source}: deployed clients have data of their own; leave it out")
    if config.model.path is not None:
        raise FedmaskError(
            f"model.path={config.model.path}: each client says in its own file, as model_path, where its model is; "
            "leave it out"
        )
    return config.clients


def say_who_is_there(num_clients: int, environment: Mapping[str, str]) -> None:
    """One line where some have to be waited for. Raises FedmaskError where so many will not come."""
    listed = subprocess.run(flower.nodes(), env=environment, capture_output=True, text=True, check=False)
    statuses = statuses_of(listed.stdout)
    if statuses is None:
        said = cause_line(Exception(listed.stdout.replace("\\n", "\n") or listed.stderr))
        raise FedmaskError(f"no server of this folder answers; start it with start_server.py ({said})")
    if len(statuses) < num_clients:
        raise FedmaskError(
            f"clients={num_clients}: with this server {len(statuses)} are registered; register the others with "
            "register_client.py, or give fewer clients="
        )
    online = statuses.count("online")
    if online < num_clients:
        print(f"{online} of {num_clients} clients are connected; {how_to_go_on(online)}", flush=True)


def statuses_of(listed: str) -> list[str] | None:
    """Of the clients that are registered. listed: JSON, what `flwr supernode list` prints; None where it is not."""
    try:
        statuses = [str(node["status"]) for node in json.loads(listed)["nodes"]]
    except (ValueError, KeyError, TypeError):
        return None
    return [status for status in statuses if status not in GONE]


def how_to_go_on(num_connected: int) -> str:
    fewer = f", and clients={num_connected} takes those that are there" if num_connected else ""
    return f"the run waits for the others: start them with start_client.py; Ctrl-C stops the run{fewer}"


def followed(command: Sequence[str], environment: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Show what `flwr run` says until its end; returns the id of the run that it began and what this project's part of
    it failed with, each None where there is none.

    An interrupt stops the run as well: by itself it would go on without whoever submitted it.
    """
    run_id = cause = connected = None
    live = {**environment, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=live, stdout=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                started, failed, waiting = _STARTED.search(line), _CAUSE.search(line), _WAITING.search(line)
                run_id = started[1] if started and run_id is None else run_id
                cause = failed[1] if failed else cause
                if waiting and waiting[2] != connected:
                    connected = waiting[2]
                    print(how_to_go_on(int(connected)), flush=True)
        except KeyboardInterrupt:
            if run_id is not None:
                stop(run_id, environment)
            raise
    return run_id, cause


def stop(run_id: str, environment: Mapping[str, str]) -> None:
    """End a run, however often somebody presses Ctrl-C meanwhile."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        subprocess.run(flower.stop(run_id), env=environment, check=False)
    finally:
        signal.signal(signal.SIGINT, before)


def status_of(run_id: str, listed: str) -> str:
    """Of a run. listed: JSON, what `flwr ls` prints. "unknown" where it does not have it."""
    try:
        return str(next(run["status"] for run in json.loads(listed)["runs"] if str(run["run-id"]) == run_id))
    except (ValueError, KeyError, TypeError, StopIteration):
        return "unknown"


def overrides(given: Sequence[str]) -> list[str]:
    """What the server composes: folders in full, for it runs in another one; the clients' own data, in a new run."""
    full = [_in_full(argument) for argument in given]
    is_resumed = any(argument.startswith("resume=") for argument in full)
    return full if is_resumed else ["data=own", *full]


def _in_full(argument: str) -> str:
    key, _, path = argument.partition("=")
    return f"{key}={Path(usable_path(key, path)).resolve()}" if key in _FOLDERS and path else argument


if __name__ == "__main__":
    sys.exit(told_in_one_line(main, sys.argv[1:], __doc__))
