"""What other libraries raise becomes one line that says the reason; faults go from process to process whole."""

import copy

import pytest

from fedmask.errors import MAX_DETAIL_CHARACTERS, ConfigError, cause_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Validation error for field 'x':\n    TypeError: must be int, is '64'\n", "TypeError: must be int, is '64'"),
        ("one line", "one line"),
        ("the reason\n\n^^^^\n", "the reason"),
        ("", "ValueError"),
        ("red \x1b[31m\rtext", "text"),
    ],
)
def test_the_last_line_with_words_is_the_cause(text: str, line: str) -> None:
    assert cause_line(ValueError(text)) == line


def test_a_cause_is_no_longer_than_reason() -> None:
    assert len(cause_line(ValueError("x" * 10**6))) <= MAX_DETAIL_CHARACTERS + 3


def test_a_key_that_is_not_there_is_said_to_be_one() -> None:
    assert cause_line(KeyError("nope")) == "KeyError: 'nope'"


def test_faults_that_come_from_another_process_are_still_a_line_each() -> None:
    error = copy.copy(ConfigError(["a: one", "b: two"]))  # as pickle does it
    assert (error.faults, str(error)) == (("a: one", "b: two"), "a: one\nb: two")
