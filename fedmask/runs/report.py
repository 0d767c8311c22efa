"""A run's report: a finished run folder in, `report.html` out: one page that loads nothing and links to nothing.

What was run, test scores, validation scores by round and by bytes, bytes by kind and direction, who took part and who
failed, where the mask lies. It is made from the folder alone, so that making it again gives the same bytes. Figures of
a summary.json stand in <data> elements: `value` holds the figure itself, `data-figure` where it comes from, such as
`score.sst2`, or `compare/frozen/score.sst2` for a baseline's.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import Any

from fedmask.errors import FedmaskError
from fedmask.files import write_atomically
from fedmask.runs.config import RunConfig, from_yaml
from fedmask.runs.folder import COMMUNICATION, COMPARE, CONFIG, REPORT, ROUNDS, SUMMARY
from fedmask.runs.page import figure, notes, page, table
from fedmask.runs.plots import NUM_COLOURS, line_plot, stacked_bars
from fedmask.wire.ledger import REJECTED, UNKNOWN_CLIENT, LedgerLine

MAX_GRID_CLIENTS, MAX_GRID_ROUNDS = 60, 200
"""Above either, who took part is shown as counts by round, not client by client."""

_MESSAGES = ("mask", "train", "evaluate", REJECTED)
"""Kinds that are messages; what else is counted travels inside them."""
_OUTSIDE, _OTHER_KINDS = "rest", "all other kinds"


@dataclass(frozen=True)
class _Run:
    """What a finished run's folder says."""

    config: RunConfig
    config_text: str
    rounds: list[dict[str, Any]]
    ledger: list[LedgerLine]
    summary: dict[str, Any]
    prefix: str
    """Before the names of its figures: nothing, or compare/NAME/."""

    @property
    def clients(self) -> list[int]:
        """All client_ids: everyone is sent the mask, or the settings alone, before the first round."""
        return sorted({line.client for line in self.ledger} - {UNKNOWN_CLIENT})

    def figure(self, name: str, form: str) -> str:
        """A figure of the summary by its dotted name, as HTML; a dash where there is none."""
        value: Any = self.summary
        for part in name.split(".", 1):  # a task, cause or tensor may have dots in its own name
            value = value.get(part)
        return figure(self.prefix + name, value, form)


def write_report(folder: Path) -> Path:
    """Write `report.html` into a finished run's folder; the finished baselines in its `compare` folder stand beside it.

    Raises FedmaskError where a file of the folder cannot be read as what it should be; OSError where one is missing.
    """
    run = _read(folder)
    compared = [name for name in run.config.compare if (folder / COMPARE / name / SUMMARY).exists()]
    baselines = [_read(folder / COMPARE / name, f"{COMPARE}/{name}/") for name in compared]
    path = folder / REPORT
    write_atomically(path, _page(run, baselines).encode())
    return path


def _read(folder: Path, prefix: str = "") -> _Run:
    text = (folder / CONFIG).read_text()
    return _Run(
        config=from_yaml(text),
        config_text=text,
        rounds=[_parsed(line, folder / ROUNDS) for line in (folder / ROUNDS).read_text().splitlines()],
        ledger=[
            LedgerLine(**_parsed(line, folder / COMMUNICATION))
            for line in (folder / COMMUNICATION).read_text().splitlines()
        ],
        summary=_parsed((folder / SUMMARY).read_text(), folder / SUMMARY),
        prefix=prefix,
    )


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise FedmaskError(f"{path}: damaged, a line of it is no JSON object; there is no report without it")
    return found


# ----------------------------------------------------------------------------------------------------------------------
# The page
# ----------------------------------------------------------------------------------------------------------------------


def _page(run: _Run, baselines: Sequence[_Run]) -> str:
    sections = {
        "What was run": _what_was_run(run),
        "Test scores": _test_scores(run, baselines),
        "Validation scores": _validation_scores(run),
        "Score against bytes": _score_against_bytes(run, baselines),
        "Bytes by kind and direction": _communication(run),
        "Who took part, who failed": _participation(run),
        "The mask over the layers": _mask_spread(run),
    }
    title = f"{run.summary['model']['name']}, {run.config.title}, mask {run.summary['mask']['rule']}"
    return page(title, _result(run, baselines), sections)


