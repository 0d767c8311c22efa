"""A study's page, plot and results file, and its table in the README: all made from finished cells, nothing by hand.

In: a study and its finished cells. Out: NAME.md, NAME.svg and NAME.jsonl in a folder of documents, and the text that
stands between `<!-- study NAME -->` and `<!-- end of study NAME -->` in the README. A score is the mean over tasks of
test scores; over several seeds it is their mean, with the standard deviation of one seed, and in brackets the score of
the first seed, to hold against rows that ran with that one alone.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fedmask.errors import FedmaskError
from fedmask.files import write_atomically
from fedmask.runs.markers import replaced_between
from fedmask.runs.study import (
    Finished,
    Row,
    Study,
    asked_for,
    chosen_rates,
    final_results,
    next_cells,
    planned_cells,
    results_text,
    tuning_results,
)

HOW_IT_IS_JUDGED = (
    "Payload: bytes of all vectors, both ways, a client and round. Points lost: mean over the seeds of the differences,"
    " seed against seed, ± its standard error. Met, over three seeds or more: both limits, the loss less one standard"
    " error."
)
SEEDS_TO_JUDGE = 3

Results = Mapping[tuple[str, str], Sequence[Finished]]
"""Final cells, one a seed, by (row, setting)."""


def write_study(
    study: Study, num_seeds: int, finished: Mapping[str, Finished], folder: Path, readme: Path | None
) -> list[Path]:
    """Returns the files written. Raises FedmaskError where the README, if one is given, has no place for the study."""
    from fedmask.runs.study_plot import score_against_bytes

    kept, finished = finished, asked_for(study, num_seeds, finished)
    results = final_results(study, num_seeds, finished)
    if not results:
        raise FedmaskError(f"study {study.name}: no final cell is finished yet; run it first")
    texts = {}
    if readme is not None:
        front = "\n".join(_front(study, num_seeds, results, finished))
        markers = f"<!-- study {study.name} -->", f"<!-- end of study {study.name} -->"
        texts[readme] = replaced_between(readme, *markers, front)
    folder.mkdir(parents=True, exist_ok=True)
    texts |= {
        folder / f"{study.name}.jsonl": results_text(kept),
        folder / f"{study.name}.svg": score_against_bytes(study, results),
        folder / f"{study.name}.md": "\n".join(_page(study, num_seeds, results, finished)),
    }
    for path, text in texts.items():
        write_atomically(path, text.encode())
    return list(texts)


# ----------------------------------------------------------------------------------------------------------------------
# Pages
# ----------------------------------------------------------------------------------------------------------------------


def _front(study: Study, num_seeds: int, results: Results, finished: Mapping[str, Finished]) -> Iterator[str]:
    """What the README shows."""
    yield from score_table(study, results)
    yield ""
    if any(row.against for row in study.rows.values()):
        yield from comparison_table(study, results)
        yield from ("", HOW_IT_IS_JUDGED, "")
    yield f"![score against bytes](docs/studies/{study.name}.svg)"
    yield ""
    yield _made_by(study, num_seeds, finished)


def _page(study: Study, num_seeds: int, results: Results, finished: Mapping[str, Finished]) -> Iterator[str]:
    yield from (f"# Study {study.name}", "", study.question, "")
    yield _made_by(study, num_seeds, finished)
    yield from ("", "Every cell runs with `" + " ".join(study.overrides) + "`, and in its setting with", "")
    for setting in study.settings.values():
        yield f"- ({setting.name}) {setting.title}: `{' '.join(setting.overrides)}`"
    yield from ("", "## Test score", "")
    yield from score_table(study, results)
    if any(row.against for row in study.rows.values()):
        yield from ("", "## Fewer bytes, and what they cost", "")
        yield from comparison_table(study, results)
        yield from ("", HOW_IT_IS_JUDGED)
    yield from ("", "## The same on each client's own label mix", "")
    yield from own_mix_table(study, results)
    yield from ("", "## Bytes a client and round", "")
    yield from bytes_table(study, results)
    yield from ("", f"![score against bytes]({study.name}.svg)", "", "## Rates", "")
    yield from rates_table(study, finished)
    yield from ("", "## Score by task", "")
    yield from task_table(study, results)
    yield ""


def _made_by(study: Study, num_seeds: int, finished: Mapping[str, Finished]) -> str:
    commits = sorted({entry.commit for entry in finished.values()})
    hours = sum(entry.summary["seconds"] for entry in finished.values()) / 3600
    return (
        f"Mean over tasks of the test score; ± the standard deviation over seeds where there are several, in brackets "
        f"the one seed that the rows without ± ran with. Made by "
        f"`python scripts/study.py experiment={study.name} data.root=DIR`, {len(finished)} runs of {hours:.1f} hours "
        f"of wall time together on one thread each, commit {', '.join(commits)}. Rates "
        "were chosen on validation with one seed; the test split was scored once a cell."
        + _what_is_left(study, num_seeds, finished)
    )


def _what_is_left(study: Study, num_seeds: int, finished: Mapping[str, Finished]) -> str:
    if not next_cells(study, num_seeds, finished):
        return ""
    return f" **The study is not finished**: {len(finished)} of {len(planned_cells(study, num_seeds))} runs are."


# ----------------------------------------------------------------------------------------------------------------------
# Tables
# ----------------------------------------------------------------------------------------------------------------------


def score_table(study: Study, results: Results) -> Iterator[str]:
    """Rows against settings; beside, the bytes of a client and round in the setting that most rows have."""
    header = [f"({setting.name}) {setting.title}" for setting in study.settings.values()]
    common = max(study.settings, key=lambda name: sum(setting == name for _, setting in results))
    yield from _head(["", *header, f"bytes a client and round, up + down, on ({common})"])
    for row in study.rows.values():
        cells = [
            _spread([entry.summary["mean_score"] for entry in results.get((row.name, s), ())]) for s in study.settings
        ]
        if any(cells):
            yield _line([row.title, *cells, _bytes_of(row, common, study, results)])


def comparison_table(study: Study, results: Results) -> Iterator[str]:
    """Rows that are held against another: their payload beside its, and the score that was lost, seed against seed.

    How it is judged stands below it.
    """
    yield from _head(["", "against", "payload", "at most", "points lost", "at most", "met"])
    for row in study.rows.values():
        for setting in study.settings if row.against else ():
            if pairs := _pairs(row, setting, results):
                yield _line([row.title, *_compared(study, row, pairs)])


def _pairs(row: Row, setting: str, results: Results) -> list[tuple[Finished, Finished]]:
    """The row's cell and the other row's, of the same seed."""
    assert row.against is not None
    others = {entry.cell.seed: entry for entry in results.get((row.against.row, setting), ())}
    mine = results.get((row.name, setting), ())
    return [(entry, others[entry.cell.seed]) for entry in mine if entry.cell.seed in others]


def _compared(study: Study, row: Row, pairs: Sequence[tuple[Finished, Finished]]) -> Iterator[str]:
    assert row.against is not None
    share = statistics.mean(_payload(entry) / _payload(other) for entry, other in pairs)
    lost = [100 * (other.summary["mean_score"] - entry.summary["mean_score"]) for entry, other in pairs]
    error = statistics.stdev(lost) / len(lost) ** 0.5 if len(lost) > 1 else None
    most_payload, most_points = row.against.most_payload, row.against.most_points
    yield study.rows[row.against.row].title
    yield f"{share:.2%}"
    yield "" if most_payload is None else f"{most_payload:.1%}"
    yield f"{statistics.mean(lost):+.2f}" + ("" if error is None else f" ± {error:.2f}")
    yield "" if most_points is None else f"{most_points:g}"
    if most_payload is None or most_points is None or error is None or len(lost) < SEEDS_TO_JUDGE:
        yield ""
    else:
        yield _met(share <= most_payload and statistics.mean(lost) - error <= most_points)


def _met(is_met: bool) -> str:
    return "yes" if is_met else "**no**"


def _payload(entry: Finished) -> float:
    """Bytes of a client and round, both ways."""
    sent = entry.summary["communication"]
    return float(sent["uplink_payload_bytes_per_client_round"] + sent["downlink_payload_bytes_per_client_round"])


def own_mix_table(study: Study, results: Results) -> Iterator[str]:
    """Scores weighted to each client's own label mix, and what always guessing its majority label gives."""
    yield from _head(["", *(f"({name})" for name in study.settings)])
    guesses: dict[str, str] = {}
    for row in study.rows.values():
        cells = []
        for name in study.settings:
            entries = results.get((row.name, name), ())
            cells.append(_spread([_mean(entry.summary["own_score"]) for entry in entries]))
            if entries and row.name != "central":
                guesses.setdefault(name, _spread([_mean(entry.summary["own_majority_score"]) for entry in entries]))
        if any(cells):
            yield _line([row.title, *cells])
    yield _line(["always the client's majority label", *(guesses.get(name, "") for name in study.settings)])


