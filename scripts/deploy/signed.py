"""Whether a call is signed by a registered client: by its headers alone, before any of its body is there.

In: headers, and the database in which Flower's server keeps the keys that were registered. Out: the client's key.
A client of Flower signs the time of each call. The server checks that too, and beyond it that the call speaks for the
node of that key, which stands in the body.
"""

import base64
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

KEY, SIGNATURE, SIGNED_AT = "flwr-public-key", "flwr-signature", "flwr-timestamp"
EARLIEST_SECONDS, LATEST_SECONDS = -5, 305
"""How old a signature may be. Flower's own names and times, which a test compares: to import them costs 35 MB."""
UNREGISTERED = "unregistered"
MAX_KEY_BYTES = 1024
"""In PEM; one of P-521 has 268."""


class UnknownKeysError(Exception):
    """Registered keys cannot be looked up now."""


def signer_of(headers: Mapping[str, str], database: Path) -> bytes | None:
    """The registered key with which a call was signed a short while ago; None where it was not.

    headers: names in lower case. database: of Flower's server. Raises UnknownKeysError.
    """
    try:
        key = base64.b64decode(headers[KEY], validate=True)
        signature = base64.b64decode(headers[SIGNATURE], validate=True)
        is_now = _is_now(headers[SIGNED_AT])
    except (KeyError, ValueError, TypeError):  # of a time without its zone
        return None
    if not is_now or len(key) > MAX_KEY_BYTES or not _is_registered(key, database):
        return None
    return key if _has_signed(key, headers[SIGNED_AT].encode(), signature) else None


def _is_now(signed_at: str) -> bool:
    age = (datetime.now(UTC) - datetime.fromisoformat(signed_at)).total_seconds()
    return EARLIEST_SECONDS < age < LATEST_SECONDS


def _is_registered(key: bytes, database: Path) -> bool:
    """Asked anew each time, which costs less than to check a signature: who is unregistered is out at once."""
    wanted = "SELECT 1 FROM node WHERE public_key = ? AND status != ?"
    try:
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True, timeout=0)) as opened:
            return opened.execute(wanted, (key, UNREGISTERED)).fetchone() is not None
    except sqlite3.Error as error:
        raise UnknownKeysError(f"{database}: {error}") from error


def _has_signed(key: bytes, message: bytes, signature: bytes) -> bool:
    """key: one that the server has registered, on a curve."""
    public = load_pem_public_key(key)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    try:
        public.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True
