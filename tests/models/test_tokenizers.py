"""Tokenizers: a model's own, one that stands in for it, and what is said of one that cannot be read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from fedmask.errors import FedmaskError
from fedmask.models import load_base, small_tokenizer
from fedmask.models.tokenizers import tokenizer_at

ROBERTA = "FacebookAI/roberta-base"


@pytest.mark.parametrize(("vocab_size", "tokens"), [(1461, 1461), (30521, 1461), (30522, 30522), (50265, 30522)])
def test_the_tokenizer_of_random_weights_fits_their_vocabulary(
    geometry: dict[str, Any], vocab_size: int, tokens: int
) -> None:
    base = load_base("a", ROBERTA, weights="random", geometry=geometry | {"vocab_size": vocab_size})
    assert len(base.tokenizer) == tokens


def a_newer_kind(folder: Path, edit: Callable[..., Path]) -> None:
    edit(folder / "tokenizer.json", model={"type": "Later", "vocab": {"a": 0}})


def writes(name: str, text: str) -> Callable[[Path, Callable[..., Path]], None]:
    def write(folder: Path, edit: Callable[..., Path]) -> None:
        (folder / name).write_text(text)

    return write


UNREADABLE: dict[str, tuple[Callable[[Path, Callable[..., Path]], None], str]] = {
    "of a newer kind": (a_newer_kind, "data did not match any variant"),
    "empty": (writes("tokenizer.json", ""), "Expecting value"),
    "a pointer": (writes("tokenizer.json", "version https://git-lfs.github.com/spec/v1"), "Expecting value"),
    "settings empty": (writes("tokenizer_config.json", ""), "Expecting value"),
    "settings a list": (writes("tokenizer_config.json", "[]"), "'list' object"),
    "class a number": (writes("tokenizer_config.json", '{"tokenizer_class": 3}'), "'int' object"),
    "token a number": (writes("tokenizer_config.json", '{"added_tokens_decoder": {"x": 1}}'), "Found a <class 'int'>"),
}


@pytest.mark.parametrize("weights", ["pretrained", "random"])
@pytest.mark.parametrize("fault", UNREADABLE)
def test_a_tokenizer_that_cannot_be_read_is_one_line_that_names_the_folder(
    bert: Any, edit: Callable[..., Path], fault: str, weights: str
) -> None:
    make, cause = UNREADABLE[fault]
    folder = bert()
    make(folder, edit)
    with pytest.raises(FedmaskError) as caught:
        load_base("own", path=str(folder), weights=weights)
    assert str(caught.value).startswith(f"{folder}: its tokenizer cannot be read ({cause}")
    assert "\n" not in str(caught.value)


def words_alone(folder: Path) -> None:
    """The form of BERT's first tokenizers."""
    vocabulary = small_tokenizer().get_vocab()
    for file in folder.glob("tokenizer*"):
        file.unlink()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)))


def unknown_class(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ZorkTokenizer"}')


def no_padding(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


@pytest.mark.parametrize("make", [words_alone, unknown_class, no_padding])
def test_other_forms_of_a_tokenizer_read_a_text_alike(bert: Any, make: Callable[[Path], None]) -> None:
    folder = bert()
    expected = tokenizer_at(str(folder), local_files_only=True)("it rained, 3 times")["input_ids"]
    make(folder)
    base = load_base("own", path=str(folder), dtype="float32")
    assert base.tokenizer("it rained, 3 times")["input_ids"] == expected
    assert base.tokenizer.pad_token_id in (0, None)


@pytest.mark.parametrize("name", ["spm.model", "spiece.model"])
def test_a_sentencepiece_model_alone_is_one_line(bert: Any, name: str) -> None:
    folder = bert()
    for file in folder.glob("tokenizer*"):
        file.unlink()
    (folder / name).write_bytes(b"abc")
    with pytest.raises(FedmaskError, match=rf"^{folder}: (its tokenizer cannot be read|no tokenizer files there)"):
        load_base("own", path=str(folder))


def test_a_folder_without_a_tokenizer_is_told_so_where_the_weights_are_real(bert: Any) -> None:
    folder = bert()
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(FedmaskError, match=rf"^{folder}: no tokenizer files there that know a word"):
        load_base("own", path=str(folder))
    assert len(load_base("own", path=str(folder), weights="random").tokenizer) == 1461


def test_a_fault_of_fedmasks_own_keeps_its_traceback(bert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __len__(self) -> int:
            raise AttributeError("a mistake")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: Broken())
    with pytest.raises(AttributeError, match="a mistake"):
        tokenizer_at(str(bert()), local_files_only=True)


def test_the_small_tokenizer_reads_any_english_and_survives_its_file(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    assert len(tokenizer) == 1461
    text = "It's 9:45; WHY would 7% of 1,024 café-goers (quizzically) pay $3?"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == (
        "it's9:45;whywould7%of1,024cafe-goers(quizzically)pay$3?"
    )
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == ids


def test_a_tokenizer_that_cannot_read_every_text_is_told(bert: Any, edit: Callable[..., Path]) -> None:
    folder = bert()
    edit(
        folder / "tokenizer.json",
        model={
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "vocab": {"a": 0, "b": 1},
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
    )
    with pytest.raises(
        FedmaskError, match=r": its tokenizer cannot read every text \(.*UNK.*\); fetch the model's own"
    ):
        load_base("own", path=str(folder))
