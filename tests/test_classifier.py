"""A merged folder with a head gives the labels that encoder and head give."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import fedmask
from fedmask.classifier import HEAD_FILE, Classifier, load_classifier
from fedmask.errors import FedmaskError
from fedmask.merged import MergedFacts, write_merged
from fedmask.models import BaseModel, load_base
from fedmask.tasks.task import Split
from fedmask.training.head import HeadLayout, HeadOrigin, save_head
from fedmask.training.text import encode, tokenize

TEXTS = [f"film {i} was {word}" for i in range(10) for word in ("fine", "dull and far too long to sit through", "odd")]
PAIRS = [(text, TEXTS[-i]) for i, text in enumerate(TEXTS)]
TOPICS = HeadLayout("topics", ("art", "law", "sea"), 64)


def features_of(base: BaseModel, pairs: bool = False) -> torch.Tensor:
    """(30, H) features of the texts, or of the pairs."""
    second = tuple(second for _, second in PAIRS) if pairs else None
    split = Split(tuple(TEXTS), second, np.zeros(len(TEXTS), np.int64))
    return encode(
        base.encoder,
        tokenize(split, base.tokenizer, base.encoder, min(128, base.encoder.config.max_position_embeddings)),
    )


def saved(folder: Path, base: BaseModel, layout: HeadLayout) -> np.ndarray:
    """A model folder with a head that tells the texts apart; returns the head's values."""
    base.encoder.save_pretrained(folder)  # type: ignore[operator]
    base.tokenizer.save_pretrained(folder)
    packed = (layout.random_start(1) * 100).numpy()
    if layout.hidden_size == base.hidden_size:
        # Random weights give all texts nearly the same features: the biases set their mean between the classes.
        packed[-layout.num_outputs :] = -layout.outputs(torch.from_numpy(packed), features_of(base).mean(0, True))[0]
    save_head(folder / HEAD_FILE, layout, packed)
    return packed


