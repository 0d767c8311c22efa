"""What a run could not do. In: the lines of its rounds, and why clients lack a test score. Out: what its end says.

A client is lost in a round whose cohort had it where no update of it was accepted, or no score came where it was to be
scored.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NAMED = 5
"""Clients of a cause, and causes, that a terminal names one by one."""

_CAUSE_NOT_KEPT = "its cause was not kept by the version that ran this round"


@dataclass
class _Seen:
    """A client in the rounds so far."""

    num_rounds: int = 0
    num_lost: int = 0
    cause: str = ""


def lost_clients(rounds: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The clients that were lost in every round whose cohort had them, by client_id; `cause`: the last one.

    rounds: lines of rounds.jsonl.
    """
    seen: dict[int, _Seen] = {}
    for line in rounds:
        # A version that kept no causes kept who failed.
        lost = line.get("lost", dict.fromkeys(map(str, line["failed"]), _CAUSE_NOT_KEPT))
        for client_id in line["cohort"]:
            client = seen.setdefault(client_id, _Seen())
            client.num_rounds += 1
            if (cause := lost.get(str(client_id))) is not None:
                client.num_lost += 1
                client.cause = cause
    return [
        {"client": client_id, "rounds": client.num_rounds, "cause": client.cause}
        for client_id, client in sorted(seen.items())
        if client.num_lost == client.num_rounds
    ]


def unscored(
    score_test: bool,
    mean_test_score: float | None,
    lost_on_test: Mapping[int, str],
    rounds: Sequence[Mapping[str, Any]],
) -> str | None:
    """Why a run has no score, in one line; None where it has one. rounds: lines of rounds.jsonl."""
    if score_test:
        if mean_test_score is not None:
            return None
        return f"no client could be scored on the test split: {_first(lost_on_test)}"
    if any(line["mean_score"] is not None for line in rounds):
        return None
    lost = {int(client_id): cause for line in rounds for client_id, cause in line.get("lost", {}).items()}
    return f"no client could be scored on the validation split in any round: {_first(lost)}"


def _first(lost: Mapping[int, str]) -> str:
    if not lost:
        return "none was asked"
    client_id = min(lost)
    others = f", and {len(lost) - 1} more" if len(lost) > 1 else ""
    return f"client {client_id}: {lost[client_id]}{others}"


def lost_lines(summary: Mapping[str, Any]) -> list[str]:
    """A line a cause of clients that were lost in every round; of many clients and causes the last are counted.

    Nothing for an older run.
    """
    lost_by: dict[str, list[int]] = {}
    for each in summary.get("lost_clients", []):
        lost_by.setdefault(each["cause"], []).append(each["client"])
    lines = [f"{_named(clients)} lost in every round: {cause}" for cause, clients in list(lost_by.items())[:NAMED]]
    if len(lost_by) > NAMED:
        others = sum(map(len, list(lost_by.values())[NAMED:]))
        lines.append(f"lost in every round for other causes: {others}; summary.json names them")
    return lines


def _named(clients: Sequence[int]) -> str:
    if len(clients) == 1:
        return f"client {clients[0]} was"
    more = f" and {len(clients) - NAMED} more" if len(clients) > NAMED else ""
    return f"clients {', '.join(map(str, clients[:NAMED]))}{more} were"
