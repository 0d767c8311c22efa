"""What a run sent: bytes by kind, direction and round."""

from collections import defaultdict
from collections.abc import Iterable
from html import escape

from fedmask.runs.page import notes, table
from fedmask.runs.plots import stacked_bars
from fedmask.runs.report.run import Run
from fedmask.runs.report.scores import about_the_last_round
from fedmask.wire.ledger import REJECTED, LedgerLine

_MESSAGES = ("mask", "train", "evaluate", REJECTED)
"""Kinds that are messages; what else is counted travels inside them."""


def communication(run: Run) -> str:
    groups: dict[tuple[str, str], list[LedgerLine]] = defaultdict(list)
    for line in run.ledger:
        groups[line.kind, line.direction].append(line)
    rows = [
        [
            escape(f"{kind}, {direction}"),
            f"{len(lines):,}" if kind in _MESSAGES else "inside others",
            f"{sum(line.payload_bytes for line in lines):,}",
            f"{sum(line.wire_bytes for line in lines):,}",
        ]
        for (kind, direction), lines in groups.items()
    ]
    payload_bytes = sum(line.payload_bytes for line in run.ledger)
    num_messages = sum(line.kind in _MESSAGES for line in run.ledger)
    rows.append(["all", f"{num_messages:,}", f"{payload_bytes:,}", run.figure("communication.total_bytes", ",")])
    sums = table(["kind, direction", "messages", "payload bytes", "wire bytes"], rows)
    return sums + notes(_about_the_bytes(run)) + _bytes_by_round(run)


def _about_the_bytes(run: Run) -> Iterable[str]:
    up, down, mask = (
        run.figure(f"communication.{name}", ",.0f")
        for name in (
            "uplink_payload_bytes_per_client_round",
            "downlink_payload_bytes_per_client_round",
            "mask_bytes_per_client",
        )
    )
    yield f"A training message's payload is {up} bytes up and {down} down; the mask costs a client {mask} bytes, once."
    yield "Wire bytes: the payload and all framing of the serialised message."
    yield "Round 0 is the mask's."
    yield from about_the_last_round(run)


def _bytes_by_round(run: Run) -> str:
    rounds = range(len(run.rounds) + 1)
    sums: dict[str, dict[str, list[float]]] = {"up": {}, "down": {}}
    for line in run.ledger:
        sums[line.direction].setdefault(line.kind, [0.0] * len(rounds))[line.round] += line.wire_bytes
    ticks, labels = [str(number) for number in rounds], ("round", "wire bytes (← down, up →)")
    return stacked_bars(ticks, sums["up"], sums["down"], labels, "Wire bytes by round, kind and direction", y_unit="B")
