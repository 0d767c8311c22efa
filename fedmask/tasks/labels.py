"""Class names as people write them: spelled in one way, compared, shown; and words that stand for no label.

Two names that differ in outer blanks or Unicode form are one name, written twice. Two that differ in case, in inner
blanks or in look-alike forms stay two, and are told.
"""

import unicodedata
from collections.abc import Iterable, Sequence

from fedmask.shown import in_line, quoted

NO_NUMBER = frozenset({"-1", "-1.0", "-100"})
"""Numbers that stand in the place of classes that are withheld."""

NO_LABEL = NO_NUMBER | {"-", "?", "n/a", "na", "<na>", "nan", "none", "null", "hidden", "unknown"}
"""What stands, in small letters, in the place of labels that are withheld."""

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


def alike(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of different names that a reader may take for one: they differ in spelling only."""
    first: dict[str, str] = {}
    return [(other, name) for name in names if (other := first.setdefault(_spelling_free(name), name)) != name]


def like(name: str, names: Iterable[str]) -> str | None:
    """The first of the names that differs from `name` in spelling only."""
    key = _spelling_free(name)
    return next((other for other in names if other != name and _spelling_free(other) == key), None)


def _spelling_free(name: str) -> str:
    folded = unicodedata.normalize("NFKC", name).casefold()
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
