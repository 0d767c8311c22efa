"""Callers without a key at one port of this machine, for so many seconds:

    python scripts/faults/crowd.py KIND NUMBER SECONDS PORT AUTHORITY

KIND, each of NUMBER callers at once, who come again when they are cut off:

slow      send the head of a call, a byte a second
silent    connect, and say nothing, not even in TLS
new       connect with TLS and leave
heads     send 2 MB of headers
bodies    send a call with a body of 15 MB
giants    send a call with a body of 60 MB

A caller who is through with what it sends does not come again. Prints how many connections there were.
"""

import asyncio
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import suppress

MEGABYTE = 10**6
PAUSE_SECONDS = 1.0
"""Before who was cut off comes again."""


async def crowd(kind: str, number: int, seconds: float, port: int, authority: str) -> int:
    context = None if kind == "silent" else ssl.create_default_context(cafile=authority)
    connections = 0

    async def call() -> None:
        nonlocal connections
        is_through = False
        while not is_through:
            with suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
                connections += 1
                try:
                    is_through = await _say(kind, reader, writer)
                finally:
                    writer.transport.abort()
            await asyncio.sleep(PAUSE_SECONDS)

    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*(call() for _ in range(number)))
    return connections


async def _say(kind: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """All that there is to say, or until somebody cuts it off; whether that was all."""
    if kind == "new":
        return False
    if kind == "silent":
        await reader.read()
        return False
    async for part in _parts(kind):
        writer.write(part)
        await writer.drain()
        if reader.at_eof():
            return kind != "slow"
    await reader.read(1)
    return True


async def _parts(kind: str) -> AsyncIterator[bytes]:
    start = b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: gate\r\n"
    if kind == "slow":
        for byte in start + b"X: " + bytes(1000).replace(b"\0", b"x"):
            yield bytes([byte])
            await asyncio.sleep(1)
        return
    length = {"heads": 2, "bodies": 15, "giants": 60}[kind]
    yield start + (b"X: " if kind == "heads" else b"Content-Length: %d\r\n\r\n" % (length * MEGABYTE))
    for _ in range(length * 10):
        yield b"x" * (MEGABYTE // 10)


if __name__ == "__main__":
    kind, number, seconds, port, authority = sys.argv[1:]
    print(asyncio.run(crowd(kind, int(number), float(seconds), int(port), authority)))
