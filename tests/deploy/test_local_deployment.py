"""A server, its gate and two clients as real processes over TLS: the run of one process, through kills and a resume.

Clients reach the gate through a proxy that counts.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy import flower, submit
from deploy.counting import CountingProxy
from deploy.local_demo import Site, end_processes_of, processes_of, running
from deploy.make_keys import make_client_key, make_server_certificate
from fedmask.runs.console import RunProgress
from server.app import run_federation
from server.compose import compose
from server.local_grid import LocalGrid

pytestmark = pytest.mark.deployment

TASKS = ("film_reviews", "topic")
OVERRIDES = ["model=tiny", "mask.density=0.01", "codec=int4", "clients=2", "rounds=2", "threads=1"]
OVERRIDES += ["data.examples_per_client=10", "data.max_length=16", "score_every=2", "score_test=false"]
SECONDS = 300.0
"""Within which each step has to be done on a busy machine; nothing waits for it to pass."""


@dataclass
class Deployment:
    site: Site
    proxy: CountingProxy
    """Before the gate: all that clients and server send each other."""


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("deployment")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        site = Site(folder / "site")
        proxy = CountingProxy(site.gate_port)
        with running(site, TASKS, [proxy.port] * len(TASKS), warm={1}):
            yield Deployment(site, proxy)
        proxy.close()
        assert not processes_of(site.folder)


def wait_until(is_so: Callable[[], bool], site: Site) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        site.check_alive()
        assert time.monotonic() < deadline, "\n".join(log.read_text()[-2000:] for log in site.logs.glob("*.log"))
        time.sleep(0.1)


def test_killed_and_resumed_it_gives_the_adapter_of_one_process(deployed: Deployment, tmp_path: Path) -> None:
    site, run = deployed.site, tmp_path / "run"
    wait_until((site.client(1) / "state" / "warm" / "starter.socket").exists, site)
    site.processes["first try"] = subprocess.Popen(submit_command(site, *OVERRIDES, f"output={run}"))
    wait_until(lambda: (run / "rounds.jsonl").exists() and len(lines(run / "rounds.jsonl")) == 1, site)
    site.kill("first try", site.server)
    site.kill("server", site.server)
    site.kill("client-00000", site.client(0))
    site.start_server()
    site.start_client(0)
    site.submit([f"resume={run}"])  # Flower may take the killed process to be there still
    alone = tmp_path / "alone"
    in_one_process(alone)
    assert (run / "adapter.safetensors").read_bytes() == (alone / "adapter.safetensors").read_bytes()
    assert [facts(line) for line in lines(run / "rounds.jsonl")] == [
        facts(line) for line in lines(alone / "rounds.jsonl")
    ]
    states = sorted(path.name for path in site.client(0).rglob("state/runs/*/client-00000/state/*"))
    assert states == ["round-00001.safetensors", "round-00002.safetensors"]
    assert counted_at_least_the_ledger(deployed.proxy, run)
    for client_id in (0, 1):  # of both kinds
        log = (site.logs / f"client-{client_id:05d}.log").read_text()
        assert f"client {client_id}, round 2: " in log
        assert "from the process's start to its first step" in log
    assert "no warm process" not in log


def submit_command(site: Site, *overrides: str) -> list[str]:
    return [sys.executable, str(Path(submit.__file__)), f"folder={site.server}", *overrides]


def in_one_process(output: Path) -> None:
    """The same clients with the same data, simulated."""
    data = ["data=demo", f"data.tasks=[{','.join(TASKS)}]", "data.partition=iid"]
    config = compose([*OVERRIDES, *data, f"output={output}"])
    from client.app import app

    with RunProgress("alone", 2) as progress:
        run_federation(LocalGrid(app, 2), config, progress)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def facts(line: dict[str, object]) -> dict[str, object]:
    """Without the seconds, and without the bytes: settings name other data, ids and times differ in length."""
    return {key: value for key, value in line.items() if key not in ("seconds", "payload_bytes", "wire_bytes")}


def counted_at_least_the_ledger(proxy: CountingProxy, run: Path) -> bool:
    told = {"up": 0, "down": 0}
    for line in lines(run / "communication.jsonl"):
        told[str(line["direction"])] += int(str(line["wire_bytes"]))
    print(
        {"ledger": told, "network": {"up": proxy.up_bytes, "down": proxy.down_bytes}, "connections": proxy.connections}
    )
    return 0 < told["up"] < proxy.up_bytes and 0 < told["down"] < proxy.down_bytes


@pytest.fixture
def stranger(deployed: Deployment, tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Starts a SuperNode with these arguments; gives its log. Ends it with the test."""
    started = []

    def start(*arguments: str) -> Path:
        log = tmp_path / "stranger.log"
        command = [str(flower.PROGRAMS / "flower-supernode"), *arguments, "--port", str(flower.free_port())]
        with log.open("wb") as file:
            environment = flower.environment(deployed.site.folder / "stranger")
            started.append(subprocess.Popen(command, env=environment, stdout=file, stderr=file))
        return log

    yield start
    for process in started:
        process.kill()
        process.wait()
    end_processes_of(deployed.site.folder / "stranger")


@pytest.mark.parametrize("kind", ["unregistered key", "another authority", "plain text"])
def test_strangers_are_refused(deployed: Deployment, stranger: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    make_client_key(tmp_path)
    make_server_certificate(tmp_path / "other", [])
    where = ["--superlink", f"127.0.0.1:{deployed.site.gate_port}", "--host", "127.0.0.1"]
    key = ["--auth-supernode-private-key", str(tmp_path / "client.key")]
    known = ["--root-certificates", str(deployed.site.keys / "authority.crt")]
    other = ["--root-certificates", str(tmp_path / "other" / "authority.crt")]
    arguments, said = {
        "unregistered key": ([*known, *key], "no registered client has signed this call"),
        "another authority": ([*other, *key], "Connection attempt failed"),
        "plain text": (["--insecure"], "Connection attempt failed"),
    }[kind]
    log = stranger(*where, *arguments)
    wait_until(lambda: said in log.read_text(), deployed.site)
    assert "SuperNode ID" not in log.read_text()


def test_a_client_is_what_its_key_was_registered_for_or_is_left_out(deployed: Deployment, tmp_path: Path) -> None:
    site = deployed.site
    site.register(1, bound_to=7)
    command = submit_command(site, *OVERRIDES[:-1], "rounds=1", "score_every=1")
    refused = subprocess.run([*command, f"output={tmp_path / 'no'}"], capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "(client.pub) is registered as client 7, and claims to be client 1" in refused.stderr.splitlines()[-1]
    assert not (tmp_path / "no").exists()
    goes_on = ["server.min_clients=1", f"output={tmp_path / 'run'}"]
    assert subprocess.run([*command, *goes_on], capture_output=True, check=False).returncode == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert list(summary["left_out"]) == ["client 7"]
    assert lines(tmp_path / "run" / "rounds.jsonl")[0]["cohort"] == [0]
    site.register(1)
