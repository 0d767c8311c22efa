"""The script itself: adapter -> an ordinary model folder, base plus delta to the bit, or one line and no folder."""

import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

import fedmask
from fedmask.masks import select
from fedmask.models import BaseModel
from fedmask.training.delta import Delta
from fedmask.training.head import HeadLayout, save_head

SCRIPT = Path(__file__).parents[2] / "scripts" / "merge.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = spec_from_file_location("merge", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def delta_of(base: BaseModel, base_name: str | None = None) -> Delta:
    mask = select(base.encoder, "pafi", density=0.01, base_digest=base.digest)
    assert mask.recipe is not None
    values = np.random.default_rng(0).normal(size=mask.num_selected).astype(np.float32)
    return Delta(values, mask.recipe, base_name or base.name, base.weights, mask, base.dtype)


@pytest.fixture(scope="module")
def inputs(tiny: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter and a head for the tiny model."""
    folder = tmp_path_factory.mktemp("run")
    delta_of(tiny).save(folder / "adapter.safetensors")
    layout = HeadLayout("topics", ("art", "law"), 64)
    save_head(folder / "head.safetensors", layout, (layout.random_start(0) * 50).numpy())
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
    ]
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
    other = tmp_path / "other"
    tiny.encoder.save_pretrained(other)  # type: ignore[operator]
    tiny.tokenizer.save_pretrained(other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
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
    folder = refused(script, [f"adapter={inputs}"], output, capsys)
    assert folder == f"adapter={inputs}: a folder; name the file, such as adapter={inputs}/adapter.safetensors"
    empty = refused(script, [adapter, f"head={tmp_path}"], output, capsys)
    assert empty == f"head={tmp_path}: a folder; and there is no head.safetensors in it"
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


def test_help_is_the_scripts_own_text(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--help"]) == 0
    assert "python scripts/merge.py adapter=FILE output=FOLDER" in capsys.readouterr().out
