"""Let a client take part, on the server while it runs:

    python scripts/deploy/register_client.py folder=DIR key=client.pub

folder: the server's. key: what `make_keys.py client` made on the client; nobody without the key beside it gets in.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import preparation  # noqa: F401

# isort: split
import subprocess

from deploy import flower
from deploy.arguments import read_arguments, told_in_one_line
from fedmask.errors import FedmaskError


def main(arguments: list[str]) -> None:
    given = read_arguments(arguments, ("folder", "key"), required=("folder", "key"))
    command, home = flower.register(Path(given["key"])), flower.server_home(Path(given["folder"]))
    done = subprocess.run(command, env=flower.environment(home), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FedmaskError(f"key={given['key']}: not registered: {' '.join((done.stderr or done.stdout).split())}")
    print(f"{given['key']}: may take part")


if __name__ == "__main__":
    sys.exit(told_in_one_line(main, sys.argv[1:], __doc__))
