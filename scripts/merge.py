"""Merge an adapter into its base model:

    python scripts/merge.py adapter=FILE output=FOLDER [model=NAME | model.path=FOLDER] [head=FILE]

FILE may be the folder of the run, or of the client, that has it. The base is found by the adapter's own name, or given;
weights, tokenizer and settings must be the adapter's. FOLDER becomes an ordinary Hugging Face model folder in the
base's dtype; it is read back, and its weights are bit-identical to base plus delta. With a head of the same run, which
keeps them under clients/, `fedmask.load_classifier(FOLDER)` maps texts to labels; so does transformers without fedmask,
with trust_remote_code=True, by code that lies in FOLDER.
"""

import preparation  # noqa: F401

# isort: split
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fedmask.errors import ConfigError, FedmaskError, MaskMismatchError
from fedmask.runs.command import asks_for_help, exit_code, own_arguments
from fedmask.runs.config import ModelConfig, read_config
from server.compose import compose

if TYPE_CHECKING:
    from torch import nn

    from fedmask.merged.facts import MergedFacts
    from fedmask.models import BaseModel
    from fedmask.training.delta import Delta
    from fedmask.training.head import HeadLayout

OWN_KEYS = ("adapter", "output", "head")

HEAD = "head.safetensors"
"""The name of a client's head in its folder."""


def main(arguments: list[str]) -> int:
    if not arguments or asks_for_help(arguments):
        print(__doc__)
        return 0 if arguments else 2
    return exit_code(lambda: merge(*_split(arguments)))


def merge(own: dict[str, str], model_overrides: list[str]) -> None:
    """Write the merged folder, and read it back; nothing is left behind where anything is wrong."""
    from fedmask.classifier import usual_length
    from fedmask.masks import base_digest
    from fedmask.merged.facts import MergedFacts
    from fedmask.merged.fit import check_base, check_head
    from fedmask.models import load_base
    from fedmask.training.delta import load_adapter
    from fedmask.training.head import load_head, load_head_origin
    from fedmask.training.text import stand_in_id

    output = Path(own["output"])
    if output.exists():
        raise FedmaskError(f"output={output}: already exists; name a new folder")
    adapter = _adapter_file(Path(own["adapter"]))
    delta = load_adapter(adapter)
    head = _head_file(Path(own["head"])) if "head" in own else None
    layout = load_head(head)[0] if head is not None else None
    origin = load_head_origin(head) if head is not None else None
    config = _base_config(delta, model_overrides, adapter)
    base = load_base(config.name, config.hub, config.path, config.weights, config.geometry, config.dtype)
    merged = _merged(delta, base, is_given=bool(model_overrides))
    check_base(delta, base)
    if head is not None and layout is not None:
        check_head(delta, base, layout, origin, head)
    max_length = delta.max_length if origin is None else origin.max_length
    facts = MergedFacts(
        base_name=delta.base_name,
        base_digest=base.digest,
        inputs=base.inputs,
        run=delta.run,
        max_length=usual_length(base.encoder) if max_length is None else max_length,
        digest=base_digest(merged),
        stand_in_id=stand_in_id(base.tokenizer),
        task=None if layout is None else layout.task,
        pairs=None if origin is None else origin.pairs,
    )
    with _whole_or_not_there(output) as unfinished:
        _write(unfinished, merged, base, facts, head, layout)
    _tell(output, delta, base, layout)


def _merged(delta: "Delta", base: "BaseModel", is_given: bool) -> "nn.Module":
    """is_given: whether a person named the base."""
    try:
        return delta.merge(base.encoder)
    except MaskMismatchError as error:
        raise error if is_given else MaskMismatchError(f"{error}: give its folder with model.path=") from error


def _write(
    folder: Path,
    merged: "nn.Module",
    base: "BaseModel",
    facts: "MergedFacts",
    head: Path | None,
    layout: "HeadLayout | None",
) -> None:
    from fedmask.merged.folder import read_back, write_merged

    write_merged(folder, merged, base.tokenizer, facts, head, layout)
    read_back(folder, merged, base)


