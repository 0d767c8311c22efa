"""Let a client take part, on the server while it runs:

    python scripts/deploy/register_client.py folder=DIR key=client.pub client_id=N [task=NAME] [max_examples=N]
                                             [replace=true]

folder: the server's. key: what `make_keys.py client` made on the client; nobody without the key beside it gets in.
client_id, task, max_examples: what the holder of the key may claim to be, to train on, and to have; a run refuses a
client that claims anything else. Given again for a key, they are what it may claim from the next run on.
replace: for a client that has a new key; the key that had its client_id may claim nothing any more.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import preparation  # noqa: F401

# isort: split
import subprocess
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from deploy import flower
from deploy.arguments import read_arguments, told_in_one_line
from deploy.make_keys import CLIENT_PUBLIC_KEY
from fedmask.errors import FedmaskError
from fedmask.runs.registry import FILE, Binding, bind, read_registry, unbind


def main(arguments: list[str]) -> None:
    known = ("folder", "key", "client_id", "task", "max_examples", "replace")
    given = read_arguments(arguments, known, required=known[:3], paths=known[:2])
    environment = flower.environment_of(given["folder"])
    key = Path(given["key"])
    if not key.is_file():
        raise FedmaskError(f"key={key}: there is no such file")
    if key.read_bytes().startswith(b"-----BEGIN"):
        raise FedmaskError(f"key={key}: a private key, which stays with its client; give its {CLIENT_PUBLIC_KEY}")
    binding = Binding(
        key.name, _whole(given, "client_id", 0), given.get("task"), _whole(given, "max_examples", 1, optional=True)
    )
    if (is_new_key := given.get("replace", "false")) not in ("true", "false"):
        raise FedmaskError(f"replace={is_new_key}: must be true or false")
    registry, public_key = Path(given["folder"]) / FILE, _as_flower_knows_it(key)
    is_known = public_key in read_registry(registry)
    # Before it can connect: a client that nothing binds could claim anything.
    bind(registry, public_key, binding, replace=is_new_key == "true")
    done = subprocess.run(flower.register(key), env=environment, capture_output=True, text=True, check=False)
    said = " ".join((done.stderr or done.stdout).split())
    if done.returncode != 0 and "already in use" not in said:
        if not is_known:
            unbind(registry, public_key)
        raise FedmaskError(f"key={key}: not registered: {said}")
    examples = "" if binding.max_examples is None else f", with at most {binding.max_examples} examples"
    task = "" if binding.task is None else f", for task {binding.task}"
    print(f"{key}: may take part as client {binding.client_id}{task}{examples}")


def _whole(given: Mapping[str, str], name: str, least: int, optional: bool = False) -> Any:
    text = given.get(name)
    if text is None and optional:
        return None
    if text is None or not text.isdecimal() or int(text) < least:
        raise FedmaskError(f"{name}={text}: must be a whole number of at least {least}")
    return int(text)


def _as_flower_knows_it(key: Path) -> str:
    """Raises FedmaskError where it is no public key of an elliptic curve."""
    try:
        public = serialization.load_ssh_public_key(key.read_bytes())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FedmaskError(
            f"key={key}: no public key; give what make_keys.py client made, its {CLIENT_PUBLIC_KEY}"
        ) from error
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise FedmaskError(f"key={key}: a key of another kind; give what make_keys.py client made")
    return public_key_to_bytes(public).decode()


if __name__ == "__main__":
    sys.exit(told_in_one_line(main, sys.argv[1:], __doc__))
