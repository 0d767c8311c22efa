"""Flower's SuperNode in a process that ends when the SuperNode does.

In: the arguments of `flower-supernode`. Where its connection breaks within a TLS handshake, Flower 1.41 leaves its loop
for good and yet does not end: a server thread of its own goes on. Whoever started it would wait for it for ever.
"""

import os
import sys

from flwr.supernode.cli import flower_supernode

ENDED = 1
"""The exit code where it leaves its loop; where it ends by itself, with a code of its own, that stands."""

if __name__ == "__main__":
    flower_supernode()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ENDED)
