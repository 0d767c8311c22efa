"""One client's round: received delta and head -> a few epochs of AdamW on packed vectors -> local delta and head.

The loss is cross-entropy (classes) or squared error (regression), a mean over the batch. The optimizer sees two packed
vectors, what produces the delta and the head, and nothing of the model: neither its steps nor its weight decay can
touch an entry outside the mask. Dropout is off: with so few trainable entries nothing needs it, and a round's bits
then depend on no global random state.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmask.training.gradient import SelectedGradient
from fedmask.training.head import HeadLayout
from fedmask.training.reparametrisation import Reparametrisation
from fedmask.training.text import TokenizedSplit, mean_pooled

BATCHES_DRAWN_TOGETHER = 8
"""Batches among which rows are sorted by length."""


@dataclass(frozen=True)
class LocalSettings:
    """How a client trains in one round."""

    local_epochs: int
    batch_size: int
    learning_rate: float
    """AdamW's rate for what produces the delta."""
    head_learning_rate: float
    """AdamW's rate for the head; 0 leaves the head as it is."""
    weight_decay: float
    """Decoupled decay of what the optimizer steps on: the delta, towards the base weights, or HiWi's networks, towards
    the received delta. The head has none."""
    batch_seed: int
    """Decides the order of the examples."""


@dataclass(frozen=True, eq=False)
class LocalResult:
    delta: Tensor
    """float32 (k,): the local delta after training."""
    head: Tensor
    """float32 (size,): the head after training."""
    mean_loss: float
    """Mean over all steps' batches, in the loss's unit."""


def train_delta_and_head(
    encoder: nn.Module,
    gradient: SelectedGradient,
    reparametrisation: Reparametrisation,
    layout: HeadLayout,
    head: Tensor,
    data: TokenizedSplit,
    settings: LocalSettings,
) -> LocalResult:
    """Train the selected entries and the head. The model is left exactly as it came, also when training raises.

    gradient: of the entries that are trained.
    """
    entries = gradient.entries
    packed_head = nn.Parameter(head.clone())
    optimizer = torch.optim.AdamW(
        [
            {
                "params": reparametrisation.parameters(),
                "lr": settings.learning_rate,
                "weight_decay": settings.weight_decay,
            },
            {"params": [packed_head], "lr": settings.head_learning_rate, "weight_decay": 0.0},
        ]
    )
    losses: list[float] = []
    device = next(encoder.parameters()).device
    labels = labels_for_loss(data.labels)
    values = reparametrisation.values()
    with entries.written(values.detach()), gradient:
        for rows in shuffled_batches(data.lengths, settings):
            features = mean_pooled(encoder, data.batch(rows, device)).cpu()
            loss = _loss(layout, packed_head, features, labels[torch.from_numpy(rows)])
            values = take_step(loss, gradient, reparametrisation, values, optimizer)
            losses.append(loss.item())
    return LocalResult(values.detach().clone(), packed_head.detach().clone(), float(np.mean(losses)))


def take_step(
    loss: Tensor,
    gradient: SelectedGradient,
    reparametrisation: Reparametrisation,
    values: Tensor,
    optimizer: torch.optim.Optimizer,
) -> Tensor:
    """One step from the loss of a batch, computed inside the gradient's block while the model held `values` (k,).

    values: as the reparametrisation produced them. Returns what it produces now, which the model then holds.
    """
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    values.backward(gradient.take())  # type: ignore[no-untyped-call]
    optimizer.step()
    values = reparametrisation.values()
    gradient.entries.write(values.detach())
    return values


def train_head(
    features: Tensor, layout: HeadLayout, head: Tensor, data: TokenizedSplit, settings: LocalSettings
) -> tuple[Tensor, float]:
    """Train a head over fixed features (n, H), the frozen encoder's: the same steps as above at a fraction of the cost.

    data: the texts that the features are of. Returns the head (size,) and the mean loss.
    """
    packed_head = nn.Parameter(head.clone())
    optimizer = torch.optim.AdamW([packed_head], lr=settings.head_learning_rate, weight_decay=0.0)
    labels = labels_for_loss(data.labels)
    losses: list[float] = []
    for rows in shuffled_batches(data.lengths, settings):
        index = torch.from_numpy(rows)
        loss = _loss(layout, packed_head, features[index], labels[index])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return packed_head.detach().clone(), float(np.mean(losses))


def shuffled_batches(lengths: NDArray[np.int64], settings: LocalSettings) -> Iterator[NDArray[np.int64]]:
    """Row numbers batch by batch, every row once an epoch, in random order; one batch of an epoch may be smaller.

    lengths: tokens (n,) of the rows. Of every few batches that are drawn together, rows of like length share one: a
    batch is padded to its longest row, and short texts in random company cost half as much again.
    """
    generator = np.random.default_rng(settings.batch_seed)
    for _ in range(settings.local_epochs):
        order = generator.permutation(len(lengths))
        drawn_together = range(0, len(order), BATCHES_DRAWN_TOGETHER * settings.batch_size)
        windows = np.split(order, drawn_together[1:])
        by_length = np.concatenate([window[np.argsort(lengths[window], kind="stable")] for window in windows])
        batches = np.split(by_length, range(settings.batch_size, len(order), settings.batch_size))
        for batch in generator.permutation(len(batches)):
            yield batches[batch]


def labels_for_loss(labels: NDArray[np.int64] | NDArray[np.float64]) -> Tensor:
    """Class indices as int64, regression targets as float32; (n,)."""
    return torch.from_numpy(labels) if labels.dtype == np.int64 else torch.from_numpy(labels.astype(np.float32))


def _loss(layout: HeadLayout, packed_head: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    outputs = layout.outputs(packed_head, features)
    if layout.labels is None:
        return nn.functional.mse_loss(outputs.squeeze(1), labels)
    return nn.functional.cross_entropy(outputs, labels)
