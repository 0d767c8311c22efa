"""Local training against a dense loop with AdamW written out, and what it must leave alone."""

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedmask.masks import Mask, base_digest, select
from fedmask.models import BaseModel
from fedmask.tasks.task import Split
from fedmask.training.delta import SelectedEntries
from fedmask.training.gradient import SelectedGradient
from fedmask.training.head import HeadLayout
from fedmask.training.local import (
    LocalResult,
    LocalSettings,
    labels_for_loss,
    shuffled_batches,
    train_delta_and_head,
    train_head,
)
from fedmask.training.reparametrisation import BiasNetworks, Direct
from fedmask.training.text import TokenizedSplit, encode, tokenize

CPU = torch.device("cpu")
CLASSES = HeadLayout("mood", ("bad", "good"), 64)
RATING = HeadLayout("rating", None, 64)
SETTINGS = LocalSettings(
    local_epochs=2, batch_size=8, learning_rate=2e-3, head_learning_rate=1e-3, weight_decay=0.0, batch_seed=7
)


@pytest.fixture(scope="module")
def data(tiny: BaseModel) -> TokenizedSplit:
    """20 short texts of two classes: batches of 8, 8 and 4."""
    texts = [f"film {i} was {'fine' if i % 3 == 0 else 'a dull and empty thing'}" for i in range(20)]
    labels = np.array([int(i % 3 == 0) for i in range(20)])
    return tokenize(Split(tuple(texts), None, labels), tiny.tokenizer, tiny.encoder, max_length=32)


@pytest.fixture(scope="module")
def ratings(data: TokenizedSplit) -> TokenizedSplit:
    return dataclasses.replace(data, labels=np.linspace(0.0, 5.0, 20))


def mask_of(base: BaseModel, rule: str = "pafi") -> Mask:
    options: dict[str, Any] = {"density": 0.02} if rule in ("pafi", "random") else {}
    return select(base.encoder, rule, **options, base_digest=base.digest)


def train_direct(
    encoder: nn.Module,
    mask: Mask,
    data: TokenizedSplit,
    local: LocalSettings = SETTINGS,
    layout: HeadLayout = CLASSES,
    received: Tensor | None = None,
    head: Tensor | None = None,
) -> LocalResult:
    received = torch.zeros(mask.num_selected) if received is None else received
    head = layout.random_start(0) if head is None else head
    gradient = SelectedGradient(encoder, SelectedEntries(encoder, mask))
    return train_delta_and_head(encoder, gradient, Direct(received), layout, head, data, local)


def some_delta(mask: Mask) -> Tensor:
    return torch.randn(mask.num_selected, generator=torch.Generator().manual_seed(0)) * 0.01


def dense_oracle(
    base: BaseModel, mask: Mask, data: TokenizedSplit, local: LocalSettings, received: Tensor, head: Tensor
) -> tuple[Tensor, Tensor, list[float]]:
    """The same training, nothing packed: whole tensors, gradients zero outside the mask, AdamW spelled out."""
    model = copy.deepcopy(base.encoder).requires_grad_(True)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    inside = {name: torch.zeros(start[name].numel()) for name in mask.shapes}
    delta = {name: torch.zeros(start[name].numel()) for name in mask.shapes}
    for name, index in mask.indices.items():
        inside[name][torch.tensor(index)] = 1.0
        delta[name][torch.tensor(index)] = received[mask.slices[name]]
    linear = nn.Linear(64, CLASSES.num_outputs)
    with torch.no_grad():
        linear.weight.copy_(head[:-2].view(2, 64))
        linear.bias.copy_(head[-2:])
    head_optimizer = torch.optim.AdamW(linear.parameters(), lr=local.head_learning_rate, weight_decay=0.0)
    first = {name: torch.zeros_like(values) for name, values in delta.items()}
    second = {name: torch.zeros_like(values) for name, values in delta.items()}
    losses = []
    for step, rows in enumerate(shuffled_batches(data.lengths, local), start=1):
        with torch.no_grad():
            for name, values in delta.items():
                model.get_parameter(name).copy_(start[name] + values.view(start[name].shape))
        model.zero_grad()
        head_optimizer.zero_grad()
        inputs = data.batch(rows, CPU)
        hidden = model(**inputs).last_hidden_state
        features = torch.stack(
            [states[: int(kept.sum())].mean(0) for states, kept in zip(hidden, inputs["attention_mask"], strict=True)]
        )
        outputs = linear(features)
        chosen = outputs.log_softmax(1)[torch.arange(len(rows)), torch.tensor(data.labels[rows])]
        loss = -chosen.mean()
        loss.backward()
        losses.append(loss.item())
        for name in delta:
            grad = model.get_parameter(name).grad
            assert grad is not None
            gradient = grad.flatten() * inside[name]
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            towards = (first[name] / (1 - 0.9**step)) / ((second[name] / (1 - 0.999**step)).sqrt() + 1e-8)
            delta[name] = delta[name] * (1 - local.learning_rate * local.weight_decay) - local.learning_rate * towards
        head_optimizer.step()
    packed = torch.cat([delta[name][torch.tensor(index)] for name, index in mask.indices.items()])
    return packed, torch.cat([linear.weight.detach().flatten(), linear.bias.detach()]), losses


