"""Facts and vectors <-> Flower records, and the bytes of a whole message. The one module that knows Flower.

A message's content is one Flower ConfigRecord with two entries of bytes: facts (a version byte, and JSON: round,
version, counts, a loss) and the payload (frames of vectors, or the mask and settings). A payload of more than
MAX_IN_CONFIG bytes stands in a Flower array of its own beside the facts: that is three more objects, which cost 400
bytes, but Flower cuts an array into chunks, and does not copy it.
"""

import json
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE, ErrorCode
from flwr.common.serde_utils import metadata_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from fedmask.errors import RejectedMessage

FACTS, PAYLOAD = "f", "p"
"""Names of entries and records: short, for they travel."""
STYPE = "fedmask"
MAX_IN_CONFIG = 2**15
MAX_FACTS_BYTES = 2**16
"""What no message of ours comes near."""
_VERSION = b"\x01"
_AS_JSON = json.JSONEncoder(separators=(",", ":")).encode
_ID = "0" * 64
"""As long as the ids by which Flower's objects name each other."""

Fact = int | float | str | bool | Sequence[int] | Sequence[float]
Facts = Mapping[str, Fact]


def pack(payload: bytes = b"", facts: Facts | None = None) -> RecordDict:
    """The content of a message."""
    entries: dict[str, Any] = {FACTS: _VERSION + _AS_JSON(dict(facts or {})).encode()}
    if len(payload) <= MAX_IN_CONFIG:
        if payload:
            entries[PAYLOAD] = payload
        return RecordDict({FACTS: ConfigRecord(entries)})
    array = Array(dtype="uint8", shape=(len(payload),), stype=STYPE, data=payload)
    return RecordDict({FACTS: ConfigRecord(entries), PAYLOAD: ArrayRecord({PAYLOAD: array})})


def payload_of(content: RecordDict) -> bytes:
    """The packed bytes, empty where there are none. Raises RejectedMessage for a content that `pack` does not make."""
    return _opened(content)[1]


def facts_of(content: RecordDict) -> dict[str, Fact]:
    """The small facts. Raises RejectedMessage for a content that `pack` does not make."""
    told, _ = _opened(content)
    if told[:1] != _VERSION or len(told) > MAX_FACTS_BYTES:
        raise RejectedMessage("undecodable", f"facts of {len(told)} bytes and version {told[:1].hex() or 'none'}")
    try:
        facts = json.loads(told[1:])
    except (ValueError, RecursionError) as error:
        raise RejectedMessage("undecodable", f"the facts cannot be read ({type(error).__name__})") from error
    if not isinstance(facts, dict) or not all(map(_is_fact, facts.values())):
        raise RejectedMessage("undecodable", "the facts are not names with numbers, texts or lists of numbers")
    return facts


def _opened(content: RecordDict) -> tuple[bytes, bytes]:
    """Facts and payload, neither of them read."""
    if (found := _packed(content)) is None:
        forms = {name: type(record).__name__ for name, record in content.items()}
        raise RejectedMessage("undecodable", f"the content must be packed facts and a payload, found {forms}")
    return found


def _packed(content: RecordDict) -> tuple[bytes, bytes] | None:
    """Facts and payload; None for a content that `pack` does not make."""
    config = content.get(FACTS)
    if not isinstance(config, ConfigRecord):
        return None
    entries = dict(config)
    if not entries.keys() <= {FACTS, PAYLOAD}:
        return None
    told, payload = entries.get(FACTS), _payload(content, entries)
    return (told, payload) if isinstance(told, bytes) and isinstance(payload, bytes) else None


def _payload(content: RecordDict, entries: Mapping[str, object]) -> object:
    """Whatever stands in the payload's place: bytes where `pack` has made the content."""
    if len(content) == 1:
        return entries.get(PAYLOAD, b"")
    return _of_array(content.get(PAYLOAD)) if len(content) == 2 and PAYLOAD not in entries else None


def _of_array(record: object) -> bytes | None:
    if not isinstance(record, ArrayRecord) or list(record) != [PAYLOAD]:
        return None
    array = record[PAYLOAD]
    data = array.data
    is_ours = (array.dtype, tuple(array.shape), array.stype) == ("uint8", (len(data),), STYPE)
    return data if is_ours and data else None


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
    if packed is None or len(packed[1]) > FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE:
        return sum(len(part.deflate()) for part in get_all_nested_objects(message).values())
    content = message.content
    total = _object_bytes("Message", 1, _envelope(message).ByteSize())
    total += _object_bytes("RecordDict", len(content), len(_references(content)))
    total += len(content[FACTS].deflate())
    return total + (_array_record_bytes(len(packed[1])) if PAYLOAD in content else 0)


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
        _object_bytes("ArrayRecord", 1, len(_references([PAYLOAD])))
        + _object_bytes("Array", 1, len(json.dumps(facts).encode()))
        + _object_bytes("ArrayChunk", 0, length)
    )


def _object_bytes(kind: str, num_children: int, body: int) -> int:
    """An object of Flower's: its kind, the ids of its children, the length of its body, and the body."""
    return len(f"{kind} {','.join([_ID] * num_children)} {body}") + 1 + body
