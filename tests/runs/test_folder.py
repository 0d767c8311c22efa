"""fedmask.runs.folder and .files: a folder that holds a run is refused; files are whole or not there."""

import json
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from fedmask.errors import FedmaskError
from fedmask.files import write_atomically
from fedmask.runs.checkpoint import Checkpoint, ServerState, save_checkpoint
from fedmask.runs.config import RunConfig, from_yaml
from fedmask.runs.folder import RunFolder, default_output
from fedmask.wire.downlink import Broadcast
from server.compose import compose

LINE = {"round": 1, "client": 0, "direction": "up", "kind": "train", "payload_bytes": 5, "wire_bytes": 9}
CONFIG = compose(["model=tiny", "data.tasks=[a,b]", "threads=2"])


def finished(path: Path, overwrite: bool = False) -> RunFolder:
    folder = RunFolder(path, overwrite)
    folder.begin(CONFIG)
    folder.add_round({"round": 1})
    folder.add_communication([{"round": 1, "client": 0}, {"round": 1, "client": 1}])
    folder.adapter.write_bytes(b"adapter")
    (folder.clients / "client-00000").mkdir()
    (folder.clients / "client-00000" / "head.safetensors").write_bytes(b"head")
    (path / "compare" / "frozen").mkdir(parents=True)
    folder.finish({"mean_score": 0.5})
    (path / "report.html").write_text("report")
    folder.tensorboard.mkdir()
    (folder.tensorboard / "events").write_bytes(b"events")
    return folder


def tree(path: Path) -> set[str]:
    return {str(entry.relative_to(path)) for entry in path.rglob("*") if entry.is_file()}


def test_what_a_run_leaves(tmp_path: Path) -> None:
    finished(tmp_path / "deep" / "run")
    found = tree(tmp_path / "deep" / "run")
    assert found == {
        "config.yaml",
        "rounds.jsonl",
        "communication.jsonl",
        "clients.jsonl",
        "adapter.safetensors",
        "summary.json",
        "report.html",
        "tensorboard/events",
        "clients/client-00000/head.safetensors",
    }
    run = tmp_path / "deep" / "run"
    assert from_yaml((run / "config.yaml").read_text()) == CONFIG
    assert [json.loads(line) for line in (run / "communication.jsonl").read_text().splitlines()] == [
        {"round": 1, "client": 0},
        {"round": 1, "client": 1},
    ]
    assert json.loads((run / "summary.json").read_text()) == {"mean_score": 0.5}


def test_rounds_are_appended_a_line_each(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, overwrite=False)
    folder.begin(CONFIG)
    for number in (1, 2, 3):
        folder.add_round({"round": number})
        lines = (tmp_path / "rounds.jsonl").read_text()
        assert lines == "".join(f'{{"round": {done}}}\n' for done in range(1, number + 1))


def test_looking_touches_nothing(tmp_path: Path) -> None:
    RunFolder(tmp_path / "new", overwrite=False)
    assert not (tmp_path / "new").exists()
    finished(tmp_path / "old")
    before = tree(tmp_path / "old")
    RunFolder(tmp_path / "old", overwrite=True)
    assert tree(tmp_path / "old") == before


def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    finished(tmp_path)
    with pytest.raises(FedmaskError) as caught:
        RunFolder(tmp_path, overwrite=False)
    assert str(caught.value) == (
        f"output={tmp_path}: this folder already holds a run; name another, or say overwrite=true to replace it"
    )


