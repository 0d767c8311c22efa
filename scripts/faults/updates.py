"""The vectors of a payload whatever they are: what a client of this process has framed is read back without a mask."""

import struct

from fedmask.wire.vectors import NamedVector, frame_sizes, unframe

_SIZE_AT, _LAYOUT_AT, _LAYOUT_BYTES = 4, 8, 16
"""Where a frame's header holds the number of values and the layout digest."""


def vectors_of(payload: bytes) -> list[NamedVector]:
    """In the order of the frames. Raises RejectedMessage for what is no payload."""
    expected, start = [], 0
    for name, size_bytes in frame_sizes(payload).items():
        layout = payload[start + _LAYOUT_AT : start + _LAYOUT_AT + _LAYOUT_BYTES].hex()
        expected.append((name, layout, struct.unpack_from("<I", payload, start + _SIZE_AT)[0]))
        start += size_bytes
    return list(unframe(payload, expected).values())
