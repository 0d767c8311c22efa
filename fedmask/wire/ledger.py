"""The ledger: every message's bytes by round, client, direction and kind, and the totals people ask for.

A message that carries vectors of two kinds gives two lines: each kind's line has that kind's payload; the framing is
counted once, with the message's own kind; so the wire bytes of the lines sum to the length of the message.

A message from a client that cannot be used did travel: it stands as one line of kind `rejected`, with its wire bytes
and no payload bytes, and counts in the totals of all that was sent, but in none of a kind that was accepted.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Direction = Literal["up", "down"]
"""up: client to server; down: server to client."""

REJECTED = "rejected"
"""The kind of a message that could not be used."""

UNKNOWN_CLIENT = -1
"""Stands for the client where a message came from a node that was asked nothing."""


@dataclass(frozen=True, slots=True)
class LedgerLine:
    round: int
    """From 1; 0 for the mask. The final evaluation counts in the last round."""
    client: int
    """UNKNOWN_CLIENT for a rejected message of a node that was asked nothing."""
    direction: Direction
    kind: str
    """mask | train | evaluate | head | ... | rejected"""
    payload_bytes: int
    """The codec's output with its frame."""
    wire_bytes: int
    """Payload and framing: the serialised message."""

    def as_dict(self) -> dict[str, int | str]:
        return asdict(self)


class Ledger:
    """Running totals, and the lines since they were last taken: a long run's ledger is as small as a short one's."""

    def __init__(self) -> None:
        self._lines: list[LedgerLine] = []
        self._wire_bytes: Counter[tuple[str, Direction]] = Counter()
        """By kind and direction."""
        self._payload_bytes: Counter[tuple[str, Direction]] = Counter()
        """By kind and direction."""
        self._clients_with_mask: set[int] = set()
        self._round, self._trained_this_round = 0, set[int]()
        self._num_trained = 0
        """Over the rounds, how many clients were asked to train."""

    def record(
        self,
        server_round: int,
        client_id: int,
        direction: Direction,
        kind: str,
        payload_bytes: int,
        wire_bytes: int,
        other_kinds: Mapping[str, int] | None = None,
    ) -> list[LedgerLine]:
        """Count one message, and return its lines; the rounds of train messages do not descend.

        payload_bytes: of the message's own kind. other_kinds: payload bytes by kind of what it carries beside that.
        wire_bytes: of the whole message.
        """
        others = {kind_: size for kind_, size in (other_kinds or {}).items() if size}
        own_wire_bytes = wire_bytes - sum(others.values())
        lines = [LedgerLine(server_round, client_id, direction, kind, payload_bytes, own_wire_bytes)]
        lines += [LedgerLine(server_round, client_id, direction, other, size, size) for other, size in others.items()]
        for line in lines:
            self._lines.append(line)
            self._count(line, 1)
            self._note(line)
        return lines

    def reject(self, lines: Sequence[LedgerLine]) -> None:
        """Count a message, whose lines `record` gave and nobody has taken since, as rejected instead."""
        first = next(number for number, line in enumerate(self._lines) if line is lines[0])
        own = lines[0]
        wire_bytes = sum(line.wire_bytes for line in lines)
        rejected = LedgerLine(own.round, own.client, own.direction, REJECTED, 0, wire_bytes)
        self._lines[first : first + len(lines)] = [rejected]
        for line in lines:
            self._count(line, -1)
        self._count(rejected, 1)

    def replay(self, lines: Iterable[LedgerLine]) -> None:
        """Count what an earlier process of the run has counted, and written down."""
        for line in lines:
            self._count(line, 1)
            self._note(line)

    def _note(self, line: LedgerLine) -> None:
        if line.kind == "mask":
            self._clients_with_mask.add(line.client)
        elif line.kind == "train":
            self._note_trained(line)

    def _count(self, line: LedgerLine, times: Literal[1, -1]) -> None:
        self._wire_bytes[line.kind, line.direction] += times * line.wire_bytes
        self._payload_bytes[line.kind, line.direction] += times * line.payload_bytes

    def _note_trained(self, line: LedgerLine) -> None:
        if line.round != self._round:
            self._round, self._trained_this_round = line.round, set()
        if line.client not in self._trained_this_round:
            self._trained_this_round.add(line.client)
            self._num_trained += 1

    def take_lines(self) -> list[LedgerLine]:
        """The lines since the last call, in the order in which messages were sent and received."""
        lines, self._lines = self._lines, []
        return lines

    def bytes_of(self, kind: str) -> int:
        """Wire bytes of all messages of a kind, both ways."""
        return self._wire_bytes[kind, "up"] + self._wire_bytes[kind, "down"]

    @property
    def total_bytes(self) -> int:
        """Wire bytes of all messages, both ways."""
        return self._wire_bytes.total()

    @property
    def total_payload_bytes(self) -> int:
        """Payload bytes of all messages, both ways."""
        return self._payload_bytes.total()

    def mask_bytes_per_client(self) -> float:
        """Mean wire bytes of a client's mask messages, both ways."""
        return _ratio(self.bytes_of("mask"), len(self._clients_with_mask))

    def payload_bytes_per_client_round(self, direction: Direction) -> float:
        """Payload bytes of everything but the mask, over the rounds the clients took part in (were asked to train)."""
        return _ratio(_but_the_mask(self._payload_bytes, direction), self._num_trained)

    def bytes_per_client_round(self, direction: Direction) -> float:
        """Wire bytes of everything but the mask, over the rounds the clients took part in (were asked to train)."""
        return _ratio(_but_the_mask(self._wire_bytes, direction), self._num_trained)


def _but_the_mask(sizes: Mapping[tuple[str, Direction], int], direction: Direction) -> int:
    return sum(size for (kind, way), size in sizes.items() if kind != "mask" and way == direction)


def _ratio(total: int, count: int) -> float:
    return total / count if count else 0.0
