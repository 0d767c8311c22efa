"""A deployment that nothing disturbs: memory, seconds, bytes on the network beside the ledger's; idle and in a run."""

import re
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.counting import Calls, CountingProxy
from deploy.local_demo import TASKS
from deploy.trial import Trial, lines_of, megabytes, memory_bytes, most_memory, server_memory_bytes
from fedmask.errors import FedmaskError
from fedmask.runs.console import console

ROUNDS = 3
SETTLE_SECONDS = 60
MAX_SERVER_BYTES, MAX_SECONDS_TO_STEP = 1e9, 3.0

_FIRST_STEP = re.compile(
    r"round \d+: ([0-9.]+) s from the process's start to its first step, ([0-9.]+) s of them on a CPU"
)


def idle(trial: Trial, seconds: int) -> None:
    """Once all clients are known to the server."""
    console.print(f"nothing to do for {seconds} s, after a minute to settle", markup=False)
    time.sleep(SETTLE_SECONDS)
    before = _network(trial.proxies)
    time.sleep(seconds)
    up, down = (
        (after - earlier) / len(TASKS) / seconds for after, earlier in zip(_network(trial.proxies), before, strict=True)
    )
    trial.tell("idle: bytes a client and hour on the network", f"{up * 3600:,.0f} up, {down * 3600:,.0f} down")
    trial.tell("idle: the server's memory, gate included", megabytes(server_memory_bytes(trial.site)))
    for name, client_id in (("warm", 0), ("cold", 1)):
        trial.tell(f"idle: a client's memory, {name}", megabytes(memory_bytes(trial.site.client(client_id))))


def _network(proxies: Sequence[CountingProxy]) -> tuple[int, int]:
    """(up, down) bytes of all clients until now."""
    return sum(proxy.up_bytes for proxy in proxies), sum(proxy.down_bytes for proxy in proxies)


def short_run(trial: Trial) -> None:
    """Time, memory, and what the network sees beside the ledger."""
    run = trial.output / "short"
    trial.gate.calls.clear()
    before, began = [(proxy.up_bytes, proxy.down_bytes) for proxy in trial.proxies], time.monotonic()
    with most_memory(trial.site) as most:
        trial.site.submit([*trial.overrides, f"rounds={ROUNDS}", f"output={run}"])
    seconds = time.monotonic() - began
    peak = max(most)
    trial.tell(
        "a run: the server's memory at most, gate included", megabytes(peak), "under 1 GB", peak < MAX_SERVER_BYTES
    )
    rounds = lines_of(run / "rounds.jsonl")
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
    ledger = lines_of(run / "communication.jsonl")
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
