"""Files that somebody else made, whole by their seal or not: each is a value or one line, and never another exception.

Adapters, heads, checkpoints, a client's states, token ids on disk, what a merged folder says of itself.
"""

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save, save_file

from client.held import take_up_held
from client.state import ClientState
from fedmask.errors import FedmaskError
from fedmask.masks import MaskRecipe
from fedmask.merged.facts import MergedFacts
from fedmask.models import BaseModel
from fedmask.runs.checkpoint import Checkpoint, ClientRecord, ServerState, load_checkpoint, save_checkpoint
from fedmask.runs.config import CodecConfig
from fedmask.sealed_file import read_sealed, write_sealed
from fedmask.training.delta import load_adapter
from fedmask.training.head import HeadLayout, load_head, load_head_origin
from fedmask.training.text import TokenizedSplit, TokenLimits, tokenize
from fedmask.wire.downlink import Broadcast, Received

LAYOUT, DIGEST = "ab" * 32, "cd" * 32
HEAD = HeadLayout("t", ("x", "y"), 4)
RECIPE = MaskRecipe("ffn_bias", {}, DIGEST, LAYOUT, {"model_type": "bert"}).to_bytes().decode()
BASE = {"name": "tiny", "weights": "random"}
ORIGIN = {"base": {"name": "tiny", "digest": DIGEST, "inputs": {}}, "run": "", "max_length": 8, "pairs": False}
STATE = ServerState(
    run_id="0" * 16,
    round=2,
    mask_digest=DIGEST,
    delta=np.zeros(3, np.float32),
    heads={LAYOUT: np.zeros(4, np.float32)},
    broadcast=Broadcast(2, {("delta", DIGEST): np.zeros(3, np.float32)}, ({("delta", DIGEST): b"change"},)),
    clients={0: ClientRecord("t", "accuracy", LAYOUT, 4, "0" * 16, 2, True, None)},
)


def stored(path: Path, values: NDArray[Any], facts: object) -> None:
    described = facts if isinstance(facts, str) else json.dumps(facts)
    save_file({"values": values}, path, {"fedmask": described})


def adapter(path: Path, facts: object, values: NDArray[Any] | None = None) -> object:
    stored(path, np.zeros(2, np.float32) if values is None else values, facts)
    return load_adapter(path)


def head(path: Path, facts: object, values: NDArray[Any] | None = None) -> object:
    stored(path, np.zeros(10, np.float32) if values is None else values, facts)
    load_head_origin(path)
    return load_head(path)


ADAPTER_FACTS = {"format": "fedmask-adapter-1", "recipe": RECIPE, "base": BASE, "max_length": 8, "heads": {LAYOUT: "t"}}
HEAD_FACTS = {"format": "fedmask-head-1", "task": "t", "labels": ["x", "y"], "hidden_size": 4} | ORIGIN
VECTOR_FILES = {"adapter": (adapter, ADAPTER_FACTS), "head": (head, HEAD_FACTS)}


