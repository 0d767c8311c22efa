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
from fedmask.errors import FedmaskError

COMPLETED = "finished:completed"
_FOLDERS = ("output=", "resume=")
_STARTED = re.compile(r"Successfully started run (\d+)")
_CAUSE = re.compile(r"\bfedmask\.errors\.\w+: (.+)")
"""The last line of what Flower shows of an error of ours."""


def main(arguments: list[str]) -> None:
    folders = [argument.removeprefix("folder=") for argument in arguments if argument.startswith("folder=")]
    if len(folders) != 1 or not (Path(folders[0]) / "flower" / "config.toml").is_file():
        raise FedmaskError("folder=DIR: must be the folder of a server that start_server.py has started")
    given = [argument for argument in arguments if not argument.startswith("folder=")]
    environment = flower.environment(flower.server_home(Path(folders[0])))
    run_id, cause = followed(flower.run(overrides(given)), environment)
    if run_id is None:
        raise FedmaskError("no run was begun; see above (does the server of this folder run? start_server.py)")
    # What `flwr run` says of itself is not what became of the run.
    listed = subprocess.run(flower.runs(), env=environment, capture_output=True, text=True, check=False)
    if (status := status_of(run_id, listed.stdout)) != COMPLETED:
        raise FedmaskError(
            cause or f"the run did not come to its end: {status}; a run folder with rounds is taken up by resume="
        )


def followed(command: Sequence[str], environment: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Show what `flwr run` says until its end; returns the id of the run that it began and what this project's part of
    it failed with, each None where there is none.

    An interrupt stops the run as well: by itself it would go on without whoever submitted it.
    """
    run_id = cause = None
    live = {**environment, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=live, stdout=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                if run_id is None and (found := _STARTED.search(line)):
                    run_id = found[1]
                if found := _CAUSE.search(line):
                    cause = found[1]
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
    full = [
        f"{argument.partition('=')[0]}={Path(argument.partition('=')[2]).resolve()}"
        if argument.startswith(_FOLDERS)
        else argument
        for argument in given
    ]
    is_resumed = any(argument.startswith("resume=") for argument in full)
    return full if is_resumed else ["data=own", *full]


if __name__ == "__main__":
    sys.exit(told_in_one_line(main, sys.argv[1:], __doc__))
