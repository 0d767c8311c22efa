"""Flower's programs as this project starts them: commands and environments, for a server and for its clients.

Flower installs an app's packages anew at every run, asks for updates and reports statistics, unless it is told not to:
here it is. What it keeps lies under the folder of the server or the client, and nowhere at home.
"""

import json
import os
import secrets
import shlex
import socket
import ssl
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import tomli_w

import preparation
from deploy.arguments import LOOPBACK
from deploy.make_keys import AUTHORITY, SERVER_CERTIFICATE, SERVER_KEY
from fedmask.errors import FedmaskError
from fedmask.files import check_own, write_atomically
from fedmask.runs.client_file import ClientFile

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent
CONNECTION = "fedmask"
"""The name under which `flwr` finds the server in its configuration."""

_QUIET = {**preparation.QUIET, "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1"}


def environment(flower_home: Path) -> dict[str, str]:
    """This process's, with Flower's programs found first and its files in flower_home."""
    path = f"{PROGRAMS}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, **_QUIET, "PATH": path, "FLWR_HOME": str(flower_home.resolve())}


def server_home(folder: Path) -> Path:
    """Where Flower keeps its files on the server."""
    return folder / "flower"


def environment_of(folder: str) -> dict[str, str]:
    """Of a program that talks to this folder's server. Raises FedmaskError where it is no server's."""
    check_server(folder)
    return environment(server_home(Path(folder)))


def check_server(folder: str) -> None:
    """Raises FedmaskError where no server was ever started with this folder."""
    if not (server_home(Path(folder)) / "config.toml").is_file():
        raise FedmaskError(f"folder={folder or 'DIR'}: must be the folder of a server that start_server.py has started")


def superlink(folder: Path, keys: Path, port: int) -> list[str]:
    """The server: TLS, clients known by their keys, messages in a database, reached from this machine alone.

    Raises FedmaskError where a file of `make_keys.py server` lacks.
    """
    check_keys(keys)
    tls = ["--ssl-ca-certfile", keys / AUTHORITY, "--ssl-certfile", keys / SERVER_CERTIFICATE]
    tls += ["--ssl-keyfile", keys / SERVER_KEY]
    where = ["--host", LOOPBACK, "--port", port, "--database", database(folder)]
    return _command("flower-superlink", [*tls, "--enable-supernode-auth", *where])


def database(folder: Path) -> Path:
    """In which the server keeps messages, and the keys of registered clients."""
    return folder.resolve() / "state.db"


def authority(keys: Path) -> ssl.SSLContext:
    """By which the server is known."""
    return ssl.create_default_context(cafile=str(keys / AUTHORITY))


def own_tls(keys: Path) -> ssl.SSLContext:
    """Of a program that clients reach under the server's name. Raises FedmaskError where the keys are none."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.options |= ssl.OP_NO_RENEGOTIATION  # which costs a server more than its caller
    try:
        context.load_cert_chain(keys / SERVER_CERTIFICATE, keys / SERVER_KEY)
    except ssl.SSLError as error:
        raise FedmaskError(f"{keys}: {SERVER_CERTIFICATE} and {SERVER_KEY} are no pair ({error.reason})") from error
    return context


def check_keys(keys: Path) -> None:
    """Raises FedmaskError where a file of `make_keys.py server` lacks, or others could replace it."""
    for name in (AUTHORITY, SERVER_CERTIFICATE, SERVER_KEY):
        if not (keys / name).is_file():
            raise FedmaskError(f"{keys / name}: there is none; make it with make_keys.py server folder={keys}")
    check_own(keys, "name another folder with keys=DIR")


def supernode(file: Path, own: ClientFile, port: int) -> list[str]:
    """The client of this file. port: of this machine, by which its own processes talk to each other; no other process
    is given a message there, for only they know the secret that `keep_secret` wrote."""
    known = ["--root-certificates", own.authority, "--auth-supernode-private-key", own.key]
    where = ["--superlink", own.superlink, "--host", LOOPBACK, "--port", port]
    program = ROOT / "scripts" / "deploy" / "supernode.py"
    alone = ["--isolation", "process", "--superexec-auth-secret-file", _secret(own)]
    own_file = f"client-file={quoted(str(file.resolve()))}"
    return [sys.executable, str(program), *map(str, [*known, *where, *alone, "--node-config", own_file])]


def keep_secret(own: ClientFile) -> None:
    """A new one for the processes of a client, which its own account alone may read."""
    write_atomically(_secret(own), secrets.token_bytes(32), private=True)


def _secret(own: ClientFile) -> Path:
    return Path(own.folder) / "flower" / "superexec.secret"


def quoted(text: str) -> str:
    """A text in TOML, for Flower's arguments, which it cuts apart at the quotes before it reads them: none inside."""
    escaped = json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', "\\u0022").replace("\x7f", "\\u007f")
    return f'"{escaped}"'


