"""Configurations: what is no encoder, or cannot be read, is refused in one line that names the folder and the cause."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    BartConfig,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    T5Config,
    XLMConfig,
)

from fedmask.errors import FedmaskError
from fedmask.models import MINILM_HUB_NAME, configuration, load_base
from fedmask.models.configuration import configuration_of, read_configuration

NO_DECODERS = (
    "is not an encoder; decoder-only and encoder-decoder models are not supported yet, take an encoder such as "
    "model=minilm or model=roberta-base"
)


def refusal(location: Path) -> str:
    with pytest.raises(FedmaskError) as caught:
        read_configuration(str(location), local_files_only=True)
    text = str(caught.value)
    assert text.startswith(f"{location}: ")
    assert "\n" not in text
    return text.removeprefix(f"{location}: ")


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(n_embd=8, n_layer=1, n_head=1),
        LlamaConfig(hidden_size=32, num_hidden_layers=1),
        BertConfig(is_decoder=True),
        BartConfig(),
        BartConfig(is_encoder_decoder=False),
        T5Config(is_encoder_decoder=False),
        XLMConfig(causal=True),
    ],
    ids=lambda config: config.model_type,
)
@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_what_is_not_an_encoder_is_refused_in_one_line(tmp_path: Path, config: PreTrainedConfig, weights: str) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(FedmaskError) as caught:
        load_base("minilm", MINILM_HUB_NAME, str(tmp_path), weights)
    assert str(caught.value) == f"{tmp_path}: {config.model_type} {NO_DECODERS}"


@pytest.mark.parametrize(
    "geometry",
    [
        {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 1461, "n_positions": 64},
        {"model_type": "t5", "d_model": 32},
        {"model_type": "t5", "d_model": 32, "is_encoder_decoder": False},
        {"model_type": "bert", "is_decoder": True},
    ],
)
def test_a_decoder_by_the_back_door_is_refused_as_well(geometry: dict[str, Any]) -> None:
    with pytest.raises(FedmaskError) as caught:
        load_base("tiny", geometry=geometry)
    assert str(caught.value) == f"model=tiny: model.geometry: {geometry['model_type']} {NO_DECODERS}"


@pytest.mark.parametrize(
    ("geometry", "text"),
    [
        ({"model_type": "bert", "hiden_size": 32}, ".hiden_size: bert has no such argument; did you mean hidden_size?"),
        ({"model_type": "bert", "num_heads": 2}, ".num_heads: bert has no such argument; did you mean num_attention_"),
        ({"model_type": "bert", "zzz": 2}, ".zzz: bert has no such argument; see the arguments of BertConfig"),
        ({"model_type": "bert", "hidden_size": "x"}, ": bert does not take these arguments (TypeError: Field 'hidden_"),
        ({"model_type": "zork"}, ": model_type 'zork' is none that transformers"),
        ({"hidden_size": 32}, ": there is no model_type that transformers"),
        ({"model_type": "clip"}, ": clip has no hidden_size"),
        ({"model_type": "siglip_text_model"}, ": siglip_text_model is a part of other models, not one that loads by"),
    ],
)
def test_a_geometry_has_the_names_of_its_configuration_alone(geometry: dict[str, Any], text: str) -> None:
    with pytest.raises(FedmaskError) as caught:
        load_base("tiny", geometry=geometry)
    assert str(caught.value).startswith(f"model=tiny: model.geometry{text}")
    assert "\n" not in str(caught.value)


def test_a_geometry_may_use_other_and_older_names_of_its_arguments() -> None:
    assert configuration_of("a", {"model_type": "distilbert", "hidden_size": 48}).dim == 48
    config = configuration_of(
        "a", {"model_type": "modernbert", "num_hidden_layers": 2, "global_attn_every_n_layers": 1}
    )
    assert config.layer_types == ["full_attention"] * 2


CONTENTS = {
    "BOM": (lambda text: f"\ufeff{text}", "the model's configuration cannot be read (It looks like the config file"),
    "cut": (lambda text: text[:40], "the model's configuration cannot be read (It looks like the config file"),
    "empty": (lambda text: "", "the model's configuration cannot be read (It looks like the config file"),
    "brackets": (lambda text: "[" * 3000 + "]" * 3000, "the model's configuration cannot be read (maximum recursion"),
    "a list": (lambda text: "[]", "there is no model_type that transformers"),
    "a word": (lambda text: '"bert"', "there is no model_type that transformers"),
    "null": (lambda text: "null", "the model's configuration cannot be read ("),
    "no type": (lambda text: "{}", "there is no model_type that transformers"),
}


@pytest.mark.parametrize("content", CONTENTS)
def test_a_file_that_is_no_configuration_is_told_with_its_cause(bert: Any, content: str) -> None:
    make, text = CONTENTS[content]
    file = bert() / "config.json"
    file.write_text(make(file.read_text()))
    assert refusal(file.parent).startswith(text)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"max_position_embeddings": "64"}, "(TypeError: Field 'max_position_embeddings' expected int, got str"),
        ({"hidden_size": float("nan")}, "(TypeError: Field 'hidden_size' expected int, got float"),
        ({"id2label": ["a"]}, "('list' object has no attribute 'items')"),
        ({"dtype": "float7"}, "(module 'torch' has no attribute 'float7')"),
    ],
)
def test_a_field_of_a_wrong_type_is_told_with_its_reason(bert: Any, changes: dict[str, Any], text: str) -> None:
    assert refusal(bert(**changes)).startswith(f"the model's configuration cannot be read {text}")


def test_a_folder_without_a_configuration_is_told_so(bert: Any) -> None:
    folder = bert()
    (folder / "config.json").unlink()
    assert refusal(folder) == "no model configuration there; name the folder that holds config.json"


def test_code_beside_a_model_is_never_run(bert: Any) -> None:
    ran = "raise SystemExit('code of the folder was run')"
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel", "AutoTokenizer": ["own.Own", None]}
    folder = bert(model_type="zork", auto_map=auto_map)
    (folder / "own.py").write_text(ran)
    assert refusal(folder).startswith("model_type 'zork' is none that transformers")
    folder = bert(auto_map=auto_map)
    assert load_base("own", path=str(folder)).encoder.config.model_type == "bert"  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["gptq", "bitsandbytes", "compressed-tensors"])
def test_quantized_weights_are_refused_whatever_is_installed(bert: Any, method: str) -> None:
    folder = bert(quantization_config={"quant_method": method, "load_in_8bit": True, "bits": 4})
    assert refusal(folder).startswith(f"the weights are quantized ({method})")


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention", "someone/kernels"])
def test_an_attention_that_not_every_machine_has_is_refused(bert: Any, key: str, attention: str) -> None:
    assert refusal(bert(**{key: attention})).startswith(f"it asks for the attention '{attention}'")


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_implementation": "sdpa"},
        {"attn_implementation": "eager"},
        {"gradient_checkpointing": True},
        {"tie_word_embeddings": False},
        {"torch_dtype": "float8_e4m3fn"},
        {"return_dict": False},
        {"torchscript": True},
    ],
)
def test_fields_that_decide_no_output_do_not_matter(bert: Any, changes: dict[str, Any]) -> None:
    base = load_base("own", path=str(bert(**changes)), dtype="float32")
    assert base.digest == load_base("own", path=str(bert()), dtype="float32").digest
    tokens = base.tokenizer("a text", return_tensors="pt")
    assert base.encoder(**tokens).last_hidden_state.shape == (1, tokens["input_ids"].shape[1], 32)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [*BertConfig().to_dict(), "quantization_config", "auto_map", "per_layer_config", "rope_scaling", "n_layers"]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1, max_size=3))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_values_make_a_configuration_or_one_line(tmp_path: Path, changes: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(BertConfig().to_dict() | changes))
    refused = None
    try:
        config = read_configuration(str(tmp_path), local_files_only=True)
    except FedmaskError as error:
        refused = str(error)
    if refused is None:
        assert isinstance(config.hidden_size, int)
    else:
        assert refused.startswith(f"{tmp_path}: ")
        assert "\n" not in refused


def test_a_fault_of_fedmasks_own_keeps_its_traceback(bert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bert()

    def broken(*_: object, **__: object) -> None:
        raise TypeError("a mistake")

    with monkeypatch.context() as patch:
        patch.setattr(configuration, "_check", broken)
        with pytest.raises(TypeError, match="a mistake"):
            read_configuration(str(folder), local_files_only=True)
    with monkeypatch.context() as patch:  # while another library's is told in one line
        patch.setattr(AutoConfig, "from_pretrained", broken)
        assert refusal(folder) == "the model's configuration cannot be read (a mistake); mend config.json"
