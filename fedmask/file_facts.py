"""The facts in a safetensors file's metadata, read from anywhere: JSON in, values of the kinds and sizes that were
asked for out, or one FedmaskError that names the file.

Facts stand in a single entry `fedmask`, because safetensors writes several entries in an order that changes from call
to call.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from fedmask.errors import FedmaskError
from fedmask.plain_json import plain_json

ENTRY = "fedmask"

MAX_CHARACTERS = 10_000
"""Of a text; those of ours are names and digests."""

_Kind = TypeVar("_Kind")


@dataclass(frozen=True)
class FileFacts:
    """The facts of one file, or a part of them."""

    path: Path
    what: str
    """What the file is, such as `head file`."""
    found: Mapping[str, Any]
    part: str = ""
    """The dotted name of the part, with a dot behind it."""
    remedy: str = "; fetch or make it again"

    @classmethod
    def read(cls, path: Path, what: str, described: str | bytes) -> "FileFacts":
        """described: JSON. Raises FedmaskError for anything but a mapping of what `plain_json` gives."""
        try:
            found = plain_json(described)
        except ValueError as error:
            cls(path, what, {}).refuse(f"its facts: {error}")
        if not isinstance(found, dict):
            cls(path, what, {}).refuse("its facts are no mapping")
        return cls(path, what, found)

    def refuse(self, why: str) -> NoReturn:
        raise FedmaskError(f"{self.path}: damaged {self.what} ({why}){self.remedy}")

    def text(self, name: str, otherwise: str | None = None, most: int = MAX_CHARACTERS) -> str:
        """otherwise: what it is where it lacks; None: it may not."""
        value = self._value(name, str, "a text", otherwise)
        if len(value) > most:
            self.refuse(f"{self.part}{name} is a text of {len(value):,} characters")
        return value

    def whole(self, name: str, low: int, high: int) -> int:
        value = self._value(name, int, "a whole number")
        if not low <= value <= high:
            self.refuse(f"{self.part}{name} is {value}, allowed is {low:,} to {high:,}")
        return value

    def switch(self, name: str) -> bool:
        return self._value(name, bool, "true or false")

    def seconds(self, name: str) -> float:
        value: Any = self.found.get(name)
        if type(value) not in (int, float) or not 0 <= value < 1e12:
            self.refuse(f"{self.part}{name} is no number of seconds")
        return float(value)

    def list(self, name: str) -> list[Any]:
        return self._value(name, list, "a list")

    def texts(self, name: str) -> tuple[str, ...]:
        values = self.list(name)
        if not all(type(value) is str and len(value) <= MAX_CHARACTERS for value in values):
            self.refuse(f"{self.part}{name} is no list of texts")
        return tuple(values)

    def mapping(self, name: str) -> "FileFacts":
        found = self._value(name, dict, "a mapping")
        return replace(self, found=found, part=f"{self.part}{name}.")

    def has(self, name: str) -> bool:
        """Whether it is said."""
        return name in self.found

    def _value(self, name: str, kind: type[_Kind], words: str, otherwise: _Kind | None = None) -> _Kind:
        value = self.found.get(name, otherwise)
        if type(value) is not kind:  # to Python true is a whole number
            self.refuse(f"{self.part}{name} is missing" if value is None else f"{self.part}{name} is not {words}")
        return value
