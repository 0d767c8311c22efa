"""Merge an adapter into its base model:

    python scripts/merge.py adapter=FILE output=FOLDER [model=NAME | model.path=FOLDER] [head=FILE]

The base is found by the adapter's own name, or given; its digest must be the adapter's. FOLDER becomes an ordinary
Hugging Face model folder in the base's dtype, its weights bit-identical to base plus delta. With a head, which a run
keeps under clients/, `fedmask.load_classifier(FOLDER)` maps texts to labels.
"""

import preparation  # noqa: F401

# isort: split
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from fedmask.errors import FedmaskError
from fedmask.runs.command import asks_for_help, exit_code, own_arguments
from fedmask.runs.config import ModelConfig
from server.compose import compose

if TYPE_CHECKING:
    from fedmask.training.delta import Delta

OWN_KEYS = ("adapter", "output", "head")


def main(arguments: list[str]) -> int:
    if not arguments or asks_for_help(arguments):
        print(__doc__)
        return 0 if arguments else 2
    return exit_code(lambda: merge(*_split(arguments)))


def merge(own: dict[str, str], model_overrides: list[str]) -> None:
    """Write the merged folder; nothing is left behind where anything is wrong."""
    from fedmask.models import load_base
    from fedmask.training.delta import load_adapter
    from fedmask.training.head import load_head

    output = Path(own["output"])
    if output.exists():
        raise FedmaskError(f"output={output}: already exists; name a new folder")
    delta = load_adapter(own["adapter"])
    head = Path(own["head"]) if "head" in own else None
    layout = load_head(head)[0] if head is not None else None
    config = _base_config(delta, model_overrides)
    base = load_base(config.name, config.hub, config.path, config.weights, config.geometry, config.dtype)
    if layout is not None and layout.hidden_size != base.hidden_size:
        raise FedmaskError(
            f"head={head}: the head is for hidden size {layout.hidden_size}, the model has {base.hidden_size}"
        )
    merged = delta.merge(base.encoder)
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        _write(unfinished, merged, base.tokenizer, head)
        unfinished.chmod(0o755)
        unfinished.rename(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"{output}: {base.name} with {delta.values.size:,} changed entries; AutoModel.from_pretrained loads it")
    if head is not None:
        print(f"with its head: fedmask.load_classifier({str(output)!r})")


def _write(folder: Path, merged: object, tokenizer: object, head: Path | None) -> None:
    from fedmask.classifier import HEAD_FILE

    merged.save_pretrained(folder)  # type: ignore[attr-defined]
    tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
    if head is not None:
        shutil.copyfile(head, folder / HEAD_FILE)


def _split(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """This script's own keys, and overrides that name the base model."""
    own, overrides = own_arguments(arguments, OWN_KEYS, paths=OWN_KEYS)
    for argument in overrides:
        key = argument.partition("=")[0]
        if key != "model" and not key.startswith("model."):
            raise FedmaskError(
                f"{argument}: unknown; give adapter=FILE output=FOLDER and, if need be, model=, model.path=, head=FILE"
            )
    missing = [key for key in ("adapter", "output") if key not in own]
    if missing:
        raise FedmaskError(f"missing: {', '.join(f'{key}=' for key in missing)}; give adapter=FILE output=FOLDER")
    for key in ("adapter", "head"):
        if key in own and Path(own[key]).is_dir():
            raise FedmaskError(f"{key}={own[key]}: a folder; {_in_folder(Path(own[key]), key)}")
    return own, overrides


def _in_folder(folder: Path, kind: str) -> str:
    """Which file of a run's folder is meant by it."""
    found = sorted(folder.rglob(f"{kind}.safetensors"))
    return f"name the file, such as {kind}={found[0]}" if found else f"and there is no {kind}.safetensors in it"


def _base_config(delta: "Delta", overrides: list[str]) -> ModelConfig:
    """The base model given, else the one that the adapter names; in the adapter's dtype, unless another is given."""
    from server.compose import groups

    name, weights, dtype = delta.base_name, f"model.weights={delta.base_weights}", f"model.dtype={delta.base_dtype}"
    if any(override.startswith("model.dtype=") for override in overrides):
        return compose(overrides).model
    if overrides:
        return compose([*overrides, dtype]).model
    if name in groups()["model"]:
        return compose([f"model={name}", weights, dtype]).model
    if name.count("/") == 1:
        return compose([f"model.path={name}", weights, dtype]).model
    raise FedmaskError(
        f"the adapter's base model {name} is no configuration of conf/model; give its folder with model.path="
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
