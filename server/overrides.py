"""The command line: `key=value` overrides in; chosen files and values out, with every fault of them at once.

Overrides are read one by one, because Hydra stops at the first fault; a value is written in Hydra's grammar, a text or
a path as it is. What people write in place of an override is told by the override that is meant.
"""

import difflib
import os
import re
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from hydra.core.override_parser.overrides_parser import OverridesParser

from fedmask.errors import FedmaskError
from fedmask.runs.config import KEYS, is_allowed, not_allowed, one_of_text, plain_value, unknown_key
from fedmask.runs.other_words import meant_by
from fedmask.runs.trust import TRUST
from fedmask.shown import shown

# The key by which a group's file says which one it is. Set alone, it would leave the options of another file behind.
NAMED_BY = {"model": "model.name", "data": "data.source", "mask": "mask.rule"}
_SAME_AS = {"data.text_a": "data.text"}
"""Second spellings of a key."""
_MULTIRUN = ("-m", "--multirun")
_ONE_RUN = "many runs are a study: scripts/study.py experiment=FILE.yaml"
# Keys of other scripts.
_OTHER_SCRIPTS = {
    "adapter": "scripts/merge.py adapter=RUN/adapter.safetensors output=FOLDER merges an adapter",
    "seeds": "scripts/study.py experiment=NAME seeds=N runs a study under several seeds",
    "codecs": "scripts/measure_communication.py compares codecs",
}
# What was meant where such a value is given to a group of nearly the same name.
_MEANT_BY_GROUP = {"client": ("clients",), "mask": ("mask.density",), "codec": ("codec.up", "codec.down")}


@dataclass
class Overrides:
    """What a command line says."""

    choices: dict[str, str] = field(default_factory=dict)
    """By group the name of the file that is chosen."""
    values: dict[str, object] = field(default_factory=dict)
    """By dotted key, not yet checked."""
    undecided: set[str] = field(default_factory=set)
    """Dotted keys that were given something, which is a fault."""
    faults: list[str] = field(default_factory=list)
    """One line each."""
    is_trusted: bool = False
    """Whether code may be run that the configuration to resume names."""


def read_overrides(
    overrides: Sequence[str], groups: Mapping[str, Collection[str]], studies: Collection[str]
) -> Overrides:
    """Of a key given twice the last counts. groups: by name the files of each; studies: names that are no run's."""
    read = Overrides()
    for override, is_split in _arguments(overrides, groups):
        key, equals, text = override.partition("=")
        key = _SAME_AS.get(key, key)
        override = f"{key}{equals}{text}"
        try:
            if is_split:
                raise FedmaskError(_not_key_value(override, groups))
            if key == TRUST and equals:
                read.is_trusted = _is_trusted(text)
            elif key in groups and equals:
                read.choices[key] = _choice(key, text, groups[key], studies)
            else:
                read.values[key] = _value(override, groups)
        except FedmaskError as fault:
            read.faults.append(str(fault))
            read.undecided.add(NAMED_BY.get(key, key))
    if read.is_trusted and not read.values.get("resume"):
        read.faults.append(f"{TRUST}=true: goes with resume=FOLDER, for code that its config.yaml names; leave it out")
    return read


def _is_trusted(text: str) -> bool:
    if text not in ("true", "false"):
        raise FedmaskError(f"{TRUST}={shown(text)}: must be true or false")
    return text == "true"


def given_twice(overrides: Sequence[str]) -> Iterator[str]:
    """One line for each key that is given several values, with the one that counts."""
    values: dict[str, list[str]] = {}
    for override in overrides:
        key, _, text = override.partition("=")
        values.setdefault(key, []).append(text)
    for key, texts in values.items():
        if len(set(texts)) > 1:
            yield f"{key} is given {len(texts)} times; the last counts: {key}={texts[-1]}"


def _arguments(overrides: Sequence[str], groups: Collection[str]) -> Iterator[tuple[str, bool]]:
    """The overrides; a key and its value that are split, as in `--rounds 3` or `rounds = 3`, as one, and True."""
    left = deque(overrides)
    while left:
        parts = [left.popleft()]
        if _is_key_alone(parts[0], groups):
            if left and left[0] == "=":
                parts.append(left.popleft())
            if left and "=" not in left[0].removeprefix("=") and not _is_key_alone(left[0], groups):
                parts.append(left.popleft())
        yield " ".join(parts), len(parts) > 1


def _is_key_alone(argument: str, groups: Collection[str]) -> bool:
    """Whether an argument names a key and gives it no value."""
    word = argument.rstrip(":=")
    return "=" not in word and bool(meant_by(word, _known(groups)))


def _known(groups: Collection[str]) -> list[str]:
    """What can be given a value."""
    return [*(key for key in KEYS if key not in NAMED_BY.values()), *groups]


