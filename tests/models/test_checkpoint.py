"""Checkpoints: what may lack and what may be left over, and one line by name for all that may not."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    ElectraConfig,
    ElectraForPreTraining,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from fedmask.errors import FedmaskError
from fedmask.models import MINILM_HUB_NAME, BaseModel, checkpoint, load_base, loading
from fedmask.models.checkpoint import load_checkpoint
from fedmask.models.sources import Source

Tensors = dict[str, Tensor]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SIZES |= {"vocab_size": 1461, "max_position_embeddings": 64, "pad_token_id": 0}


def load(folder: Path) -> BaseModel:
    loading._load_base.cache_clear()
    return load_base("own", path=str(folder), dtype="float32")


def refusal(folder: Path) -> str:
    with pytest.raises(FedmaskError) as caught:
        load(folder)
    text = str(caught.value)
    assert text.startswith(f"{folder}: ")
    assert "\n" not in text
    return text.removeprefix(f"{folder}: ")


# ----------------------------------------------------------------------------------------------------------------------
# What may lack, and what may be left over
# ----------------------------------------------------------------------------------------------------------------------


def test_a_pooler_that_a_checkpoint_lacks_is_zero(roberta: Path) -> None:
    digests = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        base = load(roberta)
        digests.append(base.digest)
        zero = {name for name, parameter in base.encoder.named_parameters() if "pooler" in name}
        assert zero == {"pooler.dense.weight", "pooler.dense.bias"}
        assert not any(base.encoder.get_parameter(name).any() for name in zero)
        assert base.encoder.get_parameter("encoder.layer.0.output.dense.weight").any()
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (BertForSequenceClassification, BertConfig(**SIZES)),
        (BertForMaskedLM, BertConfig(**SIZES)),
        (RobertaForMaskedLM, RobertaConfig(**SIZES)),
        (ElectraForPreTraining, ElectraConfig(**SIZES, embedding_size=32)),
    ],
)
def test_a_task_models_checkpoint_is_its_encoders(
    kind: Callable[..., PreTrainedModel], config: BertConfig, saved: Callable[..., Path], tmp_path: Path
) -> None:
    model = kind(config)
    encoder = load(saved(model, tmp_path)).encoder
    own = dict(model.base_model.named_parameters())
    for name, parameter in encoder.named_parameters():
        assert torch.equal(parameter, own[name]) if name in own else "pooler" in name


def old_names(tensors: Tensors) -> Tensors:
    """As the first BERT checkpoints have them."""
    names = {name: f"bert.{name}" for name in tensors}
    return {
        names[name].replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }


def positions(tensors: Tensors) -> Tensors:
    rotary = {"encoder.layer.0.attention.rotary_embeddings.inv_freq": torch.ones(4)}
    return tensors | rotary | {"embeddings.position_ids": torch.arange(64)[None]}


def heads(tensors: Tensors) -> Tensors:
    return tensors | {name: torch.ones(2, 2) for name in ("cls.seq_relationship.weight", "classifier.weight", "x.y")}


def in_double(tensors: Tensors) -> Tensors:
    return {name: tensor.double() for name, tensor in tensors.items()}


@pytest.mark.parametrize("change", [dict, old_names, positions, heads, in_double])
def test_old_names_heads_and_positions_give_the_same_model(
    bert: Any, change_tensors: Callable[..., Path], change: Callable[[Tensors], Tensors]
) -> None:
    expected = load(bert()).digest
    assert load(change_tensors(bert(), change)).digest == expected


@pytest.mark.parametrize("said", ["float16", "bfloat16", "float64"])
def test_a_configuration_that_names_another_precision_rounds_nothing(bert: Any, said: str) -> None:
    expected, file = load(bert()).digest, bert() / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dtype": said}))
    assert load(file.parent).digest == expected


@pytest.mark.parametrize("metadata", [None, {"format": "tf"}, {"format": "mlx"}, {"made by": "hand"}])
def test_who_wrote_the_file_does_not_matter(bert: Any, metadata: dict[str, str] | None) -> None:
    expected, file = load(bert()).digest, bert() / "model.safetensors"
    save_file(load_file(file), file, metadata)
    assert load(file.parent).digest == expected


def test_shards_and_tied_weights_are_all_there(bert: Any, tmp_path: Path, saved: Callable[..., Path]) -> None:
    folder = bert()
    whole, model = load(folder), BertModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert load(folder).digest == whole.digest
    tied = BertForMaskedLM(BertConfig(**SIZES, tie_word_embeddings=True))
    assert (
        load(saved(tied, tmp_path / "tied"))
        .encoder.get_parameter("embeddings.word_embeddings.weight")
        .equal(tied.cls.predictions.decoder.weight)
    )


# ----------------------------------------------------------------------------------------------------------------------
# What may not
# ----------------------------------------------------------------------------------------------------------------------

LACKS, HOLDS = (
    "config.json describes tensors that the checkpoint lacks, ",
    "the checkpoint holds tensors of the encoder ",
)


def test_layers_that_a_checkpoint_lacks_are_told_by_name(bert: Any) -> None:
    assert refusal(bert(num_hidden_layers=4)).startswith(
        f"{LACKS}encoder.layer.2.attention.output.LayerNorm.bias, encoder.layer.2.attention.output.LayerNorm.weight, "
        "encoder.layer.2.attention.output.dense.bias and 29 more; take a whole checkpoint"
    )


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_a_layer_beyond_the_configurations_is_told_by_name(
    bert: Any, change_tensors: Callable[..., Path], edit: Callable[..., Path], prefix: str
) -> None:
    folder = change_tensors(bert(), lambda tensors: {f"{prefix}{name}": tensor for name, tensor in tensors.items()})
    assert load(folder)
    edit(folder / "config.json", num_hidden_layers=1)
    assert refusal(folder).startswith(
        f"{HOLDS}that config.json does not describe, {prefix}encoder.layer.1.attention.output.LayerNorm.bias, "
    )


@st.composite
def some_names(draw: st.DrawFn) -> set[str]:
    names = sorted(name for name, _ in BertModel(BertConfig(**SIZES)).named_parameters())
    return draw(st.sets(st.sampled_from(names), min_size=1, max_size=4))


@given(lost=some_names())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_lacks_but_the_pooler_is_told_by_name(
    bert: Any, change_tensors: Callable[..., Path], lost: set[str]
) -> None:
    folder = change_tensors(
        bert(), lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in lost}
    )
    read = sorted(name for name in lost if not name.startswith("pooler."))
    if read:
        assert refusal(folder).startswith(f"{LACKS}{', '.join(read[:3])}")
    else:
        assert load(folder)


def relative_positions(tensors: Tensors) -> Tensors:
    return tensors | {"encoder.layer.0.attention.self.distance_embedding.weight": torch.ones(127, 16)}


def other_prefix(tensors: Tensors) -> Tensors:
    return {f"module.{name}" if "layer.1" in name else name: tensor for name, tensor in tensors.items()}


def with_prefix_too(tensors: Tensors) -> Tensors:
    name = "encoder.layer.0.attention.self.query.weight"
    return tensors | {f"bert.{name}": torch.zeros_like(tensors[name])}


def with_old_spelling_too(tensors: Tensors) -> Tensors:
    return tensors | {"embeddings.LayerNorm.gamma": torch.zeros_like(tensors["embeddings.LayerNorm.weight"])}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (with_prefix_too, r"bert\.encoder\.layer\.0\..*query\.weight and encoder\.layer\.0\..*query\.weight"),
        (with_old_spelling_too, r"embeddings\.LayerNorm\.gamma and embeddings\.LayerNorm\.weight"),
    ],
)
def test_a_tensor_under_two_names_is_refused(
    bert: Any, change_tensors: Callable[..., Path], change: Callable[[Tensors], Tensors], names: str
) -> None:
    assert re.match(
        f"the checkpoint holds {names}, which are one tensor of its bert;", refusal(change_tensors(bert(), change))
    )


@pytest.mark.parametrize("before", ["base_model.model.", "ema."])
@pytest.mark.parametrize("end", ["lora_A.weight", "weight"])
def test_an_adapters_tensors_and_a_second_copy_are_told_by_name(
    bert: Any, change_tensors: Callable[..., Path], before: str, end: str
) -> None:
    name = f"{before}encoder.layer.0.attention.self.query.{end}"
    folder = change_tensors(bert(), lambda tensors: tensors | {name: torch.ones(4, 32)})
    assert refusal(folder).startswith(f"{HOLDS}that config.json does not describe, {name}; ")


def whole_numbers(tensors: Tensors) -> Tensors:
    name = "encoder.layer.0.output.dense.weight"
    return tensors | {name: (tensors[name] * 1000).to(torch.int8)}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (relative_positions, f"{HOLDS}that config.json does not describe, encoder.layer.0.attention.self.distance_emb"),
        (other_prefix, f"{LACKS}encoder.layer.1.attention.output.LayerNorm.bias, "),
        (whole_numbers, "weights are stored as whole numbers (I8), encoder.layer.0.output.dense.weight: "),
        (
            lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()},
            "none of the 39 tensors of it",
        ),
    ],
)
def test_tensors_that_are_not_the_models_are_told_by_name(
    bert: Any, change_tensors: Callable[..., Path], change: Callable[[Tensors], Tensors], text: str
) -> None:
    assert refusal(change_tensors(bert(), change)).startswith(text)


@pytest.mark.parametrize("with_peft", [True, False])
def test_an_adapter_beside_the_model_is_refused_whether_or_not_peft_is_there(
    bert: Any, monkeypatch: pytest.MonkeyPatch, with_peft: bool
) -> None:
    from peft import LoraConfig, get_peft_model

    monkeypatch.setattr("transformers.models.auto.auto_factory.is_peft_available", lambda: with_peft)
    folder = bert()
    model = get_peft_model(AutoModel.from_pretrained(folder), LoraConfig(r=2, target_modules=["query"]))
    model.save_pretrained(folder)
    assert refusal(folder).startswith("adapter_config.json says that an adapter of peft belongs to this model; merge")


# ----------------------------------------------------------------------------------------------------------------------
# What is no checkpoint
# ----------------------------------------------------------------------------------------------------------------------


def without(*names: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"w": torch.zeros(1)}, folder / "pytorch_model.bin")


def other_shapes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))


def other_tensors(folder: Path) -> None:
    save_file({"a.weight": torch.ones(3)}, folder / "model.safetensors", {"format": "pt"})


def shards(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """Several files, the second of which `change` changes."""

    def write(folder: Path) -> None:
        model = AutoModel.from_pretrained(folder)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="60KB")
        change(sorted(folder.glob("model-*.safetensors"))[1])

    return write


def index(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(text)

    return write


NOT_A_FOLDER = "not a model folder with safetensors and a tokenizer ("
FOLDER_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (without("model.safetensors"), NOT_A_FOLDER),
    "pickled weights": (pickled, NOT_A_FOLDER),
    "cut weights": (cut, NOT_A_FOLDER),
    "no weights inside": (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 500), NOT_A_FOLDER),
    "empty weights": (lambda folder: (folder / "model.safetensors").write_bytes(b""), NOT_A_FOLDER),
    "other shapes": (other_shapes, "embeddings.LayerNorm.bias has shape 32 in the checkpoint and 64 by config.json"),
    "other tensors": (other_tensors, "none of the 23 tensors of its roberta are there"),
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), "no tokenizer files there that know a word"),
    "no configuration": (without("config.json"), "no model configuration there; name the folder"),
    "broken configuration": (
        lambda folder: (folder / "config.json").write_text("{"),
        "the model's configuration cannot be read (",
    ),
    "no index inside": (index("[]"), NOT_A_FOLDER),
    "a pointer": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid a\n"),
        NOT_A_FOLDER,
    ),
    "one of the shards gone": (shards(Path.unlink), NOT_A_FOLDER),
    "one of the shards cut": (shards(lambda file: file.write_bytes(file.read_bytes()[:500])), NOT_A_FOLDER),
    "all shards gone": (index('{"metadata": {}, "weight_map": {"a": "b.safetensors"}}'), NOT_A_FOLDER),
    "an index cut": (index('{"metadata": {}, "weight_'), NOT_A_FOLDER),
}


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_a_folder_that_is_no_model_is_refused_in_one_line(roberta: Path, tmp_path: Path, fault: str) -> None:
    make, text = FOLDER_FAULTS[fault]
    folder = tmp_path / "model"
    shutil.copytree(roberta, folder)
    make(folder)
    with pytest.raises(FedmaskError) as caught:
        load_base("minilm", MINILM_HUB_NAME, str(folder))
    assert str(caught.value).startswith(f"{folder}: {text}")
    assert "\n" not in str(caught.value)


FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@given(name=st.sampled_from(FILES), keep=st.integers(0, 3000), more=st.binary(max_size=30), flip=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_in_a_folder_make_a_model_or_one_line(
    roberta: Path, tmp_path: Path, name: str, keep: int, more: bytes, flip: int
) -> None:
    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(roberta, folder)
    content = bytearray((folder / name).read_bytes())
    if keep % 3:
        content[flip % min(len(content), 4000)] ^= 1 + flip % 255
    else:
        content[keep:] = more
    (folder / name).write_bytes(content)
    told = ""
    try:
        load(folder)
    except FedmaskError as error:
        told = str(error)
    assert "\n" not in told
    assert not told or told.startswith(f"{folder}: ")


def test_a_fault_of_fedmasks_own_keeps_its_traceback(bert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(str(bert()), local_files_only=True)

    def broken(*_: object, **__: object) -> None:
        raise ValueError("a mistake")

    for name in ("_check_tensors", "read_configuration", "tokenizer_at"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, name, broken)
            with pytest.raises(ValueError, match=r"^a mistake$"):
                load_checkpoint(source)
    monkeypatch.setattr(AutoModel, "from_pretrained", broken)  # while another library's is told in one line
    with pytest.raises(FedmaskError, match=r"not a model folder with safetensors and a tokenizer \(a mistake\)"):
        load_checkpoint(source)