def _result(run: _Run, baselines: Sequence[_Run]) -> str:
    """The result in words."""
    beside = "".join(f", {escape(other.config.title)} {other.figure('mean_score', '.3f')}" for other in baselines)
    score = f"Mean test score over {len(run.summary['score'])} tasks: {run.figure('mean_score', '.3f')}{beside}."
    lines = [score if run.summary["score"] else "No client was scored on the test split."]
    if run.summary["model"]["weights"] == "random":
        lines.append("The base model's weights are random: its scores mean nothing.")
    up, down = (run.figure(f"communication.{way}link_bytes_per_client_round", ",.0f") for way in ("up", "down"))
    lines.append(f"A client sends {up} bytes and receives {down} bytes a round.")
    return "".join(f'<p class="result">{line}</p>\n' for line in [*lines, *_beside_full_finetuning(run)])


def _beside_full_finetuning(run: _Run) -> Iterable[str]:
    """Nothing for a baseline, which sends no vectors."""
    sent = run.summary["communication"]
    both_ways = sent["uplink_bytes_per_client_round"] + sent["downlink_bytes_per_client_round"]
    if run.config.baseline == "none" and both_ways:
        full = run.figure("communication.full_finetuning_bytes_per_client_round", ",")
        times = sent["full_finetuning_bytes_per_client_round"] / both_ways
        shown = f"{times:,.0f}" if times >= 10 else f"{times:.1f}"
        projection = f"projection: {full} bytes, fp32, both ways, no framing"
        yield f"Full fine-tuning would exchange {shown} times as much ({projection})."


def _what_was_run(run: _Run) -> str:
    config, model = run.config, run.summary["model"]
    facts = {
        "base model": f"{escape(model['name'])}, {escape(model['weights'])} weights in {config.model.dtype}, "
        f"{run.figure('model.num_parameters', ',')} parameters",
        "mask": f"{escape(run.summary['mask']['rule'])}, {run.figure('mask.num_selected', ',')} selected entries, "
        f"density {run.figure('mask.density', '.3g')}",
        "clients": f"{len(run.clients)}, {config.clients_per_round or 'all'} of them in a round",
        "rounds": f"{config.rounds}",
        "data": f"{config.data.source}, {config.data.partition} partition, "
        f"{config.data.examples_per_client or 'all'} training examples a client",
        "seed": f"{config.seed}",
        "computed on": f"{escape(config.device)}, {config.threads} CPU threads a process",
        "runtime": escape(config.runtime),
        "time": f"{run.figure('seconds', ',.1f')} seconds",
    }
    details = f"<details><summary>config.yaml, all of it</summary><pre>{escape(run.config_text)}</pre></details>"
    return table([], facts.items(), "facts") + details


# ----------------------------------------------------------------------------------------------------------------------
# Scores
# ----------------------------------------------------------------------------------------------------------------------


def _test_scores(run: _Run, baselines: Sequence[_Run]) -> str:
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


def _about_the_scores(run: _Run, baselines: Sequence[_Run]) -> Iterable[str]:
    yield "A task's score is the mean over its clients, each on the task's whole test split."
    if run.config.data.partition == "dirichlet":
        yield "Own mix: the same, weighted to each client's own label mix; majority label: of always guessing that."
    if run.summary["clients_never_drawn"]:
        yield f"{run.figure('clients_never_drawn', ',')} clients were never drawn and are left out."
    if any(other.summary["score"].keys() != run.summary["score"].keys() for other in baselines):
        yield "The runs have scores of different tasks, and each mean is over its own."


def _validation_scores(run: _Run) -> str:
    by_task: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for line in run.rounds:
        for task, score in line["score"].items():
            by_task[task].append((line["round"], score))
    if not by_task:
        return "<p>No round was scored on the validation split.</p>"
    lines = {task: by_task[task] for task in sorted(by_task)}
    return line_plot(lines, {}, ("round", "validation score"), "Validation score by task and round")


def _score_against_bytes(run: _Run, baselines: Sequence[_Run]) -> str:
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
    return plot + notes(_about_the_last_round(run))


def _about_the_last_round(run: _Run) -> Iterable[str]:
    if run.config.score_test:
        yield "The last round's bytes contain the scoring on the test split."


def _bytes_so_far(run: _Run) -> list[int]:
    """Wire bytes of all messages up to the end of each round, round 0 first."""
    by_round = [0] * (len(run.rounds) + 1)
    for line in run.ledger:
        by_round[line.round] += line.wire_bytes
    return list(accumulate(by_round))


def _means(run: _Run) -> list[tuple[int, float]]:
    """Round and mean validation score of the rounds that were scored."""
    return [(line["round"], line["mean_score"]) for line in run.rounds if line["mean_score"] is not None]


# ----------------------------------------------------------------------------------------------------------------------
# Communication
# ----------------------------------------------------------------------------------------------------------------------


def _communication(run: _Run) -> str:
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


def _about_the_bytes(run: _Run) -> Iterable[str]:
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
    yield from _about_the_last_round(run)


