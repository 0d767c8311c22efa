"""What a client is told once, in round 0: the mask, and how to train with it.

Bytes:  length of settings u32 | settings, JSON | mask , where the settings say whether the mask is a recipe to rebuild
it from the base weights (about 300 bytes), the coded indices themselves, or absent (nothing but heads is trained).

Bytes may come from anywhere: every value is one that the configuration allows, and clients, threads, rank and indices
are bounded here. How large a model `geometry` may describe, and how many threads there are, depends on the client's
machine and own file: `client.process` and `fedmask.runs.client_file` bound them.
"""

import dataclasses
import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedmask.errors import FedmaskError, RejectedMessage
from fedmask.masks import Mask, MaskRecipe
from fedmask.runs.config import KEYS, ClientConfig, CodecConfig, DataConfig, ModelConfig

MAX_CLIENTS, MAX_THREADS, MAX_RANK = 10**6, 2**10, 2**16
"""Above these no federation, process or network of HiWi's is meant."""

_LENGTH = struct.Struct("<I")
_RUN_ID = re.compile("[0-9a-f]{16}")
_DIGESTS = {"run_digest": re.compile("([0-9a-f]{16})?"), "inputs_digest": re.compile("([0-9a-f]{64})?")}


@dataclass(frozen=True)
class Settings:
    """The part of a run's configuration that clients need."""

    model: ModelConfig
    data: DataConfig
    client: ClientConfig
    codec: CodecConfig
    clients: int
    rank: int
    """Width of HiWi's networks; 0: the delta is trained directly."""
    baseline: str
    seed: int
    device: str
    """Where the client's model computes."""
    threads: int
    run_id: str
    """16 hex digits, drawn once a run: names a folder of this run's own on a client. As long for every run."""
    run_digest: str = ""
    """16 hex digits of what makes the run what it is: equal for two runs that must give the same bits. Heads and
    adapters carry it. Empty where it is not told."""
    inputs_digest: str = ""
    """`BaseModel.inputs_digest` of the server's base model, which every client's has to equal. Empty as above."""

    @property
    def exchanges_delta(self) -> bool:
        """Whether the delta travels: in every run but the baselines."""
        return self.baseline == "none"

    @property
    def trains_delta(self) -> bool:
        return self.baseline != "frozen"

    @property
    def keeps_own_model(self) -> bool:
        """Whether a part of a client's model never travels: its own head, or its own delta."""
        return not self.exchanges_delta or self.client.head != "shared"

    @property
    def keeps_residuals(self) -> bool:
        """Whether a client adds to its next update what was left out of the last."""
        return self.exchanges_delta and self.codec.keeps_residuals

    @property
    def keeps_state(self) -> bool:
        """Whether a client goes on from something that it keeps."""
        return self.keeps_own_model or self.keeps_residuals


@dataclass(frozen=True, eq=False)
class Setup:
    settings: Settings
    mask: MaskRecipe | Mask | None

    def to_bytes(self) -> bytes:
        kind, mask_bytes = "none", b""
        if self.mask is not None:
            kind, mask_bytes = ("recipe" if isinstance(self.mask, MaskRecipe) else "indices"), self.mask.to_bytes()
        settings = _without_nulls(dataclasses.asdict(self.settings)) | {"mask": kind}
        encoded = json.dumps(settings, separators=(",", ":"), sort_keys=True).encode()
        return _LENGTH.pack(len(encoded)) + encoded + mask_bytes

    @classmethod
    def from_bytes(cls, data: bytes, num_parameters: Callable[[Settings], int] | None = None) -> "Setup":
        """num_parameters: of the base model that these settings name; indices for another number of them are refused
        before any is allocated. Raises RejectedMessage for bytes that are no setup.
        """
        try:
            settings, kind, mask_bytes = _parse(data)
        except (struct.error, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise _unreadable(data, error) from error
        limit = num_parameters(settings) if kind == "indices" and num_parameters is not None else None
        try:
            return cls(settings, _mask(kind, mask_bytes, limit))
        except FedmaskError as error:
            raise _unreadable(data, error) from error


def _unreadable(data: bytes, error: Exception) -> RejectedMessage:
    return RejectedMessage("undecodable", f"setup of {len(data)} bytes cannot be read: {error}")


def _parse(data: bytes) -> tuple[Settings, str, bytes]:
    """Settings, the kind of mask, its bytes."""
    (length,) = _LENGTH.unpack_from(data)
    raw = json.loads(data[_LENGTH.size : _LENGTH.size + length])
    kind = raw.pop("mask")
    settings = Settings(
        model=_build(ModelConfig, "model", raw.pop("model")),
        data=_build(DataConfig, "data", raw.pop("data")),
        client=_build(ClientConfig, "client", raw.pop("client")),
        codec=_build(CodecConfig, "codec", raw.pop("codec")),
        **raw,
    )
    # It becomes a part of a path on the client.
    if not isinstance(settings.run_id, str) or not _RUN_ID.fullmatch(settings.run_id):
        raise ValueError(f"run_id {settings.run_id!r} is not of 16 hex digits")
    for key, pattern in _DIGESTS.items():
        if not isinstance(getattr(settings, key), str) or not pattern.fullmatch(getattr(settings, key)):
            raise ValueError(f"{key} {getattr(settings, key)!r} is no digest")
    for key in ("baseline", "seed", "device"):
        _allowed(key, getattr(settings, key))
    if settings.trains_delta and settings.client.learning_rate is None:
        raise ValueError("client.learning_rate is missing, and a delta is trained")
    for key, low, high in (("clients", 1, MAX_CLIENTS), ("threads", 1, MAX_THREADS), ("rank", 0, MAX_RANK)):
        value = getattr(settings, key)
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{key} is {value!r}, expected a whole number from {low} to {high}")
    return settings, kind, data[_LENGTH.size + length :]


def _mask(kind: str, data: bytes, num_parameters: int | None) -> MaskRecipe | Mask | None:
    match kind:
        case "none":
            return None
        case "recipe":
            return MaskRecipe.from_bytes(data)
        case "indices":
            return Mask.from_bytes(data, num_parameters)
    raise FedmaskError(f"mask kind {kind!r} is unknown; known are none, recipe, indices")


def _without_nulls(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_nulls(value) if isinstance(value, dict) else value
        for key, value in tree.items()
        if value is not None
    }


def _build(kind: type[Any], section: str, raw: dict[str, Any]) -> Any:
    """A configuration dataclass from JSON: what is absent was null."""
    names = [field.name for field in dataclasses.fields(kind)]
    if unknown := set(raw) - set(names):
        raise FedmaskError(f"{kind.__name__} has no {sorted(unknown)}")
    return kind(**{name: _allowed(f"{section}.{name}", raw.get(name)) for name in names})


def _allowed(key: str, value: object) -> Any:
    """The value as a configuration holds it. Raises ValueError for one that no configuration may have."""
    try:
        return KEYS[key].allowed.read(value)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{key} is {value!r}, must be {KEYS[key].allowed.text}") from error
