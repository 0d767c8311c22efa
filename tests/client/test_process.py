"""client.process: one base model, one mask and one tokenization for all clients of a process."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import client.process
from client.process import begun_run, population, run_in_process, texts_for
from fedmask.errors import FedmaskError
from fedmask.masks import Mask
from fedmask.models import BaseModel
from fedmask.runs.client_file import ClientFile, Limits, OwnData
from fedmask.tasks.task import Split
from fedmask.training.head import HeadLayout
from fedmask.training.text import encode, tokenize
from fedmask.wire.setup import Settings, Setup
from fedmask.wire.vectors import NamedVector


@pytest.fixture
def run(told: Settings, mask: Mask) -> Any:
    return run_in_process(Setup(told, mask.recipe).to_bytes())


def client_file(tmp_path: Path, **data: Any) -> ClientFile:
    """Of client 0, whose task is the one of `told` unless data say otherwise."""
    own = OwnData(**({"source": "python", "root": str(tmp_path), "task": "small:only"} | data))
    limits = Limits(10, 100, 64, None)
    return ClientFile(0, "s:1", "a", "k", str(tmp_path / "state"), own, "cpu", 1, None, False, limits)


def vector(mask: Mask, value: float) -> NamedVector:
    return NamedVector("delta", mask.digest, np.full(mask.num_selected, value, np.float32))


def test_clients_with_the_same_setup_share_one_run(told: Settings, mask: Mask, run: Any) -> None:
    assert run_in_process(Setup(told, mask.recipe).to_bytes()) is run
    other = run_in_process(Setup(replace(told, rank=2), mask.recipe).to_bytes())
    assert other is not run
    assert other.texts is run.texts  # the same data and model under another way of training


def test_a_setup_that_fails_is_not_remembered(told: Settings, mask: Mask) -> None:
    setup_bytes = Setup(replace(told, data=replace(told.data, root="/nowhere")), mask.recipe).to_bytes()
    for _ in range(2):
        with pytest.raises(FedmaskError, match=r"^data\.root=/nowhere: no such folder"):
            run_in_process(setup_bytes)


def swapped(told: Settings) -> None:
    """The task's module with its labels swapped, as long as before."""
    module = Path(str(told.data.root)) / "small.py"
    module.write_text(module.read_text().replace('"ny"', '"yn"'))


def test_a_run_that_begins_has_the_data_of_the_files_as_they_are(told: Settings, mask: Mask, run: Any) -> None:
    setup_bytes = Setup(told, mask.recipe).to_bytes()
    before = run.texts.client(0)
    swapped(told)
    assert begun_run(setup_bytes) is run  # a run goes on with what it began with
    again = run_in_process(setup_bytes)
    after = again.texts.client(0)
    assert after.digest != before.digest  # by which the server knows that other data are resumed
    assert population(told.data, 2, 0)[0] is after
    assert begun_run(setup_bytes) is again
    names = after.task.labels, before.task.labels
    assert names[0] == names[1] == ("n", "y")
    assert after.task.train.labels.tolist() == (1 - before.task.train.labels).tolist()


