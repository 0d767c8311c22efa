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


def bind(path: Path, public_key: str, binding: Binding) -> None:
    """Add a key to the file, or change what its holder may claim. Raises FedmaskError where another has its id."""
    registry: Mapping[str, Binding] = read_registry(path)
    for key, other in registry.items():
        if key != public_key and other.client_id == binding.client_id:
            raise FedmaskError(
                f"client_id={binding.client_id}: is registered for {other.key_name}; give every client an id of its own"
            )
    changed: dict[str, Any] = {key: asdict(each) for key, each in {**registry, public_key: binding}.items()}
    write_atomically(path, (json.dumps(changed, indent=2) + "\n").encode())
