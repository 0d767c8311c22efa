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
from deploy.make_keys import CLIENT_PUBLIC_KEY
from fedmask.errors import FedmaskError


def main(arguments: list[str]) -> None:
    given = read_arguments(arguments, ("folder", "key"), required=("folder", "key"), paths=("folder", "key"))
    environment = flower.environment_of(given["folder"])
    key = Path(given["key"])
    if not key.is_file():
        raise FedmaskError(f"key={key}: there is no such file")
    if key.read_bytes().startswith(b"-----BEGIN"):
        raise FedmaskError(f"key={key}: a private key, which stays with its client; give its {CLIENT_PUBLIC_KEY}")
    done = subprocess.run(flower.register(key), env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FedmaskError(f"key={key}: not registered: {' '.join((done.stderr or done.stdout).split())}")
    print(f"{key}: may take part")


if __name__ == "__main__":
    sys.exit(told_in_one_line(main, sys.argv[1:], __doc__))
