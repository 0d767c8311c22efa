"""The code that travels with a merged folder: transformers alone, without fedmask, says what `load_classifier` says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import Sequence
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fedmask.classifier import load_classifier
from fedmask.merged import HEAD_FILE, MergedFacts, modeling_fedmask, write_merged
from fedmask.models import BaseModel, load_base, small_tokenizer
from fedmask.tasks.task import Split
from fedmask.training.head import HeadLayout, HeadOrigin, save_head
from fedmask.training.text import encode, tokenize

MAX_LENGTH = 12
TEXTS = ["a fine film", "odd", "dull and far too long to sit through, all of it, to the end", "", "b c d e f"]
PAIRS = [("a fine film", "a good film"), ("odd", TEXTS[2]), (TEXTS[2], TEXTS[2]), ("x", "")]
HEADS = {
    "classes": (("art", "law, and order", "sea"), False),
    "pairs": (("no", "yes"), True),
    "regression": (None, False),
}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},  # it takes no token types
    "roberta": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    | {"type_vocab_size": 1, "max_position_embeddings": 40},
}

# It answers from the folder named by its first argument, and cannot import fedmask.
WITHOUT_FEDMASK = """
import json, sys

sys.modules["fedmask"] = None
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

folder, texts = sys.argv[1], json.loads(sys.argv[2])
found = {}
told = [text if isinstance(text, str) else {"text": text[0], "text_pair": text[1]} for text in texts]
piped = pipeline("text-classification", folder, trust_remote_code=True)
found["piped"] = piped(told)
found["batched"] = piped(told, batch_size=3)
found["all"] = piped(told, top_k=None)
wrong = told[0]["text"] if isinstance(told[0], dict) else {"text": "a", "text_pair": "b"}
for name, ask in (
    ("wrong kind", lambda: piped(wrong)),
    ("no text", lambda: piped([{"texts": "a"}])),
    ("untrusted", lambda: pipeline("text-classification", folder)),
    ("untrusted alias", lambda: pipeline("sentiment-analysis", folder)),
):
    try:
        found[name] = ask() and "answered"
    except ValueError as error:
        found[name] = str(error)
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
columns = [texts] if isinstance(texts[0], str) else [list(column) for column in zip(*texts)]
inputs = tokenizer(*columns, truncation=True, padding=True, return_tensors="pt")
with torch.no_grad():
    found["logits"] = model(**inputs).logits.tolist()
found["id2label"] = model.config.id2label
model.save_pretrained(folder + "-again")
tokenizer.save_pretrained(folder + "-again")
again, report = AutoModelForSequenceClassification.from_pretrained(
    folder + "-again", trust_remote_code=True, output_loading_info=True, dtype=torch.float32
)
with torch.no_grad():
    found["logits again"] = again(**inputs).logits.tolist()
