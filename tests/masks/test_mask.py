"""Mask and MaskRecipe: layout, equality, the forms they travel in, and what is refused."""

import copy
import json
import pickle
import struct
import tracemalloc
import zlib
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertModel

from fedmask.errors import FedmaskError, MaskMismatchError
from fedmask.masks import Mask, MaskRecipe, base_digest, select

SHAPES = {"a": (3, 4), "b": (5,), "c": (2, 3, 2)}
SIZES = {"a": 12, "b": 5, "c": 12}


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    names = sorted(draw(st.sets(st.sampled_from(sorted(SHAPES)), min_size=1)))
    chosen = {name: sorted(draw(st.sets(st.integers(0, SIZES[name] - 1), min_size=1))) for name in names}
    extra = draw(st.sampled_from([0, 1]))
    return Mask({n: SHAPES[n] for n in names}, {n: np.array(chosen[n]) for n in names}, 29 + extra)


def content(mask: Mask) -> object:
    return mask.num_parameters, dict(mask.shapes), {name: array.tolist() for name, array in mask.indices.items()}


def example() -> Mask:
    return Mask({"a": (3, 4), "b": (5,)}, {"a": np.array([1, 2, 9]), "b": np.arange(5)}, 20)


def test_layout_of_the_packed_vector() -> None:
    mask = example()
    assert (mask.num_selected, mask.density) == (8, 0.4)
    assert dict(mask.slices) == {"a": slice(0, 3), "b": slice(3, 8)}
    assert mask.indices["a"].dtype == np.int64


@given(masks(), masks())
@settings(max_examples=150, deadline=None)
def test_masks_are_equal_iff_their_digests_are(one: Mask, other: Mask) -> None:
    assert (one.digest == other.digest) == (content(one) == content(other))
    assert (one == other) == (content(one) == content(other))
    if one == other:
        assert hash(one) == hash(other)


def test_the_digest_is_the_same_in_every_process_and_version() -> None:
    # A change of the canonical form parts every server from its older clients: it needs a reason.
    assert example().digest == "7937b7af62e065ff5b60dfbe7e839b8ed864574224c04a52ecd908be0fa086f4"


def test_the_order_of_tensors_is_part_of_the_mask() -> None:
    swapped = Mask({"b": (5,), "a": (3, 4)}, {"a": np.array([1, 2, 9]), "b": np.arange(5)}, 20)
    assert swapped != example()


def test_the_recipe_is_no_part_of_equality() -> None:
    mask = example()
    assert Mask(mask.shapes, mask.indices, 20, MaskRecipe("all", {}, "0" * 64, mask.digest)) == mask


def test_a_mask_cannot_be_changed() -> None:
    own = np.array([1, 2])
    mask = Mask({"a": (3,)}, {"a": own}, 3)
    with pytest.raises(ValueError, match="read-only"):
        mask.indices["a"][0] = 0
    with pytest.raises(TypeError):
        mask.indices["a"] = own  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        mask.num_parameters = 4  # type: ignore[misc]
    assert own.flags.writeable


def test_a_mask_survives_pickling_and_copying() -> None:
    mask = example()
    assert pickle.loads(pickle.dumps(mask)) == mask
    assert copy.deepcopy(mask) == mask


@pytest.mark.parametrize(
    ("shapes", "indices", "message"),
    [
        ({}, {}, "mask: it needs at least one tensor, and indices for each"),
        ({"a": (3,), "b": (2,)}, {"a": [0]}, "mask: it needs at least one tensor, and indices for each"),
        ({"a": (3,)}, {"a": [0], "b": [0]}, "mask, tensor b: it has indices but no shape"),
        ({"a": (3,)}, {"a": np.array([], dtype=int)}, "mask, tensor a: no entry is selected; leave the tensor out"),
        ({"a": (3,)}, {"a": [1, 0]}, "mask, tensor a: indices are not strictly increasing"),
        ({"a": (3,)}, {"a": [1, 1]}, "mask, tensor a: indices are not strictly increasing"),
        ({"a": (3,)}, {"a": [1, 3]}, "mask, tensor a: indices 1 to 3 do not fit its 3 entries"),
        ({"a": (3,)}, {"a": [-1, 2]}, "mask, tensor a: indices -1 to 2 do not fit its 3 entries"),
        ({"a": (3,)}, {"a": [0.5]}, "mask, tensor a: indices are float64 of shape (1,), not integers (k,)"),
        ({"a": (3,)}, {"a": [[0]]}, "mask, tensor a: indices are int64 of shape (1, 1), not integers (k,)"),
        ({"a": (3, 4)}, {"a": [0]}, "mask: its tensors have 12 entries, its model 10 parameters"),
    ],
)
def test_a_malformed_mask_is_refused(
    shapes: dict[str, tuple[int, ...]], indices: dict[str, object], message: str
) -> None:
    with pytest.raises(FedmaskError) as caught:
        Mask(shapes, {name: np.asarray(value) for name, value in indices.items()}, 10)
    assert str(caught.value) == message


