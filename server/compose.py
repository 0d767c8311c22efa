"""Command line and `conf/` -> RunConfig, all faults reported together; the only module that knows Hydra.

Overrides are read one by one, because Hydra stops at the first fault. Hydra composes the chosen files of `conf/`, the
single keys are set on the result, and `fedmask.runs.config` checks it. Hydra writes no folder and no log.
"""

import re
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from fedmask.errors import FedmaskError
from fedmask.runs.config import (
    KEYS,
    ConfigError,
    Key,
    RunConfig,
    build,
    check,
    flat,
    from_yaml,
    not_allowed,
    one_of_text,
    shown,
    to_dict,
    unknown_key,
)

CONF = Path(__file__).resolve().parent.parent / "conf"
STUDIES = CONF / "study"
"""Grids of runs for scripts/study.py: no group of a run's configuration."""

# The key by which a group's file says which one it is. Set alone, it would leave the options of another file behind.
_NAMED_BY = {"model": "model.name", "data": "data.source", "mask": "mask.rule"}
# Keys whose value is any text are taken as written, so that a path needs no quotes of Hydra's grammar.
_TAKEN_AS_WRITTEN = ("model.hub", "model.path", "data.root", "output", "resume")
# Keys that a run fills in where they are null.
_LEFT_OPEN = ("data.tasks", "client.learning_rate", "threads", "output")


def compose(overrides: Sequence[str]) -> RunConfig:
    """The checked configuration of `conf/config.yaml` with `key=value` overrides, as given on the command line.

    With `resume=DIR` it is that of DIR/config.yaml, and no override may differ from it. Else `GROUP=NAME` takes
    conf/GROUP/NAME.yaml; of a key given twice the last counts. Lists are written `[a,b]`; a text with special
    characters stands in quotes, but `model.path`, `data.root`, `output` and `resume` are taken as written.
    Raises ConfigError with all faults of syntax, names, types, ranges and contradictions, one line each.
    """
    choices: dict[str, str] = {}
    values: dict[str, object] = {}
    undecided: set[str] = set()
    faults: list[str] = []
    known_groups = groups()
    for override in overrides:
        key, _, text = override.partition("=")
        try:
            if key in known_groups:
                choices[key] = _choice(key, text, known_groups[key])
            else:
                values[key] = _value(override, known_groups)
        except FedmaskError as fault:
            faults.append(str(fault))
            undecided.add(_NAMED_BY.get(key, key))
    if values.get("resume"):
        return _resumed(choices, values, faults)
    raw = _composed(choices)
    for key, value in values.items():
        _set(raw, key, value)
    found, more = check(raw, undecided)
    faults += [*more, *_path_faults(found)]
    if faults:
        raise ConfigError(faults)
    return build(raw)


def _resumed(choices: Mapping[str, str], values: Mapping[str, object], faults: Sequence[str]) -> RunConfig:
    """The configuration of the run to resume. Raises ConfigError with `faults` and every override that differs."""
    from fedmask.runs.folder import CONFIG  # numpy: late

    folder = str(values["resume"])
    try:
        saved = from_yaml((Path(folder) / CONFIG).read_text())
    except (OSError, UnicodeDecodeError):
        none = f"resume={shown(folder)}: holds no run, for it has no {CONFIG} that can be read"
        raise ConfigError([*faults, none]) from None
    except ConfigError as error:
        raise ConfigError(
            [*faults, *(f"resume={shown(folder)}: {CONFIG}: {fault}" for fault in error.faults)]
        ) from error
    config = replace(saved, resume=folder, output=folder)
    held = flat(to_dict(config))
    faults = [*faults, *_differences(_given(choices, values), held), *_path_faults(held)]
    if faults:
        raise ConfigError(faults)
    return config


def _given(choices: Mapping[str, str], values: Mapping[str, object]) -> dict[str, object]:
    """What overrides say, by dotted key: the files of groups, what other file such a file takes, the single keys."""
    composed, plain = flat(_composed(choices)), flat(_composed({}))
    said = {key for group, name in choices.items() for key in _keys_in_file(group, name)}
    said |= {key for key in _NAMED_BY.values() if composed[key] != plain[key]}
    in_files = {key: composed[key] for key in said & KEYS.keys() if composed.get(key) is not None}
    return {key: value for key, value in (in_files | dict(values)).items() if key != "resume"}


