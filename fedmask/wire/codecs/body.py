"""Values and the planes that travel: a header of 8 bytes, and the planes behind it, packed or entropy-coded.

version u8 | codec u8 | form u8 | log2 of the block u8 | k u32 | planes , little-endian
"""

import struct
from typing import NamedTuple

import numpy as np

from fedmask.errors import CodecError
from fedmask.wire.codecs import entropy, planes
from fedmask.wire.codecs.planes import Reader
from fedmask.wire.codecs.registry import TOPK, VALUE_CODECS_BY_NUMBER
from fedmask.wire.codecs.value_codec import ValueCodec, Values

VERSION = 1
PACKED, CODED = 0, 1
"""Forms of the planes."""

_HEADER = struct.Struct("<BBBBI")
_MAX_LOG2_BLOCK = 16


class Header(NamedTuple):
    codec: int
    form: int
    log2_block: int
    size: int

    def to_bytes(self) -> bytes:
        return _HEADER.pack(VERSION, *self)


def read_header(reader: Reader, size: int) -> Header:
    """Raises CodecError for one that is not known, or is of another number of values."""
    version, *rest = _HEADER.unpack(reader.take(_HEADER.size))
    header = Header(*rest)
    if version != VERSION or header.form not in (PACKED, CODED) or header.log2_block > _MAX_LOG2_BLOCK:
        numbers = f"version {version}, form {header.form}, block 2^{header.log2_block}"
        raise CodecError(f"codec bytes: {numbers} are not all known; is the other end of another version?")
    if header.codec != TOPK and header.codec not in VALUE_CODECS_BY_NUMBER:
        raise CodecError(f"codec bytes: codec {header.codec} is not known; is the other end of another version?")
    if header.size != size:
        raise CodecError(f"codec bytes: they hold {header.size:,} values, {size:,} are expected", cause="wrong-length")
    return header


def encode(codec: ValueCodec, form: int, values: Values, seed: int) -> bytes:
    """Finite values (k,) -> header and planes."""
    write = entropy.encode if form == CODED else planes.pack
    header = Header(codec.number, form, codec.block.bit_length() - 1, values.size).to_bytes()
    symbols = codec.to_planes(values, codec.block, seed)
    bits = [plane.bits for plane in codec.layout(values.size, codec.block)]
    return b"".join([header, *map(write, symbols, bits)])


def decode(header: Header, reader: Reader) -> Values:
    """All that follows a header of a codec of values -> (k,), finite. Raises CodecError."""
    codec, block = VALUE_CODECS_BY_NUMBER.get(header.codec), 2**header.log2_block
    if codec is None:
        raise CodecError("codec bytes: a top-k stands inside a top-k")
    if (codec.block == 1) != (block == 1):
        raise CodecError(f"codec bytes: blocks of {block}, codec {codec.name} has {codec.block}")
    read = entropy.decode if header.form == CODED else planes.unpack
    symbols = [read(reader, plane) for plane in codec.layout(header.size, block)]
    reader.finish()
    values = codec.from_planes(symbols, header.size, block)
    if not np.isfinite(values).all():
        bad = np.count_nonzero(~np.isfinite(values))
        raise CodecError(f"codec bytes: {bad:,} of {values.size:,} values are not finite", cause="not-finite")
    return values