# The explicit form ---------------------------------------------------------------------------------------------------


@given(masks())
@settings(max_examples=60, deadline=None)
def test_bytes_round_trip(mask: Mask) -> None:
    back = Mask.from_bytes(mask.to_bytes(), num_parameters=mask.num_parameters)
    assert content(back) == content(mask)
    assert back == mask


@given(masks(), st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_byte_never_changes_a_mask(mask: Mask, data: st.DataObject) -> None:
    raw = bytearray(mask.to_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    try:
        back = Mask.from_bytes(bytes(raw))
    except FedmaskError as error:
        message = str(error)
    else:
        # A few bits of the compressed header say nothing.
        message = ""
        assert content(back) == content(mask)
    assert message.isprintable()


@given(masks(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_truncated_or_extended_mask_is_refused(mask: Mask, data: st.DataObject) -> None:
    raw = mask.to_bytes()
    with pytest.raises(FedmaskError):
        Mask.from_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])
    with pytest.raises(FedmaskError):
        Mask.from_bytes(raw + b"\0")


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_noise_is_refused(noise: bytes) -> None:
    for data in (noise, b"fedmask1" + noise, forged(noise)):
        with pytest.raises(FedmaskError):
            Mask.from_bytes(data)


def forged(header: bytes, payload: bytes = b"", header_bytes: int | None = None) -> bytes:
    """Bytes with a correct frame around any header."""
    compressed = zlib.compress(header, 9)
    length = len(header) if header_bytes is None else header_bytes
    return b"fedmask1" + bytes(32) + struct.pack("<II", length, len(compressed)) + compressed + payload


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=15,
)


@given(JSON_VALUES, st.binary(max_size=20))
@settings(max_examples=40, deadline=None)
def test_any_json_in_the_header_is_refused(value: object, payload: bytes) -> None:
    with pytest.raises(FedmaskError):
        Mask.from_bytes(forged(json.dumps(value).encode(), payload))
    with pytest.raises(FedmaskError):
        Mask.from_bytes(forged(json.dumps([20, [["a", [3, 4], 3, 1, value]]]).encode(), payload))


HUGE = 1 << 40


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no mask", "mask bytes: not a fedmask mask (wrong first bytes)"),
        (
            forged(b"[]", header_bytes=1 << 31),
            "mask bytes: a header of 2,147,483,648 bytes, at most 4,194,304 are read",
        ),
        (forged(bytes(1 << 24), header_bytes=100), "mask bytes: damaged header (wrong length); send them again"),
        (forged(b"[]", header_bytes=100), "mask bytes: damaged header (wrong length); send them again"),
        (
            forged(json.dumps([9, [["a", [10**4000, 10**4000], 1, 0, 0]]]).encode()),
            "mask bytes: damaged header (a tensor's line); send them again",
        ),
        (forged(b"{"), "mask bytes: damaged (not JSON); send it again"),
        (forged(b"[" * 100_000), "mask bytes: damaged (not JSON); send it again"),
        (forged(b"1" * 5000), "mask bytes: damaged (not JSON); send it again"),
        (forged(b"[1]"), "mask bytes: damaged header (not two fields); send them again"),
        (forged(b"[true, []]"), "mask bytes: damaged header (number of parameters); send them again"),
        (forged(b'[9, [["a", [3]]]]'), "mask bytes: damaged header (a tensor's line); send them again"),
        (forged(b'[9, [["a", [3], 2, 0, -1]]]'), "mask bytes: damaged header (a tensor's line); send them again"),
        (forged(b'[9, [["a\\n", [3], 3, 0, 0]]]'), "mask bytes: damaged header (a tensor's line); send them again"),
        (forged(b'[9, [["a", [3], 4, 0, 0]]]'), "mask bytes, tensor a: 4 of 3 entries selected"),
        (forged(b'[9, [["a", [3], 0, 0, 0]]]'), "mask bytes, tensor a: 0 of 3 entries selected"),
        (
            forged(b'[9, [["a", [3], 3, 0, 0], ["a", [3], 3, 0, 0]]]'),
            "mask bytes: damaged header (a tensor comes twice); send them again",
        ),
        (forged(b'[2, [["a", [3], 3, 0, 0]]]'), "mask bytes: their tensors have 3 entries, their model 2 parameters"),
        (
            forged(json.dumps([HUGE, [["a", [HUGE], HUGE, 0, 0]]]).encode()),
            "mask bytes: they select 1,099,511,627,776 entries, more than the 536,870,912 allowed here",
        ),
        (
            forged(json.dumps([HUGE, [["a", [HUGE], 1 << 28, 30, 5]]]).encode(), b"\0" * 5),
            "mask bytes, tensor a: index payload of 5 bytes is too short for 268,435,456 indices",
        ),
        (
            forged(b'[9, [["a", [3], 1, 0, 2]]]', b"\0"),
            "mask bytes: 1 bytes of indices where the header says 2",
        ),
        (
            forged(b'[9, [["a", [3], 3, 0, 0]]]'),
            "mask bytes: they hold mask "
            + Mask({"a": (3,)}, {"a": np.arange(3)}, 9).digest
            + f" but say {'0' * 64}; damaged, send them again",
        ),
    ],
)
def test_hostile_bytes_end_in_one_line_and_allocate_next_to_nothing(data: bytes, message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(FedmaskError) as caught:
            Mask.from_bytes(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(caught.value) == message
    assert peak < 2_000_000


def test_a_mask_for_a_model_of_another_size_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(FedmaskError) as caught:
        Mask.from_bytes(example().to_bytes(), num_parameters=21)
    assert str(caught.value) == "mask bytes: made for 20 parameters, this model has 21"


# Recipes -------------------------------------------------------------------------------------------------------------


def small_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 30))


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "pafi", "density": 0.01},
        {"rule": "largest", "density": 1 / 3, "scope": "per_tensor"},
        {"rule": "random", "density": 0.2, "seed": 7},
        {"rule": "pafi", "density": 0.05, "include": ["*.weight", "1.bias"], "exclude": ["0.*"]},
        {"rule": "bitfit"},
        {"rule": "all", "embeddings": True},
        {"rule": "bitfit", "key_biases": True},
    ],
)
def test_a_recipe_rebuilds_its_mask(options: dict[str, object]) -> None:
    model = small_model()
    mask = select(model, **options)  # type: ignore[arg-type]
    assert mask.recipe is not None
    data = mask.recipe.to_bytes()
    assert len(data) <= 320
    recipe = MaskRecipe.from_bytes(data)
    assert recipe == mask.recipe
    assert recipe.rebuild(small_model()) == mask
    assert recipe.rebuild(model, base_digest(model)).recipe == recipe


