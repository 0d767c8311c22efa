"""A whole deployment on this machine, by real processes over TLS: one server, three clients with different tasks.

    python scripts/deploy/local_demo.py output=DIR [rounds=3] [key=value ...]

It makes keys, starts the server, its gate and the clients, registers them, submits a run, and ends every process that
it started. DIR holds what a run leaves (adapter.safetensors, communication.jsonl, report.html, ...), and DIR/deployment
what server and clients keep, with their logs. Other keys are those of simulate.py. Needs Linux's /proc.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import preparation  # noqa: F401

# isort: split
import os
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import yaml  # type: ignore[import-untyped]

from deploy import flower
from deploy.arguments import told_in_one_line
from deploy.make_keys import AUTHORITY, CLIENT_KEY, CLIENT_PUBLIC_KEY, make_client_key, make_server_certificate
from deploy.submit import checked
from fedmask.errors import FedmaskError
from fedmask.runs.command import own_arguments

TASKS = ("film_reviews", "question_type", "topic")
DEFAULTS = {"clients": len(TASKS), "threads": 1, "rounds": 3}
SCRIPTS = Path(__file__).resolve().parent
LIMITS = {"rounds": 1000, "steps": 10_000, "batch_size": 64, "memory_bytes": None}
START_SECONDS, END_SECONDS = 180.0, 10.0
"""That the server has to answer for the first time, and a process to end by itself."""


def main(arguments: list[str]) -> None:
    own, others = own_arguments(arguments, ("output",), paths=("output",))
    if "output" not in own:
        raise FedmaskError("give output=DIR, a new folder")
    output = Path(own["output"]).resolve()
    if output.exists():
        raise FedmaskError(f"output={output}: is there already; name a new folder")
    keys = {argument.partition("=")[0] for argument in others}
    defaults = [f"{key}={value}" for key, value in DEFAULTS.items() if key not in keys]
    overrides = [*defaults, *others, f"output={output}"]
    checked(["data=own", *overrides])
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # so that its processes end with it
    site = Site(output / "deployment")
    with running(site, TASKS, [site.gate_port] * len(TASKS)):
        site.submit(overrides)
    print(f"run folder: {output}")


@dataclass
class Site:
    """Processes of a deployment on this machine, and their folder."""

    folder: Path
    """Absolute."""
    port: int = field(default_factory=flower.free_port)
    """Of the server, for what its operator does."""
    gate_port: int = field(default_factory=flower.free_port)
    """Of the server's gate, for clients."""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def server(self) -> Path:
        return self.folder / "server"

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    def client(self, client_id: int) -> Path:
        return self.folder / f"client-{client_id:05d}"

    def start(self, name: str, script: str, *arguments: str) -> None:
        """A script of this folder, as a process whose output goes into a log of its name."""
        log = self.logs / f"{name}.log"
        self.logs.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            command = [sys.executable, str(SCRIPTS / script), *arguments]
            self.processes[name] = subprocess.Popen(command, cwd=self.folder, stdout=file, stderr=file)

    def start_server(self) -> None:
        """Returns once it answers. Raises FedmaskError where it ends, or never does."""
        self.start("server", "start_server.py", f"folder={self.server}", f"keys={self.keys}", f"port={self.port}")
        self._await_answer(self.port)

    def start_gate(self) -> None:
        """As start_server."""
        ports = [f"port={self.gate_port}", f"server_port={self.port}"]
        folders = [f"folder={self.server}", f"keys={self.keys}"]
        self.start("gate", "open_gate.py", *folders, f"host={flower.LOOPBACK}", *ports)
        self._await_answer(self.gate_port)

    def _await_answer(self, port: int) -> None:
        context = ssl.create_default_context(cafile=str(self.keys / AUTHORITY))
        deadline = time.monotonic() + START_SECONDS
        while not _answers(f"https://{flower.LOOPBACK}:{port}/health", context):
            self.check_alive()
            if time.monotonic() > deadline:
                raise FedmaskError(f"port {port} has not answered for {START_SECONDS:.0f} s; see {self.logs}")
            time.sleep(0.2)

    def start_client(self, client_id: int) -> None:
        self.start(f"client-{client_id:05d}", "start_client.py", f"file={self.client(client_id) / 'client.yaml'}")

    def register(self, client_id: int, bound_to: int | None = None) -> None:
        """Let a client take part, as itself; or, for who wants to see it refused, as another."""
        key = self.client(client_id) / CLIENT_PUBLIC_KEY
        own = f"client_id={client_id if bound_to is None else bound_to}"
        command = [sys.executable, str(SCRIPTS / "register_client.py"), f"folder={self.server}", f"key={key}", own]
        subprocess.run(command, check=True)

    def submit(self, overrides: Sequence[str]) -> None:
        """A run until its end. Raises FedmaskError where it fails, or a process of the deployment ends meanwhile."""
        command = [sys.executable, str(SCRIPTS / "submit.py"), f"folder={self.server}", *overrides]
        self.processes["run"] = subprocess.Popen(command)
        while self.processes["run"].poll() is None:
            self.check_alive()
            time.sleep(0.2)
        if self.processes.pop("run").returncode != 0:
            raise FedmaskError(f"the run failed; see above, and {self.logs}")

    def check_alive(self) -> None:
        for name, process in self.processes.items():
            if name != "run" and process.poll() is not None:
                log = self.logs / f"{name}.log"
                raise FedmaskError(f"{name} has ended with code {process.returncode}; see {log}")

    def kill(self, name: str, folder: Path) -> None:
        """End a process, and all that it started, at once. folder: where its Flower files lie."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()
        end_processes_of(folder)

    def end(self) -> None:
        """No process that was started here, or by those, goes on."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        end_processes_of(self.folder)


