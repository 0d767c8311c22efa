"""A warm client's own `flwr-clientapp`, put before Flower's, and the starter behind it. In: the client's folder and its
processes' environment. Out: the environment in which Flower finds that program first."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedmask.files import own_folder, write_atomically

PROGRAM = "flwr-clientapp"
"""What Flower looks for in PATH."""

APPLICATION = "flwr.supernode.cli:flwr_clientapp"
PRELOADED = (
    "torch",
    "transformers.modeling_utils",
    "transformers.tokenization_utils_tokenizers",
    "transformers.convert_slow_tokenizer",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
    "transformers.models.roberta.modeling_roberta",
    "transformers.models.roberta.tokenization_roberta",
    "safetensors.torch",
    "constriction",
    "yaml",
)
"""What a client imports until it trains, this project's own code apart. A model of another family imports its own."""

_HERE = Path(__file__).resolve().parent


@contextmanager
def warm(
    folder: Path,
    environment: Mapping[str, str],
    cold: Path,
    application: str = APPLICATION,
    preloaded: Sequence[str] = PRELOADED,
) -> Iterator[dict[str, str]]:
    """The environment for Flower's processes; with the block the starter ends, also where this process is killed.

    folder: for the socket and the program; it becomes its owner's alone. cold: the program to run without a starter.
    environment: what libraries read of it when they are imported holds for all messages. What runs already goes on.
    """
    own_folder(folder, "remove it", tighten=True)
    _write_program(folder, cold)
    command = [sys.executable, "-P", str(_HERE / "starter.py"), str(folder), application, *preloaded]
    # A process group of its own: Ctrl-C reaches a message's process once, by its program.
    starter = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, process_group=0)
    try:
        yield {**environment, "PATH": f"{folder}{os.pathsep}{environment['PATH']}"}
    finally:
        starter.kill()
        starter.communicate()


def _write_program(folder: Path, cold: Path) -> None:
    """By way of the shell: the first line of a script has no room for a long path, or one with spaces."""
    command = [sys.executable, "-I", "-S", str(_HERE / "program.py"), str(folder), str(cold)]
    write_atomically(folder / PROGRAM, f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n'.encode(), private=True)
    (folder / PROGRAM).chmod(0o700)
