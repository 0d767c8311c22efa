"""fedmask.runs.tensorboard: a run's scalars, read back by TensorBoard itself, are those of the run's own files."""

import json
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmask.errors import FedmaskError

Run = Any


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value by tag."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_the_scalars_are_those_of_the_rounds_the_ledger_and_the_summary(federate: Callable[..., Run]) -> None:
    run = federate("log.tensorboard=true", "rounds=3", "score_every=2")

    def wire_bytes(rounds: range, *directions: str) -> int:
        lines = [line for line in run.ledger if line["round"] in rounds and line["direction"] in directions]
        return sum(line["wire_bytes"] for line in lines)

    def by_round(key: str) -> list[tuple[int, float]]:
        return [(line["round"], pytest.approx(line[key])) for line in run.rounds if line[key] is not None]

    scored = [line for line in run.rounds if line["score"]]
    assert [line["round"] for line in scored] == [2, 3]
    expected = {
        "train/loss": by_round("train_loss"),
        "validation/mean": by_round("mean_score"),
        "failures": by_round("failures"),
        "seconds": by_round("seconds"),
        "test/mean": [(3, pytest.approx(run.summary["mean_score"]))],
    }
    for task, score in run.summary["score"].items():
        expected[f"validation/{task}"] = [(line["round"], pytest.approx(line["score"][task])) for line in scored]
        expected[f"test/{task}"] = [(3, pytest.approx(score))]
    for (task, split, name), values in spread(run).items():
        expected[f"clients/{task}/{split}/{name}"] = values
    found = scalars(run.folder)
    sent = {tag: found.pop(f"bytes/{tag}") for tag in ("up", "down", "total")}
    assert found == expected
    assert [step for step, _ in sent["total"]] == [1, 2, 3]
    for number in (1, 2):  # the last round's lines hold the scoring on test too, which comes after its scalars
        assert sent["up"][number - 1] == (number, wire_bytes(range(number, number + 1), "up"))
        assert sent["down"][number - 1] == (number, wire_bytes(range(number, number + 1), "down"))
        assert sent["total"][number - 1] == (number, wire_bytes(range(number + 1), "up", "down"))


def spread(run: Run) -> dict[tuple[str, str, str], list[tuple[int, Any]]]:
    """The least, middle and largest score of a task's clients, by scored round, from clients.jsonl."""
    lines = [json.loads(line) for line in (run.folder / "clients.jsonl").read_text().splitlines()]
    scorings: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for line in lines:
        scorings[line["task"], line["split"], line["round"]].append(line["score"])
    found: dict[tuple[str, str, str], list[tuple[int, Any]]] = defaultdict(list)
    for (task, split, server_round), scores in scorings.items():
        for name, value in (("min", min(scores)), ("median", statistics.median(scores)), ("max", max(scores))):
            found[task, split, name].append((server_round, pytest.approx(value)))
    return found


def test_without_the_package_a_run_is_refused_before_its_folder_is_touched(
    federate: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedmask.runs.tensorboard.find_spec", lambda name: None)
    with pytest.raises(FedmaskError) as caught:
        federate("log.tensorboard=true", output=tmp_path / "run")
    assert str(caught.value) == (
        "log.tensorboard=true: the package tensorboard is missing; pip install tensorboard, or leave this key out"
    )
    assert not (tmp_path / "run").exists()
    federate("rounds=1", output=tmp_path / "run")  # nobody asked for it: nobody needs it


def test_a_resumed_run_has_each_rounds_scalars_once(
    federate: Callable[..., Run], tmp_path: Path, filtering_grid: Callable[..., Any]
) -> None:
    def stop(client: int, request: Any, reply: Any) -> Any:
        if request.metadata.group_id == "3":
            raise KeyboardInterrupt
        return reply

    settings, output = ("rounds=3", "log.tensorboard=true"), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        federate(*settings, output=output, grid=filtering_grid(stop))
    (output / "checkpoints" / "round-00002.safetensors").unlink()  # as if the kill had come before it
    run = federate(*settings, output=output, resume=True)
    found = scalars(output)
    assert [step for step, _ in found["validation/mean"]] == [1, 2, 3]
    assert [value for _, value in found["train/loss"]] == pytest.approx([line["train_loss"] for line in run.rounds])
    rounds = [sum(line["wire_bytes"] for line in run.ledger if line["round"] <= done) for done in (1, 2)]
    assert [value for _, value in found["bytes/total"]][:2] == pytest.approx(rounds)


def test_a_rounds_scalars_are_there_when_the_round_ends_and_stay_when_the_run_is_stopped(
    federate: Callable[..., Run], tmp_path: Path, filtering_grid: Callable[..., Any]
) -> None:
    seen: list[dict[str, list[tuple[int, float]]]] = []

    def stop(client: int, request: Any, reply: Any) -> Any:
        if request.metadata.group_id == "2":
            seen.append(scalars(tmp_path / "run"))
            raise KeyboardInterrupt
        return reply

    with pytest.raises(KeyboardInterrupt):
        federate("log.tensorboard=true", output=tmp_path / "run", grid=filtering_grid(stop))
    assert [step for step, _ in seen[0]["validation/mean"]] == [1]
    assert scalars(tmp_path / "run") == seen[0]
