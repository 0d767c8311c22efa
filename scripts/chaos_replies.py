"""Malformed replies to train messages: a sound reply comes in, one that must not count goes out.

Seeded: the same generator gives the same bytes. For runs in which a delta travels. `KINDS` says of each kind under
which causes a server may count it; a kind is one function below and one line there.
"""

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedmask.wire.messages import CONFIG, METRICS, PAYLOAD, STYPE, metrics_of, pack, payload_of
from fedmask.wire.vectors import NamedVector, frame

Change = Callable[[Message, np.random.Generator], None]
"""Spoils a reply in place."""

_FIRST_HEADER_BYTES = 28
_CODEC_HEADER_BYTES = 8
_SIZE_AT, _LAYOUT_AT = 4, 8


@dataclass(frozen=True)
class Kind:
    """A way in which a reply can be wrong."""

    causes: frozenset[str]
    spoil: Change


def malformed(kind: str, request: Message, reply: Message, generator: np.random.Generator) -> Message:
    """The reply of this kind, one of KINDS; the sound one that comes in is used up."""
    if kind == "error":
        length = int(generator.integers(0, 5000))
        reason = "".join(map(chr, generator.integers(1, 0x2FF, length)))
        return Message(Error(int(generator.integers(0, 8)), reason), reply_to=request)
    KINDS[kind].spoil(reply, generator)
    return reply


# ---- the payload -----------------------------------------------------------------------------------------------------


def _with_payload(reply: Message, payload: bytes) -> None:
    metrics = metrics_of(reply.content)
    reply.content = pack(payload)
    reply.content[METRICS] = metrics


def _random_bytes(reply: Message, generator: np.random.Generator) -> None:
    _with_payload(reply, generator.bytes(int(generator.integers(1, 3000))))


def _truncated(reply: Message, generator: np.random.Generator) -> None:
    payload = payload_of(reply.content)
    _with_payload(reply, payload[: int(generator.integers(1, _first_frame_bytes(payload)))])


def _flipped_header(reply: Message, generator: np.random.Generator) -> None:
    payload = bytearray(payload_of(reply.content))
    payload[int(generator.integers(_body_start(payload)))] ^= int(generator.integers(1, 256))
    _with_payload(reply, bytes(payload))


def _huge_claim(reply: Message, generator: np.random.Generator) -> None:
    payload = bytearray(payload_of(reply.content))
    struct.pack_into("<I", payload, _SIZE_AT, 2**32 - 1 - int(generator.integers(1000)))
    if generator.random() < 0.5:
        struct.pack_into("<I", payload, _FIRST_HEADER_BYTES - 4, 2**32 - 1)
    _with_payload(reply, bytes(payload))


def _wrong_length(reply: Message, generator: np.random.Generator) -> None:
    payload = payload_of(reply.content)
    size = struct.unpack_from("<I", payload, _SIZE_AT)[0]
    other = max(0, size + int(generator.choice([-size, -100, -1, 1, 100])))
    _with_payload(reply, _delta_frame(_layout(payload), other))


def _wrong_layout(reply: Message, generator: np.random.Generator) -> None:
    size = struct.unpack_from("<I", payload_of(reply.content), _SIZE_AT)[0]
    _with_payload(reply, _delta_frame(generator.bytes(16).hex(), size))


def _unknown_vector(reply: Message, generator: np.random.Generator) -> None:
    values = generator.standard_normal(int(generator.integers(1, 50))).astype(np.float32)
    _with_payload(reply, payload_of(reply.content) + frame(NamedVector("spare", generator.bytes(16).hex(), values)))


def _twice(reply: Message, generator: np.random.Generator) -> None:
    _with_payload(reply, payload_of(reply.content) * 2)


def _no_vector(reply: Message, generator: np.random.Generator) -> None:
    _with_payload(reply, b"")


def _not_a_number(reply: Message, generator: np.random.Generator) -> None:
    _with_value(reply, generator, math.nan)


def _infinity(reply: Message, generator: np.random.Generator) -> None:
    _with_value(reply, generator, float(generator.choice([math.inf, -math.inf])))


def _huge_values(reply: Message, generator: np.random.Generator) -> None:
    _with_value(reply, generator, float(generator.choice([3e38, -3e38])))


def _with_value(reply: Message, generator: np.random.Generator, value: float) -> None:
    """One entry of the first vector, anywhere in it; it travels as fp32."""
    payload = bytearray(payload_of(reply.content))
    size = struct.unpack_from("<I", payload, _SIZE_AT)[0]
    first = _body_start(payload) + _CODEC_HEADER_BYTES
    struct.pack_into("<f", payload, first + 4 * int(generator.integers(size)), value)
    _with_payload(reply, bytes(payload))


def _another_array(reply: Message, generator: np.random.Generator) -> None:
    """Flower's own arrays in place of packed bytes, or two of ours."""
    ours = Array(dtype="uint8", shape=(3,), stype=STYPE, data=b"abc")
    floats = Array(generator.standard_normal(5))
    reply.content[PAYLOAD] = ArrayRecord({"p": floats} if generator.random() < 0.5 else {"p": ours, "q": ours})


