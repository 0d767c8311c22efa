"""scripts/preparation.py: every script imports it first, and another Python than the project's is one line."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import preparation

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [path for folder in ("scripts", "scripts/deploy") for path in sorted((ROOT / folder).glob("*.py"))]
STARTED = [path for path in SCRIPTS if "__main__" in path.read_text() and path.name != "supernode.py"]
"""By people; a SuperNode's program is started by a script."""


def test_what_is_needed_is_what_the_project_names() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    distributions = {re.split(r"[\[<>=~]", each)[0].lower() for each in named}
    of_module = {
        module: {name.lower().replace("_", "-") for name in names} for module, names in packages_distributions().items()
    }
    assert all(of_module[module] & distributions for module in preparation.NEEDED)
    assert len(preparation.NEEDED) == len(distributions)


@pytest.mark.parametrize("path", STARTED, ids=lambda path: path.name)
def test_a_script_imports_it_first_and_an_old_python_reads_so_far(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [node.names[0].name if isinstance(node, ast.Import) else node.module for node in imports]
    assert next(name for name in names if name not in ("sys", "pathlib")) == "preparation"
    ast.parse((ROOT / "scripts" / "preparation.py").read_text(), feature_version=(3, 8))


@pytest.mark.parametrize(
    ("version", "missing", "venv", "inside", "line"),
    [
        ((3, 11), [], None, False, None),
        ((3, 13), [], None, False, None),
        (
            (3, 10),
            ["flwr"],
            ".venv/bin/python",
            False,
            "this is Python 3.10, and fedmask needs 3.11 or newer: give .venv/bin/python scripts/merge.py",
        ),
        (
            (3, 8),
            [],
            None,
            False,
            "this is Python 3.8, and fedmask needs 3.11 or newer: `make setup PYTHON=python3.11` installs all of it, "
            "then give .venv/bin/python scripts/merge.py",
        ),
        (
            (3, 12),
            ["flwr", "torch"],
            None,
            False,
            f"this Python ({sys.executable}) has no flwr, torch: `make setup` installs all of it, then give "
            ".venv/bin/python scripts/merge.py",
        ),
        (
            (3, 12),
            ["flwr"],
            ".venv/bin/python",
            True,
            f"this Python ({sys.executable}) has no flwr: remove .venv, and `make setup` installs all of it again",
        ),
    ],
)
def test_what_is_said_of_a_python(
    version: tuple[int, int], missing: list[str], venv: str | None, inside: bool, line: str | None
) -> None:
    assert preparation.fault("scripts/merge.py", version, missing, venv, inside) == line


def without_packages(script: str) -> subprocess.CompletedProcess[str]:
    """The script in a Python that has the standard library alone."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [sys.executable, "-S", str(ROOT / "scripts" / script)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("script", ["simulate.py", "study.py", "deploy/start_client.py", "deploy/make_keys.py"])
def test_a_python_without_the_packages_is_told_in_one_line(script: str) -> None:
    done = without_packages(script)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"this Python ({sys.executable}) has no flwr, ")
    assert "make setup" in done.stderr or ".venv" in done.stderr


def test_a_module_that_is_missing_later_keeps_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "preparation.py").write_text((ROOT / "scripts" / "preparation.py").read_text())
    (tmp_path / "mine.py").write_text("import preparation\nimport a_module_of_mine\n")
    done = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'a_module_of_mine'"


def test_libraries_are_told_to_keep_quiet_unless_somebody_says_otherwise(tmp_path: Path) -> None:
    code = "import preparation, os; print([os.environ[name] for name in preparation.QUIET])"
    environment = {key: value for key, value in os.environ.items() if key not in preparation.QUIET}
    environment |= {"PYTHONPATH": str(ROOT / "scripts"), "FLWR_TELEMETRY_ENABLED": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "['1', '1', '0', 'false']\n"
