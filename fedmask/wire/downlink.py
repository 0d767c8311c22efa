"""The way down: the server's vectors -> what clients hold, version by version; and the same vectors at a client.

A lossless codec sends the vectors themselves, where all of them travels. Else what changed since the version that a
client holds is sent:
    change(v) = codec(server(v) - held(v - 1))       held(v) = held(v - 1) + change(v)       held(0) = 0
so what the codec could not send stays in the difference and travels later: error feedback, whose state is `held`. With
codec.rotate=r a change is of the round's part alone. Server and clients add the same float32 numbers and hold the same
bits; a checksum in every message proves it. A client that holds an older version is sent all changes since, where the
server still has them and they are shorter than the vector; else, and where its checksum differs, the vector itself.
"""

import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedmask.errors import RejectedMessage
from fedmask.randomness import seed_for
from fedmask.runs.config import CodecConfig
from fedmask.wire.codecs import codec, decode
from fedmask.wire.uplink import num_travelling, part_of
from fedmask.wire.vectors import MAX_STEPS, WHOLE, Frame, frame, frames

Values = NDArray[np.float32]
Key = tuple[str, str]
"""A vector's name and layout digest."""
Expected = Sequence[tuple[str, str, int]]
"""(name, layout digest, size) of the vectors that travel to a client."""

_CRC = struct.Struct("<I")


@dataclass(frozen=True, eq=False)
class Broadcast:
    """What the clients that follow hold, and how others come to hold it."""

    version: int = 0
    """Rounds whose updates are in it."""
    held: Mapping[Key, Values] = field(default_factory=dict)
    """float32 (k,); zeros where a vector is not in it."""
    changes: tuple[Mapping[Key, bytes], ...] = ()
    """The codec's bytes of the last versions' changes, the newest last; none where whole vectors are sent."""


class Downlink:
    """The server's end."""

    def __init__(self, config: CodecConfig, seed: int, start: Broadcast | None = None) -> None:
        """seed: the run's. start: of a run that is resumed."""
        self._codec = codec(config.down)
        self._sends_whole = self._codec.is_lossless and config.rotate == 1
        self._rotate = config.rotate
        self._seed = seed
        self.broadcast = start or Broadcast()
        self._whole: dict[Key, bytes] = {}
        """Frames of this version, each one object for all messages."""
        self._sums: dict[Key, int] = {}

    def advance(self, version: int, vectors: Mapping[Key, Values]) -> None:
        """Take the server's vectors of the next version; one that has never moved need not be among them."""
        self._whole.clear()
        self._sums.clear()
        if self._sends_whole:
            self.broadcast = Broadcast(version, dict(vectors))
            return
        bodies, held = dict[Key, bytes](), dict[Key, Values]()
        for key, values in vectors.items():
            bodies[key], held[key] = self._change(version, key, values)
        self.broadcast = Broadcast(version, held, self._worth_keeping((*self.broadcast.changes, bodies), held))

    def _change(self, version: int, key: Key, values: Values) -> tuple[bytes, Values]:
        """The bytes of one vector's change, and what clients hold once they have added it."""
        before = self.broadcast.held.get(key, np.zeros_like(values))
        part = part_of(values.size, self._rotate, version, self._seed)
        difference = values - before
        rounding = seed_for(self._seed, "downlink rounding", version, *key)
        body = self._codec.encode(difference if part is None else difference[part], rounding)
        change = decode(body, num_travelling(values.size, part))
        return body, _with_change(before, change, part)

    @staticmethod
    def _worth_keeping(
        changes: tuple[Mapping[Key, bytes], ...], held: Mapping[Key, Values]
    ) -> tuple[Mapping[Key, bytes], ...]:
        """The newest changes that together are shorter than the vectors themselves; the last one always."""
        room, kept = sum(values.nbytes for values in held.values()), 0
        for bodies in reversed(changes[-MAX_STEPS:]):
            room -= sum(map(len, bodies.values()))
            if room < 0 and kept:
                break
            kept += 1
        return changes[-kept:]

    def held(self, name: str, layout_digest: str, size: int) -> Values:
        """A vector as clients hold it, float32 (size,)."""
        found = self.broadcast.held.get((name, layout_digest))
        return np.zeros(size, np.float32) if found is None else found

    def payload(self, expected: Expected, held_version: int | None) -> bytes:
        """What brings a client from a version, None for none at all, to this one; empty where it holds this one."""
        behind = None if held_version is None else self.broadcast.version - held_version
        if behind == 0 or self.broadcast.version == 0:
            return b""
        if behind is None or not 0 < behind <= len(self.broadcast.changes):
            return b"".join(map(self._whole_frame, expected))
        steps = range(behind, 0, -1)
        return b"".join(self._change_frame(name, layout, step) for step in steps for name, layout, _ in expected)

    def _whole_frame(self, expected: tuple[str, str, int]) -> bytes:
        name, layout_digest, size = expected
        key = name, layout_digest
        if key not in self._whole:
            lossless = self._codec if self._codec.is_lossless else codec("fp32")
            self._whole[key] = frame(*key, lossless.encode(self.held(name, layout_digest, size), 0))
        return self._whole[key]

    def _change_frame(self, name: str, layout_digest: str, steps: int) -> bytes:
        """Empty where the vector had not moved yet."""
        body = self.broadcast.changes[-steps].get((name, layout_digest))
        return b"" if body is None else frame(name, layout_digest, body, steps)

    def checksum(self, expected: Expected) -> int:
        """Of what a client holds that has these vectors of this version."""
        for name, layout_digest, size in expected:
            if (name, layout_digest) not in self._sums:
                self._sums[name, layout_digest] = zlib.crc32(self.held(name, layout_digest, size).data)
        return _of_all(self._sums[name, layout_digest] for name, layout_digest, _ in expected)


