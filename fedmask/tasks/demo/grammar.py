"""Templates and word lists in, finished English sentences out.

A template is a sentence with slots: `{name}` is replaced by a random entry of `lexicon[name]`, which may hold slots of
its own. `{name#1}` is remembered: the same slot gives the same words again in this text, and `{name#2}` other words.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from fedmask.randomness import seed_for
from fedmask.tasks.task import Split, Task

Lexicon = Mapping[str, Sequence[str]]
Row = tuple[str, ...]
_Option = TypeVar("_Option")

SPLIT_SIZES = {"train": 1200, "validation": 200, "test": 400}
NUM_WORDS = range(8, 31)

_SLOT = re.compile(r"\{([a-z_]+)(?:#(\d+))?\}")
_SENTENCE_START = re.compile(r"(?:^|[.?!] )[a-z]")
_ARTICLE = re.compile(r"\b([Aa]) (?=(?!one\b|once\b|uni|use|usu|eu)[aeiou]|hour\b|honest)")


def pick(rng: np.random.Generator, options: Sequence[_Option]) -> _Option:
    """One of `options`, evenly. Drawn from a plain double, the stream that NumPy is least likely ever to change."""
    return options[int(rng.random() * len(options))]


class Writer:
    """Expands templates with one lexicon and one stream of random numbers."""

    def __init__(self, lexicon: Lexicon, rng: np.random.Generator) -> None:
        self._lexicon = lexicon
        self._rng = rng

    def write(self, template: str) -> str:
        """The template with every slot filled, articles and capitals put right."""
        return finish(self._expand(template, {}))

    def write_together(self, *templates: str) -> tuple[str, ...]:
        """As `write` for each template; their numbered slots are shared."""
        remembered: dict[tuple[str, str], str] = {}
        return tuple(finish(self._expand(template, remembered)) for template in templates)

    def _expand(self, template: str, remembered: dict[tuple[str, str], str]) -> str:
        def fill(slot: re.Match[str]) -> str:
            name, number = slot.groups()
            if number is None:
                return self._expand(pick(self._rng, self._lexicon[name]), remembered)
            if (name, number) not in remembered:
                taken = {words for (other, _), words in remembered.items() if other == name}
                while (words := self._expand(pick(self._rng, self._lexicon[name]), remembered)) in taken:
                    pass
                remembered[name, number] = words
            return remembered[name, number]

        return _SLOT.sub(fill, template)


def finish(text: str) -> str:
    """`text` with `a`/`an` by the next word's sound and a capital at the start of each sentence."""
    text = _ARTICLE.sub(lambda article: article[1] + "n ", text)
    return _SENTENCE_START.sub(lambda start: start[0].upper(), text)


def build_task(
    name: str,
    labels: Sequence[str],
    write_row: Callable[[str, np.random.Generator], tuple[Row, str]],
    metric: str = "accuracy",
) -> Task:
    """A task of SPLIT_SIZES rows, labels in turn, all texts distinct and of NUM_WORDS words.

    `write_row(label, rng)` gives the texts of a row, (text,) or (text_a, text_b), and its domain. The stream of random
    numbers depends on the task's name alone, so that every process builds the same rows.
    """
    rng = np.random.Generator(np.random.PCG64(seed_for(0, "demo-data", name)))
    seen: set[str] = set()
    splits = {}
    for split, size in SPLIT_SIZES.items():
        rows: list[tuple[Row, str]] = []
        while len(rows) < size:
            texts, domain = write_row(labels[len(rows) % len(labels)], rng)
            if seen.isdisjoint(texts) and all(len(text.split()) in NUM_WORDS for text in texts):
                seen.update(texts)
                rows.append((texts, domain))
        splits[split] = _split(rows, [index % len(labels) for index in range(size)])
    train, validation, test = splits.values()
    return Task(name, train, validation, test, labels=tuple(labels), metric=metric)


def _split(rows: Sequence[tuple[Row, str]], labels: Sequence[int]) -> Split:
    columns = list(zip(*(texts for texts, _ in rows), strict=True))
    return Split(
        text_a=columns[0],
        text_b=columns[1] if len(columns) == 2 else None,
        labels=np.asarray(labels, dtype=np.int64),
        domains=tuple(domain for _, domain in rows),
    )
