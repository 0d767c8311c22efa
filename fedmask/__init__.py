"""fedmask: federated fine-tuning of language models that exchanges one shared sparse mask's deltas and nothing else."""

import logging
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedmask.shown import HarmlessLines

# torch reads it when it is imported, so it stands here, before anything else of fedmask. A thread of torch's that waits
# for another one otherwise spins, on a core that the other one may need: on a busy machine a step takes many times as
# long. Whoever sets the variable keeps it; no result depends on it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# The log quotes what peers and files say.
logging.getLogger("fedmask").addFilter(HarmlessLines())

if TYPE_CHECKING:
    from fedmask.classifier import load_classifier
    from fedmask.errors import FedmaskError
    from fedmask.masks import Mask, MaskRecipe, select
    from fedmask.tasks import Task
    from fedmask.training.delta import Delta, load_adapter

__all__ = ["Delta", "FedmaskError", "Mask", "MaskRecipe", "Task", "load_adapter", "load_classifier", "select"]

_HOME = {
    "Delta": "fedmask.training.delta",
    "FedmaskError": "fedmask.errors",
    "Mask": "fedmask.masks",
    "MaskRecipe": "fedmask.masks",
    "Task": "fedmask.tasks",
    "load_adapter": "fedmask.training.delta",
    "load_classifier": "fedmask.classifier",
    "select": "fedmask.masks",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and transformers take seconds."""
    if name not in _HOME:
        raise AttributeError(f"module 'fedmask' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
