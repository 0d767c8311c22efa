"""What stays on a client between messages: its task's head, and in the baselines without exchange its own delta.

One folder a client, `client-00003/head.safetensors` and `client-00003/adapter.safetensors`. Each file is whole or not
there. A client that has no delta yet starts from zeros.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedmask.errors import FedmaskError
from fedmask.masks import Mask
from fedmask.models import BaseModel
from fedmask.training.delta import Delta
from fedmask.training.head import HeadLayout, load_head, save_head


class ClientState:
    """The files of one client."""

    def __init__(self, root: Path, client_id: int) -> None:
        self.folder = root / f"client-{client_id:05d}"

    def head(self, layout: HeadLayout) -> Tensor | None:
        """The head as last trained, float32 (size,); None where none was trained yet."""
        path = self.folder / "head.safetensors"
        if not path.exists():
            return None
        kept, packed = load_head(path)
        if kept != layout:
            raise FedmaskError(
                f"{path}: a head of task {kept.task} {kept.labels}, this client's task is {layout.task} {layout.labels}"
            )
        return torch.from_numpy(packed)

    def keep_head(self, layout: HeadLayout, head: Tensor) -> None:
        save_head(self.folder / "head.safetensors", layout, head.numpy())

    def delta(self, mask: Mask) -> Tensor:
        """The client's own delta, for baselines in which none is received; float32 (k,)."""
        path = self.folder / "adapter.safetensors"
        return torch.from_numpy(Delta.load(path).values) if path.exists() else torch.zeros(mask.num_selected)

    def keep_delta(self, mask: Mask, base: BaseModel, delta: Tensor) -> None:
        assert mask.recipe is not None, "the mask of a baseline is made from a recipe"
        values = np.ascontiguousarray(delta.numpy())
        Delta(values, mask.recipe, base.name, base.weights, mask, base.dtype).save(self.folder / "adapter.safetensors")
