"""Foreign texts on their way to a person: in errors, in the log, on the terminal, in a report: harmless and bounded."""

import copy
import io
import logging
import pickle
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import fedmask  # noqa: F401 (its log)
from fedmask.errors import MAX_DETAIL_CHARACTERS, ConfigError, FedmaskError, RejectedMessage, cause_line
from fedmask.runs.console import console, results_table
from fedmask.shown import MAX_LINE_CHARACTERS, harmless, line, shown

ESCAPES = "\x1b]0;pwned\x07\x1b[2J\u202ex\ud800\x9b1m\r"
HARMLESS = "\\x1b]0;pwned\\x07\\x1b[2J\\u202ex\\ud800\\x9b1m\\r"


@given(st.text(st.characters()))
def test_nothing_that_steers_is_left_and_it_can_be_written(text: str) -> None:
    found = harmless(text)
    assert found.encode().decode() == found
    kinds = {unicodedata.category(character) for character in found if character not in "\n\t"}
    assert not kinds & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert harmless(found) == found


def test_what_people_write_stays() -> None:
    for text in ("première œuvre, 東京, 5\u00a0km", "a\n\tb", "", "\\x1b"):
        assert harmless(text) == text
    assert harmless(ESCAPES) == HARMLESS


@pytest.mark.parametrize("error", [FedmaskError(ESCAPES), RejectedMessage("cause", ESCAPES), ConfigError([ESCAPES])])
def test_an_error_is_harmless_whatever_it_quotes(error: FedmaskError) -> None:
    assert str(error) == HARMLESS
    assert str(copy.copy(ConfigError([ESCAPES]))) == HARMLESS
    assert str(pickle.loads(pickle.dumps(FedmaskError(ESCAPES)))) == HARMLESS


def test_an_error_is_one_line_and_the_faults_of_a_configuration_one_each() -> None:
    assert str(FedmaskError("a\nb")) == "a\\nb"
    assert ConfigError(["a\nb", "c"]).faults == ("a\\nb", "c")
    assert str(ConfigError(["a\nb", "c"])) == "a\\nb\nc"


def test_an_error_says_what_to_do_however_long_what_it_quotes_is() -> None:
    text = str(FedmaskError(f"metric {'x' * 60_000} is not known; run the same version"))
    assert len(text) < MAX_LINE_CHARACTERS + 50
    assert text.startswith("metric xxx")
    assert text.endswith("xx is not known; run the same version")
    assert len(line("\x1b" * 10**6)) < MAX_LINE_CHARACTERS + 50
    assert len(str(RejectedMessage("cause", "\x1b" * 10**6))) <= MAX_DETAIL_CHARACTERS + 3
    assert len(cause_line(ValueError("\x1b" * 10**6 + "x"))) <= MAX_DETAIL_CHARACTERS + 3


def test_a_line_of_the_log_is_harmless(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("fedmask").warning("task %s, 100%% of %d", ESCAPES, 3)
    assert caplog.messages == [f"task {HARMLESS}, 100% of 3"]


def test_a_line_and_a_table_on_the_terminal_are_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    console.print(f"client 0 failed: {ESCAPES}", markup=False)
    summary = {"score": {f"[bold]{ESCAPES}": 0.5}, "worst_client_score": {f"[bold]{ESCAPES}": 0.5}}
    console.print(results_table({"federated": summary}))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert f"client 0 failed: {HARMLESS}" in out
    assert f"[bold]{HARMLESS}" in out


def test_the_terminal_still_has_its_colours() -> None:
    terminal = type(console)(file=io.StringIO(), force_terminal=True, color_system="standard")
    terminal.print("red", style="red")
    assert isinstance(terminal, Console)
    assert terminal.file.getvalue() == "\x1b[31mred\x1b[0m\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (["a", 1], "[a,1]"),
        (" a", "' a'"),
        ("\x1b", "'\\x1b'"),
        ("x" * 500, "x" * 200 + "..."),
    ],
)
def test_a_value_is_shown_as_it_is_written(value: object, text: str) -> None:
    assert shown(value) == text
