"""A spec -> a Codec; and the one decoder, which needs no spec.

A spec is NAME, topk:FRACTION or topk:FRACTION:NAME, and `+entropy` behind it where the symbols shall be entropy-coded:
int4+entropy, topk:0.05, topk:0.01:sign. NAME is one of `registry`; without it the values of top-k travel as fp16.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fedmask.errors import FedmaskError
from fedmask.wire.codecs import body, topk
from fedmask.wire.codecs.body import CODED, PACKED
from fedmask.wire.codecs.planes import Reader
from fedmask.wire.codecs.registry import TOPK, VALUE_CODECS
from fedmask.wire.codecs.value_codec import ValueCodec, Values

_TOPK_VALUES = "fp16"
_ENTROPY = "+entropy"
_MAX_VALUES = 2**32 - 1


@dataclass(frozen=True)
class Codec:
    """How vectors become bytes; `decode` reads what any of them wrote."""

    spec: str
    """As asked for."""
    _values: ValueCodec
    _fraction: float | None
    """Of the entries that travel; None where all do."""
    _form: int

    @property
    def is_lossless(self) -> bool:
        """Whether every vector comes back bit for bit."""
        return self._values.is_lossless and self._fraction is None

    def encode(self, values: Values, seed: int) -> bytes:
        """float32 (k,) -> bytes.

        seed: of stochastic rounding, in 0..2^63 - 1; the same values and seed give the same bytes on every machine.
        Raises FedmaskError for values that are not finite or not of shape (k,), k below 2^32.
        """
        values = _checked(values)
        if self._fraction is None:
            return body.encode(self._values, self._form, values, seed)
        return topk.encode(self._fraction, self._values, self._form, values, seed)


@lru_cache(maxsize=64)
def codec(spec: str) -> Codec:
    """Raises FedmaskError for a spec that says nothing."""
    base = spec.removesuffix(_ENTROPY)
    form = PACKED if base == spec else CODED
    match base.split(":"):
        case [name] if name in VALUE_CODECS:
            return Codec(spec, VALUE_CODECS[name], None, form)
        case ["topk", fraction]:
            return Codec(spec, VALUE_CODECS[_TOPK_VALUES], _read_fraction(spec, fraction), form)
        case ["topk", fraction, name] if name in VALUE_CODECS:
            return Codec(spec, VALUE_CODECS[name], _read_fraction(spec, fraction), form)
    names = ", ".join(VALUE_CODECS)
    raise FedmaskError(
        f"codec {spec!r}: there is no such codec; known are {names}, topk:FRACTION and topk:FRACTION:NAME with NAME one"
        f" of these, each with {_ENTROPY} behind it or without"
    )


def decode(data: bytes | memoryview, size: int) -> Values:
    """What any codec wrote -> float32 (size,), finite, a new array.

    The bytes may come from anywhere: allocates of the order of `size` and `len(data)`, whatever they claim. Raises
    CodecError where they are not `size` finite values.
    """
    reader = Reader(data)
    header = body.read_header(reader, size)
    return topk.decode(header, reader) if header.codec == TOPK else body.decode(header, reader)


def _checked(values: Values) -> Values:
    if values.ndim != 1 or values.size > _MAX_VALUES:
        raise FedmaskError(
            f"codec: values of shape {values.shape}; one dimension of at most {_MAX_VALUES:,} is encoded"
        )
    values = np.ascontiguousarray(values, np.float32)
    is_finite = np.isfinite(values)
    if not is_finite.all():
        first = int(np.argmin(is_finite))
        bad = values.size - np.count_nonzero(is_finite)
        raise FedmaskError(
            f"codec: {bad:,} of {values.size:,} values are not finite, the first is number {first}; they cannot travel"
        )
    return values


def _read_fraction(spec: str, text: str) -> float:
    try:
        fraction = float(text)
    except ValueError:
        fraction = math.nan
    if not 0 < fraction <= 1:
        raise FedmaskError(f"codec {spec!r}: the fraction {text!r} must be a number above 0 and at most 1")
    return fraction