def test_the_default_recipe_is_about_three_hundred_bytes_and_holds_what_matters() -> None:
    recipe = select(small_model(), density=0.01, seed=5).recipe
    assert recipe is not None
    fields = json.loads(recipe.to_bytes())
    assert fields["options"] == {"density": 0.01, "scope": "global"}
    assert fields["ties"] == "lowest-index"
    assert 200 < len(recipe.to_bytes()) < 300


def test_a_recipe_from_before_there_was_a_choice_selects_key_biases() -> None:
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    older = MaskRecipe("bitfit", {}, base_digest(model), select(model, "bitfit", key_biases=True).digest)
    mask = MaskRecipe.from_bytes(older.to_bytes()).rebuild(model)
    assert "encoder.layer.0.attention.self.key.bias" in mask.shapes
    assert mask.recipe == older  # nothing is said of what has always been so
    newer = select(model, "bitfit")
    assert newer.recipe is not None
    assert newer.recipe.options == {"key_biases": False}
    assert "encoder.layer.0.attention.self.key.bias" not in newer.shapes
    assert MaskRecipe.from_bytes(newer.recipe.to_bytes()).rebuild(model) == newer


def test_other_weights_are_refused_with_both_digests() -> None:
    recipe = select(small_model(0), density=0.01).recipe
    assert recipe is not None
    theirs, ours = base_digest(small_model(0)), base_digest(small_model(1))
    with pytest.raises(MaskMismatchError) as caught:
        recipe.rebuild(small_model(1))
    assert str(caught.value) == (
        f"mask recipe: it is for base weights {theirs}, this model's are {ours}; load the same base model in the same"
        " dtype, or ask for the indices themselves"
    )


