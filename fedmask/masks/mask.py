"""What may change: a Mask (sorted flat indices per named tensor) and a MaskRecipe (how to compute that mask again).

A mask orders k numbers: tensors in model order, indices ascending inside each. Every vector of shape (k,) that travels,
is stored or is trained over this mask has that layout, and `Mask.digest` is its name.

Explicit form (`Mask.to_bytes`), all integers little-endian:
    8 bytes   b"fedmask1"
    32 bytes  the mask's digest
    4 + 4     length of the header, and of the header as compressed
    header    zlib of JSON [num_parameters, [[name, shape, count, low_bits, payload length], ...]]
    payloads  one a tensor, in order (see `fedmask.masks.indices`)
"""

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import nn

from fedmask.errors import FedmaskError, MaskMismatchError
from fedmask.masks import indices as index_coding
from fedmask.masks.digest import base_digest as digest_of_base
from fedmask.masks.indices import Indices
from fedmask.plain_json import plain_json

_MAGIC = b"fedmask1"
_PREFIX = struct.Struct("<8s32sII")
_MAX_HEADER_BYTES = 1 << 22
MAX_RECIPE_BYTES = 1 << 16
_MAX_PARAMETERS = 1 << 40
_MAX_DIMENSIONS = 16
MAX_SELECTED = 1 << 29
"""Entries that bytes from anywhere may select (4 GiB of indices), unless the receiver says how large its model is."""
_TIES = "lowest-index"


