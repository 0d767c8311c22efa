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

import json
import os
import random
import re
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from deploy import flower, submit
from deploy.arguments import told_in_one_line
from deploy.counting import Calls, CountedGate, CountingProxy
from deploy.local_demo import TASKS, Site, processes_of, running
from fedmask.errors import FedmaskError
from fedmask.files import write_atomically
from fedmask.runs.commit import commit_of
from fedmask.runs.console import console
from fedmask.runs.markers import replaced_between

PAGE = flower.ROOT / "docs" / "deployment.md"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
RESULTS = "figures.json"
OWN_KEYS = ("output", "rounds", "idle_seconds", "report")
DEFAULTS = ("model=minilm", "mask=hiwi", "threads=1", "data.examples_per_client=32", "client.batch_size=8")
DEFAULTS += (f"clients={len(TASKS)}", "score_every=100", "score_test=false")
EVERYBODY = (f"server.min_replies={len(TASKS)}", "server.max_retries=50", "server.timeout_seconds=120")
"""A round is repeated until all clients have answered, so that runs can be held against each other."""
SHORT_ROUNDS = 3
KILL_EVERY = 3
MAX_RESUMES = 3
HARM_SECONDS = 150.0
"""For which a client hangs or is cut off: longer than a round may take."""
MEGABYTE = 1e6
MAX_SERVER_BYTES, MAX_SECONDS_TO_STEP = 1e9, 3.0

_FIRST_STEP = re.compile(
    r"round \d+: ([0-9.]+) s from the process's start to its first step, ([0-9.]+) s of them on a CPU"
)


@dataclass
class Figure:
    """One line of the table."""

    what: str
    value: str
    limit: str = ""
    met: bool | None = None


@dataclass
class Trial:
    """The deployment, and what counts around it."""

    site: Site
    gate: CountedGate
    """Of client 0; the others come through the server's own."""
    proxies: list[CountingProxy]
    """By client."""
    overrides: tuple[str, ...]
    output: Path
    figures: list[Figure] = field(default_factory=list)

    def tell(self, what: str, value: str, limit: str = "", met: bool | None = None) -> None:
        self.figures.append(Figure(what, value, limit, met))
        judged = "" if met is None else f" ({limit}: {'met' if met else 'MISSED'})"
        console.print(f"{what}: {value}{judged}", markup=False)


def main(arguments: list[str]) -> None:
    given = {key: value for key, _, value in (argument.partition("=") for argument in arguments) if key in OWN_KEYS}
    if not given.get("output"):
        raise FedmaskError("give output=DIR")
    output = Path(given["output"]).resolve()
    if given.get("report") == "true":
        report(output)
        return
    if output.exists():
        raise FedmaskError(f"output={output}: is there already; name a new folder")
    rounds, idle_seconds = (_whole(given, key, default) for key, default in (("rounds", 12), ("idle_seconds", 120)))
    overrides = (*DEFAULTS, *(each for each in arguments if each.partition("=")[0] not in OWN_KEYS))
    commit = commit_of(flower.ROOT)
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
        gate = CountedGate(site.keys, site.port)
        proxies[0].target_port = gate.port
        yield Trial(site, gate, proxies, overrides, output)
    for proxy in proxies:
        proxy.close()


# ---- nothing to do ---------------------------------------------------------------------------------------------------


def idle(trial: Trial, seconds: int) -> None:
    """Once all clients are known to the server."""
    console.print(f"nothing to do for {seconds} s, after a minute to settle", markup=False)
    time.sleep(60)
    before = _network(trial.proxies)
    time.sleep(seconds)
    up, down = (
        (after - earlier) / len(TASKS) / seconds for after, earlier in zip(_network(trial.proxies), before, strict=True)
    )
    trial.tell("idle: bytes a client and hour on the network", f"{up * 3600:,.0f} up, {down * 3600:,.0f} down")
    trial.tell("idle: the server's memory, gate apart", _megabytes(memory_bytes(trial.site.server)))
    for name, client_id in (("warm", 0), ("cold", 1)):
        trial.tell(f"idle: a client's memory, {name}", _megabytes(memory_bytes(trial.site.client(client_id))))


def _network(proxies: Sequence[CountingProxy]) -> tuple[int, int]:
    """(up, down) bytes of all clients until now."""
    return sum(proxy.up_bytes for proxy in proxies), sum(proxy.down_bytes for proxy in proxies)


def memory_bytes(folder: Path) -> int:
    """Proportional set size of all processes whose Flower files lie in this folder."""
    return sum(_pss(number) for number in processes_of(folder))


