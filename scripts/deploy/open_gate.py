"""The port by which clients of other machines reach the server, until it is stopped:

    python scripts/deploy/open_gate.py folder=DIR keys=DIR [host=0.0.0.0] [port=9443] [server_port=8000]

folder, keys: the server's. Flower's server has one port for everything: clients' messages, but also registering clients
and submitting code, which asks for no password. It listens on its own machine alone; the gate passes the calls of
registered clients on to it (POST /v1/fleet/NAME, of at most 16 MiB), and nothing else. What it holds against strangers
stands in gate.py; on an open network put nginx before it (write_nginx.py).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import preparation  # noqa: F401

# isort: split
import asyncio
import resource
import socket

from deploy import flower
from deploy.arguments import check_free, port_number, read_arguments, told_in_one_line
from deploy.gate import Gate
from deploy.start_server import PORT as SERVER_PORT

HOST, PORT = "0.0.0.0", 9443
ARGUMENTS = ("folder", "keys", "host", "port", "server_port")


def main(arguments: list[str]) -> None:
    given = read_arguments(arguments, ARGUMENTS, required=("folder", "keys"), paths=("folder", "keys"))
    keys, host, port = Path(given["keys"]), given.get("host", HOST), port_number(given, "port", PORT)
    flower.check_keys(keys)
    check_free("port", port, host)
    flower.check_server(given["folder"])
    behind = f"https://{flower.LOOPBACK}:{port_number(given, 'server_port', SERVER_PORT)}"
    gate = Gate(behind, flower.authority(keys), flower.own_tls(keys), flower.database(Path(given["folder"])))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection is a descriptor, and one to the server
    asyncio.run(gate.serve(listener(host, port)))


def listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


if __name__ == "__main__":
    sys.exit(told_in_one_line(main, sys.argv[1:], __doc__))
