"""Who took part in which round, and who failed."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fedmask.runs.page import notes, table
from fedmask.runs.plots import stacked_bars
from fedmask.runs.report.run import Run

MAX_GRID_CLIENTS, MAX_GRID_ROUNDS = 60, 200
"""Above either, who took part is shown as counts by round, not client by client."""

MAX_LOST = 30
"""Clients lost in every round that are named one by one."""


def who_took_part(run: Run) -> str:
    in_detail = len(run.clients) <= MAX_GRID_CLIENTS and len(run.rounds) <= MAX_GRID_ROUNDS
    drawn = {client for line in run.rounds for client in line["cohort"]}
    never = [client for client in run.clients if client not in drawn]
    not_drawn = f"Clients never drawn: {run.figure('clients_never_drawn', ',')}{listed(never)}."
    return (_grid(run) if in_detail else _counts(run)) + notes([not_drawn]) + _failures(run) + _lost(run)


def _grid(run: Run) -> str:
    """A row a client, a column a round."""
    rows = [[str(client), *(_mark(client, line) for line in run.rounds)] for client in run.clients]
    key = (
        '<p class="legend"><span class="took">● took part</span> <span class="failed">✕ failed</span> '
        '<span class="absent">· not drawn</span></p>'
    )
    return key + table(["client", *(str(line["round"]) for line in run.rounds)], rows, "grid")


def _mark(client: int, line: Mapping[str, Any]) -> str:
    if client in line["failed"]:
        return '<span class="failed">✕</span>'
    return '<span class="took">●</span>' if client in line["cohort"] else '<span class="absent">·</span>'


def _counts(run: Run) -> str:
    failed = [len(line["failed"]) for line in run.rounds]
    took_part = [len(line["cohort"]) - number for line, number in zip(run.rounds, failed, strict=True)]
    bars = {"took part": took_part, "failed": failed}
    ticks = [str(line["round"]) for line in run.rounds]
    return stacked_bars(ticks, bars, {}, ("round", f"clients, of {len(run.clients)}"), "Clients by round")


def _failures(run: Run) -> str:
    in_rounds: Counter[str] = Counter()
    for line in run.rounds:
        in_rounds.update(line["failure_causes"])
    on_test = run.summary["test_failure_causes"]
    causes = sorted({*in_rounds, *on_test})
    if not causes:
        return "<p>Nothing failed.</p>"
    rows = [
        [escape(cause), f"{in_rounds[cause]:,}", run.figure(f"test_failure_causes.{cause}", ",")] for cause in causes
    ]
    failed = sorted({client for line in run.rounds for client in line["failed"]})
    who = f"Clients that failed in a round: {len(failed)}{listed(failed)}."
    return table(["cause of failure", "in rounds", "scoring on test"], rows) + notes([who])


def _lost(run: Run) -> str:
    """Nothing where every client was of use in some round."""
    lost = run.summary.get("lost_clients", [])
    if not lost:
        return ""
    rows = [[str(one["client"]), f"{one['rounds']:,}", escape(one["cause"])] for one in lost[:MAX_LOST]]
    more = [f"{len(lost) - MAX_LOST:,} more are named in summary.json."] if len(lost) > MAX_LOST else []
    about = "Clients lost in every round that drew them: no update of theirs was accepted, or they could not be scored."
    return notes([about, *more]) + table(["lost client", "rounds", "last cause"], rows, "facts")


def listed(clients: Sequence[int], most: int = 30) -> str:
    """Their ids in brackets; of very many the first."""
    shown = ", ".join(map(str, clients[:most])) + (", ..." if len(clients) > most else "")
    return f" ({shown})" if clients else ""
