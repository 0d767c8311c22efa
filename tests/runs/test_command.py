import pytest

from fedmask.errors import FedmaskError
from fedmask.runs.command import MISUSED, STOPPED, asks_for_help, exit_code, own_arguments


def raising(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (FedmaskError("clients=0: at least one"), MISUSED, "clients=0: at least one"),
        (FileNotFoundError(2, "No such file or directory", "runs/a"), MISUSED, "runs/a: No such file or directory"),
        (OSError(28, "No space left on device"), MISUSED, "[Errno 28] No space left on device"),
        (OSError("could not bind to port 80"), MISUSED, "could not bind to port 80"),
        (KeyboardInterrupt(), STOPPED, "stopped; what is done is kept"),
    ],
)
def test_what_a_person_has_to_mend_is_one_line_and_an_exit_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(lambda: raising(error), when_stopped="stopped; what is done is kept") == code
    assert capsys.readouterr().err == line + "\n"


def test_work_that_ends_well_gives_its_own_exit_code_or_0() -> None:
    assert exit_code(lambda: None) == 0
    assert exit_code(lambda: 1) == 1


def test_an_error_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: raising(ZeroDivisionError()))


# ---- arguments -------------------------------------------------------------------------------------------------------


def test_own_keys_are_taken_out_and_the_rest_keeps_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    given, others = own_arguments(
        ["b=2", "output=~/runs", "a=x=y", "~x", "name=~/runs"], ("output", "name"), ("output",)
    )
    assert given == {"output": "/home/me/runs", "name": "~/runs"}
    assert others == ["b=2", "a=x=y", "~x"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["seeds=2", "seeds=3"], "seeds=3: given twice, first as seeds=2; leave one out"),
        (["seeds=2", "seeds=2"], "seeds=2: given twice, first as seeds=2; leave one out"),
        (["seeds"], "seeds: unknown in this form; write seeds=..."),
        (["seeds="], "seeds=: unknown in this form; write seeds=..."),
        (["--seeds", "2"], "--seeds: unknown in this form; write seeds=..."),
        (["--seeds=2"], "--seeds=2: unknown in this form; write seeds=2"),
        (["seeds:", "2"], "seeds:: unknown in this form; write seeds=..."),
        (["Seeds=2"], "Seeds=2: unknown in this form; write seeds=2"),
        (["output=~nobody-has-this/x"], "output=~nobody-has-this/x: there is no home folder ~nobody-has-this; a name"),
    ],
)
def test_an_own_key_in_another_form_is_one_line(arguments: list[str], line: str) -> None:
    with pytest.raises(FedmaskError) as caught:
        own_arguments(arguments, ("seeds", "output"), ("output",))
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_is_asked_for_in_three_ways(word: str) -> None:
    assert asks_for_help(["rounds=3", word])
    assert not asks_for_help([f"output={word}", f"{word}=3"])
