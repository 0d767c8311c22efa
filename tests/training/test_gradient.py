"""The packed gradient against plain autograd on a copy of the model in which everything asks for a gradient."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fedmask.training.gradient as gradient_module
from fedmask.errors import FedmaskError
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


def assert_close_to_the_oracle(packed: Tensor, expected: Tensor) -> None:
    """Within 1e-6 of the largest gradient."""
    assert (packed - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("case", RULES)
def test_the_packed_gradient_is_the_dense_gradient_at_the_selected_entries(tiny: BaseModel, case: str) -> None:
    mask = mask_of(tiny.encoder, case)
    with SelectedGradient(tiny.encoder, SelectedEntries(tiny.encoder, mask)) as gradient:
        loss_of(tiny.encoder, 0).backward()
        packed = gradient.take()
    assert packed.dtype == torch.float32
    assert packed.abs().max() > 0.1
    assert_close_to_the_oracle(packed, dense_gradient(tiny.encoder, mask, [0]))


def test_it_adds_up_over_backwards_until_it_is_taken(tiny: BaseModel) -> None:
    mask = mask_of(tiny.encoder, "pafi")
    with SelectedGradient(tiny.encoder, SelectedEntries(tiny.encoder, mask)) as gradient:
        loss_of(tiny.encoder, 0).backward()
        loss_of(tiny.encoder, 1).backward()
        both = gradient.take()
        loss_of(tiny.encoder, 2).backward()
        third = gradient.take()
        nothing = gradient.take()
    assert_close_to_the_oracle(both, dense_gradient(tiny.encoder, mask, [0, 1]))
    assert_close_to_the_oracle(third, dense_gradient(tiny.encoder, mask, [2]))
    assert not nothing.any()


@pytest.mark.parametrize("case", ["pafi", "ffn_bias", "one tensor"])
def test_no_tensor_keeps_a_gradient_and_no_other_tensor_gets_one(tiny: BaseModel, case: str) -> None:
    mask = mask_of(tiny.encoder, case)
    parameters = dict(tiny.encoder.named_parameters())
    with SelectedGradient(tiny.encoder, SelectedEntries(tiny.encoder, mask)):
        asking = {name for name, parameter in parameters.items() if parameter.requires_grad}
        assert asking == (set(mask.shapes) if case == "ffn_bias" else set())  # a linear layer's weight never asks
        loss_of(tiny.encoder, 0).backward()
        assert [name for name, parameter in parameters.items() if parameter.grad is not None] == []
    assert not any(parameter.requires_grad for parameter in parameters.values())


def test_one_dense_gradient_is_alive_at_a_time(tiny: BaseModel) -> None:
    model = copy.deepcopy(tiny.encoder)
    entries = SelectedEntries(model, mask_of(model, "all"))
    alive: list[int] = []

    def count(_: Tensor) -> None:
        alive.append(sum(parameter.grad is not None for parameter in model.parameters()))

    for tensor in entries.tensors:
        tensor.requires_grad_(True)
        tensor.register_post_accumulate_grad_hook(count)  # type: ignore[no-untyped-call]
    with SelectedGradient(model, entries):
        loss_of(model, 0).backward()
    assert alive == [1] * len(entries.tensors)


def test_after_the_block_the_model_is_an_ordinary_one_also_when_the_block_raises(tiny: BaseModel) -> None:
    model = copy.deepcopy(tiny.encoder)
    entries = SelectedEntries(model, mask_of(model, "pafi"))
    with pytest.raises(KeyError), SelectedGradient(model, entries):
        raise KeyError
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.requires_grad_(True)
    loss_of(model, 0).backward()
    assert all(tensor.grad is not None for tensor in entries.tensors)


# ----------------------------------------------------------------------------------------------------------------------
# Models other than an encoder
# ----------------------------------------------------------------------------------------------------------------------


class Twice(nn.Module):
    """A layer that is called twice, and a second one that shares its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.first(torch.tanh(self.first(x)))))
        return out


