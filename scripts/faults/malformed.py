"""Malformed replies to the messages of a round: a sound reply comes in, one that must not count goes out.

Seeded: the same generator gives the same bytes. For runs in which a delta travels. `KINDS` says of each kind under
which causes a server may count it; a kind is one function below and one line there.
"""

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedmask.wire.codecs import codec
from fedmask.wire.messages import FACTS, PAYLOAD, STYPE, Facts, facts_of, pack, payload_of
from fedmask.wire.vectors import Frame, frame, frames

Change = Callable[[Message, np.random.Generator], None]
"""Spoils a reply in place."""

_FRAME_HEADER_BYTES = 16
_BODY_LENGTH_AT = 12
_CODEC_HEADER_BYTES = 8
_SIZE_AT = 4
"""Where in a codec's header the number of values stands."""


@dataclass(frozen=True)
class Kind:
    """A way in which a reply can be wrong."""

    causes: frozenset[str]
    spoil: Change
    stage: str = "train"
    """The message that is answered so: train, evaluate, or query.mask, with which a client is set up again."""


def malformed(kind: str, request: Message, reply: Message, generator: np.random.Generator) -> Message:
    """The reply of this kind, one of KINDS; the sound one that comes in is used up.

    Raises what Flower raises over objects that it cannot unpack.
    """
    if kind == "error":
        length = int(generator.integers(0, 5000))
        reason = "".join(map(chr, generator.integers(1, 0x2FF, length)))
        return Message(Error(int(generator.integers(0, 8)), reason), reply_to=request)
    KINDS[kind].spoil(reply, generator)
    return _unpacked(reply, generator, OBJECTS[kind]) if kind in OBJECTS else reply


# ---- the payload -----------------------------------------------------------------------------------------------------


def rewrite(reply: Message, payload: bytes | None = None, facts: Facts | None = None) -> None:
    """Another payload or other facts in place of what the reply holds."""
    content = reply.content
    told = facts_of(content) if facts is None else facts
    reply.content = pack(payload_of(content) if payload is None else payload, told)


def _first(reply: Message) -> Frame:
    return frames(payload_of(reply.content))[0]


def _size(first: Frame) -> int:
    return int(struct.unpack_from("<I", first.body, _SIZE_AT)[0])


def _body_start(first: Frame) -> int:
    return _FRAME_HEADER_BYTES + len(first.name.encode())


def _random_bytes(reply: Message, generator: np.random.Generator) -> None:
    rewrite(reply, generator.bytes(int(generator.integers(1, 3000))))


def _truncated(reply: Message, generator: np.random.Generator) -> None:
    rewrite(reply, payload_of(reply.content)[: int(generator.integers(1, _first(reply).num_bytes))])


def _flipped_header(reply: Message, generator: np.random.Generator) -> None:
    """One byte of the frame's header, its name or the codec's header."""
    payload = bytearray(payload_of(reply.content))
    at = int(generator.integers(_body_start(_first(reply)) + _CODEC_HEADER_BYTES))
    payload[at] ^= int(generator.integers(1, 256))
    rewrite(reply, bytes(payload))


def _huge_claim(reply: Message, generator: np.random.Generator) -> None:
    payload, first = bytearray(payload_of(reply.content)), _first(reply)
    struct.pack_into("<I", payload, _body_start(first) + _SIZE_AT, 2**32 - 1 - int(generator.integers(1000)))
    if generator.random() < 0.5:
        struct.pack_into("<I", payload, _BODY_LENGTH_AT, 2**32 - 1)
    rewrite(reply, bytes(payload))


def _wrong_length(reply: Message, generator: np.random.Generator) -> None:
    first = _first(reply)
    other = max(0, _size(first) + int(generator.choice([-_size(first), -100, -1, 1, 100])))
    rewrite(reply, _delta(first.layout, np.zeros(other, np.float32)))


