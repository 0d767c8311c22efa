"""A configuration of nginx to stand before the gate, for an open network:

    python scripts/deploy/write_nginx.py folder=DIR keys=DIR [host=0.0.0.0] [port=9443] [gate_port=9444]
    nginx -e stderr -c DIR/nginx.conf          # stays; DIR as an absolute path

keys: the server's. folder: a new one, of nginx alone. The gate goes on looking at signatures, on this machine:
`open_gate.py ... host=127.0.0.1 port=9444`. nginx needs some kB for a connection where the gate needs 300, so it bears
tens of thousands of callers that are slow, and limits the calls that an address has at once. It knows no keys, and
holds no body: what comes goes on to the gate, which refuses a stranger's before it has come.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import preparation  # noqa: F401

# isort: split
import re

from deploy import flower
from deploy.arguments import port_number, read_arguments, told_in_one_line
from deploy.gate import HEAD_SECONDS, MAX_BODY_BYTES, MAX_HEAD_BYTES, SEND_SECONDS
from deploy.make_keys import AUTHORITY, SERVER_CERTIFICATE, SERVER_KEY
from deploy.open_gate import HOST, PORT
from fedmask.errors import FedmaskError
from fedmask.files import write_atomically

GATE_PORT = 9444
CONFIGURATION = "nginx.conf"
MAX_CONNECTIONS = 16_384
MAX_CALLS_OF_AN_ADDRESS = 128
"""At once. Many clients may have one address, behind a router; each has three or four calls at most."""
BODY_SECONDS = 10
"""Between two pieces of a body. How long it may take in all the gate knows."""

_TEMPLATE = """\
# Made by write_nginx.py. Start: nginx -e stderr -c {folder}/nginx.conf
daemon off;
pid {folder}/nginx.pid;
error_log stderr crit;  # a caller cannot fill a log
worker_processes auto;
worker_rlimit_nofile {descriptors};

events {{
    worker_connections {connections};
}}

http {{
    access_log off;
    server_tokens off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    limit_conn_zone $binary_remote_addr zone=addresses:10m;

    upstream gate {{
        server {loopback}:{gate_port};
        keepalive 64;
        keepalive_timeout {kept}s;  # shorter than the gate's
    }}

    server {{
        listen {listen} ssl backlog=4096;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.2 TLSv1.3;

        client_header_timeout {head}s;  # for the handshake, too
        client_body_timeout {body}s;
        send_timeout {send}s;
        keepalive_timeout {head}s;
        lingering_time 2s;
        lingering_timeout 1s;
        reset_timedout_connection on;
        client_header_buffer_size 2k;
        large_client_header_buffers 2 {half_head};
        client_max_body_size {max_body};
        limit_conn addresses {calls};

        if ($request_method != POST) {{
            return 404;
        }}
        if ($request_uri !~ "^/v1/fleet/[a-z-]+$") {{
            return 404;
        }}
        location / {{
            proxy_pass https://gate;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_ssl_verify on;
            proxy_ssl_trusted_certificate {authority};
            proxy_ssl_name localhost;
            proxy_request_buffering off;
            proxy_buffering off;
            proxy_read_timeout 1h;
        }}
    }}
}}
"""


def main(arguments: list[str]) -> None:
    known = ("folder", "keys", "host", "port", "gate_port")
    given = read_arguments(arguments, known, required=("folder", "keys"), paths=("folder", "keys"))
    folder, keys = Path(given["folder"]).resolve(), Path(given["keys"]).resolve()
    flower.check_keys(keys)
    port, gate_port = port_number(given, "port", PORT), port_number(given, "gate_port", GATE_PORT)
    text = configuration(folder, keys, given.get("host", HOST), port, gate_port)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(folder / CONFIGURATION, text.encode())
    print(f"nginx -e stderr -c {folder / CONFIGURATION}")


def configuration(folder: Path, keys: Path, host: str, port: int, gate_port: int) -> str:
    """Raises FedmaskError for what nginx would not read as one word."""
    for word in (str(folder), str(keys), host):
        if not re.fullmatch(r"[\w./:-]+", word, re.ASCII):
            raise FedmaskError(f"{word}: must be of letters, digits and . / _ - : alone, to stand in nginx's file")
    return _TEMPLATE.format(
        folder=folder,
        descriptors=2 * MAX_CONNECTIONS,  # one of the caller's, one to the gate
        connections=2 * MAX_CONNECTIONS,
        loopback=flower.LOOPBACK,
        gate_port=gate_port,
        kept=max(1, int(HEAD_SECONDS) - 2),
        listen=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        certificate=keys / SERVER_CERTIFICATE,
        key=keys / SERVER_KEY,
        authority=keys / AUTHORITY,
        head=int(HEAD_SECONDS),
        body=BODY_SECONDS,
        send=int(SEND_SECONDS),
        half_head=MAX_HEAD_BYTES // 2,
        max_body=MAX_BODY_BYTES,
        calls=MAX_CALLS_OF_AN_ADDRESS,
    )


if __name__ == "__main__":
    sys.exit(told_in_one_line(main, sys.argv[1:], __doc__))
