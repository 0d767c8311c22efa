"""scripts/study.py as a command: runs, is killed, goes on; refuses what it should before anything runs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import study
from fedmask.runs.study import read_results

ROOT = Path(__file__).resolve().parent.parent.parent
STUDY = """
question: does it run?
budget_hours: 0.2
overrides: [threads=1, model=tiny, mask.density=0.01, data.examples_per_client=8, data.max_length=16, clients=2]
settings:
  a: {title: questions, overrides: ["data.tasks=[question_type]", rounds=2]}
  b: {title: topics, overrides: ["data.tasks=[topic]", rounds=3, score_every=3]}
rows:
  pafi: {title: pafi, overrides: [mask=pafi], finalist: true, tune: {setting: b, client.learning_rate: [0.01, 0.03]}}
  alone: {title: each alone, overrides: [baseline=alone], rates_from: pafi}
"""
NUM_CELLS = 2 + 4 + 2


@pytest.fixture(scope="session")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "small.yaml"
    path.write_text(STUDY)
    return path


def command(*arguments: object) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    line = [sys.executable, str(ROOT / "scripts" / "study.py"), *map(str, arguments)]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(*arguments: object) -> tuple[int, str, str]:
    process = command(*arguments)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


@pytest.fixture(scope="session")
def whole(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The study run without interruption: its folder, and what was printed."""
    output = tmp_path_factory.mktemp("whole") / "cells"
    code, out, err = finished(f"experiment={study_file}", "seeds=2", f"output={output}", "jobs=2")
    assert code == 0, err
    return output, out


def cells_of(output: Path) -> list[Path]:
    return sorted(path.parent for path in output.glob("*/summary.json"))


def test_every_cell_is_a_finished_run_and_the_time_left_is_told(whole: tuple[Path, str]) -> None:
    output, out = whole
    cells = cells_of(output)
    assert len(cells) == NUM_CELLS
    for cell in cells:
        facts = json.loads((cell / "cell.json").read_text())
        tuned = cell.name.split("-")[2].startswith("tune")
        assert bool(json.loads((cell / "summary.json").read_text())["score"]) is not tuned
        assert facts["is_final"] is not tuned
        assert facts["commit"]
    lines = out.splitlines()
    assert f"study small: {NUM_CELLS} cells, about 0.0" in out
    assert sum("minutes left" in line for line in lines) == NUM_CELLS
    assert lines[-1].startswith(f"[{NUM_CELLS}/{NUM_CELLS}] ")


def test_a_finished_study_runs_nothing_again(whole: tuple[Path, str], study_file: Path) -> None:
    output, _ = whole
    before = {path: path.stat().st_mtime_ns for path in output.glob("*/*") if path.is_file()}
    code, out, _ = finished(f"experiment={study_file}", "seeds=2", f"output={output}")
    assert code == 0
    assert f"{NUM_CELLS} are finished" in out
    assert {path: path.stat().st_mtime_ns for path in output.glob("*/*") if path.is_file()} == before


