"""A run that was stopped, by an exception or a kill at any moment, ends as if it had never stopped.

A killed run is a process forked from this one, so that it starts at once. Some of the kills come while a checkpoint or
a client's state is being written: half of it is on the disk then.
"""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from flwr.app import Context, Message
from safetensors.torch import load_file, save_file

import client.process
import measure_communication
import merge
import simulate
import study
from client.app import app as client_app
from faults.dying import die_in_write
from faults.left import left_by
from faults.malformed import rewrite
from fedmask.errors import ConfigError, FedmaskError
from fedmask.models import BaseModel, load_base
from fedmask.runs.checkpoint import load_checkpoint
from fedmask.runs.config import RunConfig, to_dict
from fedmask.sealed_file import read_sealed, write_sealed
from fedmask.wire.messages import facts_of
from server.app import select_mask, with_rate
from server.compose import compose

Run = Any
Federate = Callable[..., Run]

MODES = {
    "local heads": ("rounds=3",),
    "shared heads": ("rounds=3", "client.head=shared", "clients_per_round=3", "score_every=2"),
    "alone": ("rounds=3", "baseline=alone"),
    "few bytes": ("rounds=3", "client.head=shared", "clients_per_round=3", "codec=sign", "codec.rotate=2"),
}


class StoppedError(Exception):
    """A stand-in for whatever ends a run."""


class StoppingWatcher:
    """Ends the run after a round, or when the scoring on the test split begins."""

    def __init__(self, after_round: int | None) -> None:
        self._after_round = after_round

    def stage_started(self, server_round: int, stage: str, num_clients: int) -> None:
        if self._after_round is None and stage == "scoring on test":
            raise StoppedError

    def round_ended(self, report: Any) -> None:
        if report.round == self._after_round:
            raise StoppedError

    def reply_arrived(self, client_id: int) -> None: ...
    def client_failed(self, server_round: int, client_id: int, cause: str, detail: str) -> None: ...
    def resumed(self, after_round: int, resent: Any) -> None: ...


def in_a_new_process() -> None:
    """What this process holds for a run's clients is gone, as it is when a new one resumes."""
    client.process._run_in_process.cache_clear()
    client.process.population.cache_clear()


@pytest.fixture(scope="module")
def undisturbed(federate: Federate) -> Callable[[str], Run]:
    runs: dict[str, Run] = {}

    def run(mode: str) -> Run:
        return runs.setdefault(mode, federate(*MODES[mode])) if mode not in runs else runs[mode]

    return run