def end_processes_of(folder: Path) -> None:
    """Returns once there is none: one may be starting another when it is killed."""
    numbers = processes_of(folder)
    while numbers:
        for number in numbers:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.05)
        numbers = processes_of(folder)


def processes_of(folder: Path) -> list[int]:
    """The ids of all processes whose Flower files lie in this folder."""
    return [number for number, home in _flower_homes() if Path(home).is_relative_to(folder)]


@contextmanager
def running(site: Site, tasks: Sequence[str], ports: Sequence[int], warm: Collection[int] = ()) -> Iterator[None]:
    """A server and one client a demo task, registered and running; all of it ends with the block.

    ports: where each client reaches the server. warm: ids of the clients that stay warm.
    """
    make_server_certificate(site.keys, [])
    for client_id, (task, port) in enumerate(zip(tasks, ports, strict=True)):
        make_client_key(site.client(client_id))
        write_client_file(site, client_id, task, port, client_id in warm)
    try:
        site.start_server()
        site.start_gate()
        for client_id in range(len(tasks)):
            site.register(client_id)
            site.start_client(client_id)
        yield
    finally:
        site.end()


def write_client_file(site: Site, client_id: int, task: str, port: int, warm: bool) -> None:
    """client.yaml in the client's folder."""
    own = {
        "client_id": client_id,
        "superlink": f"{flower.LOOPBACK}:{port}",
        "authority": str(site.keys / AUTHORITY),
        "key": CLIENT_KEY,
        "folder": "state",
        "data": {"source": "demo", "root": None, "task": task},
        "device": "cpu",
        "threads": None,
        "model_path": None,
        "warm": warm,
        "limits": LIMITS,
    }
    (site.client(client_id) / "client.yaml").write_text(yaml.safe_dump(own, sort_keys=False))


def _answers(url: str, context: ssl.SSLContext) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2, context=context).close()
    except urllib.error.HTTPError:
        return True  # the gate: there is nothing at that path
    except OSError:
        return False
    return True


def _flower_homes() -> Iterator[tuple[int, str]]:
    """By process id the FLWR_HOME of every process of ours that has one."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            settings = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # gone, or not ours
            continue
        for setting in settings:
            if setting.startswith(b"FLWR_HOME="):
                yield int(folder.name), os.fsdecode(setting.removeprefix(b"FLWR_HOME="))


if __name__ == "__main__":
    sys.exit(told_in_one_line(main, sys.argv[1:], __doc__))
