"""Deltas against NumPy and against the bits of the base: written, restored, merged, saved, refused."""

import copy
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from fedmask.errors import FedmaskError, MaskMismatchError
from fedmask.masks import Mask, MaskRecipe, base_digest, select
from fedmask.models import BaseModel, lay_out_in_one_piece
from fedmask.training.delta import Delta, SelectedEntries, load_adapter

BITS_OF = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


class Weights(nn.Module):
    """A model that is nothing but named tensors."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))


def bits(tensor: Tensor) -> list[int]:
    """NaN equals itself and -0.0 differs from 0.0, as in the file of a model."""
    return tensor.detach().contiguous().view(BITS_OF[tensor.dtype]).flatten().tolist()


def all_bits(model: nn.Module) -> dict[str, list[int]]:
    return {name: bits(tensor) for name, tensor in model.named_parameters()}


def unselected(model: nn.Module, mask: Mask) -> dict[str, Tensor]:
    """True at the entries outside the mask."""
    outside = {name: torch.ones(tensor.numel(), dtype=torch.bool) for name, tensor in model.named_parameters()}
    for name, indices in mask.indices.items():
        outside[name][torch.tensor(indices)] = False
    return {name: flat.view(model.get_parameter(name).shape) for name, flat in outside.items()}


@st.composite
def models_with_masks(draw: st.DrawFn, any_bits: bool = True) -> tuple[Weights, Mask]:
    """Up to four tensors of one dtype, each with memory of its own or not; at least one has selected entries."""
    dtype = draw(st.sampled_from(list(BITS_OF)))
    shapes = draw(st.lists(st.sampled_from([(1,), (5,), (3, 4), (2, 3, 2)]), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    tensors, indices = {}, {}
    for i, shape in enumerate(shapes):
        size = int(np.prod(shape))
        if any_bits:
            whole = torch.iinfo(BITS_OF[dtype])
            tensors[f"w{i}"] = torch.randint(
                whole.min, whole.max, shape, generator=generator, dtype=BITS_OF[dtype]
            ).view(dtype)
        else:
            tensors[f"w{i}"] = torch.randn(shape, generator=generator).to(dtype)
        chosen = draw(st.sets(st.integers(0, size - 1), min_size=0 if indices or i < len(shapes) - 1 else 1))
        if chosen:
            indices[f"w{i}"] = np.array(sorted(chosen))
    total = sum(tensor.numel() for tensor in tensors.values())
    model = Weights(tensors)
    if draw(st.booleans()):
        lay_out_in_one_piece(model)
    return model, Mask({name: tuple(tensors[name].shape) for name in indices}, indices, total)


def random_values(k: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(k, generator=torch.Generator().manual_seed(seed)) * scale


@given(models_with_masks(), st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_restore_puts_the_bits_of_the_base_back_after_many_writes(
    model_and_mask: tuple[Weights, Mask], scales: list[float]
) -> None:
    model, mask = model_and_mask
    before = all_bits(model)
    entries = SelectedEntries(model, mask)
    for seed, scale in enumerate(scales):
        entries.write(random_values(mask.num_selected, seed, scale))
    entries.restore()
    assert all_bits(model) == before


@given(models_with_masks(any_bits=False))
@settings(max_examples=100, deadline=None)
def test_a_switch_from_delta_to_delta_writes_the_selected_entries_and_no_others(
    model_and_mask: tuple[Weights, Mask],
) -> None:
    model, mask = model_and_mask
    base = {name: tensor.clone() for name, tensor in model.named_parameters()}
    first, second = (random_values(mask.num_selected, seed) for seed in (1, 2))
    entries = SelectedEntries(model, mask)
    entries.write(first)
    # A mark where nothing may be written: also a write of the old value would be seen.
    with torch.no_grad():
        for name, outside in unselected(model, mask).items():
            model.get_parameter(name)[outside] = 7.0
    entries.write(second)

    expected = {name: torch.full_like(tensor, 7.0).flatten() for name, tensor in base.items()}
    position = 0
    for name, indices in mask.indices.items():
        for index in indices.tolist():
            # float32 addition, rounded once to the model's dtype
            adapted = np.float32(base[name].flatten()[index].item()) + np.float32(second[position].item())
            expected[name][index] = torch.tensor(adapted).to(base[name].dtype)
            position += 1
    assert all_bits(model) == {name: bits(tensor) for name, tensor in expected.items()}


def test_written_restores_when_its_block_raises(tiny: BaseModel) -> None:
    model = copy.deepcopy(tiny.encoder)
    entries = SelectedEntries(model, select(model, "random", density=0.01))
    with pytest.raises(KeyError), entries.written(random_values(entries.mask.num_selected, 0)):  # noqa: PT012
        assert base_digest(model) != tiny.digest
        raise KeyError
    assert base_digest(model) == tiny.digest


def test_base_is_the_selected_values_in_the_order_of_the_mask(tiny: BaseModel) -> None:
    mask = select(tiny.encoder, "random", density=0.01)
    parameters = dict(tiny.encoder.named_parameters())
    expected = np.concatenate([parameters[name].flatten().numpy()[index] for name, index in mask.indices.items()])
    assert torch.cat(SelectedEntries(tiny.encoder, mask).base_values).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("tensors", "found"),
    [({"other": torch.zeros(2, 3)}, "the model has nothing of that name"), ({"w": torch.zeros(3, 2)}, r"has \(3, 2\)")],
)
def test_a_mask_of_another_model_is_refused(tensors: dict[str, Tensor], found: str) -> None:
    mask = Mask({"w": (2, 3)}, {"w": np.array([0])}, 6)
    with pytest.raises(MaskMismatchError, match=rf"mask {mask.digest[:12]} selects in w of shape \(2, 3\); .*{found}"):
        SelectedEntries(Weights(tensors), mask)


def test_a_tensor_that_is_not_contiguous_is_refused() -> None:
    mask = Mask({"w": (2, 3)}, {"w": np.array([0])}, 6)
    with pytest.raises(FedmaskError, match=r"^w is not contiguous in memory; call \.contiguous\(\)"):
        SelectedEntries(Weights({"w": torch.zeros(3, 2).t()}), mask)


def tiny_delta(tiny: BaseModel, rule: str = "pafi", with_mask: bool = True) -> Delta:
    mask = select(tiny.encoder, rule, density=0.01, base_digest=tiny.digest)
    assert mask.recipe is not None
    values = random_values(mask.num_selected, 5, 0.1).numpy()
    return Delta(values, mask.recipe, tiny.name, tiny.weights, mask if with_mask else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_is_base_plus_delta_in_a_copy(tiny: BaseModel, dtype: torch.dtype) -> None:
    base = copy.deepcopy(tiny.encoder).to(dtype)
    mask = select(base, "largest", density=0.01)
    assert mask.recipe is not None
    values = random_values(mask.num_selected, 3, 0.1)
    expected = {name: tensor.detach().clone() for name, tensor in base.named_parameters()}
    for name, indices in mask.indices.items():
        flat = expected[name].view(-1)
        index = torch.tensor(indices)
        flat[index] = (flat[index].float() + values[mask.slices[name]]).to(dtype)

    before = all_bits(base)
    merged = Delta(values.numpy(), mask.recipe, "tiny").merge(base)
    assert all_bits(merged) == {name: bits(tensor) for name, tensor in expected.items()}
    assert all_bits(base) == before
    assert all_bits(merged) != before


def test_a_saved_delta_is_the_same_when_loaded(tiny: BaseModel, tmp_path: Path) -> None:
    delta = tiny_delta(tiny)
    delta.save(tmp_path / "adapter.safetensors")
    loaded = load_adapter(tmp_path / "adapter.safetensors")
    assert loaded.values.tobytes() == delta.values.tobytes()
    assert (loaded.recipe, loaded.base_name, loaded.base_weights) == (delta.recipe, "tiny", "random")
    assert loaded.mask is None
    assert loaded.mask_for(tiny.encoder) == delta.mask
    assert all_bits(loaded.merge(tiny.encoder)) == all_bits(delta.merge(tiny.encoder))


def test_the_same_delta_gives_the_same_bytes_and_they_hold_nothing_else(tiny: BaseModel, tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "first.safetensors", tmp_path / "b" / "second.safetensors"
    tiny_delta(tiny).save(first)
    content = first.read_bytes()
    for _ in range(8):  # safetensors orders several entries of metadata anew each time
        tiny_delta(tiny, with_mask=False).save(second)
        assert second.read_bytes() == content
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert header.keys() == {"__metadata__", "values"}
    assert header["__metadata__"].keys() == {"fedmask"}
    described = json.loads(header["__metadata__"]["fedmask"])
    recipe = json.loads(described.pop("recipe"))
    assert described == {"format": "fedmask-adapter-1", "base": {"name": "tiny", "weights": "random"}}
    assert recipe.keys() == {"rule", "options", "ties", "base-digest", "mask-digest"}
    assert content[8 + length :] == tiny_delta(tiny).values.astype("<f4").tobytes()
    assert [path.name for path in first.parent.iterdir()] == ["first.safetensors"]


def test_an_adapter_carries_run_length_heads_and_inputs(
    tiny: BaseModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bare = tiny_delta(tiny)
    recipe = replace(bare.recipe, inputs=tiny.inputs)
    told = replace(bare, recipe=recipe, run="0123456789abcdef", max_length=40, heads={"f" * 64: "sst2"})
    path = tmp_path / "told.safetensors"
    told.save(path)
    loaded = load_adapter(path)
    assert (loaded.run, loaded.max_length, loaded.heads) == (told.run, told.max_length, told.heads)
    assert loaded.recipe == recipe
    assert loaded.values.tobytes() == bare.values.tobytes()
    assert all_bits(loaded.merge(tiny.encoder)) == all_bits(bare.merge(tiny.encoder))
    assert caplog.messages == []
    again = tmp_path / "again.safetensors"
    loaded.save(again)
    assert again.read_bytes() == path.read_bytes()


def test_an_adapter_without_inputs_as_older_ones_are_loads_with_one_warning(
    tiny: BaseModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "adapter.safetensors"
    tiny_delta(tiny).save(path)
    loaded = load_adapter(path)
    assert (loaded.run, loaded.max_length, loaded.heads) == (None, None, None)
    assert caplog.messages == [
        f"{path}: this adapter does not say with which tokenizer and settings its base model was trained: only the "
        "base's weights can be compared"
    ]


def test_an_adapter_says_what_its_base_is_held_in_unless_that_is_float32(
    tiny: BaseModel, tiny_bf16: BaseModel, tmp_path: Path
) -> None:
    mask = select(tiny_bf16.encoder, "pafi", density=0.01, base_digest=tiny_bf16.digest)
    assert mask.recipe is not None
    values = random_values(mask.num_selected, 0).numpy()
    delta = Delta(values, mask.recipe, "tiny", "random", mask, tiny_bf16.dtype)
    delta.save(tmp_path / "bf16.safetensors")
    tiny_delta(tiny).save(tmp_path / "fp32.safetensors")
    loaded, wide = (load_adapter(tmp_path / f"{name}.safetensors") for name in ("bf16", "fp32"))
    assert (loaded.base_dtype, wide.base_dtype) == ("bfloat16", "float32")
    assert b"dtype" not in (tmp_path / "fp32.safetensors").read_bytes().replace(b'"dtype":"F32"', b"")
    merged = loaded.merge(tiny_bf16.encoder)
    assert all_bits(merged) == all_bits(delta.merge(tiny_bf16.encoder))
    assert {tensor.dtype for tensor in merged.parameters()} == {torch.bfloat16}
    with pytest.raises(MaskMismatchError, match=r"load the adapter's own base, in bfloat16$"):
        loaded.merge(tiny.encoder)


@pytest.mark.parametrize("with_mask", [True, False])
def test_another_base_is_refused_with_both_digests(tiny: BaseModel, with_mask: bool) -> None:
    other = copy.deepcopy(tiny.encoder)
    with torch.no_grad():
        other.get_parameter("encoder.layer.1.output.dense.bias")[3] += 1e-3
    with pytest.raises(MaskMismatchError) as caught:
        tiny_delta(tiny, with_mask=with_mask).merge(other)
    assert str(caught.value) == (
        f"this adapter belongs to the base model tiny with digest {tiny.digest}, the model given has digest "
        f"{base_digest(other)}; load the adapter's own base, in float32"
    )


def test_values_of_another_length_than_the_recipes_mask_are_refused(tiny: BaseModel) -> None:
    delta = tiny_delta(tiny, with_mask=False)
    with pytest.raises(MaskMismatchError, match=f"holds 3 values, its mask selects {delta.values.size} entries"):
        Delta(delta.values[:3], delta.recipe, "tiny").merge(tiny.encoder)


def test_values_must_be_a_flat_float32_vector_that_fits_the_mask(tiny: BaseModel) -> None:
    delta = tiny_delta(tiny)
    with pytest.raises(FedmaskError, match=r"float32 of shape \(k,\), found float64"):
        Delta(delta.values.astype(np.float64), delta.recipe, "tiny")  # type: ignore[arg-type]
    with pytest.raises(FedmaskError, match=r"float32 of shape \(k,\), found float32 \(1, "):
        Delta(delta.values[None], delta.recipe, "tiny")
    with pytest.raises(FedmaskError, match="3 values does not fit a mask of"):
        Delta(delta.values[:3], delta.recipe, "tiny", mask=delta.mask)


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


RECIPE = MaskRecipe("ffn_bias", {}, "0" * 64, "1" * 64).to_bytes().decode()
DESCRIBED = {"format": "fedmask-adapter-1", "recipe": RECIPE, "base": {"name": "tiny", "weights": "random"}}


def stored(path: Path, values: Tensor, described: object = DESCRIBED, name: str = "values") -> None:
    save_file({name: values}, path, {"fedmask": json.dumps(described)})


NOT_ADAPTER = "not a fedmask adapter (format None, expected fedmask-adapter-1)"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "there is no such adapter file"),
    "folder": (lambda path: path.mkdir(), "there is no such adapter file"),
    "empty": (lambda path: path.write_bytes(b""), "damaged adapter file"),
    "text": (lambda path: path.write_text("no adapter\n" * 40), "damaged adapter file"),
    "foreign": (lambda path: save_file({"values": torch.zeros(2)}, path), NOT_ADAPTER),
    "foreign metadata": (lambda path: save_file({"values": torch.zeros(2)}, path, {"format": "pt"}), NOT_ADAPTER),
    "other version": (
        lambda path: stored(path, torch.zeros(2), DESCRIBED | {"format": "fedmask-adapter-9"}),
        "not a fedmask adapter (format fedmask-adapter-9, expected fedmask-adapter-1)",
    ),
    "no values": (lambda path: stored(path, torch.zeros(2), name="w"), "damaged adapter file"),
    "no recipe": (lambda path: stored(path, torch.zeros(2), DESCRIBED | {"recipe": None}), "damaged adapter file"),
    "recipe": (lambda path: stored(path, torch.zeros(2), DESCRIBED | {"recipe": "{}"}), "mask recipe: not one of this"),
    "no base": (lambda path: stored(path, torch.zeros(2), DESCRIBED | {"base": {}}), "damaged adapter file"),
    "base": (lambda path: stored(path, torch.zeros(2), DESCRIBED | {"base": []}), "damaged adapter file"),
    "list": (lambda path: stored(path, torch.zeros(2), []), "damaged adapter file"),
    "length": (lambda path: stored(path, torch.zeros(2), DESCRIBED | {"max_length": "x"}), "damaged adapter file"),
    "heads": (lambda path: stored(path, torch.zeros(2), DESCRIBED | {"heads": ["sst2"]}), "damaged adapter file"),
    "not JSON": (lambda path: save_file({"values": torch.zeros(2)}, path, {"fedmask": "{"}), "damaged adapter file"),
    "float64": (lambda path: stored(path, torch.zeros(4, dtype=torch.float64)), "found float64 (4,)"),
    "bfloat16": (lambda path: stored(path, torch.zeros(4, dtype=torch.bfloat16)), "bfloat16"),
    "matrix": (lambda path: stored(path, torch.zeros(2, 2)), "found float32 (2, 2)"),
    "pickle": (
        lambda path: torch.save({"values": torch.zeros(2), "trap": Trap(path.with_name("trap"))}, path),
        "damaged adapter file",
    ),
}


def test_the_file_that_the_damages_start_from_is_a_good_one(tmp_path: Path) -> None:
    stored(tmp_path / "adapter.safetensors", torch.zeros(2))
    assert load_adapter(tmp_path / "adapter.safetensors").base_name == "tiny"


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_adapter_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    make, text = DAMAGES[damage]
    path = tmp_path / "adapter.safetensors"
    make(path)
    with pytest.raises(FedmaskError) as caught:
        load_adapter(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "trap").exists()


def test_a_cut_file_is_refused_wherever_it_is_cut(tiny: BaseModel, tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    tiny_delta(tiny).save(path)
    content = path.read_bytes()
    for length in (1, 7, 8, 9, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(FedmaskError, match="damaged adapter file"):
            load_adapter(path)