def _wrong_layout(reply: Message, generator: np.random.Generator) -> None:
    rewrite(reply, _delta(generator.bytes(8), np.zeros(_size(_first(reply)), np.float32)))


def _unknown_vector(reply: Message, generator: np.random.Generator) -> None:
    values = generator.standard_normal(int(generator.integers(1, 50))).astype(np.float32)
    spare = frame("spare", generator.bytes(8).hex(), codec("fp32").encode(values, 0))
    rewrite(reply, payload_of(reply.content) + spare)


def _twice(reply: Message, generator: np.random.Generator) -> None:
    rewrite(reply, payload_of(reply.content) * 2)


def _a_change(reply: Message, generator: np.random.Generator) -> None:
    """What only the server sends: a change of a version."""
    first = _first(reply)
    rewrite(reply, frame(first.name, first.layout.hex(), bytes(first.body), steps=int(generator.integers(1, 256))))


def _no_vector(reply: Message, generator: np.random.Generator) -> None:
    rewrite(reply, b"")


def _not_a_number(reply: Message, generator: np.random.Generator) -> None:
    _with_value(reply, generator, math.nan)


def _infinity(reply: Message, generator: np.random.Generator) -> None:
    _with_value(reply, generator, float(generator.choice([math.inf, -math.inf])))


def _huge_values(reply: Message, generator: np.random.Generator) -> None:
    _with_value(reply, generator, float(generator.choice([3e38, -3e38])))


def _with_value(reply: Message, generator: np.random.Generator, value: float) -> None:
    """One entry of the first vector, anywhere in it, and zeros elsewhere; in fp32, which alone can say it."""
    first = _first(reply)
    body = bytearray(codec("fp32").encode(np.zeros(_size(first), np.float32), 0))
    struct.pack_into("<f", body, _CODEC_HEADER_BYTES + 4 * int(generator.integers(_size(first))), value)
    rewrite(reply, frame(first.name, first.layout.hex(), bytes(body)) + payload_of(reply.content)[first.num_bytes :])


def _delta(layout: bytes, values: np.ndarray[Any, np.dtype[np.float32]]) -> bytes:
    return frame("delta", layout.hex(), codec("fp32").encode(values, 0))


def _another_array(reply: Message, generator: np.random.Generator) -> None:
    """Flower's own arrays in place of packed bytes, or two of ours."""
    ours = Array(dtype="uint8", shape=(3,), stype=STYPE, data=b"abc")
    floats = Array(generator.standard_normal(5))
    arrays = {PAYLOAD: floats} if generator.random() < 0.5 else {PAYLOAD: ours, "q": ours}
    reply.content = RecordDict({FACTS: pack(facts=facts_of(reply.content))[FACTS], PAYLOAD: ArrayRecord(arrays)})


def _another_record(reply: Message, generator: np.random.Generator) -> None:
    """The record's name on one of another type, or on another entry."""
    other = ConfigRecord({"q": generator.bytes(10)}) if generator.random() < 0.5 else MetricRecord({FACTS: 1})
    reply.content = RecordDict({FACTS: other})


# ---- the facts -------------------------------------------------------------------------------------------------------


def _bad_num_examples(reply: Message, generator: np.random.Generator) -> None:
    _with_fact(reply, generator, "num-examples", [-5, 0, 0.5, -0.0, math.nan, math.inf, 10**12, 1e300, [10], [], None])


def _bad_train_loss(reply: Message, generator: np.random.Generator) -> None:
    _with_fact(reply, generator, "train-loss", [-1, math.nan, -math.inf, 1e300, 10**39, [0.5] * 1000, None])


def _with_fact(reply: Message, generator: np.random.Generator, name: str, values: list[Any]) -> None:
    value = values[int(generator.integers(len(values)))]
    told = facts_of(reply.content) | {name: value}
    rewrite(reply, facts={key: fact for key, fact in told.items() if fact is not None})


def _facts_of_texts(reply: Message, generator: np.random.Generator) -> None:
    rewrite(reply, facts={"num-examples": "10", "train-loss": "low" * int(generator.integers(1, 1000))})


