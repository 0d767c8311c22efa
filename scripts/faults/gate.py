"""Callers without a key before a real server and its gate, while a registered client goes on calling.

The client is Flower's own code with a key of its own; the callers are a process apart (crowd.py). All of it runs on
this machine over TLS, for some seconds each kind.
"""

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from deploy.arguments import LOOPBACK
from deploy.local_demo import Site, processes_of
from deploy.make_keys import AUTHORITY, CLIENT_KEY, make_client_key, make_server_certificate
from deploy.trial import MEGABYTE
from faults.outcome import Outcome, Settings
from fedmask.errors import FedmaskError

CROWD = Path(__file__).resolve().parent / "crowd.py"
SECONDS = 30.0
"""Of each kind."""
MAX_SECONDS, MAX_GATE_BYTES, MAX_GROWTH_BYTES = 2.0, 200e6, 10e6
PAUSE_SECONDS, GIVE_UP_SECONDS = 0.1, 60.0
"""Between two calls of a client, and for which it tries one."""
KINDS = {
    "slow": ("send a byte a second", 1.0),
    "giants": ("a body of 60 MB each", 0.2),
    "bodies": ("a body of 15 MB each", 0.2),
    "heads": ("2 MB of headers each", 0.2),
    "silent": ("connect and say nothing", 2.0),
    "new": ("connect, leave and come again", 0.1),
}
"""What callers of a kind do, and their number as a part of what was asked for."""
COLUMNS = ("what callers do", "callers at once", "connections", "a client's calls", "longest, kept connection, s")
COLUMNS += ("longest, new connection, s", "gate, MB at most", "server, MB more")


Seconds = dict[str, list[float]]
"""From the first try of a call to its answer: over a connection that is kept, and over new ones."""


@dataclass(frozen=True)
class Client:
    """A registered one that is there."""

    port: int
    authority: Path
    key: ec.EllipticCurvePrivateKey

    def connect(self) -> FleetHttpClient:
        signing = [NodeAuthHttpInterceptor(self.key, self.key.public_key())]
        where = f"{LOOPBACK}:{self.port}"
        return FleetHttpClient.from_server_address(where, False, str(self.authority), signing)

    def activate(self) -> PullMessagesRequest:
        """The call by which it asks for messages from then on."""
        public = public_key_to_bytes(self.key.public_key())
        with closing(self.connect()) as connection:
            node = connection.ActivateNode(ActivateNodeRequest(public_key=public, heartbeat_interval=600.0))
        return PullMessagesRequest(node=Node(node_id=node.node_id))


@dataclass(frozen=True)
class Row:
    """What a kind of callers came to."""

    what: str
    callers: int
    connections: int
    calls: Seconds
    gate: int
    """Bytes at most."""
    grown: int
    """Bytes of the server, beside those without callers."""

    @property
    def longest(self) -> list[float]:
        return [max(seconds, default=GIVE_UP_SECONDS) for seconds in self.calls.values()]

    def shown(self) -> tuple[str, ...]:
        answered = sum(map(len, self.calls.values()))
        numbers = (f"{number:,}" for number in (self.callers, self.connections, answered))
        return (self.what, *numbers, *(f"{seconds:.2f}" for seconds in self.longest), _mb(self.gate), _mb(self.grown))


def gate(number: int, settings: Settings) -> Outcome:
    """`number` slow callers, and of other kinds in proportion. Made anew each time."""
    folder = (settings.output / "gate").resolve()
    if folder.exists():
        shutil.rmtree(folder)
    site = Site(folder)
    with _server(site) as client:
        asked = client.activate()
        rows = [_row("nobody calls", 0, client, asked, site, lambda: time.sleep(SECONDS) or 0)]
        for kind, (what, _) in KINDS.items():
            callers = _part(kind, number)
            settings.say(f"gate: {callers} callers without a key: {what}, for {SECONDS:.0f} s")
            rows.append(_row(what, callers, client, asked, site, partial(_crowd, kind, callers, client)))
    normal = rows[0].grown
    rows = [replace(row, grown=row.grown - normal) for row in rows]
    return _outcome(number, rows, (site.logs / "gate.log").read_text(errors="replace"))


def _part(kind: str, number: int) -> int:
    return max(1, round(number * KINDS[kind][1]))


def _row(
    what: str, callers: int, client: Client, asked: PullMessagesRequest, site: Site, work: Callable[[], int]
) -> Row:
    """work: gives the number of connections. The server's memory stands in it as it is."""
    process_id = site.processes["gate"].pid
    _forget_most(process_id)
    with _calling(client, asked) as calls:
        connections = work()
    site.check_alive()
    return Row(what, callers, connections, calls, _most(process_id), _own_bytes(site))


