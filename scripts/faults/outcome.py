"""What a part of chaos.py is given, and what it yields: a table, one figure of it, and whether that is good enough."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Settings:
    """What all parts are told."""

    overrides: tuple[str, ...]
    """Of the runs, as scripts/simulate.py takes them; they win over what a part takes by default."""
    output: Path
    """Where the runs lie."""
    jobs: int
    """Processes side by side, where a part starts processes."""
    say: Callable[[str], None]
    """Tells the person waiting what is being done now."""


@dataclass(frozen=True)
class Outcome:
    """What a part came to."""

    title: str
    """What was done, in a line."""
    limit: str
    """What had to come out."""
    figure: str
    """What came out, in a line."""
    passed: bool
    columns: tuple[str, ...]
    """The first is of words, the others are of numbers."""
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    """How it was counted, a sentence or two each."""

    def to_json(self) -> dict[str, Any]:
        """As chaos.json holds it."""
        return asdict(self)
