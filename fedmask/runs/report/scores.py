"""Scores of a run and its baselines: on the test split, and by round and bytes; the training loss by round."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from itertools import accumulate

from fedmask.runs.page import notes, table
from fedmask.runs.plots import line_plot
from fedmask.runs.report.run import Run


def scores_on_test(run: Run, baselines: Sequence[Run]) -> str:
    columns = {"score": "score", "worst client": "worst_client_score"}
    if run.config.data.partition == "dirichlet":
        columns |= {"own mix": "own_score", "majority label": "own_majority_score"}
    runs = [run, *baselines]
    tasks = sorted(set[str]().union(*(each.summary["score"] for each in runs)))
    if not tasks:
        return "<p>No client was scored on the test split.</p>"
    head = ["task", *(title for each in runs for title in (escape(each.config.title), *list(columns)[1:]))]
    rows = [
        [escape(task), *(each.figure(f"{key}.{task}", ".3f") for each in runs for key in columns.values())]
        for task in tasks
    ]
    blank = [""] * (len(columns) - 1)
    rows.append(["mean over tasks", *(cell for each in runs for cell in (each.figure("mean_score", ".3f"), *blank))])
    return table(head, rows) + notes(_about_the_scores(run, baselines))


def _about_the_scores(run: Run, baselines: Sequence[Run]) -> Iterable[str]:
    yield "A task's score is the mean over its clients, each on the task's whole test split."
    if run.config.data.partition == "dirichlet":
        yield "Own mix: the same, weighted to each client's own label mix; majority label: of always guessing that."
    if run.summary["clients_never_drawn"]:
        yield f"{run.figure('clients_never_drawn', ',')} clients were never drawn and are left out."
    if any(other.summary["score"].keys() != run.summary["score"].keys() for other in baselines):
        yield "The runs have scores of different tasks, and each mean is over its own."


def training_loss(run: Run, baselines: Sequence[Run]) -> str:
    lines = {
        each.config.title: [(line["round"], line["train_loss"]) for line in each.rounds] for each in (run, *baselines)
    }
    plot = line_plot(lines, {}, ("round", "training loss"), "Training loss by round")
    about = "The mean over the round's clients, weighted by their examples, while they train."
    return plot + notes([about])


def validation_scores(run: Run, baselines: Sequence[Run]) -> str:
    by_task: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for line in run.rounds:
        for task, score in line["score"].items():
            by_task[task].append((line["round"], score))
    if not by_task:
        return "<p>No round was scored on the validation split.</p>"
    lines = {task: by_task[task] for task in sorted(by_task)}
    plot = line_plot(lines, {}, ("round", "validation score"), "Validation score by task and round")
    return plot + _beside_baselines(run, baselines)


def _beside_baselines(run: Run, baselines: Sequence[Run]) -> str:
    """Nothing where there is no baseline to stand beside."""
    curves = {each.config.title: _means(each) for each in (run, *baselines) if _means(each)}
    if len(curves) < 2:
        return ""
    labels = ("round", "validation score, mean over tasks")
    return line_plot(curves, {}, labels, "Validation score by round, beside the baselines")


def score_against_bytes(run: Run, baselines: Sequence[Run]) -> str:
    if run.config.baseline != "none":
        return "<p>A baseline sends no vectors.</p>"
    sent = _bytes_so_far(run)
    points = [(sent[server_round], score) for server_round, score in _means(run)]
    if not points:
        return "<p>No round was scored on the validation split.</p>"
    last = {other.config.title: _means(other)[-1][1] for other in baselines if _means(other)}
    levels = {f"{title} in its last round, {score:.3f}; sends no vectors": score for title, score in last.items()}
    labels = ("wire bytes so far, all clients, both ways", "validation score, mean over tasks")
    plot = line_plot(
        {run.config.title: points}, levels, labels, "Validation score against cumulative wire bytes", x_unit="B"
    )
    return plot + notes(about_the_last_round(run))


def about_the_last_round(run: Run) -> Iterable[str]:
    if run.config.score_test:
        yield "The last round's bytes contain the scoring on the test split."


def _bytes_so_far(run: Run) -> list[int]:
    """Wire bytes of all messages up to the end of each round, round 0 first."""
    by_round = [0] * (len(run.rounds) + 1)
    for line in run.ledger:
        by_round[line.round] += line.wire_bytes
    return list(accumulate(by_round))


def _means(run: Run) -> list[tuple[int, float]]:
    """Round and mean validation score of the rounds that were scored."""
    return [(line["round"], line["mean_score"]) for line in run.rounds if line["mean_score"] is not None]
