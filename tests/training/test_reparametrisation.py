"""Where training starts, that no network starts dead, and the values against the formula in NumPy."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmask.errors import FedmaskError
from fedmask.masks import Mask, select
from fedmask.models import BaseModel
from fedmask.training.delta import SelectedEntries
from fedmask.training.reparametrisation import BiasNetworks, Direct


class Biases(nn.Module):
    """A model that is nothing but bias vectors."""

    def __init__(self, vectors: Sequence[Tensor]) -> None:
        super().__init__()
        for i, vector in enumerate(vectors):
            self.register_parameter(f"b{i}", nn.Parameter(vector, requires_grad=False))


def entries_over(*vectors: Tensor) -> SelectedEntries:
    """Every entry of every vector is selected."""
    sizes = {f"b{i}": (len(vector),) for i, vector in enumerate(vectors)}
    indices = {name: np.arange(size) for name, (size,) in sizes.items()}
    return SelectedEntries(Biases(vectors), Mask(sizes, indices, sum(map(len, vectors))))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def networks(entries: SelectedEntries, rank: int = 4, seed: int = 0, received: Tensor | None = None) -> BiasNetworks:
    zeros = torch.zeros(entries.mask.num_selected)
    return BiasNetworks(entries, zeros if received is None else received, rank, seeded(seed))


def down_and_up(made: BiasNetworks) -> list[tuple[Tensor, Tensor]]:
    """(W_down, W_up) of each network, in the order of the bias vectors."""
    return [(down, up) for down, up, _ in _networks(made)]


def up_gradients(made: BiasNetworks) -> list[Tensor]:
    """Of each network's W_up."""
    return [gradient for _, _, gradient in _networks(made) if gradient is not None]


def _networks(made: BiasNetworks) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    half = len(made._groups)
    parameters = made.parameters()
    by_vector = {
        vector: (down[place], up[place], None if up.grad is None else up.grad[place])
        for group, down, up in zip(made._groups, parameters[:half], parameters[half:], strict=True)
        for place, vector in enumerate(group)
    }
    return [by_vector[vector] for vector in sorted(by_vector)]


def test_direct_values_start_at_the_received_delta_and_leave_it_alone() -> None:
    received = torch.randn(6, generator=seeded(0))
    direct = Direct(received)
    assert torch.equal(direct.values(), received)
    (parameter,) = direct.parameters()
    (direct.values() * torch.arange(6.0)).sum().backward()
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [0, 1, 2, 3, 4, 5]
    with torch.no_grad():
        parameter += 1
    assert torch.equal(direct.values() - 1, (received + 1) - 1)
    assert not torch.equal(direct.values(), received)


@pytest.mark.parametrize("rank", [1, 2, 4, 8])
def test_every_unit_of_every_network_has_a_gradient_at_the_start(rank: int) -> None:
    # Two entries, one sign only, tiny and large numbers: a plain draw leaves most of these with dead units.
    vectors = [
        torch.randn(16, generator=seeded(1)) * 0.02,
        torch.full((8,), -3.0),
        torch.tensor([0.0, 1e-6]),
        torch.randn(4, generator=seeded(2)) * 50,
        torch.tensor([1e-25, -1e-25]),
    ]
    entries = entries_over(*vectors)
    for seed in range(100):
        made = networks(entries, rank, seed)
        made.values().backward(torch.ones(entries.mask.num_selected))
        gradients = up_gradients(made)
        assert len(gradients) == len(vectors)
        for i, gradient in enumerate(gradients):
            size_by_unit = gradient.abs().sum(dim=1)
            assert torch.all(size_by_unit > 1e-6), f"seed {seed}, vector {i}: a dead unit"
            assert torch.all(size_by_unit < 10 * len(vectors[i])), f"seed {seed}, vector {i}: not of standard size"


@pytest.mark.parametrize("rank", [1, 4])
def test_every_network_of_a_model_has_a_gradient_at_the_start(tiny: BaseModel, rank: int) -> None:
    entries = SelectedEntries(tiny.encoder, select(tiny.encoder, "hiwi", base_digest=tiny.digest))
    cotangent = torch.randn(entries.mask.num_selected, generator=seeded(0))
    for seed in range(30):
        made = networks(entries, rank, seed)
        made.values().backward(cotangent)
        gradients = up_gradients(made)
        assert len(gradients) == len(entries.mask.shapes) == 4
        for gradient in gradients:
            assert torch.all(gradient.abs().sum(dim=1) > 0)


