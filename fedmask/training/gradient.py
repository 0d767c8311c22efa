"""The gradient of the selected entries alone: dL/dw[S], float32 (k,), packed in the mask's order.

For a linear layer y = x W^T the gradient of entry (i, j) is  sum_t g[t, i] x[t, j]  over the tokens t, with g = dL/dy.
Three ways, chosen once a tensor by the share of it that is selected, fastest first (limits measured on a CPU):

gather    columns i of g times columns j of x, summed;  up to MAX_GATHERED of the entries
sampled   torch.sparse.sampled_addmm over the entries;   up to MAX_SAMPLED of them
dense     autograd's whole gradient, gathered and freed; above that, and for every tensor that is not the weight of
          linear layers alone: biases, whose whole gradient is a sum over tokens, embeddings, norms

The first two hold no dense gradient and no copy of a weight. Below the lowest selected tensor nothing is computed.

Of a bfloat16 model, too, the sum over tokens is held in float32. What autograd sums, the dense way, it rounds to
bfloat16 once, at the end: by at most 0.4%. But it sums layer norms' gradients in bfloat16 on a CPU (2,048 tokens of
MiniLM lost half of one), so those go a way of their own, `norm`; and embeddings' (9% lost), which are left so.
"""

import logging
import warnings
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from fedmask.errors import FedmaskError
from fedmask.training.delta import SelectedEntries

MAX_GATHERED = 0.0015
MAX_SAMPLED = 0.05

TOKENS_AT_ONCE = 256
"""The first two ways add up over so many tokens at a time: what they copy then stays in a processor's cache, which
halves the time of a sampled product, and their memory does not grow with the batch."""

LayerGradient = Callable[[Tensor, Tensor], Tensor]
"""g (T, out), x (T, in) -> a layer's selected entries of the gradient, of g^T x for a weight; float32 (k_i,)."""


class SelectedGradient:
    """Inside the block, every `loss.backward()` adds to one packed gradient; `take()` hands it over and starts anew."""

    def __init__(self, model: nn.Module, entries: SelectedEntries) -> None:
        """entries: of this very model."""
        self.entries = entries
        self._packed = torch.zeros(entries.mask.num_selected, device=entries.tensors[0].device)
        self._hooks: list[Any] = []
        self._dense: list[tuple[Tensor, Tensor, slice]] = []
        self._layers: list[tuple[nn.Module, LayerGradient, slice]] = []
        used_by, norms = _linear_users(model), _norms_below_float32(model)
        ways: Counter[str] = Counter()
        for tensor, index, where in zip(entries.tensors, entries.indices, entries.slices, strict=True):
            layers = used_by.get(id(tensor), [])
            way = "norm" if id(tensor) in norms else _way(tensor, index) if layers else "dense"
            ways[way] += 1
            if way == "norm":
                norm, name = norms[id(tensor)]
                self._layers.append((norm, _normalised(norm, name, index), where))
                continue
            if way == "dense":
                self._dense.append((tensor, index, where))
                continue
            gradient = _gathered(tensor, index) if way == "gather" else _sampled(tensor, index)
            self._layers += [(layer, gradient, where) for layer in layers]
        logging.getLogger("fedmask").info("gradients of the selected entries, tensors by way: %s", dict(ways))

    def __enter__(self) -> "SelectedGradient":
        self._packed = torch.zeros_like(self._packed)  # what a block that raised has left
        for tensor, index, where in self._dense:
            tensor.requires_grad_(True)
            hook = tensor.register_post_accumulate_grad_hook(self._take_dense(index, where))  # type: ignore[no-untyped-call]
            self._hooks.append(hook)
        for layer, gradient, where in self._layers:
            self._hooks.append(layer.register_forward_hook(self._watch(gradient, where)))
        return self

    def _take_dense(self, index: Tensor, where: slice) -> Callable[[Tensor], None]:
        def hook(tensor: Tensor) -> None:
            assert tensor.grad is not None
            self._packed[where] += tensor.grad.view(-1)[index].float()
            tensor.grad = None

        return hook

    def _watch(self, gradient: LayerGradient, where: slice) -> Callable[..., Tensor | None]:
        """Keeps a layer's input until the gradient of its output is known; a layer used twice adds up."""

        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not torch.is_grad_enabled():
                return None
            x, version = [inputs[0].detach()], inputs[0]._version
            handed_on = None
            if not output.requires_grad:  # the lowest selected layer: nothing below it asks for a gradient
                output.requires_grad_(True)
                handed_on = output.clone()  # a leaf could not be changed in place, as some models change it

            def add(g: Tensor) -> None:
                kept = x.pop()  # the graph may outlive its backward pass: it does not keep the input
                if kept._version != version:
                    raise FedmaskError(
                        "the model changes a linear layer's input in place once the layer has used it, and so cannot "
                        "be trained; take another model"
                    )
                pieces = (torch.split(each.reshape(-1, each.shape[-1]), TOKENS_AT_ONCE) for each in (g, kept))
                for piece in zip(*pieces, strict=True):
                    self._packed[where] += gradient(*piece)

            output.register_hook(add)  # type: ignore[no-untyped-call]
            return handed_on

        return hook

    def take(self) -> Tensor:
        """The gradient since the last call, float32 (k,) on the CPU, where the optimizer is."""
        packed = self._packed
        self._packed = torch.zeros_like(packed)
        return packed.cpu()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for tensor, _, _ in self._dense:
            tensor.requires_grad_(False)
            tensor.grad = None


