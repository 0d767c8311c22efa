"""Class names as people write them: spelled in one way, compared, shown; and words that stand for no label.

Two names that differ in outer blanks or Unicode form are one name, written twice. Two that differ in case, in inner
blanks or in look-alike forms stay two, and are told; so is a name that often stands for no label.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

from fedmask.shown import in_line, quoted

NO_NUMBER = frozenset({"-1", "-1.0", "-100", "-100.0"})
"""Numbers that stand in the place of classes that are withheld."""

NO_WORD = frozenset({"-", "?", "n/a", "na", "<na>", "nan", "none", "null", "hidden", "unknown"})
"""Words, in small letters, that do so."""

NO_LABEL = NO_NUMBER | NO_WORD
"""What stands, in small letters, in the place of labels that are withheld."""

IGNORED = -100.0
"""The number by which torch and transformers pass over a row."""

_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?(inf|infinity|nan)", re.IGNORECASE)

_LOOK_ALIKES = (
    "A\u0410\u0391 B\u0412\u0392 C\u0421\u03f9 E\u0415\u0395 H\u041d\u0397 I\u0406\u0399 J\u0408 "
    "K\u041a\u039a M\u041c\u039c N\u039d O\u041e\u039f P\u0420\u03a1 S\u0405 T\u0422\u03a4 X\u0425\u03a7 "
    "Y\u04ae\u0423\u03a5 Z\u0396 a\u0430 c\u0441\u03f2 d\u0501 e\u0435 h\u04bb i\u0456 j\u0458\u03f3 "
    "o\u043e\u03bf p\u0440 q\u051b s\u0455 v\u03bd w\u051d x\u0445 y\u0443 "
    "-\u2010\u2012\u2013\u2014\u2015\u2212 '\u2018\u2019\u2032\u02bc \"\u201c\u201d"
)
"""By word: a character of ASCII, and Cyrillic and Greek letters, dashes and quotes that look like it in most types."""

_AS_ASCII = {ord(other): alike[0] for alike in _LOOK_ALIKES.split(" ") for other in alike[1:]}

SHOWN_CLASSES = 20
"""Class names in one line."""


def clean(name: str) -> str:
    """A class name in Unicode's composed form (NFC), without blanks, NUL and invisible characters at its ends."""
    if name.isascii() and name.isprintable() and name == name.strip():
        return name
    composed = unicodedata.normalize("NFC", name)
    visible = [index for index, character in enumerate(composed) if not _is_blank(character)]
    return composed[visible[0] : visible[-1] + 1] if visible else ""


def cleaned(names: Sequence[str]) -> list[str]:
    """`clean` of each of many names, few of which differ."""
    by_name = {name: clean(name) for name in set(names)}
    return [by_name[name] for name in names]


def _is_blank(character: str) -> bool:
    return character.isspace() or unicodedata.category(character) in ("Cc", "Cf")


def number(label: Any) -> float | None:
    """The number that a label is, or spells in plain decimal digits; else None."""
    if isinstance(label, str):
        return float(label) if _NUMBER.fullmatch(label.strip()) else None
    try:
        return float(label) if isinstance(label, Real) else None
    except OverflowError:  # a whole number too large for a float
        return None


def is_ignored(label: Any) -> bool:
    """Whether a label is the mark IGNORED, as a number or as a text."""
    if isinstance(label, str):
        return label.startswith("-100") and number(label) == IGNORED
    return isinstance(label, Real) and bool(label == IGNORED)


def ignores(labels: Iterable[Any]) -> bool:
    """Whether IGNORED, where it stands among these labels, is none: the others are words, or numbers that are not below
    zero; -1 may be a mark as well."""
    others = (number(label) for label in labels if not is_ignored(label))
    return not any(other is not None and other < 0 and other != -1 for other in others)


def may_be_none(name: str, names: Iterable[str]) -> bool:
    """Whether a class name is one that often stands for no label, beside the others of its task. -1 is a class beside
    0, 1 and numbers below it."""
    if name.casefold() in NO_WORD:
        return True
    if number(name) != -1:
        return False
    others = [number(other) for other in names if other != name]
    has_lower = any(other is not None and other < -1 for other in others)
    return not has_lower and any(other is None or other > 1 for other in others)


def negates(name: str, other: str) -> bool:
    """Whether a class name is another with a negation in front, such as not_duplicate."""
    front = name.casefold().removesuffix(other.casefold())
    return front != name.casefold() and front.rstrip(" _-") in ("not", "non", "no", "un")


def alike(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of different names that a reader may take for one: they differ in spelling only."""
    first: dict[str, str] = {}
    return [(other, name) for name in names if (other := first.setdefault(_spelling_free(name), name)) != name]


def like(name: str, names: Iterable[str]) -> str | None:
    """The first of the names that differs from `name` in spelling only."""
    key = _spelling_free(name)
    return next((other for other in names if other != name and _spelling_free(other) == key), None)


def _spelling_free(name: str) -> str:
    folded = unicodedata.normalize("NFKC", name).translate(_AS_ASCII).casefold()
    return "".join(character for character in folded if not _is_blank(character)) or name


def difference(one: str, other: str) -> str:
    """In what two names differ that are alike."""
    if one.casefold() == other.casefold():
        return "case"
    if "".join(one.split()) == "".join(other.split()):
        return "blanks"
    return "spelling"


def shown_both(one: str, other: str) -> str:
    """Two names that are alike, so that what differs can be seen."""
    show = ascii if difference(one, other) == "spelling" else quoted
    return f"{show(one)} and {show(other)}"


def listed(names: Sequence[str]) -> str:
    """Names for a line, the first of many."""
    more = f" and {len(names) - SHOWN_CLASSES:,} more" if len(names) > SHOWN_CLASSES else ""
    return ", ".join(map(in_line, names[:SHOWN_CLASSES])) + more
