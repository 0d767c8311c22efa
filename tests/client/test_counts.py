"""client.counts: what a client has done is counted by itself, across processes, whatever the server calls a round."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]

from client.counts import check_room, count_training
from fedmask.errors import FedmaskError
from fedmask.masks import Mask
from fedmask.runs.client_file import ClientFile, read_client_file
from fedmask.wire.messages import facts_of
from fedmask.wire.setup import Setup

Federate = Callable[..., Any]
RUN = "0" * 16


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., Path]:
    def write(**limits: int) -> Path:
        path = tmp_path / "client.yaml"
        said = {
            "client_id": 0,
            "superlink": "host:1",
            "authority": "a",
            "key": "k",
            "folder": "state",
            "data": {"source": "python", "root": ".", "task": "small:only"},
            "device": "cpu",
            "limits": {"rounds": 10, "steps": 100, "batch_size": 8} | limits,
        }
        path.write_text(yaml.safe_dump(said))
        return path

    return write


def test_training_is_counted_across_processes(own: Callable[..., Path]) -> None:
    file = read_client_file(own(rounds=3))
    count_training(file, RUN)
    code = (
        "import sys; from pathlib import Path; from client.counts import count_training\n"
        "from fedmask.runs.client_file import read_client_file\n"
        f"count_training(read_client_file(Path(sys.argv[1])), {RUN!r})"
    )
    subprocess.run([sys.executable, "-c", code, str(own(rounds=3))], check=True)
    count_training(file, RUN)
    for _ in range(2):
        with pytest.raises(FedmaskError) as caught:
            count_training(file, RUN)
        assert str(caught.value) == (
            f"client 0: has trained 3 times in run {RUN}, repeated rounds counted, which is this client's limits.rounds"
        )
    count_training(file, "1" * 16)  # another run
    assert (file.states / RUN / "trained").read_bytes() == b"..."


def test_folders_of_runs_are_counted(own: Callable[..., Path]) -> None:
    file = read_client_file(own(runs=2))
    check_room(file, RUN)
    for run in ("1", "2"):
        check_room(file, run)
        count_training(file, run)
    check_room(file, "2")
    with pytest.raises(
        FedmaskError, match=r"has the folders of 2 runs in .*/state/runs, this client's limits\.runs is 2"
    ):
        check_room(file, "3")


def test_bytes_of_runs_are_counted(own: Callable[..., Path]) -> None:
    file = read_client_file(own(disk_bytes=1000))
    count_training(file, RUN)
    (file.states / RUN / "held.safetensors").write_bytes(bytes(999))
    check_room(file, RUN)
    (file.states / RUN / "more").write_bytes(b".")
    with pytest.raises(FedmaskError, match=r"has 1,001 bytes of runs in .*, this client's limits\.disk_bytes is 1,000"):
        check_room(file, RUN)


def test_a_server_that_sends_one_round_again_and_again_is_refused(
    federation: Federate, mask: Mask, own: Callable[..., Path], told: Any
) -> None:
    talk = federation()
    file: Path = own(rounds=2, runs=1)
    talk.grid.context(talk.nodes[0]).node_config["client-file"] = str(file)
    asked = replace(told, data=replace(told.data, source="own", root=None, tasks=None))
    talk.tell(0, Setup(asked, mask.recipe).to_bytes())
    payload = _zeros(mask)
    for _ in range(2):
        assert "num-examples" in facts_of(talk.ask("train", 0, payload, round=1, version=0).content)
    reply = talk.ask("train", 0, payload, round=1, version=0)
    assert "has trained 2 times in run" in reply.error.reason
    another = talk.tell(0, Setup(replace(asked, run_id="f" * 16), mask.recipe).to_bytes())
    assert "has the folders of 1 runs in" in another.error.reason


def _zeros(mask: Mask) -> bytes:
    from fedmask.wire.codecs import codec
    from fedmask.wire.vectors import frame

    return frame("delta", mask.digest, codec("fp32").encode(np.zeros(mask.num_selected, np.float32), 0))


def test_a_clients_own_file_is_read(own: Callable[..., Path]) -> None:
    assert isinstance(read_client_file(own()), ClientFile)
