"""Planes -> few bytes: asymmetric numeral systems (constriction) over a histogram that is sent along.

A plane of at most 8 bits is one of
    0 | packed symbols                                          where coding would not make it shorter
    1 | symbol                                                  where it is the only one
    2 | lowest symbol | highest | weights | words u32 | words   ANS; a weight a symbol of lowest..highest
and nothing at all where it has no symbols. Wider symbols are floating-point numbers: turned left by one bit, so that
the exponent stands whole in the highest byte, and then a plane for each byte, the lowest first.

A weight is one byte c: (8 + c mod 8) 2^(c div 8), 0 for c = 0: within 6% of the share it stands for, which costs less
than 0.001 bits a symbol. Sums of weights are exact in float64, so both ends have the same model on every machine; the
golden bytes of the tests stand for the version of constriction.
"""

import struct
from typing import Any

import constriction
import numpy as np
import numpy.typing as npt

from fedmask.errors import CodecError
from fedmask.wire.codecs.planes import Plane, Reader, Symbols, pack, unpack

_PACKED, _CONSTANT, _ANS = 0, 1, 2
_WORDS = struct.Struct("<I")
_Codes = npt.NDArray[np.uint8]


def encode(symbols: Symbols, bits: int) -> bytes:
    """Symbols below 2^bits -> bytes that end themselves, for who knows how many symbols there are."""
    return b"".join(_encode(column, min(bits, 8)) for column in _columns(symbols, bits))


def decode(reader: Reader, plane: Plane) -> Symbols:
    """The inverse of `encode`: allocates of the order of plane.count. Raises CodecError for anything else."""
    narrow = Plane(plane.count, min(plane.bits, 8))
    return _joined([_decode(reader, narrow) for _ in range(max(plane.bits // 8, 1))], plane.bits)


def _columns(symbols: Symbols, bits: int) -> list[Symbols]:
    """Symbols of at most 8 bits as they are; wider ones turned, byte by byte, the lowest first."""
    if bits <= 8:
        return [symbols]
    one = symbols.dtype.type(1)
    turned = symbols << one | symbols >> (symbols.dtype.type(bits) - one)
    return list(turned.astype(f"<u{bits // 8}").view(np.uint8).reshape(-1, bits // 8).T)


def _joined(columns: list[Symbols], bits: int) -> Symbols:
    """The inverse of `_columns`."""
    if bits <= 8:
        return columns[0]
    turned: Symbols = np.stack(columns, axis=1).reshape(-1).view(f"<u{bits // 8}")
    one = turned.dtype.type(1)
    return turned >> one | turned << (turned.dtype.type(bits) - one)


# ---- one plane of at most 8 bits -------------------------------------------------------------------------------------


def _encode(symbols: Symbols, bits: int) -> bytes:
    if not symbols.size:
        return b""
    counts = np.bincount(symbols)
    present = np.flatnonzero(counts)
    lowest, highest = int(present[0]), int(present[-1])
    if lowest == highest:
        return bytes([_CONSTANT, lowest])
    codes = _weight_codes(counts[lowest:])
    words = _ans_words(symbols.astype(np.int32) - lowest, codes)
    coded = bytes([_ANS, lowest, highest]) + codes.tobytes() + _WORDS.pack(words.size) + words.astype("<u4").tobytes()
    return min(bytes([_PACKED]) + pack(symbols, bits), coded, key=len)


def _decode(reader: Reader, plane: Plane) -> Symbols:
    if not plane.count:
        return np.empty(0, np.uint8)
    kind = reader.take(1)[0]
    if kind == _PACKED:
        return unpack(reader, plane)
    if kind not in (_CONSTANT, _ANS):
        raise CodecError(f"codec bytes: a plane of kind {kind}, known are 0, 1 and 2")
    lowest = reader.take(1)[0]
    highest = reader.take(1)[0] if kind == _ANS else lowest
    if highest >= 2**plane.bits or (kind == _ANS and lowest >= highest):
        raise CodecError(f"codec bytes: symbols {lowest} to {highest} in a plane of {plane.bits} bits")
    if kind == _CONSTANT:
        return np.full(plane.count, lowest, np.uint8)
    return _decode_ans(reader, plane.count, lowest, highest)


def _decode_ans(reader: Reader, count: int, lowest: int, highest: int) -> Symbols:
    codes = np.frombuffer(reader.take(highest - lowest + 1), np.uint8)
    (num_words,) = _WORDS.unpack(reader.take(_WORDS.size))
    words = np.frombuffer(reader.take(4 * num_words), "<u4").astype(np.uint32)
    if not codes.any():
        raise CodecError("codec bytes: a histogram without weights")
    try:
        coder = constriction.stream.stack.AnsCoder(words)
        symbols: npt.NDArray[np.int32] = coder.decode(_model(codes), count)
    except ValueError as error:
        raise CodecError(f"codec bytes: damaged entropy coding ({' '.join(str(error).split())})") from None
    if not coder.is_empty():
        raise CodecError("codec bytes: damaged entropy coding (words are left over)")
    return (symbols + lowest).astype(np.uint8)


def _ans_words(symbols: npt.NDArray[np.int32], codes: _Codes) -> npt.NDArray[np.uint32]:
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(symbols, _model(codes))
    words: npt.NDArray[np.uint32] = coder.get_compressed()
    return words


def _model(codes: _Codes) -> Any:
    """The distribution over the symbols; where a weight is 0 it keeps a small chance, so that every symbol can come."""
    weights = np.ldexp(8.0 + codes % 8, codes // 8) * (codes > 0)
    return constriction.stream.model.Categorical(weights, perfect=False)


def _weight_codes(counts: npt.NDArray[np.int64]) -> _Codes:
    """How often each symbol comes -> the code of the weight next to its share, the commonest near the top of codes."""
    fractions, exponents = np.frexp(counts / counts.max() * 2.0**34)
    # A fraction of 16/16 carries into the exponent: 8 (e + 1) + 0 is 8 e + 8.
    codes = 8 * (exponents - 4) + np.rint(16 * fractions).astype(int) - 8
    return np.where(counts > 0, np.clip(codes, 1, 255), 0).astype(np.uint8)
