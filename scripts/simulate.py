"""Federated fine-tuning of one model by many simulated clients: `python scripts/simulate.py [key=value ...]`.

overrides -> checked configuration -> federation on a runtime -> run folder and a table.
"""

import preparation  # noqa: F401

# isort: split
import dataclasses
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmask.runs.command import UNSCORED, asks_for_help, exit_code
from fedmask.runs.config import RunConfig
from server.compose import compose, help_text
from server.overrides import given_twice

if TYPE_CHECKING:
    from flwr.serverapp import Grid


def main(arguments: list[str]) -> int:
    if asks_for_help(arguments):
        print(help_text())
        return 0
    return exit_code(lambda: simulate(compose(arguments), tuple(given_twice(arguments))))


def simulate(config: RunConfig, notes: Sequence[str] = ()) -> int:
    """The run asked for, then each baseline it is to be compared with, in the same process on the same data.

    notes: what is said of the command line once the run is set up. Returns UNSCORED where one of them has no score.
    """
    # Flower, torch and transformers take seconds to import: a mistyped override is told without them.
    from client.process import population
    from fedmask.runs.console import communication_lines, console, left_out_lines, own_mix_table, results_table
    from fedmask.runs.folder import COMPARE, RunFolder, holds_run
    from fedmask.tasks.partition import notes_for
    from server.app import resolved

    config = resolved(config, datetime.now())
    clients = population(config.data, config.clients, config.seed)
    tasks = tuple(dict.fromkeys(client.task.name for client in clients))
    output = Path(str(config.output))
    # Refuses a folder that holds a run, or none where one is to be resumed, before any work is done.
    RunFolder(output, config.overwrite, resume=config.resume is not None)
    of_data = notes_for(clients, config.data.examples_per_client)
    _say_set_up(config, len(clients), tasks, [*notes, *of_data])
    summaries = {config.title: run(config, of_data)}
    for baseline in config.compare:
        folder = output / COMPARE / baseline
        summaries[baseline] = run(
            dataclasses.replace(
                config,
                baseline=baseline,
                compare=(),
                output=str(folder),
                resume=str(folder) if config.resume is not None and holds_run(folder) else None,
            ),
            of_data,
        )
    if config.compare:
        from fedmask.runs.report import write_report

        write_report(output)  # again: the baselines stand in it now
    console.print()
    console.print(results_table(summaries))
    if config.data.partition == "dirichlet":
        console.print(own_mix_table(summaries))
    first = next(iter(summaries.values()))
    for line in [*left_out_lines(first, tasks), *(communication_lines(first) if config.baseline == "none" else [])]:
        console.print(line, markup=False)
    console.print(f"run folder: {output}", markup=False)
    unscored = {name: why for name, summary in summaries.items() if (why := summary.get("unscored"))}
    for name, why in unscored.items():
        print(f"{name}: {why}", file=sys.stderr)
    return UNSCORED if unscored else 0


def run(config: RunConfig, notes: Sequence[str] = ()) -> dict[str, Any]:
    """One federation on its runtime; returns its summary. notes: on its data."""
    from fedmask.runs.console import RunProgress
    from server.app import run_federation

    with _grid(config) as grid, RunProgress(config.title, config.rounds) as progress:
        return run_federation(grid, config, progress, notes)


def _grid(config: RunConfig) -> "AbstractContextManager[Grid]":
    from client.app import app as client_app
    from server.app import num_clients

    if config.runtime == "ray":
        from server.ray_grid import grid_on_ray

        return grid_on_ray(client_app, num_clients(config), config.ray)
    if config.workers > 1:
        from server.worker_grid import WorkerGrid

        return WorkerGrid("client.app:app", num_clients(config), config.workers, config.seed)
    from server.local_grid import LocalGrid

    return nullcontext(LocalGrid(client_app, num_clients(config), config.seed))


def _say_set_up(config: RunConfig, num_clients: int, tasks: tuple[str, ...], notes: Sequence[str]) -> None:
    from fedmask.models import shown_name
    from fedmask.runs.console import console

    model = shown_name(config.model.name, config.model.path)
    weights = " (random weights: its scores mean nothing)" if config.model.weights == "random" else ""
    console.print(
        f"{model}{weights}, mask {config.mask.rule}, {num_clients} clients, {config.rounds} rounds, "
        f"tasks: {', '.join(tasks)}",
        markup=False,
    )
    console.print(f"run folder: {config.output}", markup=False)
    for note in notes:
        console.print(f"note: {note}", style="yellow", markup=False)
    if config.data.partition == "dirichlet" and config.client.head == "local":
        console.print(
            "note: local heads under label skew fit each client's own label mix and fail on the whole split; "
            "look at own_score beside score, or take client.head=shared",
            style="yellow",
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
