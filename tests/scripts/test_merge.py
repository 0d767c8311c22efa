"""The script itself: adapter -> an ordinary model folder, base plus delta to the bit, or one line and no folder."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml  # type: ignore[import-untyped]
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

import fedmask.merged.fit
import fedmask.models
from fedmask.masks import select
from fedmask.models import BaseModel, small_tokenizer
from fedmask.runs.config import to_dict
from fedmask.training.delta import Delta
from fedmask.training.head import HeadLayout, HeadOrigin, save_head
from server.compose import compose

SCRIPT = Path(__file__).parents[2] / "scripts" / "merge.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = spec_from_file_location("merge", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RUN = "0123456789abcdef"
TOPICS = HeadLayout("topics", ("art", "law"), 64)


def delta_of(base: BaseModel, base_name: str | None = None) -> Delta:
    """As a run leaves it that had one task."""
    mask = select(base.encoder, "pafi", density=0.01, base_digest=base.digest, inputs=base.inputs)
    assert mask.recipe is not None
    values = np.random.default_rng(0).normal(size=mask.num_selected).astype(np.float32)
    heads = {TOPICS.digest: TOPICS.task}
    return Delta(values, mask.recipe, base_name or base.name, base.weights, mask, base.dtype, RUN, 40, heads)


def save_head_of(base: BaseModel, path: Path, layout: HeadLayout = TOPICS, **changes: object) -> None:
    origin = HeadOrigin(base.name, base.digest, base.inputs, RUN, 40, pairs=False)
    head = (layout.random_start(0) * 50).numpy()
    save_head(path, layout, head, replace(origin, **changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def inputs(tiny: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter and a head for the tiny model."""
    folder = tmp_path_factory.mktemp("run")
    delta_of(tiny).save(folder / "adapter.safetensors")
    save_head_of(tiny, folder / "head.safetensors")
    return folder


def base_plus_delta(base: BaseModel) -> dict[str, torch.Tensor]:
    """Oracle: base tensors with the values added one tensor at a time, float32."""
    delta = delta_of(base)
    assert delta.mask is not None
    expected = {name: parameter.detach().clone() for name, parameter in base.encoder.named_parameters()}
    for name, index in delta.mask.indices.items():
        expected[name].view(-1)[torch.tensor(index)] += torch.from_numpy(delta.values[delta.mask.slices[name]])
    return expected


def same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name].view(torch.int32), expected[name].view(torch.int32)) for name in expected
    )


