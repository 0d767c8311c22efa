"""The gate: calls of registered clients pass from the network to the server behind it, and nothing else does.

In: connections of anybody. Out: calls to the server, whose answers go back. Nothing is held that could grow:

1. TLS and the head of a call have to be there within seconds; what a head may be is strict (`call_of`).
2. Its method, path, length and signature (signed.py) are judged before any of its body is read. Whoever is refused is
   told so in one line without a word of why, and the connection ends.
3. The body is passed on as it comes, and so is the answer. Who is slow is cut off; what is on its way is limited, for
   each client and in all.

How many connections there may be stands in callers.py. What happened to those that were not let through is counted,
and told in one line a minute: nobody outside can fill a log. An error of the gate itself shows its traceback.
"""

import asyncio
import gc
import json
import logging
import re
import socket
import ssl
import struct
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import NoReturn

import h11
import httpx

from deploy.callers import Caller, Callers, address_of
from deploy.signed import UnknownKeysError, signer_of

MAX_BODY_BYTES = 16 * 2**20
"""The largest call brings a piece of an array, of 5 MiB at most; one that announces messages has some 70 bytes for each
of their pieces."""
MAX_CLIENT_BYTES, MAX_ALL_BYTES = 32 * 2**20, 256 * 2**20
"""Of bodies on their way, of which the server behind holds each until it is whole: two pieces of a client at once are
10 MiB. Who is beyond it is told to try again."""
MAX_HEAD_BYTES, MAX_HEADERS = 16 * 2**10, 64
"""A client sends about 1 kB in 14 headers."""
HANDSHAKE_SECONDS, HEAD_SECONDS = 5.0, 10.0
"""HEAD_SECONDS as well between two calls on one connection: a client asks for messages every 3 seconds."""
BODY_SECONDS, LEAST_BYTES_A_SECOND = 20.0, 32 * 2**10
"""A body has so many seconds, and one more for each so many bytes."""
SEND_SECONDS = 30.0
"""In which who is sent an answer has to take some of it."""
LINGER_SECONDS, LINGER_BYTES = 1.0, 64 * 2**10
"""For which what a refused caller still sends is thrown away: a connection that is closed at once is reset, answer and
all."""
MAX_LEFT = 64
"""Connections that have ended and hold memory."""
TELL_SECONDS = 60.0
PART_BYTES = 64 * 2**10

NOT_SIGNED = json.dumps(
    {
        "code": 2004,
        "detail": "no registered client has signed this call: its key is not registered, or its clock is minutes off",
    }
).encode()
"""In the form of Flower's errors, with its code for a client that cannot start."""

_HEAD = re.compile(rb"(?:[!-~][\t -~]*\r\n)+\r\n")
"""Printable ASCII in lines that are no continuation of others: no lone CR or LF, no control byte."""
_TARGET = re.compile(rb"/v1/fleet/([a-z-]+)")
_PLAIN = {"accept-encoding": "identity"}
"""httpx would ask for compression by itself, which a caller may not know."""
_OF_ONE_CONNECTION = {"host", "connection", "keep-alive", "proxy-connection", "transfer-encoding", "te", "upgrade"}

_RESET = struct.pack("ii", 1, 0)
"""To close with a reset: a client of Flower tries again after that, and gives up after another end of a handshake."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """What a head says."""

    name: str
    """The last part of the path."""
    length: int
    """Of the body, in bytes."""
    headers: dict[str, str]
    """Names in lower case."""
    http: h11.Connection
    """In the state in which an answer is due."""


class RefusedError(Exception):
    """A call that is not passed on, and the answer to it."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(f"answered with {status}")
        self.status = status


class LostError(Exception):
    """A caller that left, or was too slow, before its call was answered."""


