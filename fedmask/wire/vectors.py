"""Named flat vectors and their frames: what travels in every message, whatever the k numbers mean.

A frame is  version u8 | codec u8 | combine u8 | length of name u8 | size u32 | layout digest, 16 bytes | length of
body u32 | name | body , little-endian. A message's payload is its frames, one after the other.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmask.errors import FedmaskError, RejectedMessage
from fedmask.wire.codecs import CODECS, CODECS_BY_NUMBER

FRAME_VERSION = 1
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
    combine: str = "mean"


def frame(vector: NamedVector) -> bytes:
    """A vector as bytes: a header of at most 64 bytes, then the codec's output."""
    name = vector.name.encode()
    if not 0 < len(name) <= MAX_NAME_BYTES:
        raise FedmaskError(f"vector name {vector.name!r} takes {len(name)} bytes; 1 to {MAX_NAME_BYTES} are allowed")
    codec = CODECS[vector.codec]
    body = codec.encode(vector.values)
    layout = bytes.fromhex(vector.layout_digest)[:16]
    header = _HEADER.pack(
        FRAME_VERSION, codec.number, COMBINE_NUMBERS[vector.combine], len(name), vector.values.size, layout, len(body)
    )
    return header + name + body


def unframe(payload: bytes, expected: Iterable[tuple[str, str, int]]) -> dict[str, tuple[NamedVector, int]]:
    """The vectors of a payload, and how many bytes the frame of each took.

    expected: (name, layout digest, size) of the vectors that may stand in it. Nothing is decoded, and nothing
    allocated, for a frame that is not expected.

    Raises RejectedMessage (undecodable, wrong-layout or wrong-length) for any payload that is not a run of expected
    frames, each name at most once.
    """
    known = {name: (layout_digest, size) for name, layout_digest, size in expected}
    found: dict[str, tuple[NamedVector, int]] = {}
    position = 0
    while position < len(payload):
        if len(payload) - position < _HEADER.size:
            raise RejectedMessage("undecodable", f"payload ends inside a frame's header at byte {position} of {len(payload)}")
        version, codec, combine, name_length, size, layout, body_length = _HEADER.unpack_from(payload, position)
        start = position + _HEADER.size
        end = start + name_length + body_length
        if version != FRAME_VERSION or codec not in CODECS_BY_NUMBER or combine not in _COMBINE_NAMES:
            raise RejectedMessage("undecodable", f"frame at byte {position}: version {version}, codec {codec}, combine {combine} are not all known")
        if end > len(payload):
            raise RejectedMessage("undecodable", f"frame at byte {position} claims to end at byte {end}, the payload ends at {len(payload)}")
        name = payload[start : start + name_length].decode("utf-8", errors="replace")
        if name not in known or name in found:
            raise RejectedMessage("undecodable", f"frame at byte {position}: vector {name!r} is not expected here; expected {sorted(known)}, each once")
        layout_digest, expected_size = known[name]
        if layout != bytes.fromhex(layout_digest)[:16]:
            raise RejectedMessage("wrong-layout", f"vector {name!r} has layout {layout.hex()}, expected {layout_digest[:32]}: sender and receiver hold different masks or heads")
        if size != expected_size:
            raise RejectedMessage("wrong-length", f"vector {name!r} has {size} values, expected {expected_size}")
        try:
            values = CODECS_BY_NUMBER[codec].decode(payload[start + name_length : end], size)
        except FedmaskError as error:
            raise RejectedMessage("undecodable", f"vector {name!r}: {error}") from error
        vector = NamedVector(name, layout_digest, values, CODECS_BY_NUMBER[codec].name, _COMBINE_NAMES[combine])
        found[name] = (vector, end - position)
        position = end
    return found
