"""Texts to token batches to mean-pooled features.

In: a split's texts, once. Out: padded batches; features (n, H) where  features = sum_t m_t h_t / sum_t m_t  over the
last hidden states h (B, T, H) and the attention mask m (B, T).
"""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass

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
    """A split's texts as token ids, ragged: texts are padded per batch, to the longest of the batch."""

    token_ids: tuple[NDArray[np.int32], ...]
    token_types: tuple[NDArray[np.int8], ...] | None
    """0 for the first text of a pair, 1 for the second; None where the model takes none."""
    padding_id: int
    labels: NDArray[np.int64] | NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens (n,) of each text."""
        return np.array([ids.size for ids in self.token_ids], np.int64)

    def batch(self, rows: Sequence[int] | NDArray[np.int64], device: torch.device) -> dict[str, Tensor]:
        """The model's inputs for these rows, each (B, T)."""
        length = max(self.token_ids[row].size for row in rows)
        ids = np.full((len(rows), length), self.padding_id, np.int64)
        types = np.zeros((len(rows), length), np.int64)
        attention = np.zeros((len(rows), length), np.int64)
        for position, row in enumerate(rows):
            size = self.token_ids[row].size
            ids[position, :size] = self.token_ids[row]
            attention[position, :size] = 1
            if self.token_types is not None:
                types[position, :size] = self.token_types[row]
        inputs = {"input_ids": ids, "attention_mask": attention}
        if self.token_types is not None:
            inputs["token_type_ids"] = types
        return {name: torch.from_numpy(values).to(device) for name, values in inputs.items()}


def tokenize(split: Split, tokenizer: PreTrainedTokenizerBase, encoder: nn.Module, max_length: int) -> TokenizedSplit:
    """Tokenize a split once. max_length: tokens, special ones included.

    Raises FedmaskError where the model has fewer positions than that.
    """
    check_length(encoder, max_length)
    texts = [list(split.text_a)] if split.text_b is None else [list(split.text_a), list(split.text_b)]
    takes_types = "token_type_ids" in inspect.signature(encoder.forward).parameters and _type_vocabulary(encoder) > 1
    encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_token_type_ids=takes_types)
    padding_id = tokenizer.pad_token_id
    return TokenizedSplit(
        token_ids=tuple(np.asarray(ids, np.int32) for ids in encoded["input_ids"]),
        token_types=tuple(np.asarray(types, np.int8) for types in encoded["token_type_ids"]) if takes_types else None,
        padding_id=0 if padding_id is None else int(padding_id),
        labels=split.labels,
    )


def check_length(encoder: nn.Module, max_length: int) -> None:
    """Raises FedmaskError where the model has fewer positions than max_length."""
    if max_length > (longest := _positions(encoder)):
        raise FedmaskError(f"data.max_length={max_length}: this model reads at most {longest} tokens")


def _positions(encoder: nn.Module) -> float:
    """The longest input in tokens. RoBERTa's first positions, up to its padding's, hold no tokens."""
    positions = getattr(encoder.config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return math.inf
    padding = getattr(getattr(encoder, "embeddings", None), "padding_idx", None)
    return positions if padding is None else positions - padding - 1


def _type_vocabulary(encoder: nn.Module) -> int:
    return int(getattr(encoder.config, "type_vocab_size", 0))


def mean_pooled(encoder: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Features (B, H), float32."""
    hidden = encoder(**inputs).last_hidden_state.float()
    attention = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
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
