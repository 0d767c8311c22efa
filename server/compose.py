"""Command line and `conf/` -> RunConfig, all faults reported together. It and server/overrides.py alone know Hydra.

`server.overrides` reads the command line. Hydra composes the chosen files of `conf/`, the single keys are set on the
result, and `fedmask.runs.config` checks it. Hydra writes no folder and no log.
"""

import os
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from fedmask.errors import FedmaskError
from fedmask.files import output_fault, path_fault
from fedmask.runs.config import KEYS, ConfigError, Key, RunConfig, build, check, flat, from_yaml, read_value, to_dict
from fedmask.runs.strict_yaml import read_mapping_file
from fedmask.runs.trust import check_trusted
from fedmask.shown import shown
from fedmask.tasks import SOURCES
from server.overrides import NAMED_BY, Overrides, read_overrides

CONF = Path(__file__).resolve().parent.parent / "conf"
STUDIES = CONF / "study"
"""Grids of runs for scripts/study.py: no group of a run's configuration."""

# Keys that a run fills in where they are null.
_LEFT_OPEN = ("data.tasks", "client.learning_rate", "threads", "output")


def compose(overrides: Sequence[str]) -> RunConfig:
    """The checked configuration of `conf/config.yaml` with `key=value` overrides, as given on the command line.

    With `resume=DIR` it is that of DIR/config.yaml, and no override may differ from it but a larger `rounds=`; where it
    names code to run, `trust=true` has to stand beside it. Else
    `GROUP=NAME` takes conf/GROUP/NAME.yaml; of a key given twice the last counts. Lists are written `[a,b]`; in them a
    text with special characters stands in quotes. A text and a path are taken as written, a leading ~ of a path as a
    home folder.
    Raises ConfigError with all faults of syntax, names, types, ranges and contradictions, one line each.
    """
    given = read_overrides(overrides, groups(), {file.stem for file in STUDIES.glob("*.yaml")})
    if given.values.get("resume"):
        return _resumed(given)
    raw = _composed(given.choices)
    for key, value in given.values.items():
        _set(raw, key, value)
    found, faults = check(raw, given.undecided)
    faults = [*given.faults, *faults, *_path_faults(found)]
    if faults:
        raise ConfigError(faults)
    return build(raw)


