"""How a command ends: its work in, an exit code out; what a person has to mend is one line, without a traceback."""

import sys
from collections.abc import Callable

from fedmask.errors import FedmaskError

MISUSED, STOPPED = 2, 130
"""Exit codes: for what a person has to mend; for Ctrl-C, as shells have it."""


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
        print(error if error.filename is None else f"{error.filename}: {error.strerror}", file=sys.stderr)
        return MISUSED
