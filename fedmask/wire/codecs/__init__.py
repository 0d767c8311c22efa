"""Codecs: vector (k,) float32 <-> bytes. A codec is one file with one `Codec` and one line here."""

from fedmask.wire.codecs.codec import Codec
from fedmask.wire.codecs.fp32 import FP32

CODECS: dict[str, Codec] = {codec.name: codec for codec in (FP32,)}
"""By name, as asked for in a configuration."""

CODECS_BY_NUMBER: dict[int, Codec] = {codec.number: codec for codec in CODECS.values()}
"""By number, as written on the wire."""

__all__ = ["CODECS", "CODECS_BY_NUMBER", "Codec"]
