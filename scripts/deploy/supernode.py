"""Flower's SuperNode in a process that ends when the SuperNode does.

In: the arguments of `flower-supernode`. Where its connection breaks within a TLS handshake, Flower 1.41 leaves its loop
for good and yet does not end: a server thread of its own goes on. Whoever started it would wait for it for ever. It
ends as well when its standard input does, a pipe of whoever started it: a SuperNode that went on after that one was
killed would keep the next from being taken.
"""

import os
import sys
import threading

from flwr.supernode.cli import flower_supernode

ENDED = 1
"""The exit code where it leaves its loop; where it ends by itself, with a code of its own, that stands."""


def end_with_input() -> None:
    while os.read(0, 1):
        pass
    os._exit(ENDED)


if __name__ == "__main__":
    threading.Thread(target=end_with_input, daemon=True).start()
    flower_supernode()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ENDED)