def _choice(group: str, name: str, names: Collection[str], studies: Collection[str]) -> str:
    if group == "experiment" and name in studies:
        raise FedmaskError(f"experiment={shown(name)}: a study of many runs; give it to scripts/study.py")
    if name not in names:
        meant = _meant_by_group(group, name, names)
        raise FedmaskError(not_allowed(group, name, one_of_text(names), () if meant else names) + meant)
    return name


def _meant_by_group(group: str, name: str, names: Collection[str]) -> str:
    """What to write where a group was given what a single key takes; nothing where that is not known."""
    text = shown(name)
    if group == "model" and (set("/-.~") & set(name) or not difflib.get_close_matches(name, names)):
        return f"; a folder or a hub name is given as model.path={text}"
    if group == "data" and (name.startswith(("/", "~", ".")) or os.path.exists(name)):  # noqa: PTH110
        return f"; your own files are given as data=tsv data.root={text} data.tasks=[...]"
    if group == "data" and "/" in name:
        return f"; a data set of the hub is given as data=hub data.tasks=[{text}]"
    keys = [key for key in _MEANT_BY_GROUP.get(group, ()) if is_allowed(plain_value(name), KEYS[key].allowed)]
    return f"; write {' '.join(f'{key}={text}' for key in keys)}" if keys else ""


def _value(override: str, groups: Collection[str]) -> object:
    """The value of one `key=value`; FedmaskError where there is no such key to set, or the value cannot be read."""
    key, equals, text = override.partition("=")
    if key.startswith(("+", "~")):
        raise FedmaskError(f"{shown(override)}: keys can be neither added nor deleted; write key=value")
    if override in _MULTIRUN:
        raise FedmaskError(f"{override}: {_ONE_RUN}")
    if not equals:
        raise FedmaskError(_not_key_value(override, groups))
    if key in _OTHER_SCRIPTS:
        raise FedmaskError(f"{shown(override)}: no key of a run; {_OTHER_SCRIPTS[key]}")
    if key not in KEYS:
        raise FedmaskError(unknown_key(key, text, _known(groups)))
    if key in NAMED_BY.values():
        group = key.partition(".")[0]
        raise FedmaskError(
            f"{shown(override)}: comes with the file that {group}=NAME takes; write {group}={shown(text)}"
        )
    if KEYS[key].allowed.kind in ("text", "path") and not text.startswith(("'", '"')):
        return None if text == "null" else text
    return _parsed(override, text)


def _not_key_value(override: str, groups: Collection[str]) -> str:
    """One line, with what is meant where it can be told."""
    word, _, value = re.sub(r"[\s:=]+", "=", override, count=1).partition("=")
    fault = f"{shown(override)}: must be key=value; --help lists all keys"
    keys = meant_by(word, _known(groups))
    if not keys:
        return fault
    is_switch = keys[0] in KEYS and is_allowed(True, KEYS[keys[0]].allowed)
    return f"{fault}; write {keys[0]}={shown(value or ('true' if is_switch else '...'))}"


def _parsed(override: str, text: str) -> object:
    """A value in Hydra's grammar: numbers, true, false, null, words, 'quoted text', [lists] and {mappings: 1}."""
    try:
        parsed = OverridesParser.create().parse_override(f"value={text}")
    except Exception as error:  # of many types, for its depth or for a number of 5,000 digits as well
        raise FedmaskError(
            f"{shown(override)}: not a value; a list is written [a,b], a text with special characters stands in quotes"
        ) from error
    if parsed.is_sweep_override():
        raise FedmaskError(f"{shown(override)}: a run takes one value a key; a list is written [a,b]; {_ONE_RUN}")
    if (number := _with_underscores(text)) is not None:
        raise FedmaskError(
            f"{shown(override)}: {number} has underscores, and a number has none; a text stands in quotes: '{number}'"
        )
    if (twice := _key_twice(text)) is not None:
        raise FedmaskError(f"{shown(override)}: {shown(twice)} stands twice; leave one out")
    return parsed.value()


def _with_underscores(text: str) -> str | None:
    """A word that Hydra's grammar, unlike YAML as files are read here, takes for a number without its underscores."""
    words = (word.strip() for word in re.split(r"[\[\]{},:]", _without_quoted(text)))
    return next((word for word in words if "_" in word and isinstance(plain_value(word), int | float)), None)


def _without_quoted(text: str) -> str:
    return re.sub(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""", "''", text)


def _key_twice(text: str) -> str | None:
    """A key that stands twice in one mapping of a value in Hydra's grammar, which would take the last."""
    for mapping in re.findall(r"\{([^{}]*)\}", _without_quoted(text)):
        keys = [str(entry).partition(":")[0].strip() for entry in mapping.split(",")]
        for key in keys:
            if keys.count(key) > 1:
                return key
    return None
