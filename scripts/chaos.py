"""Do harm to federations and see whether it shows:

    python scripts/chaos.py [kills=N] [replies=N] [loss=P] [byzantine=N] [liars=1] [gate=N] [deployed=N]
                            [jobs=N] [output=DIR] [KEY=VALUE ...]
    python scripts/chaos.py report=true [output=DIR]

kills=100      kills processes of scripts/simulate.py, some of them while a checkpoint is written, and resumes their
               runs, jobs= of them side by side: what is left must be what is left without a kill
replies=1000   malformed replies of all kinds: none may be accepted, and the good clients' result has the same bits
loss=0.5       every reply is lost with this probability: the test scores beside those without loss
byzantine=1    so many clients send 100 times their update, or its negative: with and without the server's protections
liars=1        one of eight clients lies about its task, its examples, its head, its client_id, its rows: nothing may
               move by more than its honest share, and the others' run goes on
gate=500       so many callers without a key send a byte a second to the gate of a real server, others big bodies,
               heads and floods of connections: a client's calls go on; takes no further keys, and a free machine
deployed=200   malformed replies to a real server by nodes with registered keys, beside a client: as with replies=

Only the parts that are named are run, with runs as the further keys say, which are those of simulate.py; kills,
replies and liars take model=tiny by default, loss and byzantine 20 rounds. Prints a table a part and ends with 1 where
one of them misses its limit. DIR, by default runs/chaos, holds the runs and chaos.json; finished runs are not made
again, so the command can be stopped at any moment and given again.
report=true rewrites the tables in docs/reliability.md and in the README with what DIR/chaos.json has of them.
"""

import preparation  # noqa: F401

# isort: split
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from faults.outcome import Outcome, Settings
from fedmask.errors import FedmaskError
from fedmask.files import locked, write_atomically
from fedmask.runs.command import asks_for_help, exit_code, own_arguments
from fedmask.runs.commit import commit_of
from server.compose import CONF, compose