def checkpoint(folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> object:
    """One with other facts and vectors, under a seal of its own."""
    save_checkpoint(folder, Checkpoint(STATE, 1.0, {"rounds.jsonl": 3}))
    path = folder / "round-00002.safetensors"
    facts, vectors = read_sealed(path, "checkpoint")
    change(facts, vectors)
    write_sealed(path, "checkpoint", vectors, facts)
    return load_checkpoint(folder)


def client_state(folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> object:
    """What a client has kept, and what it holds of the server's vectors."""
    vectors: dict[str, Any] = {name: np.zeros(10, np.float32) for name in ("head", "delta", "residual/delta")}
    facts: dict[str, Any] = {"run_id": "0" * 16, "client_id": 0, "round": 2, "head_layout": HEAD.digest}
    change(facts, vectors)
    write_sealed(folder / "client-00000" / "state" / "round-00002.safetensors", "client-state", vectors, facts)
    held: dict[str, Any] = {"run_id": "0" * 16, "of": {"delta": [DIGEST, 2]}}
    held_vectors: dict[str, Any] = {"delta": np.zeros(10, np.float32)}
    change(held, held_vectors)
    write_sealed(folder / "held.safetensors", "held-vectors", held_vectors, held)
    take_up_held(folder, "0" * 16, Received(CodecConfig("fp32", "fp32", 1, False), 0))
    return ClientState(folder, "0" * 16, 0).load(2, HEAD)


SEALED = {"checkpoint": checkpoint, "client's state": client_state}


def told(work: Callable[[], object]) -> str:
    """The one line that it is refused with."""
    with pytest.raises(FedmaskError) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", VECTOR_FILES)
def test_the_files_that_the_changes_start_from_are_good_ones(tmp_path: Path, kind: str) -> None:
    read, facts = VECTOR_FILES[kind]
    assert read(tmp_path / "a", facts) is not None
    for number, sealed in enumerate(SEALED.values()):
        assert sealed(tmp_path / str(number), lambda facts, vectors: None) is not None


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("kind", VECTOR_FILES)
@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        f'{{"a": {DEEP}}}',
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"a": "\\ud800"}',
        '{"a": ' + "9" * 5000 + "}",
        "{}",
        "3",
        "",
    ],
    ids=lambda text: text[:20],
)
def test_facts_that_are_no_plain_json(tmp_path: Path, kind: str, text: str) -> None:
    told(lambda: VECTOR_FILES[kind][0](tmp_path / "a", text))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("adapter", {"recipe": RECIPE.replace('"bert"', '"\\ud800"')}),
        ("adapter", {"recipe": RECIPE.replace('"bert"', DEEP)}),
        ("adapter", {"recipe": RECIPE.replace('"bert"', "[" * 200 + "]" * 200)}),
        ("adapter", {"base": BASE | {"name": ["tiny"]}}),
        ("adapter", {"base": BASE | {"name": "x" * 60_000}}),
        ("adapter", {"max_length": 2**40}),
        ("adapter", {"max_length": True}),
        ("adapter", {"heads": {LAYOUT: 3}}),
        ("head", {"hidden_size": 2**70}),
        ("head", {"hidden_size": 4.0}),
        ("head", {"labels": "xy"}),
        ("head", {"labels": []}),
        ("head", {"task": None}),
        ("head", {"pairs": "no"}),
        ("head", {"max_length": -1}),
    ],
)
def test_facts_of_another_kind_or_size(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    read, facts = VECTOR_FILES[kind]
    told(lambda: read(tmp_path / "a", facts | changes))


def test_a_size_that_is_infinite(tmp_path: Path) -> None:
    text = json.dumps(HEAD_FACTS).replace('"hidden_size": 4', '"hidden_size": Infinity')
    assert "Infinity is no number of JSON" in told(lambda: head(tmp_path / "a", text))


@pytest.mark.parametrize("kind", VECTOR_FILES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(tmp_path: Path, kind: str, value: float) -> None:
    read, facts = VECTOR_FILES[kind]
    values = np.full(2 if kind == "adapter" else 10, value, np.float32)
    assert "a value is not finite" in told(lambda: read(tmp_path / "a", facts, values))


CHECKPOINTS: dict[str, Callable[[dict[str, Any], dict[str, Any]], object]] = {
    "unknown tensor": lambda facts, vectors: vectors.update({"x": np.zeros(3, np.float32)}),
    "change without a number": lambda facts, vectors: vectors.update({"change/x/delta": np.zeros(3, np.uint8)}),
    "change beyond": lambda facts, vectors: vectors.update({"change/7/delta": np.zeros(3, np.uint8)}),
    "no delta": lambda facts, vectors: vectors.pop("delta"),
    "float64": lambda facts, vectors: vectors.update(delta=np.zeros(3)),
    "matrix": lambda facts, vectors: vectors.update(delta=np.zeros((3, 1), np.float32)),
    "not finite": lambda facts, vectors: vectors.update(delta=np.full(3, np.nan, np.float32)),
    "round as text": lambda facts, vectors: facts.update(round="2"),
    "round before the first": lambda facts, vectors: facts.update(round=0),
    "seconds": lambda facts, vectors: facts.update(seconds="1"),
    "lengths": lambda facts, vectors: facts.update(file_bytes={"rounds.jsonl": -1}),
    "client's round": lambda facts, vectors: facts["clients"][0].__setitem__(6, "2"),
    "client_id": lambda facts, vectors: facts["clients"][0].__setitem__(0, [0]),
    "clients": lambda facts, vectors: facts.update(clients={"0": []}),
    "many changes": lambda facts, vectors: facts.update(num_changes=30_000_000),
}


@pytest.mark.parametrize("change", CHECKPOINTS)
def test_a_checkpoint_that_no_server_writes(tmp_path: Path, change: str) -> None:
    started = time.process_time()
    assert "damaged checkpoint" in told(lambda: checkpoint(tmp_path, CHECKPOINTS[change]))
    assert time.process_time() - started < 5  # 30,000,000 changes took 32 s


# Whatever it is -------------------------------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
VALUES = st.sampled_from(
    [
        np.zeros(2, np.float32),
        np.zeros(10, np.float32),
        np.zeros(0, np.float32),
        np.zeros((2, 5), np.float32),
        np.full(10, -np.inf, np.float32),
        np.zeros(10, np.uint8),
        np.zeros(10),
        np.float32(3),
    ]
)
FEW = settings(
    max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def either(work: Callable[[], object]) -> None:
    """A value, or one line."""
    refused = ""
    try:
        work()
    except FedmaskError as error:
        refused = str(error)
    assert "\n" not in refused


@pytest.mark.parametrize("kind", VECTOR_FILES)
@given(data=st.data())
@FEW
def test_any_facts_and_values_of_an_adapter_or_a_head(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    read, facts = VECTOR_FILES[kind]
    changed = data.draw(st.dictionaries(st.sampled_from(list(facts)), PLAIN, max_size=2))
    values = data.draw(VALUES)
    either(lambda: read(tmp_path / "a", facts | changed, np.asarray(values)))


@pytest.mark.parametrize("kind", VECTOR_FILES)
@given(place=st.integers(0, 2**20), junk=st.binary(min_size=1, max_size=6), cut=st.booleans())
@FEW
def test_any_bytes_of_an_adapter_or_a_head(tmp_path: Path, kind: str, place: int, junk: bytes, cut: bool) -> None:
    read, facts = VECTOR_FILES[kind]
    read(path := tmp_path / "a", facts)
    content = path.read_bytes()
    start = place % len(content)
    path.unlink()
    path.write_bytes(content[:start] + junk + (b"" if cut else content[start + len(junk) :]))
    either(lambda: load_adapter(path) if kind == "adapter" else (load_head_origin(path), load_head(path)))


@pytest.mark.parametrize("kind", SEALED)
@given(data=st.data())
@FEW
def test_any_facts_and_vectors_under_a_seal(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    def change(facts: dict[str, Any], vectors: dict[str, Any]) -> None:
        names = st.sampled_from([*facts, *vectors]) | st.text(st.characters(categories=["L", "P"]), max_size=6)
        facts.update(data.draw(st.dictionaries(names, PLAIN, max_size=2)))
        for name, values in data.draw(st.dictionaries(names, VALUES, max_size=2)).items():
            vectors[name] = np.asarray(values)

    either(lambda: SEALED[kind](tmp_path, change))


@given(section=st.dictionaries(st.sampled_from(["base_name", "inputs", "max_length", "task", "x"]), PLAIN) | PLAIN)
@FEW
def test_whatever_a_folder_says_of_its_merge(section: object) -> None:
    good = {"base_name": "b", "base_digest": DIGEST, "inputs": {}, "run": None, "max_length": 8, "digest": DIGEST}
    good |= {"stand_in_id": 1}
    assert MergedFacts.of(SimpleNamespace(fedmask=good)) is not None
    changed = good | section if isinstance(section, dict) else section
    either(lambda: MergedFacts.of(SimpleNamespace(fedmask=changed)))


# Token ids on disk ----------------------------------------------------------------------------------------------------


@given(data=st.data())
@FEW
def test_any_tensors_of_token_ids_are_read_by_the_model_or_refused(tiny: BaseModel, data: st.DataObject) -> None:
    from fedmask.tasks.task import Split

    split = Split(("a cat sat", "the plot, so thin"), None, np.array([1, 0]))
    good = tokenize(split, tiny.tokenizer, tiny.encoder, 16).tensors()
    name = data.draw(st.sampled_from([*good, "other"]))
    kind = data.draw(st.sampled_from([torch.int64, torch.int32, torch.int8, torch.uint8, torch.float32]))
    sizes = st.sampled_from([good[name].numel() if name in good else 1, 0, 2, 3, 7])
    values = data.draw(st.lists(st.integers(-3, 2**31 - 1) | st.integers(0, 9), max_size=12))
    numbers = torch.tensor((values + [0] * 12)[: data.draw(sizes)], dtype=torch.int64).to(kind)
    limits = TokenLimits.of(tiny.tokenizer, tiny.encoder, 16)
    try:
        found = TokenizedSplit.from_tensors(good | {name: numbers}, split.labels, limits)
    except (KeyError, ValueError):
        return
    with torch.no_grad():
        tiny.encoder(**found.batch([0, 1], torch.device("cpu")))


# Our own mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", VECTOR_FILES)
def test_a_mistake_of_our_own_keeps_its_traceback(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    read, facts = VECTOR_FILES[kind]
    for name in ("text", "whole", "mapping", "read"):
        with monkeypatch.context() as patched:
            patched.setattr(f"fedmask.file_facts.FileFacts.{name}", broken)
            with pytest.raises(ZeroDivisionError):
                read(tmp_path / "a", facts)


def test_a_header_that_says_more_than_there_is(tmp_path: Path) -> None:
    path = tmp_path / "a"
    content = save({"values": np.zeros(2, np.float32)}, {"fedmask": json.dumps(ADAPTER_FACTS)})
    path.write_bytes(struct.pack("<Q", 2**60) + content[8:])
    assert "damaged adapter file" in told(lambda: load_adapter(path))
