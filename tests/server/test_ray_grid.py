"""server.ray_grid: a run leaves what it leaves in one process; a lost worker ends it in one line; nothing stays behind.

One Ray serves four runs of the tiny federation, for its start costs seconds: local heads with a failing client, shared
heads, a run that is stopped and resumed, and one whose worker dies. A Ray of its own tests what needs no model.
"""

import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import ray
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from ray.cluster_utils import Cluster

import fedmask.models.loading
from client.app import app as client_app
from fedmask.errors import FedmaskError
from fedmask.runs.config import RayConfig
from server.app import SilentObserver
from server.exchange import _await_nodes
from server.ray_grid import grid_on_ray
from server.strategy import RoundReport

Run = Any
ONE_CPU_A_CLIENT = RayConfig(address=None, client_cpus=1.0, client_gpus=0.0)
FAILING = ("rounds=3", "clients_per_round=3", "seed=1")
SHARED = ("client.head=shared", "rounds=2", "seed=1", "codec=int4", "codec.rotate=2")


def children() -> set[int]:
    """The processes that this one has started and that have not ended."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):  # gone since
            text = status.read_text()
            if f"\nPPid:\t{os.getpid()}\n" in text and "\nState:\tZ" not in text:
                found.add(int(status.parent.name))
    return found


# ----------------------------------------------------------------------------------------------------------------------
# The federation
# ----------------------------------------------------------------------------------------------------------------------


def watched(notes: Path) -> Callable[[Message, Context], Message]:
    """The client, whose number 2 cannot train where heads are local, in a worker that notes what it holds.

    Once `notes/die` is there, the worker that trains client 1 in round 2 dies, and the others take their time.
    """

    # Nested, so that a worker is sent the function itself: it cannot import a module of tests.
    def answer(message: Message, context: Context) -> Message:
        number, trains = context.node_config["partition-id"], message.metadata.message_type == "train"
        if (notes / "die").exists() and trains and message.metadata.group_id == "2":
            if number == 1:
                (notes / "died").touch()
                os._exit(7)
            time.sleep(120)
        if number == 2 and trains and not (notes / "mend").exists():
            raise ValueError("no disk\nleft")
        reply = client_app(message, context)
        loads = fedmask.models.loading._load_base.cache_info().misses
        noted = f"{loads} {len(pickle.dumps(context))} {serialised_bytes(message) + serialised_bytes(reply)}"
        (notes / f"{os.getpid()}-{message.metadata.message_id}").write_text(noted)
        return reply

    def serialised_bytes(message: Message) -> int:
        return sum(len(part.deflate()) for part in get_all_nested_objects(message).values())

    return answer


@dataclass(frozen=True)
class OnRay:
    """What four runs on one Ray came to."""

    failing: Run
    shared: Run
    resumed: Run
    """As plain_run, but stopped after its first round."""
    error: FedmaskError
    dead_run: Path
    seconds_to_error: float
    """From the worker's death until Ray had ended."""
    notes: list[tuple[int, int, int]]
    """By message: the worker's process, base models it has loaded by then, bytes of the client's pickled context."""
    shared_bytes: int
    """Of all messages of that run and their replies, as Flower serialises them in the workers."""
    left_behind: set[int]


def stopped_and_resumed(federate: Callable[..., Run], grid: Any, output: Path) -> Run:
    class Stopping(SilentObserver):
        def round_ended(self, report: RoundReport) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        federate(grid=lambda *_: grid, output=output, watcher=Stopping())
    return federate(grid=lambda *_: grid, output=output, resume=True)


