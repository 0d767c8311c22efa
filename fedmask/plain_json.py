"""JSON that may come from anywhere: text in, a value that every part of this project can bear, or a ValueError."""

import json
import math
from typing import Any, NoReturn

MAX_DEPTH = 20
"""Of lists and mappings in each other; ours have six."""


def plain_json(text: str | bytes) -> Any:
    """Finite numbers, texts that can be written in UTF-8, truth values, None; lists and mappings of such.

    Raises ValueError for everything else, however deep or long.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _check(value)
    return value


_TOO_DEEP = f"more than {MAX_DEPTH} lists and mappings in each other"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _check(value: object) -> None:
    """Level by level, for nothing here may be as deep as what it checks."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inner: list[object] = []
        for each in level:
            if isinstance(each, dict):
                inner += [*each, *each.values()]
            elif isinstance(each, list):
                inner += each
            elif isinstance(each, str):
                each.encode()  # a half of a surrogate pair is a ValueError
            elif isinstance(each, float) and not math.isfinite(each):
                raise ValueError("a number is beyond the finite ones")
        if not inner:
            return
        level = inner
    raise ValueError(_TOO_DEEP)
