"""client.held: a deployed client's process ends with every message, and the next one goes on from what it wrote."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import client.process
from client.held import keep_held, take_up_held
from fedmask.errors import FedmaskError
from fedmask.masks import Mask
from fedmask.training import fitness
from fedmask.wire.codecs import codec
from fedmask.wire.downlink import Received
from fedmask.wire.messages import facts_of
from fedmask.wire.setup import Settings, Setup
from fedmask.wire.vectors import frame

Federate = Callable[..., Any]
KEY = ("delta", "ab" * 32)


@pytest.fixture
def deployed(federation: Federate, told: Settings, tmp_path: Path) -> Any:
    """A federation of one deployed client, which has the data of `told` by its own file."""
    assert told.data.tasks is not None
    own = {
        "client_id": 1,
        "superlink": "localhost:1",
        "authority": "authority.crt",
        "key": "client.key",
        "folder": "own",
        "data": {"source": "python", "root": ".", "task": told.data.tasks[0]},
        "device": "cpu",
        "threads": 1,
        "model_path": None,
        "limits": {"rounds": 3, "steps": 100, "batch_size": 5, "memory_bytes": None},
    }
    (tmp_path / "client.yaml").write_text(yaml.safe_dump(own))
    talk = federation(data=replace(told.data, source="own", root=None, tasks=None))
    talk.grid.context(talk.nodes[0]).node_config["client-file"] = str(tmp_path / "client.yaml")
    return talk


def new_process() -> None:
    """Flower starts one for every message."""
    client.process._run_in_process.cache_clear()


def ones(mask: Mask) -> bytes:
    values = np.ones(mask.num_selected, np.float32)
    return frame("delta", mask.digest, codec("fp32").encode(values, 0))


def file_of(talk: Any, tmp_path: Path) -> Path:
    return tmp_path / "own" / "runs" / talk.told.run_id / "held.safetensors"


def test_a_client_is_who_its_file_says_and_trains_on_its_own_rows(deployed: Any) -> None:
    facts = facts_of(deployed.tell(0).content)
    assert (facts["client-id"], facts["task"]) == (1, "only")


def test_a_deployed_clients_model_proves_itself_once_and_a_simulated_ones_does_not(
    deployed: Any, federation: Federate, mask: Mask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FEDMASK_CACHE_FOLDER", str(tmp_path / "cache"))
    checks: list[tuple[str, str, int]] = []
    real = fitness._check
    monkeypatch.setattr(
        fitness,
        "_check",
        lambda base, own, length: checks.append((base.digest, own.digest, length)) or real(base, own, length),
    )
    federation().tell(0)
    assert not checks
    deployed.tell(0)
    new_process()
    deployed.ask("evaluate", 0, ones(mask), version=4, split="test")
    assert mask.recipe is not None
    assert checks == [(mask.recipe.base_digest, mask.digest, deployed.told.data.max_length)]


def test_a_deployed_client_with_a_model_that_is_not_fit_says_so_before_it_trains(
    deployed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise FedmaskError("model own: fnet reads padding as text")

    new_process()
    monkeypatch.setattr(client.process, "check_fitness", refuse)
    reply = deployed.tell(0)
    assert reply.has_error()
    assert "model own: fnet reads padding as text" in reply.error.reason


def test_the_next_process_holds_what_this_one_was_sent(deployed: Any, mask: Mask, tmp_path: Path) -> None:
    deployed.tell(0)
    first = deployed.ask("evaluate", 0, ones(mask), version=4, split="test")
    new_process()
    second = deployed.ask("evaluate", 0, version=4, split="test")
    assert "counts" in facts_of(first.content)
    assert facts_of(second.content) == facts_of(first.content)


def test_the_log_of_a_deployed_client_tells_when_it_begins_to_train(
    deployed: Any, mask: Mask, caplog: pytest.LogCaptureFixture
) -> None:
    deployed.tell(0)
    with caplog.at_level("INFO", "fedmask"):
        deployed.ask("train", 0, ones(mask), version=4, round=3)
    (line,) = [message for message in caplog.messages if "first step" in message]
    assert re.fullmatch(
        r"client 1, round 3: [\d.]+ s from the process's start to its first step, [\d.]+ s of them on a CPU", line
    )


def test_the_log_of_a_deployed_client_tells_that_its_base_reads_or_computes_otherwise(
    deployed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = replace(deployed.mask.recipe, inputs={**deployed.mask.recipe.inputs, "hidden_act": "relu"})
    refusal = facts_of(deployed.tell(0, Setup(deployed.told, recipe).to_bytes()).content)["inputs-mismatch"]
    assert caplog.messages == [refusal]
    assert "hidden_act its default instead of relu" in str(refusal)


@pytest.mark.parametrize("harm", [lambda content: content[:-1], lambda content: b"", lambda content: content[::-1]])
def test_a_file_that_is_damaged_counts_as_nothing_held(
    deployed: Any, mask: Mask, tmp_path: Path, harm: Callable[[bytes], bytes]
) -> None:
    deployed.tell(0)
    deployed.ask("evaluate", 0, ones(mask), version=4, split="test")
    path = file_of(deployed, tmp_path)
    path.write_bytes(harm(path.read_bytes()))
    new_process()
    assert facts_of(deployed.ask("evaluate", 0, version=4, split="test").content) == {"missing": "vectors"}
    assert "counts" in facts_of(deployed.ask("evaluate", 0, ones(mask), version=4, split="test").content)


def test_a_file_of_another_run_counts_as_nothing_held(tmp_path: Path, told: Settings) -> None:
    received = Received(told.codec, told.seed)
    received.hold(KEY, 3, np.arange(5, dtype=np.float32))
    keep_held(tmp_path, "a" * 16, received)
    for run_id, number in (("a" * 16, 3), ("b" * 16, None)):
        found = Received(told.codec, told.seed)
        take_up_held(tmp_path, run_id, found)
        assert {version.number for version in found.held.values()} == ({number} - {None})


def test_a_simulation_writes_no_such_file(federation: Federate, mask: Mask, tmp_path: Path) -> None:
    talk = federation()
    talk.tell(0)
    assert "counts" in facts_of(talk.ask("evaluate", 0, ones(mask), version=4, split="test").content)
    assert not list(tmp_path.rglob("held.safetensors"))


def test_nothing_is_written_where_nothing_came(deployed: Any, mask: Mask, tmp_path: Path) -> None:
    deployed.tell(0)
    deployed.ask("evaluate", 0, ones(mask), version=4, split="test")
    file_of(deployed, tmp_path).unlink()
    deployed.ask("evaluate", 0, version=4, split="test")
    assert not file_of(deployed, tmp_path).exists()


def test_a_round_beyond_its_limit_is_refused(deployed: Any, mask: Mask) -> None:
    deployed.tell(0)
    assert not deployed.ask("train", 0, ones(mask), round=3, version=1).has_error()
    reply = deployed.ask("train", 0, ones(mask), round=4, version=1)
    assert "the run asks for round 4, this client's limits.rounds is 3" in reply.error.reason
