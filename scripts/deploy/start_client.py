"""A client of a deployment, until it is stopped:

    python scripts/deploy/start_client.py file=client.yaml [port=N]

The file says who it is, where its server and its data are, and what it will not do; what each key means stands in
fedmask/runs/client_file.py. port: of this machine, for the client's own processes; by default a free one.
With `warm: true` a process beside Flower's keeps the libraries in memory, and ends with this one.

Where Flower's process ends, it is started again after 10 seconds: a server refuses a client that is not registered
(yet), and for up to a minute one whose last process was killed, which it takes to be there still.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import preparation  # noqa: F401

# isort: split
import multiprocessing
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from typing import NoReturn

from deploy import flower
from deploy.arguments import check_free, port_number, read_arguments, told_in_one_line
from deploy.warm.launch import PROGRAM, warm
from fedmask.errors import FedmaskError
from fedmask.files import check_own, own_folder
from fedmask.processes import end_with_parent
from fedmask.runs.client_file import ClientFile, OwnData, read_client_file

PAUSE_SECONDS = 10.0


def main(arguments: list[str]) -> None:
    given = read_arguments(arguments, ("file", "port"), required=("file",), paths=("file",))
    file, port = Path(given["file"]), port_number(given, "port", flower.free_port())
    own = read_client_file(file)
    check_free("port", port)
    check(file, own)
    own_folder(Path(own.folder), f"name another folder in {file}", tighten=True)
    flower.keep_secret(own)
    command = flower.supernode(file, own, port)
    environment = flower.client_environment(own)
    cold = flower.PROGRAMS / PROGRAM
    with warm(Path(own.folder) / "warm", environment, cold) if own.warm else nullcontext(environment) as found:
        keep_running(command, found)


def check(file: Path, own: ClientFile) -> None:
    """Raises FedmaskError where something that the file names is not there or cannot be read.

    Data is read by a process that ends with it: this one stays, and holds none.
    """
    for needed in (own.authority, own.key):
        if not Path(needed).is_file():
            raise FedmaskError(f"{file}: {needed}: there is no such file")
        check_own(Path(needed).parent, f"name another in {file}")
    if own.model_path is not None and not (Path(own.model_path) / "config.json").is_file():
        raise FedmaskError(f"{file}: model_path={own.model_path}: there is no model's folder, one with a config.json")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent) as pool:
        try:
            fault = pool.submit(data_fault, own.data).result()
        except BrokenProcessPool as error:
            raise FedmaskError(f"{file}: the process that reads the data died; is there memory for it?") from error
    if fault is not None:
        raise FedmaskError(f"{file}: {fault}")


def data_fault(data: OwnData) -> str | None:
    """What is wrong with the rows that a client is to train on; None where they can be read."""
    from fedmask.tasks import load_tasks

    try:
        load_tasks(data.source, data.root, [data.task])
    except FedmaskError as error:
        return str(error)
    return None


def keep_running(command: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Start a process again whenever it has ended; whoever ends this one ends that one too."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    while True:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE)
        try:
            code = process.wait()
        finally:
            process.terminate()
            process.wait()
        print(
            f"the client's process has ended with code {code}; next try in {PAUSE_SECONDS:.0f} s (305: the server does "
            "not take this client: not registered yet, or its last process was killed less than a minute ago)",
            file=sys.stderr,
        )
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    sys.exit(told_in_one_line(main, sys.argv[1:], __doc__))
