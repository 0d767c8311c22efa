"""Vectors <-> Flower records, and the bytes of a whole message. The one module of the library that knows Flower.

A message's content has at most three records: `payload` (one Flower array: the packed bytes of all vectors, or of the
mask and settings), `config` (small facts: round, split, version) and `metrics` (numbers that come back).
"""

import traceback
from collections.abc import Mapping, Sequence

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from fedmask.errors import RejectedMessage

PAYLOAD, CONFIG, METRICS = "payload", "config", "metrics"
STYPE = "fedmask.frames"

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
        content[PAYLOAD] = ArrayRecord({"p": array})
    if config is not None:
        content[CONFIG] = ConfigRecord(dict(config))
    if metrics is not None:
        content[METRICS] = MetricRecord({name: _plain(value) for name, value in metrics.items()})
    return content


def _plain(value: MetricValue) -> int | float | list[int] | list[float]:
    return value if isinstance(value, (int, float)) else list(value)


def payload_of(content: RecordDict) -> bytes:
    """The packed bytes, empty where there are none. Raises RejectedMessage for anything but one byte array."""
    record = content.array_records.get(PAYLOAD)
    if record is None:
        return b""
    arrays = list(record.values())
    if len(arrays) != 1 or arrays[0].stype != STYPE:
        raise RejectedMessage(
            "undecodable", f"the payload must be one array of stype {STYPE}, found {[array.stype for array in arrays]}"
        )
    return arrays[0].data


def config_of(content: RecordDict) -> ConfigRecord:
    """The small facts; empty where the message carries none."""
    return content.config_records.get(CONFIG, ConfigRecord())


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
    return content.metric_records.get(METRICS, MetricRecord())


def error_reply(message: Message, error: Exception) -> Message:
    """The reply of a client that raised, the cause on one line: `ValueError: text (function, line 7)`."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    reason = f"{type(error).__name__}: {' '.join(str(error).split())} ({where.name}, line {where.lineno})"
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


def wire_bytes(message: Message) -> int:
    """Bytes of a message as Flower serialises it: every object of it, deflated. HTTP and TLS come on top."""
    return sum(len(part.deflate()) for part in get_all_nested_objects(message).values())