def _another_record(reply: Message, generator: np.random.Generator) -> None:
    """The payload's name on a record of another type."""
    other = ConfigRecord({"p": generator.bytes(10)}) if generator.random() < 0.5 else MetricRecord({"p": 1})
    del reply.content[PAYLOAD]
    reply.content[PAYLOAD] = other


def _body_start(payload: bytes | bytearray) -> int:
    return _FIRST_HEADER_BYTES + payload[3]


def _first_frame_bytes(payload: bytes) -> int:
    return _body_start(payload) + int(struct.unpack_from("<I", payload, _FIRST_HEADER_BYTES - 4)[0])


def _layout(payload: bytes) -> str:
    return payload[_LAYOUT_AT : _LAYOUT_AT + 16].hex()


def _delta_frame(layout: str, size: int) -> bytes:
    return frame(NamedVector("delta", layout, np.zeros(size, np.float32)))


# ---- the metrics -----------------------------------------------------------------------------------------------------


def _bad_num_examples(reply: Message, generator: np.random.Generator) -> None:
    _with_metric(
        reply, generator, "num-examples", [-5, 0, 0.5, -0.0, math.nan, math.inf, 10**12, 1e300, [10], [], None]
    )


def _bad_train_loss(reply: Message, generator: np.random.Generator) -> None:
    _with_metric(reply, generator, "train-loss", [-1, math.nan, -math.inf, 1e300, 10**12, [0.5] * 1000, None])


def _with_metric(reply: Message, generator: np.random.Generator, name: str, values: list[object]) -> None:
    value = values[int(generator.integers(len(values)))]
    kept = dict(metrics_of(reply.content)) | {name: value}
    reply.content[METRICS] = MetricRecord({key: entry for key, entry in kept.items() if entry is not None})  # type: ignore[misc]


def _metrics_of_texts(reply: Message, generator: np.random.Generator) -> None:
    del reply.content[METRICS]
    reply.content[METRICS] = ConfigRecord({"num-examples": 10, "train-loss": "low" * int(generator.integers(1, 1000))})


# ---- the message -----------------------------------------------------------------------------------------------------


def _empty(reply: Message, generator: np.random.Generator) -> None:
    reply.content = RecordDict()


def _always_lacking(reply: Message, generator: np.random.Generator) -> None:
    reply.content = pack()
    missing = int(generator.integers(9)) if generator.random() < 0.5 else "\x1b[2J" * int(generator.integers(1, 1000))
    reply.content[CONFIG] = ConfigRecord({"missing": missing})


def _other_round(reply: Message, generator: np.random.Generator) -> None:
    _with_metadata(reply, "group_id", str(generator.choice(["", "0", "999", "x", "-1"])))


def _other_run(reply: Message, generator: np.random.Generator) -> None:
    _with_metadata(reply, "run_id", int(generator.integers(2**62)))


def _other_message(reply: Message, generator: np.random.Generator) -> None:
    if generator.random() < 0.5:
        _with_metadata(reply, "reply_to_message_id", generator.bytes(32).hex())
    else:
        _with_metadata(reply, "message_type", "evaluate")


def _unknown_node(reply: Message, generator: np.random.Generator) -> None:
    _with_metadata(reply, "src_node_id", int(generator.integers(2**62)))


def _with_metadata(reply: Message, name: str, value: object) -> None:
    reply.metadata.__dict__[f"_{name}"] = value  # Flower lets nobody set it otherwise


KINDS: Mapping[str, Kind] = {
    "random bytes": Kind(frozenset({"undecodable"}), _random_bytes),
    "truncated": Kind(frozenset({"undecodable"}), _truncated),
    "flipped header": Kind(frozenset({"undecodable", "wrong-layout", "wrong-length"}), _flipped_header),
    "huge claim": Kind(frozenset({"undecodable", "wrong-length"}), _huge_claim),
    "wrong length": Kind(frozenset({"wrong-length"}), _wrong_length),
    "wrong layout": Kind(frozenset({"wrong-layout"}), _wrong_layout),
    "unknown vector": Kind(frozenset({"undecodable"}), _unknown_vector),
    "vector twice": Kind(frozenset({"undecodable"}), _twice),
    "no vector": Kind(frozenset({"missing-vector"}), _no_vector),
    "NaN": Kind(frozenset({"not-finite"}), _not_a_number),
    "infinity": Kind(frozenset({"not-finite"}), _infinity),
    "huge values": Kind(frozenset({"too-large"}), _huge_values),
    "another array": Kind(frozenset({"undecodable"}), _another_array),
    "another record": Kind(frozenset({"missing-vector"}), _another_record),
    "num_examples": Kind(frozenset({"bad-num-examples"}), _bad_num_examples),
    "train_loss": Kind(frozenset({"bad-train-loss"}), _bad_train_loss),
    "metrics of texts": Kind(frozenset({"bad-num-examples"}), _metrics_of_texts),
    "nothing": Kind(frozenset({"missing-vector"}), _empty),
    "always lacking": Kind(frozenset({"still-missing"}), _always_lacking),
    "other round": Kind(frozenset({"other-round"}), _other_round),
    "other run": Kind(frozenset({"other-run"}), _other_run),
    "other message": Kind(frozenset({"other-message"}), _other_message),
    "unknown node": Kind(frozenset({"unknown-node", "no-reply"}), _unknown_node),
    "error": Kind(frozenset({"client-error"}), _empty),
}
"""By name, and for people."""
