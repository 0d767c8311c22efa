"""A run on the clients of a deployment, on the server while it runs; ends with the run:

    python scripts/deploy/submit.py folder=DIR clients=3 [key=value ...]

folder: the server's. All else are the overrides of simulate.py; data=own is set, for clients have their own data. A
run that was stopped is taken up with resume=RUN.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from deploy import flower
from deploy.arguments import told_in_one_line
from fedmask.errors import FedmaskError

COMPLETED = "finished:completed"
_FOLDERS = ("output=", "resume=")


def main(arguments: list[str]) -> None:
    folders = [argument.removeprefix("folder=") for argument in arguments if argument.startswith("folder=")]
    if len(folders) != 1 or not (Path(folders[0]) / "flower" / "config.toml").is_file():
        raise FedmaskError("folder=DIR: must be the folder of a server that start_server.py has started")
    given = [argument for argument in arguments if not argument.startswith("folder=")]
    environment = flower.environment(flower.server_home(Path(folders[0])))
    subprocess.run(flower.run(overrides(given)), env=environment, check=False)
    # What `flwr run` says of itself is not what became of the run.
    listed = subprocess.run(flower.runs(), env=environment, capture_output=True, text=True, check=False)
    if (status := newest_status(listed.stdout)) != COMPLETED:
        raise FedmaskError(
            f"the run did not come to its end: {status}; a run folder with rounds is taken up by resume="
        )


def newest_status(listed: str) -> str:
    """Of the run that was begun last. listed: JSON, what `flwr ls` prints. "unknown" where it has none."""
    try:
        runs = json.loads(listed)["runs"]
        return str(max(runs, key=lambda run: str(run["pending-at"]))["status"])
    except (ValueError, KeyError, TypeError):
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