def _keys_in_file(group: str, name: str) -> set[str]:
    """The dotted keys that conf/GROUP/NAME.yaml gives a value; its own group's, where it does not say otherwise."""
    file = CONF / group / f"{name}.yaml"
    raw: Any = OmegaConf.to_container(OmegaConf.load(file))
    is_global = "@package _global_" in file.read_text(encoding="utf-8")
    return set(flat(raw if is_global else {group: raw}))


def _differences(given: Mapping[str, object], held: Mapping[str, object]) -> Iterator[str]:
    """One line for each key that is given another value than the run has that is resumed."""
    for key, value in given.items():
        allowed = KEYS[key].allowed
        try:
            read = allowed.read(value)
        except (ValueError, OverflowError):
            yield not_allowed(key, value, allowed.text, allowed.choices)
            continue
        if key in _LEFT_OPEN and read is None:
            continue
        # A folder may be written in several ways.
        is_same = _is_same_folder(read, held[key]) if key == "output" else read == held[key]
        if not is_same:
            yield f"{key}={shown(read)}: the run to resume has {key}={shown(held[key])}; leave it out"


def _is_same_folder(one: object, other: object) -> bool:
    return Path(str(one)).resolve() == Path(str(other)).resolve()


def groups() -> dict[str, dict[str, str]]:
    """The groups of `conf/`, and for each the names of its files with what each says of itself in its first comment."""
    folders = sorted(path for path in CONF.iterdir() if path.is_dir() and path != STUDIES)
    return {
        folder.name: {file.stem: _first_comment(file) for file in sorted(folder.glob("*.yaml"))} for folder in folders
    }


