"""The parts of the check before a run: token ids, features, gradients. Each raises FedmaskError, of one line.

In: a base model, texts of three lengths, a mask. Out: which of the mask's tensors no text reads.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedmask.errors import FedmaskError, cause_line
from fedmask.masks import Mask
from fedmask.models import BaseModel
from fedmask.tasks.task import Split
from fedmask.training.delta import SelectedEntries
from fedmask.training.gradient import SelectedGradient
from fedmask.training.text import (
    TokenizedSplit,
    embedding_rows,
    mean_over_tokens,
    mean_pooled,
    padding_id,
    takes_token_types,
    tokenize,
    type_vocabulary,
)

TEXT = "A short text, and then some more of it: 12 words that mean little."

SHORT, MIDDLE = 5, 13
"""Tokens of the two texts beside the one of max_length: without a common factor, so no block of tokens fits both."""

FEATURE_TOLERANCE, FEATURE_TOLERANCE_IN_FEWER_BITS = 1e-4, 0.02
"""How far a text's features may move by what stands beside it, as a fraction of their length: in float32, where
MiniLM's move by 4e-7; in bfloat16 and float16, where kernels that round differently move them by 0.006."""

GRADIENT_TOLERANCE, GRADIENT_TOLERANCE_IN_FEWER_BITS = 1e-3, 0.1
"""How far a gradient may be from autograd's, as a fraction of the largest in its tensor; in bfloat16 autograd itself
rounds the sums of a layer norm by up to 0.03."""

FOR_OTHER_INPUTS = (
    "*_global.*",  # Longformer's global attention
    "entity_embeddings.*",
    "*.?2e_query.*",
    "*.e2?_query.*",  # LUKE's entities
    "*visual_*",  # VisualBERT's images
    "*.xpath_unitseq2_*",  # MarkupLM: no part of its forward pass
    "contact_head.*",  # ESM
    "*embed_positions.weight",  # a fixed table
)
"""Tensors that a sound model leaves unread where it reads texts alone. Any other that is unread would never change, and
the model may not compute as it should: MRA without its CUDA kernel has no attention at all, and says nothing."""

TAKE_ANOTHER = "take another model, such as model=minilm"

# Token ids ------------------------------------------------------------------------------------------------------------


def check_ids(base: BaseModel) -> None:
    """The tokenizer's largest id and its padding have an embedding."""
    rows = embedding_rows(base.encoder)
    vocabulary = base.tokenizer.get_vocab()
    word = max(vocabulary, key=vocabulary.__getitem__)
    wanted = {f"the tokenizer's largest id, of {word!r}": vocabulary[word], "padding": padding_id(base.tokenizer)}
    for what, token_id in wanted.items():
        if rows is not None and token_id >= rows:
            raise FedmaskError(
                f"model {base.name}: {what}, is {token_id}, and the embeddings have rows for 0 to {rows - 1} only; "
                "take the tokenizer that belongs to the model, or make the embeddings larger (resize_token_embeddings)"
            )


@lru_cache(maxsize=4)  # once for the many clients of a process
def check_token_types(base: BaseModel, pairs: bool) -> None:
    """The model has an embedding for each token type that its tokenizer gives; of a pair both texts are read.

    pairs: whether texts are pairs.
    """
    second = ("Another.", "And yet some other words.") if pairs else ()
    read = [base.tokenizer(TEXT, text, return_token_type_ids=True) for text in second or (None,)]
    if pairs and read[0]["input_ids"] == read[1]["input_ids"]:
        raise FedmaskError(
            f"model {base.name}: its tokenizer leaves out the second text of a pair; take the model's own tokenizer, "
            "or another model"
        )
    largest, rows = max(read[0]["token_type_ids"], default=0), type_vocabulary(base.encoder)
    if takes_token_types(base.encoder) and largest >= rows:
        raise FedmaskError(
            f"model {base.name}: its tokenizer gives tokens the type {largest}, and the model has types 0 to "
            f"{rows - 1} only; take the tokenizer that belongs to the model"
        )


# Features -------------------------------------------------------------------------------------------------------------


