"""What decides a model's outputs is told by values in effect: what changes outputs changes it, and nothing else."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AlbertTokenizer,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    CanineTokenizer,
    DebertaTokenizer,
    DebertaV2Tokenizer,
    EsmTokenizer,
    MPNetTokenizer,
    PreTrainedTokenizerBase,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from fedmask.errors import InputsMismatchError
from fedmask.masks import base_digest
from fedmask.models import load_base, small_tokenizer
from fedmask.models.identity import check_inputs, differences, inputs_digest, inputs_of, tokenizer_digest

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 1461,
    "max_position_embeddings": 64,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": SMALL,
    "roberta": SMALL,
    "electra": SMALL | {"embedding_size": 16},
    "albert": SMALL | {"embedding_size": 16},
    "mpnet": SMALL,
    "esm": SMALL | {"position_embedding_type": "rotary", "mask_token_id": 4, "pad_token_id": 0},
    "deberta-v2": SMALL | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "modernbert": SMALL | {"pad_token_id": 0, "global_attn_every_n_layers": 2},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "vocab_size": 1461},
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 2, "vocab_size": 1461, "max_position_embeddings": 64},
    "longformer": SMALL | {"attention_window": 8},
    "fnet": {key: value for key, value in SMALL.items() if key != "num_attention_heads"},
}

RAW: dict[str, Any] = {**SMALL, "model_type": "bert"}
"""A configuration file of the few keys that matter."""


def saved(folder: Path, kind: str = "bert", **changes: Any) -> Path:
    """A model folder with the small tokenizer."""
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(kind, **{**ARCHITECTURES[kind], **changes})).save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return folder


def inputs_at(folder: Path) -> dict[str, Any]:
    return dict(load_base("a", path=str(folder)).inputs)


def of_config(raw: dict[str, Any]) -> str:
    """The digest of a model with this config.json."""
    return inputs_digest(inputs_of(FakeEncoder(raw), small()))  # type: ignore[arg-type]


class FakeEncoder:
    """Inputs are of the configuration alone: no weights are needed."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.config = AutoConfig.for_model(**raw)


_small = small_tokenizer()


def small() -> PreTrainedTokenizerBase:
    return _small


# ----------------------------------------------------------------------------------------------------------------------
# Settings
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_folder_that_is_saved_again_has_the_same_inputs(kind: str, tmp_path: Path) -> None:
    first = load_base("a", path=str(saved(tmp_path / "first", kind)))
    for again in ("second", "third"):
        first.encoder.save_pretrained(tmp_path / again)  # type: ignore[operator]
        first.tokenizer.save_pretrained(tmp_path / again)
        found = load_base("b", path=str(tmp_path / again))
        assert dict(found.inputs) == dict(first.inputs)
        assert (found.inputs_digest, found.digest) == (first.inputs_digest, first.digest)
    assert first.inputs["model_type"] == kind
    assert json.loads(json.dumps(first.inputs)) == first.inputs


