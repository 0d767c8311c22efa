"""A merged model folder with a head in it: texts -> labels, and what they are decided by.

The folder is an ordinary Hugging Face folder with one more file, `fedmask_head.safetensors`; what its config.json says
of the merge is held against what it has.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from fedmask.errors import FedmaskError
from fedmask.merged.facts import MergedFacts
from fedmask.merged.fit import check_folder
from fedmask.merged.folder import HEAD_FILE
from fedmask.models import load_base
from fedmask.tasks.checks import check_text
from fedmask.tasks.task import Split
from fedmask.training.head import HeadLayout, load_head, load_head_origin
from fedmask.training.text import encode, longest_input, tokenize

Texts = Sequence[str] | Sequence[tuple[str, str]]
"""Single texts, or pairs of texts."""

USUAL_LENGTH = 128
"""Tokens that texts are cut to where nothing says what training cut them to; fewer where the model reads fewer."""


class Classifier:
    """A merged encoder and one task's head."""

    def __init__(
        self,
        encoder: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        layout: HeadLayout,
        head: Tensor,
        max_length: int,
        pairs: bool | None = None,
    ) -> None:
        """max_length: tokens that texts are cut to. pairs: whether the head is for pairs; None: not known."""
        self._encoder, self._tokenizer = encoder, tokenizer
        self._layout, self._head = layout, head
        self._max_length, self._pairs = max_length, pairs

    @property
    def task(self) -> str:
        return self._layout.task

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Class names in the order of `scores`; None for a regression."""
        return self._layout.labels

    @property
    def max_length(self) -> int:
        """Tokens that texts are cut to, those of the training where it is known."""
        return self._max_length

    def __call__(self, texts: Texts, max_length: int | None = None) -> list[str] | list[float]:
        """Texts, or pairs of texts, to labels; a regression's to numbers.

        max_length: tokens to cut to instead of those of the training. Raises FedmaskError for texts that the head is
        not for.
        """
        outputs = self._outputs(texts, max_length)
        if self._layout.labels is None:
            return [float(value) for value in outputs.squeeze(1)]
        return [self._layout.labels[int(index)] for index in outputs.argmax(1)]

    def scores(self, texts: Texts, max_length: int | None = None) -> NDArray[np.float32]:
        """The probabilities of `labels`, (n, C) with rows that sum to 1; of a regression its numbers, (n, 1)."""
        outputs = self._outputs(texts, max_length)
        return (outputs if self._layout.labels is None else outputs.softmax(1)).numpy()

    def _outputs(self, texts: Texts, max_length: int | None) -> Tensor:
        """(n, C)"""
        if isinstance(texts, str):
            raise FedmaskError("a classifier takes a list of texts; put a single text into one: classifier([text])")
        if not len(texts):
            return torch.zeros(0, self._layout.num_outputs)
        split = self._split(texts)
        length = self._max_length if max_length is None else max_length
        features = encode(self._encoder, tokenize(split, self._tokenizer, self._encoder, length))
        return self._layout.outputs(self._head, features)

    def _split(self, texts: Texts) -> Split:
        pairs = not isinstance(texts[0], str)
        for row, text in enumerate(texts):
            if (not isinstance(text, str)) != pairs or (pairs and not _is_pair(text)):
                raise FedmaskError(
                    f"text {row}: {text!r} is not a {'pair of texts' if pairs else 'text'} like the first"
                )
            for part in (text,) if isinstance(text, str) else text:
                check_text(part, f"text {row}")
        if self._pairs is not None and pairs != self._pairs:
            wanted = "pairs of texts: classifier([(first, second)])" if self._pairs else "single texts"
            raise FedmaskError(f"the head of {self.task} is for {wanted}")
        first = tuple(text if isinstance(text, str) else text[0] for text in texts)
        second = tuple(text[1] for text in texts) if pairs else None
        return Split(first, second, np.zeros(len(first), np.int64))


def _is_pair(text: object) -> bool:
    return isinstance(text, tuple | list) and len(text) == 2 and all(isinstance(part, str) for part in text)


def load_classifier(folder: Path | str) -> Classifier:
    """Load what `scripts/merge.py ... head=FILE` wrote.

    Raises FedmaskError where the folder has no head, or the head, the model and what the folder says of the merge do
    not go together. A folder of an older fedmask, which says nothing, is warned of.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FedmaskError(f"{folder}: there is no such folder")
    if not (folder / HEAD_FILE).exists():
        raise FedmaskError(
            f"{folder}: no {HEAD_FILE} in it; merge again with head=FILE, a head of the run's clients/ folder"
        )
    layout, packed = load_head(folder / HEAD_FILE)
    origin = load_head_origin(folder / HEAD_FILE)
    base = load_base(name=folder.name, path=str(folder))
    if base.hidden_size != layout.hidden_size:
        raise FedmaskError(
            f"{folder}: the head is for hidden size {layout.hidden_size}, the model has {base.hidden_size}"
        )
    facts = MergedFacts.of(base.encoder.config)
    if facts is not None:
        check_folder(facts, base, layout, origin, folder)
        max_length, pairs = facts.max_length, facts.pairs
    elif origin is not None:
        logging.getLogger("fedmask").warning(
            "%s: it does not say of which merge it is: whether head and model fit cannot be told", folder
        )
        max_length, pairs = origin.max_length, origin.pairs
    else:
        max_length, pairs = usual_length(base.encoder), None
    return Classifier(base.encoder, base.tokenizer, layout, torch.from_numpy(packed), max_length, pairs)


def usual_length(encoder: nn.Module) -> int:
    """What texts are cut to where nothing says what training cut them to."""
    return int(min(USUAL_LENGTH, longest_input(encoder)))
