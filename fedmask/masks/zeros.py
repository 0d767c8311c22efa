"""Model, mask -> how many of the selected entries are exactly zero, and what is said of them."""

import logging

import numpy as np
import torch
from torch import Tensor, nn

from fedmask.masks.digest import INTEGERS_OF_WIDTH
from fedmask.masks.indices import Indices
from fedmask.masks.mask import Mask


def exact_zeros(model: nn.Module, mask: Mask) -> dict[str, int]:
    """By tensor how many of the mask's entries are exactly zero in `model`; tensors without one are left out."""
    counts = {name: _zeros_among(model.get_parameter(name), indices) for name, indices in mask.indices.items()}
    return {name: count for name, count in counts.items() if count}


def _zeros_among(tensor: Tensor, indices: Indices) -> int:
    # NumPy picks single entries several times as fast as torch, and knows no bfloat16.
    bits = tensor.detach().cpu().reshape(-1).view(INTEGERS_OF_WIDTH[tensor.element_size()]).numpy()[indices]
    return len(bits) - int(np.count_nonzero(bits << 1))  # without the sign: -0 is zero


def tell_zeros(model: nn.Module, rule: str, mask: Mask) -> None:
    """Log a warning where exact zeros are among the mask's entries: their number and share, and what may be wrong."""
    zeros = exact_zeros(model, mask)
    if not zeros:
        return
    total, worst = sum(zeros.values()), max(zeros, key=lambda name: zeros[name])
    logging.getLogger("fedmask").warning(
        f"rule {rule}: {total:,} of the {mask.num_selected:,} selected entries ({100 * total / mask.num_selected:.3g}%)"
        f" are exactly zero in the base model, {zeros[worst]:,} of them in {worst}"
        f"{_advice(worst, model.get_parameter(worst))}"
    )


def _advice(name: str, tensor: Tensor) -> str:
    """A few zeros are weights like others; a tensor of zeros was never trained, or never loaded."""
    share = 1 - int(torch.count_nonzero(tensor)) / tensor.numel()
    if share < 0.5:
        return ""
    return (
        f", which is {100 * share:.3g}% zeros: they come first in this rule, and a layer of zeros trains"
        f" badly or not at all. See that the checkpoint is whole, or leave such tensors out: mask.exclude=['{name}']"
    )
