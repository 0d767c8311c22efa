"""The gradient of the selected entries alone: dL/dw[S], float32 (k,), packed in the mask's order.

This form forms each masked tensor's dense gradient, gathers the selected entries as soon as autograd has it, and frees
it: at most one dense gradient is alive at a time. Tensors without a selected entry, embeddings among them, get none.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from fedmask.training.delta import SelectedEntries


class SelectedGradient:
    """Inside the block, every `loss.backward()` adds to one packed gradient; `take()` hands it over and starts anew."""

    def __init__(self, entries: SelectedEntries) -> None:
        self._entries = entries
        self._packed = torch.zeros(entries.mask.num_selected)
        self._hooks: list[Any] = []

    def __enter__(self) -> "SelectedGradient":
        for tensor, index, where in zip(
            self._entries.tensors, self._entries.indices, self._entries.slices, strict=True
        ):
            tensor.requires_grad_(True)
            hook = tensor.register_post_accumulate_grad_hook(self._gather(index, where))  # type: ignore[no-untyped-call]
            self._hooks.append(hook)
        return self

    def _gather(self, index: Tensor, where: slice) -> Callable[[Tensor], None]:
        def hook(tensor: Tensor) -> None:
            assert tensor.grad is not None
            self._packed[where] += tensor.grad.view(-1)[index].float().to(self._packed.device)
            tensor.grad = None

        return hook

    def take(self) -> Tensor:
        """The gradient since the last call, float32 (k,)."""
        packed = self._packed
        self._packed = torch.zeros_like(packed)
        return packed

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for tensor in self._entries.tensors:
            tensor.requires_grad_(False)
            tensor.grad = None
