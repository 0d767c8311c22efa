"""A client of a deployment, until it is stopped:

    python scripts/deploy/start_client.py file=client.yaml [port=N]

The file says who it is, where its server and its data are, and what it will not do; what each key means stands in
fedmask/runs/client_file.py. port: of this machine, for the client's own processes; by default a free one.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from deploy import flower
from deploy.arguments import port_number, read_arguments, told_in_one_line
from fedmask.errors import FedmaskError
from fedmask.runs.client_file import read_client_file


def main(arguments: list[str]) -> None:
    given = read_arguments(arguments, ("file", "port"), required=("file",))
    file = Path(given["file"])
    own = read_client_file(file)
    for needed in (own.authority, own.key):
        if not Path(needed).is_file():
            raise FedmaskError(f"{file}: {needed}: there is no such file")
    Path(own.folder).mkdir(parents=True, exist_ok=True, mode=0o700)
    command = flower.supernode(file, own, port_number(given, "port", flower.free_port()))
    os.execve(command[0], command, flower.client_environment(own))


if __name__ == "__main__":
    sys.exit(told_in_one_line(main, sys.argv[1:], __doc__))
