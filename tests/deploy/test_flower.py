"""deploy.flower: paths with quotes reach Flower as they are; what a client's processes are given of an environment."""

import os
import socket
import subprocess
import time
import tomllib
import urllib.error
import urllib.request
from importlib.metadata import version
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args
from flwr.proto.runtime_pb2 import AcquireTaskRequest

from deploy import flower
from deploy.make_keys import make_client_key, make_server_certificate
from fedmask.runs.client_file import ClientFile, read_client_file

ODD = ("it's", 'say "x" partition-id=7', "back\\slash", "brace]\n[x]", "é 東", "a\x7fb", "plain")


@pytest.mark.parametrize("name", ODD)
def test_the_servers_configuration_holds_any_path(tmp_path: Path, name: str) -> None:
    keys, folder = tmp_path / name, tmp_path / "server"
    make_server_certificate(keys, ["fed.example"])
    flower.connect(folder, keys, 8000)
    found = tomllib.loads((folder / "flower" / "config.toml").read_text())
    known = {"address": "127.0.0.1:8000", "root-certificates": str((keys / "authority.crt").resolve())}
    assert found == {"superlink": {"default": "fedmask", "fedmask": known}}


@pytest.mark.parametrize("name", ODD)
def test_a_clients_own_file_may_have_any_path(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "client.yaml"
    assert parse_config_args([f"client-file={flower.quoted(str(path))}"]) == {"client-file": str(path)}


@pytest.fixture
def own(tmp_path: Path) -> ClientFile:
    make_client_key(tmp_path)
    make_server_certificate(tmp_path, ["fed.example"])
    (tmp_path / "client.yaml").write_text(
        "client_id: 0\nsuperlink: 127.0.0.1:9\nauthority: authority.crt\nkey: client.key\nfolder: state\ndevice: cpu\n"
        "data: {source: demo, task: topic}\nlimits: {rounds: 1, steps: 1, batch_size: 1}\n"
    )
    return read_client_file(tmp_path / "client.yaml")


def test_a_clients_processes_are_given_no_secret(own: ClientFile, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "HTTPS_PROXY": "http://proxy:3128"}
    secrets = ("AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "HF_TOKEN", "SSH_AUTH_SOCK", "PGPASSWORD", "PYTHONPATH")
    for name, value in {**kept, **dict.fromkeys(secrets, "s3cret"), "http_proxy": "http://me:s3cret@proxy"}.items():
        monkeypatch.setenv(name, value)
    found = flower.client_environment(own)
    assert {name: found.get(name) for name in kept} == kept
    assert "s3cret" not in " ".join(found.values())
    assert {"PATH", "FLWR_HOME", "FEDMASK_CACHE_FOLDER", "FLWR_TELEMETRY_ENABLED"} <= found.keys()


def acquired(port: int) -> bytes | int:
    """What the SuperNode answers to somebody who asks it for a message: bytes, or the status of a refusal."""
    body = AcquireTaskRequest(supported_task_types=["flwr-clientapp"]).SerializeToString()
    headers = {"Content-Type": "application/protobuf", "Accept": "application/protobuf"}
    headers |= {
        "flwr-package-name": "flwr",
        "flwr-package-version": version("flwr"),
        "flwr-component-name": "SuperExec",
    }
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/runtime/acquire-task", body, headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as refusal:
        return refusal.code


def test_a_message_is_given_to_the_clients_own_processes_alone(own: ClientFile, tmp_path: Path) -> None:
    flower.keep_secret(own)
    assert Path(own.folder, "flower", "superexec.secret").stat().st_mode & 0o777 == 0o600
    port = flower.free_port()
    command = flower.supernode(tmp_path / "client.yaml", own, port)
    environment = flower.client_environment(own)
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stderr=subprocess.STDOUT) as node:
        try:
            deadline = time.monotonic() + 60
            while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < deadline:
                assert node.poll() is None
                time.sleep(0.1)
            assert acquired(port) == 401
            children = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
            commands = [Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0") for child in children]
            (superexec,) = [each for each in commands if any(part.endswith(b"flower-superexec") for part in each)]
            assert os.fsencode(Path(own.folder) / "flower" / "superexec.secret") in superexec
        finally:
            node.kill()
