"""The way up: a client's updates -> a payload and what it could not send; a payload -> updates, at the server.

    sent = codec(update + residual)       residual' = update + residual - sent
With codec.rotate=r only the entries of the round's part travel, the same for all clients; with error feedback the
others wait in the residual, without it they are dropped. A residual belongs to the client: a client that missed rounds
goes on with the one it has, and one whose residual is lost begins with zeros, which loses one round's rounding.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedmask.randomness import seed_for
from fedmask.runs.config import CodecConfig
from fedmask.wire.codecs import codec
from fedmask.wire.error_feedback import encode_with_feedback
from fedmask.wire.rotation import rotation
from fedmask.wire.vectors import NamedVector, frame, unframe

Values = NDArray[np.float32]
Residuals = Mapping[str, Values]
"""By a vector's name what has not been sent of it, float32 (k,)."""


def encode_updates(
    updates: Sequence[NamedVector],
    residuals: Residuals,
    config: CodecConfig,
    server_round: int,
    client_id: int,
    seed: int,
) -> tuple[bytes, dict[str, Values]]:
    """The payload of one client's updates in a round, and the residuals after it: none without error feedback.

    residuals: those before it; zeros where there is none. seed: the run's.
    """
    payload, after = [], dict[str, Values]()
    for update in updates:
        rounding = seed_for(seed, "uplink rounding", server_round, client_id, update.name)
        part = part_of(update.values.size, config.rotate, server_round, seed)
        if config.keeps_residuals:
            before = residuals.get(update.name, np.zeros_like(update.values))
            body, after[update.name] = encode_with_feedback(codec(config.up), update.values, before, rounding, part)
        else:
            body = codec(config.up).encode(update.values if part is None else update.values[part], rounding)
        payload.append(frame(update.name, update.layout_digest, body))
    return b"".join(payload), after


def decode_updates(
    payload: bytes, expected: Sequence[tuple[str, str, int]], config: CodecConfig, server_round: int, seed: int
) -> list[NamedVector]:
    """The updates of a reply, each of its whole length: zero where an entry did not travel in this round.

    expected: (name, layout digest, size) of the vectors that travel. Raises RejectedMessage as `unframe` does.
    """
    sizes = {name: size for name, _, size in expected}
    parts = {name: part_of(size, config.rotate, server_round, seed) for name, size in sizes.items()}
    travelling = [(name, layout, num_travelling(size, parts[name])) for name, layout, size in expected]
    return [_spread(found, parts[name], sizes[name]) for name, found in unframe(payload, travelling).items()]


def num_travelling(size: int, part: NDArray[np.int64] | None) -> int:
    """How many entries of a vector of `size` travel where this part of it does."""
    return size if part is None else len(part)


def _spread(found: NamedVector, part: NDArray[np.int64] | None, size: int) -> NamedVector:
    if part is None:
        return found
    values = np.zeros(size, np.float32)
    values[part] = found.values
    return NamedVector(found.name, found.layout_digest, values, found.combine)


@lru_cache(maxsize=8)
def part_of(size: int, parts: int, server_round: int, seed: int) -> NDArray[np.int64] | None:
    """Indices of a vector of `size` that travel in a round, read-only; None where all do."""
    if (parts := min(parts, size)) <= 1:
        return None
    part = rotation(size, parts, server_round, seed)
    part.flags.writeable = False
    return part
