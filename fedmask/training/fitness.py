"""Whether a model can be scored and trained as fedmask does it: one small check before a run, kept once it is passed.

In: a base model, the run's mask, its max_length. Out: the selected tensors that no text reads, or one line that says
what does not fit. In this order: every token id has an embedding; a text of max_length tokens is read, and a short one
has the same features alone, beside it, and each time; the packed gradient is autograd's.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from fedmask.errors import FedmaskError
from fedmask.files import write_atomically
from fedmask.masks import Mask
from fedmask.models import BaseModel
from fedmask.training.fitness_checks import check_features, check_gradient, check_ids, check_token_types, texts_to_check
from fedmask.training.token_cache import cache_folder, own_cache_folder

_FORMAT = "fedmask fitness 1"


def check_fitness(base: BaseModel, mask: Mask | None, max_length: int) -> dict[str, int]:
    """By name, how many entries the mask selects in tensors that no text reads, and which therefore stay as they are;
    that is said once a call, too. mask: None where no entry is trained. max_length: tokens.

    Raises FedmaskError, of one line, for what fedmask cannot score or train rightly.
    """
    record = _record(base, mask, max_length)
    unread = None if record is None else _read(record)
    if unread is None:
        unread = _check(base, mask, max_length)
        if record is not None:
            _keep(record, unread)
    if unread and mask is not None:
        logging.getLogger("fedmask").warning(
            "model %s: %d of the mask's %d entries lie in tensors that no text reads, such as %s, and stay as they "
            "are; mask.exclude leaves such tensors out",
            *(base.name, sum(unread.values()), mask.num_selected, min(unread)),
        )
    return unread


def _check(base: BaseModel, mask: Mask | None, max_length: int) -> dict[str, int]:
    check_ids(base)
    check_token_types(base, pairs=False)
    tokens = texts_to_check(base, max_length)
    check_features(base, tokens)
    return {} if mask is None else check_gradient(base, mask, tokens)


# What was found before ------------------------------------------------------------------------------------------------


def _record(base: BaseModel, mask: Mask | None, max_length: int) -> Path | None:
    """The file that says so; None where nothing can be kept. Raises FedmaskError where others could have written it."""
    try:
        cache_folder()
    except FedmaskError:
        return None
    try:
        folder = own_cache_folder("fitness")
    except OSError as error:
        _tell_not_kept(error)
        return None
    parameter = next(base.encoder.parameters())
    facts = [
        _FORMAT,
        [version(package) for package in ("torch", "transformers", "tokenizers")],
        base.digest,
        base.inputs_digest,
        base.encoder.config.to_json_string(use_diff=False),  # type: ignore[union-attr, operator]
        None if mask is None else mask.digest,
        max_length,
        parameter.device.type,
    ]
    return folder / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()}.json"


def _read(record: Path) -> dict[str, int] | None:
    try:
        found = json.loads(record.read_bytes())
    except (OSError, ValueError):
        return None
    is_record = isinstance(found, dict) and all(type(count) is int for count in found.values())
    return found if is_record else None


def _keep(record: Path, unread: Mapping[str, int]) -> None:
    try:
        write_atomically(record, json.dumps(unread).encode(), private=True)
    except OSError as error:
        _tell_not_kept(error)


def _tell_not_kept(error: OSError) -> None:
    logging.getLogger("fedmask").info("that the model is fit is not kept on disk: %s", error)
