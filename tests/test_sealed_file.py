"""fedmask.sealed_file: what was written is read back bit for bit; a file that was cut or altered is refused."""

from pathlib import Path

import numpy as np
import pytest

from fedmask.errors import FedmaskError
from fedmask.sealed_file import read_sealed, write_sealed

VECTORS = {
    "delta": np.array([0.1, -np.inf, np.nan, 3e-45], np.float32),
    "head/ab": np.zeros(3, np.float32),
    "none": np.zeros(0, np.float32),
}
FACTS = {"round": 3, "nested": [[1, "é", None, 0.1]], "zeros": "0" * 64}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_sealed(tmp_path / "a.safetensors", "checkpoint", VECTORS, FACTS)
    return tmp_path / "a.safetensors"


def test_what_was_written_is_read_back_bit_for_bit(path: Path) -> None:
    facts, vectors = read_sealed(path, "checkpoint")
    assert facts == FACTS
    assert {name: values.tobytes() for name, values in vectors.items()} == {
        name: values.tobytes() for name, values in VECTORS.items()
    }
    assert all(values.dtype == np.float32 for values in vectors.values())


def test_the_same_content_gives_the_same_bytes(path: Path) -> None:
    again = path.with_name("b.safetensors")
    write_sealed(again, "checkpoint", dict(reversed(VECTORS.items())), dict(reversed(FACTS.items())))
    assert again.read_bytes() == path.read_bytes()


def test_every_truncation_is_refused(path: Path) -> None:
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(FedmaskError, match="damaged"):
            read_sealed(path, "checkpoint")
    path.write_bytes(content + b"\0")
    with pytest.raises(FedmaskError, match="damaged"):
        read_sealed(path, "checkpoint")


@pytest.mark.parametrize("change", [1, 0x80, 0x29, 0xFF])  # 0x29 makes a tab of a blank: JSON that means the same
def test_every_altered_byte_is_refused(path: Path, change: int) -> None:
    content = path.read_bytes()
    for position in range(len(content)):
        altered = bytearray(content)
        altered[position] ^= change
        path.write_bytes(altered)
        with pytest.raises(FedmaskError, match="damaged"):
            read_sealed(path, "checkpoint")


def test_another_kind_of_file_is_refused_naming_both(path: Path) -> None:
    with pytest.raises(FedmaskError) as caught:
        read_sealed(path, "client-state")
    assert str(caught.value) == (
        f"{path}: not a fedmask client-state (format fedmask-checkpoint-1, expected fedmask-client-state-1)"
    )


@pytest.mark.parametrize("content", [b"", b"\x80\x05N.", b"\xff" * 40, b"[" * 100_000, b"{}" * 20])
def test_what_is_no_such_file_is_refused_in_one_line(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(FedmaskError) as caught:
        read_sealed(path, "checkpoint")
    assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(FedmaskError, match="cannot be read"):
        read_sealed(path, "checkpoint")
