"""The vectors of a payload whatever they are, read back without a mask, and framed again with other values."""

import struct
from collections.abc import Iterable

from fedmask.wire.codecs import codec, decode
from fedmask.wire.vectors import NamedVector, frame, frames

_SIZE_AT = 4
"""Where a codec's header holds the number of values."""


def vectors_of(payload: bytes) -> list[NamedVector]:
    """In the order of the frames; of each the entries that travel. Raises RejectedMessage for what is no payload."""
    found = []
    for each in frames(payload):
        (size,) = struct.unpack_from("<I", each.body, _SIZE_AT)
        found.append(NamedVector(each.name, each.layout.hex(), decode(each.body, size)))
    return found


def payload_with(vectors: Iterable[NamedVector]) -> bytes:
    """The vectors in fp32, which says any of them."""
    return b"".join(frame(each.name, each.layout_digest, codec("fp32").encode(each.values, 0)) for each in vectors)
