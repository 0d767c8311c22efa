"""YAML that a person writes, read strictly: text in, a mapping of plain values out, or every fault with its line.

Where YAML 1.1 makes something of a text that its writer may not have meant, it is a fault or left as it stands: a key
twice in a mapping, a key that is no text (`no:`), a number in another base (`0777`, `0x1F`, `1:30`, `1_000`), a tag; a
date is a text. `written` keeps how a value that is no text stands in the file, so that `task: no` can be told by it.
Aliases and merge keys are read, within limits that no file of this project comes near.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from fedmask.errors import ConfigError
from fedmask.shown import shown

MAX_BYTES = 2**18
"""Of a file; PyYAML takes seconds for so many."""

MAX_DEPTH = 30
"""Of mappings and lists in each other."""

MAX_VALUES = 20_000
"""Each counted as often as an alias names it: a few lines of aliases can stand for billions."""

_TEXT, _WHOLE, _NUMBER, _TRUTH, _NULL, _MERGE, _LIST, _MAPPING, _DATE, _EQUALS = (
    f"tag:yaml.org,2002:{name}"
    for name in ("str", "int", "float", "bool", "null", "merge", "seq", "map", "timestamp", "value")
)
_DECIMAL = {
    _WHOLE: re.compile(r"[-+]?(0|[1-9][0-9]{0,99})"),
    _NUMBER: re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
}
_OTHER_BASES = {"_": "with underscores", ":": "in base 60", "x": "in base 16", "b": "in base 2"}
"""By a sign that stands in it; a number with none of them is in base 8."""


@dataclass(frozen=True)
class Document:
    """What a file says."""

    content: Any
    """Mappings with texts as keys, lists, texts, numbers, truth values and None."""
    written: Mapping[str, str]
    """By dotted key, with [i] behind a list's, how a value stands in the file that is no text and no collection."""


def read_mapping_file(path: Path) -> Document:
    """As read_mapping, from a file in UTF-8; each fault begins with its path."""
    try:
        return read_mapping(text_of(path))
    except ConfigError as error:
        raise ConfigError([f"{path}: {fault}" for fault in error.faults]) from error


def read_mapping(text: str) -> Document:
    """As read_document, of a document whose content is a mapping."""
    found = read_document(text)
    if not isinstance(found.content, dict):
        raise ConfigError([f"not a configuration: expected a mapping of keys to values, found {shown(found.content)}"])
    return found


def read_document(text: str) -> Document:
    """Raises ConfigError with every fault, one line each, which begins with its place where it has one."""
    loader, node = _parsed(_bounded(text))
    reader = _Reader(loader)
    content = None if node is None else reader.value(node, "")
    if reader.faults:
        raise ConfigError(reader.faults)
    return Document(content, reader.written)


def text_of(path: Path) -> str:
    """Of a file in UTF-8. Raises ConfigError where there is none, or one that is no such text, or too large."""
    if path.is_dir():
        raise ConfigError(["is a folder; name a file"])
    if not path.is_file():
        raise ConfigError(["there is no such file"])
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError([_too_large()])
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError([f"not UTF-8 text: byte {error.start + 1} is {error.object[error.start]:#04x}"]) from error
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror}"]) from error


def _bounded(text: str) -> str:
    if len(text) > MAX_BYTES:
        raise ConfigError([_too_large()])
    return text


