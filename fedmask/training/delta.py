"""A delta: how much each selected entry differs from the base model.

In: a base model, a mask, values of shape (k,). Out: a live model switched to those values, a merged copy, or one
`adapter.safetensors`. The equation is  adapted[S] = base[S] + values,  written, never added in place: the base's own
bits are kept and put back, because (w + d) - d is not w in floating point.
"""

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmask.errors import FedmaskError, MaskMismatchError
from fedmask.file_facts import FileFacts
from fedmask.masks import Mask, MaskRecipe, base_digest
from fedmask.masks.mask import MAX_RECIPE_BYTES
from fedmask.training.vector_file import MAX_LENGTH, read_vector, write_vector


class SelectedEntries:
    """The selected entries of one live model: switched from delta to delta, or back to the base, by one scatter.

    (One for each piece of memory that the model lies in.) No entry outside the mask is ever written. The base's own
    values (k of them) are kept in the model's dtype.
    """

    def __init__(self, model: nn.Module, mask: Mask) -> None:
        """Raises MaskMismatchError where the model lacks a tensor of the mask, or has it in another shape."""
        parameters = dict(model.named_parameters())
        for name, shape in mask.shapes.items():
            if name not in parameters or tuple(parameters[name].shape) != shape:
                found = tuple(parameters[name].shape) if name in parameters else "nothing of that name"
                raise MaskMismatchError(
                    f"mask {mask.digest[:12]} selects in {name} of shape {shape}; the model has {found}"
                )
        self.mask = mask
        self.tensors: list[Tensor] = [parameters[name] for name in mask.shapes]
        # A mask's arrays are read-only, and torch takes none such: hence the copy.
        self.indices: list[Tensor] = [
            torch.from_numpy(mask.indices[name].copy()).to(parameters[name].device) for name in mask.shapes
        ]
        self.slices: list[slice] = [mask.slices[name] for name in mask.shapes]
        for name, tensor in zip(mask.shapes, self.tensors, strict=True):
            if not tensor.is_contiguous():
                raise FedmaskError(
                    f"{name} is not contiguous in memory; call .contiguous() on the model's tensors first"
                )
        self._pieces = _pieces(self.tensors, self.indices, self.slices)

    @property
    def base_values(self) -> list[Tensor]:
        """The base's own values, tensor by tensor, in the model's dtype."""
        packed = torch.cat([piece.base for piece in self._pieces])
        return [packed[where] for where in self.slices]

    @torch.no_grad()
    def write(self, values: Tensor) -> None:
        """Set every selected entry to base + values; values: float32 (k,)."""
        for piece in self._pieces:
            adapted = (piece.base.float() + values[piece.where].to(piece.base.device)).to(piece.base.dtype)
            piece.memory.index_copy_(0, piece.positions, adapted)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the base's own bits back."""
        for piece in self._pieces:
            piece.memory.index_copy_(0, piece.positions, piece.base)

    @contextmanager
    def written(self, values: Tensor) -> Iterator[None]:
        """The model holds base + values inside the block, and exactly the base after it, whatever happens in it."""
        self.write(values)
        try:
            yield
        finally:
            self.restore()


@dataclass(frozen=True, eq=False)
class _Piece:
    """The selected entries that lie in one piece of memory: one scatter writes them all."""

    memory: Tensor
    """The whole piece, flat; parameters are views of it."""
    positions: Tensor
    """int64 (n,): where in it the entries lie."""
    base: Tensor
    """(n,): the base's own values there."""
    where: slice
    """Of the packed vector."""


def _pieces(tensors: list[Tensor], indices: list[Tensor], slices: list[slice]) -> list[_Piece]:
    """Neighbours in the packed vector that share their memory, together: all of a base model as fedmask loads it."""
    pieces = []
    placed = list(zip(tensors, indices, slices, strict=True))
    for _, group in groupby(placed, key=lambda entry: (entry[0].untyped_storage().data_ptr(), entry[0].dtype)):
        together = list(group)
        first = together[0][0]
        memory = torch.empty(0, dtype=first.dtype, device=first.device).set_(first.untyped_storage())
        positions = torch.cat([index + int(tensor.storage_offset()) for tensor, index, _ in together])
        where = slice(together[0][2].start, together[-1][2].stop)
        pieces.append(_Piece(memory, positions, memory[positions], where))
    return pieces


