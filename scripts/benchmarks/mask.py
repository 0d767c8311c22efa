"""The mask of smallest magnitude beside torch.topk over the concatenated magnitudes and beside one read of the weights.

fedmask's side is `fedmask.masks.select` with the base digest given: that is made once a process, when a model is
loaded. All sides look at the same tensors, the encoder's 2-D weights. Memory is what a fresh process that holds the
model takes more at its peak.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.encoders import random_encoder
from benchmarks.measure import MEGABYTE, Work, alternate, memory_of, time_rows
from benchmarks.rows import Row, Settings
from fedmask.errors import FedmaskError
from fedmask.masks import RULES, Mask, select

DENSITIES = (0.0003, 0.005)
SELECT, TOPK, READING = "select pafi", "torch.topk", "reading the weights once"
LEAST_FASTER, LEAST_SMALLER, LEAST_OF_READING = 20.0, 20.0, 1 / 6


def rows(settings: Settings) -> Iterator[Row]:
    model = "tiny" if settings.is_trial else "roberta-large"
    settings.say(f"making {model}")
    encoder = random_encoder(model)
    millions = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
    for density in DENSITIES:
        work = f"{model}, {millions:.1f}M parameters, density {density}"
        settings.say(f"{work}: times")
        check_same_entries(encoder, density)
        works = {SELECT: partial(selected, encoder, density), TOPK: partial(smallest, encoder, density)}
        timings = alternate(works | {READING: partial(read, encoder)}, settings.repeats)
        yield from time_rows("mask", work, SELECT, TOPK, timings, LEAST_FASTER)
        yield from time_rows("mask", work, SELECT, READING, timings, LEAST_OF_READING)
    del encoder, works
    for density in DENSITIES:
        work = f"{model}, {millions:.1f}M parameters, density {density}"
        settings.say(f"{work}: memory")
        growths = (memory_of(partial(_prepare, side, model, density)).growth_bytes for side in (SELECT, TOPK))
        extra = (growth / MEGABYTE for growth in growths)
        yield Row("mask", work, SELECT, TOPK, *extra, "MB beyond the model", LEAST_SMALLER)


def selected(encoder: nn.Module, density: float) -> Mask:
    return select(encoder, "pafi", density=density, base_digest="0" * 64)


def smallest(encoder: nn.Module, density: float) -> Tensor:
    """Positions (k,) of the smallest magnitudes in the concatenation of the candidates, in no order."""
    count = round(density * sum(parameter.numel() for parameter in encoder.parameters()))
    magnitudes = torch.cat([tensor.flatten() for tensor in _candidates(encoder)]).abs_()
    return torch.topk(magnitudes, count, largest=False, sorted=False).indices


def read(encoder: nn.Module) -> float:
    return sum(tensor.sum().item() for tensor in _candidates(encoder))


def check_same_entries(encoder: nn.Module, density: float) -> None:
    """Raises FedmaskError where the two sides choose other magnitudes; among equal ones they may choose others."""
    mask = selected(encoder, density)
    ours = [encoder.get_parameter(name).flatten()[torch.from_numpy(mask.indices[name].copy())] for name in mask.shapes]
    theirs = torch.cat([tensor.flatten() for tensor in _candidates(encoder)])[smallest(encoder, density)]
    if not torch.equal(torch.cat(ours).abs().sort().values, theirs.abs().sort().values):
        raise FedmaskError(f"mask: select and torch.topk choose different entries at density {density}")


def _candidates(encoder: nn.Module) -> list[Tensor]:
    return [encoder.get_parameter(name) for name in RULES["pafi"].candidates(encoder, False)]


def _prepare(side: str, model: str, density: float) -> Work:
    encoder = random_encoder(model)
    return partial(selected if side == SELECT else smallest, encoder, density)
