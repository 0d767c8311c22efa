"""What a section is given, and what it yields: a figure of fedmask beside one of a rival, and how many times better."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LEAST_VALUE = 1e-9
"""What a value of zero is taken for: a clock that ticks too slowly, in a trial."""


@dataclass(frozen=True)
class Settings:
    """How a section shall measure."""

    is_trial: bool
    """Whether tiny models and few repeats shall show that the benchmark runs; the figures then mean nothing."""
    repeats: int
    """Timed runs of each work, after one that warms up."""
    say: Callable[[str], None]
    """Tells the person waiting what is being measured now."""


@dataclass(frozen=True)
class Row:
    """One comparison. Of both values less is better: seconds, bytes, parameters."""

    section: str
    work: str
    """What both sides do."""
    variant: str
    """Of fedmask."""
    rival: str
    """What stands beside it; a rival may also be a limit, such as "10 s"."""
    value: float
    rival_value: float
    unit: str
    target: float | None = None
    """The least ratio; None where the row only informs."""

    @property
    def ratio(self) -> float:
        """How many times better fedmask is."""
        return self.rival_value / max(self.value, LEAST_VALUE)

    @property
    def met(self) -> bool | None:
        return None if self.target is None else self.ratio >= self.target

    def to_json(self) -> dict[str, Any]:
        """The row as benchmark.json holds it."""
        return {
            "section": self.section,
            "work": self.work,
            "variant": self.variant,
            "rival": self.rival,
            "value": self.value,
            "rival_value": self.rival_value,
            "unit": self.unit,
            "ratio": self.ratio,
            "target": self.target,
            "met": self.met,
        }
