"""What a text, a label and a regression's targets must be: FedmaskError with the place at fault."""

from numbers import Integral, Real

import numpy as np

from fedmask.errors import FedmaskError
from fedmask.tasks.labels import IGNORED, clean


def check_text(text: object, place: str, column: str = "") -> None:
    """Raises FedmaskError unless it is a text that UTF-8 can hold; odd characters in it are a person's own affair.

    column: of the row at that place.
    """
    if not isinstance(text, str):
        named = f" ({column}{', missing or null' if text is None else ''})" if column else ""
        raise FedmaskError(f"{place}: a text must be a str, not {short(text)}{named}")
    if (position := half_a_pair(text)) is not None:
        raise FedmaskError(
            f"{place}: a text has half of a surrogate pair, {text[position]!a}, at character {position + 1}; cut "
            "text between characters, or replace what cannot be encoded"
        )


def half_a_pair(text: str) -> int | None:
    """Where a text has half of a surrogate pair, as text has that was cut in the middle of an emoji; else None."""
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def check_label(label: object, place: str) -> None:
    """Raises FedmaskError unless it is a number or a name that can be seen."""
    if isinstance(label, Real):
        if isinstance(label, Integral) and not -(2**63) <= int(label) < 2**63:
            raise FedmaskError(f"{place}: a label must be a whole number below 2^63, or a class name")
        return
    if not isinstance(label, str) or half_a_pair(label) is not None or not clean(label):
        raise FedmaskError(f"{place}: a label must be a class name or a number, not {short(label)}")


def ignored_label(label: object, place: str, count: int) -> FedmaskError:
    """The fault of a split's rows whose label is the mark IGNORED; place: of the first, count: of all."""
    rows = "this row" if count == 1 else f"this row and {count - 1:,} more"
    return FedmaskError(
        f"{place}: the label {label} of {rows} stands for none, as torch and transformers use it; leave "
        f"{'it' if count == 1 else 'them'} out, or name it among the classes where it is one"
    )


def hidden_target(targets: np.ndarray, train: np.ndarray) -> float | None:
    """The number that stands for hidden labels in all of these targets (n,), outside of those of train (m,); None where
    they are labels."""
    mark = float(targets[0])
    is_mark = bool((targets == mark).all()) and not train.min() <= mark <= train.max()
    return mark if is_mark and (len(targets) > 1 or mark in (-1.0, IGNORED)) else None


def short(value: object) -> str:
    """A value for a line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