# ----------------------------------------------------------------------------------------------------------------------
# Stopped by an exception
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("after_round", [1, 2, 3, None])
def test_a_run_that_is_stopped_after_a_round_ends_as_if_it_had_not_been(
    mode: str, after_round: int | None, federate: Federate, undisturbed: Callable[[str], Run], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    with pytest.raises(StoppedError):
        federate(*MODES[mode], output=output, watcher=StoppingWatcher(after_round))
    done = 3 if after_round is None else after_round
    assert len((output / "rounds.jsonl").read_text().splitlines()) == done
    checkpoint = load_checkpoint(output / "checkpoints")
    assert checkpoint is not None
    in_a_new_process()
    run = federate(*MODES[mode], output=output, resume=True)
    assert left_by(output) == left_by(undisturbed(mode).folder)
    assert [report.round for report in run.watched.reports] == list(range(done + 1, 4))
    (line,) = [json.loads(line) for line in (output / "resumes.jsonl").read_text().splitlines()]
    assert line["after_round"] == done
    assert line["mask_wire_bytes"] == sum(line["wire_bytes"] for line in run.ledger if line["kind"] == "mask")
    # What a process held when it ended is handed over: scoring has brought it, and training would not bring it again.
    scored = done > 1 or "score_every=2" not in MODES[mode]
    assert any(record.held_version == done for record in checkpoint.state.clients.values()) == scored
    assert (line["vectors_wire_bytes"] > 0) == (scored and mode != "alone")
    assert run.watched.resumes == [(done, line["mask_wire_bytes"] + line["vectors_wire_bytes"])]


def test_the_run_keeps_its_name_and_says_how_long_it_took_in_all(federate: Federate, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        federate(output=tmp_path / "run", watcher=StoppingWatcher(1))
    before = load_checkpoint(tmp_path / "run" / "checkpoints")
    assert before is not None
    in_a_new_process()
    run = federate(output=tmp_path / "run", resume=True)
    assert run.summary["run_id"] == before.state.run_id
    assert run.summary["seconds"] > before.seconds


def test_a_round_that_was_half_done_leaves_no_trace(
    federate: Federate, undisturbed: Callable[[str], Run], tmp_path: Path
) -> None:
    def app(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if (message.metadata.message_type, context.node_config["partition-id"]) == ("train", 2) and is_second(message):
            raise KeyboardInterrupt  # after the client has kept its state
        return reply

    def is_second(message: Message) -> bool:
        return facts_of(message.content)["round"] == 2

    output = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        federate(*MODES["local heads"], app=app, output=output)
    written = (output / "communication.jsonl").read_text().splitlines()
    assert json.loads(written[-1])["round"] == 2  # what was sent is told, until the round is done again
    assert (output / "clients" / "client-00002" / "state" / "round-00002.safetensors").exists()
    in_a_new_process()
    federate(*MODES["local heads"], output=output, resume=True)
    assert left_by(output) == left_by(undisturbed("local heads").folder)


@pytest.mark.parametrize("mode", MODES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_gives_the_same_run(
    mode: str,
    federate: Federate,
    undisturbed: Callable[[str], Run],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    output = tmp_path / "run"
    with pytest.raises(StoppedError):
        federate(*MODES[mode], output=output, watcher=StoppingWatcher(2))
    last = output / "checkpoints" / "round-00002.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    in_a_new_process()
    run = federate(*MODES[mode], output=output, resume=True)
    (line,) = caplog.messages
    assert line.startswith(f"{last}: damaged (")
    assert [report.round for report in run.watched.reports] == [2, 3]
    assert left_by(output) == left_by(undisturbed(mode).folder)


# ----------------------------------------------------------------------------------------------------------------------
# Killed
# ----------------------------------------------------------------------------------------------------------------------


def in_a_fork(work: Callable[[], object], seconds: float = 300) -> int:
    """How a process that does this ended; it is killed after so many seconds, which are none too few by default."""
    in_a_new_process()
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(seconds)
    if process.is_alive():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


Kill = tuple[str, int] | None
"""At which write of what; None: at a random moment."""


@pytest.mark.parametrize(
    ("mode", "kills"),
    [
        ("local heads", [("checkpoints/", 1), ("checkpoints/", 2), ("/state/", 7), None, None]),
        ("shared heads", [("checkpoints/", 1), ("checkpoints/", 3), ("checkpoints/", 1), None, None]),
        ("alone", [("checkpoints/", 2), ("/state/", 6), ("adapter.safetensors", 1), ("checkpoints/", 1), None]),
    ],
)
def test_a_run_that_is_killed_five_times_ends_as_if_it_had_not_been(
    mode: str,
    kills: list[Kill],
    federate: Federate,
    undisturbed: Callable[[str], Run],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings, output, moments = (*MODES[mode], "rounds=5"), tmp_path / "run", random.Random(mode)
    expected, started = tmp_path / "undisturbed", time.monotonic()
    assert in_a_fork(lambda: federate(*settings, output=expected)) == 0
    whole_seconds = time.monotonic() - started

    def go_on() -> Run:
        return federate(*settings, output=output, resume=(output / "config.yaml").exists())

    for kill in kills:
        if kill is None:  # the machine may be fast enough to have finished
            ended = in_a_fork(go_on, moments.uniform(0, 0.5) * whole_seconds)
            assert ended == -signal.SIGKILL or (output / "summary.json").exists()
        else:
            assert in_a_fork(lambda at=kill: die_in_write(go_on, *at)) == -signal.SIGKILL  # type: ignore[misc]
        load_checkpoint(output / "checkpoints")  # warns of a damaged one
    in_a_new_process()
    go_on()
    assert [line for line in caplog.messages if "damaged" in line] == []
    assert left_by(output) == left_by(expected)


# ----------------------------------------------------------------------------------------------------------------------
# A client's state
# ----------------------------------------------------------------------------------------------------------------------


def state_file(folder: Path, client_id: int, server_round: int) -> Path:
    return folder / "clients" / f"client-{client_id:05d}" / "state" / f"round-{server_round:05d}.safetensors"


@pytest.mark.parametrize("how", ["gone", "damaged", "of another run"])
def test_a_client_state_that_is_lost_is_said_counted_and_made_anew(
    how: str, federate: Federate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "run"
    with pytest.raises(StoppedError):
        federate("rounds=3", output=output, watcher=StoppingWatcher(2))
    path = state_file(output, 1, 2)
    if how == "gone":
        path.unlink()
    elif how == "damaged":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        facts, vectors = read_sealed(path, "client-state")
        write_sealed(path, "client-state", vectors, facts | {"run_id": "f" * 16})
    in_a_new_process()
    run = federate("rounds=3", output=output, resume=True)
    assert [line["states_lost"] for line in run.rounds] == [[], [], [1]]
    assert [line["failures"] for line in run.rounds] == [0, 0, 0]
    (line,) = caplog.messages
    assert line.startswith("round 3: client 1 has begun anew: client 1: ")
    assert str(path) in line


@pytest.mark.parametrize("baseline", ["none", "alone"])
def test_a_client_whose_reply_was_rejected_is_not_ahead(
    baseline: str, federate: Federate, filtering_grid: Callable[..., Any]
) -> None:
    """Its training in round 2 counts for nothing: it ends as one that was never asked then."""

    def rejected(client_id: int, request: Message, reply: Message) -> Message:
        if (client_id, request.metadata.message_type) == (1, "train") and facts_of(request.content)["round"] == 2:
            rewrite(reply, facts=facts_of(reply.content) | {"num-examples": -1})
        return reply

    def unasked(client_id: int, request: Message, reply: Message) -> Message:
        return reply

    def app(message: Message, context: Context) -> Message:
        is_train = message.metadata.message_type == "train" and context.node_config["partition-id"] == 1
        if is_train and facts_of(message.content)["round"] == 2:
            raise RuntimeError("not asked")
        return client_app(message, context)

    settings = ("rounds=3", f"baseline={baseline}")
    ahead = federate(*settings, grid=filtering_grid(rejected))
    never = federate(*settings, app=app, grid=filtering_grid(unasked))
    assert ahead.rounds[1]["failure_causes"] == {"bad-num-examples": 1}
    assert ahead.heads == never.heads
    assert [line["score"] for line in ahead.rounds] == [line["score"] for line in never.rounds]
    assert ahead.summary["score"] == never.summary["score"]
    found = state_file(ahead.folder, 1, 2), state_file(ahead.folder, 1, 3)
    assert [path.exists() for path in found] == [False, True]


# ----------------------------------------------------------------------------------------------------------------------
# What is not resumed
# ----------------------------------------------------------------------------------------------------------------------


def test_resuming_a_finished_run_changes_nothing_and_says_so(
    federate: Federate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "run"
    finished = federate(output=output)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    again = federate(output=output, resume=True)
    assert again.summary == finished.summary
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    assert caplog.messages == [f"{output}: this run is finished; there is nothing to resume"]
    assert again.watched.stages == []
    (output / "report.html").unlink()  # a kill came just before it was written
    federate(output=output, resume=True)
    assert (output / "report.html").read_bytes() == before[output / "report.html"]


def test_a_run_is_not_resumed_with_another_tokenizer_but_from_an_older_checkpoint_it_is(
    federate: Federate, undisturbed: Callable[[str], Run], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    with pytest.raises(StoppedError):
        federate(*MODES["local heads"], output=output, watcher=StoppingWatcher(2))
    last = output / "checkpoints" / "round-00002.safetensors"
    facts, vectors = read_sealed(last, "checkpoint")
    in_a_new_process()
    write_sealed(last, "checkpoint", vectors, facts | {"inputs_digest": "0" * 64})
    with pytest.raises(FedmaskError) as caught:
        federate(*MODES["local heads"], output=output, resume=True)
    assert str(caught.value) == (
        "the run was begun with a base model of another tokenizer or other settings (inputs digest 000000000000, "
        f"this one's is {facts['inputs_digest'][:12]}); resume it where its base model is"
    )
    del facts["inputs_digest"]
    write_sealed(last, "checkpoint", vectors, facts)
    in_a_new_process()
    federate(*MODES["local heads"], output=output, resume=True)
    assert (output / "adapter.safetensors").read_bytes() == undisturbed("local heads").adapter


def test_a_run_is_not_resumed_on_weights_that_leave_its_mask_as_it_is(
    federate: Federate, tiny: BaseModel, tmp_path: Path
) -> None:
    base_folder = tmp_path / "base"
    tiny.encoder.save_pretrained(base_folder)  # type: ignore[operator]
    tiny.tokenizer.save_pretrained(base_folder)
    output, model = tmp_path / "run", [f"model.path={base_folder}", "model.weights=pretrained"]
    with pytest.raises(StoppedError):
        federate(*model, output=output, watcher=StoppingWatcher(1))
    weights = load_file(base_folder / "model.safetensors")
    weights["embeddings.LayerNorm.weight"] *= 2
    save_file(weights, base_folder / "model.safetensors", {"format": "pt"})
    in_a_new_process()
    with pytest.raises(FedmaskError, match=r"^the run was begun with other weights of the base model, or its"):
        federate(*model, output=output, resume=True)


def test_a_configuration_that_was_edited_after_its_run_began_is_told(federate: Federate, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(StoppedError):
        federate(output=output, watcher=StoppingWatcher(1))
    in_a_new_process()
    with pytest.raises(FedmaskError, match=r"or its config\.yaml has been edited since"):
        federate("client.local_epochs=2", output=output, resume=True)


def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew(federate: Federate, tmp_path: Path) -> None:
    output = tmp_path / "run"
    federate(output=output)
    before = {
        path: path.read_bytes() for path in output.rglob("*") if path.is_file() and "checkpoints" not in path.parts
    }
    shutil.rmtree(output / "checkpoints")
    in_a_new_process()
    with pytest.raises(
        FedmaskError, match="checkpoints: there is no checkpoint of a run that has finished rounds; put"
    ):
        federate("rounds=3", output=output, resume=True)
    assert {path: path.read_bytes() for path in before} == before


def test_before_the_first_checkpoint_a_run_starts_over_and_says_so(
    federate: Federate, undisturbed: Callable[[str], Run], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "run"
    settings = MODES["local heads"]
    assert in_a_fork(lambda: die_in_write(lambda: federate(*settings, output=output), "checkpoints/", 1)) < 0
    assert len((output / "rounds.jsonl").read_text().splitlines()) == 1
    in_a_new_process()
    federate(*settings, output=output, resume=True)
    assert caplog.messages == [f"{output}: no round of this run has ended; it starts over"]
    assert left_by(output) == left_by(undisturbed("local heads").folder)


def test_where_no_checkpoint_is_whole_it_is_one_line_and_nothing_is_touched(federate: Federate, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(StoppedError):
        federate(output=output, watcher=StoppingWatcher(2))
    for path in (output / "checkpoints").iterdir():
        path.write_bytes(b"")
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    with pytest.raises(FedmaskError, match=r"^no checkpoint can be used: .*start again with overwrite=true$"):
        federate(output=output, resume=True)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_a_file_that_is_shorter_than_its_checkpoint_says_is_told(federate: Federate, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(StoppedError):
        federate(output=output, watcher=StoppingWatcher(1))
    (output / "rounds.jsonl").write_text("")
    with pytest.raises(FedmaskError, match=r"rounds.jsonl: has 0 bytes, the checkpoint is of a run whose rounds.jsonl"):
        federate(output=output, resume=True)


def test_other_data_and_another_base_model_are_told(federate: Federate, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(StoppedError):
        federate(output=output, watcher=StoppingWatcher(1))
    as_it_was = (output / "config.yaml").read_text()
    with pytest.raises(FedmaskError, match=r"^client 0 is not what it was when the run stopped: it was task first, "):
        federate('data.tasks=["small:second","small:first"]', output=output, resume=True)
    (output / "config.yaml").write_text(as_it_was)
    with pytest.raises(FedmaskError, match=r"^the run was begun with mask [0-9a-f]{64}, this machine's base model and"):
        federate("mask.density=0.02", output=output, resume=True)
    (output / "config.yaml").write_text(as_it_was)
    in_a_new_process()
    assert len(federate(output=output, resume=True).rounds) == 2


class NosyWatcher(StoppingWatcher):
    """While a run goes on, somebody resumes it, replaces it, and replaces the run whose baseline it is."""

    def __init__(self, federate: Federate, output: Path) -> None:
        super().__init__(after_round=1)
        self._federate, self._output = federate, output
        self.refusals: list[str] = []

    def round_ended(self, report: Any) -> None:
        whole = self._output.parent.parent
        for output, more in ((self._output, {"resume": True}), (self._output, {}), (whole, {})):
            overwrite = () if more else ("overwrite=true",)
            with pytest.raises(FedmaskError) as caught:
                self._federate(*overwrite, output=output, **more)
            self.refusals.append(str(caught.value))
        super().round_ended(report)


def test_two_processes_never_run_in_one_folder(federate: Federate, tmp_path: Path) -> None:
    whole = federate("rounds=1", output=tmp_path / "run")
    output = whole.folder / "compare" / "frozen"
    watcher = NosyWatcher(federate, output)
    with pytest.raises(StoppedError):
        federate("baseline=frozen", output=output, watcher=watcher)
    line = f"{output}: another process is running in this folder; wait for its end, or name another"
    assert watcher.refusals == [line] * 3
    assert (whole.folder / "summary.json").exists()
    federate("baseline=frozen", output=output, resume=True)  # whoever has ended holds nothing


@pytest.mark.parametrize("is_new_process", [True, False])  # the other as in a notebook
@pytest.mark.parametrize("file", ["train", "validation", "test"])
def test_rows_that_have_changed_under_their_tasks_name_are_told(
    file: str, is_new_process: bool, federate: Federate, tmp_path: Path
) -> None:
    data, output = tmp_path / "data" / "only", tmp_path / "run"
    data.mkdir(parents=True)
    rows = "".join(f"text {row}\t{row % 2}\n" for row in range(40))
    for split in ("train", "validation", "test"):
        (data / f"{split}.tsv").write_text(f"text_a\tlabel\n{rows}")
    settings = ("data=tsv", f"data.root={data.parent}", "data.tasks=[only]", "data.examples_per_client=null")
    with pytest.raises(StoppedError):
        federate(*settings, output=output, watcher=StoppingWatcher(1))
    path = data / f"{file}.tsv"
    path.write_text(path.read_text().replace("text 7\t1", "text 7\t0"))
    if is_new_process:
        in_a_new_process()
    with pytest.raises(FedmaskError) as caught:
        federate(*settings, output=output, resume=True)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith("; resume with the data that the run was begun with")
    assert re.search("client [0-3] is not what it was when the run stopped: it was task only, .* data ", message)
    path.write_text(path.read_text().replace("text 7\t0", "text 7\t1"))
    if is_new_process:
        in_a_new_process()
    assert len(federate(*settings, output=output, resume=True).rounds) == 2


# ----------------------------------------------------------------------------------------------------------------------
# The configuration of a resumed run
# ----------------------------------------------------------------------------------------------------------------------


def test_a_resumed_run_has_the_configuration_that_it_was_begun_with(federate: Federate, tmp_path: Path) -> None:
    run = federate("rounds=1", "client.batch_size=3", output=tmp_path / "run")
    config = compose([f"resume={run.folder}", "trust=true"])
    assert (config.rounds, config.client.batch_size, config.resume) == (1, 3, str(run.folder))
    assert config.output == str(run.folder)
    same = ["rounds=1", "model=tiny", "data=python", "data.tasks=null", "threads=null", "mask.density=0.01"]
    link = tmp_path / "link"
    link.symlink_to(run.folder)
    assert compose([f"resume={run.folder}", "trust=true", *same, f"output={link}"]) == config


def test_a_resumed_run_keeps_its_rate(federate: Federate, tmp_path: Path) -> None:
    # The rate by the number of entries is in the file, as in one from before there was such a rate.
    run = federate(output=tmp_path / "run")
    saved = run.folder / "config.yaml"
    rate = run.config.client.learning_rate
    for overrides in ([], ["client.learning_rate=null"], ["client=default", "client.batch_size=5"]):
        assert compose([f"resume={run.folder}", "trust=true", *overrides]).client.learning_rate == rate
    saved.write_text(saved.read_text().replace(f"learning_rate: {rate}\n", "learning_rate: 0.03\n"))
    older = compose([f"resume={run.folder}", "trust=true"])
    assert older.client.learning_rate == 0.03
    assert with_rate(older, select_mask(older, load_base(**asdict(older.model)))) == older


def test_each_override_that_differs_is_told_and_all_at_once(federate: Federate, tmp_path: Path) -> None:
    run = federate("rounds=1", output=tmp_path / "run")
    given = ["rounds=9", "mask=hiwi", "output=elsewhere", "client.head=local", "sed=1", "seed=x", "runtime=ray"]
    with pytest.raises(FedmaskError) as caught:
        compose([f"resume={run.folder}", "trust=true", *given])
    assert sorted(str(caught.value).splitlines()) == sorted(
        [
            "sed=1: no such key; did you mean seed?",
            "seed=x: must be a whole number of at least 0",
            "runtime=ray: the run to resume has runtime=local; leave it out",
            f"output=elsewhere: the run to resume has output={run.folder}; leave it out",
            "mask.rule=hiwi: the run to resume has mask.rule=pafi; leave it out",
            "mask.rank=4: the run to resume has mask.rank=null; leave it out",
        ]
    )


def test_how_many_clients_a_resume_needs_may_be_told_anew(federate: Federate, tmp_path: Path) -> None:
    run = federate("rounds=1", output=tmp_path / "run")

    def resumed(*given: str) -> RunConfig:
        return compose([f"resume={run.folder}", "trust=true", *given])

    assert resumed().server.min_clients is None
    assert resumed("server.min_clients=3").server.min_clients == 3
    with pytest.raises(
        FedmaskError, match=r"^server\.min_clients=5: the run to resume has server\.min_clients=null; leave"
    ):
        resumed("server.min_clients=5")  # of four clients
    with pytest.raises(FedmaskError, match=r"^server\.min_clients=x: must be "):
        resumed("server.min_clients=x")


@pytest.mark.parametrize(
    ("old", "new"),
    [("local_epochs: 1", "local_epochs: 2"), ("\nseed: 0", "\nseed: 1"), ("  root: ", "  root: ../t/../")],
)
def test_a_config_that_was_edited_by_hand_is_told_and_nothing_is_touched(
    federate: Federate, tmp_path: Path, old: str, new: str
) -> None:
    output = tmp_path / "run"
    with pytest.raises(StoppedError):
        federate(output=output, watcher=StoppingWatcher(1))
    path = output / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace(old, new))
    assert path.read_text() != text
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    with pytest.raises(FedmaskError) as caught:
        federate(output=output, resume=True)
    assert str(caught.value) == (
        f"{path}: was changed since round 1 of this run ended, what in it is not known; put it back as it was, or "
        "start again with overwrite=true"
    )
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    path.write_text(f"# mine\n{text}")  # says the same
    assert len(federate(output=output, resume=True).rounds) == 2


def test_more_rounds_and_an_older_checkpoint_are_no_edits(federate: Federate, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(StoppedError):
        federate(output=output, watcher=StoppingWatcher(1))
    assert len(federate("rounds=3", output=output, resume=True).rounds) == 3
    assert len(federate("rounds=4", output=output, resume=True).rounds) == 4
    path = output / "checkpoints" / "round-00004.safetensors"
    facts, vectors = read_sealed(path, "checkpoint")
    assert len(facts.pop("config_digest")) == 16
    write_sealed(path, "checkpoint", vectors, facts)
    edited = (output / "config.yaml").read_text().replace("min_replies: 1", "min_replies: 2")
    (output / "config.yaml").write_text(edited)
    assert len(federate("rounds=5", output=output, resume=True).rounds) == 5


@pytest.fixture
def foreign(federate: Federate, tmp_path: Path) -> tuple[Path, Path]:
    """A finished run whose configuration has Python run that is not ours, and the file that this Python writes."""
    run = federate("rounds=1", output=tmp_path / "run")
    config = run.folder / "config.yaml"
    root, told = run.config.data.root, tmp_path / "told"
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "small.py").write_text(
        f"import pathlib\npathlib.Path({str(told)!r}).touch()\n{(Path(root) / 'small.py').read_text()}"
    )
    config.write_text(config.read_text().replace(f"root: {root}", f"root: {tmp_path / 't'}"))
    return run.folder, told


def test_code_that_a_folder_names_is_run_only_where_that_is_trusted(
    foreign: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, told = foreign
    line = (
        "its configuration runs code that may be somebody else's: data=python runs [small:first,small:second] of "
        f"{folder.parent / 't'}; look at that, and if you trust it, give trust=true as well\n"
    )
    assert simulate.main([f"resume={folder}"]) == 2
    assert capsys.readouterr().err == f"resume={folder}: {line}"
    assert measure_communication.main([f"run={folder}", f"output={folder.parent / 'measured'}"]) == 2
    assert capsys.readouterr().err == f"run={folder}: {line}"
    assert merge.main([f"adapter={folder}", f"output={folder.parent / 'merged'}"]) == 0  # needs no data
    assert not told.exists()
    assert simulate.main([f"resume={folder}", "trust=true"]) == 0  # it has ended already
    assert told.exists()


def test_a_study_is_asked_for_too(foreign: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder, told = foreign
    (folder.parent / "theirs.yaml").write_text(
        f"question: mine?\nbudget_hours: 1\noverrides: [model=tiny, data=python, 'data.root={folder.parent / 't'}', "
        "'data.tasks=[\"small:first\"]', clients=2]\nsettings: {a: {title: a, overrides: [rounds=1]}}\n"
        "rows: {pafi: {title: pafi, overrides: [mask=pafi]}}\n"
    )
    arguments = [f"experiment={folder.parent / 'theirs.yaml'}", f"output={folder.parent / 'cells'}"]
    assert study.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("experiment=theirs: its configuration runs code that may be somebody else's: data=python")
    assert not told.exists()


@pytest.mark.parametrize(
    ("argument", "fault"),
    [
        ("trust=true", "trust=true: goes with resume=FOLDER, for code that its config.yaml names; leave it out"),
        ("trust=yes", "trust=yes: must be true or false"),
    ],
)
def test_trust_goes_with_a_resume(argument: str, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["model=tiny", argument])
    assert caught.value.faults == (fault,)
    assert compose(["model=tiny", "trust=false"]).resume is None


def test_a_cluster_that_a_folder_names_is_asked_for_too(tmp_path: Path) -> None:
    config = to_dict(compose(["runtime=ray", "ray.address=ray://elsewhere:10001"]))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(FedmaskError, match=r"ray\.address=ray://elsewhere:10001 has a cluster send Python"):
        compose([f"resume={tmp_path}"])
    assert compose([f"resume={tmp_path}", "trust=true"]).ray.address == "ray://elsewhere:10001"


@pytest.mark.parametrize("content", [None, "mine: 1", "\xff"])
def test_a_folder_without_a_run_is_told_in_lines(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.yaml").write_text(content, encoding="latin-1")
    with pytest.raises(FedmaskError) as caught:
        compose([f"resume={tmp_path}"])
    assert all(line.startswith(f"resume={tmp_path}: ") for line in str(caught.value).splitlines())


def test_a_folder_whose_data_are_gone_is_told(federate: Federate, tmp_path: Path) -> None:
    run = federate("rounds=1", output=tmp_path / "run")
    path = run.folder / "config.yaml"
    path.write_text(path.read_text().replace(f"root: {run.config.data.root}", "root: gone"))
    with pytest.raises(FedmaskError, match=r"^data.root=gone: there is no such folder$"):
        compose([f"resume={run.folder}", "trust=true"])
