"""Run a study, a grid of runs in cells, or rebuild its tables:

    python scripts/study.py experiment=NAME [data.root=DIR] [seeds=3] [jobs=2] [budget_hours=H] [output=DIR]
        [results=FILE] [trust=true]
    python scripts/study.py experiment=NAME report=true [output=DIR] [results=FILE]

NAME is a file of conf/study, or the path of a YAML file like them, with trust=true where it names code to run
(data=python). Each cell is a run folder under DIR, by default
runs/study-NAME; a finished cell is never run again, so the command can be stopped at any moment and given again.
results=FILE takes over the cells of a NAME.jsonl that was written elsewhere. Before it starts it says what it will
cost, and refuses more than the study's own budget_hours unless a larger one is given.
report=true rewrites docs/studies/NAME.md, its plot and results (NAME.jsonl), and the table in the README, from the
finished cells alone; for a file of your own it writes page, plot and results into DIR.
"""

import preparation  # noqa: F401

# isort: split
import json
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from fedmask.errors import FedmaskError
from fedmask.files import locked, write_atomically
from fedmask.processes import end_with_parent
from fedmask.runs.command import asks_for_help, exit_code, own_arguments, switch, usable_path
from fedmask.runs.commit import commit_of
from fedmask.runs.config import RunConfig
from fedmask.runs.folder import REPORT, SUMMARY
from fedmask.runs.study import (
    Cell,
    Finished,
    Study,
    asked_for,
    finished_cell,
    next_cells,
    planned_cells,
    read_results,
    read_study,
)
from fedmask.runs.trust import TRUST, check_trusted
from server.compose import CONF, STUDIES, compose

ROOT = CONF.parent
DOCS = ROOT / "docs" / "studies"
CELL_FILE = "cell.json"
KEYS = ("experiment", "seeds", "jobs", "budget_hours", "output", "results", "report", TRUST)
DATA = "data.root"
"""The one key of a run that is given beside: where data lies is no part of a study."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    study: Study
    is_own: bool
    """Whether the study is a file of the caller's, and none of conf/study."""
    seeds: int
    jobs: int
    budget_hours: float
    output: Path
    results: Path | None
    """Cells that finished elsewhere."""
    report: bool
    is_trusted: bool
    """Whether code may be run that a study of the caller's names."""
    here: tuple[str, ...]
    """Overrides that say where data lies on this machine; they are no part of a cell."""


def main(arguments: list[str]) -> int:
    if not arguments or asks_for_help(arguments):
        print(__doc__)
        return 0 if arguments else 2
    signal.signal(signal.SIGTERM, _interrupt)
    return exit_code(lambda: do(read_request(arguments)), when_stopped="stopped; the same command goes on from here")


def do(request: Request) -> int:
    if request.report:
        return report(request)
    # Two runners of one study would write into the same cells.
    with locked(
        request.output, f"output={request.output}: this study is being run there already; wait, or name another"
    ):
        return run_study(request)


def _interrupt(number: int, frame: object) -> None:
    """Asked to end, as by Ctrl-C: processes end with this one, and finished cells stay."""
    raise KeyboardInterrupt


def read_request(arguments: Sequence[str]) -> Request:
    """Raises FedmaskError for an argument that is unknown or has no sense."""
    own, others = own_arguments(arguments, (*KEYS, DATA), paths=("output", "results", DATA))
    if others:
        raise FedmaskError(f"{others[0]}: unknown; the keys are {', '.join(KEYS)} and {DATA}")
    given = {"seeds": "3", "jobs": "1", "report": "false", TRUST: "false"} | own
    file = _study_file(given.get("experiment", ""))
    study = read_study(file)
    if _whole(own, "seeds", "1") > 1 and not any(row.is_finalist for row in study.rows.values()):
        raise FedmaskError(
            f"seeds={own['seeds']}: study {study.name} has no row with `finalist: true`, and all others run under one "
            "seed; mark the rows that shall run under several, or leave seeds= out"
        )
    return Request(
        study=study,
        is_own=file.parent != STUDIES,
        seeds=_whole(given, "seeds"),
        jobs=_whole(given, "jobs"),
        budget_hours=_hours(given.get("budget_hours", str(study.budget_hours))),
        output=Path(given.get("output") or f"runs/study-{study.name}"),
        results=Path(given["results"]) if given.get("results") else None,
        report=switch(given, "report"),
        is_trusted=switch(given, TRUST),
        here=(f"{DATA}={Path(own[DATA]).resolve()}",) if DATA in own else (),
    )