def test_a_changed_model_is_another_run(told: Settings, mask: Mask, tiny: BaseModel, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny.encoder.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    there = replace(told, model=replace(told.model, path=str(folder), weights="pretrained"))
    first = texts_for(there)
    assert texts_for(there) is first
    config = folder / "config.json"
    config.write_text(config.read_text() + "\n")
    assert texts_for(there) is not first


def test_a_deployed_client_has_the_data_of_its_files(told: Settings, tmp_path: Path) -> None:
    own = client_file(tmp_path)

    def digest() -> str:
        (client,) = texts_for(own.applied_to(replace(told, data=replace(told.data, source="own"))), own).clients
        return client.digest

    first = digest()
    assert digest() == first
    swapped(told)
    assert digest() != first


def test_threads_are_the_setups(told: Settings, mask: Mask) -> None:
    try:
        run_in_process(Setup(replace(told, threads=2), mask.recipe).to_bytes())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_head_starts_from_the_features_of_its_label_names(run: Any) -> None:
    task = run.texts.client(0).task
    layout = HeadLayout.of(task, 64)
    rows = Split(tuple(task.labels), None, np.zeros(len(task.labels), np.int64))
    features = encode(run.texts.base.encoder, tokenize(rows, run.texts.base.tokenizer, run.texts.base.encoder, 64))
    assert run.texts.head_start(layout, "label_names", 0).equal(layout.label_name_start(features))
    assert run.texts.head_start(layout, "random", 3).equal(layout.random_start(3))


def test_a_regression_has_no_label_names_to_start_from(run: Any) -> None:
    rating = HeadLayout("rating", None, 64)
    assert run.texts.head_start(rating, "label_names", 3).equal(rating.random_start(3))


def test_a_text_is_tokenized_once(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = client.process.cached_tokens
    monkeypatch.setattr(client.process, "cached_tokens", lambda *args: calls.append(1) or real(*args))
    task = run.texts.client(0).task
    first = run.texts.split(task, "validation")
    assert run.texts.split(task, "validation") is first
    own, others = run.texts.training(0), run.texts.training(1)
    assert len(calls) == 2
    assert np.shares_memory(own.token_ids, others.token_ids)  # a client is a range, not a copy


def test_each_client_trains_on_its_own_rows(run: Any) -> None:
    base = run.texts.base
    for client_id in (1, 0):
        data = run.texts.client(client_id)
        own = run.texts.training(client_id)
        alone = tokenize(data.train, base.tokenizer, base.encoder, 64)
        assert own.labels.tolist() == data.train.labels.tolist()
        assert own.lengths.tolist() == alone.lengths.tolist()
        rows = list(range(len(own)))
        assert own.batch(rows, torch.device("cpu"))["input_ids"].equal(
            alone.batch(rows, torch.device("cpu"))["input_ids"]
        )


def test_features_are_those_of_the_delta_and_encoded_once(
    run: Any, mask: Mask, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, delta = run.texts.client(0).task, torch.full((mask.num_selected,), 0.1)
    with run.entries.written(delta):
        expected = encode(run.texts.base.encoder, run.texts.split(task, "test"))
    calls = []
    real = client.process.encode
    monkeypatch.setattr(client.process, "encode", lambda *args: calls.append(1) or real(*args))
    assert run.features(delta, task, "test").equal(expected)
    assert run.features(delta.clone(), task, "test").equal(expected)
    assert len(calls) == 1
    assert not run.features(torch.zeros(mask.num_selected), task, "test").equal(expected)
    assert len(calls) == 2


def test_population_is_told_once_and_pooled_keeps_all_rows(told: Settings) -> None:
    clients = population(told.data, 2, 0)
    assert population(told.data, 2, 0) is clients
    (pooled,) = population(told.data, 2, 0, pooled=True)
    assert sorted(pooled.train.text_a) == sorted(clients[0].train.text_a + clients[1].train.text_a)
    assert texts_for(replace(told, baseline="central")).clients == (pooled,)


@pytest.mark.parametrize("number", [-1, 2])
def test_a_client_that_is_not_there(run: Any, number: int) -> None:
    with pytest.raises(FedmaskError) as caught:
        run.texts.client(number)
    assert str(caught.value) == (
        f"client {number} is not in this federation of 2 clients: give their nodes the partition-ids 0 to 1 "
        "(with flwr run: num-supernodes=2)"
    )


@pytest.mark.parametrize("changes", [{"vocab_size": 10**10}, {"num_hidden_layers": 10**9}], ids=str)
def test_a_deployed_client_builds_no_model_that_its_memory_does_not_hold(
    told: Settings, mask: Mask, tmp_path: Path, changes: dict[str, int]
) -> None:
    own = client_file(tmp_path)
    assert told.model.geometry is not None
    model = replace(told.model, geometry=told.model.geometry | changes)
    asked = replace(told, data=replace(told.data, source="own", root=None, tasks=None), model=model)
    with pytest.raises(FedmaskError, match=r"model\.geometry: asks for more than .*(no memory here|so many layers)"):
        run_in_process(Setup(asked, mask.recipe).to_bytes(), own)
    there = replace(asked, model=told.model)
    assert run_in_process(Setup(there, mask.recipe).to_bytes(), own).mask == mask
    poor = replace(own, limits=replace(own.limits, memory_bytes=8_000))
    with pytest.raises(FedmaskError, match="asks for more than 1,000 parameters"):
        client.process._check_size(told.model, poor)


def test_memory_beyond_the_limit_is_refused_and_memory_below_it_is_not() -> None:
    code = """
import torch
from client.process import limit_memory
torch.zeros(100_000_000, dtype=torch.uint8)
limit_memory(150_000_000 + next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if "VmData" in line))
torch.zeros(100_000_000, dtype=torch.uint8)
try:
    torch.zeros(200_000_000, dtype=torch.uint8)
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "allocate memory" in done.stdout
