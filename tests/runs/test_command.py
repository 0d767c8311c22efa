import pytest

from fedmask.errors import FedmaskError
from fedmask.runs.command import MISUSED, STOPPED, exit_code


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