def _facts_of_nonsense(reply: Message, generator: np.random.Generator) -> None:
    """Bytes that are no JSON, or JSON that is too deep, too long, or no names with values."""
    told = [b"{", b"[" * 60_000, b"[1]", b'{"a":{}}', b'{"a":null}', b'"' + b"x" * 2**20, generator.bytes(40)]
    chosen = told[int(generator.integers(len(told)))]
    entries = {FACTS: b"\x01" + chosen, PAYLOAD: payload_of(reply.content)}
    reply.content = RecordDict({FACTS: ConfigRecord(entries)})


def _any_fact(*names: str) -> Change:
    """One of these facts is a value of a type that it cannot have."""

    def spoil(reply: Message, generator: np.random.Generator) -> None:
        value = OF_EVERY_TYPE[int(generator.integers(len(OF_EVERY_TYPE)))]
        rewrite(reply, facts=facts_of(reply.content) | {names[int(generator.integers(len(names)))]: value})

    return spoil


OF_EVERY_TYPE: list[Any] = [
    None,
    True,
    -1,
    10**400,
    math.nan,
    math.inf,
    "\ud800",
    "x" * 60_000,
    [],
    [2**64, 1],
    ["a"],
    {},
]
"""Values of every type that JSON has, none of which is a count, a number of examples, a digest or a name."""


# ---- Flower's objects ------------------------------------------------------------------------------------------------

Bend = Callable[[bytes, np.random.Generator], bytes]
"""What a client pushes in place of one object of its reply."""


def _cut(content: bytes, generator: np.random.Generator) -> bytes:
    return content[: int(generator.integers(1, len(content)))]


