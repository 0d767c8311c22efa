"""deploy.make_keys: certificates that hold for the server's names alone, keys that only their owner reads."""

import os
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from deploy.make_keys import main, make_client_key, make_server_certificate
from fedmask.errors import FedmaskError


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def verify(authority: Path, server: Path, host: str) -> None:
    store = Store([certificate(authority)])
    PolicyBuilder().store(store).build_server_verifier(x509.DNSName(host)).verify(certificate(server), [])


def test_a_server_is_known_by_its_names_and_by_no_others(tmp_path: Path) -> None:
    make_server_certificate(tmp_path, ["fed.example", "10.0.0.7"])
    for host in ("fed.example", "localhost"):
        verify(tmp_path / "authority.crt", tmp_path / "server.crt", host)
    with pytest.raises(VerificationError):
        verify(tmp_path / "authority.crt", tmp_path / "server.crt", "other.example")
    names = certificate(tmp_path / "server.crt").extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert [str(address) for address in names.value.get_values_for_type(x509.IPAddress)] == ["10.0.0.7", "127.0.0.1"]


def test_another_authority_does_not_know_it(tmp_path: Path) -> None:
    for name in ("one", "other"):
        make_server_certificate(tmp_path / name, ["fed.example"])
    with pytest.raises(VerificationError):
        verify(tmp_path / "other" / "authority.crt", tmp_path / "one" / "server.crt", "fed.example")


def test_the_authoritys_own_key_is_kept_nowhere(tmp_path: Path) -> None:
    make_server_certificate(tmp_path, ["fed.example"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["authority.crt", "server.crt", "server.key"]


def test_a_clients_key_fits_its_public_one(tmp_path: Path) -> None:
    make_client_key(tmp_path)
    key = load_ssh_private_key((tmp_path / "client.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.public_key() == load_ssh_public_key((tmp_path / "client.pub").read_bytes())


def test_keys_are_their_owners_alone(tmp_path: Path) -> None:
    make_client_key(tmp_path / "client")
    make_server_certificate(tmp_path / "server", ["fed.example"])
    for path in (tmp_path / "client" / "client.key", tmp_path / "server" / "server.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_umask_lets_others_replace_a_key(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_client_key(tmp_path / "fed" / "client")
        make_server_certificate(tmp_path / "server", ["fed.example"])
    finally:
        os.umask(before)
    for folder in (tmp_path / "fed" / "client", tmp_path / "server"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not stat.S_IMODE((tmp_path / "fed").stat().st_mode) & 0o002


@pytest.mark.parametrize("who", ["client", "server"])
def test_no_key_is_made_where_others_could_replace_it(tmp_path: Path, who: str) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(FedmaskError, match="others may write into this folder; close it by `chmod go-w"):
        main([who, f"folder={tmp_path}", *(["hosts=fed.example"] if who == "server" else [])])
    assert list(tmp_path.iterdir()) == []


def test_keys_are_never_replaced(tmp_path: Path) -> None:
    make_client_key(tmp_path)
    before = (tmp_path / "client.key").read_bytes()
    with pytest.raises(FedmaskError, match=r"client\.key: is there already"):
        make_client_key(tmp_path)
    assert (tmp_path / "client.key").read_bytes() == before


def test_for_whom_has_to_be_said(tmp_path: Path) -> None:
    with pytest.raises(FedmaskError, match="say for whom"):
        main([f"folder={tmp_path}"])
    with pytest.raises(FedmaskError, match="missing: hosts="):
        main(["server", f"folder={tmp_path}"])


@pytest.mark.parametrize("hosts", ["fed.example:9443", "https://fed.example", "a b", "fed.example,", ""])
def test_what_is_no_host_is_told_before_a_key_is_made(hosts: str, tmp_path: Path) -> None:
    with pytest.raises(FedmaskError, match=r"^hosts=.*: (must be names or IP addresses|unknown in this form)"):
        main(["server", f"folder={tmp_path / 'keys'}", f"hosts={hosts}"])
    assert not (tmp_path / "keys").exists()


def test_folders_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    main(["client", "folder=~/me"])
    assert (tmp_path / "me" / "client.key").exists()
