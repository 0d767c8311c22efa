"""A model's configuration, from a folder, the hub or a geometry: that of an encoder as fedmask trains it, or one line.

In: where a config.json is, or the arguments of a Hugging Face configuration. Out: the configuration, which computes
plainly: floating-point weights, an attention that every machine has, outputs by name.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import FunctionType
from typing import Any

from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from fedmask.errors import FedmaskError, cause_line

ATTENTIONS = (None, "eager", "sdpa")
"""Implementations of attention that torch itself brings; None lets transformers choose among them."""

TAKE_AN_ENCODER = "take an encoder such as model=minilm or model=roberta-base"


def read_configuration(location: str, local_files_only: bool) -> PreTrainedConfig:
    """The configuration of an encoder in a folder or on the hub. Raises FedmaskError, naming the location."""
    if Path(location).is_dir() and not (Path(location) / "config.json").is_file():
        raise FedmaskError(f"{location}: no model configuration there; name the folder that holds config.json")
    try:
        stored, _ = PreTrainedConfig.get_config_dict(location, local_files_only=local_files_only)
    except Exception as error:  # whatever a broken file makes of the library
        raise _cannot_be_read(location, error) from error
    kind = stored.get("model_type") if isinstance(stored, Mapping) else None
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise _unknown(location, kind)
    try:
        config = AutoConfig.from_pretrained(location, local_files_only=local_files_only, trust_remote_code=False)
    except Exception as error:
        raise _cannot_be_read(location, error) from error
    _check(location, config)
    return config


def configuration_of(name: str, geometry: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration that a geometry's arguments make. Raises FedmaskError, naming the argument."""
    where = f"model={name}: model.geometry"
    kind = geometry.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise _unknown(where, kind)
    try:
        made = CONFIG_MAPPING[kind]
        known = {field.name for field in dataclasses.fields(made)} | set(made.attribute_map) | {"model_type"}
    except Exception as error:
        raise FedmaskError(f"{where}: {kind} has no configuration of its own ({cause_line(error)})") from error
    for key in geometry:
        if key not in known | _older_arguments(made):
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"see the arguments of {made.__name__}"
            raise FedmaskError(f"{where}.{key}: {kind} has no such argument; {hint}")
    try:
        config = AutoConfig.for_model(**geometry)
    except Exception as error:
        raise FedmaskError(f"{where}: {kind} does not take these arguments ({cause_line(error)})") from error
    _check(where, config)
    return config


def _older_arguments(made: type[PreTrainedConfig]) -> set[str]:
    """Names that a configuration still takes for the sake of old files: no field, they stand in its functions alone."""
    own = [each for each in made.__mro__ if issubclass(each, PreTrainedConfig) and each is not PreTrainedConfig]
    functions = [entry for each in own for entry in vars(each).values() if isinstance(entry, FunctionType)]
    constants = {name for function in functions for name in function.__code__.co_consts if isinstance(name, str)}
    return constants | {"rope_theta", "rope_scaling"}


def _cannot_be_read(location: str, error: Exception) -> FedmaskError:
    return FedmaskError(f"{location}: the model's configuration cannot be read ({cause_line(error)}); mend config.json")


def _unknown(where: str, kind: object) -> FedmaskError:
    what = "there is no model_type" if kind is None else f"model_type {kind!r} is none"
    return FedmaskError(
        f"{where}: {what} that transformers {version('transformers')} knows (code beside a model is never run); "
        f"{TAKE_AN_ENCODER}"
    )


def _check(where: str, config: PreTrainedConfig) -> None:
    """Raises FedmaskError for what is no encoder or does not compute plainly; sets what decides no value."""
    kind = config.model_type
    if getattr(config, "is_heterogeneous", False):
        raise FedmaskError(f"{where}: layers that differ in shape, by per_layer_config, are not supported")
    decoder_only = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if decoder_only or kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES or _is_decoder(config):
        raise FedmaskError(
            f"{where}: {kind} is not an encoder; decoder-only and encoder-decoder models are not supported yet, "
            f"{TAKE_AN_ENCODER}"
        )
    if type(config) not in MODEL_MAPPING:
        raise FedmaskError(
            f"{where}: {kind} is a part of other models, not one that loads by itself; {TAKE_AN_ENCODER}"
        )
    if (quantization := getattr(config, "quantization_config", None)) is not None:
        method = quantization.get("quant_method", "unnamed") if isinstance(quantization, Mapping) else quantization
        raise FedmaskError(
            f"{where}: the weights are quantized ({method}), and their small changes could not be trained; take the "
            "model in float32, float16 or bfloat16"
        )
    if (attention := config._attn_implementation) not in ATTENTIONS:
        raise FedmaskError(
            f"{where}: it asks for the attention {attention!r}, which not every client has; take attn_implementation "
            "out of config.json"
        )
    if not isinstance(getattr(config, "hidden_size", None), int):
        raise FedmaskError(f"{where}: {kind} has no hidden_size, so it is no encoder of texts; {TAKE_AN_ENCODER}")
    config.return_dict = True  # outputs are taken by name


def _is_decoder(config: PreTrainedConfig) -> bool:
    return any(getattr(config, name, False) for name in ("is_decoder", "is_encoder_decoder", "causal"))
