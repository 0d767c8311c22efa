"""Tokens on disk: made once, mapped into memory, made again where the file does not fit; never another user's."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fedmask.errors import FedmaskError
from fedmask.models import BaseModel
from fedmask.tasks.task import Split
from fedmask.training import token_cache
from fedmask.training.text import TokenizedSplit, tokenize
from fedmask.training.token_cache import cache_folder, cached_tokens

SPLIT = Split(("a cat sat", "the plot, so thin", "one"), None, np.array([1, 0, 2]))
PAIRS = Split(SPLIT.text_a, ("a film", "in", "the cat"), SPLIT.labels)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(token_cache.FOLDER, str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def times_tokenized(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each call that reached the tokenizer."""
    calls: list[int] = []

    def counting(split: Split, *arguments: object) -> TokenizedSplit:
        calls.append(len(split))
        return tokenize(split, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(token_cache, "tokenize", counting)
    return calls


def tokens_of(base: BaseModel, split: Split = SPLIT, max_length: int = 16) -> TokenizedSplit:
    return cached_tokens(split, base.tokenizer, base.encoder, max_length)


def same(tokens: TokenizedSplit, others: TokenizedSplit) -> bool:
    def plain(split: TokenizedSplit) -> list[object]:
        types = None if split.token_types is None else split.token_types.tolist()
        return [split.token_ids.tolist(), types, split.starts.tolist(), split.padding_id, split.labels.tolist()]

    return plain(tokens) == plain(others)


@pytest.mark.parametrize("split", [SPLIT, PAIRS], ids=["texts", "pairs"])
def test_a_second_time_is_read_from_disk(tiny: BaseModel, times_tokenized: list[int], split: Split) -> None:
    first, second = tokens_of(tiny, split), tokens_of(tiny, split)
    assert times_tokenized == [3]
    assert same(first, second)
    assert same(second, tokenize(split, tiny.tokenizer, tiny.encoder, 16))


def test_the_ids_are_mapped_and_kept_from_other_users(tiny: BaseModel, folder: Path) -> None:
    tokens = tokens_of(tiny)
    (file,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert str(file) in Path("/proc/self/maps").read_text()
    assert tokens.token_ids.size > 0


@pytest.mark.parametrize("other", ["texts", "boundaries", "pairs", "length"])
def test_other_texts_or_another_length_are_other_tokens(
    tiny: BaseModel, times_tokenized: list[int], other: str
) -> None:
    tokens_of(tiny)
    splits = {
        "texts": Split(("a cat sat", "the plot, so thin", "two"), None, SPLIT.labels),
        "boundaries": Split(("a cat sat", "the plot, so", " thinone"), None, SPLIT.labels),
        "pairs": PAIRS,
    }
    split, length = splits.get(other, SPLIT), 4 if other == "length" else 16
    assert same(tokens_of(tiny, split, length), tokenize(split, tiny.tokenizer, tiny.encoder, length))
    assert times_tokenized == [3, 3]


def test_other_labels_share_the_tokens(tiny: BaseModel, times_tokenized: list[int]) -> None:
    tokens_of(tiny)
    relabelled = tokens_of(tiny, Split(SPLIT.text_a, None, np.array([0.5, 1.5, 2.0])))
    assert relabelled.labels.tolist() == [0.5, 1.5, 2.0]
    assert times_tokenized == [3]


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "another split's"])
def test_a_file_that_does_not_fit_is_made_again(
    tiny: BaseModel, times_tokenized: list[int], folder: Path, damage: str
) -> None:
    expected = tokens_of(tiny)
    (file,) = folder.iterdir()
    tokens_of(tiny, SPLIT.take([0, 1]))
    (other,) = set(folder.iterdir()) - {file}
    whole = file.read_bytes()
    damaged = {"cut": whole[:-5], "empty": b"", "garbage": b"x" * 900, "another split's": other.read_bytes()}[damage]
    file.unlink()  # its pages are mapped: it is replaced, never written into
    file.write_bytes(damaged)
    assert same(tokens_of(tiny), expected)
    assert times_tokenized == [3, 2, 3]
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("token-ids", lambda ids: ids + 100_000),
        ("token-ids", lambda ids: ids - 100_000),
        ("token-ids", lambda ids: ids.long()),
        ("starts", lambda starts: torch.tensor([0, 200, 100, len(starts)], dtype=torch.uint8)),
        ("starts", lambda starts: starts.float()),
        ("starts", lambda starts: torch.tensor([0, 2**62, -(2**62), int(starts[-1])])),
        ("starts", lambda starts: torch.tensor([0, 1, 2, int(starts[-1])])),
        ("token-types", lambda types: types + 3),
        ("padding-id", lambda padding: padding + 100_000),
        ("padding-id", lambda padding: padding.repeat(2)),
    ],
)
def test_a_file_that_the_model_could_not_have_made_is_made_again(
    tiny: BaseModel, times_tokenized: list[int], folder: Path, name: str, change: Callable[[Tensor], Tensor]
) -> None:
    long = Split(("a cat sat " * 20, "the plot, so thin", "one"), None, SPLIT.labels)
    expected = tokens_of(tiny, long)
    (file,) = folder.iterdir()
    tensors = load(file.read_bytes())
    file.unlink()
    file.write_bytes(save(tensors | {name: change(tensors[name])}))
    file.chmod(0o600)
    assert same(tokens_of(tiny, long), expected)
    assert times_tokenized == [3, 3]