def bytes_table(study: Study, results: Results) -> Iterator[str]:
    """Measured wire bytes; the last column is a projection."""
    yield from _head(["", *(f"({name}) up / down" for name in study.settings), "mask, once"])
    for row in study.rows.values():
        sent = [
            results[row.name, s][0].summary["communication"] if (row.name, s) in results else None
            for s in study.settings
        ]
        cells = [
            f"{one['uplink_bytes_per_client_round']:,.0f} / {one['downlink_bytes_per_client_round']:,.0f}"
            if one
            else ""
            for one in sent
        ]
        if any(cells):
            mask = next(one["mask_bytes_per_client"] for one in sent if one)
            yield _line([row.title, *cells, f"{mask:,.0f}"])


def rates_table(study: Study, finished: Mapping[str, Finished]) -> Iterator[str]:
    """Every candidate with its score on validation after the last round, and what was chosen."""
    yield from _head(["", "tuned on", "tried: validation score", "chosen"])
    for row in study.rows.values():
        if row.tuning is None:
            continue
        tried = "<br>".join(
            f"{_rates(rates)}: {entry.validation_score:.3f}" for rates, entry in tuning_results(study, row, finished)
        )
        chosen = chosen_rates(study, row, finished)
        yield _line([row.title, f"({row.tuning.setting})", tried, "still open" if chosen is None else _rates(chosen)])


