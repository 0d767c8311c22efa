"""The Flower ServerApp: a configuration -> a federation -> a run folder.

overrides, where Flower starts the app -> configuration
base model -> mask -> strategy (mask out once, rounds, test split) -> adapter and summary
"""

import hashlib
import json
import logging
import os
import secrets
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedmask.errors import FedmaskError
from fedmask.masks import RULES, Mask, MaskRecipe, exact_zeros, select
from fedmask.models import BaseModel, load_base
from fedmask.runs.busy_machine import busy_line
from fedmask.runs.checkpoint import Checkpoint, save_checkpoint
from fedmask.runs.config import ADDED_LATER, ConfigError, RunConfig, config_digest
from fedmask.runs.console import RunProgress, console
from fedmask.runs.folder import RunFolder, default_output
from fedmask.runs.outcome import lost_clients, lost_lines, unscored
from fedmask.runs.registry import VARIABLE, Binding, read_registry
from fedmask.runs.tensorboard import Scalars, check_installed
from fedmask.shown import shown
from fedmask.tasks import load_tasks
from fedmask.training.delta import Delta
from fedmask.training.fitness import check_fitness
from fedmask.training.text import check_length
from fedmask.wire.ledger import Ledger, LedgerLine
from fedmask.wire.projections import full_finetuning_bytes_each_way
from fedmask.wire.setup import Settings
from server.compose import compose
from server.local_grid import LocalGrid
from server.scores import Scores
from server.strategy import MaskedAveraging, Observer, RoundReport

app = ServerApp()

OVERRIDES_KEY = "hydra"
"""The key of Flower's run configuration that carries all overrides in one string."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that `flwr run . --run-config 'hydra="key=value key=value"'` asks for.

    The configuration is composed here and nowhere else: clients are told what they need. Raises FedmaskError.
    """
    config = resolved(_composed(str(context.run_config[OVERRIDES_KEY])), datetime.now())
    with RunProgress(config.title, config.rounds) as progress:
        summary = run_federation(grid, config, progress)
    for line in lost_lines(summary):
        console.print(line, markup=False)
    console.print(f"run folder: {config.output}", markup=False)
    if why := summary.get("unscored"):
        raise FedmaskError(why)


def _composed(overrides: str) -> RunConfig:
    """The configuration of overrides that are written as on a command line."""
    try:
        config = compose(shlex.split(overrides))
    except FedmaskError:
        raise
    except ValueError as error:  # a quote that is not closed
        raise FedmaskError(f"{OVERRIDES_KEY}={shown(overrides)}: {error}") from error
    faults = []
    if config.runtime != "local":
        faults.append(f"runtime={config.runtime}: flwr run brings a runtime of its own; leave it out")
    if config.workers > 1:
        faults.append(f"workers={config.workers}: flwr run says how many clients work at once; leave it out")
    if config.compare:
        faults.append(f"compare={shown(config.compare)}: flwr run runs one federation; run each with baseline=NAME")
    if faults:
        raise ConfigError(faults)
    return config


def resolved(config: RunConfig, now: datetime) -> RunConfig:
    """The configuration with what it leaves open filled in: the run folder, by what is run and when; all task names.

    Raises FedmaskError for a source of tasks that cannot be read.
    """
    output, tasks = config.output or default_output(config, now), config.data.tasks
    if tasks is None and config.data.source != "own":
        tasks = tuple(task.name for task in load_tasks(config.data.source, config.data.root))
    return replace(config, output=output, data=replace(config.data, tasks=tasks))


def run_federation(grid: Grid, config: RunConfig, observer: Observer, notes: Sequence[str] = ()) -> dict[str, Any]:
    """Run all rounds on a grid and leave the run folder; returns the summary. With `resume` all that are not done yet.

    notes: what a person should know of the clients' data, for the summary.

    Raises FedmaskError for anything a person has to mend, before the folder is touched where it can be known by then.
    """
    started = time.perf_counter()
    if config.log.tensorboard:
        check_installed()
    torch.set_num_threads(config.threads)
    assert config.output is not None, "the output folder is resolved before a run starts"
    folder = RunFolder(Path(config.output), config.overwrite, resume=config.resume is not None)
    with folder.held():
        return _run_in(folder, grid, config, observer, notes, started)


