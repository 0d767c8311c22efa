"""A merged folder with a head gives the labels that encoder and head give."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import fedmask
from fedmask.classifier import HEAD_FILE, Classifier, load_classifier
from fedmask.errors import FedmaskError
from fedmask.models import BaseModel
from fedmask.tasks.task import Split
from fedmask.training.head import HeadLayout, save_head
from fedmask.training.text import encode, tokenize

TEXTS = [f"film {i} was {word}" for i in range(10) for word in ("fine", "dull and far too long to sit through", "odd")]
PAIRS = [(text, TEXTS[-i]) for i, text in enumerate(TEXTS)]
TOPICS = HeadLayout("topics", ("art", "law", "sea"), 64)


def features_of(base: BaseModel, pairs: bool = False) -> torch.Tensor:
    """(30, H) features of the texts, or of the pairs."""
    second = tuple(second for _, second in PAIRS) if pairs else None
    split = Split(tuple(TEXTS), second, np.zeros(len(TEXTS), np.int64))
    return encode(base.encoder, tokenize(split, base.tokenizer, base.encoder, 128))


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


@pytest.mark.parametrize("texts", [["a", ("b", "c")], [("a", "b"), "c"], [1], [("a", "b", "c")], [("a", "b"), ("c",)]])
def test_texts_of_more_than_one_kind_are_refused(topics: tuple[Path, np.ndarray], texts: list[object]) -> None:
    with pytest.raises(FedmaskError, match=r"text \d: .* like the first"):
        load_classifier(topics[0])(texts)  # type: ignore[arg-type]
