"""A base model and its tokenizer, by name: from a folder, the local hub cache, the bundled package, the hub, or a seed.

In: a name and where to look. Out: a `BaseModel` whose weights, and so whose digest, are the same in every process:
tensors that a checkpoint lacks (RoBERTa's pooler) are set to zero instead of to random numbers.
"""

import inspect
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from fedmask.errors import FedmaskError, cause_line
from fedmask.masks import base_digest
from fedmask.models.checkpoint import load_checkpoint
from fedmask.models.configuration import TAKE_AN_ENCODER, configuration_of, read_configuration
from fedmask.models.identity import inputs_digest, inputs_of
from fedmask.models.sources import resolve
from fedmask.models.tokenizers import tokenizer_for
from fedmask.randomness import seed_for

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

    @cached_property
    def inputs(self) -> Mapping[str, Any]:
        """What else decides its outputs, by name: see `fedmask.models.identity`."""
        return inputs_of(self.encoder, self.tokenizer)

    @property
    def inputs_digest(self) -> str:
        """SHA-256 of `inputs`."""
        return inputs_digest(self.inputs)

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
        encoder, tokenizer = load_checkpoint(resolve(name, hub, path))
    encoder.eval().requires_grad_(False)
    if dtype is not None:
        _cast(encoder, DTYPES[dtype])
    where = path or name
    if "input_ids" not in inspect.signature(encoder.forward).parameters or not list(encoder.parameters()):
        raise FedmaskError(f"{where}: {type(encoder).__name__} reads no token ids; {TAKE_AN_ENCODER}")
    digest = base_digest(encoder, lambda name, values: _refuse_not_finite(where, name, values))
    encoder.to(device)
    lay_out_in_one_piece(encoder)
    return BaseModel(shown_name(name, path), weights, encoder, tokenizer, digest)


def _refuse_not_finite(where: str, name: str, values: Tensor) -> None:
    if not torch.isfinite(values).all():
        raise FedmaskError(
            f"{where}: {name} holds a number that is not finite, as a cast to fewer bits or a broken training leaves "
            "it; fetch the model again, or take it in the precision that it was made in"
        )


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


def _from_geometry(
    name: str, hub: str | None, path: str | None, geometry: dict[str, Any] | None
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Seeded weights in a given geometry: biases non-zero, so that every mask rule has something to select."""
    if path is not None:
        config = read_configuration(path, local_files_only=True)
    elif geometry is not None:
        config = configuration_of(name, geometry)
    else:
        raise FedmaskError(f"model={name}: weights=random needs a geometry in conf/model/{name}.yaml, or model.path=")
    with torch.random.fork_rng(devices=[]):  # building a model draws from the global generator: leave it as it was
        try:
            encoder = AutoModel.from_config(config, trust_remote_code=False)
        except Exception as error:
            raise FedmaskError(
                f"{path or name}: no {config.model_type} can be made of this configuration ({cause_line(error)})"
            ) from error
    generator = torch.Generator().manual_seed(seed_for(WEIGHTS_SEED, "weights", name))
    with torch.no_grad():
        for parameter_name, parameter in encoder.named_parameters():
            is_norm_scale = parameter.dim() == 1 and parameter_name.endswith("weight")
            mean = 1.0 if is_norm_scale else 0.0
            parameter.normal_(mean, 0.02, generator=generator)
    return encoder, tokenizer_for(hub, path, getattr(config, "vocab_size", 0))
