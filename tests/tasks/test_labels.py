"""Class names: one spelling for one name; names that look alike; names for a line."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from fedmask.shown import quoted
from fedmask.tasks.labels import alike, clean, cleaned, difference, like, listed, shown_both


@given(st.text())
def test_cleaning_is_done_once_and_leaves_no_blank_outside(name: str) -> None:
    once = clean(name)
    assert clean(once) == once
    assert once == once.strip().strip("\0\u200b\ufeff")
    assert unicodedata.is_normalized("NFC", once)
    assert clean(f" \t{name}\0\u200b") == once
    assert clean(unicodedata.normalize("NFD", name)) == once


@given(st.text(alphabet="abc\u00e9 -"))
def test_a_clean_name_stays_as_it_is(name: str) -> None:
    name = unicodedata.normalize("NFC", name).strip()
    assert clean(name) == name
    assert cleaned([name, name]) == [name, name]


def test_names_that_look_alike() -> None:
    assert alike(["Up", "down", "up", "UP"]) == [("Up", "up"), ("Up", "UP")]
    assert alike(["a b", "ab", "a\u200bb"]) == [("a b", "ab"), ("a b", "a\u200bb")]
    assert alike(["\u2460", "1", "2"]) == [("\u2460", "1")]
    assert alike(["car", "c\u0430r", "\u0421\u0410R"]) == [("car", "c\u0430r"), ("car", "\u0421\u0410R")]
    assert alike(["a-b", "a\u2013b"]) == [("a-b", "a\u2013b")]
    assert alike(["\u0434\u043e\u043c", "dom", "\u03b1", "a"]) == []
    assert alike(["a", "b", " ", "  ", ""]) == []
    assert like("UP", ["down", "up"]) == "up"
    assert like("up", ["up"]) is None


def test_what_differs_is_shown() -> None:
    assert (difference("Up", "up"), shown_both("Up", "up")) == ("case", "'Up' and 'up'")
    assert (difference("a b", "ab"), shown_both("a\u00a0b", "a b")) == ("blanks", "'a\\xa0b' and 'a b'")
    assert (difference("\u2460", "1"), shown_both("\u2460", "1")) == ("spelling", "'\\u2460' and '1'")
    assert quoted("caf\u00e9") == "'caf\u00e9'"


def test_many_names_make_a_short_line() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed(["a", "two\nlines"]) == "a, 'two\\nlines'"
    assert listed([str(number) for number in range(1021)]).endswith(", 19 and 1,001 more")
