"""Flower's SuperNode in a process that ends when the SuperNode does, and the SuperExec that starts its messages.

In: the arguments of `flower-supernode`. Where its connection breaks within a TLS handshake, Flower 1.41 leaves its loop
for good and yet does not end: a server thread of its own goes on. Whoever started it would wait for it for ever. It
ends as well when its standard input does, a pipe of whoever started it: a SuperNode that went on after that one was
killed would keep the next from being taken.

The SuperExec is Flower's program that asks the SuperNode for messages and starts a process for each. Where Flower
starts it by itself, the SuperNode gives a message to whoever asks on the loopback interface, any account of the
machine. With `--superexec-auth-secret-file` it is started here: both know a secret, and nobody else is given a message.
"""

import argparse
import os
import subprocess
import sys
import threading
from collections.abc import Sequence

from flwr.supernode.cli import flower_supernode

ENDED = 1
"""The exit code where it leaves its loop; where it ends by itself, with a code of its own, that stands."""


def end_with_input() -> None:
    while os.read(0, 1):
        pass
    os._exit(ENDED)


def start_superexec(arguments: Sequence[str]) -> None:
    """arguments: the SuperNode's. The SuperExec tries until the SuperNode answers, and ends with this process."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    for name in ("--host", "--port", "--superexec-auth-secret-file"):
        parser.add_argument(name)
    known, _ = parser.parse_known_args(arguments)
    if known.superexec_auth_secret_file is None:
        return
    command = ["flower-superexec", "--insecure", "--runtime-api-address", f"{known.host}:{known.port}"]
    command += ["--parent-pid", str(os.getpid()), "--superexec-auth-secret-file", known.superexec_auth_secret_file]
    subprocess.Popen(command, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    threading.Thread(target=end_with_input, daemon=True).start()
    start_superexec(sys.argv[1:])
    flower_supernode()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ENDED)
