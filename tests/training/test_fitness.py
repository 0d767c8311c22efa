"""The check before a run: what it lets pass, what it refuses in one line, that it costs once, and that it leaves no
trace in the model."""

import copy
import inspect
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import BertModel

import fedmask.training.gradient as gradient_module
from fedmask.errors import FedmaskError
from fedmask.masks import Mask, base_digest, select
from fedmask.models import BaseModel, load_base, small_tokenizer
from fedmask.training import fitness, fitness_checks
from fedmask.training.fitness import check_fitness
from fedmask.training.fitness_checks import MIDDLE, SHORT

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SIZES |= {"vocab_size": 1461, "max_position_embeddings": 64, "pad_token_id": 0}


@pytest.fixture(autouse=True)
def _nothing_checked_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMASK_CACHE_FOLDER", str(tmp_path / "cache"))


def made(kind: str, dtype: str = "float32", **geometry: Any) -> BaseModel:
    return load_base(kind, geometry=SIZES | {"model_type": kind} | geometry, dtype=dtype)


def mask_of(base: BaseModel, rule: str = "random", **options: Any) -> Mask:
    options = {"density": 0.02} | options if rule in ("pafi", "random", "largest") else options
    return select(base.encoder, rule=rule, base_digest=base.digest, **options)


def refusal(base: BaseModel, mask: Mask | None, max_length: int = 40) -> str:
    with pytest.raises(FedmaskError) as caught:
        check_fitness(base, mask, max_length)
    text = str(caught.value)
    assert text.startswith(f"model {base.name}: ")
    assert "\n" not in text
    return text.removeprefix(f"model {base.name}: ")


def with_types(base: BaseModel, single: str, pair: str) -> BaseModel:
    """With a tokenizer that puts these around texts, `$A:1` for the first with type 1."""
    tokenizer = copy.deepcopy(base.tokenizer)
    specials = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=specials)
    return replace(base, tokenizer=tokenizer)


def without_second_texts(base: BaseModel) -> BaseModel:
    """With a tokenizer whose file says that a pair is its first text."""
    tokenizer = copy.deepcopy(base.tokenizer)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["post_processor"]["pair"] = state["post_processor"]["single"]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    return replace(base, tokenizer=tokenizer)


def changed(base: BaseModel, change: Callable[[Any], object]) -> BaseModel:
    """A copy with an encoder that `change` has changed."""
    encoder = copy.deepcopy(base.encoder)
    change(encoder)
    return replace(base, encoder=encoder)


# ----------------------------------------------------------------------------------------------------------------------
# What passes
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["pafi", "largest", "random", "ffn_bias", "bitfit", "hiwi", "all", None])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sound_model_passes_and_is_left_as_it_was(
    tiny: BaseModel, tiny_bf16: BaseModel, dtype: str, rule: str | None
) -> None:
    base = tiny if dtype == "float32" else tiny_bf16
    mask = None if rule is None else mask_of(base, rule)
    state = torch.get_rng_state()
    for max_length in (1, 2, SHORT, MIDDLE + 1, 128):
        assert check_fitness(base, mask, max_length) == {}
    assert torch.equal(torch.get_rng_state(), state)
    assert base_digest(base.encoder) == base.digest
    for parameter in base.encoder.parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None
    assert not any(module._forward_hooks for module in base.encoder.modules())


def test_a_model_that_changes_its_lowest_output_in_place_passes() -> None:
    base = made("longformer", attention_window=8, max_position_embeddings=66)
    assert check_fitness(base, mask_of(base, "pafi", exclude=["*_global*"]), 40) == {}


# ----------------------------------------------------------------------------------------------------------------------
# Token ids
# ----------------------------------------------------------------------------------------------------------------------


def test_ids_beyond_the_embeddings_are_told(tiny: BaseModel) -> None:
    tokenizer = small_tokenizer()
    tokenizer.add_tokens(["kitchen", AddedToken("cellar")])
    for base, mask in ((replace(tiny, tokenizer=tokenizer), None), (replace(tiny, tokenizer=tokenizer), mask_of(tiny))):
        assert refusal(base, mask).startswith(
            "the tokenizer's largest id, of 'cellar', is 1462, and the embeddings have rows for 0 to 1460 only; take"
        )


def test_fewer_embeddings_than_words_are_told() -> None:
    base = made("bert", vocab_size=1000)
    assert refusal(base, None).startswith("the tokenizer's largest id, of '~', is 1460, and the embeddings have rows")


def test_a_padding_id_beyond_the_embeddings_is_told(tiny: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitness_checks, "padding_id", lambda tokenizer: 2000)
    assert refusal(tiny, None).startswith("padding, is 2000, and the embeddings")


