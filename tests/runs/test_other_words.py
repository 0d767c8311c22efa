"""runs.other_words: each word of another program leads to a key that is there, and hides none of this one's."""

import pytest

from fedmask.runs.config import KEYS
from fedmask.runs.other_words import OTHER_VALUES, OTHER_WORDS, as_key, meant_by
from server.compose import groups


def test_each_word_leads_to_a_key_and_is_none_itself() -> None:
    known = {*KEYS, *groups()}
    assert set(OTHER_WORDS.values()) <= known
    of_ours = known | {key.rpartition(".")[2] for key in KEYS}
    # A group is what sets the one key that is called so.
    assert OTHER_WORDS.keys() & of_ours == {"rule"}
    assert all(word == as_key(word) and len(word) > 1 for word in OTHER_WORDS)


def test_each_other_value_is_a_choice_of_some_key_and_its_own_word_of_none() -> None:
    choices = {choice for key in KEYS.values() for choice in key.allowed.choices or ()}
    assert set(OTHER_VALUES.values()) <= choices
    assert OTHER_VALUES.keys().isdisjoint(choices)


@pytest.mark.parametrize(
    ("word", "keys"),
    [
        ("rounds", ["rounds"]),
        ("--rounds", ["rounds"]),
        ("Rounds", ["rounds"]),
        ("client.learning-rate", ["client.learning_rate"]),
        ("learning-rate", ["client.learning_rate", "server.learning_rate"]),
        ("lr", ["client.learning_rate"]),
        ("client.lr", ["client.learning_rate"]),
        ("server.lr", ["server.learning_rate"]),
        ("mask.lr", ["client.learning_rate"]),
        ("optimizer.lr", ["client.learning_rate"]),
        ("model.model_name_or_path", ["model.path"]),
        ("qqqq", []),
        ("", []),
        ("-", []),
    ],
)
def test_what_a_word_means(word: str, keys: list[str]) -> None:
    assert meant_by(word, list(KEYS)) == keys