def test_the_bundled_minilm_has_the_same_inputs_when_it_is_saved_again(tmp_path: Path) -> None:
    minilm = load_base("minilm", hub="sentence-transformers/all-MiniLM-L6-v2")
    minilm.encoder.save_pretrained(tmp_path)  # type: ignore[operator]
    minilm.tokenizer.save_pretrained(tmp_path)
    assert inputs_at(tmp_path) == minilm.inputs
    assert {key: value for key, value in minilm.inputs.items() if key != "tokenizer"} == {
        "model_type": "bert",
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
    }


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("bert", {"hidden_act": "relu"}),
        ("bert", {"layer_norm_eps": 1e-3}),
        ("bert", {"num_attention_heads": 4}),
        ("roberta", {"layer_norm_eps": 1e-3}),
        ("esm", {"token_dropout": True}),
        ("mpnet", {"hidden_act": "relu"}),
        ("deberta-v2", {"hidden_act": "relu"}),
        ("modernbert", {"local_attention": 6}),
        ("modernbert", {"norm_eps": 1e-3}),
        ("distilbert", {"activation": "relu"}),
        ("xlm", {"gelu_activation": False}),
        ("longformer", {"attention_window": 4}),
    ],
)
def test_another_setting_changes_the_inputs_and_not_the_digest_of_the_parameters(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    one = load_base("a", path=str(saved(tmp_path / "one", kind)))
    folder = saved(tmp_path / "other", kind)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    other = load_base("a", path=str(folder))
    if kind != "deberta-v2":  # other kinds of attention have other tensors there
        assert other.digest == one.digest == base_digest(other.encoder)
    assert other.inputs_digest != one.inputs_digest
    told = differences(other.inputs, one.inputs)
    assert next(iter(changes)) in told or "layer_types" in told


DEFAULTS = {key: value for key, value in AutoConfig.for_model("bert").to_dict().items() if key not in RAW}
NO_EFFECT = {
    "id2label": {"0": "a", "1": "b", "2": "c"},
    "label2id": {"a": 0, "b": 1, "c": 2},
    "architectures": ["BertForMaskedLM"],
    "torch_dtype": "float16",
    "transformers_version": "9.9.9",
    "_name_or_path": "/home/someone/model",
    "hidden_dropout_prob": 0.3,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout": 0.5,
    "initializer_range": 0.5,
    "use_cache": False,
    "tie_word_embeddings": False,
    "gradient_checkpointing": True,
    "position_embedding_type": "absolute",
    "problem_type": "regression",
    "a_key_of_tomorrow": {"nested": [1, 2]},
    "another": 3.5,
}


@given(
    st.sets(st.sampled_from(sorted(DEFAULTS))),
    st.sets(st.sampled_from(sorted(NO_EFFECT))),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_defaults_written_out_order_and_keys_without_effect_change_nothing(
    written: set[str], extra: set[str], shuffle: random.Random
) -> None:
    raw = {**RAW, **{key: DEFAULTS[key] for key in written}, **{key: NO_EFFECT[key] for key in extra}}
    raw.pop("dtype", None)
    items = list(raw.items())
    shuffle.shuffle(items)
    assert of_config(dict(items)) == of_config(RAW)


@given(
    st.dictionaries(
        st.sampled_from(["num_attention_heads", "layer_norm_eps", "max_position_embeddings", "num_hidden_layers"]),
        st.sampled_from([1, 2, 4, 8]),
        min_size=1,
    )
)
@settings(max_examples=40, deadline=None)
def test_equal_inputs_are_equal_values(changes: dict[str, Any]) -> None:
    raw = RAW | {key: float(value) if key == "layer_norm_eps" else value for key, value in changes.items()}
    assert (of_config(raw) == of_config(RAW)) == all(RAW.get(key) == value for key, value in raw.items())


def test_what_differs_is_named_with_both_values() -> None:
    found = {"model_type": "bert", "tokenizer": "a" * 16, "layer_norm_eps": 1e-12}
    expected = {"model_type": "bert", "tokenizer": "b" * 16, "hidden_act": "relu"}
    assert differences(found, found) == ""
    assert differences(found, expected) == (
        "hidden_act its default instead of relu, layer_norm_eps 1e-12 instead of its default, another tokenizer"
    )
    check_inputs(found, dict(reversed(found.items())), "the run's", "never mind")
    with pytest.raises(InputsMismatchError) as caught:
        check_inputs(found, found | {"window": list(range(99))}, "the run's", "do this")
    line = str(caught.value)
    assert line.startswith("this base model reads or computes otherwise than the run's: window its default instead of")
    assert line.endswith("...; do this")
    assert len(line) < 220


# ----------------------------------------------------------------------------------------------------------------------
# Tokenizers
# ----------------------------------------------------------------------------------------------------------------------


def edited(folder: Path, edit: Any) -> PreTrainedTokenizerBase:
    """The small tokenizer with another tokenizer.json."""
    small_tokenizer().save_pretrained(folder)
    state = json.loads((folder / "tokenizer.json").read_text())
    edit(state)
    (folder / "tokenizer.json").write_text(json.dumps(state))
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer


def swap_words(state: dict[str, Any]) -> None:
    vocabulary = state["model"]["vocab"]
    vocabulary["ab"], vocabulary["ba"] = vocabulary["ba"], vocabulary["ab"]


def add_a_token(state: dict[str, Any]) -> None:
    state["added_tokens"].append(state["added_tokens"][0] | {"id": 1461, "content": "[NEW]"})


def add_fields_of_tomorrow(state: dict[str, Any]) -> None:
    state["model"]["an_option_that_is_off"] = False
    state["model"]["another"] = None


def test_other_words_and_other_options_are_another_tokenizer(tmp_path: Path) -> None:
    known = {tokenizer_digest(small_tokenizer())}
    for number, edit in enumerate((swap_words, add_a_token)):
        known.add(tokenizer_digest(edited(tmp_path / str(number), edit)))
    for key, value in (("lowercase", False), ("strip_accents", False), ("handle_chinese_chars", False)):
        tokenizer = small_tokenizer()
        state = json.loads(tokenizer.backend_tokenizer.normalizer.__getstate__())
        assert state[key] != value
        setattr(tokenizer.backend_tokenizer.normalizer, key, value)
        known.add(tokenizer_digest(tokenizer))
    padded = small_tokenizer()
    padded.pad_token = "[MASK]"
    left = small_tokenizer()
    left.truncation_side = "left"
    known |= {tokenizer_digest(padded), tokenizer_digest(left)}
    assert len(known) == 8


def test_of_a_tokenizer_use_names_and_unset_options_change_nothing(tmp_path: Path) -> None:
    expected = tokenizer_digest(small_tokenizer())
    used = small_tokenizer()
    used(["a", "b c"], padding=True, truncation=True, max_length=4)
    used.model_max_length = 7
    used.name_or_path = "/somewhere"
    assert tokenizer_digest(used) == expected
    assert tokenizer_digest(edited(tmp_path, lambda state: None)) == expected
    state = json.loads(small_tokenizer().backend_tokenizer.to_str())
    add_fields_of_tomorrow(state)

    class Backend:
        def to_str(self) -> str:
            return json.dumps(state)

    class OfTomorrow:
        is_fast, backend_tokenizer = True, Backend()

        def __call__(self, *texts: str, **options: Any) -> Any:
            return small()(*texts, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(small(), name)

    assert tokenizer_digest(OfTomorrow()) == expected  # type: ignore[arg-type]


LETTERS = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,.!?'")
MERGED = ["\u0120", *LETTERS, "ab", "th", "the", "\u0120the"]
MERGES = [("a", "b"), ("t", "h"), ("th", "e"), ("\u0120", "the")]
PIECES = [("\u2581", -2.0), *((letter, -3.0) for letter in LETTERS), ("\u2581the", -1.5)]


def _numbered(*specials: str, words: list[str] = LETTERS) -> dict[str, int]:
    return {word: number for number, word in enumerate([*specials, *words])}


def _scored(*specials: str) -> list[tuple[str, float]]:
    return [*((special, 0.0) for special in specials), *PIECES]


FAST: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "mpnet": lambda: MPNetTokenizer(vocab=_numbered("<s>", "<pad>", "</s>", "[UNK]", "<mask>")),
    "roberta": lambda: RobertaTokenizer(
        vocab=_numbered("<s>", "<pad>", "</s>", "<unk>", "<mask>", words=MERGED), merges=MERGES
    ),
    "deberta": lambda: DebertaTokenizer(
        vocab=_numbered("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", words=MERGED), merges=MERGES
    ),
    "deberta-v2": lambda: DebertaV2Tokenizer(vocab=_scored("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")),
    "xlm-roberta": lambda: XLMRobertaTokenizer(vocab=_scored("<s>", "<pad>", "</s>", "<unk>", "<mask>")),
    "albert": lambda: AlbertTokenizer(vocab=_scored("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")),
}


@pytest.mark.parametrize("kind", FAST)
def test_a_fast_tokenizer_of_any_kind_is_the_same_when_it_is_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    tokenizer = FAST[kind]()
    expected = tokenizer_digest(tokenizer)
    for number in range(2):
        folder = tmp_path / str(number)
        tokenizer.save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer_digest(tokenizer) == expected
    assert len({tokenizer_digest(make()) for make in FAST.values()}) == len(FAST)


def test_another_merge_or_score_is_another_tokenizer() -> None:
    fewer = RobertaTokenizer(
        vocab=_numbered("<s>", "<pad>", "</s>", "<unk>", "<mask>", words=MERGED), merges=MERGES[:-1]
    )
    assert tokenizer_digest(fewer) != tokenizer_digest(FAST["roberta"]())
    specials = _scored("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    scored = [*specials[:-1], ("\u2581the", -9.0)]
    assert tokenizer_digest(XLMRobertaTokenizer(vocab=scored)) != tokenizer_digest(FAST["xlm-roberta"]())


def vocabulary_file(folder: Path, words: list[str]) -> str:
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    return str(folder / "vocab.txt")


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "##a", "\u00e9", "VU"]


def test_a_tokenizer_in_python_is_told_by_vocabulary_and_effect(tmp_path: Path) -> None:
    one = BertTokenizerLegacy(vocabulary_file(tmp_path / "one", WORDS))
    assert not one.is_fast
    same = BertTokenizerLegacy(vocabulary_file(tmp_path / "same", WORDS))
    one.save_pretrained(tmp_path / "saved")
    again = BertTokenizerLegacy.from_pretrained(tmp_path / "saved")
    assert tokenizer_digest(one) == tokenizer_digest(same) == tokenizer_digest(again)
    swapped = [*WORDS[:5], *reversed(WORDS[5:])]
    others = [
        BertTokenizerLegacy(vocabulary_file(tmp_path / "swapped", swapped)),
        BertTokenizerLegacy(vocabulary_file(tmp_path / "more", [*WORDS, "zz"])),
        BertTokenizerLegacy(vocabulary_file(tmp_path / "cased", WORDS), do_lower_case=False),
        BertTokenizerLegacy(vocabulary_file(tmp_path / "accents", WORDS), strip_accents=False),
        CanineTokenizer(),
        EsmTokenizer(vocabulary_file(tmp_path / "esm", ["<cls>", "<pad>", "<eos>", "<unk>", "<mask>", *"ABC"])),
    ]
    assert not any(other.is_fast for other in others)
    assert len({tokenizer_digest(each) for each in (one, *others)}) == 1 + len(others)
    assert tokenizer_digest(CanineTokenizer()) == tokenizer_digest(others[4])
