"""scripts/fuzz_codecs.py: it sees what must not be, and then ends non-zero. The strings: tests/wire/codecs."""

from collections.abc import Callable

import numpy as np
import pytest

import fuzz_codecs


def raising(data: bytes, size: int) -> np.ndarray:
    raise IndexError("index 7 is out of bounds")


def not_finite(data: bytes, size: int) -> np.ndarray:
    return np.full(size, np.nan, np.float32)


def too_long(data: bytes, size: int) -> np.ndarray:
    return np.zeros(size + 1, np.float32)


def hoarding(data: bytes, size: int) -> np.ndarray:
    return np.zeros(1_000_000 + size, np.float32)[:size].copy()


class PanicException(BaseException):
    """As native code raises."""


def panicking(data: bytes, size: int) -> np.ndarray:
    raise PanicException("index out of range")


@pytest.mark.parametrize(
    ("decode", "what"),
    [
        (raising, "IndexError: index 7"),
        (panicking, "PanicException: index out of range"),
        (not_finite, "no finite float32"),
        (too_long, "no finite float32"),
        (hoarding, "bytes held for"),
    ],
)
def test_it_sees_what_must_not_be(
    decode: Callable[[bytes, int], np.ndarray], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz_codecs, "decode", decode)
    outcome = fuzz_codecs.fuzz("int4", 3, seed=0)
    assert len(outcome.failures) == 3
    assert what in outcome.failures[0]


def test_the_same_seed_gives_the_same_strings() -> None:
    def strings(seed: int) -> list[bytes]:
        generator = np.random.default_rng(seed)
        return [fuzz_codecs.hostile("topk:0.1:int8+entropy", 64, generator) for _ in range(50)]

    assert strings(1) == strings(1)
    assert strings(1) != strings(2)
    assert len(set(strings(1))) > 40


def test_a_table_and_zero_where_all_is_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz_codecs, "SPECS", ("int4", "sign+entropy"))
    assert fuzz_codecs.main(["strings=20"]) == 0
    printed = capsys.readouterr().out
    assert "int4" in printed
    assert "sign+entropy" in printed


def test_one_where_it_is_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def decode(data: bytes, size: int) -> np.ndarray:
        raise IndexError("a bug")

    monkeypatch.setattr(fuzz_codecs, "SPECS", ("int4",))
    monkeypatch.setattr(fuzz_codecs, "decode", decode)
    assert fuzz_codecs.main(["strings=1"]) == 1
    assert "int4: IndexError: a bug of " in capsys.readouterr().out


@pytest.mark.parametrize("argument", ["string=5", "strings=few", "strings=-1", "5"])
def test_arguments_without_sense(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz_codecs.main([argument]) == 2
    assert capsys.readouterr().err == f"{argument}: must be strings=NUMBER or seed=NUMBER\n"
