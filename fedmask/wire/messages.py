"""Vectors <-> Flower records, and the bytes of a whole message. The one module of the library that knows Flower.

A message's content has at most three records: `payload` (one Flower array: the packed bytes of all vectors, or of the
mask and settings), `config` (small facts: round, split, version) and `metrics` (numbers that come back).
"""

import json
import traceback
from collections.abc import Iterable, Mapping, Sequence

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE, ErrorCode
from flwr.common.serde_utils import metadata_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from fedmask.errors import RejectedMessage

PAYLOAD, CONFIG, METRICS = "payload", "config", "metrics"
STYPE = "fedmask.frames"
_RECORD_KINDS = {PAYLOAD: ArrayRecord, CONFIG: ConfigRecord, METRICS: MetricRecord}
_ARRAY = "p"
"""The payload's name in its record: short, for it travels."""
_ID = "0" * 64
"""As long as the ids by which Flower's objects name each other."""

ConfigValue = int | float | str | bool
MetricValue = int | float | Sequence[int] | Sequence[float]


def pack(
    payload: bytes = b"",
    config: Mapping[str, ConfigValue] | None = None,
    metrics: Mapping[str, MetricValue] | None = None,
) -> RecordDict:
    """The content of a message; a part that is empty or None takes no bytes."""
    content = RecordDict()
    if payload:
        array = Array(dtype="uint8", shape=(len(payload),), stype=STYPE, data=payload)
        content[PAYLOAD] = ArrayRecord({_ARRAY: array})
    if config is not None:
        content[CONFIG] = ConfigRecord(dict(config))
    if metrics is not None:
        content[METRICS] = MetricRecord({name: _plain(value) for name, value in metrics.items()})
    return content


def _plain(value: MetricValue) -> int | float | list[int] | list[float]:
    return value if isinstance(value, (int, float)) else list(value)


def payload_of(content: RecordDict) -> bytes:
    """The packed bytes, empty where there are none. Raises RejectedMessage for anything but one byte array."""
    record = content.get(PAYLOAD)
    if not isinstance(record, ArrayRecord):
        return b""
    arrays = list(record.values())
    if len(arrays) != 1 or arrays[0].stype != STYPE:
        raise RejectedMessage(
            "undecodable", f"the payload must be one array of stype {STYPE}, found {[array.stype for array in arrays]}"
        )
    return arrays[0].data


def config_of(content: RecordDict) -> ConfigRecord:
    """The small facts; empty where the message carries none."""
    record = content.get(CONFIG)
    return record if isinstance(record, ConfigRecord) else ConfigRecord()


def whole_number(config: ConfigRecord, key: str) -> int:
    """Raises RejectedMessage where the fact is missing or of another type."""
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise RejectedMessage("undecodable", f"{key} is {value!r}, expected a whole number")
    return value


def word(config: ConfigRecord, key: str) -> str:
    """Raises RejectedMessage where the fact is missing or of another type."""
    value = config.get(key)
    if not isinstance(value, str):
        raise RejectedMessage("undecodable", f"{key} is {value!r}, expected a text")
    return value


def metrics_of(content: RecordDict) -> MetricRecord:
    """The numbers that come back; empty where the message carries none."""
    record = content.get(METRICS)
    return record if isinstance(record, MetricRecord) else MetricRecord()


def error_reply(message: Message, error: Exception) -> Message:
    """The reply of a client that raised, the cause on one line: `ValueError: text (function, line 7)`."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    reason = f"{type(error).__name__}: {' '.join(str(error).split())} ({where.name}, line {where.lineno})"
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


def wire_bytes(message: Message) -> int:
    """Bytes of a message as Flower serialises it: every object of it, deflated. HTTP and TLS come on top.

    Computed for the messages that `pack` makes: Flower would hash every payload, which costs more than all else that
    happens to it. Of any other message it is Flower's own count.
    """
    payload = _single_payload(message)
    if payload is None:
        return sum(len(part.deflate()) for part in get_all_nested_objects(message).values())
    total = _object_bytes("Message", 1, _envelope(message).ByteSize())
    total += _object_bytes("RecordDict", len(message.content), len(_references(message.content)))
    for name, record in message.content.items():
        total += _payload_record_bytes(len(payload)) if name == PAYLOAD else len(record.deflate())
    return total


def _single_payload(message: Message) -> bytes | None:
    """The payload, empty where there is none; None for a message that `pack` does not make."""
    if message.has_error():
        return None
    content = message.content
    if not all(isinstance(record, _RECORD_KINDS.get(name, ())) for name, record in content.items()):
        return None
    arrays = content.get(PAYLOAD)
    if not isinstance(arrays, ArrayRecord):  # checked above: it is one, or is not there
        return b""
    if list(arrays) != [_ARRAY]:
        return None
    array = arrays[_ARRAY]
    is_ours = (array.dtype, tuple(array.shape), array.stype) == ("uint8", (len(array.data),), STYPE)
    return array.data if is_ours and 0 < len(array.data) <= FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE else None


def _envelope(message: Message) -> ProtoMessage:
    """What Flower writes of a message beside its content; the message's own id is no part of it."""
    metadata = metadata_to_proto(message.metadata)
    metadata.message_id = ""
    return ProtoMessage(metadata=metadata)


def _references(names: Iterable[str]) -> bytes:
    """A record of records: the name of each and its id."""
    return json.dumps(dict.fromkeys(names, _ID)).encode()


def _payload_record_bytes(length: int) -> int:
    """An array record, its array and that one's data."""
    facts = {"dtype": "uint8", "shape": (length,), "stype": STYPE, "arraychunk_ids": [0]}
    return (
        _object_bytes("ArrayRecord", 1, len(_references([_ARRAY])))
        + _object_bytes("Array", 1, len(json.dumps(facts).encode()))
        + _object_bytes("ArrayChunk", 0, length)
    )


def _object_bytes(kind: str, num_children: int, body: int) -> int:
    """An object of Flower's: its kind, the ids of its children, the length of its body, and the body."""
    return len(f"{kind} {','.join([_ID] * num_children)} {body}") + 1 + body
