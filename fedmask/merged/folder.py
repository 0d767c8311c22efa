"""A merged encoder -> a model folder, and the folder read back.

In: base plus delta in memory, the base's tokenizer, what is known of both, maybe the file of a head. Out: a folder that
AutoModel loads. Its config.json has one more section, `fedmask`: base, run, length, and the digest of the weights. With
a head in it the folder has that file, its own model code for transformers, and a model card.
"""

import copy
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from fedmask.errors import FedmaskError, cause_line
from fedmask.merged.card import model_card
from fedmask.merged.facts import SECTION, MergedFacts
from fedmask.models import BaseModel, load_base
from fedmask.models.identity import differences
from fedmask.training.head import HeadLayout

HEAD_FILE = "fedmask_head.safetensors"

MODEL_CODE = "modeling_fedmask.py"
"""The file beside this one that a folder with a head is given; it imports nothing of fedmask."""

_MODEL_CLASS = f"{Path(MODEL_CODE).stem}.FedmaskForSequenceClassification"
_PIPELINE = {
    "impl": f"{Path(MODEL_CODE).stem}.FedmaskTextClassificationPipeline",
    "pt": ["AutoModelForSequenceClassification"],
}


def write_merged(
    folder: Path,
    merged: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: MergedFacts,
    head: Path | None,
    layout: HeadLayout | None,
) -> None:
    """Write all files into an empty folder, readable as the umask has it. merged: its configuration is changed.

    Raises FedmaskError where the model or the tokenizer cannot be written.
    """
    _describe(merged.config, facts, layout)
    if layout is not None:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.model_max_length = facts.max_length  # so that tokenizer(..., truncation=True) cuts as training did
    for part in (merged, tokenizer):
        try:
            part.save_pretrained(folder)  # type: ignore[operator]
        except OSError:
            raise
        except Exception as error:  # whatever the library finds that it cannot write
            raise FedmaskError(
                f"{facts.base_name}: cannot be written as a model folder ({cause_line(error)})"
            ) from error
    if head is not None and layout is not None:
        shutil.copyfile(head, folder / HEAD_FILE)
        shutil.copyfile(Path(__file__).with_name(MODEL_CODE), folder / MODEL_CODE)
        (folder / "README.md").write_text(model_card(facts, layout.labels), encoding="utf-8")
    _set_modes(folder)


def _describe(config: Any, facts: MergedFacts, layout: HeadLayout | None) -> None:
    """What the configuration says of code, labels and pipelines is what the folder has, and nothing of the base's."""
    for of_the_base in ("auto_map", "custom_pipelines"):
        if hasattr(config, of_the_base):
            delattr(config, of_the_base)
    setattr(config, SECTION, asdict(facts))
    if layout is None:
        return
    config.id2label = dict(enumerate(layout.output_names))
    config.label2id = {name: index for index, name in enumerate(layout.output_names)}
    config.problem_type = "regression" if layout.labels is None else "single_label_classification"
    config.auto_map = {"AutoModelForSequenceClassification": _MODEL_CLASS}
    # Without trust_remote_code a pipeline then stops; it would make up a head of random numbers.
    config.custom_pipelines = {"text-classification": _PIPELINE, "sentiment-analysis": _PIPELINE}


def _set_modes(folder: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    for path in (folder, *folder.rglob("*")):  # safetensors writes files that only their owner can read
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def read_back(folder: Path, merged: nn.Module, base: BaseModel) -> None:
    """Load what was written and compare it with what was to be: every parameter bit by bit, tokenizer and settings.

    Raises FedmaskError where anything is missing or differs.
    """
    try:
        found = load_base(name=base.name, path=str(folder))
    except FedmaskError as error:
        told = str(error).replace(f"{folder}: ", "").replace(str(folder), "the folder")
        raise FedmaskError(f"what was written cannot be read back ({told}); nothing is left of it") from error
    if unlike := differences(found.inputs, base.inputs):  # a library may write a tokenizer that it reads otherwise
        raise FedmaskError(
            f"what was written has not its base's tokenizer and settings: {unlike}; nothing is left of it"
        )
    written, expected = dict(found.encoder.named_parameters()), dict(merged.named_parameters())
    for name in sorted({*written, *expected}):
        if name not in written or name not in expected or not _same_bits(written[name], expected[name]):
            raise FedmaskError(f"what was written is not base plus delta: {name} differs; nothing is left of it")


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(one.detach().contiguous().view(torch.uint8), other.detach().contiguous().view(torch.uint8))
