"""A merged model folder with a head in it: texts -> labels.

The folder is an ordinary Hugging Face folder with one more file, `fedmask_head.safetensors`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from fedmask.errors import FedmaskError
from fedmask.models import load_base
from fedmask.tasks.task import Split
from fedmask.training.head import HeadLayout, load_head
from fedmask.training.text import encode, tokenize

HEAD_FILE = "fedmask_head.safetensors"


class Classifier:
    """A merged encoder and one task's head."""

    def __init__(
        self, encoder: nn.Module, tokenizer: PreTrainedTokenizerBase, layout: HeadLayout, head: torch.Tensor
    ) -> None:
        self._encoder, self._tokenizer = encoder, tokenizer
        self._layout, self._head = layout, head

    @property
    def task(self) -> str:
        return self._layout.task

    def __call__(
        self, texts: Sequence[str] | Sequence[tuple[str, str]], max_length: int = 128
    ) -> list[str] | list[float]:
        """Texts, or pairs of texts, to labels; a regression's to numbers. max_length: tokens a text is cut to."""
        if isinstance(texts, str):
            raise FedmaskError("a classifier takes a list of texts; put a single text into one: classifier([text])")
        if not texts:
            return []
        pairs = not isinstance(texts[0], str)
        for row, text in enumerate(texts):
            if (not isinstance(text, str)) != pairs or (pairs and not _is_pair(text)):
                raise FedmaskError(
                    f"text {row}: {text!r} is not a {'pair of texts' if pairs else 'text'} like the first"
                )
        first = [text if isinstance(text, str) else text[0] for text in texts]
        second = [text[1] for text in texts] if pairs else None
        split = Split(tuple(first), None if second is None else tuple(second), np.zeros(len(first), np.int64))
        features = encode(self._encoder, tokenize(split, self._tokenizer, self._encoder, max_length))
        outputs = self._layout.outputs(self._head, features)
        if self._layout.labels is None:
            return [float(value) for value in outputs.squeeze(1)]
        return [self._layout.labels[int(index)] for index in outputs.argmax(1)]


def _is_pair(text: object) -> bool:
    return isinstance(text, tuple | list) and len(text) == 2 and all(isinstance(part, str) for part in text)


def load_classifier(folder: Path | str) -> Classifier:
    """Load what `scripts/merge.py ... head=FILE` wrote.

    Raises FedmaskError where the folder has no head, or the head does not fit the model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FedmaskError(f"{folder}: there is no such folder")
    if not (folder / HEAD_FILE).exists():
        raise FedmaskError(
            f"{folder}: no {HEAD_FILE} in it; merge again with head=FILE, a head of the run's clients/ folder"
        )
    layout, packed = load_head(folder / HEAD_FILE)
    base = load_base(name=folder.name, path=str(folder))
    if base.hidden_size != layout.hidden_size:
        raise FedmaskError(
            f"{folder}: the head is for hidden size {layout.hidden_size}, the model has {base.hidden_size}"
        )
    return Classifier(base.encoder, base.tokenizer, layout, torch.from_numpy(packed))
