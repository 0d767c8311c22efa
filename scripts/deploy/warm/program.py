"""What Flower starts for a message of a client that stays warm: it has the starter fork a process, and waits for it.

    python -I -S program.py FOLDER PROGRAM [ARGUMENT ...]

FOLDER holds the starter's socket (starter.py says what is exchanged), PROGRAM is Flower's own. What is done to this
process, a signal or its death, happens to the forked one, whose exit code it ends with: 128 + number after a signal.
Where no starter answers, it becomes PROGRAM, as if there were none. Imports are few: each message waits for them.
"""

import json
import os
import signal
import socket
import struct
import sys
from typing import NoReturn

ANSWER_SECONDS = 10.0
"""Within which a starter has forked, on a busy machine as well."""


def main(folder: str, program: str, *arguments: str) -> NoReturn:
    here = os.open(".", os.O_RDONLY)
    try:
        connection = handed_over(folder, here, [program, *arguments])
    except OSError as error:
        print(f"no warm process for this message ({error}): it starts by itself", file=sys.stderr, flush=True)
        os.fchdir(here)
        os.execv(program, [program, *arguments])
    sys.exit(exit_code(connection))


def handed_over(folder: str, here: int, command: list[str]) -> socket.socket:
    """The connection to a process that has begun. Raises OSError where there is none."""
    os.chdir(folder)  # a socket's path may be no longer than 107 bytes, a folder's may
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(ANSWER_SECONDS)
    connection.connect("starter.socket")
    content = json.dumps([command, dict(os.environ)]).encode()
    socket.send_fds(connection, [struct.pack("!I", len(content))], [0, 1, 2, here])
    connection.sendall(content)
    if not connection.recv(1):
        raise ConnectionError("the starter has ended")
    connection.settimeout(None)
    return connection


def exit_code(connection: socket.socket) -> int:
    """Of the process, once it has ended; 1 where the starter, who would tell, has ended before it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, lambda number, frame: connection.send(bytes([number])))
    told = connection.recv(4)
    if len(told) < 4:
        return 1
    code: int = struct.unpack("!i", told)[0]
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    main(*sys.argv[1:])
