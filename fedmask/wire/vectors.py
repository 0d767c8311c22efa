"""Named flat vectors and their frames: what travels in every message, whatever the k numbers mean.

A frame is  version u8 | combine u8 | length of name u8 | steps u8 | layout digest, 8 bytes | length of body u32 | name
| body , little-endian. The body is a codec's bytes, which say themselves which codec made them and of how many values.
A message's payload is its frames, one after the other.
"""

import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmask.errors import CodecError, FedmaskError, RejectedMessage
from fedmask.wire.codecs import decode

FRAME_VERSION = 2
MAX_NAME_BYTES = 32

WHOLE = 0
"""`steps` of a frame that holds a vector itself."""
MAX_STEPS = 255
MAX_FRAMES = 4 * MAX_STEPS
"""In a payload: more than the changes of a few vectors."""

COMBINE_NUMBERS = {"mean": 0}
"""Rules by which vectors of one name and layout are combined, and their numbers on the wire; never reused."""

_HEADER = struct.Struct("<BBBB8sI")
_COMBINE_NAMES = {number: name for name, number in COMBINE_NUMBERS.items()}


@dataclass(frozen=True, eq=False)
class NamedVector:
    """One flat vector with all that the other end must agree on."""

    name: str
    """What it is: delta, head, ...; at most 32 bytes of UTF-8."""
    layout_digest: str
    """16 hex digits or more: which numbers stand where; only vectors of the same layout may be combined."""
    values: NDArray[np.float32]
    """float32 (k,)."""
    combine: str = "mean"


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a payload; its body is not decoded yet."""

    name: str
    layout: bytes
    """The first 8 bytes of the layout's digest."""
    steps: int
    """WHOLE, or how many versions back the change of this frame ends: 1 for the one that leads to the newest."""
    combine: str
    body: memoryview
    num_bytes: int
    """Header and name included."""

    def decode(self, layout_digest: str, size: int) -> NDArray[np.float32]:
        """The values, float32 (size,). Raises RejectedMessage, with the cause, where they are not those expected."""
        if self.layout != _short(layout_digest):
            raise RejectedMessage(
                "wrong-layout",
                f"vector {self.name!r} has layout {self.layout.hex()}, expected {_short(layout_digest).hex()}: "
                "sender and receiver hold different masks or heads",
            )
        try:
            return decode(self.body, size)
        except CodecError as error:
            raise RejectedMessage(error.cause, f"vector {self.name!r}: {error}") from error


def frame(name: str, layout_digest: str, body: bytes, steps: int = WHOLE, combine: str = "mean") -> bytes:
    """A codec's bytes in a frame: 16 bytes and the name before them."""
    encoded = name.encode()
    if not 0 < len(encoded) <= MAX_NAME_BYTES:
        raise FedmaskError(f"vector name {name!r} takes {len(encoded)} bytes; 1 to {MAX_NAME_BYTES} are allowed")
    header = _HEADER.pack(
        FRAME_VERSION, COMBINE_NUMBERS[combine], len(encoded), steps, _short(layout_digest), len(body)
    )
    return b"".join((header, encoded, body))


def frames(payload: bytes) -> list[Frame]:
    """The frames of a payload, in its order; nothing is decoded, and nothing allocated for what they claim.

    Raises RejectedMessage for a payload that is not a run of frames, each name with the same steps at most once.
    """
    found: dict[tuple[str, int], Frame] = {}
    position = 0
    while position < len(payload):
        each = _frame_at(payload, position)
        if (each.name, each.steps) in found:
            raise RejectedMessage("undecodable", f"vector {each.name!r} stands twice in the payload")
        if len(found) == MAX_FRAMES:  # each costs more memory than its bytes
            raise RejectedMessage("undecodable", f"the payload has more than {MAX_FRAMES} frames")
        found[each.name, each.steps] = each
        position += each.num_bytes
    return list(found.values())


def frame_sizes(payload: bytes) -> Counter[str]:
    """Bytes that each vector's frames take of a payload, by name. Raises RejectedMessage as `frames` does."""
    sizes: Counter[str] = Counter()
    for each in frames(payload):
        sizes[each.name] += each.num_bytes
    return sizes


def unframe(payload: bytes, expected: Iterable[tuple[str, str, int]]) -> dict[str, NamedVector]:
    """The whole vectors of a payload, by name.

    expected: (name, layout digest, size) of the vectors that may stand in it. Nothing is decoded for a frame that is
    not expected. Raises RejectedMessage (undecodable, wrong-layout, wrong-length, not-finite) for any payload that is
    not a run of expected frames.
    """
    known = {name: (layout_digest, size) for name, layout_digest, size in expected}
    found: dict[str, NamedVector] = {}
    for each in frames(payload):
        if each.name not in known or each.steps != WHOLE:
            raise RejectedMessage(
                "undecodable", f"vector {each.name!r} is not expected here; expected whole {sorted(known)}"
            )
        layout_digest, size = known[each.name]
        found[each.name] = NamedVector(each.name, layout_digest, each.decode(layout_digest, size), each.combine)
    return found


def _frame_at(payload: bytes, position: int) -> Frame:
    if len(payload) - position < _HEADER.size:
        raise RejectedMessage("undecodable", f"payload of {len(payload)} bytes ends inside the header at {position}")
    version, combine, name_length, steps, layout, body_length = _HEADER.unpack_from(payload, position)
    if version != FRAME_VERSION or combine not in _COMBINE_NAMES:
        raise RejectedMessage(
            "undecodable", f"frame at byte {position}: version {version}, combine {combine} are not all known"
        )
    body = position + _HEADER.size + name_length
    end = body + body_length
    if end > len(payload):
        raise RejectedMessage("undecodable", f"frame at byte {position} claims to end at {end} of {len(payload)}")
    name = payload[body - name_length : body].decode("utf-8", errors="replace")
    return Frame(name, layout, steps, _COMBINE_NAMES[combine], memoryview(payload)[body:end], end - position)


def _short(layout_digest: str) -> bytes:
    return bytes.fromhex(layout_digest)[:8]
