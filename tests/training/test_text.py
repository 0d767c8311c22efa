"""Features against a loop over single texts, for three kinds of encoder; batches and padding change nothing."""

import copy

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import AutoModel, DistilBertConfig, PreTrainedTokenizerFast, RobertaConfig

from fedmask.errors import FedmaskError
from fedmask.models import BaseModel
from fedmask.tasks.task import Split
from fedmask.training.text import EVALUATION_BATCH_SIZE, TokenizedSplit, TokenLimits, encode, mean_pooled, tokenize

CPU = torch.device("cpu")
WORDS = ("plot", "film", "so", "thin", "that", "a", "cat", "could", "have", "written", "it", "in", "one", "night")
SIZES = {"hidden_dropout_prob": 0.0, "vocab_size": 1461, "pad_token_id": 0}


def texts(n: int, seed: int = 0) -> tuple[str, ...]:
    """Sentences of 1 to 16 words."""
    draw = np.random.default_rng(seed)
    return tuple(" ".join(draw.choice(WORDS, size=draw.integers(1, 17))) for _ in range(n))


def unlabelled(text_a: tuple[str, ...], text_b: tuple[str, ...] | None = None) -> Split:
    return Split(text_a, text_b, np.zeros(len(text_a), np.int64))


@pytest.fixture(scope="module")
def roberta() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    model: nn.Module = AutoModel.from_config(RobertaConfig(**sizes, **SIZES, type_vocab_size=1))
    return model.eval()


@pytest.fixture(scope="module")
def distilbert() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = AutoModel.from_config(DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, **SIZES))
    return model.eval()


@pytest.fixture(params=["tiny", "roberta", "distilbert"])
def encoder(request: pytest.FixtureRequest, tiny: BaseModel) -> nn.Module:
    model: nn.Module = tiny.encoder if request.param == "tiny" else request.getfixturevalue(request.param)
    return model


def ids_of(tokens: TokenizedSplit, row: int) -> list[int]:
    return tokens.token_ids[tokens.starts[row] : tokens.starts[row + 1]].tolist()  # type: ignore[no-any-return]


@torch.no_grad()
def feature_alone(encoder: nn.Module, tokens: TokenizedSplit, row: int) -> np.ndarray:
    """Oracle: one text without padding, the mean of its hidden states one by one."""
    inputs = {"input_ids": torch.tensor(ids_of(tokens, row))[None]}
    if tokens.token_types is not None:
        types = tokens.token_types[tokens.starts[row] : tokens.starts[row + 1]]
        inputs["token_type_ids"] = torch.from_numpy(types.astype(np.int64))[None]
    hidden = encoder(**inputs).last_hidden_state[0].numpy().astype(np.float64)
    total = np.zeros(hidden.shape[1])
    for state in hidden:
        total += state
    return np.asarray(total / len(hidden))


@pytest.mark.parametrize("pairs", [False, True])
def test_features_are_the_mean_hidden_states_of_each_text(tiny: BaseModel, encoder: nn.Module, pairs: bool) -> None:
    # More than a batch, so that rows are sorted, cut into batches and put back.
    n = EVALUATION_BATCH_SIZE + 9
    split = unlabelled(texts(n), texts(n, seed=1) if pairs else None)
    tokens = tokenize(split, tiny.tokenizer, encoder, max_length=128)
    features = encode(encoder, tokens)
    assert features.dtype == torch.float32
    expected = np.stack([feature_alone(encoder, tokens, row) for row in range(n)])
    np.testing.assert_allclose(features.numpy(), expected, atol=2e-6)


def test_padding_does_not_change_features(tiny: BaseModel, encoder: nn.Module) -> None:
    tokens = tokenize(unlabelled(("a cat", " ".join(WORDS * 3))), tiny.tokenizer, encoder, max_length=128)
    padded, alone = tokens.batch([0, 1], CPU), tokens.batch([0], CPU)
    assert padded["input_ids"].shape[1] > alone["input_ids"].shape[1]
    with torch.no_grad():
        torch.testing.assert_close(mean_pooled(encoder, padded)[:1], mean_pooled(encoder, alone), atol=1e-6, rtol=0.0)


def test_features_do_not_depend_on_the_order_of_the_rows(tiny: BaseModel) -> None:
    split = unlabelled(texts(EVALUATION_BATCH_SIZE + 20))
    order = np.random.default_rng(1).permutation(len(split))
    features, permuted = (
        encode(tiny.encoder, tokenize(rows, tiny.tokenizer, tiny.encoder, 128)) for rows in (split, split.take(order))
    )
    torch.testing.assert_close(permuted, features[torch.from_numpy(order)], atol=1e-6, rtol=0.0)


def test_a_batch_is_padded_to_its_longest_row(tiny: BaseModel) -> None:
    labels = np.array([1, 0, 1])
    tokens = TokenizedSplit(np.array([2, 9, 3, 2, 3, 2, 3], np.int32), None, np.array([0, 3, 5, 7]), 7, labels)
    batch = tokens.batch(np.array([1, 0]), CPU)
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[2, 3, 7], [2, 9, 3]],
        "attention_mask": [[1, 1, 0], [1, 1, 1]],
    }
    assert tokens.batch([1], CPU)["input_ids"].tolist() == [[2, 3]]


