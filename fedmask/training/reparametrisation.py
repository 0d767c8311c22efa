"""How a delta's values are produced while training: directly, or by HiWi's networks over the feed-forward biases.

In: the delta received (k,) and the base's selected values. Out: values (k,) as a differentiable function of a few
parameters. Both kinds start at the received delta, so a round never loses what was learned before it.

HiWi-style, per feed-forward bias vector b of D entries:  local delta = received delta + relu(b W_down) W_up,
W_down = V / |b|_1 , V (D, r) and W_up (r, D) trained. W_up starts at zero. The networks are new in every round and
never leave the client.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from fedmask.errors import FedmaskError
from fedmask.training.delta import SelectedEntries


class Reparametrisation(Protocol):
    """Values (k,) as a function of trainable parameters."""

    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer steps on."""

    def values(self) -> Tensor:
        """float32 (k,), with a graph back to the parameters."""


class Direct:
    """The values themselves are the parameters."""

    def __init__(self, received: Tensor) -> None:
        self._values = nn.Parameter(received.clone())

    def parameters(self) -> list[nn.Parameter]:
        return [self._values]

    def values(self) -> Tensor:
        return self._values


class BiasNetworks:
    """HiWi-style: one small network a bias vector maps the base bias to the change of it.

    With ReLU most plain draws of W_down leave at least one vector with every unit off, whose change could then never
    move. So each column of V is given the sign that makes its unit positive, and the length that makes its activation
    that of a standard normal draw whatever the size of b: all units live, one learning rate for all vectors. And V is
    trained, not W_down: AdamW moves every entry of a column by the learning rate, so an activation by at most that;
    through W_down it would be |b|_1 times as much, hundreds for MiniLM, and units die or blow up within a few steps.
    A vector that is exactly zero cannot be given a live unit; its change stays zero.
    """

    def __init__(self, entries: SelectedEntries, received: Tensor, rank: int, generator: torch.Generator) -> None:
        """rank: r, at least 1. Raises FedmaskError where every bias vector is exactly zero."""
        self._received = received.clone()
        biases = [values.float().cpu() for values in entries.base_values]  # drawn and trained there on every device
        if not any(bool(bias.any()) for bias in biases):
            raise FedmaskError(
                "mask=hiwi: every feed-forward bias of this model is zero, so its networks have no input; "
                "take mask=ffn_bias"
            )
        inputs = [bias / torch.where(bias.any(), bias.abs().sum(), 1.0) for bias in biases]
        down = [_live_columns(one, rank, generator) for one in inputs]
        sizes = [one.numel() for one in inputs]
        # Vectors of one length share their products: a dozen networks one by one would cost as much as they compute.
        self._groups = [[i for i, other in enumerate(sizes) if other == size] for size in dict.fromkeys(sizes)]
        self._inputs = [torch.stack([inputs[i] for i in group]).unsqueeze(1) for group in self._groups]
        self._down = [nn.Parameter(torch.stack([down[i] for i in group])) for group in self._groups]
        self._up = [nn.Parameter(torch.zeros(len(group), rank, sizes[group[0]])) for group in self._groups]

    def parameters(self) -> list[nn.Parameter]:
        """Of each group of n vectors of D entries V (n, D, r); then of each W_up (n, r, D)."""
        return [*self._down, *self._up]

    def values(self) -> Tensor:
        changes: dict[int, Tensor] = {}
        for group, inputs, down, up in zip(self._groups, self._inputs, self._down, self._up, strict=True):
            changes |= zip(group, (torch.relu(inputs @ down) @ up).squeeze(1), strict=True)
        return self._received + torch.cat([changes[i] for i in range(len(changes))])


def _live_columns(inputs: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """V (D, r) with inputs @ V = |standard normal| in every column; zero inputs leave the columns as drawn."""
    # In double precision: the squares of small inputs would vanish in single precision, and their length with them.
    length = inputs.double().norm().float()
    columns = torch.randn(inputs.numel(), rank, generator=generator) / torch.where(length > 0, length, 1.0)
    sign = torch.where(inputs @ columns < 0, -1.0, 1.0)
    live: Tensor = columns * sign
    return live
