"""What a deployment comes to, measured on this machine: a server, its gate and three clients, real processes over TLS.

    python scripts/deploy/figures.py output=DIR [rounds=12] [idle_seconds=120] [key=value ...]
    python scripts/deploy/figures.py output=DIR report=true        # rewrites the table in docs/deployment.md

1. Nothing to do for idle_seconds: bytes of a client, memory of a client and of the server.
2. A run of three rounds: seconds from a message to its first step, memory of the server, bytes beside the ledger's.
3. A run of `rounds`: a client is killed and started again in every third round, one hangs, one is cut off, the server
   is killed and the run resumed. The same in one process, and on Ray: the three adapters byte by byte.

Client 0 is a warm one. Other keys are those of simulate.py, for all runs; by default MiniLM with mask=hiwi. DIR holds
figures.json, the runs and the logs. Needs Linux's /proc.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import preparation  # noqa: F401

# isort: split
import json
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date

from deploy import flower
from deploy.arguments import told_in_one_line
from deploy.counting import CountedGate, CountingProxy
from deploy.local_demo import TASKS, Site, running
from deploy.submit import checked
from deploy.survival import survival
from deploy.trial import Trial
from deploy.undisturbed import idle, short_run
from fedmask.errors import FedmaskError
from fedmask.files import write_atomically
from fedmask.runs.command import own_arguments
from fedmask.runs.commit import commit_of
from fedmask.runs.markers import replaced_between

PAGE = flower.ROOT / "docs" / "deployment.md"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
RESULTS = "figures.json"
OWN_KEYS = ("output", "rounds", "idle_seconds", "report")
DEFAULTS = ("model=minilm", "mask=hiwi", "threads=1", "data.examples_per_client=32", "client.batch_size=8")
DEFAULTS += (f"clients={len(TASKS)}", "score_every=100", "score_test=false")


def main(arguments: list[str]) -> None:
    given, others = own_arguments(arguments, OWN_KEYS, paths=("output",))
    if "output" not in given:
        raise FedmaskError("give output=DIR")
    output = Path(given["output"]).resolve()
    if given.get("report") == "true":
        report(output)
        return
    if output.exists():
        raise FedmaskError(f"output={output}: is there already; name a new folder")
    rounds, idle_seconds = (_whole(given, key, default) for key, default in (("rounds", 12), ("idle_seconds", 120)))
    overrides = (*DEFAULTS, *others)
    checked(["data=own", *overrides])
    commit = commit_of(flower.ROOT)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # so that its processes end with it
    with deployment(output, overrides) as trial:
        idle(trial, idle_seconds)
        short_run(trial)
        survival(trial, rounds)
    command = shlex.join(["python", "scripts/deploy/figures.py", *_shown(arguments)])
    told = {"command": command, "commit": commit, "date": date.today().isoformat()}
    told["figures"] = [asdict(figure) for figure in trial.figures]
    write_atomically(output / RESULTS, (json.dumps(told, indent=2) + "\n").encode())
    if any(figure.met is False for figure in trial.figures):
        raise FedmaskError("a limit is missed; see above")


def _whole(given: Mapping[str, str], key: str, default: int) -> int:
    text = given.get(key, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise FedmaskError(f"{key}={text}: must be a whole number of at least 1")
    return int(text)


def _shown(arguments: Sequence[str]) -> list[str]:
    return ["output=DIR" if each.startswith("output=") else each for each in arguments]


@contextmanager
def deployment(output: Path, overrides: tuple[str, ...]) -> Iterator[Trial]:
    """Server, gate and clients, each client behind a proxy of its own; all of it ends with the block."""
    site = Site(output / "deployment")
    proxies = [CountingProxy(site.gate_port) for _ in TASKS]
    with running(site, TASKS, [proxy.port for proxy in proxies], warm=[0]):
        gate = CountedGate(site.server, site.keys, site.port)
        proxies[0].target_port = gate.port
        proxies[0].cut(0)  # what was connected before
        yield Trial(site, gate, proxies, overrides, output)
    for proxy in proxies:
        proxy.close()


# ---- the page --------------------------------------------------------------------------------------------------------


def report(output: Path) -> None:
    """Rewrite the table. Raises FedmaskError where the figures or the markers are not there."""
    path = output / RESULTS
    if not path.exists():
        raise FedmaskError(f"{path}: there is no such file; run it without report=true first")
    told = json.loads(path.read_text())
    lines = ["", "```", told["command"], "```", "", "| | | has to be | met |", "| --- | ---: | --- | --- |"]
    for figure in told["figures"]:
        met = {True: "yes", False: "**no**", None: ""}[figure["met"]]
        lines.append(f"| {figure['what']} | {figure['value']} | {figure['limit']} | {met} |")
    lines += ["", f"Commit {told['commit']}, {told['date']}.", ""]
    write_atomically(PAGE, replaced_between(PAGE, BEGIN, END, "\n".join(lines)).encode())
    print(PAGE)


if __name__ == "__main__":
    sys.exit(told_in_one_line(main, sys.argv[1:], __doc__))
