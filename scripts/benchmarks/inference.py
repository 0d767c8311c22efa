"""A merged model beside the untouched base: the same time, the same parameters, the same operations.

Merging writes k values into weights that are there already, so nothing of a forward pass can change but the numbers.
"""

import copy
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.encoders import random_encoder, random_inputs
from benchmarks.measure import alternate, time_rows
from benchmarks.rows import Row, Settings
from fedmask import Delta
from fedmask.errors import FedmaskError
from fedmask.masks import select
from fedmask.models import MINILM_HUB_NAME, bundled_minilm, load_base

MERGED, BASE, COPY = "merged model", "untouched base", "copy of the base"
LEAST_RATIO = 0.97
"""1.00 within noise: how large that is in the same run, a copy of the base beside the base tells."""
FORWARDS_A_RUN = 5
MIN_REPEATS = 15


def rows(settings: Settings) -> Iterator[Row]:
    name, base = _base(settings.is_trial)
    batch_size, num_tokens = (2, 8) if settings.is_trial else (32, 64)
    work = f"{name}, forward of {batch_size} x {num_tokens} tokens"
    settings.say(work)
    merged = _merged(name, base)
    inputs = random_inputs(base, batch_size, num_tokens)
    models = {MERGED: merged, BASE: base, COPY: copy.deepcopy(base)}
    works = {side: partial(_forward, model, inputs) for side, model in models.items()}
    timings = alternate(works, settings.repeats if settings.is_trial else MIN_REPEATS)
    yield from time_rows("inference", work, MERGED, BASE, timings, LEAST_RATIO)
    yield from time_rows("inference", work, COPY, BASE, timings)
    counts = _num_parameters(merged), _num_parameters(base)
    yield Row("inference", name, MERGED, BASE, *counts, "parameters", 1.0)
    operations = _operations(merged, inputs), _operations(base, inputs)
    if operations[0] != operations[1]:
        raise FedmaskError(f"inference: merging changed the operations by {operations[0] - operations[1]}")
    yield Row("inference", work, MERGED, BASE, *(count.total() for count in operations), "operations", 1.0)


def _base(is_trial: bool) -> tuple[str, nn.Module]:
    if is_trial:
        return "tiny", random_encoder("tiny")
    if bundled_minilm() is None:
        return "MiniLM geometry, random weights", random_encoder("minilm")
    return "MiniLM", load_base("minilm", hub=MINILM_HUB_NAME).encoder


def _merged(name: str, base: nn.Module) -> nn.Module:
    mask = select(base, "pafi", density=0.005)
    assert mask.recipe is not None
    values = torch.randn(mask.num_selected, generator=torch.Generator().manual_seed(0)) * 0.01
    return Delta(values.numpy(), mask.recipe, name, mask=mask).merge(base)


@torch.inference_mode()
def _forward(encoder: nn.Module, inputs: dict[str, Tensor]) -> None:
    for _ in range(FORWARDS_A_RUN):
        encoder(**inputs)


def _num_parameters(encoder: nn.Module) -> int:
    return sum(parameter.numel() for parameter in encoder.parameters())


class _Counting(TorchDispatchMode):
    """Counts the operations that reach a backend, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))


def _operations(encoder: nn.Module, inputs: dict[str, Tensor]) -> Counter[str]:
    with torch.no_grad(), _Counting() as counting:
        encoder(**inputs)
    return counting.counts