ROOT = CONF.parent
PAGE = ROOT / "docs" / "reliability.md"
KEPT = ROOT / "docs" / "reliability.json"
"""The outcomes that the pages show."""
RESULTS = "chaos.json"
PARTS = ("kills", "replies", "loss", "byzantine", "liars", "gate", "deployed")
"""In the order in which they run and are told."""
OWN_KEYS = (*PARTS, "jobs", "output", "report")
NOT_TAKEN = ("compare", "resume", "overwrite", "runtime")
"""Keys of simulate.py that a part says itself, or that make runs which are no longer one process's."""
SHOWN_AS = {"output": "output=FOLDER", "data.root": "data.root=DIR"}
"""Where something lies on this machine is no part of a command that is shown."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    amounts: Mapping[str, float]
    """By part how much of it; only those that shall run. None: the pages are to be rewritten."""
    overrides: tuple[str, ...]
    jobs: int
    output: Path


def main(arguments: list[str]) -> int:
    if not arguments or asks_for_help(arguments):
        print(__doc__)
        return 0 if arguments else 2
    return exit_code(lambda: do(read_request(arguments)), when_stopped="stopped; the same command goes on from here")


def do(request: Request) -> int:
    if not request.amounts:
        return report(request.output)
    with locked(request.output, f"output={request.output}: chaos is at work there already; wait, or name another"):
        return run(request)


def read_request(arguments: Sequence[str]) -> Request:
    """Raises FedmaskError for an argument that is unknown or has no sense."""
    own, overrides = own_arguments(arguments, OWN_KEYS, paths=("output",))
    given = {"jobs": "1", "report": "false", "output": "runs/chaos"} | own
    for argument in overrides:
        key = argument.partition("=")[0]
        if key in NOT_TAKEN:
            raise FedmaskError(f"{argument}: chaos takes no {key}; its runs are its own, in one process")
    config = compose(overrides)  # all faults of the others at once
    amounts = {part: _amount(part, given[part]) for part in PARTS if part in given}
    wanted = {part: amount for part, amount in amounts.items() if amount}
    if given["report"] not in ("true", "false"):
        raise FedmaskError(f"report={given['report']}: must be true or false")
    if bool(wanted) == (given["report"] == "true"):
        raise FedmaskError(f"give either one of {', '.join(PARTS)}, each above 0, or report=true")
    if wanted.keys() - {"kills"} and (config.workers > 1 or config.baseline != "none"):
        raise FedmaskError(f"workers={config.workers} baseline={config.baseline}: give these to kills alone")
    return Request(wanted, tuple(overrides), int(_whole("jobs", given["jobs"], 1)), Path(given["output"]))


def _amount(part: str, text: str) -> float:
    if part != "loss":
        return _whole(part, text, 0)
    try:
        probability = float(text)
    except ValueError:
        probability = -1.0
    if not 0 <= probability < 1:
        raise FedmaskError(f"loss={text}: must be a number from 0 and below 1")
    return probability


def _whole(key: str, text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise FedmaskError(f"{key}={text}: must be a whole number of at least {least}")
    return int(text)


# ----------------------------------------------------------------------------------------------------------------------
# Running
# ----------------------------------------------------------------------------------------------------------------------


def run(request: Request) -> int:
    """All parts that are asked for; 0 where each is as it has to be. Each is on disk as soon as it is known."""
    from faults.pages import terminal_table
    from fedmask.runs.console import console

    began, commit, passed = time.monotonic(), commit_of(ROOT), True

    def say(what: str) -> None:
        console.print(f"[{time.monotonic() - began:5.0f} s] {what}", markup=False)

    settings = Settings(request.overrides, request.output, request.jobs, say)
    for part, amount in request.amounts.items():
        outcome = _part(part)(amount, settings)
        _keep(request, part, outcome, commit)
        console.print(terminal_table(outcome))
        for line in (*outcome.notes, f"{'met' if outcome.passed else 'MISSED'}: {outcome.figure}"):
            console.print(line, markup=False)
        passed = passed and outcome.passed
    return 0 if passed else 1


def _part(name: str) -> Callable[[Any, Settings], Outcome]:
    # Flower, torch and transformers take seconds to import: a mistyped argument is told without them.
    from faults.byzantine import byzantine
    from faults.deployed import deployed
    from faults.gate import gate
    from faults.kills import kills
    from faults.liars import liars
    from faults.loss import loss
    from faults.replies import replies

    parts: dict[str, Callable[[Any, Settings], Outcome]] = {
        "kills": kills,
        "replies": replies,
        "loss": loss,
        "byzantine": byzantine,
        "liars": liars,
        "gate": gate,
        "deployed": deployed,
    }
    return parts[name]


def _keep(request: Request, part: str, outcome: Outcome, commit: str) -> None:
    """Into chaos.json, beside the other parts' outcomes."""
    path = request.output / RESULTS
    found = _read(path) if path.exists() else {}
    found[part] = outcome.to_json() | {
        "command": _command(part, request),
        "commit": commit,
        "date": date.today().isoformat(),
    }
    ordered = {name: found[name] for name in PARTS if name in found}
    write_atomically(path, (json.dumps(ordered, indent=2) + "\n").encode())


def _command(part: str, request: Request) -> str:
    overrides = [SHOWN_AS.get(override.partition("=")[0], override) for override in request.overrides]
    words = [f"{part}={request.amounts[part]:g}", SHOWN_AS["output"], *overrides]
    return shlex.join(["python", "scripts/chaos.py", *words])


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise FedmaskError(f"{path}: there is no such file; run the parts with output={path.parent} first") from error
    except ValueError as error:
        raise FedmaskError(f"{path}: not JSON ({error})") from error
    return found


def report(output: Path) -> int:
    """Rewrite the tables in the pages, and what they are made of; parts that were not run again stay."""
    from faults.pages import rewrite

    found = {**(_read(KEPT) if KEPT.exists() else {}), **_read(output / RESULTS)}
    parts = {name: found[name] for name in PARTS if name in found}
    rewrite(PAGE, ROOT / "README.md", parts)
    write_atomically(KEPT, (json.dumps(parts, indent=2) + "\n").encode())
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
