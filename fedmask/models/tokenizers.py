"""A model's tokenizer, or one that stands in for it where weights are random: MiniLM's, or a small one made here."""

import itertools
import string
from contextlib import suppress

from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerBase

from fedmask.models.sources import bundled_minilm


def tokenizer_for(hub: str | None, path: str | None, vocab_size: int) -> PreTrainedTokenizerBase:
    """The model's own tokenizer where it is within reach, else MiniLM's where its ids fit, else the small one."""
    own = path if path is not None else hub
    if own is not None:
        with suppress(OSError, ValueError):
            return tokenizer_at(own, local_files_only=True)
    if vocab_size >= 30522 and (folder := bundled_minilm()) is not None:
        return AutoTokenizer.from_pretrained(folder)
    return small_tokenizer()


def tokenizer_at(location: str, local_files_only: bool) -> PreTrainedTokenizerBase:
    """The tokenizer there. Raises ValueError where it knows no words: what transformers makes of a lack of files."""
    tokenizer = AutoTokenizer.from_pretrained(location, local_files_only=local_files_only)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError("no tokenizer files")
    return tokenizer


def small_tokenizer() -> PreTrainedTokenizerBase:
    """A WordPiece tokenizer of 1,461 letters, letter pairs, digits and punctuation marks: any English text, no file."""
    letters = string.ascii_lowercase
    pairs = ["".join(pair) for pair in itertools.product(letters, repeat=2)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *pairs]
    pieces += [f"##{piece}" for piece in [*letters, *pairs]]
    pieces += [*string.digits, *[f"##{digit}" for digit in string.digits], *string.punctuation]
    return BertTokenizerFast(vocab={piece: index for index, piece in enumerate(pieces)}, model_max_length=128)
