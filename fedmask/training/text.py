"""Texts to token batches to mean-pooled features.

In: a split's texts, once. Out: padded batches; features (n, H) where  features = sum_t m_t h_t / sum_t m_t  over the
last hidden states h (B, T, H) and the attention mask m (B, T).
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from fedmask.errors import FedmaskError
from fedmask.tasks.task import Split

EVALUATION_BATCH_SIZE = 64


@dataclass(frozen=True, eq=False)
class TokenizedSplit:
    """A split's texts as token ids, one after the other: texts are padded per batch, to the longest of the batch."""

    token_ids: NDArray[np.int32]
    """(sum of lengths,)."""
    token_types: NDArray[np.int8] | None
    """0 for the first text of a pair, 1 for the second; None where the model takes none."""
    starts: NDArray[np.int64]
    """(n + 1,): text i is token_ids[starts[i] : starts[i + 1]]."""
    padding_id: int
    labels: NDArray[np.int64] | NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens (n,) of each text."""
        return np.diff(self.starts)

    def part(self, first: int, end: int) -> "TokenizedSplit":
        """The texts first .. end - 1: a view, no copy."""
        return replace(self, starts=self.starts[first : end + 1], labels=self.labels[first:end])

    def batch(self, rows: Sequence[int] | NDArray[np.int64], device: torch.device) -> dict[str, Tensor]:
        """The model's inputs for these rows, each (B, T)."""
        texts = [slice(self.starts[row], self.starts[row + 1]) for row in rows]
        shape = len(texts), max(text.stop - text.start for text in texts)
        ids = np.full(shape, self.padding_id, np.int64)
        types = np.zeros(shape, np.int64)
        attention = np.zeros(shape, np.int64)
        for position, text in enumerate(texts):
            size = text.stop - text.start
            ids[position, :size] = self.token_ids[text]
            attention[position, :size] = 1
            if self.token_types is not None:
                types[position, :size] = self.token_types[text]
        inputs = {"input_ids": ids, "attention_mask": attention}
        if self.token_types is not None:
            inputs["token_type_ids"] = types
        return {name: torch.from_numpy(values).to(device) for name, values in inputs.items()}

    def tensors(self) -> dict[str, Tensor]:
        """All but the labels, for a file."""
        arrays = {"token-ids": self.token_ids, "starts": self.starts, "padding-id": np.array([self.padding_id])}
        if self.token_types is not None:
            arrays["token-types"] = self.token_types
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        labels: NDArray[np.int64] | NDArray[np.float64],
        limits: "TokenLimits",
    ) -> "TokenizedSplit":
        """The inverse of `tensors`. Raises KeyError or ValueError for what `tokenize` does not make of such rows."""
        ids, starts = tensors["token-ids"].numpy(), tensors["starts"].numpy()
        types = tensors["token-types"].numpy() if limits.has_types else None
        (padding,) = tensors["padding-id"].tolist()
        is_sound = (
            len(tensors) == (4 if limits.has_types else 3)
            and (ids.dtype == np.int32 and ids.ndim == 1)
            and (starts.dtype == np.int64 and starts.shape == (len(labels) + 1,))
            and (types is None or (types.dtype == np.int8 and types.shape == ids.shape))
            and padding == limits.padding_id
        )
        if not is_sound or starts[0] != 0 or starts[-1] != len(ids) or not (starts[1:] > starts[:-1]).all():
            raise ValueError("these are not the tokens of these rows")
        if np.diff(starts).max() > limits.max_length or ids.min() < 0 or ids.max() >= limits.num_ids:
            raise ValueError("this model cannot read these tokens")
        if types is not None and (types.min() < 0 or types.max() > 1):
            raise ValueError("this model cannot read these token types")
        return cls(ids, types, starts, limits.padding_id, labels)


@dataclass(frozen=True)
class TokenLimits:
    """What a model and its tokenizer make of texts, whatever the texts."""

    max_length: int
    num_ids: int
    """Ids are below it."""
    padding_id: int
    has_types: bool

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, encoder: nn.Module, max_length: int) -> "TokenLimits":
        num_ids = embedding_rows(encoder) or np.iinfo(np.int32).max
        return cls(max_length, num_ids, padding_id(tokenizer), takes_token_types(encoder))