@dataclass(frozen=True, eq=False)
class Delta:
    """Values over a mask, bound by digest to one base model."""

    values: NDArray[np.float32]
    """float32 (k,): adapted minus base, in the mask's order."""
    recipe: MaskRecipe
    """Rebuilds the mask from the base weights, and names the digests of both."""
    base_name: str
    """The base model's name, for people and for finding it again; never a path."""
    base_weights: str = "pretrained"
    """pretrained | random."""
    mask: Mask | None = field(default=None)
    """The mask, where it is at hand; else it is rebuilt from the model that the delta is written into."""
    base_dtype: str = "float32"
    """What the base model's parameters are held in; a name in `fedmask.models.DTYPES`."""
    run: str | None = None
    """`Settings.run_digest` of the run that trained it."""
    max_length: int | None = None
    """Tokens that texts were cut to in training."""
    heads: Mapping[str, str] | None = None
    """The heads that were trained beside it: by the digest of each one's layout its task."""

    def __post_init__(self) -> None:
        if self.values.ndim != 1 or self.values.dtype != np.float32:
            raise FedmaskError(
                f"a delta's values are float32 of shape (k,), found {self.values.dtype} {self.values.shape}"
            )
        if self.mask is not None and self.mask.num_selected != self.values.size:
            raise FedmaskError(
                f"a delta of {self.values.size} values does not fit a mask of {self.mask.num_selected} entries"
            )

    def mask_for(self, model: nn.Module) -> Mask:
        """The mask on this model.

        Raises MaskMismatchError, naming both digests, if the model is not the delta's base.
        """
        found = base_digest(model)
        if found != self.recipe.base_digest:
            raise MaskMismatchError(
                f"this adapter belongs to the base model {self.base_name} with digest {self.recipe.base_digest}, "
                f"the model given has digest {found}; load the adapter's own base, in {self.base_dtype}"
            )
        mask = self.mask if self.mask is not None else self.recipe.rebuild(model, found)
        if mask.num_selected != self.values.size:
            raise MaskMismatchError(
                f"the adapter holds {self.values.size} values, its mask selects {mask.num_selected} entries"
            )
        return mask

    def merge(self, model: nn.Module) -> nn.Module:
        """A copy of the base model with the delta in it; the model given is left as it was."""
        mask = self.mask_for(model)
        merged = copy.deepcopy(model)
        SelectedEntries(merged, mask).write(torch.from_numpy(self.values))
        return merged

    def save(self, path: Path | str) -> None:
        """Write one adapter file: the same delta gives the same bytes. No time, no path, no pickle."""
        base = {"name": self.base_name, "weights": self.base_weights}
        if self.base_dtype != "float32":  # unsaid, as in all adapters from before there was a choice
            base["dtype"] = self.base_dtype
        facts: dict[str, Any] = {"recipe": self.recipe.to_bytes().decode(), "base": base}
        told: dict[str, Any] = {"run": self.run, "max_length": self.max_length, "heads": self.heads}
        facts |= {name: value for name, value in told.items() if value is not None}
        write_vector(Path(path), "adapter", self.values, facts)

    @classmethod
    def load(cls, path: Path | str) -> "Delta":
        """Read an adapter file; the mask is rebuilt when the delta meets its base model.

        One that does not say with which tokenizer and settings it was trained, as older ones do not, is warned of.
        Raises FedmaskError where the file is missing, damaged, or not an adapter.
        """
        delta = cls._from_facts(*read_vector(Path(path), "adapter"))
        if delta.recipe.inputs is None:
            logging.getLogger("fedmask").warning(
                "%s: this adapter does not say with which tokenizer and settings its base model was trained: only the "
                "base's weights can be compared",
                path,
            )
        return delta

    @classmethod
    def _from_facts(cls, facts: FileFacts, values: NDArray[np.float32]) -> "Delta":
        base, heads = facts.mapping("base"), facts.mapping("heads") if facts.has("heads") else None
        try:
            recipe = MaskRecipe.from_bytes(facts.text("recipe", most=MAX_RECIPE_BYTES).encode())
        except FedmaskError as error:
            facts.refuse(str(error))
        return cls(
            values,
            recipe,
            base.text("name"),
            base.text("weights"),
            base_dtype=base.text("dtype", otherwise="float32"),
            run=facts.text("run") if facts.has("run") else None,
            max_length=facts.whole("max_length", 1, MAX_LENGTH) if facts.has("max_length") else None,
            heads=None if heads is None else {layout: heads.text(layout) for layout in heads.found},
        )


def load_adapter(path: Path | str) -> Delta:
    """Read an `adapter.safetensors`; see `Delta.load`."""
    return Delta.load(path)