@pytest.mark.parametrize(("rule", "decay"), [("pafi", 0.0), ("pafi", 2.0), ("ffn_bias", 0.5)])
def test_training_is_adamw_on_the_dense_model_with_masked_gradients(
    tiny: BaseModel, data: TokenizedSplit, rule: str, decay: float
) -> None:
    mask = mask_of(tiny, rule)
    local = dataclasses.replace(SETTINGS, weight_decay=decay)
    received, head = some_delta(mask), CLASSES.random_start(3)
    result = train_direct(tiny.encoder, mask, data, local, received=received, head=head)
    delta, expected_head, losses = dense_oracle(tiny, mask, data, local, received, head)
    assert (result.delta - received).abs().max() > 5 * local.learning_rate  # six steps moved it
    # AdamW divides by the gradient's size, so a last bit of a gradient near zero can move an entry by part of a step.
    torch.testing.assert_close(result.delta, delta, rtol=0.0, atol=local.learning_rate / 20)
    assert (result.delta - delta).abs().mean() < local.learning_rate / 1e4
    torch.testing.assert_close(result.head, expected_head, rtol=0.0, atol=1e-5)
    assert len(losses) == 6
    assert result.mean_loss == pytest.approx(np.mean(losses), abs=1e-5)


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_no_step_touches_an_entry_outside_the_mask(tiny: BaseModel, data: TokenizedSplit, decay: float) -> None:
    model = copy.deepcopy(tiny.encoder)
    mask = mask_of(tiny, "random")
    base = {name: parameter.detach().clone().flatten() for name, parameter in model.named_parameters()}
    changed_by_step: list[int] = []

    def compare(*_: object) -> None:
        changed = 0
        for name, parameter in model.named_parameters():
            differs = parameter.detach().flatten().view(torch.int32) != base[name].view(torch.int32)
            if name in mask.indices:
                changed += int(differs.sum())
                differs[torch.tensor(mask.indices[name])] = False
            assert not differs.any(), name
        changed_by_step.append(changed)

    model.register_forward_pre_hook(compare)
    local = dataclasses.replace(SETTINGS, local_epochs=5, weight_decay=decay)
    train_direct(model, mask, data, local)
    assert len(changed_by_step) == 15
    assert changed_by_step[0] == 0  # the received delta is zero
    assert all(changed > 0.9 * mask.num_selected for changed in changed_by_step[1:])


def test_the_model_holds_the_received_delta_at_the_first_step_and_the_base_at_the_end(
    tiny: BaseModel, data: TokenizedSplit
) -> None:
    model = copy.deepcopy(tiny.encoder)
    mask = mask_of(tiny)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda *_: seen.append(torch.cat(SelectedEntries(model, mask).base_values)))
    received = some_delta(mask)
    expected = torch.cat(SelectedEntries(model, mask).base_values) + received
    train_direct(model, mask, data, received=received)
    assert torch.equal(seen[0], expected)
    assert base_digest(model) == tiny.digest


@pytest.mark.parametrize("rule", ["pafi", "bitfit", "hiwi"])
def test_a_bfloat16_base_is_trained_in_float32_values_and_restored_to_the_bit(
    tiny_bf16: BaseModel, data: TokenizedSplit, rule: str
) -> None:
    model, mask = copy.deepcopy(tiny_bf16.encoder), mask_of(tiny_bf16, rule)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    entries, received = SelectedEntries(model, mask), some_delta(mask)
    how = BiasNetworks(entries, received, 4, torch.Generator().manual_seed(0)) if rule == "hiwi" else Direct(received)
    gradient, head = SelectedGradient(model, entries), CLASSES.random_start(0)
    result = train_delta_and_head(model, gradient, how, CLASSES, head, data, SETTINGS)
    assert (result.delta.dtype, result.head.dtype) == (torch.float32, torch.float32)
    moved = result.delta - received
    assert moved.abs().max() > SETTINGS.learning_rate
    # Steps below the spacing of bfloat16 numbers are kept: the values are not what bfloat16 can hold.
    assert (result.delta.bfloat16().float() != result.delta).float().mean() > 0.9
    assert base_digest(model) == tiny_bf16.digest
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter.view(torch.int16), before[name].view(torch.int16))