def _study_file(name: str) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        file = Path(usable_path("experiment", name))
        if not file.is_file():
            raise FedmaskError(f"experiment={name}: there is no such file")
        return file.resolve()
    names = sorted(path.stem for path in STUDIES.glob("*.yaml"))
    if name not in names:
        raise FedmaskError(f"experiment={name}: must be a study of conf/study ({', '.join(names)}) or a .yaml file")
    return STUDIES / f"{name}.yaml"


def _whole(given: Mapping[str, str], key: str, default: str = "") -> int:
    text = given.get(key, default)
    if not text.isdecimal() or int(text) < 1:
        raise FedmaskError(f"{key}={text}: must be a whole number of at least 1")
    return int(text)


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = 0.0
    if not hours > 0:
        raise FedmaskError(f"budget_hours={text}: must be a number above 0")
    return hours


# ----------------------------------------------------------------------------------------------------------------------
# Running
# ----------------------------------------------------------------------------------------------------------------------


def run_study(request: Request) -> int:
    """All cells that are not finished, `jobs` side by side; 0 where none failed."""
    finished = read_finished(request)
    planned = planned_cells(request.study, request.seeds)
    progress = Progress(planned, estimated_seconds(planned, request), request.jobs)
    progress.found(finished.values())
    progress.say_cost(request.study.name)
    if progress.total_seconds > 3600 * request.budget_hours:
        raise FedmaskError(
            f"that is more than budget_hours={request.budget_hours:g}: give a larger one, fewer seeds or fewer rounds"
        )
    failed: dict[str, str] = {}
    with _pool(request.jobs) as pool:
        running: dict[Future[None], Cell] = {}
        while True:
            busy = {cell.name for cell in running.values()}
            open_cells = [
                cell
                for cell in next_cells(request.study, request.seeds, finished)
                if cell.name not in busy | failed.keys()
            ]
            for cell in sorted(open_cells, key=lambda cell: cell.is_final)[: request.jobs - len(running)]:
                running[pool.submit(run_cell, cell, request.output, request.here)] = cell
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell = running.pop(future)
                try:
                    future.result()
                except FedmaskError as error:
                    failed[cell.name] = str(error)
                    continue
                except BrokenProcessPool as error:
                    raise FedmaskError(
                        f"{cell.name}: its process died; if memory ran out, take fewer jobs. The same command goes on"
                    ) from error
                done = _read_cell(request.output / cell.name)
                assert done is not None, "run_cell raises for a run that has no score"
                finished[cell.name] = done
                progress.say_finished(done)
    for name, why in failed.items():
        print(f"{name} failed: {why}", file=sys.stderr)
    return 1 if failed else 0


def run_cell(cell: Cell, output: Path, here: tuple[str, ...]) -> None:
    """One run, in a process of the pool; leaves a finished run folder. Raises FedmaskError where it has no score."""
    from client.app import app as client_app
    from server.app import SilentObserver, num_clients, resolved, run_federation
    from server.local_grid import LocalGrid

    folder = output / cell.name
    config = resolved(compose([*cell.overrides, *here, f"output={folder}", "overwrite=true"]), datetime.now())
    folder.mkdir(exist_ok=True)
    facts = {"row": cell.row, "setting": cell.setting, "seed": cell.seed, "is_final": cell.is_final}
    facts |= {"overrides": list(cell.overrides), "commit": commit_of(ROOT)}
    write_atomically(folder / CELL_FILE, (json.dumps(facts, indent=2) + "\n").encode())
    summary = run_federation(LocalGrid(client_app, num_clients(config), config.seed), config, SilentObserver())
    if summary["unscored"] is not None:
        raise FedmaskError(summary["unscored"])


@contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that keep the base model and the tokenized texts from cell to cell, and end when this one does."""
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), end_with_parent)
    try:
        yield pool
    except BaseException:
        for process in list(
            (pool._processes or {}).values()
        ):  # a cell in the making is lost: it is made anew next time
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


# ----------------------------------------------------------------------------------------------------------------------
# Finished cells
# ----------------------------------------------------------------------------------------------------------------------


def read_finished(request: Request) -> dict[str, Finished]:
    """The finished cells of a study's folder, and those of its results file that the folder lacks, by name."""
    elsewhere = read_results(request.results) if request.results is not None else {}
    folders = [path.parent for path in sorted(request.output.glob(f"*/{CELL_FILE}"))]
    cells = {folder.name: _read_cell(folder) for folder in folders if (folder / SUMMARY).exists()}
    return elsewhere | {name: cell for name, cell in cells.items() if cell is not None}


def _read_cell(folder: Path) -> Finished | None:
    """None for a run that has no score: it is run again. A kill between a run's summary and its report leaves the
    report to be made here.

    Raises FedmaskError for files that are damaged.
    """
    try:
        facts = json.loads((folder / CELL_FILE).read_text())
        summary = json.loads((folder / SUMMARY).read_text())
        if summary.get("unscored"):
            return None
        rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
        messages = [json.loads(line) for line in (folder / "communication.jsonl").read_text().splitlines()]
        finished = finished_cell(facts, summary, rounds, messages)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise FedmaskError(
            f"{folder}: its files are damaged ({error!r}); remove this folder, and the cell is run again"
        ) from error
    if not (folder / REPORT).exists():
        from fedmask.runs.report import write_report

        with suppress(FedmaskError):  # a cell of an older version stays finished, with no page
            write_report(folder)
    return finished


def report(request: Request) -> int:
    """Rewrite the study's page, plot and results, and the tables in the README."""
    from fedmask.runs.study_report import write_study

    folder, readme = (request.output, None) if request.is_own else (DOCS, ROOT / "README.md")
    finished = read_finished(request)
    _check_nothing_lost(request, finished, folder / f"{request.study.name}.jsonl")
    for path in write_study(request.study, request.seeds, finished, folder, readme):
        print(path)
    return 0


def _check_nothing_lost(request: Request, finished: Mapping[str, Finished], results: Path) -> None:
    """Raises FedmaskError where the results that are to be rewritten hold cells that would be gone."""
    if not results.exists():
        return
    known = asked_for(request.study, request.seeds, read_results(results))
    lost = sorted(known.keys() - finished.keys())
    if lost:
        raise FedmaskError(
            f"{results}: holds {len(lost)} finished cells that output={request.output} lacks, {lost[0]} among them; "
            f"give results={results} to keep them, or remove the file"
        )


# ----------------------------------------------------------------------------------------------------------------------
# What it costs
# ----------------------------------------------------------------------------------------------------------------------


def estimated_seconds(cells: Sequence[Cell], request: Request) -> dict[str, float]:
    """CPU seconds by kind of cell: examples to train and to score, times what one of each takes on this machine.

    What an example takes is measured once for every setting and mask, and kept in the study's folder.
    """
    path = request.output / "seconds_per_example.json"
    measured = _measured_before(path)
    seconds = {}
    configs = {cell.kind: (cell, compose([*cell.overrides, *request.here])) for cell in cells}
    for _, config in configs.values():
        check_trusted(config, f"experiment={request.study.name}", request.is_trusted or not request.is_own)
    for cell, config in configs.values():
        work = f"{cell.setting} {config.mask.rule} {config.mask.density}"
        if work not in measured:
            print(f"measuring what an example takes: {work}", flush=True)
            measured[work] = seconds_per_example(config)
            write_atomically(path, json.dumps(measured, indent=2).encode())
        seconds[cell.kind] = _seconds(config, *measured[work])
    return seconds