def test_a_folder_that_others_write_is_refused(tiny: BaseModel, folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(FedmaskError) as caught:
        tokens_of(tiny)
    assert str(caught.value) == (
        f"{folder}: others may write into this folder; close it by `chmod go-w {folder}`, or name another folder for "
        "the cache with FEDMASK_CACHE_FOLDER=DIR"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_another_users_folder_and_file_are_not_read(tiny: BaseModel, times_tokenized: list[int], folder: Path) -> None:
    tokens_of(tiny)
    (file,) = folder.iterdir()
    os.chown(file, 4321, 4321)
    tokens_of(tiny)
    assert times_tokenized == [3, 3]
    os.chown(folder, 4321, 4321)
    with pytest.raises(FedmaskError, match="another user's"):
        tokens_of(tiny)


def test_where_nothing_can_be_written_tokens_stay_in_memory(
    tiny: BaseModel, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.parent.write_text("a file in the place of the folder")
    assert same(tokens_of(tiny), tokenize(SPLIT, tiny.tokenizer, tiny.encoder, 16))
    assert "token ids are not kept on disk" in caplog.text


def test_a_length_that_the_model_cannot_read_is_refused_before_the_disk_is_asked(tiny: BaseModel) -> None:
    with pytest.raises(FedmaskError, match=r"data\.max_length=100000"):
        tokens_of(tiny, max_length=100_000)


def test_by_default_they_lie_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(token_cache.FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "fedmask"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "fedmask"


def test_a_tokenizer_that_was_taught_another_word_gives_other_tokens(
    tiny: BaseModel, times_tokenized: list[int], tmp_path: Path
) -> None:
    tokens_of(tiny)
    tiny.tokenizer.save_pretrained(tmp_path / "taught")
    taught: PreTrainedTokenizerBase = type(tiny.tokenizer).from_pretrained(tmp_path / "taught")
    taught.add_tokens(["plot,"])
    cached_tokens(SPLIT, taught, tiny.encoder, 16)
    assert times_tokenized == [3, 3]


def test_a_tokenizer_that_cuts_at_the_other_end_gives_other_tokens(
    tiny: BaseModel, times_tokenized: list[int], tmp_path: Path
) -> None:
    tokens_of(tiny, max_length=4)
    tiny.tokenizer.save_pretrained(tmp_path / "other")
    other: PreTrainedTokenizerBase = type(tiny.tokenizer).from_pretrained(tmp_path / "other", truncation_side="left")
    assert not same(cached_tokens(SPLIT, other, tiny.encoder, 4), tokens_of(tiny, max_length=4))
    assert times_tokenized == [3, 3]
