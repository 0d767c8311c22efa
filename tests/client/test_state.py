"""client.state: what stays on a client is found again bit for bit, and belongs to that client and task alone."""

from pathlib import Path

import pytest
import torch

from client.state import ClientState
from fedmask.errors import FedmaskError
from fedmask.masks import Mask
from fedmask.models import BaseModel
from fedmask.training.head import HeadLayout

LAYOUT = HeadLayout("sst2", ("negative", "positive"), 8)


def test_a_new_client_has_no_head_and_a_delta_of_zeros(tmp_path: Path, mask: Mask) -> None:
    state = ClientState(tmp_path, 3)
    assert state.head(LAYOUT) is None
    assert state.delta(mask).equal(torch.zeros(mask.num_selected))
    assert list(tmp_path.iterdir()) == []


def test_what_is_kept_is_found_again_by_that_client_alone(tmp_path: Path, mask: Mask, tiny: BaseModel) -> None:
    head, delta = torch.randn(LAYOUT.size), torch.randn(mask.num_selected)
    state = ClientState(tmp_path, 3)
    state.keep_head(LAYOUT, head)
    state.keep_delta(mask, tiny, delta)
    again = ClientState(tmp_path, 3)
    found = again.head(LAYOUT)
    assert found is not None
    assert found.equal(head)
    assert again.delta(mask).equal(delta)
    assert ClientState(tmp_path, 4).head(LAYOUT) is None
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.safetensors"))
    assert names == ["client-00003/adapter.safetensors", "client-00003/head.safetensors"]


@pytest.mark.parametrize(
    "other", [HeadLayout("cola", LAYOUT.labels, 8), HeadLayout("sst2", ("a", "b"), 8), HeadLayout("sst2", None, 8)]
)
def test_a_head_of_another_task_is_not_taken(tmp_path: Path, other: HeadLayout) -> None:
    state = ClientState(tmp_path, 0)
    state.keep_head(other, other.random_start(0))
    with pytest.raises(FedmaskError) as caught:
        state.head(LAYOUT)
    assert str(caught.value) == (
        f"{tmp_path / 'client-00000' / 'head.safetensors'}: a head of task {other.task} {other.labels}, "
        "this client's task is sst2 ('negative', 'positive')"
    )