def test_the_script_writes_an_ordinary_folder_of_base_plus_delta(tiny: BaseModel, inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "merged"
    finished = subprocess.run(
        [
            sys.executable,
            str(SCRIPT),
            f"adapter={inputs}/adapter.safetensors",
            f"output={output}",
            f"head={inputs}/head.safetensors",
        ],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    k = delta_of(tiny).values.size
    assert finished.stdout.splitlines() == [
        f"{output}: tiny with {k:,} changed entries; AutoModel.from_pretrained loads it",
        f"with its head: fedmask.load_classifier({str(output)!r})",
        f"without fedmask: pipeline('text-classification', {str(output)!r}, trust_remote_code=True), or",
        f"                 AutoModelForSequenceClassification.from_pretrained({str(output)!r}, trust_remote_code=True)",
        "not without trust_remote_code=True: transformers would make up a head of random numbers",
    ]
    assert finished.stderr == ""
    assert [path.name for path in output.parent.iterdir()] == ["merged"]
    assert output.stat().st_mode & 0o777 == 0o755

    expected = base_plus_delta(tiny)
    loaded = AutoModel.from_pretrained(output)
    assert same_bits({name: parameter.detach() for name, parameter in loaded.named_parameters()}, expected)
    assert same_bits(load_file(output / "model.safetensors"), expected)
    assert not same_bits(expected, {name: p.detach() for name, p in tiny.encoder.named_parameters()})
    text = "What a film!"
    assert AutoTokenizer.from_pretrained(output)(text)["input_ids"] == tiny.tokenizer(text)["input_ids"]
    assert fedmask.load_classifier(output)(["a", "longer text"])[0] in ("art", "law")
    for file in output.glob("*.json"):
        assert str(tmp_path) not in file.read_text()


def test_the_base_may_be_given_as_a_folder(
    tiny: BaseModel, script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "own-encoder"
    tiny.encoder.save_pretrained(folder)  # type: ignore[operator]
    tiny.tokenizer.save_pretrained(folder)
    adapter = tmp_path / "adapter.safetensors"
    delta_of(tiny, "own-encoder").save(adapter)

    assert script.main([f"adapter={adapter}", f"output={tmp_path}/merged"]) == 2
    assert capsys.readouterr().err == (
        "the adapter's base model own-encoder is no configuration of conf/model; give its folder with model.path=\n"
    )
    assert not (tmp_path / "merged").exists()
    assert script.main([f"adapter={adapter}", f"output={tmp_path}/merged", f"model.path={folder}"]) == 0
    assert same_bits(load_file(tmp_path / "merged" / "model.safetensors"), base_plus_delta(tiny))
    assert not (tmp_path / "merged" / "fedmask_head.safetensors").exists()
    described = "".join(file.read_text() for file in (tmp_path / "merged").glob("*.json"))
    assert str(tmp_path) not in described


def test_a_bfloat16_adapter_finds_its_base_by_itself_and_the_folder_is_bfloat16(
    tiny_bf16: BaseModel, script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    delta, adapter, merged = delta_of(tiny_bf16), tmp_path / "adapter.safetensors", tmp_path / "merged"
    delta.save(adapter)
    assert script.main([f"adapter={adapter}", f"output={merged}"]) == 0
    found = load_file(merged / "model.safetensors")
    assert delta.mask is not None
    for name, parameter in tiny_bf16.encoder.named_parameters():
        expected = parameter.detach().float().flatten()
        if name in delta.mask.indices:
            expected[torch.tensor(delta.mask.indices[name])] += torch.from_numpy(delta.values[delta.mask.slices[name]])
        assert torch.equal(found[name].flatten().view(torch.int16), expected.bfloat16().view(torch.int16)), name
    assert json.loads((merged / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModel.from_pretrained(merged).dtype == torch.bfloat16

    # With a model named by hand the dtype is still the adapter's own, unless it is named too.
    assert script.main([f"adapter={adapter}", f"output={tmp_path}/again", "model=tiny"]) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (merged / "model.safetensors").read_bytes()
    capsys.readouterr()
    line = refused(script, [f"adapter={adapter}", "model=tiny", "model.dtype=float32"], tmp_path / "other", capsys)
    assert line.endswith("load the adapter's own base, in bfloat16")


def refused(script: ModuleType, arguments: list[str], output: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the script says; nothing is left where the folder would be."""
    before = sorted(output.parent.iterdir()) if output.parent.exists() else []
    assert script.main([*arguments, f"output={output}"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert (sorted(output.parent.iterdir()) if output.parent.exists() else []) == before
    return printed.err.rstrip("\n")


def test_an_existing_output_is_refused_and_left_alone(
    script: ModuleType, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "merged"
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    line = refused(script, [f"adapter={inputs}/adapter.safetensors"], output, capsys)
    assert line == f"output={output}: already exists; name a new folder"
    assert [path.name for path in output.iterdir()] == ["mine.txt"]


def test_another_base_is_refused_with_nothing_left(
    tiny: BaseModel, script: ModuleType, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = folder_of(tiny, tmp_path / "other")
    flip_a_bit(other)
    line = refused(
        script, [f"adapter={inputs}/adapter.safetensors", f"model.path={other}"], tmp_path / "a" / "merged", capsys
    )
    assert line.startswith(f"this adapter belongs to the base model tiny with digest {tiny.digest}, the model given")
    assert not (tmp_path / "a").exists()


def test_missing_or_unknown_arguments_and_files_are_one_line(
    script: ModuleType, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, adapter = tmp_path / "merged", f"adapter={inputs}/adapter.safetensors"
    assert refused(script, [], output, capsys) == "missing: adapter=; give adapter=FILE output=FOLDER"
    empty = refused(script, [adapter, f"head={tmp_path}"], output, capsys)
    assert empty == f"head={tmp_path}: no head.safetensors is in this folder; give the file of a head"
    twice = refused(script, [adapter, adapter], output, capsys)
    assert twice == f"{adapter}: given twice, first as {adapter}; leave one out"
    assert refused(script, [adapter, "heads=x"], output, capsys).startswith("heads=x: unknown; give adapter=FILE")
    assert refused(script, ["adapter=none"], output, capsys) == "none: there is no such adapter file"
    assert refused(script, [adapter, "head=none"], output, capsys).startswith("none: there is no such head file")
    head = f"{inputs}/adapter.safetensors"
    assert refused(script, [adapter, f"head={head}"], output, capsys).startswith(f"{head}: not a fedmask head")
    assert refused(script, [adapter, "model=nonesuch"], output, capsys).startswith("model=nonesuch: must be")


def test_a_head_for_another_model_is_refused(
    script: ModuleType, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = HeadLayout("topics", ("art", "law"), 384)
    save_head(tmp_path / "head.safetensors", layout, layout.random_start(0).numpy())
    arguments = [f"adapter={inputs}/adapter.safetensors", f"head={tmp_path}/head.safetensors"]
    line = refused(script, arguments, tmp_path / "merged", capsys)
    assert line == f"head={tmp_path}/head.safetensors: the head is for hidden size 384, the model has 64"


def test_nothing_is_left_when_writing_fails(
    script: ModuleType,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(folder: Path, *_: object) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError(28, "No space left on device", "config.json")

    monkeypatch.setattr(script, "_write", fail)
    assert script.main([f"adapter={inputs}/adapter.safetensors", f"output={tmp_path}/merged"]) == 2
    assert capsys.readouterr().err == "config.json: No space left on device\n"
    assert list(tmp_path.iterdir()) == []
    deep = tmp_path / "not" / "there" / "yet"
    assert script.main([f"adapter={inputs}/adapter.safetensors", f"output={deep}"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_help_is_the_scripts_own_text(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--help"]) == 0
    assert "python scripts/merge.py adapter=FILE output=FOLDER" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------------------
# What goes together
# ----------------------------------------------------------------------------------------------------------------------


def folder_of(base: BaseModel, folder: Path, **changes: object) -> Path:
    """The base model as a folder, with these keys of its config.json changed."""
    base.encoder.save_pretrained(folder)  # type: ignore[operator]
    base.tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def with_other_words(folder: Path) -> Path:
    """The folder, whose tokenizer gives the words other numbers."""
    state = json.loads((folder / "tokenizer.json").read_text())
    words = [word for word in state["model"]["vocab"] if not word.startswith("[")]
    numbers = [state["model"]["vocab"][word] for word in words]
    state["model"]["vocab"].update(zip(words, reversed(numbers), strict=True))
    (folder / "tokenizer.json").write_text(json.dumps(state))
    return folder


def test_a_base_of_the_same_weights_that_reads_or_computes_otherwise_is_refused(
    tiny: BaseModel, script: ModuleType, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = {
        "another tokenizer": with_other_words(folder_of(tiny, tmp_path / "words")),
        "hidden_act relu instead of its default": folder_of(tiny, tmp_path / "act", hidden_act="relu"),
        "layer_norm_eps 0.01 instead of its default": folder_of(tiny, tmp_path / "eps", layer_norm_eps=0.01),
    }
    for unlike, folder in others.items():
        line = refused(
            script, [f"adapter={inputs}/adapter.safetensors", f"model.path={folder}"], tmp_path / "merged", capsys
        )
        assert line == (
            f"this base model reads or computes otherwise than the adapter's: {unlike}; give the folder of the tiny "
            "that the adapter was trained on with model.path="
        )
    same = folder_of(tiny, tmp_path / "same", id2label={"0": "x", "1": "y"}, a_key_of_tomorrow=3, use_cache=False)
    arguments = [f"adapter={inputs}/adapter.safetensors", f"model.path={same}", f"output={tmp_path}/merged"]
    assert script.main(arguments) == 0


def test_a_head_of_another_run_task_or_base_is_refused(
    tiny: BaseModel, script: ModuleType, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head, adapter = tmp_path / "head.safetensors", f"adapter={inputs}/adapter.safetensors"

    def line_for(layout: HeadLayout = TOPICS, **changes: object) -> str:
        save_head_of(tiny, head, layout, **changes)
        return refused(script, [adapter, f"head={head}"], tmp_path / "merged", capsys)

    assert line_for(run="f" * 16) == (
        f"head={head}: it is of run {'f' * 16}, the adapter of run {RUN}; give a head of the adapter's run"
    )
    assert line_for(HeadLayout("sst2", ("bad", "good"), 64)) == (
        f"head={head}: a head of task sst2 (bad, good) does not belong to this adapter, whose run had topics"
    )
    assert line_for(HeadLayout("topics", ("law", "art"), 64)) == (
        f"head={head}: a head of task topics (law, art) does not belong to this adapter, whose run had topics, with "
        "other classes"
    )
    assert line_for(run="", base_digest="1" * 64) == (
        f"head={head}: it was trained on another base model than the adapter: tiny with digest {'1' * 12}, not "
        f"{tiny.digest[:12]}"
    )
    assert line_for(run="", inputs={**tiny.inputs, "hidden_act": "relu"}).endswith(
        "on another base model than the adapter: hidden_act relu instead of its default"
    )


def test_a_head_of_the_run_whose_client_has_another_copy_of_the_base_is_merged_with_a_warning(
    tiny: BaseModel, script: ModuleType, inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_head_of(tiny, tmp_path / "head.safetensors", base_digest="1" * 64)
    arguments = [f"adapter={inputs}/adapter.safetensors", f"head={tmp_path}/head.safetensors"]
    assert script.main([*arguments, f"output={tmp_path}/merged"]) == 0
    (line,) = caplog.messages
    assert "its client has another copy of the base model: tiny with digest 111111111111, not " in line


def test_an_adapter_and_a_head_of_an_older_fedmask_merge_with_a_warning_each(
    tiny: BaseModel, script: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    new = delta_of(tiny)
    old = Delta(new.values, replace(new.recipe, inputs=None), new.base_name, new.base_weights)
    old.save(tmp_path / "adapter.safetensors")
    save_head(tmp_path / "head.safetensors", TOPICS, TOPICS.random_start(0).numpy())
    arguments = [f"adapter={tmp_path}/adapter.safetensors", f"head={tmp_path}/head.safetensors"]
    assert script.main([*arguments, f"output={tmp_path}/merged"]) == 0
    assert [line.split(": ")[1][:12] for line in caplog.messages] == ["this adapter", "this head do"]
    assert same_bits(load_file(tmp_path / "merged" / "model.safetensors"), base_plus_delta(tiny))
    classifier = fedmask.load_classifier(tmp_path / "merged")
    assert classifier.max_length == 128
    assert classifier([("a", "b")])[0] in ("art", "law")  # whether it is for pairs nothing says


def test_a_folder_says_where_it_comes_from(tiny: BaseModel, script: ModuleType, inputs: Path, tmp_path: Path) -> None:
    adapter, head = f"adapter={inputs}/adapter.safetensors", f"head={inputs}/head.safetensors"
    assert script.main([adapter, f"output={tmp_path}/bare"]) == 0
    assert script.main([adapter, head, f"output={tmp_path}/whole"]) == 0
    bare, whole = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("bare", "whole"))
    expected = {
        "base_name": "tiny",
        "base_digest": tiny.digest,
        "inputs": tiny.inputs,
        "run": RUN,
        "max_length": 40,
        "digest": fedmask.masks.base_digest(AutoModel.from_pretrained(tmp_path / "bare")),
        "stand_in_id": tiny.tokenizer.unk_token_id,
    }
    assert bare["fedmask"] == {**expected, "task": None, "pairs": None}
    assert whole["fedmask"] == {**expected, "task": "topics", "pairs": False}
    assert whole["id2label"] == {"0": "art", "1": "law"}
    assert whole["label2id"] == {"art": 0, "law": 1}
    assert "auto_map" not in bare
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == [
        "README.md",
        "config.json",
        "fedmask_head.safetensors",
        "model.safetensors",
        "modeling_fedmask.py",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    card = (tmp_path / "whole" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: text-classification\ntags: [fedmask]\n---\n")
    for told in ("`art`, `law`", "single, cut to 40 tokens", tiny.digest, RUN, "trust_remote_code=True", "## Licence"):
        assert told in card
    assert str(tmp_path) not in card
    assert AutoTokenizer.from_pretrained(tmp_path / "whole").model_max_length == 40
    assert tiny.tokenizer.model_max_length == small_tokenizer().model_max_length


# ----------------------------------------------------------------------------------------------------------------------
# A run's folder
# ----------------------------------------------------------------------------------------------------------------------


def test_a_runs_folder_stands_for_its_adapter_and_a_clients_for_its_head(
    tiny: BaseModel, script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, output = tmp_path / "run", tmp_path / "merged"
    (run / "clients").mkdir(parents=True)
    assert refused(script, [f"adapter={run}"], output, capsys).startswith(
        f"adapter={run}: no adapter.safetensors is in this folder; give the folder of a run"
    )
    (run / "config.yaml").write_text("rounds: 3\n")
    assert refused(script, [f"adapter={run}"], output, capsys) == (
        f"adapter={run}: this run has not ended; end it with scripts/simulate.py resume={run}"
    )
    (run / "summary.json").write_text("{}")
    assert refused(script, [f"adapter={run}"], output, capsys) == (
        f"adapter={run}: this run has no adapter, for it trains heads alone; give another run"
    )
    client = run / "clients" / "client-00001"
    delta_of(tiny).save(client / "adapter.safetensors")
    assert refused(script, [f"adapter={run}"], output, capsys) == (
        f"adapter={run}: this run's clients share none; give one of theirs, such as "
        f"adapter={client}/adapter.safetensors"
    )
    delta_of(tiny).save(run / "adapter.safetensors")
    adapter = f"adapter={run}"
    assert refused(script, [adapter, f"head={run}"], output, capsys) == (
        f"head={run}: no head.safetensors is in this folder; give the file of a head"
    )
    save_head_of(tiny, client / "head.safetensors")
    assert refused(script, [adapter, f"head={run}"], output, capsys) == (
        f"head={run}: a run has a head for each client; give one, such as head={client}/head.safetensors (topics)"
    )
    assert script.main([adapter, f"head={client}", f"output={output}"]) == 0
    assert script.main([f"adapter={client}", f"output={tmp_path}/own"]) == 0
    assert same_bits(load_file(output / "model.safetensors"), base_plus_delta(tiny))


def test_the_folder_of_the_base_is_found_by_the_configuration_of_the_adapters_run(
    tiny: BaseModel, script: ModuleType, tmp_path: Path
) -> None:
    """Its name alone would not do: it is that of another model of conf/."""
    base, run = folder_of(tiny, tmp_path / "minilm"), tmp_path / "run"
    delta_of(tiny, "minilm").save(run / "adapter.safetensors")
    config = compose([f"model.path={base}", f"output={run}"])
    (run / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(to_dict(config)))))
    assert script.main([f"adapter={run}", f"output={tmp_path}/merged"]) == 0
    assert same_bits(load_file(tmp_path / "merged" / "model.safetensors"), base_plus_delta(tiny))


def test_another_model_of_the_adapters_name_is_refused_with_the_remedy(
    tiny: BaseModel, script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = delta_of(tiny)
    replace(new, recipe=replace(new.recipe, base_digest="1" * 64)).save(tmp_path / "adapter.safetensors")
    line = refused(script, [f"adapter={tmp_path}/adapter.safetensors"], tmp_path / "merged", capsys)
    assert line.endswith("load the adapter's own base, in float32: give its folder with model.path=")


# ----------------------------------------------------------------------------------------------------------------------
# Written and read back
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_files_have_the_modes_that_the_umask_gives(
    script: ModuleType, inputs: Path, tmp_path: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        arguments = [f"adapter={inputs}/adapter.safetensors", f"head={inputs}/head.safetensors"]
        assert script.main([*arguments, f"output={tmp_path}/merged"]) == 0
    finally:
        os.umask(before)
    merged = tmp_path / "merged"
    assert merged.stat().st_mode & 0o777 == 0o777 & ~umask
    assert {path.stat().st_mode & 0o777 for path in merged.iterdir()} == {0o666 & ~umask}


def flip_a_bit(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.1.output.dense.bias"].view(torch.int32)[5] ^= 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def drop_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.bias"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def leave_an_adapter_alone(folder: Path) -> None:
    """What transformers writes of a model that another library has put an adapter into."""
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(folder / f"adapter_{name}")


def change_a_setting(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.5}))


HARM: dict[str, tuple[Callable[[Path], object], str]] = {
    "bit": (flip_a_bit, "what was written is not base plus delta: encoder.layer.1.output.dense.bias differs"),
    "tensor": (drop_a_tensor, "encoder.layer.1.output.dense.bias"),
    "adapter": (leave_an_adapter_alone, "what was written cannot be read back ("),
    "weights": (lambda folder: (folder / "model.safetensors").unlink(), "what was written cannot be read back ("),
    "cut": (lambda folder: os.truncate(folder / "model.safetensors", 999), "what was written cannot be read back ("),
    "setting": (change_a_setting, "layer_norm_eps 0.5 instead of its default"),
    "words": (with_other_words, "another tokenizer"),
    "tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), ""),
}


@pytest.mark.parametrize("harm", HARM)
def test_what_is_not_base_plus_delta_when_read_back_is_not_left(
    script: ModuleType,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    harm: str,
) -> None:
    change, told = HARM[harm]

    def write(folder: Path, *arguments: Any) -> None:
        written(folder, *arguments)
        change(folder)

    written = fedmask.merged.folder.write_merged
    monkeypatch.setattr(fedmask.merged.folder, "write_merged", write)
    arguments = [f"adapter={inputs}/adapter.safetensors", f"head={inputs}/head.safetensors"]
    line = refused(script, arguments, tmp_path / "merged", capsys)
    assert told in line
    assert str(tmp_path) not in line


def test_what_the_library_cannot_write_is_one_line_and_a_fault_of_our_own_is_not(
    script: ModuleType,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Some tensors share memory\nsave them apart")

    adapter = f"adapter={inputs}/adapter.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(type(small_tokenizer()), "save_pretrained", fail)
        line = refused(script, [adapter], tmp_path / "merged", capsys)
        assert line == "tiny: cannot be written as a model folder (save them apart)"
    for module, name in (
        (fedmask.merged.folder, "_describe"),
        (fedmask.merged.folder, "_same_bits"),
        (fedmask.merged.folder, "differences"),
        (fedmask.merged.fit, "check_inputs"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises(RuntimeError, match="share memory"):
                script.main([adapter, f"output={tmp_path}/merged"])
    assert list(tmp_path.iterdir()) == []


def test_code_and_pipelines_that_the_bases_configuration_names_are_not_passed_on(
    tiny: BaseModel, script: ModuleType, tmp_path: Path
) -> None:
    base = folder_of(tiny, tmp_path / "coded", auto_map={"AutoModel": "theirs.Model"}, custom_pipelines={"a": {}})
    delta_of(tiny, "coded").save(tmp_path / "adapter.safetensors")
    arguments = [f"adapter={tmp_path}/adapter.safetensors", f"model.path={base}", f"output={tmp_path}/merged"]
    assert script.main(arguments) == 0
    assert not {"auto_map", "custom_pipelines"} & json.loads((tmp_path / "merged" / "config.json").read_text()).keys()


def test_a_merged_folder_is_a_base_again(tiny: BaseModel, script: ModuleType, inputs: Path, tmp_path: Path) -> None:
    """What merge writes beside the weights changes nothing that decides outputs."""
    arguments = [f"adapter={inputs}/adapter.safetensors", f"head={inputs}/head.safetensors"]
    assert script.main([*arguments, f"output={tmp_path}/merged"]) == 0
    moved = shutil.move(tmp_path / "merged", tmp_path / "moved")
    again = fedmask.models.load_base("moved", path=str(moved))
    assert again.inputs == tiny.inputs
    assert fedmask.load_classifier(moved)(["a"])[0] in ("art", "law")