targets = torch.zeros(len(texts)) if model.config.num_labels == 1 else torch.zeros(len(texts), dtype=torch.long)
loss = again.train()(**inputs, labels=targets).loss
loss.backward()
found["missing"] = sorted(report["missing_keys"])
found["has gradient"] = all(parameter.grad is not None for parameter in again.head.parameters())
print(json.dumps(found))
"""


def without_special_tokens() -> PreTrainedTokenizerBase:
    """Of an empty text it makes no token at all."""
    backend = small_tokenizer().backend_tokenizer
    backend.post_processor = Sequence([])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")


def merged(
    folder: Path, kind: str, labels: tuple[str, ...] | None, pairs: bool, special_tokens: bool = True
) -> tuple[BaseModel, HeadLayout]:
    """A folder as merge writes it, of a random encoder whose head tells texts apart."""
    torch.manual_seed(3)
    encoder = AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=1461, **ENCODERS[kind])).eval()
    tokenizer = small_tokenizer() if special_tokens else without_special_tokens()
    base = BaseModel(kind, "random", encoder, tokenizer, "1" * 64)
    layout = HeadLayout("films", labels, 32)
    packed = layout.random_start(1) * 200
    rows = Split(tuple(TEXTS), tuple(TEXTS[::-1]) if pairs else None, np.zeros(len(TEXTS), np.int64))
    features = encode(encoder, tokenize(rows, tokenizer, encoder, MAX_LENGTH))
    packed[-layout.num_outputs :] = -layout.outputs(packed, features.mean(0, True))[0]
    head = folder.with_name("head.safetensors")
    save_head(head, layout, packed.numpy(), HeadOrigin(kind, "1" * 64, base.inputs, "", MAX_LENGTH, pairs))
    encoder.save_pretrained(folder.with_name("plain"))
    tokenizer.save_pretrained(folder.with_name("plain"))
    digest = load_base(kind, path=str(folder.with_name("plain"))).digest
    facts = MergedFacts(kind, "1" * 64, base.inputs, None, MAX_LENGTH, digest, 1, "films", pairs)
    folder.mkdir()
    write_merged(folder, encoder, tokenizer, facts, head, layout)
    return base, layout


def answers_without_fedmask(folder: Path, texts: list[Any]) -> dict[str, Any]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    finished = subprocess.run(
        [sys.executable, "-c", WITHOUT_FEDMASK, str(folder), json.dumps(texts)],
        cwd=folder.parent,
        env=environment | {"HF_MODULES_CACHE": str(folder.parent / "modules"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert "not supported for text-classification" not in finished.stderr
    answers: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return answers


@pytest.mark.parametrize(
    ("kind", "head"),
    [("bert", "classes"), ("bert", "pairs"), ("bert", "regression"), ("distilbert", "pairs"), ("roberta", "classes")],
)
def test_transformers_alone_gives_the_labels_and_scores_of_load_classifier(
    kind: str, head: str, tmp_path: Path
) -> None:
    labels, pairs = HEADS[head]
    merged(tmp_path / "folder", kind, labels, pairs, special_tokens=kind != "roberta")
    texts: list[Any] = list(PAIRS) if pairs else list(TEXTS)
    classifier = load_classifier(tmp_path / "folder")
    scores = classifier.scores(texts)
    found = answers_without_fedmask(tmp_path / "folder", texts)

    names = labels or ("films",)
    assert found["id2label"] == {str(index): name for index, name in enumerate(names)}
    expected = classifier(texts)
    for way in ("piped", "batched"):
        if labels is None:
            np.testing.assert_allclose([answer["score"] for answer in found[way]], expected, rtol=1e-5, atol=1e-5)
        else:
            assert [answer["label"] for answer in found[way]] == expected
    for row, answers in enumerate(found["all"]):
        assert {answer["label"] for answer in answers} == set(names)
        for answer in answers:
            assert answer["score"] == pytest.approx(scores[row, names.index(answer["label"])], rel=1e-4, abs=1e-5)
    logits = torch.tensor(found["logits"])
    raw = logits if labels is None else logits.softmax(1)
    np.testing.assert_allclose(raw.numpy(), scores, rtol=1e-4, atol=1e-5)
    assert found["logits again"] == found["logits"]
    assert (found["missing"], found["has gradient"]) == ([], True)
    assert "this model's head is for" in found["wrong kind"]
    assert "expected a text, or" in found["no text"]
    for way in ("untrusted", "untrusted alias"):
        assert "trust_remote_code=True" in found[way]
    if labels is not None:
        assert len(set(expected)) > 1, "the head must tell texts apart"


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("head", HEADS)
def test_the_class_gives_the_scores_of_load_classifier_and_the_encoder_is_left_plain(
    kind: str, head: str, tmp_path: Path
) -> None:
    labels, pairs = HEADS[head]
    base, _ = merged(tmp_path / "folder", kind, labels, pairs)
    model = modeling_fedmask.FedmaskForSequenceClassification.from_pretrained(tmp_path / "folder")
    texts: list[Any] = list(PAIRS) if pairs else list(TEXTS)
    columns = [list(column) for column in zip(*texts, strict=True)] if pairs else [texts]
    inputs = base.tokenizer(*columns, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt")
    if kind != "bert" and "token_type_ids" not in inputs:
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])  # a tokenizer may give what a model ignores
    with torch.no_grad():
        logits = model(**inputs).logits
        attention = model(input_ids=inputs["input_ids"][:1], attention_mask=inputs["attention_mask"][:1]).logits
    expected = load_classifier(tmp_path / "folder").scores(texts)
    np.testing.assert_allclose(
        (logits if labels is None else logits.softmax(1)).numpy(), expected, rtol=1e-4, atol=1e-5
    )
    assert attention.shape == (1, len(labels or "1"))
    plain = AutoModel.from_pretrained(tmp_path / "folder")
    assert type(plain) is type(base.encoder)
    for name, tensor in base.encoder.named_parameters():
        assert torch.equal(plain.get_parameter(name), tensor)
    assert model.encoder.config._attn_implementation == plain.config._attn_implementation


def test_a_bfloat16_encoder_keeps_its_head_in_float32(tmp_path: Path) -> None:
    merged(tmp_path / "folder", "bert", ("a", "b"), False)
    model = modeling_fedmask.FedmaskForSequenceClassification.from_pretrained(tmp_path / "folder", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.encoder.parameters()} == {torch.bfloat16}
    assert model(torch.tensor([[2, 7, 3]])).logits.dtype == torch.float32
    exact = modeling_fedmask.FedmaskForSequenceClassification.from_pretrained(tmp_path / "folder")
    assert torch.equal(model.head.weight, exact.head.weight)


def test_a_head_of_another_size_is_refused(tmp_path: Path) -> None:
    merged(tmp_path / "folder", "bert", ("a", "b"), False)
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    changed = config | {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    (tmp_path / "folder" / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="a head of 3 labels does not have 66 values"):
        modeling_fedmask.FedmaskForSequenceClassification.from_pretrained(tmp_path / "folder")


def test_it_needs_nothing_of_fedmask_and_knows_the_heads_file() -> None:
    code = Path(modeling_fedmask.__file__).read_text()
    assert not re.search(r"^\s*(import|from) fedmask", code, re.MULTILINE)
    assert modeling_fedmask.HEAD_FILE == HEAD_FILE