def test_training_in_bfloat16_lowers_the_loss(tiny_bf16: BaseModel, data: TokenizedSplit) -> None:
    mask = mask_of(tiny_bf16, "ffn_bias")
    before = train_direct(tiny_bf16.encoder, mask, data, one_batch()).mean_loss
    local = dataclasses.replace(SETTINGS, local_epochs=10, learning_rate=2e-2, head_learning_rate=2e-2)
    trained = train_direct(tiny_bf16.encoder, mask, data, local)
    again = train_direct(tiny_bf16.encoder, mask, data, one_batch(), received=trained.delta, head=trained.head)
    assert again.mean_loss < 0.7 * before


def test_the_model_is_restored_when_training_raises(tiny: BaseModel, data: TokenizedSplit) -> None:
    model = copy.deepcopy(tiny.encoder)
    calls = 0

    def fail_at_the_third(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            assert base_digest(model) != tiny.digest
            raise KeyError

    model.register_forward_hook(fail_at_the_third)
    mask = mask_of(tiny)
    with pytest.raises(KeyError):
        train_direct(model, mask, data, received=some_delta(mask))
    assert base_digest(model) == tiny.digest
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("rule", ["pafi", "hiwi"])
def test_the_same_seeds_give_the_same_bits_whatever_the_global_state(
    tiny: BaseModel, data: TokenizedSplit, rule: str
) -> None:
    mask = mask_of(tiny, rule)

    def trained(global_seed: int, network_seed: int, local: LocalSettings) -> LocalResult:
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)
        entries = SelectedEntries(tiny.encoder, mask)
        received = some_delta(mask)
        generator = torch.Generator().manual_seed(network_seed)
        how = BiasNetworks(entries, received, 4, generator) if rule == "hiwi" else Direct(received)
        gradient = SelectedGradient(tiny.encoder, entries)
        return train_delta_and_head(tiny.encoder, gradient, how, CLASSES, CLASSES.random_start(0), data, local)

    first, again = trained(0, 0, SETTINGS), trained(99, 0, SETTINGS)
    assert torch.equal(first.delta, again.delta)
    assert torch.equal(first.head, again.head)
    assert first.mean_loss == again.mean_loss
    assert not torch.equal(first.delta, trained(0, 0, dataclasses.replace(SETTINGS, batch_seed=8)).delta)
    assert torch.equal(first.delta, trained(0, 1, SETTINGS).delta) == (rule == "pafi")


def test_weight_decay_pulls_the_delta_to_zero_and_nothing_else(tiny: BaseModel, data: TokenizedSplit) -> None:
    # A head of zeros that does not learn: no gradient reaches the encoder, decay is all that is left.
    mask = mask_of(tiny)
    local = dataclasses.replace(SETTINGS, learning_rate=0.1, head_learning_rate=0.0, weight_decay=0.5)
    received, head = some_delta(mask), torch.zeros(CLASSES.size)
    result = train_direct(tiny.encoder, mask, data, local, received=received, head=head)
    torch.testing.assert_close(result.delta, received * (1 - 0.1 * 0.5) ** 6, rtol=1e-5, atol=0.0)
    assert torch.equal(result.head, head)


def test_what_comes_in_is_not_changed(tiny: BaseModel, data: TokenizedSplit) -> None:
    mask = mask_of(tiny)
    received, head = some_delta(mask), CLASSES.random_start(0)
    result = train_direct(tiny.encoder, mask, data, received=received, head=head)
    assert torch.equal(received, some_delta(mask))
    assert torch.equal(head, CLASSES.random_start(0))
    assert not torch.equal(result.head, head)
    assert not result.delta.requires_grad
    assert not result.head.requires_grad