@dataclass(frozen=True, eq=False)
class Version:
    """One vector as a client holds it."""

    number: int
    values: Values
    """float32 (k,), not to be written to."""
    sum: int
    """Their checksum."""


class Received:
    """A client process's end: the newest version of each vector that came, shared by all clients in the process."""

    def __init__(self, config: CodecConfig, seed: int) -> None:
        """seed: the run's."""
        self._rotate = config.rotate
        self._seed = seed
        self._held: dict[Key, Version] = {}

    @property
    def held(self) -> Mapping[Key, Version]:
        """What `hold` gives to another process of the same client."""
        return self._held

    def hold(self, key: Key, number: int, values: Values) -> None:
        """Hold a version, float32 (k,), that came to another process of the same client in the same run."""
        self._held[key] = Version(number, values, zlib.crc32(values.data))

    def take(self, payload: bytes, expected: Expected, version: int, checksum: int) -> dict[str, Values] | None:
        """The vectors of this version by name, float32 (k,), not to be written to; None where what is held and what has
        come do not give them, so that they have to be sent whole.

        Raises RejectedMessage for a payload that is not of these vectors.
        """
        arrived = frames(payload)
        if unknown := {each.name for each in arrived} - {name for name, _, _ in expected}:
            raise RejectedMessage("undecodable", f"vectors {sorted(unknown)} are not expected here")
        for name, layout_digest, size in expected:
            own = {each.steps: each for each in arrived if each.name == name}
            self._held[name, layout_digest] = self._brought_up((name, layout_digest), size, version, own)
        found = {name: self._held[name, layout_digest] for name, layout_digest, _ in expected}
        if _of_all(held.sum for held in found.values()) == checksum:
            return {name: held.values for name, held in found.items()}
        for name, layout_digest, _ in expected:  # of another course of this run, or with a gap
            del self._held[name, layout_digest]
        return None

    def _brought_up(self, key: Key, size: int, version: int, arrived: Mapping[int, Frame]) -> Version:
        """The vector with all changes that have come and that it lacks: the checksum tells whether those are all."""
        start = self._held.get(key)
        if start is None or start.values.size != size:  # another size: of a file that was kept, and is not this run's
            start = Version(0, zeros := np.zeros(size, np.float32), zlib.crc32(zeros.data))
        elif start.number == version:
            return start  # another client of this process was sent it
        if WHOLE in arrived:
            values = arrived[WHOLE].decode(key[1], size)
        else:
            values = start.values
            for steps in range(min(version - start.number, MAX_STEPS), 0, -1):
                if steps in arrived:
                    part = part_of(size, self._rotate, version - steps + 1, self._seed)
                    change = arrived[steps].decode(key[1], num_travelling(size, part))
                    values = _with_change(values, change, part)
        return Version(version, values, zlib.crc32(values.data))


def _with_change(before: Values, change: Values, part: NDArray[np.int64] | None) -> Values:
    """held(v) from held(v - 1): the one sum that server and clients both make."""
    after = before.copy()
    after[slice(None) if part is None else part] += change
    return after


def _of_all(sums: Iterable[int]) -> int:
    return zlib.crc32(b"".join(map(_CRC.pack, sums)))