def test_pairs_carry_token_types_where_the_model_takes_them(tiny: BaseModel) -> None:
    split = unlabelled(("a cat", "one night it was"), ("the film", "so"))
    tokens = tokenize(split, tiny.tokenizer, tiny.encoder, max_length=128)
    assert tokens.token_types is not None
    for row in range(2):
        ids, types = ids_of(tokens, row), tokens.token_types[tokens.starts[row] : tokens.starts[row + 1]]
        first_end = ids.index(tiny.tokenizer.sep_token_id) + 1
        assert types.tolist() == [0] * first_end + [1] * (len(ids) - first_end)
        assert 0 < first_end < len(ids)
    batch = tokens.batch([0, 1], CPU)
    assert batch["token_type_ids"].shape == batch["input_ids"].shape
    with torch.no_grad():
        features = mean_pooled(tiny.encoder, batch)
        blind = mean_pooled(tiny.encoder, batch | {"token_type_ids": torch.zeros_like(batch["token_type_ids"])})
    assert (features - blind).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["roberta", "distilbert"])
def test_models_that_take_no_token_types_are_given_none(
    tiny: BaseModel, kind: str, request: pytest.FixtureRequest
) -> None:
    split = unlabelled(("a cat",), ("the film",))
    tokens = tokenize(split, tiny.tokenizer, request.getfixturevalue(kind), max_length=128)
    assert tokens.token_types is None
    assert tokens.batch([0], CPU).keys() == {"input_ids", "attention_mask"}


def test_texts_are_cut_to_max_length_special_tokens_included(tiny: BaseModel) -> None:
    split = Split((" ".join(WORDS), "a"), None, np.array([1, 0]))
    tokens = tokenize(split, tiny.tokenizer, tiny.encoder, max_length=6)
    assert len(tokens) == 2
    assert tokens.lengths.tolist() == [6, 3]
    assert ids_of(tokens, 0)[-1] == tiny.tokenizer.sep_token_id
    assert tokens.labels.tolist() == [1, 0]


def test_a_part_is_a_view_of_some_rows(tiny: BaseModel) -> None:
    split = Split(texts(9), None, np.arange(9))
    tokens = tokenize(split, tiny.tokenizer, tiny.encoder, max_length=128)
    part = tokens.part(3, 7)
    assert (len(part), part.labels.tolist(), part.lengths.tolist()) == (4, [3, 4, 5, 6], tokens.lengths[3:7].tolist())
    assert [ids_of(part, row) for row in range(4)] == [ids_of(tokens, row) for row in range(3, 7)]
    assert np.shares_memory(part.token_ids, tokens.token_ids)
    for name, values in part.batch([3, 0], CPU).items():
        assert torch.equal(values, tokens.batch([6, 3], CPU)[name])


def test_features_carry_no_graph_and_can_be_trained_on(tiny: BaseModel) -> None:
    model = copy.deepcopy(tiny.encoder).requires_grad_(True)
    features = encode(model, tokenize(unlabelled(texts(3)), tiny.tokenizer, model, 128))
    assert not features.requires_grad
    weight = nn.Parameter(torch.ones(features.shape[1]))
    (features[torch.tensor([0, 2])] @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, features[0] + features[2])


def without_special_tokens(words: bool = True) -> PreTrainedTokenizerFast:
    """Splits at blanks and adds nothing. words: whether it has a word for unknown ones."""
    model = WordLevel({"[PAD]": 0, "a": 4, "cat": 5, "[UNK]": 7}, unk_token="[UNK]")
    backend = Tokenizer(model)
    backend.pre_tokenizer = Whitespace()
    more = {"unk_token": "[UNK]"} if words else {"eos_token": "cat"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", **more)


@pytest.mark.parametrize(("words", "expected"), [(True, 7), (False, 5)])
@pytest.mark.parametrize("pairs", [False, True])
def test_a_text_of_no_tokens_has_the_features_of_one(
    encoder: nn.Module, words: bool, expected: int, pairs: bool
) -> None:
    tokenizer = without_special_tokens(words)
    rows = ("", "a cat", "  ", "a")
    split = unlabelled(rows, rows if pairs else None)
    tokens = tokenize(split, tokenizer, encoder, max_length=16)
    assert tokens.lengths.tolist() == ([1, 4, 1, 2] if pairs else [1, 2, 1, 1])
    assert ids_of(tokens, 0) == ids_of(tokens, 2) == [expected]
    features = encode(encoder, tokens)
    assert torch.isfinite(features).all()
    for row in range(4):
        np.testing.assert_allclose(features[row].numpy(), feature_alone(encoder, tokens, row), atol=2e-6)
    again = TokenizedSplit.from_tensors(tokens.tensors(), split.labels, TokenLimits.of(tokenizer, encoder, 16))
    assert again.lengths.tolist() == tokens.lengths.tolist()


def test_an_empty_text_between_special_tokens_is_those(tiny: BaseModel) -> None:
    tokens = tokenize(unlabelled(("",)), tiny.tokenizer, tiny.encoder, max_length=16)
    assert ids_of(tokens, 0) == [tiny.tokenizer.cls_token_id, tiny.tokenizer.sep_token_id]


def test_more_tokens_than_the_model_has_positions_are_refused(encoder: nn.Module, tiny: BaseModel) -> None:
    positions = encoder.config.max_position_embeddings
    # RoBERTa counts positions from the one after its padding's.
    longest = positions - encoder.config.pad_token_id - 1 if encoder.config.model_type == "roberta" else positions
    split = Split(("a word",), None, np.zeros(1, np.int64))
    assert len(tokenize(split, tiny.tokenizer, encoder, longest)) == 1
    with pytest.raises(
        FedmaskError, match=rf"data.max_length={longest + 1}: this model reads at most {longest} tokens"
    ):
        tokenize(split, tiny.tokenizer, encoder, longest + 1)
