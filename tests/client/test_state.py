"""client.state: a state is found again bit for bit by its run, client and round alone; what is lost is told."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from client.state import ClientState, Kept, LostStateError
from fedmask.errors import FedmaskError
from fedmask.masks import Mask
from fedmask.models import BaseModel
from fedmask.training.delta import Delta
from fedmask.training.head import HeadLayout, load_head

LAYOUT = HeadLayout("sst2", ("negative", "positive"), 8)
RUN = "0123456789abcdef"


def state_of(root: Path, client_id: int = 3, run_id: str = RUN) -> ClientState:
    return ClientState(root, run_id, client_id)


def after(number: int) -> Kept:
    return Kept(torch.full((LAYOUT.size,), float(number)), torch.full((5,), float(-number)))


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def rounds(root: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("round-")) for path in root.glob("client-00003/state/*"))


def test_before_the_first_round_there_is_nothing_and_nothing_is_looked_for(tmp_path: Path) -> None:
    kept = state_of(tmp_path).load(0, LAYOUT)
    assert (kept.head, kept.delta) == (None, None)
    assert list(tmp_path.iterdir()) == []


def test_what_is_kept_is_found_again_bit_for_bit(tmp_path: Path) -> None:
    head, delta = torch.randn(LAYOUT.size), torch.randn(77)
    state_of(tmp_path).keep(1, 0, LAYOUT, Kept(head, delta))
    state_of(tmp_path).keep(2, 1, LAYOUT, Kept(head=-head))
    first, second = (state_of(tmp_path).load(number, LAYOUT) for number in (1, 2))
    assert first.head is not None
    assert first.head.equal(head)
    assert first.delta is not None
    assert first.delta.equal(delta)
    assert second.head is not None
    assert second.head.equal(-head)
    assert second.delta is None


def test_a_round_that_is_done_again_starts_from_the_state_before_it(tmp_path: Path) -> None:
    state = state_of(tmp_path)
    for number in (1, 2, 3):
        state.keep(number, number - 1, LAYOUT, after(number))
    state.keep(3, 2, LAYOUT, after(33))
    assert [float(state.load(number, LAYOUT).head[0]) for number in (2, 3)] == [2.0, 33.0]  # type: ignore[index]


@pytest.mark.parametrize(
    ("kept", "left"),
    [
        ([(1, 0), (2, 1), (3, 2), (4, 3)], [2, 3, 4]),  # the new one, the one it began from, the one before that
        ([(1, 0), (5, 1), (9, 5), (11, 9)], [5, 9, 11]),  # a client that is not drawn in every round
        ([(1, 0), (2, 1), (3, 2), (4, 2)], [1, 2, 4]),  # the server did not accept round 3
        ([(1, 0), (2, 1), (3, 2), (2, 1)], [1, 2]),  # the server went back by two checkpoints
        ([(1, 0), (2, 0)], [2]),
    ],
)
def test_only_what_a_server_can_still_ask_for_stays(
    tmp_path: Path, kept: list[tuple[int, int]], left: list[int]
) -> None:
    for server_round, state_round in kept:
        state_of(tmp_path).keep(server_round, state_round, LAYOUT, after(server_round))
    assert rounds(tmp_path) == left
    assert all(float(state_of(tmp_path).load(number, LAYOUT).head[0]) == number for number in left)  # type: ignore[index]


def test_a_killed_write_leaves_no_scrap_for_good(tmp_path: Path) -> None:
    state = state_of(tmp_path)
    state.keep(1, 0, LAYOUT, after(1))
    (state.folder / "state" / ".round-00002.safetensors.77.part").write_bytes(b"half")
    state.keep(2, 1, LAYOUT, after(2))
    assert names(state.folder) == ["state/round-00001.safetensors", "state/round-00002.safetensors"]


def test_a_state_that_is_not_there_or_damaged_is_told(tmp_path: Path) -> None:
    state = state_of(tmp_path)
    state.keep(1, 0, LAYOUT, after(1))
    path = state.folder / "state" / "round-00001.safetensors"
    with pytest.raises(LostStateError) as caught:
        state.load(2, LAYOUT)
    missing = path.with_name("round-00002.safetensors")
    assert str(caught.value) == (
        f"client 3: its state of round 2 is lost: {missing}: cannot be read (No such file or directory)"
    )
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(LostStateError, match=r"client 3: its state of round 1 is lost: .*: damaged"):
        state.load(1, LAYOUT)


def test_a_state_of_another_run_client_or_round_is_never_taken(tmp_path: Path) -> None:
    state_of(tmp_path).keep(1, 0, LAYOUT, after(1))
    written = tmp_path / "client-00003" / "state" / "round-00001.safetensors"
    with pytest.raises(LostStateError, match=f"is of run_id {RUN}, client_id 3, round 1, not of run_id {'f' * 16}, "):
        state_of(tmp_path, run_id="f" * 16).load(1, LAYOUT)
    other = state_of(tmp_path, client_id=4)
    (other.folder / "state").mkdir(parents=True)
    shutil.copy(written, other.folder / "state" / written.name)
    with pytest.raises(LostStateError, match=r"client_id 3, round 1, not of .* client_id 4, round 1"):
        other.load(1, LAYOUT)
    shutil.copy(written, written.with_name("round-00002.safetensors"))
    with pytest.raises(LostStateError, match=r"round 1, not of .* round 2"):
        state_of(tmp_path).load(2, LAYOUT)


@pytest.mark.parametrize(
    "other", [HeadLayout("cola", LAYOUT.labels, 8), HeadLayout("sst2", ("a", "b"), 8), HeadLayout("sst2", None, 8)]
)
def test_a_head_of_another_task_is_not_taken(tmp_path: Path, other: HeadLayout) -> None:
    state = state_of(tmp_path)
    state.keep(1, 0, other, Kept(other.random_start(0)))
    with pytest.raises(FedmaskError) as caught:
        state.load(1, LAYOUT)
    assert str(caught.value) == (
        f"{state.folder / 'state' / 'round-00001.safetensors'}: a head of another task than sst2 "
        "('negative', 'positive')"
    )


def test_what_is_shown_to_people_is_under_the_names_they_know(tmp_path: Path, mask: Mask, tiny: BaseModel) -> None:
    state = state_of(tmp_path)
    for _ in range(2):
        head, delta = torch.randn(LAYOUT.size), torch.randn(mask.num_selected)
        state.show_head(LAYOUT, head)
        state.show_delta(mask, tiny, delta)
        layout, packed = load_head(state.folder / "head.safetensors")
        assert layout == LAYOUT
        assert np.array_equal(packed, head.numpy())
        assert np.array_equal(Delta.load(state.folder / "adapter.safetensors").values, delta.numpy())
    written = (state.folder / "head.safetensors").stat().st_mtime_ns
    state.show_head(LAYOUT, head)
    assert (state.folder / "head.safetensors").stat().st_mtime_ns == written
    state.show_head(LAYOUT, None)
    state.show_delta(mask, tiny, None)
    assert names(state.folder) == []
