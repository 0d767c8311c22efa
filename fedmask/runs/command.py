"""What all commands share: how `key=value` arguments are read, and how a command ends.

Work in, an exit code out; what a person has to mend is one line, without a traceback.
"""

import sys
from collections.abc import Callable, Collection, Mapping, Sequence

from fedmask.errors import FedmaskError
from fedmask.files import output_fault, path_fault, with_home
from fedmask.runs.other_words import as_key
from fedmask.shown import line

_HELP = ("--help", "-h", "help")

UNSCORED, MISUSED, STOPPED = 1, 2, 130
"""Exit codes: for a run that came to its end and has no score; for what a person has to mend; for Ctrl-C, as shells
have it."""


def exit_code(work: Callable[[], int | None], when_stopped: str = "stopped") -> int:
    """What `work` returns, 0 for None; MISUSED for FedmaskError and OSError, STOPPED for an interrupt.

    when_stopped: what an interrupted person is told.
    """
    try:
        return work() or 0
    except FedmaskError as error:
        print(error, file=sys.stderr)
        return MISUSED
    except KeyboardInterrupt:
        print(when_stopped, file=sys.stderr)
        return STOPPED
    except OSError as error:
        print(line(str(error) if error.filename is None else f"{error.filename}: {error.strerror}"), file=sys.stderr)
        return MISUSED


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether one of the arguments asks what the others may be."""
    return any(argument in _HELP for argument in arguments)


def own_arguments(
    arguments: Sequence[str], keys: Collection[str], paths: Collection[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """The values of a command's own keys, and all other arguments in their order.

    paths: those of the keys whose value is a path; a leading ~ becomes the home folder. Raises FedmaskError for a key
    that is given twice, without a value or in another form, as in `--seeds 2`.
    """
    given: dict[str, str] = {}
    others = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        name = as_key(key.rstrip(":"))
        if name not in keys:
            others.append(argument)
            continue
        if key != name or not equals or not value:
            raise FedmaskError(f"{argument}: unknown in this form; write {name}={value or '...'}")
        if name in given:
            raise FedmaskError(f"{argument}: given twice, first as {name}={given[name]}; leave one out")
        given[name] = usable_path(name, value) if name in paths else value
    return given, others


def switch(given: Mapping[str, str], key: str) -> bool:
    """Raises FedmaskError for what is neither true nor false."""
    if given[key] not in ("true", "false"):
        raise FedmaskError(f"{key}={given[key]}: must be true or false")
    return given[key] == "true"


def usable_path(key: str, text: str) -> str:
    """A path as it is written, with the home folder in the place of a leading ~.

    Raises FedmaskError where it can be none.
    """
    path = with_home(text)
    if (fault := (output_fault if key == "output" else path_fault)(path)) is not None:
        raise FedmaskError(f"{key}={text}: {fault}")
    return path
