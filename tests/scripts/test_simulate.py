"""scripts/simulate.py as a person runs it: one command, a table, a folder; bad input ends in its lines and code 2."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SMALL = ("model=tiny", "mask.density=0.01", "threads=1", "clients=5", "rounds=1", "data.examples_per_client=10")


def simulate(*overrides: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | more
    command = [sys.executable, str(ROOT / "scripts" / "simulate.py"), *overrides]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)


def test_a_run_ends_with_a_table_and_says_where_its_folder_is(tmp_path: Path) -> None:
    done = simulate(*SMALL, "compare=[frozen]", f"output={tmp_path / 'run'}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "test score by task" in done.stdout
    assert "federated" in done.stdout
    assert "frozen" in done.stdout
    assert "mean over tasks" in done.stdout
    assert "bytes per client and round: " in done.stdout
    assert "times as much" in done.stdout
    assert "random weights: its scores mean nothing" in done.stdout
    assert done.stdout.rstrip().splitlines()[-1] == f"run folder: {tmp_path / 'run'}"
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert f"{summary['communication']['total_bytes']:,} bytes" in done.stdout
    assert all(f"{score:.3f}" in done.stdout for score in summary["score"].values())
    frozen = json.loads((tmp_path / "run" / "compare" / "frozen" / "summary.json").read_text())
    assert frozen["baseline"] == "frozen"
    assert set(frozen["score"]) == set(summary["score"])
    report = (tmp_path / "run" / "report.html").read_text()
    assert f'data-figure="compare/frozen/mean_score" value="{frozen["mean_score"]!r}"' in report
    assert (tmp_path / "run" / "compare" / "frozen" / "report.html").exists()


def test_a_killed_command_is_resumed_with_its_baselines(tmp_path: Path) -> None:
    output = tmp_path / "run"
    arguments = (*SMALL, "rounds=2", "compare=[frozen]", f"output={output}")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "scripts" / "simulate.py"), *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as run:
        deadline = time.monotonic() + 60
        while not (output / "checkpoints" / "round-00001.safetensors").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        run.kill()
    assert not (output / "summary.json").exists()
    refused = simulate(f"resume={output}", "rounds=1", "mask=hiwi")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "rounds=1: the run to resume has rounds=2; leave it out, or give more of them" in refused.stderr.splitlines()
    done = simulate(f"resume={output}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "federated: resumed after round 1; " in done.stdout
    assert "frozen, round 2/2" in done.stdout
    again = simulate(f"resume={output}")
    assert again.returncode == 0
    assert again.stderr.splitlines() == [
        f"{folder}: this run is finished; there is nothing to resume"
        for folder in (output, output / "compare" / "frozen")
    ]
    assert again.stdout.partition("test score by task")[2] == done.stdout.partition("test score by task")[2]
    longer = simulate(f"resume={output}", "rounds=3")
    assert (longer.returncode, longer.stderr) == (0, "")
    assert "federated: resumed after round 2; " in longer.stdout
    for folder in (output, output / "compare" / "frozen"):
        assert len((folder / "rounds.jsonl").read_text().splitlines()) == 3


def test_on_ray_neither_ray_nor_flower_puts_in_a_word(tmp_path: Path) -> None:
    done = simulate(*SMALL, "runtime=ray", f"output={tmp_path / 'run'}")
    assert (done.returncode, done.stderr) == (0, "")
    before_the_table = done.stdout.partition("\n\n")[0].splitlines()
    assert {line.split()[0] for line in before_the_table} == {"tiny", "run", "note:", "federated,"}
    assert done.stdout.rstrip().splitlines()[-1] == f"run folder: {tmp_path / 'run'}"


def test_help_explains_every_key() -> None:
    done = simulate("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for key in ("model", "data.partition", "mask.density", "clients_per_round", "client.learning_rate", "overwrite"):
        assert key in done.stdout


def test_all_faults_of_a_configuration_are_told_at_once(tmp_path: Path) -> None:
    done = simulate("mask.density=2", "rounds=none", "modle=tiny", f"output={tmp_path / 'run'}")
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert any(line.startswith("mask.density=2: must be a number above 0 and at most 1") for line in lines)
    assert any(line.startswith("rounds=none: must be a whole number of at least 1") for line in lines)
    assert any(line.startswith("modle=tiny: no such key; did you mean model?") for line in lines)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.tasks=[sentimint]"], "unknown task 'sentimint' in the demo; there are: "),
        (["data=tsv", "data.root=/nowhere", "data.tasks=[sst2]"], "data.root=/nowhere: there is no such folder"),
        (["mask.density=0.9"], "density"),
        (["clients=100000"], "training rows for 5000 clients: ask for fewer clients"),
    ],
)
def test_bad_input_ends_in_one_line_and_leaves_nothing(overrides: list[str], message: str, tmp_path: Path) -> None:
    done = simulate(*SMALL, *overrides, f"output={tmp_path / 'run'}")
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()


def test_what_a_person_should_know_of_the_data_is_said_and_kept(tmp_path: Path) -> None:
    (tmp_path / "data" / "mail").mkdir(parents=True)
    rows = "".join(f'"a letter, {row}",{("ham", "spam")[row % 2]}\n' for row in range(20))
    (tmp_path / "data" / "mail" / "train.csv").write_text(f"body,folder\n{rows},ham\n")
    data = ["data=csv", f"data.root={tmp_path / 'data'}", "data.tasks=[mail]", "data.text_a=body", "data.label=folder"]
    done = simulate(*SMALL[:-1], "clients=2", "data.max_length=16", *data, f"output={tmp_path / 'run'}")
    assert (done.returncode, done.stderr) == (0, "")
    notes = json.loads((tmp_path / "run" / "summary.json").read_text())["notes"]
    assert notes == [
        "task mail: test cut from train: 3 rows (there is none)",
        "task mail: validation cut from train: 2 rows (there is none)",
        "task mail: 1 empty text (1 of train), kept: a model reads its marks of beginning and end alone",
        "task mail: fewer training rows than data.examples_per_client=100 for 2 clients: 8 each, all there are",
    ]
    told = [line.removeprefix("note: ") for line in done.stdout.splitlines() if line.startswith("note: ")]
    assert [line for line in told if line.startswith("task ")] == notes


def test_a_folder_that_holds_a_run_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    done = simulate(*SMALL, f"output={tmp_path}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (f"output={tmp_path}: holds summary.json, but no run of fedmask; name another folder\n")
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_paths_begin_at_home_and_what_is_given_twice_is_told(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        file = tmp_path / "rows" / "2024" / f"{split}.tsv"
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = "".join(f"text {number}\t{'up' if number % 2 else 'down'}\n" for number in range(20))
        file.write_text(f"text_a\tlabel\n{rows}")
    rows = ("data=tsv", "data.root=~/rows", "data.tasks=['2024']")
    done = simulate(*SMALL, *rows, "clients=2", "rounds=1", "output=~/runs/first", HOME=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "runs" / "first" / "summary.json").exists()
    assert done.stdout.splitlines()[1:3] == [
        f"run folder: {tmp_path}/runs/first",
        "note: clients is given 2 times; the last counts: clients=2",
    ]
    merged = [sys.executable, str(ROOT / "scripts" / "merge.py"), "adapter=~/runs/first", "output=~/merged"]
    told = subprocess.run(merged, env=os.environ | {"HOME": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith(f"{tmp_path}/merged: tiny with ")


def test_a_name_that_is_a_number_is_told_how_it_is_written(tmp_path: Path) -> None:
    done = simulate("data=tsv", f"data.root={tmp_path}", "data.tasks=[2024]")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("data.tasks=[2024]: must be a list of task names")
    assert line.endswith("stands in quotes: \"data.tasks=['2024']\"")


@pytest.mark.parametrize("word", ["-h", "help"])
def test_help_has_other_names(word: str) -> None:
    done = simulate(word)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python scripts/simulate.py")


def test_what_other_programs_take_is_told_all_at_once() -> None:
    done = simulate("-m", "lr=0.1", "--rounds", "3", "model=bert-base-uncased", "adapter=RUN")
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == [
        "-m",
        "lr=0.1",
        "--rounds 3",
        "model=bert-base-uncased",
        "adapter=RUN",
    ]
