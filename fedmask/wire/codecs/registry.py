"""The codecs of values, by name and by number. A new one is a file and a line here."""

from fedmask.wire.codecs.floats import BF16, FP16, FP32
from fedmask.wire.codecs.integers import INT4, INT8
from fedmask.wire.codecs.sign import SIGN
from fedmask.wire.codecs.value_codec import ValueCodec

VALUE_CODECS: dict[str, ValueCodec] = {each.name: each for each in (FP32, FP16, BF16, INT8, INT4, SIGN)}
"""By name, as a spec says it."""

VALUE_CODECS_BY_NUMBER: dict[int, ValueCodec] = {each.number: each for each in VALUE_CODECS.values()}
"""By number, as written on the wire."""
assert len(VALUE_CODECS_BY_NUMBER) == len(VALUE_CODECS), "two codecs have one number"

TOPK = 255
"""The number of top-k on the wire, which is no codec of values: it says which travel."""
