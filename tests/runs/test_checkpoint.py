"""fedmask.runs.checkpoint: a server's state comes back whole; a damaged file is named and the one before it taken."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedmask.errors import FedmaskError
from fedmask.runs.checkpoint import Checkpoint, ClientRecord, ServerState, load_checkpoint, save_checkpoint
from fedmask.sealed_file import read_sealed, write_sealed
from fedmask.wire.downlink import Broadcast

LAYOUT = "ab" * 32
STATE = ServerState(
    run_id="0123456789abcdef",
    round=3,
    mask_digest="cd" * 32,
    delta=np.array([0.1, -0.0, 3e-45], np.float32),
    heads={LAYOUT: np.arange(4, dtype=np.float32)},
    broadcast=Broadcast(
        3,
        {("delta", "cd" * 32): np.ones(3, np.float32), ("head", LAYOUT): np.full(4, 2, np.float32)},
        ({("delta", "cd" * 32): b"first"}, {("delta", "cd" * 32): b"second", ("head", LAYOUT): b"of the head"}),
    ),
    clients={
        0: ClientRecord("première", "accuracy", LAYOUT, 4, "01" * 8, 3, is_drawn=True, held_version=3),
        7: ClientRecord("second", "spearman", "ef" * 32, 9, "23" * 8, 0, is_drawn=False, held_version=None),
    },
)
CHECKPOINT = Checkpoint(STATE, 12.345, {"rounds.jsonl": 678, "communication.jsonl": 90123})


def of_round(number: int) -> Checkpoint:
    return replace(CHECKPOINT, state=replace(STATE, round=number))


def test_a_servers_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, CHECKPOINT)
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.state.delta.tobytes() == STATE.delta.tobytes()
    assert {layout: values.tobytes() for layout, values in found.state.heads.items()} == {
        LAYOUT: STATE.heads[LAYOUT].tobytes()
    }
    assert found.state.clients == STATE.clients
    assert (found.state.broadcast.version, found.state.broadcast.changes) == (3, STATE.broadcast.changes)
    assert {key: values.tolist() for key, values in found.state.broadcast.held.items()} == {
        ("delta", "cd" * 32): [1, 1, 1],
        ("head", LAYOUT): [2, 2, 2, 2],
    }
    for key in ("run_id", "round", "mask_digest"):
        assert getattr(found.state, key) == getattr(STATE, key)
    assert (found.seconds, found.file_bytes) == (12.345, CHECKPOINT.file_bytes)


def test_clients_of_a_lossless_codec_hold_the_servers_own_vectors(tmp_path: Path) -> None:
    vectors = {("delta", "cd" * 32): STATE.delta, ("head", LAYOUT): STATE.heads[LAYOUT]}
    save_checkpoint(tmp_path, replace(CHECKPOINT, state=replace(STATE, broadcast=Broadcast(3, vectors))))
    found = load_checkpoint(tmp_path)
    assert found is not None
    held = found.state.broadcast.held
    assert {key: values.tobytes() for key, values in held.items()} == {k: v.tobytes() for k, v in vectors.items()}
    assert found.state.broadcast.changes == ()


def test_a_run_without_mask_and_heads_has_one_too(tmp_path: Path) -> None:
    empty = replace(STATE, mask_digest="", delta=np.zeros(0, np.float32), heads={}, broadcast=Broadcast(3))
    save_checkpoint(tmp_path, replace(CHECKPOINT, state=empty))
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert (found.state.delta.shape, found.state.heads) == ((0,), {})


def test_the_last_two_are_kept_and_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for number in range(1, 5):
        save_checkpoint(tmp_path, of_round(number))
        expected = [f"round-{kept:05d}.safetensors" for kept in (number - 1, number) if kept]
        assert sorted(path.name for path in tmp_path.glob("round-*")) == expected
        found = load_checkpoint(tmp_path)
        assert found is not None
        assert found.state.round == number
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_round_of_six_digits_comes_after_one_of_five(tmp_path: Path) -> None:
    for number in (99_999, 100_000):
        save_checkpoint(tmp_path, of_round(number))
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.state.round == 100_000


def test_where_there_is_none_there_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    assert load_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / ".round-00001.safetensors.77.part").write_bytes(b"half")
    assert load_checkpoint(tmp_path) is None


@pytest.mark.parametrize("damage", ["cut", "altered"])
def test_a_damaged_one_is_named_and_the_one_before_it_is_taken(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (2, 3):
        save_checkpoint(tmp_path, of_round(number))
    path = tmp_path / "round-00003.safetensors"
    content = path.read_bytes()
    for position in range(len(content)):
        altered = bytes([content[position] ^ 1])
        path.write_bytes(content[:position] + (altered + content[position + 1 :] if damage == "altered" else b""))
        caplog.clear()
        found = load_checkpoint(tmp_path)
        assert found is not None
        assert found.state.round == 2
        (line,) = caplog.messages
        assert line.startswith(f"{path}: damaged (")
        assert line.endswith("; taking the checkpoint before it")


def test_where_all_are_damaged_it_is_one_error_that_names_them(tmp_path: Path) -> None:
    for number in (2, 3):
        save_checkpoint(tmp_path, of_round(number))
    for path in tmp_path.iterdir():
        path.write_bytes(b"\x80\x05N.")  # a pickle of None
    with pytest.raises(FedmaskError) as caught:
        load_checkpoint(tmp_path)
    text = str(caught.value)
    assert text.startswith(f"no checkpoint can be used: {tmp_path / 'round-00003.safetensors'}: damaged (")
    assert str(tmp_path / "round-00002.safetensors") in text
    assert text.endswith("; start again with overwrite=true")
    assert "\n" not in text


def test_one_of_another_version_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, CHECKPOINT)
    path = tmp_path / "round-00003.safetensors"
    facts, vectors = read_sealed(path, "checkpoint")
    facts["clients"] = [[0, "a", "accuracy"]]
    write_sealed(path, "checkpoint", vectors, facts)
    with pytest.raises(FedmaskError, match="row is not one of this version of fedmask"):
        load_checkpoint(tmp_path)


def test_its_facts_are_json_and_its_numbers_safetensors(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, CHECKPOINT)
    content = (tmp_path / "round-00003.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert set(header) == {
        "__metadata__",
        *("delta", f"head/{LAYOUT}"),
        *("held/delta", f"held/head/{LAYOUT}"),
        *("change/0/delta", "change/1/delta", f"change/1/head/{LAYOUT}"),
    }
    facts = json.loads(header["__metadata__"]["fedmask"])
    assert facts["format"] == "fedmask-checkpoint-1"
    assert facts["round"] == 3
    assert len(facts["sha256"]) == 64