class Gate:
    """Between the network and one server."""

    def __init__(
        self,
        server: str,
        trusted: ssl.SSLContext,
        own: ssl.SSLContext,
        database: Path,
        passed: Callable[[str, int, int], None] = lambda name, up_bytes, down_bytes: None,
    ) -> None:
        """server: https://host:port of the server behind it, whose certificate `trusted` has to know.

        own: with the certificate that callers are shown. database: of that server, in which it keeps registered keys.
        passed: is told the name of every call that was answered, and how long its body and the answer's were.
        """
        self._server, self._trusted, self._own, self._database, self._passed = server, trusted, own, database, passed
        self._callers = Callers()
        self._on_their_way = Counter[bytes]()
        """Bytes of bodies by key."""
        self._turned_away = Counter[str]()
        """By cause, since it was last told."""
        self._ended = 0

    async def serve(self, listener: socket.socket) -> NoReturn:
        """Until it is cancelled. listener: bound."""
        listener.setblocking(False)
        listener.listen(512)
        gc.collect()
        gc.freeze()  # libraries: what is collected from now on is quick to look through
        limits = httpx.Limits(
            max_connections=None, max_keepalive_connections=64, keepalive_expiry=4
        )  # the server ends those of 5 s
        async with (
            httpx.AsyncClient(
                base_url=self._server, verify=self._trusted, timeout=None, limits=limits, headers=_PLAIN
            ) as self._behind,
            asyncio.TaskGroup() as connections,
        ):
            connections.create_task(self._tell())
            while True:
                try:
                    accepted, (host, *_) = await asyncio.get_running_loop().sock_accept(listener)
                except OSError:  # no descriptor is left
                    self._callers.cut_one_off()
                    await asyncio.sleep(0.1)
                    continue
                connections.create_task(self._serve_one(accepted, address_of(host)))
                await asyncio.sleep(0)  # accepting gives way to who was accepted

    async def _tell(self) -> NoReturn:
        while True:
            await asyncio.sleep(TELL_SECONDS)
            if self._turned_away:
                told = ", ".join(f"{number:,} {cause}" for cause, number in self._turned_away.most_common())
                print(f"gate, turned away in the last {TELL_SECONDS:.0f} s: {told}", file=sys.stderr, flush=True)
                self._turned_away.clear()

    async def _serve_one(self, accepted: socket.socket, address: str) -> None:
        """One connection to its end, whatever that is."""
        task = asyncio.current_task()
        assert task is not None
        caller, writer = Caller(address, task.cancel), None
        self._callers.come(caller)
        try:
            reader, writer = await _secured(accepted, self._own)
            while await self._answered(reader, writer, caller):
                pass
            writer.close()
            await writer.wait_closed()
        except (RefusedError, LostError) as turned_away:
            self._turned_away[str(turned_away)] += 1
        except OSError:  # what TLS finds fault with is one, too
            self._turned_away["broke off"] += 1
        except asyncio.CancelledError:
            self._turned_away["made room for others"] += 1
            with suppress(OSError):  # closed already
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            raise
        except Exception:
            logger.exception("an error of the gate")
        finally:
            self._callers.leave(caller)
            if writer is None:
                accepted.close()
            else:
                writer.transport.abort()
            self._collect()

    def _collect(self) -> None:
        """TLS leaves its buffers in cycles, a quarter of a megabyte each, which Python by itself may leave for long."""
        self._ended += 1
        if self._ended % MAX_LEFT == 0:
            gc.collect()

    async def _answered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller) -> bool:
        """One call; whether another may follow. Raises LostError, and RefusedError once that is answered."""
        try:
            head = await _head(reader)
            if head is None and caller.key is not None:
                return False  # a client that is done
            if head is None:
                raise LostError("sent no call")
            call = call_of(head)
            return await self._pass_on(call, self._admitted(call, caller), reader, writer)
        except RefusedError as refused:
            await _refuse(reader, writer, refused.status)
            raise

    def _admitted(self, call: Call, caller: Caller) -> bytes:
        """The key of the client that calls. Raises RefusedError."""
        try:
            key = signer_of(call.headers, self._database)
        except UnknownKeysError as error:
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE) from error  # clients try again
        if (
            key is None
        ):  # a client that starts shows what the server would say; any other ends at once, and says nothing
            starts = call.name == "activate-node"
            raise RefusedError(HTTPStatus.PRECONDITION_FAILED if starts else HTTPStatus.UNAUTHORIZED)
        of_client, of_all = self._on_their_way[key] + call.length, self._on_their_way.total() + call.length
        if not self._callers.make_known(caller, key) or of_client > MAX_CLIENT_BYTES or of_all > MAX_ALL_BYTES:
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE)
        return key

    async def _pass_on(
        self, call: Call, key: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """To the server, and its answer back; whether the connection is good for another call."""
        headers = {name: value for name, value in call.headers.items() if name not in _OF_ONE_CONNECTION}
        body = _body(reader, call.length)
        request = self._behind.build_request("POST", f"/v1/fleet/{call.name}", headers=headers, content=body)
        self._on_their_way[key] += call.length
        try:
            reply = await self._behind.send(request, stream=True)
        except httpx.TransportError as error:
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE) from error
        finally:
            self._on_their_way[key] -= call.length
        try:
            down_bytes = await _send_back(reply, call.http, writer)
        except httpx.TransportError as error:
            raise LostError("lost the server in mid-answer") from error
        finally:
            await reply.aclose()
        self._passed(call.name, call.length, down_bytes)
        return call.http.our_state is h11.DONE