@pytest.fixture(scope="module")
def topics(tiny: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    folder = tmp_path_factory.mktemp("merged") / "topics"
    return folder, saved(folder, tiny, TOPICS)


def test_labels_are_those_of_features_and_head(tiny: BaseModel, topics: tuple[Path, np.ndarray]) -> None:
    folder, packed = topics
    classifier = fedmask.load_classifier(folder)
    assert isinstance(classifier, Classifier)
    assert classifier.task == "topics"
    scores = features_of(tiny).numpy() @ packed[:-3].reshape(3, 64).T + packed[-3:]
    expected = [TOPICS.labels[row.argmax()] for row in scores]  # type: ignore[index]
    assert len(set(expected)) > 1
    assert classifier(TEXTS) == expected
    assert classifier([]) == []


def test_a_bfloat16_folder_stays_in_bfloat16(tiny_bf16: BaseModel, tmp_path: Path) -> None:
    packed = saved(tmp_path, tiny_bf16, TOPICS)
    scores = features_of(tiny_bf16).numpy() @ packed[:-3].reshape(3, 64).T + packed[-3:]
    expected = [TOPICS.labels[row.argmax()] for row in scores]  # type: ignore[index]
    classifier = load_classifier(tmp_path)
    assert classifier(TEXTS) == expected
    assert {parameter.dtype for parameter in classifier._encoder.parameters()} == {torch.bfloat16}


def test_texts_are_cut_to_max_length(topics: tuple[Path, np.ndarray]) -> None:
    classifier = load_classifier(topics[0])
    assert classifier([f"{text} {TEXTS[1] * 9}" for text in TEXTS], max_length=4) == classifier(TEXTS, max_length=4)


@pytest.mark.parametrize("pairs", [False, True])
def test_a_regression_gives_numbers(tiny: BaseModel, tmp_path: Path, pairs: bool) -> None:
    layout = HeadLayout("rating", None, 64)
    packed = saved(tmp_path, tiny, layout)
    features = features_of(tiny, pairs).numpy()
    found = load_classifier(tmp_path)(PAIRS if pairs else TEXTS)
    assert all(type(value) is float for value in found)
    np.testing.assert_allclose(found, features @ packed[:-1] + packed[-1], rtol=1e-4, atol=1e-5)


def test_a_single_text_is_refused(topics: tuple[Path, np.ndarray]) -> None:
    with pytest.raises(FedmaskError, match=r"^a classifier takes a list of texts; put a single text into one"):
        load_classifier(topics[0])("a text")


def test_a_folder_without_a_head_is_refused(topics: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(FedmaskError, match=rf"^{tmp_path}/none: there is no such folder$"):
        load_classifier(tmp_path / "none")
    with pytest.raises(FedmaskError) as caught:
        load_classifier(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: no {HEAD_FILE} in it; merge again with head=FILE, a head of the run's clients/ folder"
    )
    shutil.copyfile(topics[0] / HEAD_FILE, tmp_path / HEAD_FILE)
    with pytest.raises(FedmaskError, match=rf"^{tmp_path}: no model configuration there"):
        load_classifier(tmp_path)


def test_a_head_of_another_size_is_refused(tiny: BaseModel, tmp_path: Path) -> None:
    saved(tmp_path, tiny, HeadLayout("topics", ("a", "b"), 384))
    with pytest.raises(FedmaskError, match=rf"^{tmp_path}: the head is for hidden size 384, the model has 64$"):
        load_classifier(tmp_path)


def test_classifying_leaves_no_graph(topics: tuple[Path, np.ndarray]) -> None:
    classifier = load_classifier(topics[0])
    with torch.autograd.graph.saved_tensors_hooks(lambda _: pytest.fail("a tensor was kept"), lambda kept: kept):
        classifier(TEXTS)


# ----------------------------------------------------------------------------------------------------------------------
# What the folder says of its training
# ----------------------------------------------------------------------------------------------------------------------


def merged(folder: Path, base: BaseModel, layout: HeadLayout = TOPICS, pairs: bool = False, length: int = 6) -> Path:
    """As merge writes it, with a delta of zeros."""
    head = folder.with_name(f"{folder.name}-head.safetensors")
    origin = HeadOrigin(base.name, base.digest, base.inputs, "a" * 16, length, pairs)
    save_head(head, layout, (layout.random_start(1) * 100).numpy(), origin)
    folder.mkdir()
    facts = MergedFacts(base.name, base.digest, base.inputs, "a" * 16, length, base.digest, 1, layout.task, pairs)
    write_merged(folder, copy.deepcopy(base.encoder), base.tokenizer, facts, head, layout)
    return folder


def test_scores_are_the_probabilities_of_the_labels(topics: tuple[Path, np.ndarray], tiny: BaseModel) -> None:
    folder, packed = topics
    classifier = load_classifier(folder)
    assert classifier.labels == ("art", "law", "sea")
    outputs = (features_of(tiny).numpy() @ packed[:-3].reshape(3, 64).T + packed[-3:]).astype(np.float64)
    expected = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    found = classifier.scores(TEXTS)
    assert (found.dtype, found.shape) == (np.float32, (30, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert [classifier.labels[row.argmax()] for row in found] == classifier(TEXTS)
    assert classifier.scores([]).shape == (0, 3)


def test_a_regression_has_no_labels_and_its_numbers_are_its_scores(tiny: BaseModel, tmp_path: Path) -> None:
    saved(tmp_path, tiny, HeadLayout("rating", None, 64))
    classifier = load_classifier(tmp_path)
    assert classifier.labels is None
    assert classifier.scores(TEXTS).shape == (30, 1)
    assert classifier.scores(TEXTS)[:, 0].tolist() == classifier(TEXTS)


def test_texts_are_cut_where_training_cut_them(tiny: BaseModel, tmp_path: Path) -> None:
    classifier = load_classifier(merged(tmp_path / "m", tiny))
    assert classifier.max_length == 6
    longer = [f"film {number} {TEXTS[1] * 9}" for number in range(5)]
    assert classifier.scores(longer).tolist() == classifier.scores(longer, max_length=6).tolist()
    assert classifier.scores(longer).tolist() != classifier.scores(longer, max_length=128).tolist()
    with pytest.raises(FedmaskError, match="this model reads at most 128 tokens"):
        classifier(longer, max_length=129)


def test_the_plainest_call_works_on_a_model_of_forty_positions(tmp_path: Path) -> None:
    geometry = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    geometry |= {"intermediate_size": 64, "vocab_size": 1461, "max_position_embeddings": 40}
    base = load_base("forty", geometry=geometry)
    layout = HeadLayout("topics", ("art", "law"), 32)
    saved(tmp_path / "old", base, layout)  # says nothing of its training
    assert load_classifier(tmp_path / "old").max_length == 40
    assert load_classifier(tmp_path / "old")(["a"])[0] in ("art", "law")
    assert load_classifier(merged(tmp_path / "new", base, layout, length=32))(["a " * 99])[0] in ("art", "law")


@pytest.mark.parametrize("pairs", [False, True])
def test_texts_of_the_kind_that_the_head_is_not_for_are_refused(tiny: BaseModel, tmp_path: Path, pairs: bool) -> None:
    classifier = load_classifier(merged(tmp_path / "m", tiny, pairs=pairs))
    right, wrong = (PAIRS, TEXTS) if pairs else (TEXTS, PAIRS)
    assert len(classifier(right)) == 30
    for ask in (classifier, classifier.scores):
        with pytest.raises(FedmaskError, match=r"^the head of topics is for (pairs of texts: classifier|single texts)"):
            ask(wrong)


def test_a_folder_of_an_older_merge_is_warned_of_once(
    tiny: BaseModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path / "old", tiny, TOPICS)
    assert load_classifier(tmp_path / "old").max_length == 128
    assert len(caplog.messages) == 1
    caplog.clear()
    load_classifier(merged(tmp_path / "new", tiny))
    assert caplog.messages == []
    shutil.copyfile(tmp_path / "new-head.safetensors", tmp_path / "old" / HEAD_FILE)
    assert load_classifier(tmp_path / "old").max_length == 6
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path / 'old'}: it does not say of which merge it is")


def test_a_head_model_or_tokenizer_that_was_not_merged_there_is_refused(tiny: BaseModel, tmp_path: Path) -> None:
    folder = merged(tmp_path / "m", tiny)

    def refusal() -> str:
        with pytest.raises(FedmaskError) as caught:
            load_classifier(folder)
        return str(caught.value)

    origin = HeadOrigin(tiny.name, tiny.digest, tiny.inputs, "b" * 16, 6, False)
    good = (folder / HEAD_FILE).read_bytes()
    save_head(folder / HEAD_FILE, TOPICS, TOPICS.random_start(1).numpy(), origin)
    assert refusal() == f"{folder}: its head is of run {'b' * 16}, its model of run {'a' * 16}; merge again"
    other = HeadLayout("sst2", TOPICS.labels, 64)
    save_head(folder / HEAD_FILE, other, other.random_start(1).numpy())
    assert refusal() == f"{folder}: its head is of task sst2, merged was one of topics; merge again"
    turned = HeadLayout("topics", ("sea", "law", "art"), 64)
    save_head(folder / HEAD_FILE, turned, turned.random_start(1).numpy())
    assert refusal() == f"{folder}: its head has the labels sea, law, art, merged was one of art, law, sea; merge again"
    (folder / HEAD_FILE).write_bytes(good)

    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.0.output.dense.bias"][3] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert refusal() == f"{folder}: its weights are not those that were merged; merge again"
    weights["encoder.layer.0.output.dense.bias"][3] -= 1
    tiny.encoder.save_pretrained(folder)  # type: ignore[operator]
    assert load_classifier(folder).max_length == 6  # a folder that was written anew knows of no merge, its head does

    again = merged(tmp_path / "again", tiny)
    config = json.loads((again / "config.json").read_text())
    (again / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(FedmaskError, match=r"than the model that was merged into .*again.*: hidden_act relu instead"):
        load_classifier(again)
    wrong = [{name: value} for name, value in {"max_length": "x", "more": 1, "inputs": 3, "pairs": "yes"}.items()]
    for section in ([], {"max_length": 3}, *({**config["fedmask"], **each} for each in wrong)):
        (again / "config.json").write_text(json.dumps(config | {"fedmask": section}))
        with pytest.raises(FedmaskError, match=r"^config\.json: .*; merge again$"):
            load_classifier(again)


@pytest.mark.parametrize("texts", [["a", "b\ud800"], [("a", "b"), ("\ud800", "c")]])
def test_half_a_character_is_told(topics: tuple[Path, np.ndarray], texts: list[Any]) -> None:
    with pytest.raises(FedmaskError, match=r"^text 1: a text has half of a surrogate pair"):
        load_classifier(topics[0])(texts)


@pytest.mark.parametrize("texts", [["a", ("b", "c")], [("a", "b"), "c"], [1], [("a", "b", "c")], [("a", "b"), ("c",)]])
def test_texts_of_more_than_one_kind_are_refused(topics: tuple[Path, np.ndarray], texts: list[object]) -> None:
    with pytest.raises(FedmaskError, match=r"text \d: .* like the first"):
        load_classifier(topics[0])(texts)  # type: ignore[arg-type]