def test_a_head_rate_of_zero_leaves_the_head(tiny: BaseModel, data: TokenizedSplit) -> None:
    result = train_direct(tiny.encoder, mask_of(tiny), data, dataclasses.replace(SETTINGS, head_learning_rate=0.0))
    assert torch.equal(result.head, CLASSES.random_start(0))
    assert result.delta.any()


def one_batch(local: LocalSettings = SETTINGS) -> LocalSettings:
    """One batch of everything, and nothing moves: the mean loss is the loss of what came in."""
    return dataclasses.replace(local, local_epochs=1, batch_size=100, learning_rate=0.0, head_learning_rate=0.0)


def test_the_loss_is_cross_entropy_or_squared_error(
    tiny: BaseModel, data: TokenizedSplit, ratings: TokenizedSplit
) -> None:
    mask = mask_of(tiny)
    features = encode(tiny.encoder, data).numpy().astype(np.float64)
    packed = CLASSES.random_start(1).numpy().astype(np.float64)
    logits = features @ packed[:-2].reshape(2, 64).T + packed[-2:]
    log_likelihood = logits[np.arange(20), data.labels] - np.log(np.exp(logits).sum(1))
    found = train_direct(tiny.encoder, mask, data, one_batch(), head=CLASSES.random_start(1)).mean_loss
    assert found == pytest.approx(-log_likelihood.mean(), rel=1e-5)

    packed = RATING.random_start(1).numpy().astype(np.float64)
    errors = features @ packed[:-1] + packed[-1] - ratings.labels
    found = train_direct(tiny.encoder, mask, ratings, one_batch(), RATING, head=RATING.random_start(1)).mean_loss
    assert found == pytest.approx((errors**2).mean(), rel=1e-5)


@pytest.mark.parametrize("kind", ["classes", "ratings"])
def test_training_lowers_the_loss(tiny: BaseModel, data: TokenizedSplit, ratings: TokenizedSplit, kind: str) -> None:
    layout, rows = (CLASSES, data) if kind == "classes" else (RATING, ratings)
    mask = mask_of(tiny, "ffn_bias")
    before = train_direct(tiny.encoder, mask, rows, one_batch(), layout).mean_loss
    local = dataclasses.replace(SETTINGS, local_epochs=10, learning_rate=2e-2, head_learning_rate=2e-2)
    trained = train_direct(tiny.encoder, mask, rows, local, layout)
    after = train_direct(
        tiny.encoder, mask, rows, one_batch(), layout, received=trained.delta, head=trained.head
    ).mean_loss
    assert after < 0.7 * before


def test_hiwi_learns_a_delta_over_the_feed_forward_biases_alone(tiny: BaseModel, data: TokenizedSplit) -> None:
    model = copy.deepcopy(tiny.encoder)
    base = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    moved: set[str] = set()

    def compare(*_: object) -> None:
        moved.update(name for name, parameter in model.named_parameters() if not torch.equal(parameter, base[name]))

    model.register_forward_pre_hook(compare)
    mask = mask_of(tiny, "hiwi")
    assert mask == mask_of(tiny, "ffn_bias")
    entries = SelectedEntries(model, mask)
    received = torch.zeros(mask.num_selected)
    networks = BiasNetworks(entries, received, 4, torch.Generator().manual_seed(0))
    # The head stays, so that all that is learned is learned by the networks. Lengths give the labels away here, so that
    # batches are of one label each, and learning is slow.
    local = dataclasses.replace(SETTINGS, local_epochs=60, learning_rate=3e-3, head_learning_rate=0.0)
    head = CLASSES.random_start(0) * 20
    result = train_delta_and_head(model, SelectedGradient(model, entries), networks, CLASSES, head, data, local)

    layers = [f"encoder.layer.{i}.{part}.dense.bias" for i in range(2) for part in ("intermediate", "output")]
    assert moved == set(layers)
    # What comes back is the delta, one number an entry of the mask: the same vector as the control's.
    assert result.delta.shape == (mask.num_selected,) == (2 * (256 + 64),)
    assert all(result.delta[where].any() for where in mask.slices.values())
    before, after = (
        train_direct(tiny.encoder, mask, data, one_batch(), received=delta, head=head).mean_loss
        for delta in (received, result.delta)
    )
    assert after < 0.9 * before


