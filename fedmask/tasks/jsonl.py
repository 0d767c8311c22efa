"""Tasks from folders of JSON lines, one object a line: DIR/{task}/{train,validation,test}.jsonl -> Task.

A line is a row to classify: an object with a text (or two) and a label. Keys are found by their usual names unless they
are named; others are ignored. Labels that are texts are class names, whole numbers are classes in their order, and
where one is a number with a decimal point all are targets of a regression.
"""

import json
from pathlib import Path
from typing import Any

from fedmask.errors import FedmaskError
from fedmask.tasks.files import FileSource
from fedmask.tasks.table import Form, Table

_ONE_A_LINE = "data=jsonl takes one object a line, with a text and a label, and no list around them"


def _read(path: Path) -> Table:
    """A column for each key that an object has; None where another has not. Empty lines are passed over."""
    objects, lines = [], []
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for line, text in enumerate(file, start=1):
            if text.strip():
                objects.append(_object(text, f"{path}:{line}"))
                lines.append(line)
    names = list(dict.fromkeys(name for each in objects for name in each))

    def values(name: str) -> list[Any]:
        return [each.get(name) for each in objects]

    return Table(
        str(path), names, values, len(objects), lambda row: f"{path}:{lines[row]}", there="the keys are", what="key"
    )


def _object(text: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=_distinct)
    except _TwiceError as error:
        raise FedmaskError(f"{place}: the key {error.key!r} stands twice in an object; leave one") from error
    except (ValueError, RecursionError) as error:
        why = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise FedmaskError(f"{place}: not JSON: {why}; {_ONE_A_LINE}") from error
    if not isinstance(value, dict):
        raise FedmaskError(f"{place}: not a JSON object; {_ONE_A_LINE}")
    return value


class _TwiceError(Exception):
    def __init__(self, key: str) -> None:
        self.key = key


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs, of which JSON would keep the last of two that are alike."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _TwiceError(key)
        found[key] = value
    return found


_SOURCE = FileSource("jsonl", _read, Form(has_types=True))
load, load_task, stamp = _SOURCE.load, _SOURCE.load_task, _SOURCE.stamp