@dataclass(frozen=True, eq=False)
class Mask:
    """An immutable set of entries of a base model. Raises FedmaskError when it is empty or not well formed.

    Two masks are equal, and hash alike, iff their digests are equal; the recipe takes no part in that.
    """

    shapes: Mapping[str, tuple[int, ...]]
    """Tensors with at least one selected entry, in model order, and their shapes."""
    indices: Mapping[str, Indices]
    """int64 (k_i,) for each tensor of `shapes`: row-major flat indices, strictly increasing."""
    num_parameters: int
    """Parameters of the base model, head excluded."""
    recipe: "MaskRecipe | None" = None
    """How this mask was computed, where it was."""

    def __post_init__(self) -> None:
        if not self.shapes or list(self.shapes) != [name for name in self.shapes if name in self.indices]:
            raise FedmaskError("mask: it needs at least one tensor, and indices for each")
        if len(self.indices) != len(self.shapes):
            extra = next(name for name in self.indices if name not in self.shapes)
            raise FedmaskError(f"mask, tensor {extra}: it has indices but no shape")
        shapes = {name: tuple(shape) for name, shape in self.shapes.items()}
        total = sum(map(math.prod, shapes.values()))
        if total > self.num_parameters:
            raise FedmaskError(
                f"mask: its tensors have {total:,} entries, its model {self.num_parameters:,} parameters"
            )
        indices = {name: _frozen_indices(name, self.indices[name], math.prod(shapes[name])) for name in shapes}
        object.__setattr__(self, "shapes", MappingProxyType(shapes))
        object.__setattr__(self, "indices", MappingProxyType(indices))

    @cached_property
    def num_selected(self) -> int:
        """k, the length of every vector over this mask."""
        return sum(map(len, self.indices.values()))

    @property
    def density(self) -> float:
        """num_selected / num_parameters, a fraction in (0, 1]."""
        return self.num_selected / self.num_parameters

    @cached_property
    def slices(self) -> Mapping[str, slice]:
        """Where each tensor's values stand in a packed vector (k,)."""
        ends = np.cumsum([len(indices) for indices in self.indices.values()]).tolist()
        starts = [0, *ends[:-1]]
        slices = {name: slice(start, end) for name, start, end in zip(self.shapes, starts, ends, strict=True)}
        return MappingProxyType(slices)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (64 hexadecimal characters) of names, shapes, counts, indices and num_parameters."""
        tensors = [[name, list(shape), len(self.indices[name])] for name, shape in self.shapes.items()]
        sha = hashlib.sha256(b"fedmask mask 1\n" + json.dumps([self.num_parameters, tensors]).encode() + b"\n")
        for name, indices in self.indices.items():
            # The count says it all where every entry is selected.
            if len(indices) < math.prod(self.shapes[name]):
                sha.update(indices.astype("<i8", copy=False).data)
        return sha.hexdigest()

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Mask) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __reduce__(self) -> tuple[Any, ...]:
        return Mask, (dict(self.shapes), dict(self.indices), self.num_parameters, self.recipe)

    def to_bytes(self) -> bytes:
        """The mask without its recipe, for a client that cannot compute it: near the entropy of its indices."""
        tensors, payloads = [], []
        for name, shape in self.shapes.items():
            low_bits, payload = index_coding.encode(self.indices[name], math.prod(shape))
            tensors.append([name, list(shape), len(self.indices[name]), low_bits, len(payload)])
            payloads.append(payload)
        header = json.dumps([self.num_parameters, tensors], separators=(",", ":")).encode()
        compressed = zlib.compress(header, 9)
        prefix = _PREFIX.pack(_MAGIC, bytes.fromhex(self.digest), len(header), len(compressed))
        return b"".join([prefix, compressed, *payloads])

    @staticmethod
    def from_bytes(data: bytes, num_parameters: int | None = None) -> "Mask":
        """The inverse of `to_bytes`; the bytes may come from anywhere.

        `num_parameters`: parameters of the model the mask is for. A mask for another count is then refused before
        anything is allocated; without it, masks of more than MAX_SELECTED entries are. Raises FedmaskError.
        """
        digest, header, payloads = _split(data)
        parameters, tensors = _parse_header(header)
        if num_parameters is not None and parameters != num_parameters:
            raise FedmaskError(f"mask bytes: made for {parameters:,} parameters, this model has {num_parameters:,}")
        limit = MAX_SELECTED if num_parameters is None else num_parameters
        if (selected := sum(tensor.count for tensor in tensors)) > limit:
            raise FedmaskError(f"mask bytes: they select {selected:,} entries, more than the {limit:,} allowed here")
        mask = Mask({t.name: t.shape for t in tensors}, _decode_payloads(tensors, payloads), parameters)
        if mask.digest != digest:
            raise FedmaskError(f"mask bytes: they hold mask {mask.digest} but say {digest}; damaged, send them again")
        return mask


@dataclass(frozen=True)
class MaskRecipe:
    """How to compute a mask from base weights: about 300 bytes in place of the indices."""

    rule: str
    """A name in `fedmask.masks.RULES`."""
    options: Mapping[str, Any]
    """The arguments of `select` that matter to the rule: density, scope, include, exclude, seed, embeddings,
    key_biases."""
    base_digest: str
    """Digest of the base weights the mask was computed from."""
    mask_digest: str
    """Digest of the mask."""
    inputs: Mapping[str, Any] | None = None
    """By name what beside its weights decides the base model's outputs (`fedmask.models.identity`), where it is told.
    No part of the mask: `rebuild` does not look at it."""

    def to_bytes(self) -> bytes:
        """Compact JSON."""
        fields = {"rule": self.rule, "options": dict(self.options), "ties": _TIES}
        fields |= {"base-digest": self.base_digest, "mask-digest": self.mask_digest}
        if self.inputs is not None:
            fields["inputs"] = dict(self.inputs)
        return json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()

    @staticmethod
    def from_bytes(data: bytes) -> "MaskRecipe":
        """The inverse of `to_bytes`; raises FedmaskError for bytes that are no recipe of this version."""
        fields = _parse_json(data, "mask recipe") if len(data) <= MAX_RECIPE_BYTES else None
        keys = {"rule", "options", "ties", "base-digest", "mask-digest"}
        if not isinstance(fields, dict) or fields.keys() - {"inputs"} != keys or fields["ties"] != _TIES:
            raise FedmaskError("mask recipe: not one of this version of fedmask; update the older side")
        rule, options = fields["rule"], fields["options"]
        digests = fields["base-digest"], fields["mask-digest"]
        if not _is_word(rule) or not isinstance(options, dict) or not all(map(_is_digest, digests)):
            raise FedmaskError("mask recipe: damaged (rule, options or a digest is of the wrong kind); send it again")
        for key, value in options.items():
            if key not in _IS_OPTION or not _IS_OPTION[key](value):
                raise FedmaskError(
                    f"mask recipe: option {key!r}: {json.dumps(value)} is not one that this version knows"
                )
        inputs = fields.get("inputs")
        if inputs is not None and not _is_named_values(inputs):
            raise FedmaskError("mask recipe: damaged (inputs are not named values); send it again")
        return MaskRecipe(rule, options, *digests, inputs)

    def rebuild(self, model: nn.Module, base_digest: str | None = None) -> Mask:
        """The mask, computed from `model` (whose digest `base_digest` is, where the caller has it).

        Raises MaskMismatchError, with both digests, when the weights or the mask are not those of the recipe.
        """
        # `computed` makes recipes and recipes call it: one of the two has to import late.
        from fedmask.masks.rules import computed

        found = base_digest or digest_of_base(model)
        if found != self.base_digest:
            raise MaskMismatchError(
                f"mask recipe: it is for base weights {self.base_digest}, this model's are {found}; load the same base"
                " model in the same dtype, or ask for the indices themselves"
            )
        mask = computed(model, self.rule, self.options, found, self.inputs)
        if mask.digest != self.mask_digest:
            raise MaskMismatchError(
                f"mask recipe: it promises mask {self.mask_digest}, rule {self.rule} computes {mask.digest} here; ask"
                " for the indices themselves"
            )
        return mask


@dataclass(frozen=True)
class _CodedTensor:
    """One tensor's line of the header of the explicit form."""

    name: str
    shape: tuple[int, ...]
    count: int
    low_bits: int
    payload_bytes: int