def test_more_embeddings_than_words_are_sound() -> None:
    assert check_fitness(made("bert", vocab_size=1500), None, 40) == {}


# ----------------------------------------------------------------------------------------------------------------------
# Features
# ----------------------------------------------------------------------------------------------------------------------

PADDING_IS_TEXT: dict[str, dict[str, Any]] = {
    "fnet": {},
    "canine": {"num_hash_buckets": 64, "local_transformer_stride": 16},
    "convbert": {"embedding_size": 32, "head_ratio": 1},
    "mobilebert": {"embedding_size": 32, "intra_bottleneck_size": 32},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", PADDING_IS_TEXT)
def test_a_model_that_reads_padding_is_refused(kind: str, dtype: str) -> None:
    without = {"fnet": "num_attention_heads", "canine": "vocab_size"}.get(kind)
    geometry = {key: value for key, value in SIZES.items() if key != without}
    base = load_base(kind, geometry=geometry | {"model_type": kind} | PADDING_IS_TEXT[kind], dtype=dtype)
    if (kind, dtype) == ("fnet", "bfloat16"):  # there is no such transform
        assert refusal(base, None).startswith("a short text cannot be read (Unsupported dtype BFloat16); take")
    else:
        assert f"when a longer one stands beside it: {kind} reads padding as text; take another" in refusal(base, None)


@pytest.mark.parametrize("scale", [1e-6, 3e-3])
def test_the_tolerance_lies_between_roundings_and_what_a_label_feels(tiny: BaseModel, scale: float) -> None:
    """An encoder whose states all move a little by how much padding there is."""

    def leak(encoder: nn.Module) -> None:
        forward = encoder.forward

        def leaking(input_ids: Tensor, attention_mask: Tensor, **more: Tensor) -> Any:
            output = forward(input_ids=input_ids, attention_mask=attention_mask, **more)
            hidden = output.last_hidden_state
            padding = (attention_mask == 0).any().float()
            return SimpleNamespace(last_hidden_state=hidden * (1.0 + scale * padding))

        leaking.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
        encoder.forward = leaking

    base = changed(tiny, leak)
    if scale < 1e-5:
        assert check_fitness(base, None, 40) == {}
    else:
        assert "reads padding as text" in refusal(base, None)


def test_dropout_that_stays_on_is_refused(tiny: BaseModel) -> None:
    assert "are not the same each time it is read" in refusal(changed(tiny, lambda encoder: encoder.train()), None)


def test_positions_that_end_before_max_length_are_told_where_no_configuration_says_so(tiny: BaseModel) -> None:
    def say_nothing(encoder: Any) -> None:
        encoder.config = copy.deepcopy(encoder.config)
        encoder.config.max_position_embeddings = -1

    base = changed(tiny, say_nothing)
    assert check_fitness(base, None, 128) == {}
    assert refusal(base, None, 129).startswith("a text of data.max_length=129 tokens cannot be read (")
    assert refusal(base, None, 129).endswith("; lower data.max_length")
    with pytest.raises(FedmaskError, match=r"^data.max_length=129: this model reads at most 128 tokens"):
        check_fitness(tiny, None, 129)


@pytest.mark.parametrize("chunk", [2, 4, 5, 8, 13])
def test_a_model_that_reads_some_lengths_alone_is_refused(tiny: BaseModel, chunk: int) -> None:
    """chunk_size_feed_forward takes multiples of itself."""

    def cut_in_chunks(encoder: Any) -> None:
        for layer in encoder.encoder.layer:
            layer.chunk_size_feed_forward = chunk

    assert "cannot be read (The dimension to be chunked" in refusal(changed(tiny, cut_in_chunks), None, 39)


@pytest.mark.parametrize("mask_rule", ["bitfit", None])
def test_a_model_without_layers_is_told_so(mask_rule: str | None) -> None:
    base = made("bert", num_hidden_layers=0)
    text = refusal(base, None if mask_rule is None else mask_of(base, mask_rule))
    assert text.startswith("no token's state depends on the others of its text, as in a model that has no layers")


def test_states_that_are_not_as_the_configuration_says_are_told() -> None:
    base = made("dpr")
    assert refusal(base, None).startswith("last_hidden_state, of which features are the mean, is not there, and should")
    base = changed(made("bert"), lambda encoder: setattr(encoder.config, "hidden_size", 48))
    assert refusal(base, None).startswith(
        "last_hidden_state, of which features are the mean, is (1, 5, 32), and should"
    )


def test_features_that_are_not_finite_are_told(tiny: BaseModel) -> None:
    base = changed(tiny, lambda encoder: encoder.encoder.layer[1].output.LayerNorm.weight.fill_(float("inf")))
    assert refusal(base, None).startswith("features of a short or an empty text are not finite")


# ----------------------------------------------------------------------------------------------------------------------
# Gradients
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["_gathered", "_sampled"])
def test_a_gradient_that_is_not_autograds_is_told_by_name(
    tiny: BaseModel, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    real = getattr(gradient_module, part)

    def off(weight: Tensor, index: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        gradient = real(weight, index)
        return lambda g, x: gradient(g, x) * 1.01

    monkeypatch.setattr(gradient_module, part, off)
    density = 0.0003 if part == "_gathered" else 0.01
    mask = mask_of(tiny, include=["encoder.layer.1.output.dense.weight"], density=density * 0.1)
    assert refusal(tiny, mask).startswith(
        "the gradient of the selected entries of encoder.layer.1.output.dense.weight is not the one of ordinary "
    )


def test_a_gradient_of_nothing_is_not_autograds(tiny: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask_alone(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.requires_grad_(True)

    monkeypatch.setattr(gradient_module.SelectedGradient, "_watch", lambda self, *_: ask_alone)
    mask = mask_of(
        tiny, include=["encoder.layer.1.output.dense.weight", "encoder.layer.1.output.dense.bias"], density=0.001
    )
    assert refusal(tiny, mask).startswith("the gradient of the selected entries of encoder.layer.1.output.dense.weight")


@pytest.mark.parametrize("include", [["pooler.dense.weight"], ["pooler.*", "encoder.layer.1.output.*"]])
def test_selected_tensors_without_a_gradient_are_refused_by_name(tiny: BaseModel, include: list[str]) -> None:
    mask = mask_of(tiny, include=include, density=0.01)
    text = refusal(tiny, mask)
    assert text.startswith("the mask selects entries of pooler.dense.weight")
    assert "no feature comes from there, so they would never change; leave them out with mask.exclude" in text


def test_an_attention_that_does_not_run_here_is_refused() -> None:
    base = made("mra", block_per_row=1)  # without its CUDA kernel its attention is zero
    assert refusal(base, mask_of(base)).startswith("no token's state depends on the others of its text")


def test_tensors_for_other_inputs_are_told_each_time_and_do_no_harm(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = made("longformer", attention_window=8, max_position_embeddings=66)
    mask = mask_of(base)
    unread = {name: len(indices) for name, indices in mask.indices.items() if "_global" in name}
    assert unread
    for _ in range(2):  # the second time it is read from disk
        caplog.clear()
        with caplog.at_level(logging.WARNING, "fedmask"):
            assert check_fitness(base, mask, 40) == unread
        assert len(caplog.messages) == 1
        assert (
            f"{sum(unread.values())} of the mask's {mask.num_selected} entries lie in tensors that no text reads"
            in (caplog.messages[0])
        )
        monkeypatch.setattr(fitness, "_check", lambda *_: pytest.fail("checked a second time"))
    monkeypatch.undo()
    alone = mask_of(base, include=["*_global.weight"])
    assert refusal(base, alone).startswith("the mask selects entries of encoder.layer.0.attention.self.query_global")


# ----------------------------------------------------------------------------------------------------------------------
# Once a model
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """checked(base, mask, max_length): whether the check was made, and not read from disk."""
    calls: list[int] = []
    real = fitness._check
    monkeypatch.setattr(fitness, "_check", lambda *args: calls.append(1) or real(*args))

    def was_made(*args: Any) -> bool:
        calls.clear()
        check_fitness(*args)
        return bool(calls)

    return was_made


def test_it_is_made_once_for_what_decides_its_result(
    tiny: BaseModel, tiny_bf16: BaseModel, checked: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = mask_of(tiny)
    assert checked(tiny, mask, 40)
    assert not checked(tiny, mask, 40)
    other_tokenizer = small_tokenizer()
    other_tokenizer.add_special_tokens({"additional_special_tokens": ["a"]})
    other_config = changed(tiny, lambda encoder: None)
    other_config.encoder.config = copy.deepcopy(tiny.encoder.config)  # type: ignore[union-attr]
    other_config.encoder.config.layer_norm_eps = 1e-5  # type: ignore[union-attr]
    in_chunks = changed(tiny, lambda encoder: None)  # decides no output, but which lengths are read
    in_chunks.encoder.config = copy.deepcopy(tiny.encoder.config)  # type: ignore[union-attr]
    in_chunks.encoder.config.chunk_size_feed_forward = 1  # type: ignore[union-attr]
    for base, its_mask, max_length in (
        (in_chunks, mask, 40),
        (tiny, mask, 41),
        (tiny, None, 40),
        (tiny, mask_of(tiny, "largest"), 40),
        (tiny_bf16, None, 40),
        (replace(tiny, tokenizer=other_tokenizer), mask, 40),
        (other_config, mask, 40),
    ):
        assert checked(base, its_mask, max_length)
        assert not checked(base, its_mask, max_length)
    for package in ("torch", "transformers", "tokenizers"):
        with monkeypatch.context() as patch:
            patch.setattr(fitness, "version", lambda name, package=package: "0" if name == package else "1")
            assert checked(tiny, mask, 40)
    monkeypatch.setattr(fitness, "_FORMAT", "another check")
    assert checked(tiny, mask, 40)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": "b"}', b"\xff"])
def test_a_record_that_is_none_is_made_anew(
    tiny: BaseModel, checked: Callable[..., bool], tmp_path: Path, content: bytes
) -> None:
    assert checked(tiny, None, 40)
    (record,) = (tmp_path / "cache" / "fitness").iterdir()
    record.write_bytes(content)
    assert checked(tiny, None, 40)
    assert not checked(tiny, None, 40)


def test_what_is_refused_is_checked_again(tiny: BaseModel, tmp_path: Path) -> None:
    base = made("bert", num_hidden_layers=0)
    assert refusal(base, None) == refusal(base, None)
    assert list((tmp_path / "cache" / "fitness").iterdir()) == []


def test_a_folder_that_cannot_be_written_costs_time_alone(
    tiny: BaseModel, checked: Callable[..., bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("FEDMASK_CACHE_FOLDER", str(tmp_path / "file"))
    assert checked(tiny, None, 40)
    assert checked(tiny, None, 40)


def test_a_user_without_a_home_pays_each_time(
    tiny: BaseModel, checked: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere() -> Path:
        raise FedmaskError("this user has no home folder")

    monkeypatch.setattr(fitness, "cache_folder", nowhere)
    assert checked(tiny, None, 40)
    assert checked(tiny, None, 40)


@pytest.mark.parametrize("part", ["mean_over_tokens", "_check_unread", "SelectedGradient", "tokenize", "padding_id"])
def test_a_fault_of_fedmasks_own_keeps_its_traceback(
    tiny: BaseModel, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a mistake in fedmask")

    monkeypatch.setattr(fitness_checks, part, broken)
    with pytest.raises(RuntimeError, match=r"^a mistake in fedmask$"):
        check_fitness(tiny, mask_of(tiny), 40)


def test_a_fault_of_a_model_is_one_line(tiny: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: nn.Module, input_ids: Tensor, **_: Tensor) -> None:
        raise KeyError("bbox")

    monkeypatch.setattr(BertModel, "forward", broken)
    assert refusal(tiny, None).startswith("a short text cannot be read (KeyError: 'bbox'); take another model")


# ----------------------------------------------------------------------------------------------------------------------
# Token types and pairs
# ----------------------------------------------------------------------------------------------------------------------

PAIR = "[CLS] $A [SEP] $B:1 [SEP]:1"


@pytest.mark.parametrize("single", ["[CLS] $A:2 [SEP]", "[CLS]:2 $A [SEP]"])
def test_a_token_type_beyond_the_models_is_told(single: str) -> None:
    base = with_types(made("bert"), single, PAIR)
    said = "its tokenizer gives tokens the type 2, and the model has types 0 to 1 only; take the tokenizer that belongs"
    assert refusal(base, None).startswith(said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda base: with_types(base, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:2 [SEP]:1"),
            "its tokenizer gives tokens the type 2, and the model has types 0 to 1 only",
        ),
        (
            lambda base: without_second_texts(with_types(base, "[CLS] $A [SEP]", PAIR)),
            "its tokenizer leaves out the second text of a pair; take the model's own tokenizer",
        ),
    ],
)
def test_a_tokenizer_that_cannot_make_pairs_is_told_where_there_are_pairs(
    change: Callable[[BaseModel], BaseModel], said: str
) -> None:
    base = change(made("bert"))
    check_fitness(base, None, 40)
    with pytest.raises(FedmaskError, match=f"^model bert: {said}"):
        fitness_checks.check_token_types(base, pairs=True)


def test_models_without_token_types_take_any() -> None:
    base = made("bert", type_vocab_size=1)
    fitness_checks.check_token_types(with_types(base, "[CLS]:3 $A:3", "[CLS]:3 $A:3 $B:3"), pairs=True)