def _run_in(
    folder: RunFolder, grid: Grid, config: RunConfig, observer: Observer, notes: Sequence[str], started: float
) -> dict[str, Any]:
    """started: on the clock of `perf_counter`."""
    if config.resume is not None and (summary := folder.finished_before(config.rounds)) is not None:
        return _left_as_it_is(folder, summary)
    model = config.model
    base = load_base(model.name, model.hub, model.path, model.weights, model.geometry, model.dtype)
    check_length(base.encoder, config.data.max_length)
    mask = select_mask(config, base)
    config = with_rate(config, mask)
    unread = check_fitness(base, mask, config.data.max_length)
    if (keep_client_state_in := getattr(grid, "keep_client_state_in", None)) is not None:
        keep_client_state_in(folder.clients)  # a simulation's; real clients have a folder of their own
    ledger = Ledger()
    checkpoint = _begin_or_take_up(folder, config, ledger)
    settings = replace(
        settings_for(config, None if checkpoint is None else checkpoint.state.run_id),
        run_digest=run_digest(config, base, mask),
        inputs_digest=base.inputs_digest,
    )
    scalars = None
    if config.log.tensorboard:
        scalars = Scalars(folder.tensorboard, 0 if checkpoint is None else checkpoint.state.round, ledger.total_bytes)
    recorder = _FolderObserver(
        folder,
        ledger,
        scalars,
        observer,
        started - (0.0 if checkpoint is None else checkpoint.seconds),
        # Elsewhere, and on a GPU, this process waits for work that is not its own.
        config.threads if isinstance(grid, LocalGrid) and config.device == "cpu" else None,
        config_digest(config),
    )
    strategy = MaskedAveraging(
        settings,
        mask,
        config.clients_per_round,
        num_clients(config),
        ledger,
        recorder,
        server=config.server,
        hidden_size=base.hidden_size,
        registry=_registry(),
        score_every=config.score_every,
        score_test=config.score_test,
    )
    try:
        if checkpoint is not None:
            strategy.resume(checkpoint.state)
        strategy.start(grid, strategy.arrays(), config.rounds, timeout=config.server.timeout_seconds)
    except BaseException:
        recorder.close(Scores(()), config.rounds)  # what a stopped run has sent was sent
        folder.abandon()
        raise
    recorder.close(strategy.test_scores, config.rounds)
    if config.baseline == "none" and mask is not None:
        adapter = Delta(strategy.held_delta, _recipe(mask), base.name, base.weights, mask, base.dtype)
        replace(adapter, run=settings.run_digest, max_length=config.data.max_length, heads=strategy.heads).save(
            folder.adapter
        )
    rounds = list(folder.rounds())
    summary = _summary(config, base, mask, unread, strategy.test_scores, ledger) | {
        "run_id": settings.run_id,
        "run_digest": settings.run_digest,
        "clients_never_drawn": strategy.num_never_drawn,
        "left_out": strategy.left_out,
        "lost_clients": lost_clients(rounds),
        "test_failure_causes": strategy.test_failure_causes,
        "notes": list(notes),
        "lost_on_test": {str(client_id): cause for client_id, cause in strategy.lost_on_test.items()},
        "unscored": unscored(config.score_test, strategy.test_scores.mean_score(), strategy.lost_on_test, rounds),
        "seconds": round(recorder.seconds(), 3),
    }
    folder.finish(summary)
    _report(folder)
    return summary


def _registry() -> dict[str, Binding]:
    """Of the server that this process belongs to; empty in a simulation."""
    path = os.environ.get(VARIABLE)
    return {} if path is None else read_registry(Path(path))


def _left_as_it_is(folder: RunFolder, summary: dict[str, Any]) -> dict[str, Any]:
    """The summary of a run that needs no resume."""
    logging.getLogger("fedmask").warning("%s: this run is finished; there is nothing to resume", folder.path)
    if not folder.report.exists():  # killed before it was written
        _report(folder)
    return summary


def _report(folder: RunFolder) -> None:
    from fedmask.runs.report import write_report  # matplotlib: late, so that no error waits for it

    write_report(folder.path)


def _begin_or_take_up(folder: RunFolder, config: RunConfig, ledger: Ledger) -> Checkpoint | None:
    """Make folder and ledger ready for the next round; returns the checkpoint of the last one where one has ended."""
    if config.resume is not None:
        checkpoint = folder.take_up(config)
        if checkpoint is not None:
            ledger.replay(folder.communication())
            return checkpoint
        logging.getLogger("fedmask").warning("%s: no round of this run has ended; it starts over", folder.path)
    folder.begin(config)
    return None


