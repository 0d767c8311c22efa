"""Measure fedmask beside what people use today, in one run on this machine, as ratios:

    python scripts/benchmark.py section=NAME|all [output=DIR] [trial=true]
    python scripts/benchmark.py readme=true [output=DIR]

NAME is mask, step, threads, switch, aggregate, codec, simulate, checkpoint or inference. Prints a table a section and
writes DIR/benchmark.json (by default runs/benchmark), a list of rows `section`, `work`, `variant`, `rival`, `value`,
`rival_value`, `unit`, `ratio` (how many times better fedmask is: above 1 is better), `target` (the least ratio; null
where a row only informs) and `met`. DIR/machine.json says where and with what. All rows so far are on disk at any
moment. trial=true runs everything on tiny models with few repeats, to see that it runs. readme=true measures nothing:
it rewrites the table in the README from DIR.

Torch has as many threads as there are cores, unless OMP_NUM_THREADS says otherwise. Leave the machine alone meanwhile.
"""

import preparation  # noqa: F401

# isort: split
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, Settings
from fedmask.errors import FedmaskError
from fedmask.files import write_atomically
from fedmask.runs.command import asks_for_help, exit_code, own_arguments
from fedmask.runs.console import console

ROOT = Path(__file__).resolve().parent.parent
KEYS = ("section", "output", "trial", "readme")
SECTIONS = ("mask", "step", "threads", "switch", "aggregate", "codec", "simulate", "checkpoint", "inference")
"""In the order of section=all; each is a module of scripts/benchmarks with a function `rows(settings)`."""
REPEATS = 7


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    sections: tuple[str, ...]
    """None where only the README shall be rewritten."""
    output: Path
    is_trial: bool


def main(arguments: list[str]) -> int:
    if not arguments or asks_for_help(arguments):
        print(__doc__)
        return 0 if arguments else 2
    return exit_code(lambda: run(read_request(arguments)), when_stopped="stopped; the rows so far are on disk")


def run(request: Request) -> None:
    if request.sections:
        measure(request)
    else:
        rewrite_readme(request.output)


def read_request(arguments: Sequence[str]) -> Request:
    """Raises FedmaskError for an argument that is unknown or has no sense."""
    own, others = own_arguments(arguments, KEYS, paths=("output",))
    if others:
        raise FedmaskError(f"{others[0]}: unknown; the keys are {', '.join(KEYS)}")
    given = {"output": "runs/benchmark", "trial": "false", "readme": "false"} | own
    for key in ("trial", "readme"):
        if given[key] not in ("true", "false"):
            raise FedmaskError(f"{key}={given[key]}: must be true or false")
    if (given["readme"] == "true") == ("section" in given):
        raise FedmaskError("give either section=, to measure, or readme=true, to rewrite the README's table")
    sections = _sections(given["section"]) if "section" in given else ()
    return Request(sections, Path(given["output"]), given["trial"] == "true")


def _sections(name: str) -> tuple[str, ...]:
    if name not in (*SECTIONS, "all"):
        raise FedmaskError(f"section={name}: must be one of {', '.join(SECTIONS)}, all")
    return SECTIONS if name == "all" else (name,)


# ----------------------------------------------------------------------------------------------------------------------
# Measuring
# ----------------------------------------------------------------------------------------------------------------------


def measure(request: Request) -> None:
    """Run the sections; after every row the files are whole."""
    from benchmarks.machine import machine, machine_line
    from benchmarks.tables import section_table, verdict

    facts = machine(ROOT, request.is_trial)
    _refuse_other_rows(request)
    _write_json(request.output / "machine.json", facts)
    _write_json(request.output / "benchmark.json", [])
    console.print(machine_line(facts), markup=False)
    began = time.monotonic()
    rows: list[Row] = []
    for section in request.sections:
        rows += _measured(section, request, rows, began)
        console.print(section_table(section, [row for row in rows if row.section == section]))
        gc.collect()
    console.print("a trial: its figures mean nothing" if request.is_trial else verdict(rows), markup=False)
    console.print(f"{(time.monotonic() - began) / 60:.1f} minutes; rows in {request.output / 'benchmark.json'}")


def _refuse_other_rows(request: Request) -> None:
    """Raises FedmaskError where the folder holds a benchmark of sections that are not measured again now."""
    path = request.output / "benchmark.json"
    if not path.exists():
        return
    kept = sorted({row["section"] for row in _read_json(path)} - set(request.sections))
    if kept:
        raise FedmaskError(
            f"{path}: holds rows of {', '.join(kept)}, which would be lost; give another output=, or delete it"
        )


def _measured(section: str, request: Request, before: Sequence[Row], began: float) -> list[Row]:
    """One section's rows; told, and written with those before, as they come."""
    from benchmarks.tables import sentence

    def say(what: str) -> None:
        console.print(f"[{time.monotonic() - began:5.0f} s] {section}, {what}", markup=False)

    settings = Settings(request.is_trial, 1 if request.is_trial else REPEATS, say)
    rows: list[Row] = []
    for row in _section(section)(settings):
        rows.append(row)
        _write_json(request.output / "benchmark.json", [each.to_json() for each in (*before, *rows)])
        say(sentence(row))
    return rows


def _section(name: str) -> Callable[[Settings], Iterator[Row]]:
    try:
        rows: Callable[[Settings], Iterator[Row]] = import_module(f"benchmarks.{name}").rows
    except ModuleNotFoundError as error:
        raise FedmaskError(f"section={name}: needs the package {error.name}; `make setup` installs it") from error
    return rows


def _write_json(path: Path, content: Any) -> None:
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


# ----------------------------------------------------------------------------------------------------------------------
# The README's table
# ----------------------------------------------------------------------------------------------------------------------


def rewrite_readme(output: Path, readme: Path = ROOT / "README.md") -> None:
    """Raises FedmaskError where `output` holds no benchmark, or a trial's, or the README has no place for it."""
    from benchmarks import tables

    rows, facts = _read_json(output / "benchmark.json"), _read_json(output / "machine.json")
    missing = [section for section in SECTIONS if section not in {row["section"] for row in rows}]
    if missing:
        raise FedmaskError(f"{output}: lacks the sections {', '.join(missing)}; run section=all output={output}")
    if facts["is_trial"]:
        raise FedmaskError(f"{output}: holds a trial, whose figures mean nothing; measure without trial=true")
    tables.rewrite_readme(readme, rows, facts)
    print(readme)


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise FedmaskError(f"{path}: there is no such file; run section=all output={path.parent} first")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise FedmaskError(f"{path}: is not JSON ({error}); run section=all output={path.parent} again") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
