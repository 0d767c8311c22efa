"""server.worker_grid: the same bits as one process, and a lost worker ends the run in one line."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedmask.errors import FedmaskError
from server.worker_grid import WorkerGrid

Run = Any

app = ClientApp()
"""What the workers of these tests run: replies who answered, and how often that client was asked before."""


@app.query()
def count(message: Message, context: Context) -> Message:
    if context.node_config["partition-id"] == 3:
        raise RuntimeError("disk is full")
    kept = context.state.config_records.get("seen", ConfigRecord({"n": 0}))
    context.state["seen"] = ConfigRecord({"n": int(kept["n"]) + 1})  # type: ignore[call-overload]
    facts = {"n": int(kept["n"]), "process": os.getpid(), "folder": str(context.node_config.get("state-folder"))}  # type: ignore[call-overload]
    return Message(RecordDict({"facts": ConfigRecord(facts)}), reply_to=message)


@app.evaluate()
def linger(message: Message, context: Context) -> Message:
    Path(os.environ["LINGER_NOTES"], str(os.getpid())).touch()
    time.sleep(120)
    return Message(RecordDict(), reply_to=message)


@app.train()
def die(message: Message, context: Context) -> Message:
    if context.node_config["partition-id"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return Message(RecordDict(), reply_to=message)


@pytest.fixture
def grid(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerGrid]:
    """Five clients over two workers, which find this module by its folder."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with WorkerGrid("test_worker_grid:app", 5, 2) as workers:
        yield workers


def ask(grid: WorkerGrid, kind: str) -> dict[int, Message]:
    messages = [Message(RecordDict(), node, kind, group_id="1") for node in grid.get_node_ids()]
    clients = {node: number for number, node in enumerate(grid.get_node_ids())}
    return {clients[reply.metadata.src_node_id]: reply for reply in grid.stream(messages)}


def test_a_client_stays_with_its_worker_and_is_found_again_as_it_was(grid: WorkerGrid, tmp_path: Path) -> None:
    grid.keep_client_state_in(tmp_path)
    first, second = (ask(grid, "query") for _ in range(2))
    facts = [
        {client: reply.content.config_records["facts"] for client, reply in replies.items() if reply.has_content()}
        for replies in (first, second)
    ]
    assert sorted(first) == [0, 1, 2, 3, 4]
    assert [{fact["n"] for fact in each.values()} for each in facts] == [{0}, {1}]
    processes = [{client: fact["process"] for client, fact in each.items()} for each in facts]
    assert processes[0] == processes[1]
    assert processes[0][0] == processes[0][2] == processes[0][4] != processes[0][1]
    assert os.getpid() not in processes[0].values()
    assert {fact["folder"] for each in facts for fact in each.values()} == {str(tmp_path)}


def test_an_exception_in_a_client_costs_its_own_reply_only(grid: WorkerGrid) -> None:
    replies = ask(grid, "query")
    assert [client for client, reply in replies.items() if reply.has_error()] == [3]
    assert replies[3].error.reason.startswith("RuntimeError: disk is full (count, line ")


def test_a_worker_that_dies_ends_the_run_in_one_line(grid: WorkerGrid) -> None:
    with pytest.raises(FedmaskError) as caught:
        ask(grid, "train")
    line = str(caught.value)
    assert line.startswith("worker 1 (process ")
    assert "died with exit code -9; the run is stopped" in line
    assert "\n" not in line


def test_no_worker_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with WorkerGrid("test_worker_grid:app", 2, 2) as grid:
        processes = [reply.content.config_records["facts"]["process"] for reply in ask(grid, "query").values()]
    assert len(set(processes)) == 2
    assert not any(Path(f"/proc/{process}").exists() for process in processes)


def test_a_killed_run_leaves_no_worker_behind_that_still_writes(tmp_path: Path) -> None:
    code = (
        "from flwr.app import Message, RecordDict\n"
        "from server.worker_grid import WorkerGrid\n"
        "if __name__ == '__main__':\n"
        "    grid = WorkerGrid('test_worker_grid:app', 2, 2)\n"
        "    list(grid.stream(Message(RecordDict(), node, 'evaluate', group_id='1') for node in grid.get_node_ids()))\n"
    )
    (tmp_path / "run.py").write_text(code)
    notes = tmp_path / "notes"
    notes.mkdir()
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent.parent)])
    environment = os.environ | {"PYTHONPATH": path, "LINGER_NOTES": str(notes)}
    run = subprocess.Popen([sys.executable, str(tmp_path / "run.py")], env=environment)
    try:
        assert within(60, lambda: len(list(notes.iterdir())) == 2)
        workers = [Path("/proc", note.name) for note in notes.iterdir()]
        assert all(worker.exists() for worker in workers)
    finally:
        run.kill()
        run.wait()
    assert within(20, lambda: not any(worker.exists() for worker in workers))


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds()


def test_two_workers_give_the_bits_of_one_process(federate: Callable[..., Run]) -> None:
    alone = federate("clients_per_round=3", "client.head=shared")

    def workers(_: Any, num_clients: int) -> WorkerGrid:
        return WorkerGrid("client.app:app", num_clients, 2)

    beside = federate("clients_per_round=3", "client.head=shared", grid=workers)
    assert beside.adapter == alone.adapter
    assert beside.heads == alone.heads
    assert beside.summary["score"] == alone.summary["score"]
    assert [line["payload_bytes"] for line in beside.ledger if line["kind"] == "train"] == [
        line["payload_bytes"] for line in alone.ledger if line["kind"] == "train"
    ]