def task_table(study: Study, results: Results) -> Iterator[str]:
    """Mean over seeds of each task's score, the worst client in brackets."""
    tasks = [
        (name, task)
        for name in study.settings
        for task in sorted(
            {task for (_, s), found in results.items() if s == name for task in found[0].summary["score"]}
        )
    ]
    yield from _head(["", *(f"({name}) {task}" for name, task in tasks)])
    for row in study.rows.values():
        cells = []
        for name, task in tasks:
            summaries = [entry.summary for entry in results.get((row.name, name), ())]
            scores, worst = ([one[key].get(task) for one in summaries] for key in ("score", "worst_client_score"))
            known = summaries and None not in scores
            cells.append(f"{statistics.mean(scores):.3f} ({statistics.mean(worst):.3f})" if known else "")
        if any(cells):
            yield _line([row.title, *cells])


def _bytes_of(row: Row, common: str, study: Study, results: Results) -> str:
    """In the common setting, or in the first that the row has, which is then named."""
    setting = next(name for name in (common, *study.settings) if (row.name, name) in results)
    sent = results[row.name, setting][0].summary["communication"]
    told = f"{sent['uplink_bytes_per_client_round']:,.0f} + {sent['downlink_bytes_per_client_round']:,.0f}"
    return told if setting == common else f"{told} on ({setting})"


def _rates(rates: Mapping[str, float]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in rates.items()) or "none to choose"


def _spread(scores: Sequence[float | None]) -> str:
    """Mean; ± the sample standard deviation and the first one, where there are several; empty where there is none."""
    known = [score for score in scores if score is not None]
    if not known:
        return ""
    mean = f"{statistics.mean(known):.3f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.3f} ({known[0]:.3f})"


def _mean(scores: Mapping[str, float]) -> float | None:
    return statistics.mean(scores.values()) if scores else None


def _head(titles: Sequence[str]) -> Iterator[str]:
    yield _line(titles)
    yield _line(["---", *("---:" for _ in titles[1:])])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
