"""A model proves itself before a run: what it fails with is one line, before any client is asked or a folder kept."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message
from transformers import (
    BertConfig,
    BertModel,
    FNetConfig,
    FNetModel,
    LongformerConfig,
    LongformerModel,
    PreTrainedModel,
)

from fedmask.errors import FedmaskError
from fedmask.models import small_tokenizer

Run = Any
SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SIZES |= {"vocab_size": 1461, "max_position_embeddings": 64, "pad_token_id": 0}


def saved(model: PreTrainedModel, folder: Path, *words: str) -> Path:
    model.save_pretrained(folder)
    tokenizer = small_tokenizer()
    tokenizer.add_tokens(list(words))
    tokenizer.save_pretrained(folder)
    return folder


def layers_lack(folder: Path) -> str:
    saved(BertModel(BertConfig(**SIZES)), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    return f"{folder}: config.json describes tensors that the checkpoint lacks, encoder.layer.2."


def padding_is_text(folder: Path) -> str:
    saved(FNetModel(FNetConfig(**{key: SIZES[key] for key in SIZES if key != "num_attention_heads"})), folder)
    return "model own: the features of a short text move by "


def words_without_embeddings(folder: Path) -> str:
    saved(BertModel(BertConfig(**SIZES)), folder, "kitchen", "cellar")
    return (
        "model own: the tokenizer's largest id, of 'cellar', is 1462, and the embeddings have rows for 0 to 1460 only"
    )


@pytest.mark.parametrize("baseline", ["none", "frozen"])
@pytest.mark.parametrize("make", [layers_lack, padding_is_text, words_without_embeddings])
def test_a_model_that_is_not_fit_ends_the_run_before_any_client_is_asked(
    make: Callable[[Path], str], baseline: str, federate: Callable[..., Run], tmp_path: Path
) -> None:
    def app(message: Message, context: Context) -> Message:
        pytest.fail("a client was asked")

    text = make(tmp_path / "own")
    with pytest.raises(FedmaskError) as caught:
        federate(
            "model=minilm", f"model.path={tmp_path / 'own'}", f"baseline={baseline}", app=app, output=tmp_path / "run"
        )
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rule", ["pafi", "random", "largest"])
def test_a_model_that_changes_its_embeddings_in_place_trains_in_a_federation(
    rule: str, federate: Callable[..., Run], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = SIZES | {"max_position_embeddings": 66}
    folder = saved(LongformerModel(LongformerConfig(**sizes, attention_window=8)), tmp_path / "own")
    with caplog.at_level(logging.WARNING, "fedmask"):
        run = federate("model=minilm", f"model.path={folder}", f"mask={rule}")
    assert [line["failures"] for line in run.rounds] == [0, 0]
    unread = run.summary["mask"]["unread_by_tensor"]
    selected = run.summary["mask"]["selected_by_tensor"]
    assert unread == {name: count for name, count in selected.items() if "_global." in name}
    assert "entries lie in tensors that no text reads" in caplog.text
    changed = dict.fromkeys(selected, 0)
    start = 0
    for name, count in selected.items():
        changed[name] = int((run.values[start : start + count] != 0).sum())
        start += count
    assert all(changed[name] == (0 if name in unread else count) for name, count in selected.items())
