"""What the operator of a server has registered: by a client's public key, what it may claim.

In: bindings that `register_client.py` adds. Out: one JSON file, which the server's part of a run reads. A client's word
alone is no witness: with its own key it can name any client's id, any task and any number of examples.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedmask.errors import FedmaskError
from fedmask.files import write_atomically

FILE = "clients.json"
"""In the server's folder."""

VARIABLE = "FEDMASK_REGISTRY"
"""The environment variable by which start_server.py tells the server's processes where the file is."""


@dataclass(frozen=True)
class Binding:
    """What the holder of one key may claim."""

    key_name: str
    """The name of the file that the key was registered from, for people."""
    client_id: int
    task: str | None = None
    """None: any."""
    max_examples: int | None = None
    """None: any number."""


def read_registry(path: Path) -> dict[str, Binding]:
    """By public key, as PEM text; empty where nobody was registered yet. Raises FedmaskError for a damaged file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {key: Binding(**facts) for key, facts in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FedmaskError(
            f"{path}: not what register_client.py writes ({type(error).__name__}); register the clients again"
        ) from error


def bind(path: Path, public_key: str, binding: Binding, replace: bool = False) -> None:
    """Add a key to the file, or change what its holder may claim. replace: whether a key that has its id loses it.

    Raises FedmaskError where another has its id.
    """
    registry = read_registry(path)
    others = [key for key, other in registry.items() if key != public_key and other.client_id == binding.client_id]
    if others and not replace:
        raise FedmaskError(
            f"client_id={binding.client_id}: is registered for another key, {registry[others[0]].key_name}; give every "
            "client an id of its own, or say replace=true where this client has a new key"
        )
    _write(path, {key: each for key, each in registry.items() if key not in others} | {public_key: binding})


def unbind(path: Path, public_key: str) -> None:
    """Take a key out again."""
    _write(path, {key: binding for key, binding in read_registry(path).items() if key != public_key})


def _write(path: Path, registry: Mapping[str, Binding]) -> None:
    content: dict[str, Any] = {key: asdict(binding) for key, binding in registry.items()}
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
