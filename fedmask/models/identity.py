"""What beside its parameters decides a base model's outputs: its tokenizer and the settings of its forward pass.

In: an encoder and a tokenizer. Out: `inputs`, a few named values, of which `inputs_digest` is the digest, and in words
where those of two copies differ. They are values in effect and not a library's file: a setting that has its
architecture's default is not named, so that a default written out, another order of keys, a key that means nothing to
the architecture, or a newer library with one more setting gives the same. What no output depends on is left out:
names of labels, dropout, dtype, paths, versions. Digests of parameters are in `fedmask.masks`.
"""

import hashlib
import inspect
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from fedmask.errors import InputsMismatchError

TOKENIZER = "tokenizer"
"""The name under which `inputs` has 16 hex digits of the tokenizer's digest."""

_OUTPUTS_DO_NOT_DEPEND = re.compile(
    r"(?!token_dropout$).*(dropout|layerdrop).*"  # ESM scales its embeddings by token_dropout, in evaluation too
    r"|.*(initializer|init_std).*"
    r"|(bos|eos|cls|sep|decoder_start)_token_id|(bos|eos)_index"
    r"|(classifier|summary|pooler|decoder)_.*|problem_type"
    r"|use_cache|tie_word_embeddings|gradient_checkpointing|deterministic_flash_attn|reference_compile"
)
"""Names of settings of training, of heads and poolers, and of how a result is computed."""

PROBES = (
    "Two Trains, 12.30 h: l'\u00e9t\u00e9 d\u00e9j\u00e0 VU! don't re-use_it 1,000",
    "e\u0301 \uff21\ufb01 \u00df \u0130I\u0131  two  blanks\tand a tab",
    "\u6771\u4eac\u3078 \uc548\ub155 \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0639 \U0001f600",
    "unbelievableantidisestablishmentarianisms",
)
"""Texts in which tokenizers' options show: case, accents, composed and wide letters, blanks, scripts, long words."""

_SHOWN_CHARACTERS = 60


def inputs_of(encoder: nn.Module, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The tokenizer, the architecture, and by name each of its settings that is not the default: JSON values."""
    config: Any = encoder.config
    default = _default(type(config))
    named = {"model_type": config.model_type, TOKENIZER: tokenizer_digest(tokenizer)[:16]}
    for name in sorted(_settings(type(config))):
        if _OUTPUTS_DO_NOT_DEPEND.fullmatch(name) or not hasattr(config, name):
            continue
        value = _plain(getattr(config, name))
        if default is None or value != _plain(getattr(default, name, None)):
            named[name] = value
    return named


def inputs_digest(inputs: Mapping[str, Any]) -> str:
    """SHA-256 (64 hexadecimal characters) of the named values."""
    canonical = json.dumps(["fedmask-inputs-1", dict(inputs)], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def check_inputs(found: Mapping[str, Any], expected: Mapping[str, Any], whose: str, remedy: str) -> None:
    """whose: what `expected` belongs to, such as "the run's". Raises InputsMismatchError that names what differs."""
    if unlike := differences(found, expected):
        raise InputsMismatchError(f"this base model reads or computes otherwise than {whose}: {unlike}; {remedy}")


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """In words, empty where there are none: `another tokenizer, hidden_act relu instead of its default`."""
    names = [name for name in sorted({*found, *expected}) if _shown(found, name) != _shown(expected, name)]
    return ", ".join(
        "another tokenizer"
        if name == TOKENIZER
        else f"{name} {_shown(found, name)} instead of {_shown(expected, name)}"
        for name in names
    )


def _shown(inputs: Mapping[str, Any], name: str) -> str:
    if name not in inputs:
        return "its default"
    text = json.dumps(inputs[name], sort_keys=True).strip('"')
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


# ---- settings ------------------------------------------------------------------------------------------------------


def _settings(kind: type[Any]) -> set[str]:
    """What an architecture itself declares: not what every model has, nor keys of a file that it does not know."""
    of_all = {field.name for field in fields(PreTrainedConfig)}
    arguments = inspect.signature(kind).parameters.values()
    named = {argument.name for argument in arguments if argument.kind is argument.KEYWORD_ONLY}
    return (named | {field.name for field in fields(kind)}) - of_all


def _default(kind: type[Any]) -> Any:
    """The architecture's default configuration; None where it has none."""
    try:
        return kind()
    except Exception:  # whatever a library's class makes of no arguments
        return None


def _plain(value: Any) -> Any:
    """A setting's value as JSON has it, one form a value: 1.0 is 1."""
    if isinstance(value, PreTrainedConfig):
        return _plain({name: getattr(value, name, None) for name in _settings(type(value))})
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


# ---- tokenizer -----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 (64 hexadecimal characters) of what decides a text's token ids and types; no name, no decoder.

    A fast tokenizer's own state is part of it. Of one in Python its vocabulary and its vocabulary's files are, and what
    it makes of a few texts in which options show.
    """
    pieces = _fast_pieces(tokenizer) if tokenizer.is_fast else _slow_pieces(tokenizer)
    facts = {
        "pieces": pieces,
        "padding": tokenizer.pad_token_id,
        "truncation": tokenizer.truncation_side,
        "splits specials": bool(getattr(tokenizer, "split_special_tokens", False)),
        "single": [_encoded(tokenizer, text) for text in PROBES],
        "pair": _encoded(tokenizer, *PROBES[:2]),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _encoded(tokenizer: PreTrainedTokenizerBase, *texts: str) -> list[list[int]]:
    """Ids and types: what is put around and between texts shows in them."""
    encoded = tokenizer(*texts, return_token_type_ids=True)
    return [list(encoded["input_ids"]), list(encoded["token_type_ids"])]


def _fast_pieces(tokenizer: PreTrainedTokenizerBase) -> Any:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # What is put around texts is told by its effect: libraries write it in several ways.
    pieces = {part: _without(state[part], (None,)) for part in ("normalizer", "pre_tokenizer", "added_tokens")}
    return pieces | {"model": _without(state["model"], (None, False))}


def _without(part: Any, unset: tuple[object, ...]) -> Any:
    """A part of a tokenizer's state without options that are not set: older libraries did not know them all."""
    if not isinstance(part, dict):
        return part
    return {key: value for key, value in part.items() if not any(value is each for each in unset)}


def _slow_pieces(tokenizer: PreTrainedTokenizerBase) -> Any:
    added = {str(index): str(token) for index, token in tokenizer.added_tokens_decoder.items()}
    try:
        vocabulary = dict(tokenizer.get_vocab())
    except Exception:  # one of characters or bytes has none
        vocabulary = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            tokenizer.save_vocabulary(folder)
        except Exception:  # as above
            return {"vocabulary": vocabulary, "added": added}
        files = {path.name: _content(path) for path in sorted(Path(folder).iterdir())}
    return {"vocabulary": vocabulary, "added": added, "files": files}


def _content(path: Path) -> str:
    raw = path.read_bytes()
    if path.suffix == ".json":
        raw = json.dumps(json.loads(raw), sort_keys=True).encode()
    return hashlib.sha256(raw).hexdigest()