def _resumed(given: Overrides) -> RunConfig:
    """The configuration of the run to resume. Raises ConfigError with every fault and every override that differs."""
    from fedmask.runs.folder import CONFIG  # numpy: late

    try:
        folder = read_value("resume", given.values["resume"], KEYS["resume"].allowed)
        if (unusable := path_fault(folder)) is not None:
            raise FedmaskError(f"resume={shown(folder)}: {unusable}")
    except FedmaskError as error:
        raise ConfigError([*given.faults, str(error)]) from error
    try:
        saved = from_yaml((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        is_file = os.path.isfile(folder)  # noqa: PTH113 (without an error for a name that is too long)
        none = "a file; name the run's folder" if is_file else f"holds no run, for it has no {CONFIG} that can be read"
        raise ConfigError([*given.faults, f"resume={shown(folder)}: {none}"]) from None
    except ConfigError as error:
        raise ConfigError(
            [*given.faults, *(f"resume={shown(folder)}: {CONFIG}: {fault}" for fault in error.faults)]
        ) from error
    config = replace(_changed(saved, given.values), resume=folder, output=folder)
    held = flat(to_dict(config))
    faults = [*given.faults, *_differences(_given(given.choices, given.values), held), *_path_faults(held)]
    try:
        check_trusted(config, f"resume={shown(folder)}", given.is_trusted)
    except FedmaskError as fault:
        faults.append(str(fault))
    if faults:
        raise ConfigError(faults)
    return config


def _changed(saved: RunConfig, given: Mapping[str, object]) -> RunConfig:
    """With what a resume may change: more rounds, and how many clients it needs."""
    rounds, least = given.get("rounds"), given.get("server.min_clients", saved.server.min_clients)
    if type(rounds) is int and rounds > saved.rounds:
        saved = replace(saved, rounds=rounds)
    if least is None or (type(least) is int and 1 <= least <= saved.clients):
        saved = replace(saved, server=replace(saved.server, min_clients=least))
    return saved


def _given(choices: Mapping[str, str], values: Mapping[str, object]) -> dict[str, object]:
    """What overrides say, by dotted key: the files of groups, what other file such a file takes, the single keys."""
    composed, plain = flat(_composed(choices)), flat(_composed({}))
    said = {key for group, name in choices.items() for key in _keys_in_file(group, name)}
    said |= {key for key in NAMED_BY.values() if composed[key] != plain[key]}
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
        try:
            read = read_value(key, value, KEYS[key].allowed)
        except FedmaskError as fault:
            yield str(fault)
            continue
        if key in _LEFT_OPEN and read is None:
            continue
        # A folder may be written in several ways.
        is_same = _is_same_folder(read, held[key]) if key == "output" else read == held[key]
        if not is_same:
            remedy = "leave it out" + (", or give more of them" if key == "rounds" else "")
            yield f"{key}={shown(read)}: the run to resume has {key}={shown(held[key])}; {remedy}"


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


def _composed(choices: Mapping[str, str]) -> dict[str, Any]:
    """`conf/` as plain nested dicts, with the chosen files."""
    try:
        with initialize_config_dir(str(CONF), version_base=None):
            config = hydra_compose("config", overrides=[f"{group}={name}" for group, name in choices.items()])
        raw: Any = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        files = " ".join(f"{group}={name}" for group, name in choices.items()) or "its defaults"
        raise ConfigError([f"conf/ does not compose with {files}: {' '.join(str(error).split())}"]) from error
    _check_numbers_and_names(choices)
    # Each rule's own rate stands in its file, and reaches the run as the default of client.learning_rate.
    raw["mask"].pop("learning_rate", None)
    return dict(raw)


def _check_numbers_and_names(choices: Mapping[str, str]) -> None:
    """Raises ConfigError where YAML makes something else of a chosen file than its writer may have meant, such as 8 of
    010: Hydra reads it so."""
    chosen = _defaults(CONF / "config.yaml") | dict(choices)
    if experiment := chosen.get("experiment"):
        chosen = chosen | _defaults(CONF / "experiment" / f"{experiment}.yaml") | dict(choices)
    for group, name in chosen.items():
        if (file := CONF / group / f"{name}.yaml").is_file():
            read_mapping_file(file)


def _defaults(file: Path) -> dict[str, str | None]:
    """The group files that a file takes, by group."""
    entries = read_mapping_file(file).content.get("defaults") or ()
    choices = (choice for entry in entries if isinstance(entry, dict) for choice in entry.items())
    return {group.removeprefix("override").strip(" /"): name for group, name in choices}


def _set(raw: dict[str, Any], key: str, value: object) -> None:
    section, dot, entry = key.partition(".")
    if not dot:
        raw[key] = value
    elif isinstance(raw[section], dict):  # where an experiment put something else there, `check` tells it
        raw[section][entry] = value


def _path_faults(values: Mapping[str, Any]) -> Iterator[str]:
    """What the file system says against the run, before any work is done for it."""
    keys = [key for key, entry in KEYS.items() if entry.allowed.kind == "path" and values.get(key) is not None]
    for key in sorted(keys, key=lambda key: key != "output"):
        path = values[key]
        try:
            fault = (output_fault if key == "output" else path_fault)(path) or _folder_fault(
                key, Path(path), values.get("data.source")
            )
        except OSError as error:  # a name that is too long, a folder that may not be looked into
            fault = str(error.strerror)
        if fault is not None:
            yield f"{key}={shown(path)}: {fault}"


def _folder_fault(key: str, path: Path, source: str | None) -> str | None:
    if key == "output":
        file = next((each for each in (path, *path.parents) if each.exists() and not each.is_dir()), None)
        return None if file is None else f"must be a folder, but {file} is a file"
    if key != "data.root" or path.is_dir() or not _reads_folder(source):
        return None
    return "must be a folder, but is a file" if path.exists() else "there is no such folder"


def _reads_folder(source: str | None) -> bool:
    return source is not None and SOURCES[source].reads_folder


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
mask.include="['*.attention.*']". Paths are taken as written, a leading ~ as the home folder.

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
    if key in NAMED_BY.values():
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
