"""Named flat vectors and their frames: what travels in every message, whatever the k numbers mean.

A frame is  version u8 | 0 u8 | combine u8 | length of name u8 | size u32 | layout digest, 16 bytes | length of body
u32 | name | body , little-endian. The body is a codec's output, which says itself how it is read. A message's payload
is its frames, one after the other.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmask.errors import CodecError, FedmaskError, RejectedMessage
from fedmask.wire.codecs import codec, decode

FRAME_VERSION = 2
MAX_NAME_BYTES = 32

COMBINE_NUMBERS = {"mean": 0}
"""Rules by which vectors of one name and layout are combined, and their numbers on the wire; never reused."""

_HEADER = struct.Struct("<BBBBI16sI")
_COMBINE_NAMES = {number: name for name, number in COMBINE_NUMBERS.items()}


@dataclass(frozen=True, eq=False)
class NamedVector:
    """One flat vector with all that the other end must agree on."""

    name: str
    """What it is: delta, head, ...; at most 32 bytes of UTF-8."""
    layout_digest: str
    """32 hex digits or more: which numbers stand where; only vectors of the same layout may be combined."""
    values: NDArray[np.float32]
    """float32 (k,)."""
    codec: str = "fp32"
    """The spec to encode with. Of a vector that came this says nothing: its bytes needed no spec."""
    combine: str = "mean"
    seed: int = 0
    """Of the codec's rounding."""


def frame(vector: NamedVector) -> bytes:
    """A vector as bytes: a header of at most 60 bytes, then the codec's output."""
    name = vector.name.encode()
    if not 0 < len(name) <= MAX_NAME_BYTES:
        raise FedmaskError(f"vector name {vector.name!r} takes {len(name)} bytes; 1 to {MAX_NAME_BYTES} are allowed")
    body = codec(vector.codec).encode(vector.values, vector.seed)
    layout = bytes.fromhex(vector.layout_digest)[:16]
    header = _HEADER.pack(
        FRAME_VERSION, 0, COMBINE_NUMBERS[vector.combine], len(name), vector.values.size, layout, len(body)
    )
    return b"".join((header, name, body))


def frame_sizes(payload: bytes) -> dict[str, int]:
    """Bytes that each vector's frame takes of a payload, by name; nothing is decoded.

    Raises RejectedMessage for a payload that is not a run of frames, each name at most once.
    """
    return {name: end - start for name, (start, end, _) in _frames(payload).items()}


def unframe(payload: bytes, expected: Iterable[tuple[str, str, int]]) -> dict[str, NamedVector]:
    """The vectors of a payload, by name.

    expected: (name, layout digest, size) of the vectors that may stand in it. Nothing is decoded, and nothing
    allocated, for a frame that is not expected.

    Raises RejectedMessage (undecodable, wrong-layout or wrong-length) for any payload that is not a run of expected
    frames, each name at most once.
    """
    known = {name: (layout_digest, size) for name, layout_digest, size in expected}
    found: dict[str, NamedVector] = {}
    for name, (_, end, header) in _frames(payload).items():
        if name not in known:
            raise RejectedMessage("undecodable", f"vector {name!r} is not expected here; expected {sorted(known)}")
        layout_digest, expected_size = known[name]
        if header.layout != bytes.fromhex(layout_digest)[:16]:
            raise RejectedMessage(
                "wrong-layout",
                f"vector {name!r} has layout {header.layout.hex()}, expected {layout_digest[:32]}: "
                "sender and receiver hold different masks or heads",
            )
        if header.size != expected_size:
            raise RejectedMessage("wrong-length", f"vector {name!r} has {header.size} values, expected {expected_size}")
        try:
            body = memoryview(payload)[end - header.body_length : end]
            values = decode(body, header.size)
        except CodecError as error:
            raise RejectedMessage(error.cause, f"vector {name!r}: {error}") from error
        found[name] = NamedVector(name, layout_digest, values, combine=header.combine)
    return found


@dataclass(frozen=True)
class _Header:
    combine: str
    size: int
    layout: bytes
    body_length: int


def _frames(payload: bytes) -> dict[str, tuple[int, int, _Header]]:
    """Where each frame starts and ends, and its header, by the vector's name."""
    found: dict[str, tuple[int, int, _Header]] = {}
    position = 0
    while position < len(payload):
        if len(payload) - position < _HEADER.size:
            raise RejectedMessage(
                "undecodable", f"payload of {len(payload)} bytes ends inside the header at {position}"
            )
        version, reserved, combine, name_length, size, layout, body_length = _HEADER.unpack_from(payload, position)
        if version != FRAME_VERSION or reserved or combine not in _COMBINE_NAMES:
            numbers = f"version {version}, reserved {reserved}, combine {combine}"
            raise RejectedMessage("undecodable", f"frame at byte {position}: {numbers} are not all known")
        body = position + _HEADER.size + name_length
        end = body + body_length
        if end > len(payload):
            raise RejectedMessage("undecodable", f"frame at byte {position} claims to end at {end} of {len(payload)}")
        name = payload[body - name_length : body].decode("utf-8", errors="replace")
        if name in found:
            raise RejectedMessage("undecodable", f"frame at byte {position}: vector {name!r} stands in it twice")
        header = _Header(_COMBINE_NAMES[combine], size, layout, body_length)
        found[name] = (position, end, header)
        position = end
    return found
