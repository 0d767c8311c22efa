"""SIGKILLs of scripts/simulate.py, each followed by a resume; what is left in the end beside what no kill disturbed.

A chain is one run: its process is killed up to KILLS_A_CHAIN times, resumed each time, and let end. Half of the kills
come at a random moment of what the run has still to do, a quarter in the writing of a checkpoint and a quarter in that
of a client's state, where half of the file is on the disk then; a run whose clients keep no state has all of the other
half in checkpoints.
"""

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from faults.left import differences, left_by
from faults.outcome import Outcome, Settings
from faults.runs import Finished, arguments_for, resume
from fedmask.errors import FedmaskError
from fedmask.files import write_atomically
from fedmask.randomness import seed_for
from fedmask.runs.config import RunConfig
from fedmask.runs.folder import ADAPTER, CHECKPOINTS, CLIENTS, holds_run
from server.compose import compose

SIMULATE = Path(__file__).resolve().parent.parent / "simulate.py"
DYING = Path(__file__).resolve().parent / "dying.py"
DEFAULTS = (
    "model=tiny",
    "threads=1",
    "clients=5",
    "rounds=6",
    "data.examples_per_client=20",
    "client.batch_size=5",
)
LEAST_ROUNDS = 6
KILLS_A_CHAIN = 4
PROCESS_SECONDS = 3600.0
"""After which a process that does not end is a failure."""

AT_RANDOM, IN_CHECKPOINT, IN_STATE = "at a random moment", "in the writing of a checkpoint", "in the writing of a state"
_PATHS = {IN_CHECKPOINT: f"/{CHECKPOINTS}/", IN_STATE: "/state/"}


@dataclass(frozen=True)
class Chain:
    """One run that was killed and resumed until it ended."""

    kills: dict[str, int]
    """By kind."""
    found_writing: int
    """Kills at a random moment that left a half-written file."""
    fault: str
    """Why it did not end as the undisturbed run did; empty where it did."""


def kills(number: int, settings: Settings) -> Outcome:
    """Kill `number` processes. Raises FedmaskError for runs that cannot be used."""
    overrides = (*DEFAULTS, *settings.overrides)
    _check(compose(overrides))
    folder = settings.output / "kills"
    expected = _undisturbed(folder / "undisturbed", overrides, settings)
    chains = _chains_before(folder)
    while (missing := number - sum(sum(chain.kills.values()) for chain in chains)) > 0:
        before = len(chains)
        planned = [
            (before + i, min(KILLS_A_CHAIN, missing - first))
            for i, first in enumerate(range(0, missing, KILLS_A_CHAIN))
        ]
        with ThreadPoolExecutor(settings.jobs) as pool:
            for chain in pool.map(lambda plan: _chain(folder, overrides, expected, *plan), planned):
                chains.append(chain)
                write_atomically(folder / "chains.json", json.dumps([asdict(each) for each in chains]).encode())
                settings.say(f"kills, chain {len(chains)}: {chain.kills} {chain.fault or 'ended with the same bits'}")
        if not any(chain.kills for chain in chains[before:]):
            raise FedmaskError(f"{folder}: no process could be killed in time; take more rounds")
    return _outcome(chains, expected)


def _check(config: RunConfig) -> None:
    if config.rounds < LEAST_ROUNDS:
        raise FedmaskError(f"rounds={config.rounds}: kills needs at least {LEAST_ROUNDS}")


def _chains_before(folder: Path) -> list[Chain]:
    """Those of an earlier start of this command: their number seeds the next ones."""
    path = folder / "chains.json"
    return [Chain(**chain) for chain in json.loads(path.read_text())] if path.exists() else []


def _undisturbed(folder: Path, overrides: tuple[str, ...], settings: Settings) -> Finished:
    settings.say("kills: the run that nothing disturbs")
    process = _Process([str(SIMULATE), *arguments_for(folder, overrides)], folder.with_suffix(".log"))
    if fault := process.fault():
        raise FedmaskError(f"{folder}: the run that nothing disturbs {fault}")
    return Finished(folder, compose(resume(folder, overrides)))


# ----------------------------------------------------------------------------------------------------------------------
# One chain
# ----------------------------------------------------------------------------------------------------------------------


def _chain(folder: Path, overrides: tuple[str, ...], expected: Finished, chain_id: int, num_kills: int) -> Chain:
    """The folder of a chain that ended as it should is removed."""
    output = folder / f"chain-{chain_id:04d}"
    if output.exists():  # of a command that was stopped: what it was killed by is not known
        shutil.rmtree(output)
    generator = random.Random(seed_for(expected.config.seed, "kills", chain_id))
    counted, found_writing, fault = Counter[str](), 0, ""
    for planned in _kinds(expected, generator)[:num_kills]:
        kind, process = _start(planned, output, overrides, expected, generator)
        fault = process.fault()
        if process.was_killed:
            counted[kind] += 1
            found_writing += kind == AT_RANDOM and _is_half_written(output)
        if fault or not process.was_killed:
            break
    else:
        fault = _Process([str(SIMULATE), *_arguments(output, overrides)], output.with_suffix(".log")).fault()
    fault = fault or _difference(output, expected)
    if not fault:
        shutil.rmtree(output)
    return Chain(dict(counted), found_writing, fault)


