"""A checkpoint's tensors in its encoder, all of them: what the file lacks is refused by name, and so is what it holds
of the encoder without a place for it.

In: a `Source`. Out: the encoder and its tokenizer. A pooler may lack, and is zero then instead of random: no feature
comes from it. Heads, a pooler and buffers of positions may be left over.
"""

import functools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModel, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file

from fedmask.errors import FedmaskError, cause_line
from fedmask.models.configuration import read_configuration
from fedmask.models.sources import Source, in_hub_cache
from fedmask.models.tokenizers import tokenizer_at

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""The types of a file's tensors that are weights; whole numbers are positions, or weights that some library packed."""

_TORCH_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_TODAY = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_OLD_SPELLING = re.compile("|".join(map(re.escape, _TODAY)))
"""The first BERT checkpoints', which transformers reads as today's names."""

_DEEP = 2
"""Dots in the name of a module that is surely one of the encoder's layers, such as `encoder.layer.0`."""

NAMES_TOLD = 3

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_COMPUTED = re.compile(r"(^|\.)(position_ids|token_type_ids|inv_freq|cos_cached|sin_cached|num_batches_tracked)$")
"""Buffers that a model makes for itself, whether or not a file has them."""


def load_checkpoint(source: Source) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Raises FedmaskError, naming the folder, for whatever is not a whole encoder with its tokenizer."""
    _refuse_adapter(source)
    config = read_configuration(source.location, source.local_files_only)
    try:
        encoder, loading = _read(source, config, "auto")
        stored = _stored_types(source.location)
        if (dtype := _lost_precision(encoder, stored)) is not None:
            encoder, loading = _read(source, config, dtype)
    except Exception as error:  # whatever a broken file makes of the libraries
        raise not_a_model(source.location, error) from error
    tokenizer = tokenizer_at(source.location, source.local_files_only)
    _check_tensors(source.location, encoder, loading, stored)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name in loading["missing_keys"]:
                parameter.zero_()
    return encoder, tokenizer


def _read(
    source: Source, config: PretrainedConfig, dtype: torch.dtype | Literal["auto"]
) -> tuple[nn.Module, Mapping[str, Any]]:
    """The encoder, and by kind the tensors that do not fit."""
    return AutoModel.from_pretrained(  # type: ignore[no-any-return]
        source.location,
        config=config,
        local_files_only=source.local_files_only,
        output_loading_info=True,
        use_safetensors=True,  # never a pickle
        dtype=dtype,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # they are told by name below
    )


def _lost_precision(encoder: nn.Module, stored: Mapping[str, str]) -> torch.dtype | None:
    """The type to read the weights in where config.json names one with fewer bits than the file holds; else None."""
    held = {_TORCH_TYPES[name] for name in stored.values() if name in _TORCH_TYPES}
    read = {parameter.dtype for parameter in encoder.parameters()}
    whole = functools.reduce(torch.promote_types, held | read)
    return None if whole in read else whole


def not_a_model(location: str, error: Exception) -> FedmaskError:
    return FedmaskError(
        f"{location}: not a model folder with safetensors and a tokenizer ({cause_line(error)}); fetch the model "
        "again, or mend what its config.json says"
    )


def _refuse_adapter(source: Source) -> None:
    """Where peft is installed transformers would load the adapter into the model, elsewhere not."""
    try:
        adapter = find_adapter_config_file(source.location, local_files_only=source.local_files_only)
    except Exception as error:
        raise not_a_model(source.location, error) from error
    if adapter is not None:
        raise FedmaskError(
            f"{source.location}: adapter_config.json says that an adapter of peft belongs to this model; merge it into "
            "the weights first (merge_and_unload), or take adapter_config.json out of the folder"
        )


def _stored_types(location: str) -> dict[str, str]:
    """By name the type of each tensor in the checkpoint's files, from their headers."""
    whole, index = _place(location, _WEIGHTS), _place(location, _INDEX)
    if whole is not None:
        files = [whole]
    else:
        assert index is not None, "the model was read from one of the two"
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        files = [index.with_name(name) for name in shards]
    types: dict[str, str] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            types |= {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    return types


def _place(location: str, file_name: str) -> Path | None:
    """Where a file that was read lies."""
    if Path(location).is_dir():
        file = Path(location) / file_name
        return file if file.is_file() else None
    cached = in_hub_cache(location, file_name)
    return None if cached is None else Path(cached)


def _check_tensors(location: str, encoder: nn.Module, loading: Mapping[str, Any], stored: Mapping[str, str]) -> None:
    kind = encoder.config.model_type  # type: ignore[union-attr]
    parameters = dict(encoder.named_parameters())
    prefix = f"{encoder.base_model_prefix}."
    if other := loading["mismatched_keys"]:
        name, found, expected = min(other)
        raise FedmaskError(
            f"{location}: {name} has shape {_shape(found)} in the checkpoint and {_shape(expected)} by config.json, as "
            f"one of {len(other)} such tensors; the two are not of one model, fetch both again"
        )
    if (twice := _named_twice(stored, prefix)) is not None:
        raise FedmaskError(
            f"{location}: the checkpoint holds {twice[0]} and {twice[1]}, which are one tensor of its {kind}; which of "
            "them is meant cannot be told: take one out"
        )
    missing = [name for name in loading["missing_keys"] if not _is_unread(name)]
    if missing and parameters.keys() <= set(loading["missing_keys"]):
        raise FedmaskError(f"{location}: none of the {len(parameters)} tensors of its {kind} are there")
    if missing:
        raise FedmaskError(
            f"{location}: config.json describes tensors that the checkpoint lacks, {_told(missing)}; take a whole "
            "checkpoint, or mend what config.json says of the model's size"
        )
    if left_over := [name for name in loading["unexpected_keys"] if _is_of_encoder(name, encoder, prefix, stored)]:
        raise FedmaskError(
            f"{location}: the checkpoint holds tensors of the encoder that config.json does not describe, "
            f"{_told(left_over)}; mend what config.json says of the model's size or kind"
        )
    if packed := [
        name
        for name, dtype in stored.items()
        if dtype not in FLOATS and (name in parameters or name.removeprefix(prefix) in parameters)
    ]:
        raise FedmaskError(
            f"{location}: weights are stored as whole numbers ({stored[packed[0]]}), {_told(packed)}: they are "
            "quantized; take the model in float32, float16 or bfloat16"
        )


def _named_twice(stored: Iterable[str], prefix: str) -> tuple[str, str] | None:
    """Two names of one tensor: with and without the prefix of a task's model, or in an old spelling and in today's."""
    names: dict[str, str] = {}
    for name in sorted(stored):
        today = _OLD_SPELLING.sub(lambda found: _TODAY[found[0]], name.removeprefix(prefix))
        if (other := names.setdefault(today, name)) != name:
            return other, name
    return None


def _is_unread(name: str) -> bool:
    """Whether no feature comes from it, or a model computes it."""
    return "pooler" in name.split(".") or _COMPUTED.search(name) is not None


def _is_of_encoder(name: str, encoder: nn.Module, prefix: str, stored: Mapping[str, str]) -> bool:
    """Whether a tensor that has no place is the encoder's own, and not a head's, a pooler's or a computed one."""
    if _is_unread(name) or stored.get(name, FLOATS[0]) not in FLOATS:
        return False
    parts = {child for child, _ in encoder.named_children()} | set(encoder._parameters)
    return name.startswith(prefix) or name.split(".")[0] in parts or _is_beside_a_layer(name, encoder)


def _is_beside_a_layer(name: str, encoder: nn.Module) -> bool:
    """Whether a part of the encoder's layers stands in the name, as in an adapter's tensors or a second copy."""
    parts = name.split(".")
    modules = {module for module, _ in encoder.named_modules() if module.count(".") >= _DEEP}
    spans = (".".join(parts[start:end]) for start in range(1, len(parts)) for end in range(start + 1, len(parts)))
    return not modules.isdisjoint(spans)


def _told(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return ", ".join([first, *others[: NAMES_TOLD - 1]]) + _and_more(len(others) - NAMES_TOLD + 1)


def _and_more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def _shape(size: Iterable[int]) -> str:
    return " x ".join(map(str, size))
