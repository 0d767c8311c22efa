"""The ledger: every message's bytes by round, client, direction and kind, and the totals people ask for.

A message that carries vectors of two kinds gives two lines: each kind's line has that kind's payload; the framing is
counted once, with the message's own kind; so the wire bytes of the lines sum to the length of the message.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

Direction = Literal["up", "down"]
"""up: client to server; down: server to client."""


@dataclass(frozen=True)
class LedgerLine:
    round: int
    """From 1; 0 for the mask. The final evaluation counts in the last round."""
    client: int
    direction: Direction
    kind: str
    """mask | train | evaluate | head | ..."""
    payload_bytes: int
    """The codec's output with its frame."""
    wire_bytes: int
    """Payload and framing: the serialised message."""

    def as_dict(self) -> dict[str, int | str]:
        return asdict(self)


@dataclass
class Ledger:
    """Lines in the order in which messages were sent and received."""

    lines: list[LedgerLine] = field(default_factory=list)

    def record(
        self,
        server_round: int,
        client_id: int,
        direction: Direction,
        kind: str,
        payload_bytes: int,
        wire_bytes: int,
        other_kinds: Mapping[str, int] | None = None,
    ) -> None:
        """Count one message.

        payload_bytes: of the message's own kind. other_kinds: payload bytes by kind of what it carries beside that.
        wire_bytes: of the whole message.
        """
        others = {kind_: size for kind_, size in (other_kinds or {}).items() if size}
        own_wire_bytes = wire_bytes - sum(others.values())
        self.lines.append(LedgerLine(server_round, client_id, direction, kind, payload_bytes, own_wire_bytes))
        for other, size in others.items():
            self.lines.append(LedgerLine(server_round, client_id, direction, other, size, size))

    @property
    def total_bytes(self) -> int:
        """Wire bytes of all messages, both ways."""
        return sum(line.wire_bytes for line in self.lines)

    def mask_bytes_per_client(self) -> float:
        """Mean wire bytes of a client's mask messages, both ways."""
        lines = [line for line in self.lines if line.kind == "mask"]
        return _ratio(sum(line.wire_bytes for line in lines), len({line.client for line in lines}))

    def payload_bytes_per_client_round(self, direction: Direction) -> float:
        """Mean payload bytes of the train messages in this direction."""
        lines = [line for line in self.lines if line.kind == "train" and line.direction == direction]
        return _ratio(sum(line.payload_bytes for line in lines), len(lines))

    def bytes_per_client_round(self, direction: Direction) -> float:
        """Wire bytes of everything but the mask, over the rounds the clients took part in (were asked to train)."""
        lines = [line for line in self.lines if line.kind != "mask" and line.direction == direction]
        taken_part = {(line.client, line.round) for line in self.lines if line.kind == "train"}
        return _ratio(sum(line.wire_bytes for line in lines), len(taken_part))


def _ratio(total: int, count: int) -> float:
    return total / count if count else 0.0


def full_finetuning_bytes_per_client_round(num_parameters: int) -> int:
    """A projection: every parameter in fp32, down and up, no framing."""
    return 2 * 4 * num_parameters