def _bytes_by_round(run: _Run) -> str:
    rounds = range(len(run.rounds) + 1)
    sums: dict[str, dict[str, list[float]]] = {"up": {}, "down": {}}
    for line in run.ledger:
        sums[line.direction].setdefault(line.kind, [0.0] * len(rounds))[line.round] += line.wire_bytes
    ticks, labels = [str(number) for number in rounds], ("round", "wire bytes (← down, up →)")
    return stacked_bars(ticks, sums["up"], sums["down"], labels, "Wire bytes by round, kind and direction", y_unit="B")


# ----------------------------------------------------------------------------------------------------------------------
# Participation
# ----------------------------------------------------------------------------------------------------------------------


def _participation(run: _Run) -> str:
    in_detail = len(run.clients) <= MAX_GRID_CLIENTS and len(run.rounds) <= MAX_GRID_ROUNDS
    drawn = {client for line in run.rounds for client in line["cohort"]}
    never = [client for client in run.clients if client not in drawn]
    not_drawn = f"Clients never drawn: {run.figure('clients_never_drawn', ',')}{_listed(never)}."
    return (_grid(run) if in_detail else _counts(run)) + notes([not_drawn]) + _failures(run)


def _grid(run: _Run) -> str:
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


def _counts(run: _Run) -> str:
    failed = [len(line["failed"]) for line in run.rounds]
    took_part = [len(line["cohort"]) - number for line, number in zip(run.rounds, failed, strict=True)]
    bars = {"took part": took_part, "failed": failed}
    ticks = [str(line["round"]) for line in run.rounds]
    return stacked_bars(ticks, bars, {}, ("round", f"clients, of {len(run.clients)}"), "Clients by round")


def _failures(run: _Run) -> str:
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
    who = f"Clients that failed in a round: {len(failed)}{_listed(failed)}."
    return table(["cause of failure", "in rounds", "scoring on test"], rows) + notes([who])


def _listed(clients: Sequence[int], most: int = 30) -> str:
    """Their ids in brackets; of very many the first."""
    shown = ", ".join(map(str, clients[:most])) + (", ..." if len(clients) > most else "")
    return f" ({shown})" if clients else ""


# ----------------------------------------------------------------------------------------------------------------------
# The mask
# ----------------------------------------------------------------------------------------------------------------------


def _mask_spread(run: _Run) -> str:
    selected: dict[str, int] = run.summary["mask"]["selected_by_tensor"]
    if not selected:
        return "<p>This run trains no entry of the base model, so it has no mask.</p>"
    layers = _layers(selected)
    bars = {kind: [0.0] * len(layers) for kind in _kinds(selected)}
    for name, number in selected.items():
        layer, kind = _place(name)
        bars[kind if kind in bars else _OTHER_KINDS][layers.index(layer)] += number
    labels = ("layer" if _OUTSIDE not in layers else f"layer ({_OUTSIDE}: outside the layers)", "selected entries")
    rows = [
        [escape(name), figure(f"{run.prefix}mask.selected_by_tensor.{name}", number, ",")]
        for name, number in selected.items()
    ]
    plot = stacked_bars(layers, bars, {}, labels, "Selected entries by layer and kind of tensor")
    by_tensor = table(["tensor", "selected entries"], rows)
    return f"{plot}<details><summary>by tensor</summary>{by_tensor}</details>"


def _place(tensor: str) -> tuple[str, str]:
    """Layer and kind: encoder.layer.3.output.dense.bias is of layer 3 and kind output.dense.bias."""
    parts = tensor.split(".")
    at = next((position for position, part in enumerate(parts) if part.isdecimal()), None)
    return (_OUTSIDE, tensor) if at is None else (parts[at], ".".join(parts[at + 1 :]))


def _layers(selected: Iterable[str]) -> list[str]:
    """What lies outside the layers first, where there is any; then every layer up to the last with a selected entry."""
    found = {_place(name)[0] for name in selected}
    numbers = [int(layer) for layer in found - {_OUTSIDE}]
    return [_OUTSIDE] * (_OUTSIDE in found) + [str(number) for number in range(max(numbers, default=-1) + 1)]


def _kinds(selected: Mapping[str, int]) -> list[str]:
    """The kinds with most selected entries, a colour for each; the others, where there are any, share the last."""
    totals: Counter[str] = Counter()
    for name, number in selected.items():
        totals[_place(name)[1]] += number
    kinds = [kind for kind, _ in totals.most_common()]
    return kinds if len(kinds) <= NUM_COLOURS else [*kinds[: NUM_COLOURS - 1], _OTHER_KINDS]
