"""A run whose clients and server are killed, hang and are cut off: what it ends in beside runs without any of that."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from deploy import flower, submit
from deploy.local_demo import TASKS, Site, processes_of
from deploy.trial import Trial, lines_of
from fedmask.errors import FedmaskError
from fedmask.runs.console import console

EVERYBODY = (f"server.min_replies={len(TASKS)}", "server.max_retries=50", "server.timeout_seconds=120")
"""A round is repeated until all clients have answered, so that runs can be held against each other."""
KILL_EVERY = 3
MAX_RESUMES = 3
HARM_SECONDS = 150.0
"""For which a client hangs or is cut off: longer than a round may take."""


def survival(trial: Trial, rounds: int) -> None:
    """All harm in mid-round; the adapter that comes out beside those of one process and of Ray."""
    run, site = trial.output / "harmed", trial.site
    overrides = [*trial.overrides, *EVERYBODY, f"rounds={rounds}"]
    harms = deque(_harms(rounds))
    num_resumes = 0
    _submit(site, *overrides, f"output={run}")
    while (code := site.processes["run"].poll()) != 0:
        if code is not None and num_resumes == MAX_RESUMES:
            raise FedmaskError(f"{run}: does not come to its end, resumed {num_resumes} times; see {site.logs}")
        if code is not None:  # its server was killed
            num_resumes += 1
            _submit(site, f"resume={run}")
        elif harms and _rounds_done(run) + 1 >= harms[0][0]:
            time.sleep(random.uniform(0, 5))
            server_round, harm, name = harms.popleft()
            console.print(f"round {server_round}: {name} {harm}", markup=False)
            HARMS[harm](trial, name)
        time.sleep(0.2)
    del site.processes["run"]
    _tell_survival(trial, run, overrides, rounds)


def _harms(rounds: int) -> list[tuple[int, str, str]]:
    """In which round what happens to whom, in the order of the rounds."""
    kills = [(number, "is killed", _client(number // KILL_EVERY)) for number in range(KILL_EVERY, rounds, KILL_EVERY)]
    once = ((4, "hangs", _client(0)), (5, "is cut off", _client(2)), (rounds // 2 + 1, "is killed", "server"))
    return sorted([*kills, *(harm for harm in once if harm[0] < rounds)])


def _client(number: int) -> str:
    return f"client-{number % len(TASKS):05d}"


def _submit(site: Site, *overrides: str) -> None:
    command = [sys.executable, str(Path(submit.__file__)), f"folder={site.server}", *overrides]
    site.processes["run"] = subprocess.Popen(command)


def _kill(trial: Trial, name: str) -> None:
    """At once, with all that it started; and started again."""
    site = trial.site
    site.kill(name, site.folder / name)
    if name == "server":
        site.start_server()
    else:
        site.start_client(_client_id(name))


def _hang(trial: Trial, name: str) -> None:
    """Until after the round's time is over."""
    stopped = set[int]()
    while more := set(processes_of(trial.site.folder / name)) - stopped:  # one may be starting another
        for number in more:
            _signal(number, signal.SIGSTOP)
        stopped |= more
    time.sleep(HARM_SECONDS)
    for number in stopped:
        _signal(number, signal.SIGCONT)


def _signal(process_id: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.kill(process_id, number)


def _cut_off(trial: Trial, name: str) -> None:
    trial.proxies[_client_id(name)].cut(HARM_SECONDS)


def _client_id(name: str) -> int:
    return int(name.rpartition("-")[2])


HARMS: Mapping[str, Callable[[Trial, str], None]] = {"is killed": _kill, "hangs": _hang, "is cut off": _cut_off}


def _tell_survival(trial: Trial, run: Path, overrides: Sequence[str], rounds: int) -> None:
    adapter = (run / "adapter.safetensors").read_bytes()
    counted = Counter(f"{'the server' if name == 'server' else 'a client'} {harm}" for _, harm, name in _harms(rounds))
    harms = ", ".join(f"{harm} {number} x" for harm, number in counted.items())
    for where, runtime in (("in one process", ()), ("on Ray", ("runtime=ray", "ray.client_cpus=1"))):
        same = adapter == _simulated(trial.output / where.replace(" ", "-"), [*overrides, *runtime])
        value = "the same bytes" if same else "other bytes"
        what = f"{rounds} rounds, {harms}: the adapter beside that of a run {where}"
        trial.tell(what, value, "the same bytes", same)
    repeated = sum(int(str(line.get("retries", 0))) for line in lines_of(run / "rounds.jsonl"))
    trial.tell(
        "in it", f"{repeated} repeated rounds, {len(lines_of(run / 'resumes.jsonl'))} resumes that came to a round"
    )


def _simulated(output: Path, overrides: Sequence[str]) -> bytes:
    """The adapter of the same clients with the same data, without a network."""
    data = ["data=demo", f"data.tasks=[{','.join(TASKS)}]", "data.partition=iid"]
    script = flower.ROOT / "scripts" / "simulate.py"
    subprocess.run([sys.executable, str(script), *overrides, *data, f"output={output}"], check=True)
    return (output / "adapter.safetensors").read_bytes()


def _rounds_done(run: Path) -> int:
    return len(lines_of(run / "rounds.jsonl"))
