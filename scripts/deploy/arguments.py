"""What the scripts of this folder share: `key=value` arguments in, one line for a person where they are wrong."""

from collections.abc import Callable, Mapping, Sequence

from fedmask.errors import FedmaskError
from fedmask.runs.command import exit_code


def read_arguments(arguments: Sequence[str], known: Sequence[str], required: Sequence[str] = ()) -> dict[str, str]:
    """`key=value` pairs. Raises FedmaskError for a key that is not known, one without a value, and one that lacks."""
    given = {}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in known or not value:
            raise FedmaskError(f"{argument}: must be one of {', '.join(f'{name}=...' for name in known)}")
        given[key] = value
    if missing := [key for key in required if key not in given]:
        raise FedmaskError(f"missing: {', '.join(f'{key}=' for key in missing)}; --help says what each is")
    return given


def port_number(given: Mapping[str, str], key: str, default: int) -> int:
    """Raises FedmaskError for what is no port."""
    value = given.get(key, str(default))
    if not value.isdecimal() or not 0 < int(value) < 2**16:
        raise FedmaskError(f"{key}={value}: must be a whole number from 1 to 65535")
    return int(value)


def told_in_one_line(main: Callable[[list[str]], None], arguments: list[str], usage: str | None) -> int:
    """Run a script; its exit code: 2 for what a person has to mend, which is told in one line."""
    if any(argument in ("--help", "-h") for argument in arguments):
        print(usage)
        return 0
    return exit_code(lambda: main(arguments))
