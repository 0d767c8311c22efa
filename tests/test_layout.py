"""Arrows run one way: scripts -> server, client -> fedmask; and only a few modules know Flower or Hydra."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = [path for folder in ("fedmask", "server", "client") for path in sorted((ROOT / folder).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_run_one_way(path: Path) -> None:
    forbidden = {"fedmask": {"server", "client", "hydra", "omegaconf"}, "server": {"client"}, "client": {"server"}}
    assert not packages(path) & forbidden[path.relative_to(ROOT).parts[0]]


def test_one_module_of_the_library_knows_flower() -> None:
    knows_flower = {path.relative_to(ROOT).as_posix() for path in MODULES if "flwr" in packages(path)}
    assert {path for path in knows_flower if path.startswith("fedmask/")} == {"fedmask/wire/messages.py"}


def test_one_module_touches_the_private_identity() -> None:
    users = {path.name for path in MODULES if "flwr.supercore.task_identity" in imported(path)}
    assert users == {"local_grid.py"}


def test_nothing_is_unpickled() -> None:
    for path in MODULES:
        assert not packages(path) & {"pickle", "cloudpickle", "dill", "joblib"}
        assert "torch.load(" not in path.read_text()


def test_no_catch_all_modules() -> None:
    assert not {path.stem for path in MODULES} & {"utils", "common", "helpers", "base"}
