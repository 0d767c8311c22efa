"""A process that has libraries imported and forks itself for every message, so that a message need not import them.

    python -P starter.py FOLDER MODULE:FUNCTION [MODULE ...]

In: the function that a message's process runs, and modules to import before. Messages come from program.py through the
socket FOLDER/starter.socket: a standard stream each and the working directory as file descriptors, arguments and
environment as JSON. Out, on the same connection: one byte once the process runs, its exit code (int32) when it has
ended. A byte that comes is a signal for the process, and the end of the connection is its end.

Nothing of this project is imported here: a run brings its own code. The starter starts no thread (OpenBLAS, which does
when it is imported, ends its own before each fork), reads no message itself, and ends when its standard input does: a
pipe of whoever started it.
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

SOCKET = "starter.socket"
"""Of this folder: a socket's whole path may have 107 bytes at most."""
STANDARD_INPUT = 0


def main(folder: str, application: str, *preloaded: str) -> None:
    module, _, function = application.partition(":")
    run = getattr(importlib.import_module(module), function)
    for name in preloaded:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a forked process would write to, and so copy, every page with an object on it
    os.chdir(folder)
    connection = fork_for_each_message(listening())
    if connection is not None:
        run_message(connection, run)


def listening() -> socket.socket:
    Path(SOCKET).unlink(missing_ok=True)  # of a starter that was killed
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(SOCKET)
    listener.listen()
    return listener


def fork_for_each_message(listener: socket.socket) -> socket.socket | None:
    """Returns in each forked process, with its message's connection; in the starter, with None, when its input ends."""
    connections: dict[int, socket.socket] = {}
    child_ended, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)  # the default handler would not wake
    while True:
        sources: list[int | socket.socket] = [STANDARD_INPUT, listener, child_ended]
        ready, _, _ = select.select(sources, [], [])
        if STANDARD_INPUT in ready:
            return None
        if child_ended in ready:
            child_ended.recv(4096)
            tell_exit_codes(connections)
        if listener in ready:
            connection, _ = listener.accept()
            process = try_fork()
            if process == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.set_wakeup_fd(-1)
                for not_its_own in (listener, child_ended, wakes, *connections.values()):
                    not_its_own.close()
                return connection
            if process is not None:
                connections[process] = connection
            # else it is closed, and the message runs without a starter


def try_fork() -> int | None:
    """As os.fork; None where the machine has no room for another process."""
    try:
        return os.fork()
    except OSError:
        return None


def tell_exit_codes(connections: dict[int, socket.socket]) -> None:
    """To whoever waits for a process that has ended; those connections are closed."""
    while connections:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process == 0:
            return
        with connections.pop(process) as connection, suppress(OSError):  # where nobody waits: the program was killed
            connection.sendall(struct.pack("!i", os.waitstatus_to_exitcode(status)))


def run_message(connection: socket.socket, run: Callable[[], int | str | None]) -> NoReturn:
    """The rest of a forked process: it becomes what the message's program would have been."""
    header, descriptors, _, _ = socket.recv_fds(connection, 4, 4)
    if len(header) < 4 or len(descriptors) < 4:  # the program was killed
        os._exit(1)
    content = connection.makefile("rb").read(struct.unpack("!I", header)[0])
    arguments, environment = json.loads(content)
    *streams, working_directory = descriptors
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
    os.fchdir(working_directory)
    for descriptor in descriptors:
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    connection.sendall(b"+")
    threading.Thread(target=follow, args=(connection,), daemon=True).start()
    sys.exit(run())


def follow(connection: socket.socket) -> NoReturn:
    """Do to this process what is done to the program that waits for it."""
    try:
        while number := connection.recv(1):
            os.kill(os.getpid(), number[0])
    finally:
        os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
