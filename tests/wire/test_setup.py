"""fedmask.wire.setup: what a client is told once comes back equal, and anything else is rejected."""

import dataclasses
import json
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedmask.errors import RejectedMessage
from fedmask.masks import Mask, MaskRecipe, select
from fedmask.wire.setup import Settings, Setup
from server.app import settings_for
from server.compose import compose


class Encoder(nn.Module):
    """Two named weights: all that a mask needs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.normal_(generator=torch.Generator().manual_seed(number))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    config = compose(["model=tiny", "mask=hiwi", "data.tasks=[a,b]", "seed=3", "threads=2", "clients=5"])
    return settings_for(config)


@pytest.fixture(scope="module")
def mask() -> Mask:
    return select(Encoder(), rule="largest", density=0.1)


def rejection(data: bytes) -> RejectedMessage:
    with pytest.raises(RejectedMessage) as caught:
        Setup.from_bytes(data)
    assert caught.value.cause == "undecodable"
    assert str(caught.value).startswith(f"setup of {len(data)} bytes cannot be read: ")
    return caught.value


def with_settings(raw: object, mask_bytes: bytes = b"") -> bytes:
    encoded = json.dumps(raw).encode()
    return struct.pack("<I", len(encoded)) + encoded + mask_bytes


def raw_settings(data: bytes) -> dict[str, object]:
    (length,) = struct.unpack_from("<I", data)
    raw = json.loads(data[4 : 4 + length])
    assert isinstance(raw, dict)
    return raw


def test_settings_come_back_equal(told: Settings) -> None:
    assert told.rank == 4
    assert told.data.tasks == ("a", "b")
    found = Setup.from_bytes(Setup(told, None).to_bytes())
    assert found.settings == told
    assert found.mask is None


def test_a_recipe_comes_back_and_rebuilds_the_mask(told: Settings, mask: Mask) -> None:
    assert mask.recipe is not None
    found = Setup.from_bytes(Setup(told, mask.recipe).to_bytes()).mask
    assert isinstance(found, MaskRecipe)
    assert found.rebuild(Encoder()).digest == mask.digest


def test_indices_come_back_as_the_mask(told: Settings, mask: Mask) -> None:
    found = Setup.from_bytes(Setup(told, mask).to_bytes()).mask
    assert isinstance(found, Mask)
    assert found.digest == mask.digest


def test_the_same_setup_has_the_same_bytes_and_another_has_others(told: Settings, mask: Mask) -> None:
    data = Setup(told, mask.recipe).to_bytes()
    assert Setup(dataclasses.replace(told), mask.recipe).to_bytes() == data
    assert Setup(dataclasses.replace(told, seed=4), mask.recipe).to_bytes() != data
    assert Setup.from_bytes(data).to_bytes() == data


def test_the_length_of_the_settings_stands_first(told: Settings, mask: Mask) -> None:
    assert mask.recipe is not None
    data = Setup(told, mask.recipe).to_bytes()
    assert raw_settings(data)["mask"] == "recipe"
    assert data.endswith(mask.recipe.to_bytes())


@pytest.mark.parametrize(
    ("baseline", "exchanges", "trains"),
    [("none", True, True), ("frozen", False, False), ("alone", False, True), ("central", False, True)],
)
def test_what_travels_and_what_is_trained(told: Settings, baseline: str, exchanges: bool, trains: bool) -> None:
    changed = dataclasses.replace(told, baseline=baseline)
    assert (changed.exchanges_delta, changed.trains_delta) == (exchanges, trains)


# ----------------------------------------------------------------------------------------------------------------------
# Rejected
# ----------------------------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(st.binary(max_size=100))
def test_random_bytes(data: bytes) -> None:
    rejection(data)


@pytest.mark.parametrize("raw", [None, 7, "text", [], {}, {"mask": "none"}])
def test_json_that_is_no_settings(raw: object) -> None:
    rejection(with_settings(raw))


def test_json_too_deep_or_with_numbers_too_long_to_read() -> None:
    for text in (b"[" * 200_000, b"1" * 20_000):
        rejection(struct.pack("<I", len(text)) + text)


def test_a_mask_of_a_kind_that_is_not_known(told: Settings) -> None:
    raw = raw_settings(Setup(told, None).to_bytes()) | {"mask": "zip"}
    assert str(rejection(with_settings(raw))).endswith("mask kind 'zip' is unknown; known are none, recipe, indices")


def test_a_key_that_is_not_known(told: Settings) -> None:
    raw = raw_settings(Setup(told, None).to_bytes())
    raw["client"] |= {"momentum": 0.9}  # type: ignore[operator]
    assert str(rejection(with_settings(raw))).endswith("ClientConfig has no ['momentum']")
    rejection(with_settings(raw_settings(Setup(told, None).to_bytes()) | {"colour": 1}))


@pytest.mark.parametrize("key", ["seed", "model", "data", "client", "mask"])
def test_a_missing_key(told: Settings, key: str) -> None:
    raw = raw_settings(Setup(told, None).to_bytes())
    del raw[key]
    rejection(with_settings(raw))


@pytest.mark.parametrize("kind", ["recipe", "indices"])
def test_a_cut_mask(told: Settings, mask: Mask, kind: str) -> None:
    data = Setup(told, mask.recipe if kind == "recipe" else mask).to_bytes()
    rejection(data[:-1])
    rejection(data[: len(data) - len(data) // 4])


@pytest.mark.parametrize("run_id", ["../../somewhere", "0123456789abcde", "0123456789ABCDEF", "", 7, None])
def test_a_run_id_that_is_no_name_of_a_folder_is_rejected(told: Settings, mask: Mask, run_id: object) -> None:
    raw = raw_settings(Setup(told, mask.recipe).to_bytes())
    assert f"run_id {run_id!r} is not of 16 hex digits" in str(rejection(with_settings(raw | {"run_id": run_id})))


def test_the_digests_of_run_and_inputs_come_back_and_an_older_server_tells_none(told: Settings) -> None:
    changed = dataclasses.replace(told, run_digest="0123456789abcdef", inputs_digest="a" * 64)
    assert Setup.from_bytes(Setup(changed, None).to_bytes()).settings == changed
    raw = raw_settings(Setup(changed, None).to_bytes())
    del raw["run_digest"], raw["inputs_digest"]
    found = Setup.from_bytes(with_settings(raw)).settings
    assert (found.run_digest, found.inputs_digest) == ("", "")


@pytest.mark.parametrize(("key", "value"), [("run_digest", "xyz"), ("run_digest", 7), ("inputs_digest", "a" * 63)])
def test_a_digest_that_is_none_is_rejected(told: Settings, key: str, value: object) -> None:
    raw = raw_settings(Setup(told, None).to_bytes()) | {key: value}
    assert f"{key} {value!r} is no digest" in str(rejection(with_settings(raw)))


def test_the_setups_of_all_runs_are_as_long_and_none_has_the_run_id_of_another(told: Settings, mask: Mask) -> None:
    config = compose(["model=tiny", "mask=hiwi", "data.tasks=[a,b]", "seed=3", "threads=2", "clients=5"])
    again = settings_for(config)
    assert again.run_id != told.run_id
    assert dataclasses.replace(again, run_id=told.run_id) == told
    assert len(Setup(again, mask.recipe).to_bytes()) == len(Setup(told, mask.recipe).to_bytes())


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("clients", 10**12, "clients is 1000000000000, expected a whole number from 1 to 1000000"),
        ("threads", 10**6, "threads is 1000000, expected a whole number from 1 to 1024"),
        ("rank", -1, "rank is -1, expected a whole number from 0 to 65536"),
        ("rank", True, "rank is True, expected"),
        ("seed", "x", "seed is 'x', must be a whole number of at least 0"),
        ("device", "abacus", "device is 'abacus', must be one of cpu, cuda"),
        ("baseline", "all", "baseline is 'all', must be one of none, frozen, alone, central"),
        ("data.max_length", 10**9, "data.max_length is 1000000000, must be a whole number from 8 to 512"),
        ("client.batch_size", 0, "client.batch_size is 0, must be a whole number of at least 1"),
        ("client.learning_rate", "fast", "client.learning_rate is 'fast', must be a number above 0"),
    ],
)
def test_a_value_that_no_configuration_may_have_is_rejected(told: Settings, key: str, value: object, text: str) -> None:
    raw = raw_settings(Setup(told, None).to_bytes())
    section, _, entry = key.rpartition(".")
    (raw[section] if section else raw)[entry] = value  # type: ignore[index]
    assert f"cannot be read: {text}" in str(rejection(with_settings(raw)))


def test_a_rate_may_be_missing_where_no_delta_is_trained_only(told: Settings) -> None:
    without = dataclasses.replace(told, client=dataclasses.replace(told.client, learning_rate=None))
    text = "cannot be read: client.learning_rate is missing, and a delta is trained"
    assert text in str(rejection(Setup(without, None).to_bytes()))
    frozen = dataclasses.replace(without, baseline="frozen")
    assert Setup.from_bytes(Setup(frozen, None).to_bytes()).settings == frozen


def test_indices_for_another_model_are_refused_before_they_are_decoded(told: Settings, mask: Mask) -> None:
    data = Setup(told, mask).to_bytes()
    assert Setup.from_bytes(data, lambda _: mask.num_parameters).mask == mask
    asked: list[Settings] = []
    with pytest.raises(RejectedMessage, match=r"made for 144 parameters, this model has 7$"):
        Setup.from_bytes(data, lambda settings: asked.append(settings) or 7)  # type: ignore[func-returns-value]
    assert asked == [told]