def texts_to_check(base: BaseModel, max_length: int) -> TokenizedSplit:
    """Texts of SHORT, MIDDLE and max_length tokens, none of more; and an empty one, as it is tokenized."""
    both = tokenize(Split((TEXT, ""), None, np.zeros(2, np.int64)), base.tokenizer, base.encoder, max_length)
    ids, empty = np.split(both.token_ids, [both.starts[1]])
    sizes = [min(SHORT, max_length), min(MIDDLE, max_length), max_length]
    return TokenizedSplit(
        token_ids=np.concatenate([*(np.resize(ids, size) for size in sizes), empty]),
        token_types=None if both.token_types is None else np.zeros(sum(sizes) + len(empty), np.int8),
        starts=np.cumsum([0, *sizes, len(empty)]),
        padding_id=both.padding_id,
        labels=np.zeros(4, np.int64),
    )


@torch.inference_mode()
def check_features(base: BaseModel, tokens: TokenizedSplit) -> None:
    """tokens: of `texts_to_check`."""
    device = next(base.encoder.parameters()).device
    alone = _features(base, tokens.batch([0], device), "a short text")
    long = f"a text of data.max_length={tokens.lengths[2]} tokens"
    beside = _features(base, tokens.batch([0, 2], device), long, "lower data.max_length")[:1]
    again = _features(base, tokens.batch([0], device), "a short text a second time")
    empty = _features(base, tokens.batch([3, 1], device), "an empty text")[:1]
    if not torch.isfinite(torch.cat([alone, beside, empty])).all():
        raise FedmaskError(f"model {base.name}: features of a short or an empty text are not finite; {TAKE_ANOTHER}")
    if not torch.equal(alone, again):
        raise FedmaskError(
            f"model {base.name}: the features of one text are not the same each time it is read, as in a model that "
            f"draws at random or changes by what it has read; {TAKE_ANOTHER}"
        )
    _check_moved(base, beside, alone, _within(base, FEATURE_TOLERANCE, FEATURE_TOLERANCE_IN_FEWER_BITS))
    # What the padding holds decides nothing, in any dtype: the kernels are the same.
    padded = tokens.batch([0, 1], device)
    other = torch.where(padded["attention_mask"] == 1, padded["input_ids"], padded["input_ids"][0, 0])
    filled = _features(base, padded | {"input_ids": other}, "a short text")[:1]
    _check_moved(base, filled, _features(base, padded, "a short text")[:1], FEATURE_TOLERANCE)
    _check_mixing(base, tokens)


def _check_moved(base: BaseModel, features: Tensor, expected: Tensor, tolerance: float) -> None:
    moved, length = (features - expected).norm(), expected.norm()
    if not moved <= tolerance * length:
        kind = base.encoder.config.model_type  # type: ignore[union-attr]
        raise FedmaskError(
            f"model {base.name}: the features of a short text move by {moved / length:.2g} of their length when a "
            f"longer one stands beside it: {kind} reads padding as text; {TAKE_ANOTHER}"
        )


def _check_mixing(base: BaseModel, tokens: TokenizedSplit) -> None:
    """Raises FedmaskError where no token's state depends on what stands before it."""
    inputs = tokens.batch([1], next(base.encoder.parameters()).device)
    if tokens.lengths[1] == 1:
        return
    other = inputs["input_ids"].clone()
    other[0, 0] = other[0, 1]
    states = [_states(base, each, "a text")[0, 1:] for each in (inputs, inputs | {"input_ids": other})]
    if torch.equal(*states):
        raise FedmaskError(
            f"model {base.name}: no token's state depends on the others of its text, as in a model that has no layers, "
            f"or an attention that does not run on this machine; {TAKE_ANOTHER}"
        )


def _within(base: BaseModel, tolerance: float, in_fewer_bits: float) -> float:
    return tolerance if base.dtype == "float32" else in_fewer_bits


def _features(base: BaseModel, inputs: dict[str, Tensor], what: str, remedy: str | None = None) -> Tensor:
    """Features (B, H), or one line that says that the model cannot read `what`."""
    return mean_over_tokens(_states(base, inputs, what, remedy), inputs["attention_mask"])


def _states(base: BaseModel, inputs: dict[str, Tensor], what: str, remedy: str | None = None) -> Tensor:
    """Last hidden states (B, T, H), or that line."""
    try:
        output = base.encoder(**inputs)
    except Exception as error:  # whatever a model makes of inputs that it does not take
        raise FedmaskError(
            f"model {base.name}: {what} cannot be read ({cause_line(error)}); {remedy or TAKE_ANOTHER}"
        ) from error
    hidden = getattr(output, "last_hidden_state", None)
    expected = (*inputs["input_ids"].shape, base.hidden_size)
    if not isinstance(hidden, Tensor) or tuple(hidden.shape) != expected:
        found = f"is {tuple(hidden.shape)}" if isinstance(hidden, Tensor) else "is not there"
        raise FedmaskError(
            f"model {base.name}: last_hidden_state, of which features are the mean, {found}, and should be {expected}; "
            f"{TAKE_ANOTHER}"
        )
    return hidden


