"""Certificates for TLS and the key by which a client is known:

    python scripts/deploy/make_keys.py server folder=DIR hosts=NAME,IP,...
    python scripts/deploy/make_keys.py client folder=DIR

On the server: DIR/authority.crt, which every client is given; DIR/server.crt and DIR/server.key for the names under
which clients reach it. The authority's own key is forgotten, so that nobody can sign a second server: run this again
for other names, and give the new authority.crt out. On a client: DIR/client.key, which never leaves it, and
DIR/client.pub, which the server's operator registers. Keys are on the curve P-384, the server's on P-256, readable by
their owner alone, and never replaced; a folder into which others may write is refused.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import preparation  # noqa: F401

# isort: split
import ipaddress
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.arguments import read_arguments, told_in_one_line
from fedmask.errors import FedmaskError
from fedmask.files import new_file, own_folder

VALID = timedelta(days=365)
OWN_HOSTS = ("localhost", "127.0.0.1")
AUTHORITY, SERVER_CERTIFICATE, SERVER_KEY = "authority.crt", "server.crt", "server.key"
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
CLIENT_KEY, CLIENT_PUBLIC_KEY = "client.key", "client.pub"


def main(arguments: list[str]) -> None:
    who, rest = (arguments[0] if arguments else None), arguments[1:]
    if who == "server":
        given = read_arguments(rest, ("folder", "hosts"), required=("folder", "hosts"), paths=("folder",))
        make_server_certificate(Path(given["folder"]), given["hosts"].split(","))
        print(f"{given['folder']}: {SERVER_CERTIFICATE} and {SERVER_KEY} stay here; give {AUTHORITY} to all clients")
    elif who == "client":
        given = read_arguments(rest, ("folder",), required=("folder",), paths=("folder",))
        make_client_key(Path(given["folder"]))
        print(f"{given['folder']}: {CLIENT_KEY} stays here; give {CLIENT_PUBLIC_KEY} to the server's operator")
    else:
        raise FedmaskError("say for whom: server folder=DIR hosts=NAME,IP or client folder=DIR")


def make_server_certificate(folder: Path, hosts: Sequence[str]) -> None:
    """hosts: DNS names and IP addresses under which clients reach the server; it holds for this machine's own as well.

    Raises FedmaskError where one of the files is there already.
    """
    authority_key = ec.generate_private_key(ec.SECP384R1())
    key = ec.generate_private_key(ec.SECP256R1())  # it signs for every caller, a stranger too: in 0.03 ms, not in 1
    issuer, subject = _name("fedmask authority"), _name("fedmask server")
    names = [_general_name(host) for host in dict.fromkeys([*hosts, *OWN_HOSTS])]
    authority = (
        _certificate(issuer, issuer, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_for_signing_certificates(), critical=True)
        .sign(authority_key, hashes.SHA384())
    )
    certificate = (
        _certificate(issuer, subject, key.public_key())
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA384())
    )
    _write(folder / SERVER_KEY, _private(key, serialization.PrivateFormat.PKCS8))
    _write(folder / SERVER_CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM))
    _write(folder / AUTHORITY, authority.public_bytes(serialization.Encoding.PEM))


def make_client_key(folder: Path) -> None:
    """In the form of OpenSSH, which Flower reads. Raises FedmaskError where one of the files is there already."""
    key = ec.generate_private_key(ec.SECP384R1())
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    _write(folder / CLIENT_KEY, _private(key, serialization.PrivateFormat.OpenSSH))
    _write(folder / CLIENT_PUBLIC_KEY, public + b"\n")


def _certificate(issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # clocks differ
        .not_valid_after(now + VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _for_signing_certificates() -> x509.KeyUsage:
    uses = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    others = dict.fromkeys([*uses, "crl_sign", "encipher_only", "decipher_only"], False)
    return x509.KeyUsage(key_cert_sign=True, **others)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: str) -> x509.GeneralName:
    """Raises FedmaskError for what can be no host's name, such as one with a port."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST.fullmatch(host):
            raise FedmaskError(
                f"hosts={host}: must be names or IP addresses, with a comma between them, without port or https://"
            ) from None
        return x509.DNSName(host)


def _private(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _write(path: Path, content: bytes) -> None:
    """A new file that its owner alone may read. Raises FedmaskError where there is one: keys are never replaced, and
    where others could replace it: they write into its folder."""
    own_folder(path.parent, "name another folder with folder=DIR")
    try:
        file = new_file(path, private=True)
    except FileExistsError as error:
        raise FedmaskError(f"{path}: is there already; name another folder, or remove it yourself") from error
    with file:
        file.write(content)


if __name__ == "__main__":
    sys.exit(told_in_one_line(main, sys.argv[1:], __doc__))
