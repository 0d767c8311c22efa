"""Bent replies to a real server: nodes with registered keys and Flower's own calls, beside an honest client.

The run is that of a deployment on this machine: SuperLink, gate, a SuperNode, and hostile_nodes.py. Its adapter is held
against the same run in one process in which the hostile nodes answer nothing.
"""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from flwr.app import Message

from deploy.arguments import LOOPBACK
from deploy.local_demo import Site, running, write_client_file
from deploy.make_keys import AUTHORITY, CLIENT_KEY, make_client_key
from faults.hostile_nodes import Orders
from faults.outcome import Outcome, Settings
from faults.runs import PulledGrid
from fedmask.runs.folder import ADAPTER, ROUNDS
from server.app import SilentObserver, resolved, run_federation
from server.compose import compose

NODES = Path(__file__).resolve().parent / "hostile_nodes.py"
HOSTILE = 5
TASKS = ("film_reviews",)
"""Of the honest client, whose number is 0."""
THEIR_TASK = "topic"
DEFAULTS = (
    "model=tiny",
    "mask.density=0.01",
    "threads=1",
    "data=own",
    "data.examples_per_client=8",
    "data.max_length=16",
    "score_test=false",
    "server.timeout_seconds=120",
    f"clients={1 + HOSTILE}",
)
A_ROUND = 2 * HOSTILE
"""Bent replies: one to be trained and one to be scored, of each."""


def deployed(number: int, settings: Settings) -> Outcome:
    """At least `number` bent replies, of all kinds in turn. Made anew each time."""
    folder = (settings.output / "deployed").resolve()
    if folder.exists():
        shutil.rmtree(folder)
    rounds = -(-number // A_ROUND)
    settings.say(f"deployed: {rounds} rounds of a server, a client and {HOSTILE} hostile nodes on this machine")
    site, run = Site(folder / "site"), folder / "run"
    overrides = [*DEFAULTS, f"rounds={rounds}", "score_every=1"]
    with running(site, TASKS, [site.gate_port], warm={0}):  # it is waited for in every round
        told = _with_hostile_nodes(site, [*overrides, f"output={run}"])
    settings.say("deployed: the same run in one process, without an answer of the hostile nodes")
    alone = _alone(site, folder / "alone", overrides)
    lines = [json.loads(line) for line in (run / ROUNDS).read_text().splitlines()]
    return _outcome(number, rounds, told, lines, (run / ADAPTER).read_bytes() == (alone / ADAPTER).read_bytes())


def _with_hostile_nodes(site: Site, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """The run to its end; what the nodes have sent."""
    clients = {}
    for client_id in range(1, 1 + HOSTILE):
        own = site.client(client_id)
        make_client_key(own)
        write_client_file(site, client_id, THEIR_TASK, site.gate_port, warm=False)
        site.register(client_id)
        clients[str(client_id)] = str(own / CLIENT_KEY), str(own / "client.yaml")
    orders = site.folder / "orders.json"
    told = Orders(f"{LOOPBACK}:{site.gate_port}", str(site.keys / AUTHORITY), clients, seed=0)
    orders.write_text(json.dumps(asdict(told)))
    sent = site.logs / "hostile.jsonl"
    with sent.open("wb") as out, (site.logs / "hostile.log").open("wb") as log:
        nodes = subprocess.Popen([sys.executable, str(NODES), str(orders)], stdout=out, stderr=log)
        try:
            site.submit([override for override in overrides if override != "data=own"])
        finally:
            nodes.kill()
            nodes.wait()
    return [json.loads(line) for line in sent.read_text().splitlines()]


def _alone(site: Site, output: Path, overrides: Sequence[str]) -> Path:
    from client.app import app

    def drop(client_id: int, request: Message, reply: Message) -> Message | None:
        return None if client_id and request.metadata.group_id != "0" else reply

    config = resolved(compose([*overrides, f"output={output}"]), datetime.now())
    grid = PulledGrid(app, config.clients, drop, config.seed)
    for number, node_id in enumerate(grid.get_node_ids()):
        file = site.client(number) / "client.yaml"
        grid.context(node_id).node_config["client-file"] = str(file)
    run_federation(grid, config, SilentObserver())  # type: ignore[arg-type]
    return output


def _outcome(
    number: int, rounds: int, told: Sequence[Mapping[str, Any]], lines: Sequence[Mapping[str, Any]], is_same: bool
) -> Outcome:
    hostile = list(range(1, 1 + HOSTILE))
    rejected = sum(line["failures"] for line in lines)
    clean = all(line["failed"] == hostile and line["failures"] >= A_ROUND for line in lines)
    sent, causes = Counter(str(each["kind"]) for each in told), Counter[str]()
    for line in lines:
        causes.update(line["failure_causes"])
    ended = len(lines) == rounds
    return Outcome(
        title="Malformed replies to a real server",
        limit="none is accepted, none ends the run, and the honest client's adapter has the bytes that it has without "
        "them",
        figure=f"{sum(sent.values())} of {len(sent)} kinds in {len(lines)} rounds, {rejected} failures: "
        f"{'none' if clean else 'SOME'} accepted, the run {'came' if ended else 'DID NOT come'} to its end, "
        f"{'the same' if is_same else 'OTHER'} bytes",
        passed=sum(sent.values()) >= number and clean and ended and is_same,
        columns=("what was wrong", "sent"),
        rows=tuple((kind, str(number)) for kind, number in sorted(sent.items())),
        notes=(
            f"A SuperLink, the gate, a SuperNode with an honest client and {HOSTILE} nodes with registered keys on one "
            "machine, over TLS. Each of the nodes answers every message of a round with a bent reply, the kinds in "
            "turn; some are asked twice. Counted as: "
            + ", ".join(f"{cause} {n}" for cause, n in sorted(causes.items()))
            + ".",
            "The same bytes: of the adapter, beside the run in one process in which the nodes answer nothing.",
        ),
    )