def _other_header(content: bytes, generator: np.random.Generator) -> bytes:
    """Another kind, other children or another length."""
    header, _, body = content.partition(b"\0")
    kind, children, length = header.split(b" ")
    parts = [[b"Massage", children, length], [kind, b"0" * 64, length], [kind, children, b"-1"], [kind, children, b""]]
    return b" ".join(parts[int(generator.integers(len(parts)))]) + b"\0" + body[: len(body) // 2]


def _junk(content: bytes, generator: np.random.Generator) -> bytes:
    header = content.partition(b"\0")[0].split(b" ")[:2]
    body = generator.bytes(int(generator.integers(1, 60)))
    return b" ".join([*header, str(len(body)).encode()]) + b"\0" + body


OBJECTS: Mapping[str, Bend] = {"object cut": _cut, "object header": _other_header, "object junk": _junk}


def _unpacked(reply: Message, generator: np.random.Generator, bend: Bend) -> Message:
    """The reply as a server's Flower unpacks it, with one of its objects bent. Raises as Flower does."""
    contents = {object_id: each.deflate() for object_id, each in get_all_nested_objects(reply).items()}
    names = sorted(contents)
    chosen = names[int(generator.integers(len(names)))]
    contents[chosen] = bend(contents[chosen], generator)
    return cast(Message, inflate_object_from_contents(reply.object_id, contents))


def _as_it_is(reply: Message, generator: np.random.Generator) -> None: ...


# ---- the message -----------------------------------------------------------------------------------------------------


def _empty(reply: Message, generator: np.random.Generator) -> None:
    reply.content = RecordDict()


def _always_lacking(reply: Message, generator: np.random.Generator) -> None:
    missing = int(generator.integers(9)) if generator.random() < 0.5 else "\x1b[2J" * int(generator.integers(1, 1000))
    rewrite(reply, b"", {"missing": missing})


def _other_round(reply: Message, generator: np.random.Generator) -> None:
    _with_metadata(reply, "group_id", str(generator.choice(["", "0", "999", "x", "-1"])))


def _other_run(reply: Message, generator: np.random.Generator) -> None:
    _with_metadata(reply, "run_id", int(generator.integers(2**62)))


def _other_message(reply: Message, generator: np.random.Generator) -> None:
    if generator.random() < 0.5:
        _with_metadata(reply, "reply_to_message_id", generator.bytes(32).hex())
    else:
        _with_metadata(reply, "message_type", "evaluate")


def _another_node(reply: Message, generator: np.random.Generator) -> None:
    _with_metadata(reply, "src_node_id", int(generator.integers(2**62)))


def _with_metadata(reply: Message, name: str, value: object) -> None:
    reply.metadata.__dict__[f"_{name}"] = value  # Flower lets nobody set it otherwise


DISAGREE = ("other-round", "other-run", "other-message", "other-sender")
"""Causes of a reply that is not the request's."""

KINDS: Mapping[str, Kind] = {
    "random bytes": Kind(frozenset({"undecodable"}), _random_bytes),
    "truncated": Kind(frozenset({"undecodable"}), _truncated),
    "flipped header": Kind(frozenset({"undecodable", "wrong-layout", "wrong-length", "not-finite"}), _flipped_header),
    "huge claim": Kind(frozenset({"undecodable", "wrong-length"}), _huge_claim),
    "wrong length": Kind(frozenset({"wrong-length"}), _wrong_length),
    "wrong layout": Kind(frozenset({"wrong-layout"}), _wrong_layout),
    "unknown vector": Kind(frozenset({"undecodable"}), _unknown_vector),
    "a change": Kind(frozenset({"undecodable"}), _a_change),
    "vector twice": Kind(frozenset({"undecodable"}), _twice),
    "no vector": Kind(frozenset({"missing-vector"}), _no_vector),
    "NaN": Kind(frozenset({"not-finite"}), _not_a_number),
    "infinity": Kind(frozenset({"not-finite"}), _infinity),
    "huge values": Kind(frozenset({"too-large"}), _huge_values),
    "another array": Kind(frozenset({"undecodable"}), _another_array),
    "another record": Kind(frozenset({"undecodable"}), _another_record),
    "num_examples": Kind(frozenset({"bad-num-examples"}), _bad_num_examples),
    "train_loss": Kind(frozenset({"bad-train-loss"}), _bad_train_loss),
    "facts of texts": Kind(frozenset({"bad-num-examples"}), _facts_of_texts),
    "facts of nonsense": Kind(frozenset({"undecodable"}), _facts_of_nonsense),
    "nothing": Kind(frozenset({"undecodable"}), _empty),
    "always lacking": Kind(frozenset({"still-missing"}), _always_lacking),
    "other round": Kind(frozenset({"other-round"}), _other_round),
    "other run": Kind(frozenset({"other-run"}), _other_run),
    "other message": Kind(frozenset({"other-message", "no-reply"}), _other_message),
    "another node": Kind(frozenset({"other-sender"}), _another_node),
    "fact of any type": Kind(
        frozenset({"undecodable", "bad-num-examples", "bad-train-loss", "still-missing"}),
        _any_fact("num-examples", "train-loss"),
    ),
    "counts of any type": Kind(
        frozenset({"undecodable", "not-finite", "negative-counts"}),
        _any_fact("counts", "own-counts", "majority-counts"),
        "evaluate",
    ),
    "nothing to score": Kind(frozenset({"undecodable"}), _empty, "evaluate"),
    "set-up of any type": Kind(
        frozenset({"no-reply"}),
        _any_fact("client-id", "task", "metric", "mask-digest", "head-layout", "num-classes", "data-digest"),
        "query.mask",
    ),
    "nothing at the set-up": Kind(frozenset({"no-reply"}), _empty, "query.mask"),
    **{
        name: Kind(
            frozenset({"undecodable", *DISAGREE, "client-error", "wrong-length", "wrong-layout", "not-finite"}),
            _as_it_is,
            stage,
        )
        for name, stage in zip(OBJECTS, ("train", "train", "evaluate"), strict=True)
    },
    "error": Kind(frozenset({"client-error"}), _empty),
}
"""By name, and for people."""
