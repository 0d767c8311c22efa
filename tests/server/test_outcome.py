"""The end of a run: clients that were lost in every round are named, and a run without any score does not end well."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict

import simulate
from client.app import app as client_app
from fedmask.errors import FedmaskError
from fedmask.runs.command import UNSCORED
from fedmask.wire.messages import facts_of
from server.app import app as server_app
from server.local_grid import LocalGrid

Run = Any
App = Callable[[Message, Context], Message]
NOT_TOKENIZED = "client-error: TypeError: TextEncodeInput must be a text"


def failing(*clients: int, kind: str = "", split: str = "") -> App:
    """These clients fail at every message of this kind, or at scoring on this split."""

    def app(message: Message, context: Context) -> Message:
        is_meant = message.metadata.message_type == kind or (split and facts_of(message.content).get("split") == split)
        if is_meant and context.node_config["partition-id"] in clients:
            raise TypeError("TextEncodeInput must be a text")
        return client_app(message, context)

    return app


def test_a_client_that_fails_in_every_round_is_named_at_the_end(federate: Callable[..., Run]) -> None:
    run = federate(app=failing(1, kind="train"))
    ((lost),) = run.summary["lost_clients"]
    assert (lost["client"], lost["rounds"]) == (1, 2)
    assert lost["cause"].startswith(NOT_TOKENIZED)
    assert [list(line["lost"]) for line in run.rounds] == [["1"], ["1"]]
    assert run.summary["unscored"] is None
    text = (run.folder / "report.html").read_text()
    assert "Clients lost in every round" in text
    assert "TextEncodeInput must be a text" in text


def test_one_that_trains_and_is_never_scored_is_lost_as_well(federate: Callable[..., Run]) -> None:
    run = federate(app=failing(2, split="validation"))
    assert [lost["client"] for lost in run.summary["lost_clients"]] == [2]
    assert run.summary["lost_on_test"] == {}


def test_one_that_was_lost_in_some_rounds_only_is_not(federate: Callable[..., Run], plain_run: Run) -> None:
    def app(message: Message, context: Context) -> Message:
        if (context.node_config["partition-id"], message.metadata.group_id) == (1, "2"):
            raise TypeError("TextEncodeInput must be a text")
        return client_app(message, context)

    run = federate(app=app)
    assert [list(line["lost"]) for line in run.rounds] == [[], ["1"]]
    assert run.summary["lost_clients"] == []
    assert list(run.summary["lost_on_test"]) == ["1"]
    assert [line["lost"] for line in plain_run.rounds] == [{}, {}]


def test_after_a_resume_the_rounds_before_it_count(federate: Callable[..., Run], tmp_path: Path) -> None:
    class Stopping:
        def round_ended(self, report: Any) -> None:
            if report.round == 1:
                raise KeyboardInterrupt

        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *_: None

    app = failing(1, kind="train")
    whole = federate(app=app)
    with pytest.raises(KeyboardInterrupt):
        federate(app=app, output=tmp_path / "run", watcher=Stopping())
    run = federate(app=app, output=tmp_path / "run", resume=True)
    assert run.summary["lost_clients"] == whole.summary["lost_clients"] != []


def test_a_run_whose_test_split_nobody_can_be_scored_on_says_so_and_keeps_its_adapter(
    federate: Callable[..., Run], plain_run: Run
) -> None:
    run = federate(app=failing(0, 1, 2, 3, split="test"))
    assert run.summary["mean_score"] is None
    assert run.summary["unscored"].startswith(
        f"no client could be scored on the test split: client 0: {NOT_TOKENIZED} (app, line "
    )
    assert run.summary["unscored"].endswith(", and 3 more")
    assert run.adapter == plain_run.adapter
    assert (run.folder / "report.html").exists()


def test_a_run_without_a_test_score_is_judged_by_its_validation_scores(federate: Callable[..., Run]) -> None:
    assert federate("score_test=false", "rounds=1").summary["unscored"] is None
    run = federate("score_test=false", "rounds=1", app=failing(0, 1, 2, 3, split="validation"))
    assert "could be scored on the validation split in any round: client 0: " in run.summary["unscored"]


# ----------------------------------------------------------------------------------------------------------------------
# Commands
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def nobody_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.app.app", failing(0, 1, 2, 3, split="test"))


@pytest.mark.usefixtures("nobody_scored")
def test_simulate_ends_with_another_code_and_a_line_for_each_run(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert simulate.main([*overrides, "rounds=1", "compare=[frozen]", f"output={folder}"]) == UNSCORED
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": client 0: ")[0] for line in lines] == [
        f"{name}: no client could be scored on the test split" for name in ("federated", "frozen")
    ]
    assert (
        simulate.main([f"resume={folder}", "trust=true"]) == UNSCORED
    )  # there is nothing to resume, and still no score
    assert "federated: no client could be scored on the test split: " in capsys.readouterr().err


@pytest.mark.usefixtures("nobody_scored")
def test_a_run_of_flower_fails_with_that_line(overrides: list[str], tmp_path: Path) -> None:
    grid = LocalGrid(failing(0, 1, 2, 3, split="test"), 4)
    # A quoted name needs quotes of its own in one string of overrides.
    given = " ".join(f"'{override}'" for override in [*overrides, "rounds=1", f"output={tmp_path / 'run'}"])
    with pytest.raises(FedmaskError, match=r"^no client could be scored on the test split: client 0: client-error: "):
        server_app(grid, Context(grid.run.run_id, 1, {}, RecordDict(), {"hydra": given}))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["mean_score"] is None


@pytest.mark.usefixtures("nobody_scored")
def test_a_cell_of_a_study_fails_with_that_line_and_is_run_again(overrides: list[str], tmp_path: Path) -> None:
    import study
    from fedmask.runs.study import Cell

    cell = Cell("row", "setting", 0, True, (*overrides, "rounds=1"))
    with pytest.raises(FedmaskError, match=r"^no client could be scored on the test split: client 0: "):
        study.run_cell(cell, tmp_path, ())
    assert study._read_cell(tmp_path / cell.name) is None
