"""Base models by name: where they are looked for, the same digest in every process, and what is refused."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]
from torch import Tensor
from transformers import RobertaConfig, RobertaModel

from fedmask.errors import FedmaskError
from fedmask.masks import base_digest
from fedmask.models import (
    DEVICES,
    DTYPES,
    MINILM_HUB_NAME,
    BaseModel,
    lay_out_in_one_piece,
    load_base,
    loading,
    small_tokenizer,
)
from fedmask.runs.config import KEYS

ROBERTA = "FacebookAI/roberta-base"
ROOT = Path(__file__).resolve().parents[2]


def test_bundled_minilm_is_the_same_in_every_process() -> None:
    base = load_base("minilm", MINILM_HUB_NAME)
    assert (base.name, base.weights) == ("minilm", "pretrained")
    assert base.num_parameters == 22_713_216
    assert base.hidden_size == 384
    assert base.digest == "fe1821d8bbe296cf8d6fecb6cd8e3ffa5d1a6dfcaece33036f21616e45691eb8"
    assert base.digest == base_digest(base.encoder)
    assert not base.encoder.training
    assert not any(parameter.requires_grad for parameter in base.encoder.parameters())
    assert base.tokenizer("Hello, world")["input_ids"] == [101, 7592, 1010, 2088, 102]
    assert load_base("minilm", MINILM_HUB_NAME) is base


def test_of_a_folder_only_the_last_part_is_kept(roberta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_base("minilm", None, str(roberta)).name == "small-roberta"
    assert load_base("minilm", None, f"{roberta}/").name == "small-roberta"
    monkeypatch.chdir(roberta)
    assert load_base("minilm", None, ".").name == "small-roberta"


def test_half_precision_checkpoints_stay_in_half_precision(roberta: Path, tmp_path: Path) -> None:
    RobertaModel.from_pretrained(roberta).to(torch.bfloat16).save_pretrained(tmp_path)
    small_tokenizer().save_pretrained(tmp_path)
    encoder = load_base("minilm", None, str(tmp_path)).encoder
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}


def test_random_weights_are_seeded_by_the_models_name(geometry: dict[str, Any]) -> None:
    def digest(name: str, global_seed: int) -> str:
        loading._load_base.cache_clear()
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        base = load_base(name, ROBERTA, weights="random", geometry=geometry)
        assert torch.equal(torch.get_rng_state(), state)
        assert base.weights == "random"
        for parameter_name, parameter in base.encoder.named_parameters():
            assert torch.all(parameter != 0) or parameter.numel() > 1000, parameter_name
            if parameter_name.endswith("LayerNorm.weight"):
                assert 0.98 < parameter.mean() < 1.02
        return base.digest

    assert digest("roberta-base", 1) == digest("roberta-base", 2)
    assert digest("roberta-base", 1) != digest("roberta-large", 1)


def test_random_weights_need_a_geometry() -> None:
    with pytest.raises(FedmaskError, match=r"^model=big: weights=random needs a geometry in conf/model/big.yaml"):
        load_base("big", ROBERTA, weights="random")


def test_random_weights_in_the_geometry_of_a_folder(roberta: Path, tmp_path: Path, geometry: dict[str, Any]) -> None:
    own = load_base("minilm", MINILM_HUB_NAME, str(roberta), "random")
    assert (own.name, own.weights, own.num_parameters) == ("small-roberta", "random", 72_864)
    assert own.digest != load_base("minilm", MINILM_HUB_NAME, str(roberta)).digest
    assert len(own.tokenizer) == 1461
    # A folder with nothing but a configuration: what its tokenizer would be is not within reach.
    RobertaConfig(**geometry).save_pretrained(tmp_path)
    assert len(load_base("minilm", None, str(tmp_path), "random").tokenizer) == 1461


def test_tiny_is_small_seeded_and_has_a_tokenizer_of_its_own(tiny: BaseModel) -> None:
    assert (tiny.name, tiny.weights, tiny.hidden_size) == ("tiny", "random", 64)
    assert tiny.encoder.config.num_hidden_layers == 2  # type: ignore[union-attr]
    assert len(tiny.tokenizer) == 1461
    assert tiny.digest == base_digest(tiny.encoder)
    geometry = yaml.safe_load((ROOT / "conf/model/tiny.yaml").read_text())["geometry"]
    again = load_base("tiny", geometry=geometry)
    assert again is not tiny
    assert again.digest == tiny.digest
    assert not any(module.training for module in again.encoder.modules())  # dropout is off
    assert not any(parameter.requires_grad for parameter in again.encoder.parameters())


def test_a_dtype_is_what_the_parameters_are_rounded_to_and_nothing_else_changes(
    tiny: BaseModel, tiny_bf16: BaseModel
) -> None:
    assert (tiny.dtype, tiny_bf16.dtype) == ("float32", "bfloat16")
    assert tiny_bf16.num_parameters == tiny.num_parameters
    rounded = dict(tiny_bf16.encoder.named_parameters())
    assert {parameter.dtype for parameter in rounded.values()} == {torch.bfloat16}
    assert len({parameter.untyped_storage().data_ptr() for parameter in rounded.values()}) == 1
    for name, parameter in tiny.encoder.named_parameters():
        assert torch.equal(rounded[name], parameter.to(torch.bfloat16)), name
    assert not any(parameter.requires_grad for parameter in rounded.values())
    assert tiny_bf16.digest == base_digest(tiny_bf16.encoder) == base_digest(copy.deepcopy(tiny.encoder).bfloat16())
    assert tiny_bf16.digest != tiny.digest


def test_the_digest_of_a_bfloat16_base_is_the_same_in_another_process(tiny_bf16: BaseModel) -> None:
    program = (
        "from server.compose import compose; from fedmask.models import load_base; import dataclasses; "
        "model = compose(['model=tiny', 'model.dtype=bfloat16']).model; "
        "print(load_base(**dataclasses.asdict(model)).digest)"
    )
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert finished.stdout.split() == [tiny_bf16.digest]


def test_a_stored_model_stays_in_its_dtype_unless_another_is_asked_for(
    tmp_path: Path, geometry: dict[str, Any]
) -> None:
    model = RobertaModel(RobertaConfig(**geometry), add_pooling_layer=False).bfloat16()
    model.save_pretrained(tmp_path)
    small_tokenizer().save_pretrained(tmp_path)
    stored, again, wide = (
        load_base("own", None, str(tmp_path), dtype=dtype) for dtype in (None, "bfloat16", "float32")
    )
    assert (stored.dtype, again.dtype, wide.dtype) == ("bfloat16", "bfloat16", "float32")
    assert stored.digest == again.digest != wide.digest
    held = dict(wide.encoder.named_parameters())
    assert all(torch.equal(tensor.float(), held[name]) for name, tensor in stored.encoder.named_parameters())


def test_a_dtype_that_is_not_known_is_one_line(geometry: dict[str, Any]) -> None:
    with pytest.raises(FedmaskError, match=r"^model\.dtype=float16: must be one of float32, bfloat16$"):
        load_base("tiny", geometry=geometry, dtype="float16")
    assert KEYS["model.dtype"].allowed.choices is not None
    assert list(KEYS["model.dtype"].allowed.choices) == list(DTYPES)


def test_a_device_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch, geometry: dict[str, Any]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FedmaskError, match=r"^device=cuda: torch sees no GPU in this process; take device=cpu$"):
        load_base("tiny", geometry=geometry, device="cuda")
    with pytest.raises(FedmaskError, match=r"^device=abacus: must be one of cpu, cuda$"):
        load_base("tiny", geometry=geometry, device="abacus")
    assert KEYS["device"].allowed.choices is not None
    assert list(KEYS["device"].allowed.choices) == list(DEVICES)


def test_buffers_keep_their_precision(geometry: dict[str, Any]) -> None:
    geometry = geometry | {"model_type": "modernbert", "global_attn_every_n_layers": 1, "num_hidden_layers": 1}
    wide, low = (load_base("rotary", None, geometry=geometry, dtype=dtype).encoder for dtype in ("float32", "bfloat16"))
    buffers = dict(wide.named_buffers())
    assert any(buffer.is_floating_point() for buffer in buffers.values())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in low.named_buffers())
    assert low(input_ids=torch.arange(5, 12)[None]).last_hidden_state.dtype == torch.bfloat16


def test_all_parameters_lie_in_one_piece_of_memory_with_the_bits_they_had(tiny: BaseModel) -> None:
    copied = copy.deepcopy(tiny.encoder)  # a copy has a piece for each
    assert len({parameter.untyped_storage().data_ptr() for parameter in copied.parameters()}) > 1
    assert len({parameter.untyped_storage().data_ptr() for parameter in tiny.encoder.parameters()}) == 1
    assert all(parameter.data_ptr() % 64 == 0 for parameter in tiny.encoder.parameters())
    lay_out_in_one_piece(copied)
    assert len({parameter.untyped_storage().data_ptr() for parameter in copied.parameters()}) == 1
    assert base_digest(copied) == tiny.digest


def test_parameters_of_two_dtypes_and_a_tied_one_are_laid_out_as_well() -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(3, 5), torch.nn.Linear(5, 3).half(), torch.nn.Linear(3, 5)])
    model[2].weight = model[0].weight
    before = [parameter.detach().clone() for parameter in model.parameters()]
    lay_out_in_one_piece(model)
    assert model[2].weight is model[0].weight
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert len({parameter.untyped_storage().data_ptr() for parameter in model.parameters()}) == 2


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("name", ["embeddings.word_embeddings.weight", "encoder.layer.1.output.LayerNorm.bias"])
def test_a_parameter_that_is_not_finite_is_told_by_name(
    bert: Any, change_tensors: Any, name: str, value: float
) -> None:
    def spoil(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors[name].view(-1)[3] = value
        return tensors

    folder = change_tensors(bert(), spoil)
    with pytest.raises(FedmaskError, match=rf"^{folder}: {name} holds a number that is not finite"):
        load_base("own", path=str(folder), dtype="float32")


def test_a_cast_that_leaves_the_range_is_told_by_name(bert: Any, change_tensors: Any) -> None:
    name, largest = "encoder.layer.0.output.dense.bias", torch.finfo(torch.float32).max

    def enlarge(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors[name][0] = largest
        return tensors

    folder = str(change_tensors(bert(), enlarge))
    assert load_base("own", path=folder, dtype="float32").encoder.get_parameter(name)[0] == largest
    with pytest.raises(FedmaskError, match=name):  # rounded to bfloat16 it is infinite
        load_base("own", path=folder, dtype="bfloat16")


def test_what_reads_no_token_ids_is_no_encoder_of_texts() -> None:
    geometry = {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(FedmaskError, match=r"^eye: ViTModel reads no token ids; take an encoder such as model=minilm"):
        load_base("eye", geometry=geometry)


@pytest.mark.parametrize("changes", [{"num_attention_heads": 5}, {"hidden_act": "nope"}, {"vocab_size": 10**15}])
def test_a_geometry_of_which_no_model_can_be_made_is_one_line(
    geometry: dict[str, Any], changes: dict[str, Any]
) -> None:
    with pytest.raises(FedmaskError) as caught:
        load_base("own", geometry=geometry | changes)
    assert str(caught.value).startswith("own: no roberta can be made of this configuration (")
    assert "\n" not in str(caught.value)


def test_a_fault_of_fedmasks_own_keeps_its_traceback(bert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(bert())

    def broken(*_: object, **__: object) -> None:
        raise AttributeError("a mistake in fedmask")

    for name in ("_refuse_not_finite", "lay_out_in_one_piece", "read_configuration"):
        with monkeypatch.context() as patch:
            patch.setattr(loading, name, broken)
            with pytest.raises(AttributeError, match="a mistake in fedmask"):
                load_base("own", path=folder, weights="random" if name == "read_configuration" else "pretrained")
