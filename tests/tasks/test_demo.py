"""The embedded demo: the same bytes everywhere, clean English, balanced labels, and no task that word counts solve."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmask.tasks.demo import DEMO_TASKS
from fedmask.tasks.demo.grammar import Writer, finish, pick
from fedmask.tasks.task import Split, Task

SIZES = {"train": 1200, "validation": 200, "test": 400}
DIGEST = "f8c3c0332fa308da3a78d4018420f58c636aba10ca2eeb2f9796c581e9718595"

TASKS = {name: build() for name, build in DEMO_TASKS.items()}
each_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())


def splits(task: Task) -> dict[str, Split]:
    return {name: getattr(task, name) for name in SIZES}


def texts(task: Task) -> Iterator[str]:
    for split in splits(task).values():
        yield from split.text_a
        yield from split.text_b or ()


def test_five_tasks_are_named_as_in_the_registry() -> None:
    assert list(TASKS) == ["film_reviews", "kitchen_reviews", "question_type", "topic", "paraphrase"]
    assert [task.name for task in TASKS.values()] == list(TASKS)


def test_every_machine_builds_the_same_bytes() -> None:
    digest = hashlib.sha256()
    for task in TASKS.values():
        for split in splits(task).values():
            columns = (split.text_a, split.text_b or (), map(str, split.labels), split.domains or ())
            digest.update("\x1e".join("\x1f".join(column) for column in columns).encode())
    assert digest.hexdigest() == DIGEST


@each_task
def test_building_twice_gives_the_same_texts(task: Task) -> None:
    assert list(texts(DEMO_TASKS[task.name]())) == list(texts(task))


def test_no_text_occurs_twice_in_any_split_or_task() -> None:
    counts = Counter(text for task in TASKS.values() for text in texts(task))
    assert counts.total() == 6 * sum(SIZES.values())  # four tasks of one text a row, one of two
    assert max(counts.values()) == 1


@each_task
def test_splits_have_their_sizes_and_balanced_labels(task: Task) -> None:
    assert task.labels is not None
    for name, split in splits(task).items():
        counts = np.bincount(split.labels, minlength=len(task.labels))
        assert len(split) == SIZES[name]
        assert counts.max() - counts.min() <= 1, name
        assert (split.text_b is not None) == (task.train.text_b is not None)


def test_labels_and_metrics() -> None:
    assert {name: (task.labels, task.metric, (task.train.text_b is not None)) for name, task in TASKS.items()} == {
        "film_reviews": (("negative", "positive"), "accuracy", False),
        "kitchen_reviews": (("negative", "positive"), "accuracy", False),
        "question_type": (("person", "place", "time", "number", "reason"), "accuracy", False),
        "topic": (("money", "nature", "sport", "health", "music"), "accuracy", False),
        "paraphrase": (("different", "equivalent"), "f1", True),
    }


@each_task
def test_every_label_occurs_in_every_domain(task: Task) -> None:
    assert task.labels is not None
    assert task.train.domains is not None
    counts = Counter(zip(task.train.domains, task.train.labels.tolist(), strict=True))
    domains = set(task.train.domains)
    assert len(domains) >= 3
    assert len(counts) == len(domains) * len(task.labels)
    assert min(counts.values()) >= 40


@each_task
def test_texts_have_8_to_30_words(task: Task) -> None:
    lengths = [len(text.split()) for text in texts(task)]
    assert min(lengths) >= 8
    assert max(lengths) <= 30


FAULTS = {
    "a slot left over": r"[{}#_]",
    "stray spaces": r"  |^ | $| [.,;:?!]",
    "doubled punctuation": r"[.,;:?!]{2}",
    "a for an": r"\b[Aa] (?:[aei]|o(?!ne|nce)|u(?!n[ei]|se|su)|hour|honest)",
    "an for a": r"\b[Aa]n (?![aeiou]|hour|honest)",
    "a word doubled": r"\b(?!that\b)(\w+) \1\b",
    "two articles": r"\b(?:a|an|the) (?:a|an|the)\b",
    "a small letter at the start": r"(?:^|[.?!] )[a-z]",
    "no full stop": r"[^.?!]$",
}


@each_task
@pytest.mark.parametrize("fault", FAULTS)
def test_texts_are_clean_english(task: Task, fault: str) -> None:
    assert [text for text in texts(task) if re.search(FAULTS[fault], text)] == []


@each_task
def test_no_form_of_sentence_dominates(task: Task) -> None:
    openings = Counter(" ".join(text.split()[:3]) for text in texts(task))
    assert max(openings.values()) <= 0.06 * openings.total()
    assert len(openings) >= 150


@pytest.mark.parametrize(
    ("name", "phrase", "label"),
    [
        ("film_reviews", "won me over completely", "positive"),
        ("film_reviews", "lost me completely", "negative"),
        ("film_reviews", "This one, as my sister said at once, is anything but", None),
        ("kitchen_reviews", "would buy it again tomorrow", "positive"),
        ("kitchen_reviews", "have sent it back to the shop", "negative"),
        ("question_type", "How come", "reason"),
        ("topic", "we won the match", None),
    ],
)
def test_deciding_phrases_decide_the_label(name: str, phrase: str, label: str | None) -> None:
    """A reviewer's own verdict, or the head of a question, goes with one label; a phrase in passing with several."""
    task = TASKS[name]
    assert task.labels is not None
    found = {
        task.labels[index]
        for split in splits(task).values()
        for text, index in zip(split.text_a, split.labels, strict=True)
        if phrase.lower() in text.lower()
    }
    assert found == {label} if label else len(found) > 1


