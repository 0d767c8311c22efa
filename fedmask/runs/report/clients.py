"""Every client's score: the spread within each task, the worst and the best, and who is better off than alone.

Scores are those of the last scoring: on the test split, or where a run has none, on validation.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from statistics import median

from fedmask.runs.page import notes, table
from fedmask.runs.plots import line_plot
from fedmask.runs.report.participation import listed
from fedmask.runs.report.run import ClientLine, Run

MAX_LISTED = 20
"""Of a task's clients; of more, half of them from either end are listed."""

MAX_POINTS = 200
"""Of a task's curve."""

_SORTED = "clients of a task, from worst to best (%)"


def every_client(run: Run, baselines: Sequence[Run]) -> str:
    if not run.scores:
        return "<p>No client was scored, or the run is of a version that kept no client's score.</p>"
    alone = _alone(run, baselines)
    tasks = {task: _sorted(run, task) for task in sorted({line.task for line in run.scores})}
    split = run.scores[0].split
    spread = {task: _curve([line.score for line in lines]) for task, lines in tasks.items()}
    plot = line_plot(spread, {}, (_SORTED, f"{split} score"), f"Clients' scores on {split}, sorted, by task")
    by_client = table(_client_columns(run, alone), _client_rows(run, tasks, alone))
    return (
        plot
        + table(_task_columns(alone), [_task_row(task, lines, alone) for task, lines in tasks.items()])
        + notes(_about(run, alone))
        + _gains(tasks, alone)
        + f"<details><summary>client by client</summary>{by_client}</details>"
    )


def _alone(run: Run, baselines: Sequence[Run]) -> Mapping[int, float]:
    """By client_id its score alone, where both were scored on the same split."""
    return {
        line.client: line.score
        for other in baselines
        if other.config.baseline == "alone"
        for line in other.scores
        if line.split == run.scores[0].split
    }


def _sorted(run: Run, task: str) -> list[ClientLine]:
    """A task's clients, the worst first."""
    return sorted((line for line in run.scores if line.task == task), key=lambda line: (line.score, line.client))


def _curve(ascending: Sequence[float]) -> list[tuple[float, float]]:
    """Place among all in percent, and value; of very many an even choice with both ends."""
    last = len(ascending) - 1
    if not last:
        return [(50.0, ascending[0])]
    chosen = sorted({round(step * last / MAX_POINTS) for step in range(MAX_POINTS + 1)})
    return [(100 * place / last, ascending[place]) for place in chosen]


# ----------------------------------------------------------------------------------------------------------------------
# By task
# ----------------------------------------------------------------------------------------------------------------------


def _task_columns(alone: Mapping[int, float]) -> list[str]:
    return [
        "task",
        "clients",
        "worst (client)",
        "median",
        "best (client)",
        *(["better off than alone", "worse off"] if alone else []),
    ]


def _task_row(task: str, lines: Sequence[ClientLine], alone: Mapping[int, float]) -> list[str]:
    worst, best = lines[0], lines[-1]
    row = [
        escape(task),
        f"{len(lines):,}",
        f"{worst.score:.3f}&nbsp;({worst.client})",
        f"{median(line.score for line in lines):.3f}",
        f"{best.score:.3f}&nbsp;({best.client})",
    ]
    gains = _gains_of(lines, alone).values()
    return row + ([f"{sum(gain > 0 for gain in gains):,}", f"{sum(gain < 0 for gain in gains):,}"] if alone else [])


def _gains_of(lines: Sequence[ClientLine], alone: Mapping[int, float]) -> dict[int, float]:
    """By client_id its score less that of the same client alone."""
    return {line.client: line.score - alone[line.client] for line in lines if line.client in alone}


def _gains(tasks: Mapping[str, Sequence[ClientLine]], alone: Mapping[int, float]) -> str:
    """Nothing where the run has no baseline alone."""
    gains = {task: sorted(_gains_of(lines, alone).values()) for task, lines in tasks.items()}
    curves = {task: _curve(ascending) for task, ascending in gains.items() if ascending}
    if not curves:
        return ""
    labels = (_SORTED, "score less score alone")
    return line_plot(curves, {"as well off as alone": 0.0}, labels, "Clients' gains over training alone, sorted")


def _about(run: Run, alone: Mapping[int, float]) -> Iterable[str]:
    line = run.scores[0]
    yield f"On the {line.split} split, after round {line.round}; every client is scored on its task's whole split."
    worse = sorted(client for client, gain in _gains_of(run.scores, alone).items() if gain < 0)
    if worse:
        yield f"Worse off than alone: {len(worse):,} clients{listed(worse)}."
    elif alone:
        yield "No client is worse off than alone."


# ----------------------------------------------------------------------------------------------------------------------
# By client
# ----------------------------------------------------------------------------------------------------------------------


def _client_columns(run: Run, alone: Mapping[int, float]) -> list[str]:
    own_mix = ["own mix"] if run.config.data.partition == "dirichlet" else []
    return ["task", "client", "score", *own_mix, *(["alone"] if alone else []), "training examples"]


def _client_rows(
    run: Run, tasks: Mapping[str, Sequence[ClientLine]], alone: Mapping[int, float]
) -> Iterable[Sequence[str]]:
    has_own_mix = run.config.data.partition == "dirichlet"
    for task, lines in tasks.items():
        end = MAX_LISTED // 2
        worst, best = (lines[:end], lines[-end:]) if len(lines) > MAX_LISTED else (lines, [])
        for line in [*worst, *best]:
            if best and line is best[0]:
                yield [escape(task), f"{len(lines) - MAX_LISTED:,} more in between"]
            yield [
                escape(task),
                str(line.client),
                f"{line.score:.3f}",
                *([f"{line.own_score:.3f}"] if has_own_mix else []),
                *([f"{alone[line.client]:.3f}" if line.client in alone else "-"] if alone else []),
                f"{line.num_examples:,}",
            ]
