"""Foreign texts on their way to a person: what a client, a file or a command line says, harmless and of bounded length.

Everything passes here. An error of ours and a line of the log pass as a whole, a report and a table too, so that no
place can forget it; what is quoted inside of them may pass on its own before, to be short.
"""

import logging
import unicodedata

MAX_VALUE_CHARACTERS = 200
"""Of one value inside a line."""

MAX_LINE_CHARACTERS = 4000
"""Of a line: what is wrong, where, and what to do."""

_KEPT = "\n\t"


def harmless(text: str) -> str:
    """The text with every character escaped, as Python does it, that steers a terminal, turns the direction of writing,
    breaks a line without being a line feed, cannot be seen, or cannot be written in UTF-8."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(character if _is_harmless(character) else _escaped(character) for character in text)


def _is_harmless(character: str) -> bool:
    return character.isprintable() or character in _KEPT or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def line(text: str) -> str:
    """One harmless line; of a long one the middle is left out, for the end says what to do."""
    one = harmless(cut(text, MAX_LINE_CHARACTERS)).replace("\n", "\\n").replace("\t", " ")
    return cut(one, MAX_LINE_CHARACTERS)


def cut(text: str, most: int) -> str:
    """At most so many characters of the text and what says that there were more: its beginning and its end."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} [{len(text) - 2 * half:,} characters] {text[-half:]}"


def shown(value: object) -> str:
    """A value as it is written on the command line, on one line and not beyond reason long."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, list | tuple):
        return cut(f"[{','.join(shown(entry) for entry in value[:MAX_VALUE_CHARACTERS])}]", 5 * MAX_VALUE_CHARACTERS)
    text = str(value)
    if isinstance(value, str) and (not text or not text.isprintable() or text != text.strip()):
        text = repr(value)
    return text if len(text) <= MAX_VALUE_CHARACTERS else f"{text[:MAX_VALUE_CHARACTERS]}..."


def in_line(text: str) -> str:
    """A text as it was written, for a line; in quotes where that would break the line."""
    return text if text.isprintable() else repr(text)


def quoted(name: str) -> str:
    """A name in quotes, with every character that cannot be seen or be told apart escaped."""
    return ascii(name) if not name.isprintable() else repr(name)


class HarmlessLines(logging.Filter):
    """For a logger: its messages, with what they quote, are harmless."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = harmless(record.getMessage()), ()
        return True