def test_a_topic_set_aside_is_never_the_label() -> None:
    topics = {
        "the rent": "money",
        "the otters": "nature",
        "the match": "sport",
        "my knee": "health",
        "the choir": "music",
    }
    task = TASKS["topic"]
    assert task.labels is not None
    asides = [
        (topics[aside[1]], task.labels[index])
        for text, index in zip(task.train.text_a, task.train.labels, strict=True)
        if (aside := re.search(rf"(?:not|asked|talk|word) about ({'|'.join(topics)})", text))
    ]
    assert len(asides) >= 20
    assert all(aside != label for aside, label in asides)


def test_equivalent_pairs_keep_days_and_numbers() -> None:
    """Different pairs may keep them too, where one denies the other or swaps its people, but not all of them do."""
    facts = re.compile(r"\b[A-Z][a-z]+day\b|\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)\b")
    split = TASKS["paraphrase"].train
    assert split.text_b is not None
    same = np.array(
        [set(facts.findall(a)) == set(facts.findall(b)) for a, b in zip(split.text_a, split.text_b, strict=True)]
    )
    assert same[split.labels == 1].all()
    assert 0.8 < same[split.labels == 0].mean() < 1.0


@each_task
def test_words_alone_do_not_solve_a_task(task: Task) -> None:
    """A logistic classifier of word counts, fitted to all training rows, stays below 90% on the test split."""
    assert task.labels is not None
    train, vocabulary = word_counts(task.train, None)
    test, _ = word_counts(task.test, vocabulary)
    weights = fit_logistic(train, task.train.labels, len(task.labels))
    assert np.mean(np.argmax(train @ weights, axis=1) == task.train.labels) > 0.6  # the classifier did learn something
    assert np.mean(np.argmax(test @ weights, axis=1) == task.test.labels) < 0.9


def word_counts(split: Split, vocabulary: dict[str, int] | None) -> tuple[np.ndarray, dict[str, int]]:
    """(n, words) scaled to rows of length 1, the two texts of a pair under words of their own."""
    rows = [re.findall(r"[a-z']+", text.lower()) for text in split.text_a]
    for row, text in zip(rows, split.text_b or (), strict=False):
        row += [f"b:{word}" for word in re.findall(r"[a-z']+", text.lower())]
    if vocabulary is None:
        vocabulary = {word: column for column, word in enumerate(sorted({word for row in rows for word in row}))}
    counts = np.zeros((len(rows), len(vocabulary)))
    for index, row in enumerate(rows):
        for word in row:
            if word in vocabulary:
                counts[index, vocabulary[word]] += 1
    return counts / np.linalg.norm(counts, axis=1, keepdims=True), vocabulary


def fit_logistic(features: np.ndarray, labels: np.ndarray, num_classes: int, steps: int = 100) -> np.ndarray:
    """Weights (words, classes) of a softmax classifier after `steps` of plain gradient descent."""
    weights = np.zeros((features.shape[1], num_classes))
    transposed = np.ascontiguousarray(features.T)
    targets = np.eye(num_classes)[labels]
    for _ in range(steps):
        scores = np.exp(features @ weights)
        weights -= 10.0 * transposed @ (scores / scores.sum(axis=1, keepdims=True) - targets) / len(features)
    return weights


@given(st.integers(0, 2**32))
def test_numbered_slots_repeat_and_differ(seed: int) -> None:
    writer = Writer({"pet": ("cat", "dog", "{bird}"), "bird": ("owl", "crow")}, np.random.default_rng(seed))
    first, again, other = writer.write("{pet#1} {pet#1} {pet#2}").lower().split()
    assert first == again != other
    assert {first, other} <= {"cat", "dog", "owl", "crow"}


@given(st.integers(0, 2**32))
def test_templates_written_together_share_numbered_slots(seed: int) -> None:
    writer = Writer({"name": ("Anton", "Birgit", "Carlos")}, np.random.default_rng(seed))
    first, second = writer.write_together("{name#1} saw {name#2}.", "{name#2} saw {name#1}.")
    assert second == " saw ".join(reversed(first.rstrip(".").split(" saw "))) + "."


def test_every_option_is_drawn_about_equally_often() -> None:
    rng = np.random.default_rng(0)
    counts = Counter(pick(rng, "abcd") for _ in range(4000))
    assert set(counts) == set("abcd")
    assert all(900 < count < 1100 for count in counts.values())


@pytest.mark.parametrize(
    ("raw", "finished"),
    [
        ("a old hen ate a egg.", "An old hen ate an egg."),
        ("a hour in a house? a honest one.", "An hour in a house? An honest one."),
        (
            "a unit, a useful one, a one-off and a ugly umbrella.",
            "A unit, a useful one, a one-off and an ugly umbrella.",
        ),
        ("so: lower case stays. upper comes back!", "So: lower case stays. Upper comes back!"),
    ],
)
def test_finish_puts_articles_and_capitals_right(raw: str, finished: str) -> None:
    assert finish(raw) == finished