def _first_comment(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    comments = (line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    return next((comment for comment in comments if not comment.startswith("@package")), "")


def _choice(group: str, name: str, names: Collection[str]) -> str:
    if group == "experiment" and (STUDIES / f"{name}.yaml").exists():
        raise FedmaskError(f"experiment={shown(name)}: a study of many runs; give it to scripts/study.py")
    if name not in names:
        raise FedmaskError(not_allowed(group, name, one_of_text(names), names))
    return name


def _value(override: str, known_groups: Collection[str]) -> object:
    """The value of one `key=value`; FedmaskError where there is no such key to set, or the value cannot be read."""
    key, equals, text = override.partition("=")
    if key.startswith(("+", "~")):
        raise FedmaskError(f"{shown(override)}: keys can be neither added nor deleted; write key=value")
    if not equals:
        raise FedmaskError(f"{shown(override)}: must be key=value; --help lists all keys")
    if key not in KEYS:
        raise FedmaskError(unknown_key(key, text, [*KEYS, *known_groups]))
    if key in _NAMED_BY.values():
        group = key.partition(".")[0]
        raise FedmaskError(f"{shown(override)}: comes with the file that {group}=NAME takes; write {group}={text}")
    if key in _TAKEN_AS_WRITTEN and not text.startswith(("'", '"')):
        return None if text == "null" else text
    return _parsed(override, text)


def _parsed(override: str, text: str) -> object:
    """A value in Hydra's grammar: numbers, true, false, null, words, 'quoted text', [lists] and {mappings: 1}."""
    try:
        parsed = OverridesParser.create().parse_override(f"value={text}")
    except HydraException as error:
        raise FedmaskError(
            f"{shown(override)}: not a value; a list is written [a,b], a text with special characters stands in quotes"
        ) from error
    if parsed.is_sweep_override():
        raise FedmaskError(f"{shown(override)}: a run takes one value a key; a list is written [a,b]")
    return parsed.value()


def _composed(choices: Mapping[str, str]) -> dict[str, Any]:
    """`conf/` as plain nested dicts, with the chosen files."""
    try:
        with initialize_config_dir(str(CONF), version_base=None):
            config = hydra_compose("config", overrides=[f"{group}={name}" for group, name in choices.items()])
        raw: Any = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        files = " ".join(f"{group}={name}" for group, name in choices.items()) or "its defaults"
        raise ConfigError([f"conf/ does not compose with {files}: {' '.join(str(error).split())}"]) from error
    # Each rule's own rate stands in its file, and reaches the run as the default of client.learning_rate.
    raw["mask"].pop("learning_rate", None)
    return dict(raw)


def _set(raw: dict[str, Any], key: str, value: object) -> None:
    section, dot, entry = key.partition(".")
    if not dot:
        raw[key] = value
    elif isinstance(raw[section], dict):  # where an experiment put something else there, `check` tells it
        raw[section][entry] = value


def _path_faults(values: Mapping[str, Any]) -> Iterator[str]:
    """What the file system says against the run, before any work is done for it."""
    output, root = values.get("output"), values.get("data.root")
    if output is not None:
        for path in (Path(output), *Path(output).parents):
            if path.exists() and not path.is_dir():
                yield f"output={shown(output)}: must be a folder, but {path} is a file"
    if root is not None and values.get("data.source") in ("tsv", "hub", "python") and not Path(root).is_dir():
        yield f"data.root={shown(root)}: there is no such folder"


# ----------------------------------------------------------------------------------------------------------------------
# --help
# ----------------------------------------------------------------------------------------------------------------------

_HELP_WIDTH = 100
_HELP_COLUMN = 36
_HELP_HEAD = """\
usage: python scripts/simulate.py [GROUP=NAME ...] [KEY=VALUE ...]

Clients with different tasks fine-tune one pre-trained model together, and exchange nothing but
the changes of the few entries that one shared mask selects.

  python scripts/simulate.py mask=hiwi rounds=3
  python scripts/simulate.py data=tsv data.root=DIR data.tasks=[sst2,trec] clients=4 output=FOLDER

A list is written [a,b]; a text with special characters stands in quotes, inside the shell's own:
mask.include="['*.attention.*']". Paths are taken as written.

GROUP=NAME takes the file conf/GROUP/NAME.yaml; * is the default:"""


def help_text() -> str:
    """What `--help` prints, at most 100 columns wide: every group with its choices, every key with its default."""
    return "\n".join(
        [_HELP_HEAD, *_group_lines(), "", "KEY=VALUE, here with the defaults under the groups marked *:", *_key_lines()]
    )


def _group_lines() -> Iterator[str]:
    config = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"))
    assert isinstance(config, dict)
    chosen = [choice for entry in config["defaults"] if isinstance(entry, dict) for choice in entry.items()]
    for group, names in groups().items():
        yield ""
        for name, meaning in names.items():
            yield _two_columns(f"{'*' if (group, name) in chosen else ' '} {group}={name}", meaning)


def _key_lines() -> Iterator[str]:
    section = None
    defaults = _composed({})
    for key, entry in KEYS.items():
        if section != (section := key.rpartition(".")[0]):
            yield ""
        default = (defaults[section] if section else defaults)[key.removeprefix(f"{section}.")]
        shown_default = "{...}" if isinstance(default, dict) else shown(default)
        yield _two_columns(f"  {key}={shown_default}", _explained(key, entry))


def _explained(key: str, entry: Key) -> str:
    """Meaning, then the choices with theirs or the range that is allowed."""
    if key in _NAMED_BY.values():
        return f"{entry.meaning}; set by {key.partition('.')[0]}=NAME."
    text, choices = entry.allowed.text, entry.allowed.choices
    if choices:
        text = re.sub("|".join(choices), lambda word: f"{word[0]} ({choices[word[0]]})", text)
    return f"{entry.meaning}: {text}."


def _two_columns(left: str, right: str) -> str:
    lines = textwrap.wrap(right, _HELP_WIDTH - _HELP_COLUMN)
    if len(left) >= _HELP_COLUMN:
        lines.insert(0, "")
    return "\n".join(
        f"{first:{_HELP_COLUMN}}{line}".rstrip() for first, line in zip_longest([left], lines, fillvalue="")
    )