def client_environment(own: ClientFile) -> dict[str, str]:
    """What the code that the server sends is given of this process's: nothing that is not on the list."""
    handed_on = {
        name: value
        for name, value in environment(Path(own.folder) / "flower").items()
        if name.startswith(_PREFIXES) or name in _HANDED_ON or (name.upper() in _PROXIES and "@" not in value)
    }
    return handed_on | {"FEDMASK_CACHE_FOLDER": str(own.cache)}


_HANDED_ON = (
    *("PATH", "LD_LIBRARY_PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TZ", "LANG", "LANGUAGE"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_ENDPOINT"),
    *("TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "TOKENIZERS_PARALLELISM"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "NO_PROXY", "no_proxy", "NVIDIA_VISIBLE_DEVICES"),
    *("FLWR_HOME", "FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK", "FLWR_LOG_LEVEL"),
    *("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "RAY_USAGE_STATS_ENABLED", "PYTHONUNBUFFERED"),
)
_PREFIXES = ("LC_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "CUDA_", "PYTORCH_", "FEDMASK_")
"""Where programs and libraries are, how texts are read, how many threads there are. Secrets have other names: tokens of
the hub and of clouds, passwords."""
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
"""Where their addresses hold no password."""


def connect(folder: Path, keys: Path, port: int) -> None:
    """Tell `flwr` on this machine where the server is and which authority it is known by."""
    authority = (keys / AUTHORITY).resolve()
    known = {"address": f"{LOOPBACK}:{port}", "root-certificates": str(authority)}
    told = tomli_w.dumps({"superlink": {"default": CONNECTION, CONNECTION: known}})
    write_atomically(server_home(folder) / "config.toml", told.encode(), private=True)


def register(public_key: Path) -> list[str]:
    """Let the client with this key take part."""
    return _command("flwr", ["supernode", "register", public_key, CONNECTION])


def run(overrides: Sequence[str]) -> list[str]:
    """A run with the overrides of simulate.py; ends with it.

    Raises FedmaskError for what Flower's run configuration cannot hold.
    """
    for override in overrides:
        if not override.isprintable() or any(sign in override for sign in "'\"\\"):
            raise FedmaskError(f"{override!r}: overrides travel in quotes of Flower's: no quote in them, no backslash")
    return _command("flwr", ["run", ROOT, CONNECTION, "--stream", "--run-config", f'hydra="{shlex.join(overrides)}"'])


def stop(run_id: str) -> list[str]:
    """End a run before its end."""
    return _command("flwr", ["stop", run_id, CONNECTION])


def runs() -> list[str]:
    """All runs of this server, as JSON."""
    return _command("flwr", ["list", CONNECTION, "--format", "json"])


def nodes() -> list[str]:
    """All clients that this server knows, as JSON."""
    return _command("flwr", ["supernode", "list", CONNECTION, "--format", "json"])


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _command(program: str, arguments: Iterable[object]) -> list[str]:
    return [str(PROGRAMS / program), *map(str, arguments)]
