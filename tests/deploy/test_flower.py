"""deploy.flower: paths with quotes reach Flower as they are; what a client's processes are given of an environment."""

import tomllib
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args

from deploy import flower
from deploy.make_keys import make_server_certificate

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