def tokenize(split: Split, tokenizer: PreTrainedTokenizerBase, encoder: nn.Module, max_length: int) -> TokenizedSplit:
    """Tokenize a split once. max_length: tokens, special ones included.

    A text of no tokens, as a tokenizer without special ones makes it of an empty text, becomes one, `stand_in_id`: a
    mean over none would not be a number. Raises FedmaskError where the model has fewer positions than max_length.
    """
    check_length(encoder, max_length)
    texts = [list(split.text_a)] if split.text_b is None else [list(split.text_a), list(split.text_b)]
    takes_types = takes_token_types(encoder)
    encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_token_type_ids=takes_types)
    ids = [text or [stand_in_id(tokenizer)] for text in encoded["input_ids"]]
    types = [text or [0] for text in encoded["token_type_ids"]] if takes_types else None
    lengths = [len(text) for text in ids]
    return TokenizedSplit(
        token_ids=np.fromiter(chain.from_iterable(ids), np.int32, sum(lengths)),
        token_types=None if types is None else np.fromiter(chain.from_iterable(types), np.int8),
        starts=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        padding_id=padding_id(tokenizer),
        labels=split.labels,
    )


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What fills a batch beside a short text; 0 where the tokenizer has none of its own."""
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def stand_in_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The one token of a text that has none: what stands for an unknown word, or for a text's end or start."""
    for own in (tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id):
        if own is not None:
            return int(own)
    return padding_id(tokenizer)


def embedding_rows(encoder: nn.Module) -> int | None:
    """Token ids that the model knows; None where it has no plain table of them: what it does with an id is seen when it
    reads one."""
    try:
        embeddings = encoder.get_input_embeddings()  # type: ignore[operator]
    except Exception:  # a model whose class never said where they are
        return None
    return int(embeddings.num_embeddings) if isinstance(embeddings, nn.Embedding) else None


def takes_token_types(encoder: nn.Module) -> bool:
    """Whether the model tells the first text of a pair from the second."""
    return "token_type_ids" in inspect.signature(encoder.forward).parameters and type_vocabulary(encoder) > 1


def check_length(encoder: nn.Module, max_length: int) -> None:
    """Raises FedmaskError where the model has fewer positions than max_length."""
    if max_length > (longest := longest_input(encoder)):
        raise FedmaskError(f"data.max_length={max_length}: this model reads at most {longest} tokens")


def longest_input(encoder: nn.Module) -> float:
    """In tokens; infinity where there is no limit. RoBERTa's first positions, up to its padding's, hold no tokens."""
    positions = getattr(encoder.config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return math.inf
    padding = getattr(getattr(encoder, "embeddings", None), "padding_idx", None)
    return positions if padding is None else positions - padding - 1


def type_vocabulary(encoder: nn.Module) -> int:
    return int(getattr(encoder.config, "type_vocab_size", 0))


def mean_pooled(encoder: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Features (B, H), float32."""
    return mean_over_tokens(encoder(**inputs).last_hidden_state, inputs["attention_mask"])


def mean_over_tokens(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Last hidden states (B, T, H) and what is a token (B, T) -> features (B, H), float32."""
    hidden = hidden.float()
    attention = attention_mask.unsqueeze(-1).to(hidden.dtype)
    pooled: Tensor = (hidden * attention).sum(1) / attention.sum(1)
    return pooled


@torch.inference_mode()
def encode(encoder: nn.Module, split: TokenizedSplit) -> Tensor:
    """Features (n, H) of a whole split, without gradients; texts of like length share a batch."""
    device = next(encoder.parameters()).device
    order = np.argsort(split.lengths, kind="stable")
    features: Tensor | None = None
    for start in range(0, len(order), EVALUATION_BATCH_SIZE):
        rows = order[start : start + EVALUATION_BATCH_SIZE]
        pooled = mean_pooled(encoder, split.batch(rows, device)).cpu()
        if features is None:
            features = torch.empty(len(order), pooled.shape[1])
        features[torch.from_numpy(rows)] = pooled
    assert features is not None, "a split has at least one row"
    return features
