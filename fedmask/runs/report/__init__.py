"""A run's report: a finished run folder in, `report.html` out: one page that loads nothing and links to nothing.

What was run, test scores, every client's score, training loss and validation scores by round and by bytes, bytes by
kind and direction, who took part and who failed, where the mask lies. It is made from the folder alone, so that making
it again gives the same bytes. Figures of a summary.json stand in <data> elements: `value` holds the figure itself,
`data-figure` where it comes from, such as `score.sst2`, or `compare/frozen/score.sst2` for a baseline's.
"""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from fedmask.files import write_atomically
from fedmask.runs.folder import COMPARE, REPORT, SUMMARY
from fedmask.runs.page import page, table
from fedmask.runs.report.clients import every_client
from fedmask.runs.report.mask_spread import mask_over_layers
from fedmask.runs.report.participation import who_took_part
from fedmask.runs.report.run import Run, read_run
from fedmask.runs.report.scores import score_against_bytes, scores_on_test, training_loss, validation_scores
from fedmask.runs.report.traffic import communication
from fedmask.shown import harmless


def write_report(folder: Path) -> Path:
    """Write `report.html` into a finished run's folder; the finished baselines in its `compare` folder stand beside it.

    Raises FedmaskError where a file of the folder cannot be read as what it should be; OSError where one is missing.
    """
    run = read_run(folder)
    compared = [name for name in run.config.compare if (folder / COMPARE / name / SUMMARY).exists()]
    baselines = [read_run(folder / COMPARE / name, f"{COMPARE}/{name}/") for name in compared]
    path = folder / REPORT
    write_atomically(path, harmless(_page(run, baselines)).encode())
    return path


def _page(run: Run, baselines: Sequence[Run]) -> str:
    sections = {
        "What was run": _what_was_run(run),
        "Test scores": scores_on_test(run, baselines),
        "Every client's score": every_client(run, baselines),
        "Training loss": training_loss(run, baselines),
        "Validation scores": validation_scores(run, baselines),
        "Score against bytes": score_against_bytes(run, baselines),
        "Bytes by kind and direction": communication(run),
        "Who took part, who failed": who_took_part(run),
        "The mask over the layers": mask_over_layers(run),
    }
    title = f"{run.summary['model']['name']}, {run.config.title}, mask {run.summary['mask']['rule']}"
    return page(title, _result(run, baselines), sections)


def _result(run: Run, baselines: Sequence[Run]) -> str:
    """The result in words."""
    beside = "".join(f", {escape(other.config.title)} {other.figure('mean_score', '.3f')}" for other in baselines)
    score = f"Mean test score over {len(run.summary['score'])} tasks: {run.figure('mean_score', '.3f')}{beside}."
    lines = [score if run.summary["score"] else "No client was scored on the test split."]
    if why := run.summary.get("unscored"):
        lines.append(f"This run has no score: {escape(why)}.")
    if run.summary["model"]["weights"] == "random":
        lines.append("The base model's weights are random: its scores mean nothing.")
    up, down = (run.figure(f"communication.{way}link_bytes_per_client_round", ",.0f") for way in ("up", "down"))
    lines.append(f"A client sends {up} bytes and receives {down} bytes a round.")
    return "".join(f'<p class="result">{line}</p>\n' for line in [*lines, *_beside_full_finetuning(run)])


def _beside_full_finetuning(run: Run) -> Iterable[str]:
    """Nothing for a baseline, which sends no vectors."""
    sent = run.summary["communication"]
    both_ways = sent["uplink_bytes_per_client_round"] + sent["downlink_bytes_per_client_round"]
    if run.config.baseline == "none" and both_ways:
        full = run.figure("communication.full_finetuning_bytes_per_client_round", ",")
        times = sent["full_finetuning_bytes_per_client_round"] / both_ways
        shown = f"{times:,.0f}" if times >= 10 else f"{times:.1f}"
        projection = f"projection: {full} bytes, fp32, both ways, no framing"
        yield f"Full fine-tuning would exchange {shown} times as much ({projection})."


def _what_was_run(run: Run) -> str:
    config, model = run.config, run.summary["model"]
    facts = {
        "base model": f"{escape(model['name'])}, {escape(model['weights'])} weights in {config.model.dtype}, "
        f"{run.figure('model.num_parameters', ',')} parameters",
        "mask": f"{escape(run.summary['mask']['rule'])}, {run.figure('mask.num_selected', ',')} selected entries, "
        f"density {run.figure('mask.density', '.3g')}",
        "clients": f"{len(run.clients)}, {config.clients_per_round or 'all'} of them in a round",
        "rounds": f"{config.rounds}",
        "data": f"{config.data.source}, {config.data.partition} partition, "
        f"{_at_most(config.data.examples_per_client)} training examples a client",
        "seed": f"{config.seed}",
        "computed on": f"{escape(config.device)}, {config.threads} CPU threads a process",
        "runtime": escape(config.runtime),
        "time": f"{run.figure('seconds', ',.1f')} seconds",
    }
    details = f"<details><summary>config.yaml, all of it</summary><pre>{escape(run.config_text)}</pre></details>"
    return table([], facts.items(), "facts") + details


def _at_most(number: int | None) -> str:
    return "all" if number is None else f"at most {number}"


# ----------------------------------------------------------------------------------------------------------------------
# Scores
# ----------------------------------------------------------------------------------------------------------------------