@pytest.fixture(scope="module")
def on_ray(federate: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> OnRay:
    notes, dead_run, before = tmp_path_factory.mktemp("notes"), tmp_path_factory.mktemp("dead") / "run", children()
    with pytest.MonkeyPatch.context() as patch, grid_on_ray(watched(notes), 4, ONE_CPU_A_CLIENT) as grid:
        patch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # not asked for: this Ray is the run's own
        failing = federate(*FAILING, grid=lambda *_: grid)
        (notes / "mend").touch()
        of_failing = set(notes.glob("*-*"))
        shared = federate(*SHARED, grid=lambda *_: grid)
        shared_bytes = sum(int(path.read_text().split()[2]) for path in set(notes.glob("*-*")) - of_failing)
        resumed = stopped_and_resumed(federate, grid, tmp_path_factory.mktemp("resumed") / "run")
        noted = [(int(path.name.split("-")[0]), *map(int, path.read_text().split()[:2])) for path in notes.glob("*-*")]
        (notes / "die").touch()
        with pytest.raises(FedmaskError) as caught:
            federate(grid=lambda *_: grid, output=dead_run)
    seconds_to_error, deadline = time.time() - (notes / "died").stat().st_mtime, time.monotonic() + 60
    while children() - before and time.monotonic() < deadline:
        time.sleep(0.2)  # Ray has told its processes to end
    return OnRay(
        failing,
        shared,
        resumed,
        caught.value,
        dead_run,
        seconds_to_error,
        noted,
        shared_bytes,
        children() - before,
    )


@pytest.fixture(scope="module")
def in_one_process(federate: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    notes = tmp_path_factory.mktemp("notes")
    failing = federate(*FAILING, app=watched(notes))
    return failing, federate(*SHARED)


NOT_ALIKE = ("seconds", "payload_bytes", "wire_bytes")
"""Of a round's line: a worker of Ray may lack what another has, and is sent it again."""


def without(run: Run, *keys: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in keys} for line in run.rounds]


def messages(run: Run) -> dict[tuple[Any, ...], list[int]]:
    """By round, client, direction, kind and payload bytes: the wire bytes of such messages, which come in any order."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for line in run.ledger:
        key = tuple(line[field] for field in ("round", "client", "direction", "kind", "payload_bytes"))
        found.setdefault(key, []).append(line["wire_bytes"])
    return found


def test_a_run_that_was_stopped_on_ray_goes_on_there(on_ray: OnRay, plain_run: Run) -> None:
    assert on_ray.resumed.adapter == plain_run.adapter
    assert on_ray.resumed.heads == plain_run.heads
    assert without(on_ray.resumed, *NOT_ALIKE) == without(plain_run, *NOT_ALIKE)
    assert [report.round for report in on_ray.resumed.watched.reports] == [2]


def test_ray_and_one_process_give_the_same_run(on_ray: OnRay, in_one_process: tuple[Run, Run]) -> None:
    for run, local in zip((on_ray.failing, on_ray.shared), in_one_process, strict=True):
        assert run.adapter == local.adapter
        assert run.heads == local.heads
        assert len(run.heads) >= 3
        assert without(run, *NOT_ALIKE) == without(local, *NOT_ALIKE)
        for key in ("score", "own_score", "worst_client_score", "mean_score", "mask", "clients_never_drawn"):
            assert run.summary[key] == local.summary[key]
        assert sorted(run.watched.failures) == sorted(local.watched.failures)


def test_a_failing_client_costs_its_own_reply_and_its_cause_is_one_line(on_ray: OnRay) -> None:
    failures = on_ray.failing.watched.failures
    assert failures
    assert {client_id for _, client_id, _, _ in failures} == {2}
    for _, _, cause, detail in failures:
        assert cause == "client-error"
        assert detail.startswith("ValueError: no disk left (answer, line ")
    assert len(on_ray.failing.rounds) == 3
    assert on_ray.shared.watched.failures == []


def test_every_message_is_counted(on_ray: OnRay, in_one_process: tuple[Run, Run]) -> None:
    for run, local in zip((on_ray.failing, on_ray.shared), in_one_process, strict=True):
        counted = messages(run)
        for key, sizes in messages(local).items():
            for size in sizes:
                # Flower's engine names messages by 36 letters, a SuperLink and LocalGrid by 64.
                counted[key].remove(next(found for found in counted[key] if 0 <= size - found <= 48))
        # A worker takes messages of any client. One that has not seen the last delta says so, and is sent it again.
        assert {kind for (_, _, _, kind, _), left in counted.items() if left} <= {"train", "evaluate", "head", "mask"}
    assert on_ray.shared.summary["communication"]["total_bytes"] == on_ray.shared_bytes


def test_a_worker_loads_one_base_model_and_a_client_keeps_its_state_on_disk(on_ray: OnRay) -> None:
    last = {process: loads for process, loads, _ in sorted(on_ray.notes)}
    assert last
    assert os.getpid() not in last
    assert set(last.values()) == {1}
    assert max(size for _, _, size in on_ray.notes) < 4000  # a delta alone has 8,244 bytes


def test_a_dead_worker_ends_the_run_at_once_in_one_line(on_ray: OnRay) -> None:
    assert on_ray.seconds_to_error < 60, "the run has waited for the other workers"
    text = str(on_ray.error)
    assert text.startswith("round 2: a Ray worker (process ")
    assert "lost over a train message: ActorDiedError: " in text
    assert "ray.client_cpus" in text
    assert "\n" not in text
    lines = (on_ray.dead_run / "rounds.jsonl").read_text().splitlines()
    assert len(lines) == 1
    assert not (on_ray.dead_run / "summary.json").exists()


def test_nothing_runs_after_the_run(on_ray: OnRay) -> None:
    assert on_ray.left_behind == set()
    assert not ray.is_initialized()


# ----------------------------------------------------------------------------------------------------------------------
# Without a model
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray that runs before and after the tests with it."""
    running = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield running.address
    running.shutdown()


def echo() -> Callable[[Message, Context], Message]:
    def answer(message: Message, context: Context) -> Message:
        return Message(RecordDict({"node": ConfigRecord(dict(context.node_config))}), reply_to=message)

    return answer


def ask_all(app: Callable[[Message, Context], Message], num_clients: int, config: RayConfig) -> list[Any]:
    """One question to every node: what the replies hold."""
    with grid_on_ray(app, num_clients, config) as grid:
        grid.keep_client_state_in(Path("clients"))
        nodes = _await_nodes(grid, num_clients, timeout=200)
        questions = [Message(RecordDict(), node, "query", group_id="1") for node in nodes]
        return [reply.content.config_records["node"] for reply in grid.send_and_receive(questions, timeout=300)]


def test_a_running_cluster_is_used_and_left_running(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # workers find fedmask wherever the run is started
    path = os.environ.get("PYTHONPATH")
    for _ in range(2):
        found = ask_all(echo(), 20, replace(ONE_CPU_A_CLIENT, address=cluster))
        assert sorted(node["partition-id"] for node in found) == list(range(20))
        assert {node["state-folder"] for node in found} == {str(tmp_path / "clients")}
    assert os.environ.get("PYTHONPATH") == path


def test_more_cpus_than_there_are(cluster: str) -> None:
    with pytest.raises(FedmaskError) as caught:
        ask_all(echo(), 2, RayConfig(cluster, 4.0, 0.0))
    text = str(caught.value)
    assert text.startswith(
        f"Ray cannot run clients with ray.address={cluster}, ray.client_cpus=4 and ray.client_gpus=0: "
    )
    assert "\n" not in text


def test_an_address_where_nobody_answers() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(FedmaskError) as caught:
            ask_all(echo(), 2, replace(ONE_CPU_A_CLIENT, address=address))
        assert str(caught.value).startswith(f"ray.address={address}: nobody answers there (")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell starts what it puts into the background with interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_does_not_wait_for_the_clients(cluster: str, tmp_path: Path) -> None:
    def answer(message: Message, context: Context) -> Message:
        (tmp_path / "asked").touch()
        time.sleep(120)
        return Message(RecordDict(), reply_to=message)

    def interrupt() -> None:
        while not (tmp_path / "asked").exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ask_all(answer, 2, replace(ONE_CPU_A_CLIENT, address=cluster))
    assert time.monotonic() - started < 90
