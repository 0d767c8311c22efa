"""Nodes with registered keys that answer a real server with bent replies, in a process apart:

    python hostile_nodes.py FILE       FILE: JSON, of `Orders`

In: a server's address behind its gate, keys, client files. Out: bent replies, by Flower's own calls, and a line of JSON
for each on the standard output: round, client_id, kind. A node trains as the client app does, and is set up honestly.
Whoever signs a call is asked by the server to be the sender of the envelope: what is bent is what lies inside.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Context, Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError, inflate_object_from_contents, pull_objects
from flwr.supernode.fleet_http_connection import http_request_response

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faults.malformed import KINDS, OBJECTS, malformed
from fedmask.randomness import seed_for
from server.local_grid import acting_as

PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class Orders:
    """What the nodes are told."""

    server: str
    """host:port of the gate."""
    authority: str
    clients: Mapping[str, tuple[str, str]]
    """By client_id the files of its private key and of what it says for itself."""
    seed: int


@dataclass
class Node:
    """One of them."""

    client_id: int
    context: Context
    receive: Callable[[], tuple[Message, ObjectTree] | None]
    send: Callable[[Message, ObjectTree, float], tuple[set[str], str]]
    pull_object: Callable[[int, str], bytes]
    push_object: Callable[[int, str, str, bytes], None]
    confirm: Callable[[int, str], None]
    kinds: Mapping[str, Iterator[str]]
    """By the type of the message it answers."""


def kinds_of(stage: str) -> list[str]:
    return [name for name, kind in KINDS.items() if kind.stage == stage]


def main(orders: Orders) -> None:
    authority = Path(orders.authority).read_bytes()
    with ExitStack() as stack:
        turns = {stage: _in_turn(kinds_of(stage)) for stage in ("train", "evaluate")}
        nodes = []
        for client_id, (key, file) in orders.clients.items():
            private = cast(ec.EllipticCurvePrivateKey, load_ssh_private_key(Path(key).read_bytes(), None))
            keys = private, private.public_key()
            calls = stack.enter_context(http_request_response(orders.server, False, authority, keys))
            node_id, receive, send, _, _, pull_object, push_object, confirm = calls
            context = Context(0, node_id, {"client-file": file}, RecordDict(), {})
            nodes.append(Node(int(client_id), context, receive, send, pull_object, push_object, confirm, turns))
        while True:
            for node in nodes:
                if (found := node.receive()) is not None:
                    _answer(node, *found, orders.seed)
            time.sleep(PAUSE_SECONDS)


def _in_turn(names: list[str]) -> Iterator[str]:
    while True:
        yield from names


def _answer(node: Node, head: Message, tree: ObjectTree, seed: int) -> None:
    from client.app import app

    run_id, message_id = head.metadata.run_id, head.metadata.message_id
    wanted = [each.object_id for each in iterate_object_tree(tree)]  # some of them are still on their way to the server
    contents = pull_objects(wanted, pull_object_fn=partial(node.pull_object, run_id))
    request = cast(Message, inflate_object_from_contents(message_id, contents))
    request.metadata.__dict__["_message_id"] = message_id
    node.confirm(run_id, message_id)
    with acting_as(run_id, node.context.node_id):
        reply = app(request, node.context)
        envelope = Message(RecordDict(), reply_to=request)
        stage = request.metadata.message_type
        if stage not in node.kinds or request.metadata.group_id == "0":
            _push(node, envelope, reply, get_object_tree(reply), _contents(reply))
            return
        kind = next(node.kinds[stage])
        generator = np.random.default_rng(seed_for(seed, "hostile", request.metadata.group_id, node.client_id, stage))
        if kind in OBJECTS:
            bent_tree, bent = _with_bent_object(reply, kind, generator)
        else:
            reply = malformed(kind, request, reply, generator)
            bent_tree, bent = get_object_tree(reply), _contents(reply)
        told = {"round": request.metadata.group_id, "client_id": node.client_id, "kind": kind}
        print(json.dumps(told), flush=True)
        try:
            _push(node, envelope, reply, bent_tree, bent)
        except (httpx.HTTPError, ObjectPushError, ValueError) as error:  # the server takes no such object
            print(f"{kind}: {error}", file=sys.stderr, flush=True)


def _contents(reply: Message) -> dict[str, bytes]:
    return {object_id: each.deflate() for object_id, each in get_all_nested_objects(reply).items()}


def _with_bent_object(reply: Message, kind: str, generator: np.random.Generator) -> tuple[ObjectTree, dict[str, bytes]]:
    """One object is other bytes, and whoever names it names it anew: every id is its content's SHA-256, as a server
    asks for."""
    contents = _contents(reply)
    chosen = sorted(contents)[int(generator.integers(len(contents)))]
    bent: dict[str, bytes] = {}

    def rebuilt(tree: ObjectTree) -> ObjectTree:
        content, children = contents[tree.object_id], [rebuilt(child) for child in tree.children]
        for before, after in zip(tree.children, children, strict=True):
            content = content.replace(before.object_id.encode(), after.object_id.encode())
        if tree.object_id == chosen:
            content = OBJECTS[kind](content, generator)
        object_id = sha256(content).hexdigest()
        bent[object_id] = content
        return ObjectTree(object_id=object_id, children=children)

    return rebuilt(get_object_tree(reply)), bent


def _push(node: Node, envelope: Message, reply: Message, tree: ObjectTree, contents: Mapping[str, bytes]) -> None:
    """envelope: what the server checks of the message, of its right sender, run and request."""
    envelope.metadata.__dict__["_message_id"] = tree.object_id
    if reply.has_error():
        envelope = reply
        envelope.metadata.__dict__["_message_id"] = tree.object_id
    wanted, session = node.send(envelope, tree, 0.1)
    for object_id in wanted:
        node.push_object(envelope.metadata.run_id, session, object_id, contents[object_id])


if __name__ == "__main__":
    told: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    main(Orders(**told))