@given(st.integers(1, 50), st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**62))
@settings(deadline=None)
def test_every_row_comes_once_an_epoch(num_examples: int, batch_size: int, epochs: int, seed: int) -> None:
    local = dataclasses.replace(SETTINGS, local_epochs=epochs, batch_size=batch_size, batch_seed=seed)
    lengths = np.random.default_rng(seed).integers(1, 64, num_examples)
    batches = [rows.tolist() for rows in shuffled_batches(lengths, local)]
    assert batches == [rows.tolist() for rows in shuffled_batches(lengths, local)]
    steps = -(-num_examples // batch_size)
    assert len(batches) == epochs * steps
    for epoch in range(epochs):
        of_epoch = batches[epoch * steps : (epoch + 1) * steps]
        assert Counter(row for rows in of_epoch for row in rows) == Counter(range(num_examples))
        assert sorted(map(len, of_epoch))[1:] == [batch_size] * (steps - 1)


def test_rows_of_like_length_share_a_batch_but_not_an_order() -> None:
    lengths = np.random.default_rng(0).integers(1, 64, 800)
    batches = list(shuffled_batches(lengths, dataclasses.replace(SETTINGS, local_epochs=1)))
    padded = sum(len(rows) * lengths[rows].max() for rows in batches)
    assert padded < 1.2 * lengths.sum()
    longest = np.array([lengths[rows].max() for rows in batches])
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3


def test_the_order_differs_between_epochs_and_seeds() -> None:
    def order(seed: int) -> list[list[int]]:
        local = dataclasses.replace(SETTINGS, batch_size=30, batch_seed=seed)
        return [rows.tolist() for rows in shuffled_batches(np.full(30, 5), local)]

    first, second = order(0)
    assert first != second
    assert order(1) != [first, second]


def test_a_head_over_fixed_features_is_trained_like_the_one_over_the_encoder(
    tiny: BaseModel, data: TokenizedSplit, ratings: TokenizedSplit
) -> None:
    cases: list[tuple[HeadLayout, TokenizedSplit, Callable[..., Tensor]]] = [
        (CLASSES, data, nn.functional.cross_entropy),
        (RATING, ratings, lambda outputs, labels: ((outputs[:, 0] - labels) ** 2).mean()),
    ]
    for layout, rows, loss_of in cases:
        features, labels = encode(tiny.encoder, rows), labels_for_loss(rows.labels)
        local = dataclasses.replace(SETTINGS, head_learning_rate=1e-2, learning_rate=0.0)
        head, mean_loss = train_head(features, layout, layout.random_start(0), rows, local)

        linear = nn.Linear(64, layout.num_outputs)
        with torch.no_grad():
            linear.weight.copy_(layout.random_start(0)[: -layout.num_outputs].view(-1, 64))
            linear.bias.zero_()
        optimizer = torch.optim.AdamW(linear.parameters(), lr=1e-2, weight_decay=0.0)
        losses = []
        for batch in shuffled_batches(rows.lengths, local):
            loss = loss_of(linear(features[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        expected = torch.cat([linear.weight.detach().flatten(), linear.bias.detach()])
        torch.testing.assert_close(head, expected, rtol=0.0, atol=1e-5)
        assert mean_loss == pytest.approx(np.mean(losses), rel=1e-5)
        encoder_too = train_direct(tiny.encoder, mask_of(tiny), rows, local, layout)
        torch.testing.assert_close(head, encoder_too.head, rtol=0.0, atol=1e-4)


@pytest.mark.parametrize("rule", ["pafi", "random", "ffn_bias", "hiwi"])
def test_a_gpu_trains_what_the_cpu_trains(
    tiny: BaseModel, tiny_cuda: BaseModel, data: TokenizedSplit, rule: str
) -> None:
    assert tiny_cuda.digest == tiny.digest
    mask = mask_of(tiny, rule)
    assert mask_of(tiny_cuda, rule).digest == mask.digest
    found = []
    for base in (tiny, tiny_cuda):
        entries = SelectedEntries(base.encoder, mask)
        networks = BiasNetworks(entries, some_delta(mask), 4, torch.Generator().manual_seed(0))
        start = networks if rule == "hiwi" else Direct(some_delta(mask))
        gradient = SelectedGradient(base.encoder, entries)
        head = CLASSES.random_start(0)
        found.append(train_delta_and_head(base.encoder, gradient, start, CLASSES, head, data, SETTINGS))
    assert torch.allclose(found[0].delta, found[1].delta, atol=1e-4)
    assert torch.allclose(found[0].head, found[1].head, atol=1e-4)
    assert found[0].mean_loss == pytest.approx(found[1].mean_loss, abs=1e-4)
    assert mask_of(tiny_cuda, rule).digest == mask.digest  # and the base is back