def test_another_mask_is_refused_with_both_digests() -> None:
    model = small_model()
    mask = select(model, density=0.01)
    assert mask.recipe is not None
    wrong = MaskRecipe("pafi", mask.recipe.options, base_digest(model), "f" * 64)
    with pytest.raises(MaskMismatchError) as caught:
        wrong.rebuild(model)
    assert str(caught.value) == (
        f"mask recipe: it promises mask {'f' * 64}, rule pafi computes {mask.digest} here; ask for the indices"
        " themselves"
    )


def recipe_json(**changes: object) -> bytes:
    fields = {"rule": "pafi", "options": {}, "ties": "lowest-index", "base-digest": "0" * 64, "mask-digest": "1" * 64}
    return json.dumps(fields | changes).encode()


OLDER = "mask recipe: not one of this version of fedmask; update the older side"
DAMAGED = "mask recipe: damaged (rule, options or a digest is of the wrong kind); send it again"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff", "mask recipe: damaged (not JSON); send it again"),
        (b"[]", OLDER),
        (recipe_json(more=1), OLDER),
        (recipe_json(ties="highest-index"), OLDER),
        (recipe_json(rule="x" * 70_000), OLDER),
        (recipe_json(rule=1), DAMAGED),
        (recipe_json(rule="a\nb"), DAMAGED),
        (recipe_json(options=[]), DAMAGED),
        (recipe_json(**{"base-digest": "0" * 63}), DAMAGED),
        (recipe_json(**{"mask-digest": "G" * 64}), DAMAGED),
        (recipe_json(options={"size": 1}), "mask recipe: option 'size': 1 is not one that this version knows"),
        (
            recipe_json(options={"density": True}),
            "mask recipe: option 'density': true is not one that this version knows",
        ),
        (recipe_json(options={"seed": 1.5}), "mask recipe: option 'seed': 1.5 is not one that this version knows"),
        (
            recipe_json(options={"include": "*"}),
            "mask recipe: option 'include': \"*\" is not one that this version knows",
        ),
    ],
)
def test_a_damaged_recipe_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(FedmaskError) as caught:
        MaskRecipe.from_bytes(data)
    assert str(caught.value) == message


def test_a_recipe_may_say_what_else_decides_the_outputs_and_rebuilds_with_it() -> None:
    model, inputs = small_model(), {"model_type": "bert", "layer_norm_eps": 1e-5, "tokenizer": "0" * 16}
    bare, told = select(model, density=0.01), select(model, density=0.01, inputs=inputs)
    assert bare == told
    assert bare.recipe is not None
    assert told.recipe is not None
    assert (bare.recipe.inputs, told.recipe.inputs) == (None, inputs)
    assert "inputs" not in json.loads(bare.recipe.to_bytes())  # as older ones are
    for recipe in (bare.recipe, told.recipe):
        assert MaskRecipe.from_bytes(recipe.to_bytes()) == recipe
        assert recipe.rebuild(model).recipe == recipe


@pytest.mark.parametrize("inputs", [[], "bert", 1, {"a b": 1}, {"": 1}, {"a\n": 1}])
def test_inputs_that_are_no_named_values_are_refused(inputs: object) -> None:
    with pytest.raises(FedmaskError) as caught:
        MaskRecipe.from_bytes(recipe_json(inputs=inputs))
    assert str(caught.value) == "mask recipe: damaged (inputs are not named values); send it again"


@given(JSON_VALUES, JSON_VALUES, JSON_VALUES)
@settings(max_examples=60, deadline=None)
def test_any_recipe_is_read_or_refused(rule: object, options: object, inputs: object) -> None:
    try:
        recipe = MaskRecipe.from_bytes(recipe_json(rule=rule, options=options, inputs=inputs))
    except FedmaskError as error:
        message = str(error)
    else:
        message = ""
        assert (recipe.rule, recipe.options) == (rule, options)
    assert message.isprintable()
