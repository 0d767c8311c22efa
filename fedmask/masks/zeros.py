"""Model, mask -> how many of the selected entries are exactly zero, and what is said of them."""

import logging

import torch
from torch import nn

from fedmask.masks.mask import Mask


def exact_zeros(model: nn.Module, mask: Mask) -> dict[str, int]:
    """By tensor how many of the mask's entries are exactly zero in `model`; tensors without one are left out."""
    zeros = {}
    for name, indices in mask.indices.items():
        tensor = model.get_parameter(name).detach()
        zeros[name] = len(indices) - int(torch.count_nonzero(tensor.take(torch.tensor(indices, device=tensor.device))))
    return {name: count for name, count in zeros.items() if count}


def tell_zeros(model: nn.Module, rule: str, mask: Mask) -> None:
    """Log a warning where the mask has exact zeros among its entries: their number, their share, the worst tensor."""
    zeros = exact_zeros(model, mask)
    if not zeros:
        return
    most, total = max(zeros, key=lambda name: zeros[name]), sum(zeros.values())
    logging.getLogger("fedmask").warning(
        f"rule {rule}: {total:,} of the {mask.num_selected:,} selected entries ({100 * total / mask.num_selected:.3g}%)"
        f" are exactly zero in the base model, {zeros[most]:,} of them in {most}. Zeros are the smallest magnitudes"
        " there are, and a tensor or a layer of zeros trains badly or not at all: see that the checkpoint is whole, or"
        f" leave such tensors out: mask.exclude=['{most}']"
    )