@contextmanager
def _server(site: Site) -> Iterator[Client]:
    """A server, its gate and its only client."""
    make_server_certificate(site.keys, [])
    make_client_key(site.client(0))
    try:
        site.start_server()
        site.start_gate()
        site.register(0)
        key = load_ssh_private_key((site.client(0) / CLIENT_KEY).read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        yield Client(site.gate_port, site.keys / AUTHORITY, key)
    finally:
        site.end()


@contextmanager
def _calling(client: Client, asked: PullMessagesRequest) -> Iterator[Seconds]:
    """The client calls in both ways while the block runs."""
    over = threading.Event()
    kept = client.connect()

    def call_anew() -> None:
        with closing(client.connect()) as connection:
            connection.PullMessages(asked)

    def call(once: Callable[[], object], seconds: list[float]) -> None:
        while not over.wait(PAUSE_SECONDS):
            seconds.append(_seconds_to_answer(once))

    ways: dict[str, Callable[[], object]] = {"kept": lambda: kept.PullMessages(asked), "new": call_anew}
    found: Seconds = {way: [] for way in ways}
    threads = [threading.Thread(target=call, args=(once, found[way])) for way, once in ways.items()]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        over.set()
        for thread in threads:
            thread.join()
        kept.close()


def _seconds_to_answer(once: Callable[[], object]) -> float:
    """With all tries: a client of Flower's tries again as well."""
    began = time.monotonic()
    while True:
        try:
            once()
        except (httpx.TransportError, httpx.HTTPStatusError):
            time.sleep(PAUSE_SECONDS)
            if time.monotonic() - began > GIVE_UP_SECONDS:
                return GIVE_UP_SECONDS
        else:
            return time.monotonic() - began


def _crowd(kind: str, number: int, client: Client) -> int:
    """How many connections there were. Raises FedmaskError where the callers fail to call."""
    where = [str(client.port), str(client.authority)]
    command = [sys.executable, str(CROWD), kind, str(number), f"{SECONDS:g}", *where]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FedmaskError(f"{CROWD}: {done.stderr.strip().splitlines()[-1]}")
    return int(done.stdout)


def _most(process_id: int) -> int:
    """Bytes that the process has had in memory at most since it was forgotten."""
    lines = _text(f"/proc/{process_id}/status").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _own_bytes(site: Site) -> int:
    """Of the server's processes, without files that others may have in memory as well."""
    texts = [_text(f"/proc/{number}/smaps_rollup") for number in processes_of(site.server)]
    lines = [line for text in texts for line in text.splitlines() if line.startswith("Anonymous:")]
    return sum(int(line.split()[1]) * 1024 for line in lines)


def _forget_most(process_id: int) -> None:
    Path(f"/proc/{process_id}/clear_refs").write_text("5")


def _text(path: str) -> str:
    return Path(path).read_text()


def _outcome(number: int, rows: Sequence[Row], log: str) -> Outcome:
    longest = max(max(row.longest) for row in rows)
    of_gate, grown, lines = max(row.gate for row in rows), max(row.grown for row in rows), log.count("\n")
    return Outcome(
        title="Callers without a key",
        limit=f"a client's calls are answered within {MAX_SECONDS:g} s, the gate stays under {_mb(MAX_GATE_BYTES)} MB, "
        f"the server grows by less than {_mb(MAX_GROWTH_BYTES)} MB, and the gate writes at most a line a minute",
        figure=f"{number:,} callers that send a byte a second, {_part('giants', number):,} bodies of 60 MB and others: "
        f"calls answered within {longest:.2f} s, the gate at most {_mb(of_gate)} MB, the server {_mb(grown)} MB more, "
        f"lines in the gate's log: {lines}",
        passed=longest < MAX_SECONDS
        and of_gate < MAX_GATE_BYTES
        and grown < MAX_GROWTH_BYTES
        and lines <= 1 + len(rows) * SECONDS / 60,
        columns=COLUMNS,
        rows=tuple(row.shown() for row in rows),
        notes=(
            f"Each kind for {SECONDS:.0f} s, on the machine that server, gate and client run on; who is cut off comes "
            "again after a second. The client is Flower's own code: it asks for messages over a connection that it "
            f"keeps, and over a new one each time, {PAUSE_SECONDS:g} s after the last answer; a call's time holds all "
            "its tries. The gate's memory is the most that was resident, the server's what its processes have for "
            "themselves, beside that after the seconds without callers.",
        ),
    )


def _mb(num_bytes: float) -> str:
    return f"{num_bytes / MEGABYTE:,.0f}"
