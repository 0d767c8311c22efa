"""deploy.warm: the program that Flower starts, the starter behind it, and what becomes of one without the other."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.warm.launch import warm

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

APPLICATION = """
import os, signal, sys, time

IMPORTED_BY = os.getpid()

def run():
    doing, *more = sys.argv[1:]
    if doing == "tell":
        ours = [name for name in ("fedmask", "client", "server", "deploy") if name in sys.modules]
        print(sys.argv[1:], os.getcwd(), os.environ["COLOR"], os.environ.get("STARTERS"), ours)
        print("imported by its parent:", os.getppid() == IMPORTED_BY)
        print(sys.stdin.read(), file=sys.stderr, end="")
    elif doing == "end":
        return int(more[0])
    elif doing == "break":
        os.kill(os.getpid(), signal.SIGKILL)
    elif doing == "wait":
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(7))
        print(os.getpid(), os.getppid(), flush=True)
        time.sleep(600)
"""

Program = "subprocess.Popen[str]"


class Site:
    """A starter with the small application above, and the program before it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / ("long" * 40)  # more than a socket's path may have
        self.folder.mkdir()
        (folder / "application.py").write_text(APPLICATION)
        self.cold = folder / "cold"
        self.cold.write_text('#!/bin/sh\necho cold: "$@" in "$PWD"\nexit 3\n')
        self.cold.chmod(0o700)
        self.environment = os.environ | {"PYTHONPATH": str(folder), "COLOR": "red", "STARTERS": "own"}

    @contextmanager
    def warm(self) -> Iterator[dict[str, str]]:
        with warm(self.folder, self.environment, self.cold, "application:run", ["json"]) as found:
            wait_until((self.folder / "starter.socket").exists)
            yield found

    def start(self, *arguments: str, **changes: str) -> Program:
        pipe = subprocess.PIPE
        environment = {key: value for key, value in self.environment.items() if key != "STARTERS"} | changes
        command = [str(self.folder / "flwr-clientapp"), *arguments]
        folder = self.folder.parent
        return subprocess.Popen(
            command, env=environment, cwd=folder, stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=0
        )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ends(process: int) -> bool:
    """Whether it has ended; a zombie that nobody waits for has."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def children(process: int) -> dict[int, str]:
    """The name of each process that this one has started, by its id."""
    ids = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return {int(number): Path(f"/proc/{number}/comm").read_text().strip() for number in ids}


def waiting(site: Site) -> tuple[Program, int, int]:
    """A program whose process waits; that process's id, and the starter's."""
    program = site.start("wait")
    assert program.stdout is not None
    process, starter = map(int, program.stdout.readline().split())
    return program, process, starter


def test_the_forked_process_is_what_the_program_would_have_been(site: Site) -> None:
    with site.warm():
        out, told = site.start("tell", "a b", "--x", COLOR="blue").communicate("read\n", timeout=300)
    assert out == f"['tell', 'a b', '--x'] {site.folder.parent} blue None []\nimported by its parent: True\n"
    assert told == "read\n"


def test_flower_finds_the_program_before_its_own_and_nobody_else_may(site: Site) -> None:
    with site.warm() as found:
        assert found["PATH"].split(os.pathsep)[0] == str(site.folder)
        assert found["COLOR"] == "red"
        assert site.folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("arguments", "code"), [(["end", "0"], 0), (["end", "5"], 5), (["break"], 128 + 9)])
def test_the_exit_code_is_told(site: Site, arguments: list[str], code: int) -> None:
    with site.warm():
        for _ in range(2):
            assert site.start(*arguments).wait(timeout=300) == code


def test_messages_run_side_by_side_and_none_is_left_unreaped(site: Site) -> None:
    with site.warm():
        waits, process, starter = waiting(site)
        assert site.start("end", "4").wait(timeout=300) == 4
        assert list(children(starter)) == [process]
        assert len(list(Path(f"/proc/{starter}/task").iterdir())) == 1
        waits.kill()


def test_a_signal_reaches_the_process(site: Site) -> None:
    with site.warm():
        program, process, _ = waiting(site)
        program.send_signal(signal.SIGTERM)
        assert program.wait(timeout=300) == 7
        assert ends(process)


def test_a_killed_program_takes_its_process_with_it(site: Site) -> None:
    with site.warm():
        program, process, _ = waiting(site)
        program.kill()
        wait_until(lambda: ends(process))


def test_without_a_starter_flowers_own_program_runs(site: Site) -> None:
    with site.warm():
        pass
    program = site.start("a b", "c")
    out, told = program.communicate(timeout=300)
    assert (out, program.returncode) == (f"cold: a b c in {site.folder.parent}\n", 3)
    assert told.startswith("no warm process for this message (")
    assert told.count("\n") == 1


def test_a_killed_starter_costs_no_message(site: Site) -> None:
    with site.warm():
        program, process, starter = waiting(site)
        os.kill(starter, signal.SIGKILL)
        assert site.start("next").wait(timeout=300) == 3
        assert not ends(process)
        program.send_signal(signal.SIGTERM)
        assert program.wait(timeout=300) == 1
        wait_until(lambda: ends(process))


KEEPER = """
import os, signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes are begun without it
sys.path.insert(0, sys.argv[1])
from deploy.start_client import keep_running
from deploy.warm.launch import warm
with warm(Path(sys.argv[2]), dict(os.environ), Path("cold"), "application:run", []) as found:
    keep_running(["sleep", "600"], found)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_starter_ends_with_whoever_started_it(site: Site, number: signal.Signals) -> None:
    environment = site.environment | {"PYTHONPATH": f"{site.folder.parent}{os.pathsep}{SCRIPTS.parent}"}
    command = [sys.executable, "-c", KEEPER, str(SCRIPTS), str(site.folder)]
    keeper = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    wait_until((site.folder / "starter.socket").exists)
    wait_until(lambda: "sleep" in children(keeper.pid).values())
    kept, starter = sorted(children(keeper.pid), key=lambda process: children(keeper.pid)[process] != "sleep")
    keeper.send_signal(number)
    keeper.wait(timeout=300)
    wait_until(lambda: ends(starter))
    if number == signal.SIGKILL:
        os.kill(kept, signal.SIGKILL)
