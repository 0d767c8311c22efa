"""Token ids on disk, by digest: a split's texts, a tokenizer and a length in, a memory-mapped `TokenizedSplit` out.

The processes of a machine share one copy of the ids in memory, and a process that starts again does not tokenize
again. A file holds everything but the labels, under the SHA-256 of what it was made from; it may be deleted at any
time. What cannot be written is kept in memory instead; what somebody else could have written is not read.
"""

import hashlib
import json
import logging
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from transformers import PreTrainedTokenizerBase

from fedmask.files import home, is_own, make_folder, own_folder, write_atomically
from fedmask.models.identity import tokenizer_digest
from fedmask.tasks.task import Split, add_texts
from fedmask.training.text import TokenizedSplit, TokenLimits, check_length, takes_token_types, tokenize

FOLDER = "FEDMASK_CACHE_FOLDER"
"""The variable that names the folder of what can be made again; by default fedmask's in the user's cache."""

_FORMAT = b"fedmask tokens 1"


def cache_folder() -> Path:
    """Where token ids are kept on this machine. Raises FedmaskError where there is no such place."""
    if folder := os.environ.get(FOLDER):
        return Path(folder)
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "fedmask"
    return home(FOLDER) / ".cache" / "fedmask"


def own_cache_folder(name: str) -> Path:
    """A folder of the cache, made where there is none, that this user's processes alone write into.

    Raises FedmaskError where others could, OSError where it cannot be made.
    """
    make_folder(folder := cache_folder(), private=True)
    own_folder(folder / name, f"name another folder for the cache with {FOLDER}=DIR")
    return folder / name


def cached_tokens(
    split: Split, tokenizer: PreTrainedTokenizerBase, encoder: nn.Module, max_length: int
) -> TokenizedSplit:
    """`tokenize`, read from disk where it was done before. Raises FedmaskError as `tokenize` does."""
    check_length(encoder, max_length)
    if not tokenizer.is_fast:  # of its state not all can be read, and so be part of a digest
        return tokenize(split, tokenizer, encoder, max_length)
    try:
        folder = own_cache_folder("tokens")
    except OSError as error:
        _tell_not_kept(error)
        return tokenize(split, tokenizer, encoder, max_length)
    path = folder / f"{_digest(split, tokenizer, encoder, max_length)}.safetensors"
    limits = TokenLimits.of(tokenizer, encoder, max_length)
    if (found := _read(path, split, limits)) is not None:
        return found
    made = tokenize(split, tokenizer, encoder, max_length)
    try:
        write_atomically(path, save(made.tensors()), private=True)  # the ids are as private as the texts
    except OSError as error:
        _tell_not_kept(error)
        return made
    return _read(path, split, limits) or made


def _tell_not_kept(error: OSError) -> None:
    logging.getLogger("fedmask").warning("token ids are not kept on disk: %s", error)


def _read(path: Path, split: Split, limits: TokenLimits) -> TokenizedSplit | None:
    """None where there is no such file, or none that can be of the split under this model."""
    try:
        if not is_own(path):
            return None
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return TokenizedSplit.from_tensors(tensors, split.labels, limits)
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def _digest(split: Split, tokenizer: PreTrainedTokenizerBase, encoder: nn.Module, max_length: int) -> str:
    facts = [tokenizer_digest(tokenizer), max_length, takes_token_types(encoder)]
    sha = hashlib.sha256(_FORMAT + json.dumps(facts).encode())
    add_texts(sha, split)
    return sha.hexdigest()
