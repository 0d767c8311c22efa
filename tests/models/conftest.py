"""Small model folders, made here; nothing is loaded before a test."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedModel, RobertaConfig, RobertaModel

from fedmask.models import loading, small_tokenizer

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SIZES |= {"vocab_size": 1461, "max_position_embeddings": 64, "pad_token_id": 0}


@pytest.fixture(autouse=True)
def _nothing_loaded_before() -> Iterator[None]:
    loading._load_base.cache_clear()
    yield
    loading._load_base.cache_clear()


@pytest.fixture(scope="session")
def geometry() -> dict[str, Any]:
    """Of a RoBERTa with one layer."""
    return SIZES | {"model_type": "roberta", "num_hidden_layers": 1, "max_position_embeddings": 512}


@pytest.fixture(scope="session")
def saved() -> Callable[..., Path]:
    """saved(model, folder): a model folder with the small tokenizer in it."""

    def save(model: PreTrainedModel, folder: Path) -> Path:
        model.save_pretrained(folder)
        small_tokenizer().save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def roberta(tmp_path_factory: pytest.TempPathFactory, geometry: dict[str, Any], saved: Callable[..., Path]) -> Path:
    """A model folder without a pooler in it, as RoBERTa's checkpoints are."""
    torch.manual_seed(0)
    model = RobertaModel(RobertaConfig(**geometry), add_pooling_layer=False)
    return saved(model, tmp_path_factory.mktemp("hub") / "small-roberta")


@pytest.fixture
def bert(tmp_path: Path, saved: Callable[..., Path]) -> Callable[..., Path]:
    """bert(**changes): the folder of a sound BERT of two layers, whose config.json then says something else."""

    def make(**changes: Any) -> Path:
        torch.manual_seed(1)
        folder = saved(BertModel(BertConfig(**SIZES)), tmp_path / "bert")
        return edited(folder / "config.json", **changes).parent

    return make


def edited(file: Path, **changes: Any) -> Path:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return file


@pytest.fixture(scope="session")
def edit() -> Callable[..., Path]:
    """edit(file, **changes): some values of a JSON file, anew."""
    return edited


@pytest.fixture(scope="session")
def change_tensors() -> Callable[..., Path]:
    """change_tensors(folder, change): the folder, whose tensors are those that change makes of them, a dictionary."""

    def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, {"format": "pt"})
        return folder

    return rewrite