def _linear_users(model: nn.Module) -> dict[int, list[nn.Linear]]:
    """By id of a weight the linear layers that use it, where nothing else does.

    Subclasses of nn.Linear are left out: they may be used without being called (nn.MultiheadAttention does so).
    """
    users: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), []).append(module)
    return {
        key: [module for module in modules if type(module) is nn.Linear]
        for key, modules in users.items()
        if all(type(module) is nn.Linear and id(module.weight) == key for module in modules)
    }


def _norms_below_float32(model: nn.Module) -> dict[int, tuple[nn.LayerNorm, str]]:
    """By id of a parameter in fewer bits than float32 the layer norm that alone uses it, and its name there."""
    uses = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    return {
        id(parameter): (module, name)
        for module in model.modules()
        if type(module) is nn.LayerNorm and len(module.normalized_shape) == 1
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.element_size() < 4 and uses[id(parameter)] == 1
    }


def _way(weight: Tensor, index: Tensor) -> str:
    share = index.numel() / weight.numel()
    if share <= MAX_GATHERED:
        return "gather"
    return "sampled" if share <= MAX_SAMPLED and _can_sample(weight.device) else "dense"


@lru_cache
def _can_sample(device: torch.device) -> bool:
    """Whether this build has the sampled product on this device."""
    one = torch.ones(1, 1, device=device)
    with warnings.catch_warnings():  # torch says once a process that sparse tensors are in beta, and not checked
        warnings.simplefilter("ignore", UserWarning)
        try:
            _sampled(one, torch.zeros(1, dtype=torch.int64, device=device))(one, one)
        except RuntimeError:
            return False
    return True


def _gathered(weight: Tensor, index: Tensor) -> LayerGradient:
    rows, columns = index // weight.shape[1], index % weight.shape[1]

    def gradient(g: Tensor, x: Tensor) -> Tensor:
        # In float32 also for a bfloat16 model: there the product of two bfloat16 numbers is exact.
        return g.index_select(1, rows).float().mul_(x.index_select(1, columns).float()).sum(0)

    return gradient


def _normalised(norm: nn.LayerNorm, name: str, index: Tensor) -> LayerGradient:
    def gradient(g: Tensor, x: Tensor) -> Tensor:
        if name == "bias":
            return g.sum(0, dtype=torch.float32)[index]
        normalised = nn.functional.layer_norm(x.float(), norm.normalized_shape, eps=norm.eps)
        return (g.float() * normalised).sum(0)[index]

    return gradient


def _sampled(weight: Tensor, index: Tensor) -> LayerGradient:
    num_rows, num_columns = weight.shape
    ends = torch.bincount(index // num_columns, minlength=num_rows).cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends])
    zeros = torch.zeros(index.numel(), device=weight.device)
    pattern = torch.sparse_csr_tensor(starts, index % num_columns, zeros, size=(num_rows, num_columns))

    def gradient(g: Tensor, x: Tensor) -> Tensor:
        # In float32 as above; on a CPU the product has no other form.
        product: Tensor = torch.sparse.sampled_addmm(pattern, g.float().t(), x.float(), beta=0.0)
        return product.values()

    return gradient