def call_of(head: bytes) -> Call:
    """head: to the empty line, and with it. Raises RefusedError for all but a POST of known length to clients' part."""
    if not _HEAD.fullmatch(head):
        raise RefusedError(HTTPStatus.BAD_REQUEST)
    http = h11.Connection(h11.SERVER)
    http.receive_data(head)
    try:
        request = http.next_event()
    except h11.RemoteProtocolError as error:
        raise RefusedError(HTTPStatus.BAD_REQUEST) from error
    if not isinstance(request, h11.Request) or request.http_version != b"1.1":
        raise RefusedError(HTTPStatus.BAD_REQUEST)
    headers = {name.decode(): value.decode() for name, value in request.headers}
    target = _TARGET.fullmatch(request.target)
    if target is None or request.method != b"POST":
        raise RefusedError(HTTPStatus.NOT_FOUND)
    if len(request.headers) > MAX_HEADERS:
        raise RefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    if len(headers) < len(request.headers) or {"transfer-encoding", "expect"} & headers.keys():
        raise RefusedError(HTTPStatus.BAD_REQUEST)  # two answers to one question, or a body of unknown length
    if "content-length" not in headers:
        raise RefusedError(HTTPStatus.LENGTH_REQUIRED)
    if len(headers["content-length"]) > 9 or int(headers["content-length"]) > MAX_BODY_BYTES:
        raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    return Call(target[1].decode(), int(headers["content-length"]), headers, http)


async def _secured(accepted: socket.socket, own: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """TLS on a connection. Raises OSError where the other side has none, or not in time."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=MAX_HEAD_BYTES)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol,
        accepted,
        ssl=own,
        ssl_handshake_timeout=HANDSHAKE_SECONDS,
        ssl_shutdown_timeout=LINGER_SECONDS,
    )
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def _head(reader: asyncio.StreamReader) -> bytes | None:
    """Of a call, to the empty line; None where none comes in time. Raises RefusedError for one that is too long."""
    try:
        async with asyncio.timeout(HEAD_SECONDS):
            return await reader.readuntil(b"\r\n\r\n")
    except (TimeoutError, asyncio.IncompleteReadError):
        return None
    except asyncio.LimitOverrunError as error:
        raise RefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE) from error


async def _body(reader: asyncio.StreamReader, length: int) -> AsyncIterator[bytes]:
    """As it comes. Raises LostError where it does not come whole and in time."""
    deadline = asyncio.get_running_loop().time() + BODY_SECONDS + length / LEAST_BYTES_A_SECOND
    while length:
        try:
            async with asyncio.timeout_at(deadline):
                part = await reader.read(min(length, PART_BYTES))
        except TimeoutError:
            raise LostError("sent a body too slowly") from None
        except OSError:
            part = b""
        if not part:
            raise LostError("left in mid-call")
        length -= len(part)
        yield part


async def _send_back(reply: httpx.Response, http: h11.Connection, writer: asyncio.StreamWriter) -> int:
    """The server's answer as it comes; how many bytes its body had. Raises LostError where nobody takes it."""
    headers = [(name, value) for name, value in reply.headers.raw if name.lower().decode() not in _OF_ONE_CONNECTION]
    waiting, num_bytes = http.send(h11.Response(status_code=reply.status_code, headers=headers)) or b"", 0
    async for part in reply.aiter_raw():
        writer.write(waiting + (http.send(h11.Data(data=part)) or b""))
        waiting, num_bytes = b"", num_bytes + len(part)
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await writer.drain()
        except TimeoutError:
            raise LostError("took an answer too slowly") from None
    writer.write(waiting + (http.send(h11.EndOfMessage()) or b""))
    return num_bytes


async def _refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, status: HTTPStatus) -> None:
    told = NOT_SIGNED if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.PRECONDITION_FAILED) else b""
    head = f"HTTP/1.1 {status} {status.phrase}\r\nConnection: close\r\nContent-Length: {len(told)}\r\n\r\n"
    writer.write(head.encode() + told)
    left = LINGER_BYTES
    with suppress(OSError):  # gone, or still sending when the time is over
        async with asyncio.timeout(LINGER_SECONDS):
            while left > 0 and (part := await reader.read(left)):
                left -= len(part)
