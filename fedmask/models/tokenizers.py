"""A model's tokenizer, or one that stands in for it where weights are random: MiniLM's, or a small one made here."""

import itertools
import string
from importlib.metadata import version
from pathlib import Path

from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerBase

from fedmask.errors import FedmaskError, cause_line
from fedmask.models.identity import PROBES
from fedmask.models.sources import bundled_minilm, check_hub_name, in_hub_cache

TOKENIZER_FILES = ("tokenizer", "vocab", "merges", "spiece", "spm", "sentencepiece", "bpe")
"""How the names of a tokenizer's files begin, of all kinds."""


def tokenizer_for(hub: str | None, path: str | None, vocab_size: int) -> PreTrainedTokenizerBase:
    """The model's own tokenizer where it is within reach, else MiniLM's where its ids fit, else the small one.

    Raises FedmaskError where there is a tokenizer of its own that cannot be read.
    """
    own = path if path is not None else hub
    if path is None and hub is not None:
        check_hub_name(hub)
    if own is not None and _has_tokenizer(own):
        return tokenizer_at(own, local_files_only=True)
    if vocab_size >= 30522 and (folder := bundled_minilm()) is not None:
        return AutoTokenizer.from_pretrained(folder)
    return small_tokenizer()


def _has_tokenizer(location: str) -> bool:
    """Whether a tokenizer's files lie in the folder or in the local hub cache, whatever is in them."""
    if Path(location).is_dir():
        return any(file.name.startswith(TOKENIZER_FILES) for file in Path(location).iterdir())
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json")
    return any(isinstance(in_hub_cache(location, name), str) for name in names)


def tokenizer_at(location: str, local_files_only: bool) -> PreTrainedTokenizerBase:
    """The tokenizer there. Raises FedmaskError where there is none, or none that this library reads."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, local_files_only=local_files_only, trust_remote_code=False)
    except Exception as error:  # among others a bare Exception, of a tokenizer.json from a newer library
        raise FedmaskError(
            f"{location}: its tokenizer cannot be read ({cause_line(error)}); save it again with the versions of "
            f"transformers and tokenizers that are installed here, {version('transformers')} and "
            f"{version('tokenizers')}"
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes of a lack of files
        raise FedmaskError(
            f"{location}: no tokenizer files there that know a word; save the model's tokenizer beside it"
        )
    try:
        for text in PROBES:
            tokenizer(text)
    except Exception as error:  # as of a vocabulary without its word for unknown ones
        raise FedmaskError(
            f"{location}: its tokenizer cannot read every text ({cause_line(error)}); fetch the model's own again"
        ) from error
    return tokenizer


def small_tokenizer() -> PreTrainedTokenizerBase:
    """A WordPiece tokenizer of 1,461 letters, letter pairs, digits and punctuation marks: any English text, no file."""
    letters = string.ascii_lowercase
    pairs = ["".join(pair) for pair in itertools.product(letters, repeat=2)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *pairs]
    pieces += [f"##{piece}" for piece in [*letters, *pairs]]
    pieces += [*string.digits, *[f"##{digit}" for digit in string.digits], *string.punctuation]
    return BertTokenizerFast(vocab={piece: index for index, piece in enumerate(pieces)}, model_max_length=128)