class Tied(nn.Module):
    """An output layer whose weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 6)
        self.output = nn.Linear(6, 6, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.output(torch.tanh(self.embedding((x[..., 0] > 0).long())))
        return out


class Attention(nn.Module):
    """Uses the weight of its output layer without calling that layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(x, x, x)[0]
        return out


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(1, 4),
    st.floats(0.0, 1.0),
    st.sampled_from(["gather", "sampled", "dense"]),
    st.integers(0, 2**31),
)
@settings(max_examples=80, deadline=None)
def test_every_way_gives_the_dense_gradient_whatever_the_shape_and_the_density(
    num_in: int, num_out: int, batch: int, tokens: int, share: float, way: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(num_in, num_out), nn.Tanh(), nn.Linear(num_out, num_in))
    shapes, indices = {}, {}
    for name in ("0.weight", "2.weight"):
        size = num_in * num_out
        chosen = (
            torch.randperm(size, generator=generator)[: max(1, int(share * size))].sort().values
        )  # rows may be empty
        shapes[name] = tuple(model.get_parameter(name).shape)
        indices[name] = chosen.numpy()
    mask = Mask(shapes, indices, sum(parameter.numel() for parameter in model.parameters()))
    x = torch.randn(batch, tokens, num_in, generator=generator)
    oracle = copy.deepcopy(model)
    (oracle(x) ** 2).sum().backward()
    expected = torch.cat([oracle.get_parameter(name).grad.flatten()[i] for name, i in indices.items()])  # type: ignore[union-attr, index]
    model.requires_grad_(False)
    with forced(way), SelectedGradient(model, SelectedEntries(model, mask)) as gradient:
        (model(x) ** 2).sum().backward()
        packed = gradient.take()
    assert (packed - expected).abs().max() <= 1e-6 * expected.abs().max() + 1e-7


@contextmanager
def forced(way: str) -> Iterator[None]:
    """All linear weights by one way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradient_module, "MAX_GATHERED", 1.0 if way == "gather" else -1.0)
        patch.setattr(gradient_module, "MAX_SAMPLED", 1.0 if way == "sampled" else -1.0)
        yield


class InPlace(nn.Module):
    """Adds into what its lowest layer gave, as Longformer does, and into the next one's."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        low = self.first(x)
        low /= 3.0
        low[0, 0] += 1.0
        out: Tensor = self.second(torch.tanh(low))
        out.mul_(2.0)
        return out


@pytest.mark.parametrize("way", ["gather", "sampled", "dense"])
@pytest.mark.parametrize(
    ("model", "name"),
    [
        (Twice, "first.weight"),
        (Tied, "embedding.weight"),
        (Attention, "attention.out_proj.weight"),
        (InPlace, "first.weight"),
        (InPlace, "second.weight"),
    ],
)
def test_a_weight_used_twice_or_elsewhere_loses_nothing(way: str, model: type[nn.Module], name: str) -> None:
    torch.manual_seed(0)
    made = model()
    oracle = copy.deepcopy(made)
    x = torch.randn(2, 3, 6)
    (oracle(x) ** 2).sum().backward()
    made.requires_grad_(False)
    chosen = np.arange(0, 36, 5)
    mask = Mask({name: (6, 6)}, {name: chosen}, sum(parameter.numel() for parameter in made.parameters()))
    with forced(way), SelectedGradient(made, SelectedEntries(made, mask)) as gradient:
        (made(x) ** 2).sum().backward()
        packed = gradient.take()
    expected = oracle.get_parameter(name).grad.flatten()[torch.from_numpy(chosen)]  # type: ignore[union-attr]
    assert_close_to_the_oracle(packed, expected)