def _too_large() -> str:
    return f"larger than {MAX_BYTES:,} bytes, which no configuration needs"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Without dates and the value `=`: they are texts."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (a name of PyYAML's)
        first: [(tag, form) for tag, form in resolvers if tag not in (_DATE, _EQUALS)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _parsed(text: str) -> tuple[_Loader, Any]:
    """The document's node; None where there is none. Raises ConfigError for what is not YAML."""
    try:
        loader = _Loader(text)
        return loader, loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        said = " ".join(f"{error.context or ''} {error.problem}".split())
        place = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise ConfigError([f"not YAML: {said}{place}"]) from error
    except RecursionError:
        raise ConfigError([_too_deep()]) from None
    except Exception as error:  # of many types, as for an escape beyond Unicode
        raise ConfigError([f"not YAML: {' '.join(str(error).split())}"]) from error


def _too_deep() -> str:
    return f"more than {MAX_DEPTH} mappings and lists in each other"


@dataclass
class _Reader:
    """From nodes to plain values; collects every fault."""

    loader: _Loader
    faults: list[str] = field(default_factory=list)
    written: dict[str, str] = field(default_factory=dict)
    num_values: int = 0

    def value(self, node: Any, key: str, depth: int = 0) -> Any:
        """key: dotted, of the mappings around it. Raises ConfigError beyond the limits."""
        self.num_values += 1
        if depth > MAX_DEPTH:
            raise ConfigError([f"{_line(node)}{_too_deep()}"])
        if self.num_values > MAX_VALUES:
            raise ConfigError([f"{_line(node)}more than {MAX_VALUES:,} values, each alias written out"])
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, key)
        if node.tag not in (_LIST, _MAPPING):
            self._fault(node, f"{key}: the tag {node.tag} is not read; leave it out")
            return None
        if isinstance(node, yaml.SequenceNode):
            return [self.value(entry, f"{key}[{index}]", depth + 1) for index, entry in enumerate(node.value)]
        return dict(self._entries(node, key, depth))

    def _entries(self, node: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
        """Of a mapping; those that its merge keys bring come first, for its own win."""
        own = [(key, value) for key, value in node.value if key.tag != _MERGE]
        for key, value in node.value:
            if key.tag == _MERGE:
                yield from self._merged(value, path, depth + 1)
        lines: dict[str, int] = {}
        for key, value in own:
            name = self._key(key)
            if name is None:
                continue
            if name in lines:
                self._fault(key, f"{_dotted(path, name)} stands twice, first in line {lines[name]}; leave one out")
                continue
            lines[name] = key.start_mark.line + 1
            yield name, self.value(value, _dotted(path, name), depth + 1)

    def _merged(self, node: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
        """Of several mappings the first wins."""
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for part in reversed(parts):
            merged = self.value(part, path, depth)
            if not isinstance(merged, dict):
                self._fault(part, "<<: merges mappings only")
                return
            yield from merged.items()

    def _key(self, node: Any) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self._fault(node, "a key must be a word")
            return None
        text = str(node.value)
        if node.tag != _TEXT and not (node.tag == _WHOLE and _DECIMAL[_WHOLE].fullmatch(text)):
            self._fault(node, f'the key {text} is read as another value than a text; write "{text}"')
            return None
        return text

    def _scalar(self, node: Any, key: str) -> Any:
        text, tag = str(node.value), str(node.tag)
        if tag == _TEXT:
            return text
        if node.style or tag != self.loader.resolve(yaml.ScalarNode, text, (True, False)):
            self._fault(node, f"{key}: the tag {tag.removeprefix('tag:yaml.org,2002:')} is not read; leave it out")
            return None
        self.written[key] = text
        if tag == _NULL:
            return None
        if tag == _TRUTH:
            return bool(self.loader.construct_yaml_bool(node))
        if not _DECIMAL[tag].fullmatch(text):
            self._fault(node, f"{key}: {self._other_base(node)}")
            return None
        return int(text) if tag == _WHOLE else float(self.loader.construct_yaml_float(node))

    def _other_base(self, node: Any) -> str:
        text, value = str(node.value), None
        if len(text) > 100:
            return f"a number of {len(text)} digits"
        with suppress(ValueError):  # 0b_: PyYAML takes it for a number
            value = self.loader.construct_object(node)
        base = next((base for sign, base in _OTHER_BASES.items() if sign in text.lower()), "in base 8")
        means = f"YAML reads it {base}, as {value}" if value is not None else "YAML cannot read it"
        return f'{text}: {means}; write a decimal number, or "{text}" if it is a text'

    def _fault(self, node: Any, what: str) -> None:
        self.faults.append(f"{_line(node)}{what}")


def _line(node: Any) -> str:
    return f"line {node.start_mark.line + 1}: "


def _dotted(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
