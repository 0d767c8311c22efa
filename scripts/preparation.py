"""Imported by every script before anything else: this project found, libraries that keep quiet, the right Python.

A Python that lacks a needed package, or is too old, ends here with one line. So that it can be told to any Python since
3.8, this module and the scripts themselves are written in its syntax.
"""

import os
import sys
from importlib.util import find_spec

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
OLDEST = (3, 11)
NEEDED = (
    *("flwr", "flwr_datasets", "torch", "transformers", "datasets", "numpy", "constriction", "matplotlib"),
    *("hydra", "safetensors", "rich", "h11", "httpx", "huggingface_hub", "yaml", "tomli_w"),
)
"""What pyproject.toml names, by the names under which it is imported."""
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Flower and Ray report nothing and ask for nothing; tokenizers do not warn of forks."""

MISUSED = 2


def fault(script, version, missing, venv, inside):  # type: ignore[no-untyped-def] (Python 3.8 reads it)
    """One line on this Python, with what to do; None where it will do.

    version: (major, minor). missing: needed packages that it lacks. venv: the project's own Python, as it is typed, or
    None. inside: whether this is that one.
    """
    if version >= OLDEST and not missing:
        return None
    if version < OLDEST:
        what = "this is Python {}.{}, and fedmask needs {}.{} or newer".format(*version, *OLDEST)
    else:
        what = "this Python ({}) has no {}".format(sys.executable, ", ".join(missing))
    if inside:
        return f"{what}: remove .venv, and `make setup` installs all of it again"
    if venv is not None:
        return f"{what}: give {venv} {script}"
    python = " PYTHON=python3.11" if version < OLDEST else ""
    return f"{what}: `make setup{python}` installs all of it, then give .venv/bin/python {script}"


def prepare():  # type: ignore[no-untyped-def]
    venv = os.path.join(ROOT, ".venv")  # noqa: PTH118
    python = os.path.join(venv, "bin", "python")  # noqa: PTH118
    typed = os.path.relpath(python) if os.path.exists(python) else None  # noqa: PTH110
    is_inside = os.path.realpath(sys.prefix) == os.path.realpath(venv)
    missing = [name for name in NEEDED if find_spec(name) is None]
    line = fault(sys.argv[0], sys.version_info[:2], missing, typed, is_inside)
    if line is not None:
        sys.stderr.write(line + "\n")
        sys.exit(MISUSED)
    if ROOT not in sys.path:
        sys.path.insert(0, ROOT)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


prepare()