# Gradients ------------------------------------------------------------------------------------------------------------


def check_gradient(base: BaseModel, mask: Mask, tokens: TokenizedSplit) -> dict[str, int]:
    """By name, how many entries are selected in tensors that no text reads. tokens: of `texts_to_check`."""
    inputs = tokens.batch([0, 1], next(base.encoder.parameters()).device)
    entries = SelectedEntries(base.encoder, mask)
    direction = torch.randn(2, base.hidden_size, generator=torch.Generator().manual_seed(0))
    dense = _dense_gradients(base, entries, inputs, direction)
    unread = {name: len(mask.indices[name]) for name, found in zip(mask.shapes, dense, strict=True) if found is None}
    _check_unread(base, mask, unread)
    with SelectedGradient(base.encoder, entries) as gradient:
        (mean_pooled(base.encoder, inputs).cpu() * direction).sum().backward()  # type: ignore[no-untyped-call]
        packed = gradient.take()
    tolerance = _within(base, GRADIENT_TOLERANCE, GRADIENT_TOLERANCE_IN_FEWER_BITS)
    for name, where, found in zip(mask.shapes, entries.slices, dense, strict=True):
        if found is None:
            continue
        selected, largest = found
        if not (packed[where] - selected).abs().max() <= tolerance * largest:
            raise FedmaskError(
                f"model {base.name}: the gradient of the selected entries of {name} is not the one of ordinary "
                "training, so it cannot be trained as fedmask does it; leave it out with mask.exclude"
            )
    return unread


def _check_unread(base: BaseModel, mask: Mask, unread: Mapping[str, int]) -> None:
    """Raises FedmaskError where nothing selected would ever change, or what is unread in no sound model."""
    lost = [name for name in unread if not any(fnmatchcase(name, pattern) for pattern in FOR_OTHER_INPUTS)]
    if not lost and len(unread) == len(mask.shapes):
        lost = list(unread)
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise FedmaskError(
            f"model {base.name}: the mask selects entries of {lost[0]}{more}, and no feature comes from there, so they "
            "would never change; leave them out with mask.exclude, or take another rule or model"
        )


def _dense_gradients(
    base: BaseModel, entries: SelectedEntries, inputs: dict[str, Tensor], direction: Tensor
) -> list[tuple[Tensor, float] | None]:
    """Of each selected tensor autograd's gradient at its selected entries, float32 (k_i,) on the CPU, and the largest
    |gradient| of the whole tensor; None where it has none. One tensor's is held at a time."""
    found: list[tuple[Tensor, float] | None] = [None] * len(entries.tensors)

    def look(number: int) -> Callable[[Tensor], None]:
        def hook(tensor: Tensor) -> None:
            assert tensor.grad is not None
            whole = tensor.grad.float()
            found[number] = whole.view(-1)[entries.indices[number]].cpu(), float(whole.abs().max())
            tensor.grad = None

        return hook

    with _asking_for_gradients(entries.tensors, look):
        loss = (_features(base, inputs, "a short text in training").cpu() * direction).sum()
        try:
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
        except RuntimeError as error:  # what autograd raises
            raise FedmaskError(
                f"model {base.name}: it cannot be trained ({cause_line(error)}); {TAKE_ANOTHER}"
            ) from error
    return found


@contextmanager
def _asking_for_gradients(tensors: list[Tensor], hook: Callable[[int], Callable[[Tensor], None]]) -> Iterator[None]:
    """Inside the block these tensors ask for a gradient, and each is shown to its hook; after it none does."""
    hooks: list[Any] = []
    try:
        for number, tensor in enumerate(tensors):
            tensor.requires_grad_(True)
            hooks.append(tensor.register_post_accumulate_grad_hook(hook(number)))  # type: ignore[no-untyped-call]
        yield
    finally:
        for each in hooks:
            each.remove()
        for tensor in tensors:
            tensor.requires_grad_(False)
            tensor.grad = None
