"""A task's linear head over mean-pooled features: outputs = features W^T + b.

W (C, H) and b (C,), C classes or 1 for regression. As a vector a head travels as its difference from its start, which
every client of the task makes alike from the task's name or from the label names, so the server can begin from zeros.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmask.errors import FedmaskError
from fedmask.randomness import seed_for
from fedmask.tasks.task import Task
from fedmask.training.vector_file import MAX_LENGTH, read_vector, write_vector

LABEL_NAME_SCALE = 20.0
"""Output of a cosine of 1: cosines between sentences and label names differ by tenths, softmax needs whole numbers."""


MAX_HIDDEN_SIZE = 2**20
"""Above it no encoder's features are."""


@dataclass(frozen=True)
class HeadLayout:
    """What a head's numbers mean; two clients may average heads of the same layout only."""

    task: str
    labels: tuple[str, ...] | None
    """Class names in index order; None for regression."""
    hidden_size: int

    @classmethod
    def of(cls, task: Task, hidden_size: int) -> "HeadLayout":
        return cls(task.name, task.labels, hidden_size)

    @property
    def num_outputs(self) -> int:
        return 1 if self.labels is None else len(self.labels)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The labels; of a regression, whose one output has no name of its own, the task."""
        return (self.task,) if self.labels is None else self.labels

    @property
    def size(self) -> int:
        """Numbers in the packed vector: C x H + C."""
        return self.num_outputs * (self.hidden_size + 1)

    @property
    def digest(self) -> str:
        canonical = json.dumps(["fedmask-head-layout-1", self.task, self.labels, self.hidden_size])
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def classes_digest(self) -> str:
        """16 hex digits that tell whether two tasks have the same class names, in whatever order."""
        canonical = json.dumps(["fedmask-classes-1", sorted(self.labels or ())])
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def random_start(self, seed: int) -> Tensor:
        """A start that the task's name seeds, float32 (size,): small normal weights, zero biases."""
        generator = torch.Generator().manual_seed(seed_for(seed, "head", self.task))
        weights = torch.randn(self.num_outputs * self.hidden_size, generator=generator) * 0.02
        return torch.cat([weights, torch.zeros(self.num_outputs)])

    def label_name_start(self, name_features: Tensor) -> Tensor:
        """A start made of the base model's features of the label names (C, H); float32 (size,), zero biases.

        outputs_c = LABEL_NAME_SCALE * cosine(features, name_features_c) for features as long as the names' are, up to
        a number that all classes share and no prediction depends on.
        """
        lengths = name_features.norm(dim=1, keepdim=True)
        directions = name_features / lengths
        weights = LABEL_NAME_SCALE * (directions - directions.mean(0)) / lengths.mean()
        return torch.cat([weights.flatten(), torch.zeros(self.num_outputs)])

    def outputs(self, packed: Tensor, features: Tensor) -> Tensor:
        """(B, H) features -> (B, C) outputs, for packed (size,)."""
        weight = packed[: -self.num_outputs].view(self.num_outputs, self.hidden_size)
        return torch.nn.functional.linear(features, weight, packed[-self.num_outputs :])


@dataclass(frozen=True)
class HeadOrigin:
    """What a head was trained on: it goes with an adapter, a base model and texts of the same."""

    base_name: str
    """Never a path."""
    base_digest: str
    """Of the base model's parameters."""
    inputs: Mapping[str, Any]
    """`BaseModel.inputs`: tokenizer and settings of the base model."""
    run: str
    """`Settings.run_digest`."""
    max_length: int
    """Tokens that texts were cut to."""
    pairs: bool
    """Whether its texts are pairs, or single."""


def save_head(path: Path, layout: HeadLayout, packed: NDArray[np.float32], origin: HeadOrigin | None = None) -> None:
    """Write a head with its task, its labels and where it comes from, for its owner alone; the same head gives the same
    bytes."""
    facts: dict[str, Any] = {"task": layout.task, "labels": layout.labels, "hidden_size": layout.hidden_size}
    if origin is not None:
        facts["base"] = {"name": origin.base_name, "digest": origin.base_digest, "inputs": dict(origin.inputs)}
        facts |= {"run": origin.run, "max_length": origin.max_length, "pairs": origin.pairs}
    write_vector(path, "head", packed, facts, private=True)


def load_head(path: Path) -> tuple[HeadLayout, NDArray[np.float32]]:
    """One that does not say where it comes from, as older ones do not, is warned of.

    Raises FedmaskError where the file is missing, damaged or not a head.
    """
    facts, packed = read_vector(path, "head")
    is_regression = facts.has("labels") and facts.found["labels"] is None
    labels = None if is_regression else facts.texts("labels")
    layout = HeadLayout(facts.text("task"), labels, facts.whole("hidden_size", 1, MAX_HIDDEN_SIZE))
    if packed.size != layout.size:
        raise FedmaskError(f"{path}: a head of {layout.task} has {layout.size} values, found {packed.size}")
    if not facts.has("base"):
        logging.getLogger("fedmask").warning(
            "%s: this head does not say of which run and base model it is: whether it fits cannot be told", path
        )
    return layout, packed


def load_head_origin(path: Path) -> HeadOrigin | None:
    """Where a head comes from; None where its file, an older one, does not say. Raises FedmaskError as `load_head`."""
    facts, _ = read_vector(path, "head")
    if not facts.has("base"):
        return None
    base = facts.mapping("base")
    return HeadOrigin(
        base.text("name"),
        base.text("digest"),
        dict(base.mapping("inputs").found),
        facts.text("run"),
        facts.whole("max_length", 1, MAX_LENGTH),
        facts.switch("pairs"),
    )
