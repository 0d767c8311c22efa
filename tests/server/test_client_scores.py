"""clients.jsonl: every client's score, on validation by round and on test at the end; the same bytes after a resume."""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmask.runs.checkpoint import load_checkpoint, save_checkpoint
from fedmask.runs.report import write_report

Run = Any


def scores_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]


def means(lines: list[dict[str, Any]], key: str) -> dict[str, Any]:
    by_task: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        by_task[line["task"]].append(line[key])
    return {task: pytest.approx(sum(values) / len(values)) for task, values in by_task.items()}


def test_every_scoring_has_a_line_a_client_and_gives_the_tasks_scores(federate: Callable[..., Run]) -> None:
    run = federate("rounds=3", "score_every=2", "clients_per_round=3", "data.partition=dirichlet")
    lines = scores_of(run.folder)
    drawn = sorted({client for line in run.rounds for client in line["cohort"]})
    expected = [(line["round"], "validation", client) for line in run.rounds[1:] for client in line["cohort"]]
    expected += [(3, "test", client) for client in drawn]
    assert [(line["round"], line["split"], line["client"]) for line in lines] == expected
    for line in run.rounds[1:]:
        of_round = [each for each in lines if (each["round"], each["split"]) == (line["round"], "validation")]
        assert line["score"] == means(of_round, "score")
        assert line["own_score"] == means(of_round, "own_score")
    on_test = [each for each in lines if each["split"] == "test"]
    assert run.summary["score"] == means(on_test, "score")
    assert run.summary["own_majority_score"] == means(on_test, "majority_score")
    assert all(each["num_examples"] > 0 for each in lines)
    assert {each["client"]: each["num_examples"] for each in lines} != dict.fromkeys(drawn, 10)


class Stopping:
    """Stops a run after a round."""

    def __init__(self, after: int) -> None:
        self.after = after

    def round_ended(self, report: Any) -> None:
        if report.round == self.after:
            raise KeyboardInterrupt

    def stage_started(self, server_round: int, stage: str, num_clients: int) -> None:
        if not self.after and stage == "scoring on test":
            raise KeyboardInterrupt

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


@pytest.mark.parametrize("after", [1, 0])
def test_a_resumed_run_has_the_same_lines(
    after: int, federate: Callable[..., Run], plain_run: Run, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        federate(output=tmp_path, watcher=Stopping(after))
    with (tmp_path / "clients.jsonl").open("a") as file:
        file.write('{"round": 2, "sp')  # as a kill leaves it
    federate(output=tmp_path, resume=True)
    assert (tmp_path / "clients.jsonl").read_bytes() == (plain_run.folder / "clients.jsonl").read_bytes()


def test_a_run_of_a_version_that_kept_none_goes_on_and_keeps_them_from_then_on(
    federate: Callable[..., Run], plain_run: Run, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        federate(output=tmp_path, watcher=Stopping(1))
    checkpoint = load_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None
    del checkpoint.file_bytes["clients.jsonl"]  # type: ignore[attr-defined]
    save_checkpoint(tmp_path / "checkpoints", checkpoint)
    (tmp_path / "clients.jsonl").unlink()
    run = federate(output=tmp_path, resume=True)
    assert run.adapter == plain_run.adapter
    assert scores_of(tmp_path) == [line for line in scores_of(plain_run.folder) if line["round"] == 2]
    write_report(tmp_path)
