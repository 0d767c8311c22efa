"""What film and kitchen reviews share: opinions of two signs and frames that say which of them is the reviewer's own.

A frame names opinions by their role alone: `{verdict}` agrees with the review's label, `{against_verdict}` is of the
other sign. So one frame serves praise and blame, and no word of a frame gives the label away.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from fedmask.tasks.demo.grammar import Lexicon, Row, Writer, build_task, pick
from fedmask.tasks.task import Task

LABELS = ("negative", "positive")


def build_review_task(
    name: str,
    frames: Sequence[Sequence[str]],
    opinions: Mapping[str, Lexicon],
    words: Lexicon,
    domains: Mapping[str, Lexicon],
) -> Task:
    """A sentiment task: groups of `frames`, `opinions` by label, `words` for all, `domains` with words of their own."""
    lexicons = {
        (label, domain): {**words, **domains[domain], **opinions[label], **_against(opinions, label)}
        for label in LABELS
        for domain in domains
    }

    def write_row(label: str, rng: np.random.Generator) -> tuple[Row, str]:
        domain = pick(rng, tuple(domains))
        frame = pick(rng, pick(rng, frames))
        return (Writer(lexicons[label, domain], rng).write(frame),), domain

    return build_task(name, LABELS, write_row)


def _against(opinions: Mapping[str, Lexicon], label: str) -> Lexicon:
    other = LABELS[1 - LABELS.index(label)]
    return {f"against_{slot}": entries for slot, entries in opinions[other].items()}