def _frozen_indices(name: str, indices: Any, size: int) -> Indices:
    array = np.asarray(indices)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise FedmaskError(f"mask, tensor {name}: indices are {array.dtype} of shape {array.shape}, not integers (k,)")
    if not len(array):
        raise FedmaskError(f"mask, tensor {name}: no entry is selected; leave the tensor out")
    if not np.all(array[1:] > array[:-1]):
        raise FedmaskError(f"mask, tensor {name}: indices are not strictly increasing")
    if array[0] < 0 or array[-1] >= size:
        raise FedmaskError(f"mask, tensor {name}: indices {array[0]} to {array[-1]} do not fit its {size:,} entries")
    frozen = array.astype(np.int64, copy=False).view()
    frozen.flags.writeable = False
    return frozen


def _split(data: bytes) -> tuple[str, bytes, bytes]:
    """Explicit form -> digest, header, payloads."""
    if len(data) < _PREFIX.size or not data.startswith(_MAGIC):
        raise FedmaskError("mask bytes: not a fedmask mask (wrong first bytes)")
    _, digest, header_bytes, compressed_bytes = _PREFIX.unpack_from(data)
    if header_bytes > _MAX_HEADER_BYTES:
        raise FedmaskError(f"mask bytes: a header of {header_bytes:,} bytes, at most {_MAX_HEADER_BYTES:,} are read")
    end = _PREFIX.size + compressed_bytes
    decompressor = zlib.decompressobj()
    try:
        header = decompressor.decompress(data[_PREFIX.size : end], header_bytes + 1)
    except zlib.error as error:
        raise FedmaskError(f"mask bytes: damaged header ({error}); send them again") from None
    if len(header) != header_bytes or not decompressor.eof or decompressor.unused_data:
        raise FedmaskError("mask bytes: damaged header (wrong length); send them again")
    return digest.hex(), header, data[end:]


def _parse_header(header: bytes) -> tuple[int, list[_CodedTensor]]:
    """Header -> parameters of the base model, and the tensors, whose sizes are checked against it."""
    fields = _parse_json(header, "mask bytes")
    if not (isinstance(fields, list) and len(fields) == 2 and isinstance(fields[1], list)):
        raise FedmaskError("mask bytes: damaged header (not two fields); send them again")
    if not _is_count(fields[0]):
        raise FedmaskError("mask bytes: damaged header (number of parameters); send them again")
    tensors = [_parse_tensor(line) for line in fields[1]]
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise FedmaskError("mask bytes: damaged header (a tensor comes twice); send them again")
    total = sum(math.prod(tensor.shape) for tensor in tensors)
    if total > fields[0]:
        raise FedmaskError(f"mask bytes: their tensors have {total:,} entries, their model {fields[0]:,} parameters")
    return fields[0], tensors


def _parse_tensor(line: Any) -> _CodedTensor:
    match line:
        case [str(name), [*shape], count, low_bits, payload_bytes] if (
            all(map(_is_count, [*shape, count, low_bits, payload_bytes]))
            and len(shape) <= _MAX_DIMENSIONS
            and name.isprintable()
        ):
            if not 0 < count <= math.prod(shape):
                raise FedmaskError(f"mask bytes, tensor {name}: {count:,} of {math.prod(shape):,} entries selected")
            return _CodedTensor(name, tuple(shape), count, low_bits, payload_bytes)
    raise FedmaskError("mask bytes: damaged header (a tensor's line); send them again")


def _decode_payloads(tensors: list[_CodedTensor], payloads: bytes) -> dict[str, Indices]:
    expected = sum(tensor.payload_bytes for tensor in tensors)
    if len(payloads) != expected:
        raise FedmaskError(f"mask bytes: {len(payloads):,} bytes of indices where the header says {expected:,}")
    indices, start = {}, 0
    for tensor in tensors:
        payload = payloads[start : start + tensor.payload_bytes]
        start += tensor.payload_bytes
        try:
            decoded = index_coding.decode(payload, tensor.count, math.prod(tensor.shape), tensor.low_bits)
        except FedmaskError as error:
            raise FedmaskError(f"mask bytes, tensor {tensor.name}: {error}") from None
        indices[tensor.name] = decoded
    return indices


def _parse_json(data: bytes, what: str) -> Any:
    try:
        return plain_json(data)
    except ValueError:
        raise FedmaskError(f"{what}: damaged (not JSON); send it again") from None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_PARAMETERS


def _is_text_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_named_values(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_word, value))


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and value.isidentifier()


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


_IS_OPTION: Mapping[str, Callable[[Any], bool]] = {
    "density": lambda value: type(value) in (int, float),
    "scope": lambda value: isinstance(value, str),
    "include": _is_text_list,
    "exclude": _is_text_list,
    "embeddings": lambda value: isinstance(value, bool),
    "key_biases": lambda value: isinstance(value, bool),
    "seed": lambda value: type(value) is int,
}
"""The options of `select` that a recipe may carry, and how each is told from damage."""
