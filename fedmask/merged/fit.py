"""Whether files go together: an adapter with a base model, a head with an adapter, a head with a merged folder.

Each check raises FedmaskError, one line that says what is of another base, run or task. What a file of an older fedmask
does not say is not compared; whoever loads it is warned.
"""

import logging
from pathlib import Path

from fedmask.errors import FedmaskError
from fedmask.merged.facts import MergedFacts
from fedmask.models import BaseModel
from fedmask.models.identity import check_inputs, differences
from fedmask.training.delta import Delta
from fedmask.training.head import HeadLayout, HeadOrigin


def check_base(delta: Delta, base: BaseModel) -> None:
    """Tokenizer and settings; of the parameters' digest `Delta.merge` takes care."""
    if delta.recipe.inputs is not None:
        remedy = f"give the folder of the {delta.base_name} that the adapter was trained on with model.path="
        check_inputs(base.inputs, delta.recipe.inputs, "the adapter's", remedy)


def check_head(delta: Delta, base: BaseModel, layout: HeadLayout, origin: HeadOrigin | None, path: Path) -> None:
    """path: of the head's file, for the error."""
    if layout.hidden_size != base.hidden_size:
        raise FedmaskError(
            f"head={path}: the head is for hidden size {layout.hidden_size}, the model has {base.hidden_size}"
        )
    if delta.heads is not None and layout.digest not in delta.heads:
        tasks = ", ".join(dict.fromkeys(delta.heads.values()))
        raise FedmaskError(
            f"head={path}: a head of task {_described(layout)} does not belong to this adapter, whose run had {tasks}"
            + ("" if layout.task not in delta.heads.values() else ", with other classes")
        )
    if origin is None:
        return
    if delta.run and origin.run and delta.run != origin.run:
        raise FedmaskError(
            f"head={path}: it is of run {origin.run}, the adapter of run {delta.run}; give a head of the adapter's run"
        )
    same_run = bool(delta.run) and delta.run == origin.run
    if unlike := _unlike_base(delta, origin):
        if not same_run:
            raise FedmaskError(f"head={path}: it was trained on another base model than the adapter: {unlike}")
        # A client may hold another copy of the base, and is sent the mask's indices then.
        logging.getLogger("fedmask").warning("head=%s: its client has another copy of the base model: %s", path, unlike)


def _unlike_base(delta: Delta, origin: HeadOrigin) -> str:
    unlike = []
    if origin.base_digest != delta.recipe.base_digest:
        unlike.append(f"{origin.base_name} with digest {origin.base_digest[:12]}, not {delta.recipe.base_digest[:12]}")
    if delta.recipe.inputs is not None and (inputs := differences(origin.inputs, delta.recipe.inputs)):
        unlike.append(inputs)
    return ", ".join(unlike)


def check_folder(
    facts: MergedFacts, base: BaseModel, layout: HeadLayout, origin: HeadOrigin | None, folder: Path
) -> None:
    """A folder's head and files beside what its configuration says of the merge. base: the folder as it loads."""
    if base.digest != facts.digest:
        raise FedmaskError(f"{folder}: its weights are not those that were merged; merge again")
    check_inputs(base.inputs, facts.inputs, f"the model that was merged into {folder}", "merge again")
    if layout.task != facts.task:
        raise FedmaskError(f"{folder}: its head is of task {layout.task}, merged was one of {facts.task}; merge again")
    of_config: dict[int, str] = base.encoder.config.id2label  # type: ignore[union-attr, assignment]
    if layout.output_names != (merged := tuple(of_config[index] for index in sorted(of_config))):
        found, named = ", ".join(layout.output_names), ", ".join(merged)
        raise FedmaskError(f"{folder}: its head has the labels {found}, merged was one of {named}; merge again")
    if origin is None:
        return
    if facts.run and origin.run and origin.run != facts.run:
        raise FedmaskError(f"{folder}: its head is of run {origin.run}, its model of run {facts.run}; merge again")


def _described(layout: HeadLayout) -> str:
    return f"{layout.task} ({'a number' if layout.labels is None else ', '.join(layout.labels)})"