@pytest.mark.parametrize(
    "name", ["config.yaml", "rounds.jsonl", "report.html", "adapter.safetensors", "summary.json", "clients"]
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_files_under_names_of_a_run_are_refused_whatever_is_said(tmp_path: Path, name: str, overwrite: bool) -> None:
    (tmp_path / name).touch()
    with pytest.raises(FedmaskError) as caught:
        RunFolder(tmp_path, overwrite=overwrite)
    assert str(caught.value) == f"output={tmp_path}: holds {name}, but no run of fedmask; name another folder"


def test_a_folder_with_other_files_is_taken_and_they_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    finished(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_overwriting_replaces_the_runs_files_and_no_others(tmp_path: Path) -> None:
    finished(tmp_path)
    for name in ("notes.txt", "data/train.tsv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    folder = RunFolder(tmp_path, overwrite=True)
    folder.begin(replace(CONFIG, seed=1))
    assert (tmp_path / "rounds.jsonl").read_text() == ""
    folder.add_round({"round": 1})
    assert tree(tmp_path) == {
        *("config.yaml", "rounds.jsonl", "communication.jsonl", "clients.jsonl", "notes.txt", "data/train.tsv")
    }
    assert from_yaml((tmp_path / "config.yaml").read_text()).seed == 1
    assert (tmp_path / "clients").is_dir()
    assert not any((tmp_path / name).exists() for name in ("compare", "report.html", "tensorboard"))


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(FedmaskError) as caught:
        RunFolder(tmp_path / "run", overwrite=True)
    assert str(caught.value) == f"output={tmp_path / 'run'}: this is a file; name a folder"


def test_the_default_folder_says_what_ran_and_when() -> None:
    config = compose(["model=tiny", "mask=hiwi"])
    assert default_output(config, datetime(2026, 3, 4, 5, 6, 7)) == "runs/tiny-demo-hiwi-20260304-050607"


# ----------------------------------------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------------------------------------


def test_a_file_is_written_whole_into_a_new_folder(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b.bin", b"\x00\r\n")
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"\x00\r\n"
    assert tree(tmp_path) == {"a/b.bin"}


def test_a_write_that_fails_leaves_the_old_content_and_no_scrap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomically(tmp_path / "a.bin", b"old")

    def full(descriptor: int) -> None:
        raise OSError("disk is full")

    monkeypatch.setattr("fedmask.files.os.fsync", full)
    with pytest.raises(OSError, match="disk is full"):
        write_atomically(tmp_path / "a.bin", b"new and longer")
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert tree(tmp_path) == {"a.bin"}


def contents(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in tree(path)}


def test_a_run_that_ends_no_round_gives_back_what_it_replaced(tmp_path: Path) -> None:
    finished(tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    before = contents(tmp_path)
    folder = RunFolder(tmp_path, overwrite=True)
    folder.begin(CONFIG)
    assert not (tmp_path / "summary.json").exists()
    folder.abandon()
    assert contents(tmp_path) == before


def test_a_new_folder_that_ends_no_round_is_gone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", overwrite=False)
    folder.begin(CONFIG)
    folder.abandon()
    assert not (tmp_path / "run").exists()


def test_a_beginning_that_was_killed_does_not_lose_what_it_replaced(tmp_path: Path) -> None:
    finished(tmp_path)
    before = contents(tmp_path)
    RunFolder(tmp_path, overwrite=True).begin(CONFIG)  # and killed here
    again = RunFolder(tmp_path, overwrite=True)
    again.begin(CONFIG)
    again.abandon()
    assert contents(tmp_path) == before


def test_once_a_round_has_ended_the_earlier_run_is_gone_and_this_one_stays(tmp_path: Path) -> None:
    finished(tmp_path)
    folder = RunFolder(tmp_path, overwrite=True)
    folder.begin(CONFIG)
    folder.add_round({"round": 1})
    folder.abandon()
    assert tree(tmp_path) == {"config.yaml", "rounds.jsonl", "communication.jsonl", "clients.jsonl"}


@pytest.mark.parametrize("name", ["config.yaml", "clients/db", "summary.json"])
def test_files_that_are_no_runs_are_never_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine: 1")
    with pytest.raises(FedmaskError, match="but no run of fedmask; name another folder"):
        RunFolder(tmp_path, overwrite=True)
    assert (tmp_path / name).read_text() == "mine: 1"


def test_resume_wants_a_run(tmp_path: Path) -> None:
    with pytest.raises(FedmaskError) as caught:
        RunFolder(tmp_path / "run", overwrite=False, resume=True)
    assert str(caught.value) == (
        f"resume={tmp_path / 'run'}: holds no run, for it has no config.yaml; start one with output={tmp_path / 'run'}"
    )
    RunFolder(tmp_path / "run", overwrite=False).begin(replace(CONFIG, resume="x"))
    assert RunFolder(tmp_path / "run", overwrite=False, resume=True).take_up(CONFIG) is None
    assert from_yaml((tmp_path / "run" / "config.yaml").read_text()).resume is None


def test_taking_up_cuts_off_what_came_after_the_checkpoint_and_scraps(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, overwrite=False)
    folder.begin(CONFIG)
    folder.add_round({"round": 1})
    folder.add_communication([LINE])
    state = ServerState("0" * 16, 1, "", np.zeros(0, np.float32), {}, Broadcast(1), {})
    save_checkpoint(folder.checkpoints, Checkpoint(state, 0.5, folder.file_bytes()))
    whole = contents(tmp_path)
    folder.add_round({"round": 2})
    with (tmp_path / "communication.jsonl").open("a") as file:
        file.write('{"round": 2, "cl')
    (folder.clients / "client-00000" / "state").mkdir(parents=True)
    for place in (tmp_path, folder.checkpoints, folder.clients / "client-00000" / "state"):
        (place / ".x.safetensors.77.part").write_bytes(b"half")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".x.part").write_text("mine")
    checkpoint = RunFolder(tmp_path, overwrite=False, resume=True).take_up(CONFIG)
    assert checkpoint is not None
    assert contents(tmp_path) == whole | {"mine/.x.part": b"mine"}
    assert [line.as_dict() for line in folder.communication()] == [LINE]


def test_a_line_that_is_none_of_the_ledgers_is_told(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, overwrite=False)
    folder.begin(CONFIG)
    folder.add_communication([LINE, {"round": 1}])
    with pytest.raises(FedmaskError, match=r"communication.jsonl: line 2 is none of the ledger's"):
        list(folder.communication())


@pytest.mark.parametrize("renames", [*range(3), 10])
def test_a_run_that_was_half_put_aside_for_another_is_not_taken_for_an_unfinished_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    finished(tmp_path)
    begin_and_be_killed(tmp_path, replace(CONFIG, seed=1), monkeypatch, renames)
    folder = RunFolder(tmp_path, overwrite=False, resume=True)
    summary = folder.finished_before(rounds=1)
    if renames < 10:
        assert summary == {"mean_score": 0.5}
    else:  # the other one had begun: it is the one to go on with, and it starts over
        assert summary is None
        assert folder.take_up(CONFIG) is None


def test_an_overwriting_run_that_was_killed_just_after_its_first_round_is_replaced_whole(tmp_path: Path) -> None:
    finished(tmp_path)
    folder = RunFolder(tmp_path, overwrite=True)
    folder.begin(replace(CONFIG, seed=1))
    (tmp_path / "rounds.jsonl").write_text('{"round": 1}\n')  # and killed before the earlier run was given up
    folder = RunFolder(tmp_path, overwrite=True)
    folder.begin(replace(CONFIG, seed=2))
    assert from_yaml((tmp_path / "config.yaml").read_text()).seed == 2
    folder.abandon()
    assert from_yaml((tmp_path / "config.yaml").read_text()).seed == 1


def begin_and_be_killed(folder: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, renames: int) -> None:
    """A run that is killed after so many files of the run before it were put aside; after ten it has begun."""
    rename, left = Path.rename, [renames]

    def killed(source: Path, target: Path) -> Path:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return rename(source, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt) if renames < 10 else nullcontext():
        patched.setattr(Path, "rename", killed)
        RunFolder(folder, overwrite=True).begin(config)


@pytest.mark.parametrize("renames", range(11))
def test_a_kill_while_putting_a_run_aside_loses_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    finished(tmp_path)
    before = contents(tmp_path)
    begin_and_be_killed(tmp_path, CONFIG, monkeypatch, renames)
    with pytest.raises(FedmaskError, match="already holds a run"):
        RunFolder(tmp_path, overwrite=False)
    again = RunFolder(tmp_path, overwrite=True)
    again.begin(CONFIG)
    again.abandon()
    assert contents(tmp_path) == before
