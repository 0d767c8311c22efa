"""A head against nn.Linear; its seeded start, its layout's digest, its file."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from fedmask.errors import FedmaskError
from fedmask.tasks import Task
from fedmask.training.head import LABEL_NAME_SCALE, HeadLayout, HeadOrigin, load_head, load_head_origin, save_head

TOPICS = HeadLayout("topics", ("art", "law", "sea"), 4)
RATING = HeadLayout("rating", None, 4)


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_outputs_are_those_of_a_linear_layer(classes: int, hidden: int, rows: int, seed: int) -> None:
    layout = HeadLayout("a", tuple(map(str, range(classes))), hidden)
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(hidden, classes)
    nn.init.normal_(linear.weight, generator=generator)
    nn.init.normal_(linear.bias, generator=generator)
    packed = torch.cat([linear.weight.flatten(), linear.bias])
    features = torch.randn(rows, hidden, generator=generator)
    assert layout.size == packed.numel()
    torch.testing.assert_close(layout.outputs(packed, features), linear(features), atol=1e-6, rtol=1e-6)


def test_a_regression_has_one_output() -> None:
    assert (RATING.num_outputs, RATING.size) == (1, 5)
    packed = torch.tensor([1.0, 2.0, 3.0, 4.0, 0.5])
    assert RATING.outputs(packed, torch.eye(4)).tolist() == [[1.5], [2.5], [3.5], [4.5]]


def test_a_tasks_layout_has_its_name_and_its_labels() -> None:
    rows = [("yes", "good"), ("no", "bad")]
    assert HeadLayout.of(Task("reviews", rows, rows, rows), 8) == HeadLayout("reviews", ("bad", "good"), 8)
    scored = [("yes", 1.0), ("no", 0.0)]
    assert HeadLayout.of(Task("scores", scored, scored, scored), 8) == HeadLayout("scores", None, 8)


def test_the_start_is_seeded_by_task_and_seed_and_by_no_global_state() -> None:
    layout = HeadLayout("topics", ("art", "law", "sea"), 500)
    start = layout.random_start(0)
    torch.manual_seed(123)
    assert torch.equal(start, layout.random_start(0))
    assert not torch.equal(start, layout.random_start(1))
    assert not torch.equal(start, dataclasses.replace(layout, task="themes").random_start(0))
    assert start.shape == (layout.size,)
    assert start[-3:].tolist() == [0, 0, 0]
    assert start[:-3].std().item() == pytest.approx(0.02, rel=0.1)


def test_a_start_from_label_names_scores_by_cosine() -> None:
    layout = HeadLayout("topics", ("art", "law", "sea"), 6)
    generator = torch.Generator().manual_seed(0)
    names = torch.nn.functional.normalize(torch.randn(3, 6, generator=generator)) * 4
    features = torch.nn.functional.normalize(torch.randn(50, 6, generator=generator)) * 4
    outputs = layout.outputs(layout.label_name_start(names), features)
    cosines = torch.cosine_similarity(features[:, None], names[None], dim=2)
    expected = LABEL_NAME_SCALE * (cosines - cosines.mean(1, keepdim=True))
    torch.testing.assert_close(outputs, expected, atol=1e-4, rtol=1e-4)


def test_the_digest_tells_layouts_apart() -> None:
    others = [
        dataclasses.replace(TOPICS, task="themes"),
        dataclasses.replace(TOPICS, labels=("art", "sea", "law")),
        dataclasses.replace(TOPICS, labels=("art", "law")),
        dataclasses.replace(TOPICS, labels=None),
        dataclasses.replace(TOPICS, hidden_size=5),
    ]
    assert len({layout.digest for layout in [TOPICS, *others]}) == 6
    assert HeadLayout("topics", ("art", "law", "sea"), 4).digest == TOPICS.digest
    # Server and client may run on different machines: the digest is part of the protocol.
    assert TOPICS.digest == "879b1f1b81527536231bf29b3285f2416415f175923771e924fb7e76dd631c6e"


@pytest.mark.parametrize("layout", [TOPICS, RATING])
def test_a_saved_head_is_the_same_when_loaded(tmp_path: Path, layout: HeadLayout) -> None:
    packed = np.random.default_rng(0).normal(size=layout.size).astype(np.float32)
    save_head(tmp_path / "head.safetensors", layout, packed)
    found_layout, found = load_head(tmp_path / "head.safetensors")
    assert found_layout == layout
    assert (found.tobytes(), found.dtype) == (packed.tobytes(), np.float32)
    content = (tmp_path / "head.safetensors").read_bytes()
    for _ in range(8):  # safetensors orders several entries of metadata anew each time
        save_head(tmp_path / "clients" / "again.safetensors", layout, packed)
        assert (tmp_path / "clients" / "again.safetensors").read_bytes() == content


ORIGIN = HeadOrigin("tiny", "1" * 64, {"model_type": "bert", "layer_norm_eps": 1e-12}, "0123456789abcdef", 40, True)


@pytest.mark.parametrize("layout", [TOPICS, RATING])
def test_a_head_carries_where_it_comes_from(
    tmp_path: Path, layout: HeadLayout, caplog: pytest.LogCaptureFixture
) -> None:
    packed, path = layout.random_start(0).numpy(), tmp_path / "head.safetensors"
    for origin in (ORIGIN, dataclasses.replace(ORIGIN, pairs=False, run="")):
        save_head(path, layout, packed, origin)
        content = path.read_bytes()
        save_head(path, layout, packed, origin)
        assert path.read_bytes() == content
        assert load_head(path)[0] == layout
        assert load_head(path)[1].tobytes() == packed.tobytes()
        assert load_head_origin(path) == origin
    assert caplog.messages == []


def test_an_older_head_loads_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "head.safetensors"
    save_head(path, TOPICS, TOPICS.random_start(0).numpy())
    assert load_head_origin(path) is None
    assert load_head(path)[0] == TOPICS
    assert caplog.messages == [
        f"{path}: this head does not say of which run and base model it is: whether it fits cannot be told"
    ]


@pytest.mark.parametrize(
    "changes", [{"base": 1}, {"base": {"name": "a"}}, {"max_length": "x"}, {"run": None, "pairs": 1}, {"base": None}]
)
def test_a_damaged_origin_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    base = {"name": "a", "digest": "1" * 64, "inputs": {}}
    facts = GOOD | {"base": base, "run": "", "max_length": 8, "pairs": False}
    stored(tmp_path / "head.safetensors", torch.zeros(10), facts)
    assert load_head_origin(tmp_path / "head.safetensors") is not None
    stored(tmp_path / "head.safetensors", torch.zeros(10), facts | changes)
    with pytest.raises(FedmaskError, match="damaged head file"):
        load_head_origin(tmp_path / "head.safetensors")


GOOD = {"format": "fedmask-head-1", "task": "a", "labels": ["x", "y"], "hidden_size": 4}


def stored(path: Path, packed: torch.Tensor, described: object = GOOD, name: str = "values") -> None:
    save_file({name: packed}, path, {"fedmask": json.dumps(described)})


NOT_HEAD = "not a fedmask head (format None, expected fedmask-head-1)"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "there is no such head file"),
    "folder": (lambda path: path.mkdir(), "there is no such head file"),
    "empty": (lambda path: path.write_bytes(b""), "damaged head file"),
    "text": (lambda path: path.write_text("no head\n" * 40), "damaged head file"),
    "pickle": (lambda path: torch.save({"head": torch.zeros(10)}, path), "damaged head file"),
    "foreign": (lambda path: save_file({"head": torch.zeros(10)}, path), NOT_HEAD),
    "no tensor": (lambda path: stored(path, torch.zeros(10), name="w"), "damaged head file"),
    "not JSON": (lambda path: save_file({"head": torch.zeros(10)}, path, {"fedmask": "{"}), "damaged head file"),
    "no task": (lambda path: stored(path, torch.zeros(10), {"format": "fedmask-head-1"}), "damaged head file"),
    "list": (lambda path: stored(path, torch.zeros(10), []), "damaged head file"),
    "length": (lambda path: stored(path, torch.zeros(9)), "a head of a has 10 values, found 9"),
    "float64": (lambda path: stored(path, torch.zeros(10, dtype=torch.float64)), "found float64 (10,)"),
}


def test_the_file_that_the_damages_start_from_is_a_good_one(tmp_path: Path) -> None:
    stored(tmp_path / "head.safetensors", torch.zeros(10))
    assert load_head(tmp_path / "head.safetensors")[0] == HeadLayout("a", ("x", "y"), 4)


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_head_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    make, text = DAMAGES[damage]
    path = tmp_path / "head.safetensors"
    make(path)
    with pytest.raises(FedmaskError) as caught:
        load_head(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