def _measured_before(path: Path) -> dict[str, tuple[float, float]]:
    """Nothing where the file is damaged: measuring again takes seconds."""
    try:
        measured = json.loads(path.read_text()) if path.exists() else {}
        return {str(work): (float(train), float(encode)) for work, (train, encode) in measured.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def seconds_per_example(config: RunConfig) -> tuple[float, float]:
    """Seconds to train on one example and to encode one: a round of one client of each task, and their validation."""
    import torch

    from client.process import texts_for
    from fedmask.training.delta import SelectedEntries
    from fedmask.training.gradient import SelectedGradient
    from fedmask.training.head import HeadLayout
    from fedmask.training.local import LocalSettings, train_delta_and_head
    from fedmask.training.reparametrisation import Direct
    from fedmask.training.text import encode
    from server.app import select_mask, settings_for

    torch.set_num_threads(config.threads)
    texts = texts_for(settings_for(config))
    mask = select_mask(replace(config, baseline="none"), texts.base)
    assert mask is not None
    entries, start = SelectedEntries(texts.base.encoder, mask), torch.zeros(mask.num_selected)
    gradient = SelectedGradient(texts.base.encoder, entries)
    local = LocalSettings(1, config.client.batch_size, 1e-3, 1e-3, 0.0, batch_seed=0)
    trained = encoded = 0
    training_seconds = encoding_seconds = 0.0
    for client in {client.task.name: client for client in texts.clients}.values():
        layout, tokens = HeadLayout.of(client.task, texts.base.hidden_size), texts.training(client.client_id)
        began = time.process_time()
        head = layout.random_start(0)
        train_delta_and_head(texts.base.encoder, gradient, Direct(start), layout, head, tokens, local)
        training_seconds += time.process_time() - began
        began = time.process_time()
        encode(texts.base.encoder, texts.split(client.task, "validation"))
        encoding_seconds += time.process_time() - began
        trained, encoded = trained + len(tokens), encoded + len(client.task.validation)
    return training_seconds / trained, encoding_seconds / encoded


def _seconds(config: RunConfig, train: float, encode: float) -> float:
    """Of a cell: every training example once an epoch, every split once for all who share its parameters."""
    from client.process import population

    clients = population(config.data, config.clients, config.seed)
    tasks = {client.task.name: client.task for client in clients}.values()
    num_train = sum(client.num_examples for client in clients)
    validation, test = (sum(len(getattr(task, split)) for task in tasks) for split in ("validation", "test"))
    test = test if config.score_test else 0
    if config.baseline == "frozen":  # encodes everything once
        return encode * (num_train + validation + test)
    num_scorings = -(-config.rounds // config.score_every)
    clients_a_task = config.clients / len(tasks) if config.baseline == "alone" else 1
    scored = clients_a_task * (num_scorings * validation + test)
    return train * config.rounds * config.client.local_epochs * num_train + encode * scored


class Progress:
    """Says what a study costs, and with every finished cell what is left of it."""

    def __init__(self, planned: Sequence[Cell], seconds: Mapping[str, float], jobs: int) -> None:
        """seconds: estimated, by kind of cell."""
        self._seconds, self._jobs = seconds, jobs
        self._num_cells = len(planned)
        self.total_seconds = sum(seconds[cell.kind] for cell in planned)
        self._num_done, self._left_seconds = 0, self.total_seconds
        self._estimated_seconds = self._taken_seconds = 0.0

    def found(self, finished: Iterable[Finished]) -> None:
        """Cells of another study, from a results file, are passed over."""
        for entry in finished:
            if entry.cell.kind in self._seconds:
                self._count(entry.cell)

    def say_cost(self, name: str) -> None:
        print(
            f"study {name}: {self._num_cells} cells, about {self.total_seconds / 3600:.2f} CPU-hours on this machine; "
            f"{self._num_done} are finished, about {self._left_seconds / 3600:.2f} CPU-hours are left, "
            f"{self._jobs} side by side",
            flush=True,
        )

    def say_finished(self, entry: Finished) -> None:
        self._count(entry.cell)
        self._estimated_seconds += self._seconds.get(entry.cell.kind, 0.0)
        self._taken_seconds += entry.summary["seconds"]
        pace = self._taken_seconds / self._estimated_seconds if self._estimated_seconds else 1.0
        print(
            f"[{self._num_done}/{self._num_cells}] {entry.cell.name}: validation {entry.validation_score:.3f}, "
            f"{entry.summary['seconds']:.0f} s; about {self._left_seconds * pace / self._jobs / 60:.0f} minutes left",
            flush=True,
        )

    def _count(self, cell: Cell) -> None:
        self._num_done += 1
        self._left_seconds = max(self._left_seconds - self._seconds.get(cell.kind, 0.0), 0.0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