def _kinds(expected: Finished, generator: random.Random) -> list[str]:
    """Of a chain's kills, in the order of the draw."""
    config = expected.config
    # The clients of other processes write their states there.
    keeps_state = config.workers == 1 and any(expected.folder.glob(f"{CLIENTS}/*/state/*"))
    kinds = [AT_RANDOM, AT_RANDOM, IN_CHECKPOINT, IN_STATE if keeps_state else IN_CHECKPOINT]
    generator.shuffle(kinds)
    return kinds


def _start(
    planned: str, output: Path, overrides: tuple[str, ...], expected: Finished, generator: random.Random
) -> tuple[str, "_Process"]:
    """A process that will not see its end, and the kind of its kill: at random where no such file is left to write."""
    arguments, log = _arguments(output, overrides), output.with_suffix(".log")
    rounds_left = expected.config.rounds - _rounds_done(output)
    if planned != AT_RANDOM and rounds_left:
        clients = expected.config.clients_per_round or expected.config.clients
        write = generator.randint(1, rounds_left * (clients if planned == IN_STATE else 1))
        return planned, _Process([str(DYING), _PATHS[planned], str(write), *arguments], log)
    process = _Process([str(SIMULATE), *arguments], log)
    process.kill_at(generator.uniform(0, 0.9) * _seconds_left(expected, _rounds_done(output)))
    return AT_RANDOM, process


def _arguments(output: Path, overrides: tuple[str, ...]) -> list[str]:
    """Of the process that begins the run, or goes on with it."""
    return resume(output, overrides) if holds_run(output) else [*overrides, f"output={output}"]


def _is_half_written(output: Path) -> bool:
    return bool([*output.glob(f"{CHECKPOINTS}/.*.part"), *output.glob(f"{CLIENTS}/**/.*.part")])


def _rounds_done(output: Path) -> int:
    names = sorted(path.stem for path in output.glob(f"{CHECKPOINTS}/round-*.safetensors"))
    return int(names[-1].removeprefix("round-")) if names else 0


def _seconds_left(expected: Finished, rounds_done: int) -> float:
    """What a process takes for the rest of the run, from the moment at which it has read its data."""
    done = sum(line["seconds"] for line in expected.rounds[:rounds_done])
    return float(expected.summary["seconds"] - done)


def _difference(output: Path, expected: Finished) -> str:
    try:
        names = differences(left_by(output), left_by(expected.folder))
    except FedmaskError as error:
        return str(error)
    return f"not as the undisturbed run left them: {', '.join(names)}" if names else ""


class _Process:
    """A Python script in a process of its own; what it prints goes into a file."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("w") as file:
            self._process = subprocess.Popen([sys.executable, *arguments], stdout=file, stderr=subprocess.STDOUT)
        self._deadline = time.monotonic() + PROCESS_SECONDS

    def kill_at(self, seconds: float) -> None:
        """So many seconds after it has read its data, unless it has ended by then."""
        while not any(line.startswith("run folder: ") for line in self._lines()):
            if self._process.poll() is not None or time.monotonic() > self._deadline:
                return
            time.sleep(0.005)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def fault(self) -> str:
        """Waits for the end; says why it is none that a process may have: empty where it is one."""
        try:
            code = self._process.wait(max(0.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return f"had not ended after {PROCESS_SECONDS:g} s"
        if code not in (0, -signal.SIGKILL):
            return f"ended with code {code}: {next(reversed(self._lines()), 'it said nothing')}"
        # A write that was cut off must never be what a resume finds.
        return next((line for line in self._lines() if "damaged" in line), "")

    @property
    def was_killed(self) -> bool:
        return self._process.returncode == -signal.SIGKILL

    def _lines(self) -> list[str]:
        return self._log.read_text(errors="replace").splitlines()


# ----------------------------------------------------------------------------------------------------------------------
# All chains
# ----------------------------------------------------------------------------------------------------------------------


def _outcome(chains: list[Chain], expected: Finished) -> Outcome:
    good = [chain for chain in chains if not chain.fault]
    total, survived = (sum((Counter(chain.kills) for chain in some), Counter[str]()) for some in (chains, good))
    found_writing = sum(chain.found_writing for chain in chains)
    faults = [f"chain {number}: {chain.fault}." for number, chain in enumerate(chains) if chain.fault]
    return Outcome(
        title="A process that is killed and resumed",
        limit="every kill ends in the bits of the undisturbed run",
        figure=f"{survived.total()} of {total.total()} kills ended in the same bits, {survived[IN_CHECKPOINT]} of them "
        "in the writing of a checkpoint",
        passed=survived.total() == total.total(),
        columns=("killed by SIGKILL", "kills", "of runs that ended in the same bits"),
        rows=tuple((kind, str(total[kind]), str(survived[kind])) for kind in sorted(total)),
        notes=(*faults, *_notes(len(chains), found_writing, expected)),
    )


def _notes(num_chains: int, found_writing: int, expected: Finished) -> Iterator[str]:
    adapter = expected.folder / ADAPTER
    digest = f" (SHA-256 {hashlib.sha256(adapter.read_bytes()).hexdigest()[:16]}...)" if adapter.exists() else ""
    yield (
        f"{num_chains} runs of {expected.config.rounds} rounds, up to {KILLS_A_CHAIN} kills each; a kill counts where "
        "the process died of it. Random moments are drawn evenly over what was left to do once the data were read; "
        f"{found_writing} of them, too, left a half-written checkpoint or state. In the other kills half of the file "
        "was on the disk."
    )
    yield (
        f"Same bits: the adapter{digest}, heads, clients' states, checkpoints, rounds.jsonl and summary.json but for "
        "seconds, communication.jsonl; and no resume found a damaged file."
    )