def _pss(process_id: int) -> int:
    try:
        lines = Path(f"/proc/{process_id}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


# ---- a run that nothing disturbs -------------------------------------------------------------------------------------


def short_run(trial: Trial) -> None:
    """Time, memory, and what the network sees beside the ledger."""
    run = trial.output / "short"
    trial.gate.calls.clear()
    before, began = [(proxy.up_bytes, proxy.down_bytes) for proxy in trial.proxies], time.monotonic()
    with most_memory(trial.site.server) as most:
        trial.site.submit([*trial.overrides, f"rounds={SHORT_ROUNDS}", f"output={run}"])
    seconds = time.monotonic() - began
    peak = max(most)
    trial.tell(
        "a run: the server's memory at most, gate apart", _megabytes(peak), "under 1 GB", peak < MAX_SERVER_BYTES
    )
    rounds = _lines(run / "rounds.jsonl")
    trial.tell("a run: seconds a round, median", f"{statistics.median(float(line['seconds']) for line in rounds):.1f}")
    _tell_first_steps(trial)
    _tell_bytes(trial, run, (trial.proxies[0].up_bytes - before[0][0], trial.proxies[0].down_bytes - before[0][1]))
    trial.tell("a run: seconds from its submission to its end", f"{seconds:.0f}")


def _tell_first_steps(trial: Trial) -> None:
    for name, client_id in (("warm", 0), ("cold", 1)):
        log = (trial.site.logs / f"client-{client_id:05d}.log").read_text(errors="replace")
        taken = [(float(each[1]), float(each[2])) for each in _FIRST_STEP.finditer(log)]
        if not taken:
            raise FedmaskError(f"client {client_id} has not told when it took its first step; see {trial.site.logs}")
        seconds, on_cpu = (statistics.median(each) for each in zip(*taken, strict=True))
        what = f"a run: seconds from a process's start to its first step (of them on a CPU), {name}, median"
        limit = ("under 3", seconds < MAX_SECONDS_TO_STEP) if name == "warm" else ("", None)
        trial.tell(what, f"{seconds:.1f} ({on_cpu:.1f})", *limit)


def _tell_bytes(trial: Trial, run: Path, network: tuple[int, int]) -> None:
    """Of client 0, in the order of the protocol; what no body holds is headers and TLS."""
    ledger = _lines(run / "communication.jsonl")
    told = [_sum(ledger, "up"), _sum(ledger, "down")]
    calls = dict(sorted(trial.gate.calls.items(), key=lambda item: -item[1].number))
    bodies = [sum(each.up_bytes for each in calls.values()), sum(each.down_bytes for each in calls.values())]
    trial.tell("a run, client 0: bytes in the ledger", _both(told))
    trial.tell("a run, client 0: bytes of HTTP bodies", _both(bodies))
    trial.tell("a run, client 0: bytes on the network", _both(network))
    number = sum(each.number for each in calls.values())
    rest = [(seen - body) / number for seen, body in zip(network, bodies, strict=True)]
    trial.tell("of it headers and TLS, a call", _both(rest))
    for name, each in calls.items():
        trial.tell(f"calls of {name}", _shown_calls(each))


def _sum(ledger: Sequence[Mapping[str, object]], direction: str) -> int:
    return sum(
        int(str(line["wire_bytes"])) for line in ledger if line["client"] == 0 and line["direction"] == direction
    )


def _both(numbers: Sequence[float]) -> str:
    return f"{numbers[0]:,.0f} up, {numbers[1]:,.0f} down"


def _shown_calls(calls: Calls) -> str:
    return f"{calls.number:,}, bodies of {_both((calls.up_bytes, calls.down_bytes))}"


@contextmanager
def most_memory(folder: Path) -> Iterator[list[int]]:
    """Bytes of the processes of this folder, again and again while the block runs."""
    seen, over = [memory_bytes(folder)], threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            seen.append(memory_bytes(folder))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


# ---- a run that is killed --------------------------------------------------------------------------------------------


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
    for number in (stopped := processes_of(trial.site.folder / name)):
        os.kill(number, signal.SIGSTOP)
    time.sleep(HARM_SECONDS)
    for number in stopped:
        os.kill(number, signal.SIGCONT)


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
    repeated = sum(int(str(line.get("retries", 0))) for line in _lines(run / "rounds.jsonl"))
    trial.tell(
        "in it", f"{repeated} repeated rounds, {len(_lines(run / 'resumes.jsonl'))} resumes that came to a round"
    )


def _simulated(output: Path, overrides: Sequence[str]) -> bytes:
    """The adapter of the same clients with the same data, without a network."""
    data = ["data=demo", f"data.tasks=[{','.join(TASKS)}]", "data.partition=iid"]
    script = flower.ROOT / "scripts" / "simulate.py"
    subprocess.run([sys.executable, str(script), *overrides, *data, f"output={output}"], check=True)
    return (output / "adapter.safetensors").read_bytes()


def _rounds_done(run: Path) -> int:
    return len(_lines(run / "rounds.jsonl"))


def _lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


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


def _megabytes(num_bytes: float) -> str:
    return f"{num_bytes / MEGABYTE:,.0f} MB"


if __name__ == "__main__":
    sys.exit(told_in_one_line(main, sys.argv[1:], __doc__))
