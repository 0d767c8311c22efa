"""How many parameters a geometry asks for, known before any of them is allocated.

In: a name and a geometry, perhaps of somebody else's. Out: a number, or one line as soon as it is above a limit: the
model is built on torch's meta device, which holds shapes alone, and given up in the middle where it grows too large.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from transformers import AutoModel

from fedmask.errors import FedmaskError, cause_line
from fedmask.models.configuration import configuration_of

MAX_MODULES = 10_000
"""Parts of a model; an encoder of 100 layers has 2,500. Each takes time to build, whatever its size."""


def num_parameters_of(name: str, geometry: Mapping[str, Any], most: int) -> int:
    """Raises FedmaskError for a geometry of more than `most` parameters, or MAX_MODULES parts, and for none at all."""
    config = configuration_of(name, geometry)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), _at_most(f"model={name}: model.geometry", most):
            encoder = AutoModel.from_config(config, trust_remote_code=False)
    except FedmaskError:
        raise
    except Exception as error:  # whatever a library makes of sizes that cannot be
        raise FedmaskError(
            f"model={name}: no {config.model_type} can be made of model.geometry ({cause_line(error)})"
        ) from error
    return sum(parameter.numel() for parameter in encoder.parameters())


@contextmanager
def _at_most(where: str, most: int) -> Iterator[None]:
    parameters = modules = 0

    def count_parameter(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal parameters
        parameters += 0 if parameter is None else parameter.numel()
        if parameters > most:
            raise FedmaskError(f"{where}: asks for more than {most:,} parameters, for which there is no memory here")

    def count_module(module: nn.Module, name: str, part: nn.Module | None) -> None:
        nonlocal modules
        modules += 1
        if modules > MAX_MODULES:
            raise FedmaskError(f"{where}: asks for more than {MAX_MODULES:,} parts; no encoder has so many layers")

    handles = (
        register_module_parameter_registration_hook(count_parameter),
        (register_module_module_registration_hook(count_module)),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