def test_networks_start_exactly_at_the_received_delta(tiny: BaseModel) -> None:
    entries = SelectedEntries(tiny.encoder, select(tiny.encoder, "hiwi", base_digest=tiny.digest))
    received = torch.randn(entries.mask.num_selected, generator=seeded(3))
    made = networks(entries, received=received)
    assert made.values().tolist() == received.tolist()
    received += 1  # the caller's vector is the caller's
    assert made.values().tolist() != received.tolist()


def test_the_values_are_the_received_delta_plus_the_networks_of_the_biases() -> None:
    # Two of one length, with another between them: they are computed together, and come back in their places.
    entries = entries_over(*(torch.randn(size, generator=seeded(seed)) for seed, size in enumerate((5, 3, 5))))
    received = torch.randn(13, generator=seeded(3))
    made = networks(entries, rank=2, received=received)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += torch.randn(parameter.shape, generator=seeded(4))
    changes = []
    for bias, (down, up) in zip(entries.base_values, down_and_up(made), strict=True):
        assert (down.shape, up.shape) == ((len(bias), 2), (2, len(bias)))
        b, w_down, w_up = (tensor.detach().numpy().astype(np.float64) for tensor in (bias, down, up))
        changes.append(np.maximum(b / np.abs(b).sum() @ w_down, 0) @ w_up)
    expected = received.numpy() + np.concatenate(changes)
    np.testing.assert_allclose(made.values().detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_activations_do_not_depend_on_the_size_of_the_biases() -> None:
    bias = torch.randn(300, generator=seeded(1))
    activations = []
    for size in (1e-4, 1.0, 1e3):
        ((down, _),) = down_and_up(networks(entries_over(bias * size), rank=200))
        activations.append(bias * size / (bias * size).abs().sum() @ down.detach())
    torch.testing.assert_close(activations[0], activations[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(activations[2], activations[1], rtol=1e-4, atol=1e-5)
    # The mean of |z|, z standard normal, is sqrt(2 / pi) = 0.80; 200 draws of it stay within 0.15 of that.
    assert abs(activations[1].mean().item() - 0.80) < 0.15


def test_no_unit_dies_or_blows_up_in_a_few_steps_at_a_large_rate() -> None:
    bias = torch.randn(1536, generator=seeded(1)) * 0.3
    made = networks(entries_over(bias))
    start = bias / bias.abs().sum() @ down_and_up(made)[0][0].detach()
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.02, weight_decay=0.0)
    wanted = torch.randn(1536, generator=seeded(2))
    for _ in range(10):
        optimizer.zero_grad()
        ((made.values() - wanted) ** 2).sum().backward()
        optimizer.step()
    moved = bias / bias.abs().sum() @ down_and_up(made)[0][0].detach() - start
    assert moved.abs().max() < 10 * 0.02 * 1.01


def test_the_generator_decides_the_networks() -> None:
    entries = entries_over(torch.randn(5, generator=seeded(1)))
    first, again, other = (networks(entries, seed=seed).parameters()[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_zero_vector_beside_others_keeps_its_received_values() -> None:
    entries = entries_over(torch.zeros(2000), torch.ones(3))
    received = torch.randn(2003, generator=seeded(0))
    for seed in range(20):
        made = networks(entries, seed=seed, received=received)
        optimizer = torch.optim.AdamW(made.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            made.values().sum().backward()
            optimizer.step()
        values = made.values().detach()
        assert torch.equal(values[:2000], received[:2000])
        assert torch.all(values[2000:] != received[2000:])


def test_biases_that_are_all_zero_are_refused() -> None:
    with pytest.raises(FedmaskError, match=r"^mask=hiwi: every feed-forward bias of this model is zero.*take mask=ffn"):
        networks(entries_over(torch.zeros(4), torch.zeros(3)))


def test_select_refuses_a_model_without_feed_forward_biases_or_with_zeros_only() -> None:
    with pytest.raises(FedmaskError, match=r"^rule hiwi: the model has no feed-forward biases"):
        select(nn.Sequential(nn.Linear(3, 3)), "hiwi")
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 1, enable_nested_tensor=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(0 if "linear" in name else 1)
    with pytest.raises(FedmaskError, match=r"^rule hiwi: all 24 feed-forward biases are exactly zero"):
        select(model, "hiwi")