def select_mask(config: RunConfig, base: BaseModel) -> Mask | None:
    """The run's mask; None for the frozen baseline, which trains no entry of the model."""
    if config.baseline == "frozen":
        return None
    rule = config.mask
    return select(
        base.encoder,
        rule=rule.rule,
        density=rule.density,
        scope=rule.scope,
        include=rule.include,
        exclude=rule.exclude,
        embeddings=rule.embeddings,
        key_biases=rule.key_biases,
        seed=rule.seed,
        base_digest=base.digest,
        inputs=base.inputs,
    )


def run_digest(config: RunConfig, base: BaseModel, mask: Mask | None) -> str:
    """16 hex digits of what decides a run's bits, its clients' data apart; of no name, folder, machine or runtime.

    Rounds are left out: a run of more rounds goes through the states of one of fewer.
    """
    server = {
        key: value
        for key, value in asdict(config.server).items()
        # A key that came later is no part of it as long as it says what was so before.
        if key not in _SERVERS_PATIENCE and ADDED_LATER.get(f"server.{key}", ...) != value
    }
    facts = [
        "fedmask-run-1",
        [base.digest, base.inputs_digest, "" if mask is None else mask.digest],
        [asdict(config.client), asdict(config.codec), server, config.mask.rank],
        [config.baseline, config.seed, config.clients, config.clients_per_round],
        [config.data.max_length, config.data.examples_per_client],
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


_SERVERS_PATIENCE = ("min_clients", "min_replies", "max_retries", "timeout_seconds")
"""Keys of `server` that decide whether a run comes to its end, and not what it ends with."""


def with_rate(config: RunConfig, mask: Mask | None) -> RunConfig:
    """The configuration with the rate that the rule has for so many entries, where it names none."""
    rate = RULES[config.mask.rule].rate
    if config.client.learning_rate is not None or mask is None or rate is None:
        return config
    return replace(config, client=replace(config.client, learning_rate=rate(mask.num_selected)))


def settings_for(config: RunConfig, run_id: str | None = None) -> Settings:
    """The part of the configuration that clients are told; a rate is in it. run_id: of the run that is resumed."""
    return Settings(
        model=config.model,
        data=config.data,
        client=config.client,
        codec=config.codec,
        clients=config.clients,
        rank=config.mask.rank or 0,
        baseline=config.baseline,
        seed=config.seed,
        device=config.device,
        threads=config.threads,
        run_id=run_id or secrets.token_hex(8),
    )


def num_clients(config: RunConfig) -> int:
    """Nodes to wait for: one a client, or one a task where a task's data is pooled."""
    if config.baseline == "central":
        assert config.data.tasks is not None, "the task names are resolved before a run starts"
        return len(config.data.tasks)
    return config.clients


def _recipe(mask: Mask) -> MaskRecipe:
    assert mask.recipe is not None, "the server's mask is made by a rule"
    return mask.recipe


def _summary(
    config: RunConfig, base: BaseModel, mask: Mask | None, unread: dict[str, int], scores: Scores, ledger: Ledger
) -> dict[str, Any]:
    """unread: by name, how many selected entries lie in tensors that no text reads."""
    return {
        "baseline": config.baseline,
        "model": {
            "name": base.name,
            "weights": base.weights,
            "dtype": base.dtype,
            "num_parameters": base.num_parameters,
            "digest": base.digest,
            "inputs_digest": base.inputs_digest,
        },
        "mask": {
            "rule": config.mask.rule if mask is not None else "none",
            "num_selected": mask.num_selected if mask is not None else 0,
            "density": mask.density if mask is not None else 0.0,
            "digest": mask.digest if mask is not None else "",
            "selected_by_tensor": {name: len(indices) for name, indices in mask.indices.items()}
            if mask is not None
            else {},
            **_told_zeros(base, mask),
            **({"unread_by_tensor": unread} if unread else {}),
        },
        "score": scores.score(),
        "own_score": scores.own_score(),
        "own_majority_score": scores.majority_score(),
        "worst_client_score": scores.worst_client_score(),
        "mean_score": scores.mean_score(),
        "communication": {
            "mask_bytes_per_client": ledger.mask_bytes_per_client(),
            "uplink_payload_bytes_per_client_round": ledger.payload_bytes_per_client_round("up"),
            "downlink_payload_bytes_per_client_round": ledger.payload_bytes_per_client_round("down"),
            "uplink_bytes_per_client_round": ledger.bytes_per_client_round("up"),
            "downlink_bytes_per_client_round": ledger.bytes_per_client_round("down"),
            "total_bytes": ledger.total_bytes,
            "full_finetuning_bytes_per_client_round": 2 * full_finetuning_bytes_each_way(base.num_parameters),
        },
    }


def _told_zeros(base: BaseModel, mask: Mask | None) -> dict[str, int]:
    """What a rule of smallest magnitude warned of, where it did."""
    if mask is None or mask.recipe is None or not RULES[mask.recipe.rule].tells_zeros:
        return {}
    zeros = sum(exact_zeros(base.encoder, mask).values())
    return {"exact_zeros": zeros} if zeros else {}


@dataclass
class _FolderObserver:
    """Writes rounds, ledger lines, checkpoints and scalars as they come, and passes everything on."""

    folder: RunFolder
    ledger: Ledger
    scalars: Scalars | None
    watching: Observer
    started: float
    """On the clock of `perf_counter`: when the run would have started, had it never stopped."""
    threads: int | None
    """Of this process, where it computes for the clients; None where others do."""
    config_digest: str
    cpu_started: float = field(default_factory=time.process_time)
    """This process's CPU seconds when the round began."""

    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def resumed(self, after_round: int, resent: Ledger) -> None:
        self.folder.add_resume(
            {
                "after_round": after_round,
                "mask_wire_bytes": resent.bytes_of("mask"),
                "vectors_wire_bytes": resent.total_bytes - resent.bytes_of("mask"),
            }
        )
        self.watching.resumed(after_round, resent)

    def stage_started(self, server_round: int, stage: str, num_clients: int) -> None:
        self.watching.stage_started(server_round, stage, num_clients)

    def reply_arrived(self, client_id: int) -> None:
        self.watching.reply_arrived(client_id)

    def client_failed(self, server_round: int, client_id: int, cause: str, detail: str) -> None:
        self.watching.client_failed(server_round, client_id, cause, detail)

    def round_ended(self, report: RoundReport) -> None:
        line = round_line(report, self.ledger)
        self.folder.add_client_scores(report.scores.lines(report.round, "validation"))
        self.folder.add_round(line)
        messages = self._write_ledger()
        if self.scalars is not None:
            self.scalars.add_round(line, messages, report.scores.by_client())
        # After the files whose lengths it tells; before anyone hears that the round has ended.
        seconds, file_bytes = round(self.seconds(), 3), self.folder.file_bytes()
        save_checkpoint(self.folder.checkpoints, Checkpoint(report.state, seconds, file_bytes, self.config_digest))
        self.watching.round_ended(report)
        self._tell_a_busy_machine(report.seconds)

    def _tell_a_busy_machine(self, wall_seconds: float) -> None:
        """Once a run is enough."""
        before, self.cpu_started = self.cpu_started, time.process_time()
        if self.threads is None:
            return
        if (line := busy_line(wall_seconds, self.cpu_started - before, self.threads)) is not None:
            logging.getLogger("fedmask").warning("%s", line)
            self.threads = None

    def close(self, test_scores: Scores, last_round: int) -> None:
        """What came after the last round."""
        self.folder.add_client_scores(test_scores.lines(last_round, "test"))
        self._write_ledger()
        if self.scalars is not None:
            self.scalars.close(test_scores.score(), test_scores.mean_score(), test_scores.by_client())

    def _write_ledger(self) -> list[LedgerLine]:
        """What was written: the ledger's lines since the last time."""
        lines = self.ledger.take_lines()
        self.folder.add_communication(line.as_dict() for line in lines)
        return lines


def round_line(report: RoundReport, ledger: Ledger) -> dict[str, Any]:
    """A round's line of rounds.jsonl; scores on the validation split, bytes of all messages until then."""
    return {
        "round": report.round,
        "clients": len(report.cohort),
        "failures": sum(report.failure_causes.values()),
        "failure_causes": report.failure_causes,
        "failed": list(report.failed),
        "lost": {str(client_id): cause for client_id, cause in report.lost.items()},
        "retries": report.retries,
        "cohort": list(report.cohort),
        "states_lost": list(report.states_lost),
        "train_loss": report.train_loss,
        "score": report.scores.score(),
        "own_score": report.scores.own_score(),
        "mean_score": report.scores.mean_score(),
        "payload_bytes": ledger.total_payload_bytes,
        "wire_bytes": ledger.total_bytes,
        "seconds": round(report.seconds, 3),
    }


class SilentObserver:
    """Watches nothing."""

    def stage_started(self, server_round: int, stage: str, num_clients: int) -> None: ...
    def reply_arrived(self, client_id: int) -> None: ...
    def client_failed(self, server_round: int, client_id: int, cause: str, detail: str) -> None: ...
    def round_ended(self, report: RoundReport) -> None: ...
    def resumed(self, after_round: int, resent: Ledger) -> None: ...
