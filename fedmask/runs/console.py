"""What a person sees of a run: a progress bar, a line a round, and the table at the end.

Nothing here changes a run. Where the output is no terminal, the bar is left out and the lines remain.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from fedmask.runs.outcome import lost_lines
from fedmask.shown import harmless
from fedmask.wire.ledger import UNKNOWN_CLIENT, Ledger


class _Console(Console):
    """What a line quotes of clients and files cannot steer the terminal."""

    def print(self, *objects: Any, **how: Any) -> None:
        super().print(*(harmless(each) if isinstance(each, str) else each for each in objects), **how)


console = _Console(highlight=False, soft_wrap=True)
if not console.is_terminal:
    console = _Console(highlight=False, soft_wrap=True, width=120)  # a log file has no width of its own to fit into


class RunProgress:
    """One progress bar, and one printed line a round, for the runs of one command."""

    def __init__(self, title: str, num_rounds: int) -> None:
        self._title = title
        self._num_rounds = num_rounds
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._stage = self._bar.add_task(f"{title}, loading", total=None)

    def __enter__(self) -> "RunProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def stage_started(self, server_round: int, stage: str, num_clients: int) -> None:
        where = "sending the mask" if stage == "mask" else f"round {server_round}/{self._num_rounds}: {stage}"
        self._bar.reset(self._stage, total=num_clients, description=f"{self._title}, {where}")

    def reply_arrived(self, client_id: int) -> None:
        self._bar.advance(self._stage)

    def client_failed(self, server_round: int, client_id: int, cause: str, detail: str) -> None:
        who = "a node that was asked nothing" if client_id == UNKNOWN_CLIENT else f"client {client_id}"
        console.print(f"round {server_round}: {who} failed ({cause}): {detail}", style="red", markup=False)

    def resumed(self, after_round: int, resent: Ledger) -> None:
        console.print(
            f"{self._title}: resumed after round {after_round}; sent once more for it, and counted in no figure: "
            f"{resent.total_bytes:,} bytes",
            markup=False,
        )

    def round_ended(self, report: Any) -> None:
        mean = report.scores.mean_score()
        failures = sum(report.failure_causes.values())
        console.print(
            f"{self._title}, round {report.round}/{self._num_rounds}: "
            f"{len(report.cohort)} clients, {failures} failures, "
            f"train loss {_number(report.train_loss)}, validation score {_number(mean)}, {report.seconds:.1f} s",
            markup=False,
        )


def results_table(summaries: Mapping[str, Mapping[str, Any]]) -> Table:
    """Test score by task, one column a run; the first run is the one asked for, the others its baselines."""
    title = "test score by task (mean over the task's clients; worst client in brackets)"
    return _table(title, summaries, "score", "worst_client_score")


def own_mix_table(summaries: Mapping[str, Mapping[str, Any]]) -> Table:
    """Test score weighted to each client's own label mix, beside what needs no model at all."""
    title = (
        "the same on each client's own label mix, for central the pooled one (guessing the majority label in brackets)"
    )
    return _table(title, summaries, "own_score", "own_majority_score")


def _table(title: str, summaries: Mapping[str, Mapping[str, Any]], figure: str, beside: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("task")
    for name in summaries:
        table.add_column(name, justify="right")
    runs = list(summaries.values())
    tasks = sorted(set[str]().union(*(run[figure] for run in runs)))
    for task in tasks:
        table.add_row(
            escape(harmless(task)),
            *[f"{_number(run[figure].get(task))} ({_number(run[beside].get(task))})" for run in runs],
        )
    table.add_section()
    in_all = [task for task in tasks if all(task in run[figure] for run in runs)]
    over = "mean over tasks" if in_all == tasks else f"mean over the {len(in_all)} tasks that all runs have"
    table.add_row(over, *[_number(_mean([run[figure][task] for task in in_all])) for run in runs])
    return table


def left_out_lines(summary: Mapping[str, Any], tasks: Sequence[str]) -> list[str]:
    """What the scores do not cover."""
    lines = lost_lines(summary)
    if number := summary["clients_never_drawn"]:
        lines.append(f"{number} clients were never drawn and are left out of the scores")
    if missing := [task for task in tasks if task not in summary["score"]]:
        lines.append(f"no client of these tasks was scored: {', '.join(missing)}")
    if causes := summary["test_failure_causes"]:
        lines.append(f"failures while scoring on test: {', '.join(f'{cause} x {n}' for cause, n in causes.items())}")
    return lines


def communication_lines(summary: Mapping[str, Any]) -> list[str]:
    """What the run sent, in words."""
    sent = summary["communication"]
    both_ways = sent["uplink_bytes_per_client_round"] + sent["downlink_bytes_per_client_round"]
    full = sent["full_finetuning_bytes_per_client_round"]
    times = f"{full / both_ways:,.0f} times as much" if both_ways else "nothing was sent"
    return [
        f"bytes per client and round: {sent['uplink_bytes_per_client_round']:,.0f} up, "
        f"{sent['downlink_bytes_per_client_round']:,.0f} down; "
        f"once, for the mask: {sent['mask_bytes_per_client']:,.0f}",
        f"full fine-tuning would send {full:,} (projection: fp32, both ways, no framing): {times}",
        f"all messages of this run together: {sent['total_bytes']:,} bytes",
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _mean(scores: Sequence[float]) -> float | None:
    return sum(scores) / len(scores) if scores else None
