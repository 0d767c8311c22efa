"""The base digest sees names, dtypes, shapes and every value, and nothing of how they lie in memory."""

import hashlib
import json

import pytest
import torch
from torch import Tensor, nn

from fedmask.errors import FedmaskError
from fedmask.masks import base_digest


def holding(**tensors: torch.Tensor) -> nn.Module:
    model = nn.Module()
    for name, tensor in tensors.items():
        model.register_parameter(name, nn.Parameter(tensor))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_it_is_the_sha256_that_its_docstring_describes(dtype: torch.dtype) -> None:
    values = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    header = json.dumps(["w", str(dtype).removeprefix("torch."), [3, 5]]).encode() + b"\n"
    raw = values.view(torch.uint8).numpy().tobytes()
    assert base_digest(holding(w=values)) == hashlib.sha256(header + raw).hexdigest()


@pytest.mark.parametrize("shape", [(700, 300), (3, 200_000), (200_000, 3), (2, 3, 100_000)])
def test_memory_layout_does_not_matter(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    strided = values.transpose(0, -1).contiguous().transpose(0, -1)
    assert not strided.is_contiguous()
    assert base_digest(holding(w=strided)) == base_digest(holding(w=values))


def test_name_dtype_shape_and_any_single_bit_matter() -> None:
    values = torch.zeros(400, 500)
    changed = values.clone()
    changed[-1, -1] = -0.0
    models = [
        holding(w=values),
        holding(v=values),
        holding(w=values.half()),
        holding(w=values.bfloat16()),
        holding(w=values.reshape(500, 400)),
        holding(w=changed),
        holding(w=values, v=torch.zeros(1)),
    ]
    assert len({base_digest(model) for model in models}) == len(models)


def test_a_model_without_values_is_refused() -> None:
    with pytest.raises(FedmaskError, match=r"^parameter w: it has no values \(meta device\); load the model's weights"):
        base_digest(holding(w=torch.empty(2, 2, device="meta")))


def test_whoever_looks_on_sees_every_value_once_and_changes_no_digest() -> None:
    model, seen = nn.Sequential(nn.Linear(700, 700), nn.Linear(3, 2)), dict[str, list[Tensor]]()
    digest = base_digest(model, lambda name, values: seen.setdefault(name, []).append(values.clone()))
    assert digest == base_digest(model)
    assert len(seen["0.weight"]) > 1
    for name, parameter in model.named_parameters():
        assert torch.equal(torch.cat(seen.pop(name)), parameter.flatten())
    assert not seen