class InputInPlace(nn.Module):
    """Changes what a layer has read."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        copied = x.clone()
        out: Tensor = self.layer(copied)
        copied += 1.0
        return out


def test_a_model_that_changes_what_a_layer_has_read_is_told_so_in_one_line() -> None:
    model = InputInPlace().requires_grad_(False)
    mask = Mask({"layer.weight": (6, 6)}, {"layer.weight": np.arange(0, 36, 5)}, 42)
    with forced("gather"), SelectedGradient(model, SelectedEntries(model, mask)):
        loss = (model(torch.randn(2, 6)) ** 2).sum()
        with pytest.raises(FedmaskError, match=r"^the model changes a linear layer's input in place once"):
            loss.backward()


# ----------------------------------------------------------------------------------------------------------------------
# A base in bfloat16: 8 significant bits, so a number rounded to it once is off by at most ROUNDED_ONCE of itself
# ----------------------------------------------------------------------------------------------------------------------

ROUNDED_ONCE = 2.0**-8
MANY_TOKENS = 4096
"""A sum that is held in bfloat16 stands still long before it has that many like terms."""


@pytest.mark.parametrize(("way", "bound"), [("gather", 1e-5), ("sampled", 1e-5), ("dense", ROUNDED_ONCE)])
def test_a_bfloat16_layer_loses_nothing_in_the_sum_over_tokens(way: str, bound: float) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(8, 6).bfloat16().requires_grad_(False)
    x, g = (0.3 + 0.1 * torch.randn(16, MANY_TOKENS // 16, n, generator=generator) for n in (8, 6))
    x, g = x.bfloat16(), g.bfloat16()
    mask = Mask({"weight": (6, 8), "bias": (6,)}, {"weight": np.arange(0, 48, 5), "bias": np.arange(6)}, 54)
    with forced(way), SelectedGradient(layer, SelectedEntries(layer, mask)) as gradient:
        layer(x).backward(g)
        packed = gradient.take()
    flat_g, flat_x = g.double().flatten(0, 1), x.double().flatten(0, 1)
    weight, bias = (flat_g.t() @ flat_x).flatten()[::5], flat_g.sum(0)
    assert ((packed[:10] - weight).abs() <= bound * weight.abs()).all()
    assert ((packed[10:] - bias).abs() <= ROUNDED_ONCE * bias.abs()).all()  # a bias goes the dense way


def test_a_bfloat16_layer_norm_loses_nothing_in_the_sum_over_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    norm = nn.LayerNorm(8).bfloat16().requires_grad_(False)
    x = torch.randn(16, MANY_TOKENS // 16, 8, generator=generator).bfloat16()
    g = (0.3 + 0.1 * x + 0.1 * torch.randn(x.shape, generator=generator)).bfloat16()
    mask = Mask({"weight": (8,), "bias": (8,)}, {"weight": np.array([1, 4, 7]), "bias": np.arange(8)}, 16)
    with SelectedGradient(norm, SelectedEntries(norm, mask)) as gradient:
        norm(x).backward(g)
        packed = gradient.take()
    assert not any(parameter.requires_grad for parameter in norm.parameters())
    flat_g, normalised = g.double().flatten(0, 1), nn.functional.layer_norm(x.double(), (8,)).flatten(0, 1)
    weight, bias = (flat_g * normalised).sum(0)[[1, 4, 7]], flat_g.sum(0)
    assert (packed[:3] - weight).abs().max() <= 1e-5 * weight.abs().max()
    assert (packed[3:] - bias).abs().max() <= 1e-5 * bias.abs().max()


@pytest.mark.parametrize("case", RULES)
def test_the_gradient_of_a_bfloat16_base_is_near_the_one_in_float32_of_the_same_weights(
    tiny_bf16: BaseModel, case: str
) -> None:
    mask = mask_of(tiny_bf16.encoder, case)
    with SelectedGradient(tiny_bf16.encoder, SelectedEntries(tiny_bf16.encoder, mask)) as gradient:
        loss_of(tiny_bf16.encoder, 0).backward()
        packed = gradient.take()
    assert packed.dtype == torch.float32
    expected = dense_gradient(copy.deepcopy(tiny_bf16.encoder).float(), mask, [0])
    # Some tens of roundings lie between an activation and its gradient; they add up as noise does.
    assert (packed - expected).norm() <= 8 * ROUNDED_ONCE * expected.norm()


def test_nothing_below_the_lowest_selected_layer_is_computed(tiny: BaseModel) -> None:
    model = copy.deepcopy(tiny.encoder)
    reached: list[str] = []
    for name in (
        "encoder.layer.0.output.dense",
        "encoder.layer.1.attention.output.dense",
        "encoder.layer.1.output.dense",
    ):
        model.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: reached.append(name) if output.requires_grad else None
        )
    with SelectedGradient(model, SelectedEntries(model, mask_of(model, "one tensor"))):
        # Hooks of the test came first: the selected layer's own output does not yet ask for a gradient there.
        assert loss_of(model, 0).requires_grad
    assert reached == []


def test_no_hook_is_left_and_scoring_inside_the_block_costs_nothing(tiny: BaseModel) -> None:
    model = copy.deepcopy(tiny.encoder)
    selected = SelectedGradient(model, SelectedEntries(model, mask_of(model, "pafi")))
    with selected as gradient:
        with torch.no_grad():
            loss_of(model, 0)
        assert not gradient.take().any()
    assert not any(module._forward_hooks for module in model.modules())
    expected = dense_gradient(model, selected.entries.mask, [0])
    for _ in range(2):  # one object serves round after round
        with selected as gradient:
            loss_of(model, 0).backward()
            assert_close_to_the_oracle(gradient.take(), expected)
