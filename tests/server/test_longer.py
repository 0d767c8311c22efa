"""A finished run that is given more rounds ends as one that had so many from the start."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

import client.process
from client.app import app as client_app
from faults.left import left_by
from fedmask.errors import FedmaskError
from server.app import SilentObserver, num_clients, run_federation
from server.compose import compose
from server.local_grid import LocalGrid

Federate = Callable[..., Any]

MODES = {
    "local heads": (),
    "shared heads": ("client.head=shared", "clients_per_round=3"),
    "alone": ("baseline=alone",),
    "error feedback": ("client.head=shared", "codec=sign", "codec.rotate=2"),
}


def train_on(folder: Path, rounds: int) -> None:
    """In a process that holds nothing of the run, as `simulate.py resume=FOLDER rounds=N` does it."""
    client.process._run_in_process.cache_clear()
    config = compose([f"resume={folder}", "trust=true", f"rounds={rounds}"])
    run_federation(LocalGrid(client_app, num_clients(config)), config, SilentObserver())


@pytest.mark.parametrize("mode", MODES)
def test_two_rounds_and_two_more_are_four(mode: str, federate: Federate, tmp_path: Path) -> None:
    four = federate(*MODES[mode], "rounds=4")
    two = federate(*MODES[mode], "rounds=2", output=tmp_path / "run")
    train_on(two.folder, 4)
    assert left_by(two.folder) == left_by(four.folder)


def test_only_the_scores_of_the_old_last_round_may_differ(federate: Federate, tmp_path: Path) -> None:
    """The last round is scored always, another one by score_every."""
    four = federate("rounds=5", "score_every=2")
    three = federate("rounds=3", "score_every=2", output=tmp_path / "run")
    train_on(three.folder, 5)
    found, expected = left_by(three.folder), left_by(four.folder)
    assert found["adapter.safetensors"] == expected["adapter.safetensors"]
    assert {name for name in found if "head" in name} == {name for name in expected if "head" in name} != set()
    assert all(found[name] == expected[name] for name in found if "head" in name)
    for one, other in zip(found["rounds.jsonl"], expected["rounds.jsonl"], strict=True):
        assert (one["round"], one["train_loss"], one["cohort"]) == (
            other["round"],
            other["train_loss"],
            other["cohort"],
        )
        assert (one["score"] == other["score"]) == (one["round"] != 3)


def test_a_kill_before_the_first_of_the_new_rounds_leaves_a_run_that_goes_on(
    federate: Federate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    four = federate("rounds=4")
    two = federate("rounds=2", output=tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr("server.app.MaskedAveraging.start", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_on(two.folder, 4)
    assert yaml.safe_load((two.folder / "config.yaml").read_text())["rounds"] == 4
    client.process._run_in_process.cache_clear()
    config = compose([f"resume={two.folder}", "trust=true"])
    run_federation(LocalGrid(client_app, num_clients(config)), config, SilentObserver())
    assert left_by(two.folder) == left_by(four.folder)


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_fewer_rounds_than_have_ended_are_refused_and_nothing_is_touched(federate: Federate, tmp_path: Path) -> None:
    run = federate("rounds=2", output=tmp_path / "run")
    before = left_by(run.folder)
    with pytest.raises(FedmaskError) as caught:
        compose([f"resume={run.folder}", "trust=true", "rounds=1"])
    assert str(caught.value) == "rounds=1: the run to resume has rounds=2; leave it out, or give more of them"
    (run.folder / "summary.json").rename(tmp_path / "summary.json")  # as if stopped while it was scored
    config = replace(compose([f"resume={run.folder}", "trust=true"]), rounds=1)  # a config.yaml that was edited by hand
    with pytest.raises(FedmaskError) as caught:
        run_federation(LocalGrid(client_app, num_clients(config)), config, SilentObserver())
    assert str(caught.value) == f"rounds=1: round 2 of the run in {run.folder} has ended; give rounds=2 or more"
    (tmp_path / "summary.json").rename(run.folder / "summary.json")
    assert left_by(run.folder) == before


def test_the_same_number_of_rounds_leaves_a_finished_run_as_it_is(federate: Federate, tmp_path: Path) -> None:
    run = federate("rounds=1", output=tmp_path / "run")
    before = left_by(run.folder)
    train_on(run.folder, 1)
    assert left_by(run.folder) == before
    assert json.loads((run.folder / "summary.json").read_text()) == run.summary
