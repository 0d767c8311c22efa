"""Facts and vectors <-> Flower records, and the bytes of a whole message. The one module that knows Flower.

A message's content is one record of packed bytes:  version u8 | length of facts u24 | facts, JSON | payload , where the
facts are small (round, version, counts, a loss) and the payload is frames of vectors, or the mask and settings. Up to
MAX_IN_CONFIG bytes stand in a Flower ConfigRecord: an object and its name cost Flower about 170 bytes, and an array is
three objects. Longer ones stand in an array, which Flower cuts into chunks.
"""

import json
import struct
import traceback
from collections.abc import Iterable, Mapping, Sequence

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE, ErrorCode
from flwr.common.serde_utils import metadata_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from fedmask.errors import RejectedMessage

RECORD = "f"
"""The record's name, and that of its one entry: short, for they travel."""
STYPE = "fedmask"
MAX_IN_CONFIG = 2**20
MAX_FACTS_BYTES = 2**16
"""What no message of ours comes near."""
_VERSION = 1
_HEADER = struct.Struct("<I")
"""version in the low byte, length of the facts in the upper three."""
_ID = "0" * 64
"""As long as the ids by which Flower's objects name each other."""

Fact = int | float | str | bool | Sequence[int] | Sequence[float]
Facts = Mapping[str, Fact]


def pack(payload: bytes = b"", facts: Facts | None = None) -> RecordDict:
    """The content of a message."""
    told = json.dumps(dict(facts or {}), separators=(",", ":")).encode()
    packed = b"".join((_HEADER.pack(_VERSION | len(told) << 8), told, payload))
    if len(packed) <= MAX_IN_CONFIG:
        return RecordDict({RECORD: ConfigRecord({RECORD: packed})})
    array = Array(dtype="uint8", shape=(len(packed),), stype=STYPE, data=packed)
    return RecordDict({RECORD: ArrayRecord({RECORD: array})})


def payload_of(content: RecordDict) -> bytes:
    """The packed bytes behind the facts. Raises RejectedMessage for a content that `pack` does not make."""
    packed, start = _opened(content)
    return packed[start:]


def facts_of(content: RecordDict) -> dict[str, Fact]:
    """The small facts. Raises RejectedMessage for a content that `pack` does not make."""
    packed, start = _opened(content)
    try:
        facts = json.loads(packed[_HEADER.size : start])
    except (ValueError, RecursionError) as error:
        raise RejectedMessage("undecodable", f"the facts cannot be read ({type(error).__name__})") from error
    if not isinstance(facts, dict) or not all(map(_is_fact, facts.values())):
        raise RejectedMessage("undecodable", "the facts are not names with numbers, texts or lists of numbers")
    return facts


def _opened(content: RecordDict) -> tuple[bytes, int]:
    """The packed bytes, and where in them the payload begins."""
    packed = _packed(content)
    if packed is None or len(packed) < _HEADER.size:
        found = {name: type(record).__name__ for name, record in content.items()}
        raise RejectedMessage("undecodable", f"the content must be one record of packed bytes, found {found}")
    (head,) = _HEADER.unpack_from(packed)
    version, start = head & 0xFF, _HEADER.size + (head >> 8)
    if version != _VERSION or start > min(len(packed), MAX_FACTS_BYTES):
        raise RejectedMessage(
            "undecodable", f"{len(packed)} packed bytes of version {version} with facts up to {start}"
        )
    return packed, start


def _packed(content: RecordDict) -> bytes | None:
    """None for a content that `pack` does not make."""
    record = content.get(RECORD)
    if len(content) != 1 or not isinstance(record, ConfigRecord | ArrayRecord) or list(record) != [RECORD]:
        return None
    entry = record[RECORD]
    if isinstance(entry, Array):
        is_ours = (entry.dtype, tuple(entry.shape), entry.stype) == ("uint8", (len(entry.data),), STYPE)
        return entry.data if is_ours else None
    return entry if isinstance(entry, bytes) else None


def _is_fact(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(each, int | float) for each in value)
    return isinstance(value, int | float | str)


def whole_number(facts: Facts, key: str) -> int:
    """Raises RejectedMessage where the fact is missing or of another type."""
    value = facts.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise RejectedMessage("undecodable", f"{key} is {value!r}, expected a whole number")
    return value


def word(facts: Facts, key: str) -> str:
    """Raises RejectedMessage where the fact is missing or of another type."""
    value = facts.get(key)
    if not isinstance(value, str):
        raise RejectedMessage("undecodable", f"{key} is {value!r}, expected a text")
    return value


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
    packed = None if message.has_error() else _packed(message.content)
    if packed is None or len(packed) > FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE:
        return sum(len(part.deflate()) for part in get_all_nested_objects(message).values())
    record = message.content[RECORD]
    total = _object_bytes("Message", 1, _envelope(message).ByteSize())
    total += _object_bytes("RecordDict", 1, len(_references([RECORD])))
    return total + (_array_record_bytes(len(packed)) if isinstance(record, ArrayRecord) else len(record.deflate()))


def _envelope(message: Message) -> ProtoMessage:
    """What Flower writes of a message beside its content; the message's own id is no part of it."""
    metadata = metadata_to_proto(message.metadata)
    metadata.message_id = ""
    return ProtoMessage(metadata=metadata)


def _references(names: Iterable[str]) -> bytes:
    """A record of records: the name of each and its id."""
    return json.dumps(dict.fromkeys(names, _ID)).encode()


def _array_record_bytes(length: int) -> int:
    """An array record, its array and that one's data."""
    facts = {"dtype": "uint8", "shape": (length,), "stype": STYPE, "arraychunk_ids": [0]}
    return (
        _object_bytes("ArrayRecord", 1, len(_references([RECORD])))
        + _object_bytes("Array", 1, len(json.dumps(facts).encode()))
        + _object_bytes("ArrayChunk", 0, length)
    )


def _object_bytes(kind: str, num_children: int, body: int) -> int:
    """An object of Flower's: its kind, the ids of its children, the length of its body, and the body."""
    return len(f"{kind} {','.join([_ID] * num_children)} {body}") + 1 + body
