"""Bytes that no encoder wrote, at the one decoder: each must end in CodecError or in a finite vector of its length.

    python scripts/fuzz_codecs.py [strings=10000] [seed=0]

For every codec, so many strings: what it wrote of a random vector, with bits flipped, cut, lengthened, spliced with
another, its lengths made huge; and random bytes behind its header, or alone. Prints a table, and ends with 1 where the
decoder raised anything else, returned anything else, or held more memory than the vector and the bytes account for.
"""

import preparation  # noqa: F401

# isort: split
import struct
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.table import Table

from fedmask.errors import CodecError, FedmaskError
from fedmask.runs.command import asks_for_help, own_arguments
from fedmask.runs.console import console
from fedmask.wire.codecs import codec, decode

NAMES = ("fp32", "fp16", "bf16", "int8", "int4", "sign")
PLAIN = (*NAMES, *(f"topk:0.1:{name}" for name in NAMES))
SPECS = (*PLAIN, *(f"{spec}+entropy" for spec in PLAIN))
SIZES = (1, 2, 5, 64, 257, 1000)
HEADER_BYTES = 8

ALLOWED_BYTES_A_VALUE = 64
SPARE_BYTES = 64 * 1024


def main(arguments: list[str]) -> int:
    if asks_for_help(arguments):
        print(__doc__)
        return 0
    try:
        num_strings, seed = read_request(arguments)
    except FedmaskError as error:
        print(error, file=sys.stderr)
        return 2
    found = {spec: fuzz(spec, num_strings, seed) for spec in SPECS}
    console.print(_table(found))
    for spec, outcome in found.items():
        for failure in outcome.failures:
            console.print(f"{spec}: {failure}", markup=False)
    return 1 if any(outcome.failures for outcome in found.values()) else 0


def read_request(arguments: Sequence[str]) -> tuple[int, int]:
    """Strings a codec, and the seed. Raises FedmaskError for an argument that is unknown or no number."""
    own, others = own_arguments(arguments, ("strings", "seed"))
    wrong = [*others, *(f"{key}={value}" for key, value in own.items() if not value.isdecimal())]
    if wrong:
        raise FedmaskError(f"{wrong[0]}: must be strings=NUMBER or seed=NUMBER")
    return int(own.get("strings", 10_000)), int(own.get("seed", 0))


@dataclass
class Outcome:
    """Of one codec."""

    valid: int = 0
    """Strings that were a vector all the same."""
    rejected: int = 0
    failures: list[str] = field(default_factory=list)
    """What must not be, one line each."""


def fuzz(spec: str, num_strings: int, seed: int) -> Outcome:
    """The same seed gives the same strings."""
    generator = np.random.default_rng([seed, *spec.encode()])
    outcome = Outcome()
    was_tracing = tracemalloc.is_tracing()
    tracemalloc.start()
    for _ in range(num_strings):
        size = int(generator.choice(SIZES))
        _judge(hostile(spec, size, generator), size, outcome)
    if not was_tracing:
        tracemalloc.stop()
    return outcome


def _judge(data: bytes, size: int, outcome: Outcome) -> None:
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    try:
        values = decode(data, size)
    except CodecError:  # one line, as every error of ours
        outcome.rejected += 1
    except BaseException as error:  # a panic of native code is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome.failures.append(f"{type(error).__name__}: {error} of {data.hex()} for {size}")
    else:
        outcome.valid += 1
        if values.shape != (size,) or values.dtype != np.float32 or not np.isfinite(values).all():
            outcome.failures.append(f"no finite float32 of shape ({size},) of {data.hex()}")
    held = tracemalloc.get_traced_memory()[1] - before
    if held > ALLOWED_BYTES_A_VALUE * (size + len(data)) + SPARE_BYTES:
        outcome.failures.append(f"{held:,} bytes held for {size} values of {data.hex()}")


# ---- the strings -----------------------------------------------------------------------------------------------------


def hostile(spec: str, size: int, generator: np.random.Generator) -> bytes:
    """One string for a decoder that expects `size` values."""
    change = CHANGES[int(generator.integers(len(CHANGES)))]
    return change(_sound(spec, size, generator), generator)


def _sound(spec: str, size: int, generator: np.random.Generator) -> bytes:
    values = generator.standard_normal(size) * 10.0 ** generator.integers(-45, 38)
    return codec(spec).encode(values.astype(np.float32), int(generator.integers(2**32)))


def _flipped(data: bytes, generator: np.random.Generator) -> bytes:
    """One to eight bits."""
    changed = bytearray(data)
    for bit in generator.integers(8 * len(data), size=generator.integers(1, 9)).tolist():
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _overwritten(data: bytes, generator: np.random.Generator) -> bytes:
    """One byte behind the header, where kinds, histograms and lengths stand."""
    changed = bytearray(data)
    changed[int(generator.integers(min(HEADER_BYTES, len(data) - 1), len(data)))] = int(generator.integers(256))
    return bytes(changed)


def _cut(data: bytes, generator: np.random.Generator) -> bytes:
    return data[: int(generator.integers(len(data)))]


def _lengthened(data: bytes, generator: np.random.Generator) -> bytes:
    return data + generator.bytes(int(generator.integers(1, 20)))


def _with_hole(data: bytes, generator: np.random.Generator) -> bytes:
    start, end = sorted(generator.integers(len(data) + 1, size=2).tolist())
    return data[:start] + data[end:]


def _with_number(data: bytes, generator: np.random.Generator) -> bytes:
    """A length of four bytes that is huge, or nearly so, anywhere."""
    changed = bytearray(data + bytes(4))
    number = int(generator.choice([0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1]))
    struct.pack_into("<I", changed, int(generator.integers(len(data))), number)
    return bytes(changed[: len(data)])


def _random_behind_header(data: bytes, generator: np.random.Generator) -> bytes:
    return data[:HEADER_BYTES] + generator.bytes(int(generator.integers(2 * len(data))))


def _random(data: bytes, generator: np.random.Generator) -> bytes:
    return generator.bytes(int(generator.integers(2 * len(data))))


CHANGES: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (
    _flipped,
    _overwritten,
    _cut,
    _lengthened,
    _with_hole,
    _with_number,
    _random_behind_header,
    _random,
)


def _table(found: dict[str, Outcome]) -> Table:
    table = Table("codec", title="strings that no encoder wrote", title_justify="left")
    for column in ("rejected", "a vector all the same", "failures"):
        table.add_column(column, justify="right")
    for spec, outcome in found.items():
        table.add_row(spec, *map(str, (outcome.rejected, outcome.valid, len(outcome.failures))))
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
