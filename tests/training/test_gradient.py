"""The packed gradient against plain autograd on a copy of the model in which everything asks for a gradient."""

import copy

import pytest
import torch
from torch import Tensor, nn

from fedmask.masks import Mask, select
from fedmask.models import BaseModel
from fedmask.training.delta import SelectedEntries
from fedmask.training.gradient import SelectedGradient

RULES = {
    "pafi": {"density": 0.01},
    "per tensor": {"rule": "random", "density": 0.02, "scope": "per_tensor"},
    "ffn_bias": {},
    "bitfit": {},
    "one tensor": {"rule": "largest", "density": 0.001, "include": ["encoder.layer.1.output.dense.weight"]},
    "word embeddings": {"rule": "random", "density": 0.01, "include": ["embeddings.word_embeddings.weight"]},
    "all": {},
}


def mask_of(model: nn.Module, case: str) -> Mask:
    return select(model, **{"rule": case, **RULES[case]})  # type: ignore[arg-type]


def loss_of(model: nn.Module, seed: int) -> Tensor:
    """A smooth scalar of the last hidden states of some token ids."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 1461, (3, 7), generator=generator)
    hidden: Tensor = model(input_ids=ids).last_hidden_state
    return (hidden * torch.randn(hidden.shape, generator=generator)).sum()


def dense_gradient(model: nn.Module, mask: Mask, seeds: list[int]) -> Tensor:
    """Oracle: the sum over the seeds' losses, by one backward of the whole model, gathered in the mask's order."""
    everything = copy.deepcopy(model).requires_grad_(True)
    torch.stack([loss_of(everything, seed) for seed in seeds]).sum().backward()
    return torch.cat(
        [everything.get_parameter(name).grad.flatten()[torch.tensor(i)] for name, i in mask.indices.items()]  # type: ignore[union-attr]
    )


@pytest.mark.parametrize("case", RULES)
def test_the_packed_gradient_is_the_dense_gradient_at_the_selected_entries(tiny: BaseModel, case: str) -> None:
    mask = mask_of(tiny.encoder, case)
    with SelectedGradient(SelectedEntries(tiny.encoder, mask)) as gradient:
        loss_of(tiny.encoder, 0).backward()
        packed = gradient.take()
    assert packed.dtype == torch.float32
    assert packed.abs().max() > 0.1
    torch.testing.assert_close(packed, dense_gradient(tiny.encoder, mask, [0]), rtol=1e-5, atol=1e-6)


def test_it_adds_up_over_backwards_until_it_is_taken(tiny: BaseModel) -> None:
    mask = mask_of(tiny.encoder, "pafi")
    with SelectedGradient(SelectedEntries(tiny.encoder, mask)) as gradient:
        loss_of(tiny.encoder, 0).backward()
        loss_of(tiny.encoder, 1).backward()
        both = gradient.take()
        loss_of(tiny.encoder, 2).backward()
        third = gradient.take()
        nothing = gradient.take()
    torch.testing.assert_close(both, dense_gradient(tiny.encoder, mask, [0, 1]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(third, dense_gradient(tiny.encoder, mask, [2]), rtol=1e-5, atol=1e-5)
    assert not nothing.any()


@pytest.mark.parametrize("case", ["pafi", "ffn_bias", "one tensor"])
def test_no_tensor_keeps_a_gradient_and_no_other_tensor_gets_one(tiny: BaseModel, case: str) -> None:
    mask = mask_of(tiny.encoder, case)
    parameters = dict(tiny.encoder.named_parameters())
    with SelectedGradient(SelectedEntries(tiny.encoder, mask)):
        assert {name for name, parameter in parameters.items() if parameter.requires_grad} == set(mask.shapes)
        loss_of(tiny.encoder, 0).backward()
        assert [name for name, parameter in parameters.items() if parameter.grad is not None] == []
    assert not any(parameter.requires_grad for parameter in parameters.values())


def test_one_dense_gradient_is_alive_at_a_time(tiny: BaseModel) -> None:
    model = copy.deepcopy(tiny.encoder)
    entries = SelectedEntries(model, mask_of(model, "per tensor"))
    alive: list[int] = []

    def count(_: Tensor) -> None:
        alive.append(sum(parameter.grad is not None for parameter in model.parameters()))

    for tensor in entries.tensors:
        tensor.requires_grad_(True)
        tensor.register_post_accumulate_grad_hook(count)  # type: ignore[no-untyped-call]
    with SelectedGradient(entries):
        loss_of(model, 0).backward()
    assert alive == [1] * len(entries.tensors)


def test_after_the_block_the_model_is_an_ordinary_one_also_when_the_block_raises(tiny: BaseModel) -> None:
    model = copy.deepcopy(tiny.encoder)
    entries = SelectedEntries(model, mask_of(model, "pafi"))
    with pytest.raises(KeyError), SelectedGradient(entries):
        raise KeyError
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.requires_grad_(True)
    loss_of(model, 0).backward()
    assert all(tensor.grad is not None for tensor in entries.tensors)
