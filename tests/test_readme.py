"""The front page is a promise: its code runs, its commands exist, its tree is the tree."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_twenty_lines_run(tmp_path: Path) -> None:
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(lines) <= 20
    finished = run_python(BLOCKS[0], tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "6,814 of 22,713,216 entries" in finished.stdout
    assert (tmp_path / "adapter.safetensors").stat().st_size > 4 * 6814


def test_the_ten_lines_of_an_own_task_run_in_a_federation(tmp_path: Path) -> None:
    assert len([line for line in BLOCKS[1].splitlines() if line.strip()]) <= 10
    (tmp_path / "my_tasks.py").write_text(BLOCKS[1])
    command = [sys.executable, str(ROOT / "scripts" / "simulate.py"), "data=python", "data.root=."]
    command += [
        "data.tasks=[my_tasks:weather]",
        "clients=2",
        "rounds=1",
        "model=tiny",
        "mask.density=0.01",
        "threads=1",
    ]
    finished = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert "weather" in finished.stdout


def test_every_make_target_named_there_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)", README)) <= targets


def test_every_file_of_the_tree_exists() -> None:
    tree = README.split("## What is where")[1].split("```")[1]
    folder = ROOT
    for line in tree.splitlines():
        name = line.strip().split(" ")[0]
        if not name:
            continue
        folder = ROOT if not line.startswith(" ") else folder
        path = (folder if line.startswith(" ") else ROOT) / name
        assert path.exists(), f"README's tree names {name}"
        folder = path if not line.startswith(" ") else folder


def test_no_placeholder_is_left() -> None:
    assert not re.findall(r"\b(DEMO_TABLE|RESULTS_TEXT|COMMIT_\w+|TIME_\w+|TODO)\b", README)