@contextmanager
def _whole_or_not_there(output: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `output` at the end of the block; where that raises, nothing is left, nor
    folders above it that were made for it."""
    above = [folder for folder in output.parents if not folder.exists()]
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        yield unfinished
        unfinished.rename(output)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        with suppress(OSError):  # someone else has put something there
            for folder in above:
                folder.rmdir()
        raise


def _tell(output: Path, delta: "Delta", base: "BaseModel", layout: "HeadLayout | None") -> None:
    """What was written and read back, what loads it and what does not."""
    folder = repr(str(output))
    print(f"{output}: {base.name} with {delta.values.size:,} changed entries; AutoModel.from_pretrained loads it")
    if layout is None:
        print("no head is in it: AutoModelForSequenceClassification would make one up; merge with head=FILE for one")
        return
    print(f"with its head: fedmask.load_classifier({folder})")
    print(f"without fedmask: pipeline('text-classification', {folder}, trust_remote_code=True), or")
    print(f"                 AutoModelForSequenceClassification.from_pretrained({folder}, trust_remote_code=True)")
    print("not without trust_remote_code=True: transformers would make up a head of random numbers")


def _adapter_file(path: Path) -> Path:
    """The file given, or a run's. Raises FedmaskError where the run has none."""
    from fedmask.runs.folder import ADAPTER, CLIENTS, CONFIG, SUMMARY

    if not path.is_dir() or (path / ADAPTER).is_file():
        return path / ADAPTER if path.is_dir() else path
    own = sorted((path / CLIENTS).glob(f"*/{ADAPTER}"))
    if own:
        raise FedmaskError(
            f"adapter={path}: this run's clients share none; give one of theirs, such as adapter={own[0]}"
        )
    if (path / SUMMARY).is_file():
        raise FedmaskError(f"adapter={path}: this run has no adapter, for it trains heads alone; give another run")
    if (path / CONFIG).is_file():
        raise FedmaskError(f"adapter={path}: this run has not ended; end it with scripts/simulate.py resume={path}")
    raise FedmaskError(f"adapter={path}: no {ADAPTER} is in this folder; give the folder of a run, or the file")


def _head_file(path: Path) -> Path:
    """The file given, or a client's. Raises FedmaskError where a folder has none, or is a run's, which has several."""
    from fedmask.runs.folder import CLIENTS
    from fedmask.training.head import load_head

    if not path.is_dir() or (path / HEAD).is_file():
        return path / HEAD if path.is_dir() else path
    heads = sorted((path / CLIENTS).glob(f"*/{HEAD}"))
    if not heads:
        raise FedmaskError(f"head={path}: no {HEAD} is in this folder; give the file of a head")
    by_task = {load_head(head)[0].task: head for head in reversed(heads)}
    choices = ", ".join(f"head={head} ({task})" for task, head in sorted(by_task.items()))
    raise FedmaskError(f"head={path}: a run has a head for each client; give one, such as {choices}")


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
    return own, overrides


def _base_config(delta: "Delta", overrides: list[str], adapter: Path) -> ModelConfig:
    """The base model given, else the folder that the adapter's run took it from, else the one that the adapter names;
    in the adapter's dtype, unless another is given."""
    from server.compose import groups

    name, weights, dtype = delta.base_name, f"model.weights={delta.base_weights}", f"model.dtype={delta.base_dtype}"
    if any(override.startswith("model.dtype=") for override in overrides):
        return compose(overrides).model
    if overrides:
        return compose([*overrides, dtype]).model
    if (of_the_run := _model_of_run(adapter)) is not None:
        return of_the_run
    if name in groups()["model"]:
        return compose([f"model={name}", weights, dtype]).model
    if name.count("/") == 1:
        return compose([f"model.path={name}", weights, dtype]).model
    raise FedmaskError(
        f"the adapter's base model {name} is no configuration of conf/model; give its folder with model.path="
    )


def _model_of_run(adapter: Path) -> ModelConfig | None:
    """A base model that is a folder, from the configuration of the run in whose folder the adapter lies."""
    from fedmask.runs.folder import CONFIG

    for folder in adapter.resolve().parents[:3]:  # clients/client-00000/ below it
        if (folder / CONFIG).is_file():
            try:
                model = read_config(folder / CONFIG).model
            except ConfigError:  # the adapter itself names its base
                return None
            return model if model.path is not None and Path(model.path).is_dir() else None
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
