"""The server of a deployment, until it is stopped:

    python scripts/deploy/start_server.py folder=DIR keys=DIR [port=8000]

keys: what `make_keys.py server` made. folder: its database, and how `submit.py` and `register_client.py` reach it. It
listens on this machine alone, because whoever reaches its port can run code on it and on all clients: `open_gate.py`
lets clients through, and nothing else.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import preparation  # noqa: F401

# isort: split
import os

from deploy import flower
from deploy.arguments import check_free, port_number, read_arguments, told_in_one_line
from fedmask.files import own_folder
from fedmask.runs.registry import FILE, VARIABLE

PORT = 8000


def main(arguments: list[str]) -> None:
    given = read_arguments(arguments, ("folder", "keys", "port"), required=("folder", "keys"), paths=("folder", "keys"))
    folder, keys, port = Path(given["folder"]), Path(given["keys"]), port_number(given, "port", PORT)
    command = flower.superlink(folder, keys, port)
    check_free("port", port)
    # Its database holds messages: updates in the clear.
    own_folder(folder, "name another folder with folder=DIR", tighten=True)
    flower.connect(folder, keys, port)
    registry = {VARIABLE: str((folder / FILE).resolve())}  # for the runs, which this process starts
    os.execve(command[0], command, flower.environment(flower.server_home(folder)) | registry)


if __name__ == "__main__":
    sys.exit(told_in_one_line(main, sys.argv[1:], __doc__))
