"""What the scripts of this folder share: `key=value` arguments in, one line for a person where they are wrong."""

import errno
import socket
from collections.abc import Callable, Mapping, Sequence

from fedmask.errors import FedmaskError
from fedmask.runs.command import asks_for_help, exit_code, own_arguments

LOOPBACK = "127.0.0.1"


def read_arguments(
    arguments: Sequence[str], known: Sequence[str], required: Sequence[str] = (), paths: Sequence[str] = ()
) -> dict[str, str]:
    """`key=value` pairs. paths: as of `own_arguments`, which keys are paths.

    Raises FedmaskError for a key that is not known, is given twice or without a value, and for one that lacks.
    """
    given, others = own_arguments(arguments, known, paths)
    if others:
        raise FedmaskError(f"{others[0]}: must be one of {', '.join(f'{name}=...' for name in known)}")
    missing = [key for key in required if key not in given]
    if missing:
        raise FedmaskError(f"missing: {', '.join(f'{key}=' for key in missing)}; --help says what each is")
    return given


def port_number(given: Mapping[str, str], key: str, default: int) -> int:
    """Raises FedmaskError for what is no port."""
    value = given.get(key, str(default))
    if not value.isdecimal() or not 0 < int(value) < 2**16:
        raise FedmaskError(f"{key}={value}: must be a whole number from 1 to 65535")
    return int(value)


def check_free(key: str, port: int, host: str = LOOPBACK) -> None:
    """Raises FedmaskError where nothing can listen on the port now. key: of the argument that names another."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: what has ended holds no port
        try:
            probe.bind((host, port))
        except PermissionError as error:
            raise FedmaskError(f"{key}={port}: ports below 1024 are for root; name one above with {key}=") from error
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise FedmaskError(f"host={host}: nothing can listen there ({error.strerror})") from error
            raise FedmaskError(
                f"{key}={port}: another process of this machine listens on {host}:{port} already; end it, or name "
                f"another port with {key}="
            ) from error


def told_in_one_line(main: Callable[[list[str]], None], arguments: list[str], usage: str | None) -> int:
    """Run a script; its exit code: 2 for what a person has to mend, which is told in one line."""
    if asks_for_help(arguments):
        print(usage)
        return 0
    return exit_code(lambda: main(arguments))