def test_a_killed_study_goes_on_and_ends_in_the_same_results(
    whole: tuple[Path, str], study_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "cells"
    arguments = [f"experiment={study_file}", "seeds=2", f"output={output}", "jobs=2"]
    process = command(*arguments)
    try:
        wait_for(lambda: len(cells_of(output)) >= 3)
        workers = children(process.pid)
        assert workers
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    left = cells_of(output)
    assert len(left) < NUM_CELLS
    kept = {cell: (cell / "summary.json").stat().st_mtime_ns for cell in left}
    code, out, err = finished(*arguments)
    assert code == 0, err
    assert f"{len(left)} are finished" in out
    assert {cell: (cell / "summary.json").stat().st_mtime_ns for cell in left} == kept
    assert [cell.name for cell in cells_of(output)] == [cell.name for cell in cells_of(whole[0])]
    for cell in cells_of(output):
        for name in ("adapter.safetensors", "communication.jsonl", "config.yaml"):
            there = whole[0] / cell.name / name
            if name == "config.yaml":
                assert (cell / name).read_text().replace(str(output), "") == there.read_text().replace(
                    str(whole[0]), ""
                )
            elif there.exists():
                assert (cell / name).read_bytes() == there.read_bytes()


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    return [
        int(path.name)
        for path in Path("/proc").iterdir()
        if path.name.isdecimal() and f"PPid:\t{pid}\n" in (path / "status").read_text()
    ]


def test_the_report_is_made_from_the_folders_alone(whole: tuple[Path, str], study_file: Path) -> None:
    output, _ = whole
    code, out, err = finished(f"experiment={study_file}", "seeds=2", f"output={output}", "report=true")
    assert code == 0, err
    assert len(out.splitlines()) == 3
    page = (output / "small.md").read_text()
    scores = [
        json.loads((cell / "summary.json").read_text())["mean_score"]
        for cell in cells_of(output)
        if cell.name.startswith("a-pafi")
    ]
    assert f"| pafi | {sum(scores) / 2:.3f} ± " in page
    assert len(read_results(output / "small.jsonl")) == NUM_CELLS


def test_cells_that_finished_elsewhere_are_taken_over(
    whole: tuple[Path, str], study_file: Path, tmp_path: Path
) -> None:
    arguments = [f"experiment={study_file}", "seeds=2"]
    assert finished(*arguments, f"output={whole[0]}", "report=true")[0] == 0
    lines = (whole[0] / "small.jsonl").read_text().splitlines()
    (tmp_path / "some.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    output = tmp_path / "cells"
    output.mkdir()
    shutil.copy(whole[0] / "seconds_per_example.json", output)  # measured once, for the sake of time
    code, out, err = finished(*arguments, f"output={output}", f"results={tmp_path / 'some.jsonl'}")
    assert code == 0, err
    assert f"{NUM_CELLS - 1} are finished" in out
    assert len(cells_of(output)) == 1
    code, out, err = finished(*arguments, f"output={output}", f"results={tmp_path / 'some.jsonl'}", "report=true")
    assert code == 0, err
    assert len(read_results(output / "small.jsonl")) == NUM_CELLS


def test_results_that_would_be_lost_are_not_overwritten(
    whole: tuple[Path, str], study_file: Path, tmp_path: Path
) -> None:
    arguments = [f"experiment={study_file}", "seeds=2", "report=true"]
    assert finished(*arguments, f"output={whole[0]}")[0] == 0
    output = tmp_path / "cells"
    output.mkdir()
    shutil.copy(whole[0] / "small.jsonl", output)
    code, _, err = finished(*arguments, f"output={output}")
    assert (code, err.count("\n")) == (2, 1)
    assert f"small.jsonl: holds {NUM_CELLS} finished cells that output={output} lacks" in err
    assert finished(*arguments, f"output={output}", f"results={output / 'small.jsonl'}")[0] == 0


def test_a_cell_that_was_killed_before_its_page_gets_it_later_and_a_damaged_one_is_named(
    whole: tuple[Path, str], study_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "cells"
    shutil.copytree(whole[0], output)
    arguments = [f"experiment={study_file}", "seeds=2", f"output={output}", "report=true"]
    without, damaged = cells_of(output)[:2]
    (without / "report.html").unlink()
    assert finished(*arguments)[0] == 0
    assert (without / "report.html").exists()
    (damaged / "summary.json").write_text("{")
    code, _, err = finished(*arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"{damaged}: its files are damaged")


def test_one_study_is_not_run_twice_at_a_time(study_file: Path, tmp_path: Path) -> None:
    import fcntl

    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = finished(f"experiment={study_file}", f"output={tmp_path}")
    assert code == 2
    assert err == f"output={tmp_path}: this study is being run there already; wait, or name another\n"


def test_a_study_above_its_budget_is_refused_before_a_cell_runs(study_file: Path, tmp_path: Path) -> None:
    code, _, err = finished(f"experiment={study_file}", f"output={tmp_path}", "budget_hours=0.00001")
    assert code == 2
    assert err.startswith("that is more than budget_hours=1e-05: give a larger one")
    assert not cells_of(tmp_path)


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("experiment=frist", "experiment=frist: must be a study of conf/study (first, wire) or a .yaml file"),
        ("experiment=first seeds=0", "seeds=0: must be a whole number of at least 1"),
        ("experiment=first jobs=two", "jobs=two: must be a whole number of at least 1"),
        ("experiment=first budget_hours=-1", "budget_hours=-1: must be a number above 0"),
        ("experiment=first report=yes", "report=yes: must be true or false"),
        (
            "experiment=first rounds=2",
            "rounds=2: unknown; the keys are experiment, seeds, jobs, budget_hours, output, results, report, "
            "trust and data.root",
        ),
        ("experiment=gone.yaml", "experiment=gone.yaml: there is no such file"),
        ("experiment=first --seeds 2", "--seeds: unknown in this form; write seeds=..."),
        ("experiment=first seeds=2 seeds=3", "seeds=3: given twice, first as seeds=2; leave one out"),
        (
            "experiment=first output=~nobody-has-this",
            "output=~nobody-has-this: there is no home folder ~nobody-has-this; a name with a ~ in front is written "
            "./~nobody-has-this",
        ),
        ("experiment=first results=/nowhere/x.jsonl", "results=/nowhere/x.jsonl: there is no such file"),
    ],
)
def test_a_bad_argument_is_one_line(argument: str, line: str) -> None:
    assert finished(*argument.split()) == (2, "", line + "\n")


def test_seeds_without_a_finalist_have_no_use(study_file: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.yaml"
    alone.write_text(study_file.read_text().replace("finalist: true, ", ""))
    assert finished(f"experiment={alone}", "seeds=2", f"output={tmp_path / 'cells'}") == (
        2,
        "",
        "seeds=2: study alone has no row with `finalist: true`, and all others run under one seed; mark the rows that "
        "shall run under several, or leave seeds= out\n",
    )
    budget = ("budget_hours=0.00001", f"output={tmp_path / 'cells'}")
    for one in ([f"experiment={alone}"], [f"experiment={alone}", "seeds=1"]):
        assert finished(*one, *budget)[2].startswith("that is more than budget_hours=1e-05")


def test_paths_of_a_study_begin_at_home(study_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = study_file.parent
    monkeypatch.setenv("HOME", str(home))
    arguments = ["experiment=~/small.yaml", "output=~/cells", "results=~/r.jsonl", "data.root=~/data"]
    request = study.read_request(arguments)
    assert (request.study.name, request.output, request.results) == ("small", home / "cells", home / "r.jsonl")
    assert request.here == (f"data.root={home.resolve()}/data",)
