"""Codecs: vector (k,) float32 <-> bytes that say themselves how they are read. Knows nothing of Flower.

    data = codec("topk:0.05:int4+entropy").encode(values, seed)
    values = decode(data, len(values))

In the order of the data:
    specs.py        a spec, such as int4+entropy -> Codec; the one decoder
    topk.py         which entries travel, where not all do
    floats.py, integers.py, sign.py   values -> planes, which are arrays of small symbols (`planes.py`), and back
    entropy.py      planes -> few bytes, where asked for
    body.py         the header of 8 bytes, and the planes behind it
A codec is one file with one `ValueCodec` and one line in `registry.py`.
"""

from fedmask.errors import CodecError
from fedmask.wire.codecs.specs import Codec, codec, decode

__all__ = ["Codec", "CodecError", "codec", "decode"]
