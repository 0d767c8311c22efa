"""The port by which clients of other machines reach the server, until it is stopped:

    python scripts/deploy/open_gate.py keys=DIR [host=0.0.0.0] [port=9443] [server_port=8000]

keys: the server's. Flower's server has one port for everything: clients' messages, but also registering clients and
submitting code, which asks for no password. It listens on its own machine alone; the gate passes the calls of clients
on to it (POST /v1/fleet/NAME, of at most 64 MiB), and answers everything else with 404.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import preparation  # noqa: F401

# isort: split
import re
import ssl
from collections.abc import Mapping, Set

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deploy import flower
from deploy.arguments import check_free, port_number, read_arguments, told_in_one_line
from deploy.make_keys import AUTHORITY, SERVER_CERTIFICATE, SERVER_KEY
from deploy.start_server import PORT as SERVER_PORT

HOST, PORT = "0.0.0.0", 9443
MAX_BODY_BYTES = 64 * 2**20
"""Flower cuts arrays into chunks of 5 MB; no call of a client comes near."""

_CALL = re.compile("[a-z-]+")
_OF_ONE_CONNECTION = {"host", "connection", "keep-alive", "transfer-encoding", "content-length", "te", "upgrade"}
_DECODED = {"content-encoding"}
"""httpx gives the content as it was before it was compressed."""


def main(arguments: list[str]) -> None:
    given = read_arguments(arguments, ("keys", "host", "port", "server_port"), required=("keys",), paths=("keys",))
    keys, host, port = Path(given["keys"]), given.get("host", HOST), port_number(given, "port", PORT)
    flower.check_keys(keys)
    check_free("port", port, host)
    behind = f"https://{flower.LOOPBACK}:{port_number(given, 'server_port', SERVER_PORT)}"
    uvicorn.run(
        gate(behind, ssl.create_default_context(cafile=str(keys / AUTHORITY))),
        host=host,
        port=port,
        ssl_certfile=keys / SERVER_CERTIFICATE,
        ssl_keyfile=str(keys / SERVER_KEY),
        access_log=False,
        log_level="warning",
    )


def gate(server: str, trusted: ssl.SSLContext) -> Starlette:
    """server: https://host:port of the server behind it, whose certificate `trusted` has to know."""
    behind = httpx.AsyncClient(base_url=server, verify=trusted, timeout=None)

    async def pass_on(request: Request) -> Response:
        call = request.path_params["call"]
        if not _CALL.fullmatch(call):
            return Response(status_code=404)
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                return Response(status_code=413)
        try:
            reply = await behind.post(f"/v1/fleet/{call}", content=bytes(body), headers=_passed_on(request.headers))
        except httpx.TransportError:
            return Response(status_code=503)  # clients try again
        return Response(reply.content, reply.status_code, _passed_on(reply.headers, _DECODED))

    return Starlette(routes=[Route("/v1/fleet/{call}", pass_on, methods=["POST"])])


def _passed_on(headers: Mapping[str, str], without: Set[str] = frozenset()) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _OF_ONE_CONNECTION | without}


if __name__ == "__main__":
    sys.exit(told_in_one_line(main, sys.argv[1:], __doc__))
