"""Two clients of one small task on the tiny model, spoken to as a server would."""

import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from client.app import app
from fedmask.masks import Mask, select
from fedmask.models import BaseModel
from fedmask.wire.codecs import decode
from fedmask.wire.messages import pack
from fedmask.wire.setup import Settings, Setup
from fedmask.wire.vectors import frames
from server.app import settings_for
from server.compose import compose
from server.local_grid import LocalGrid

TASK = """
import random
from fedmask import Task


def rows(seed, size):
    generator = random.Random(seed)
    for _ in range(size):
        label = generator.randrange(2)
        yield f"{('bad', 'good')[label]} {generator.choice('abcdefgh')}", "ny"[label]


def only():
    return Task("only", rows("t", 20), rows("v", 10), rows("s", 12))
"""


@pytest.fixture(scope="session")
def mask(tiny: BaseModel) -> Mask:
    return select(tiny.encoder, rule="pafi", density=0.01, base_digest=tiny.digest, inputs=tiny.inputs)


@pytest.fixture
def told(tmp_path: Path, tiny: BaseModel) -> Settings:
    (tmp_path / "small.py").write_text(TASK)
    config = compose(
        [
            "model=tiny",
            "mask.density=0.01",
            "client.learning_rate=0.03",
            "data=python",
            f"data.root={tmp_path}",
            "data.tasks=['small:only']",
            "data.examples_per_client=10",
            "client.batch_size=5",
            "clients=2",
            "threads=1",
        ]
    )
    return replace(settings_for(config), run_digest="0123456789abcdef", inputs_digest=tiny.inputs_digest)


class Federation:
    """A server's view: `tell` a client its setup, `ask` it something."""

    def __init__(self, told: Settings, mask: Mask, folder: Path) -> None:
        self.told, self.mask, self.folder = told, mask, folder
        self.grid = LocalGrid(app, 2, seed=random.Random(0).randrange(10**6))
        self.grid.keep_client_state_in(folder)
        self.nodes = list(self.grid.get_node_ids())
        self.sum = 0

    def tell(self, client: int, payload: bytes | None = None) -> Message:
        if payload is None:
            payload = Setup(self.told, self.mask.recipe).to_bytes()
        return self._send(client, Message(pack(payload), self.nodes[client], "query.mask", group_id="0"))

    def ask(self, kind: str, client: int, payload: bytes = b"", state_round: int = 0, **facts: Any) -> Message:
        """The checksum of the vectors is of what the payload holds, or of what the last one held."""
        if payload:
            self.sum = _sum(payload)
        facts = {"sum": self.sum} | facts | {"state-round": state_round}
        return self._send(client, Message(pack(payload, facts), self.nodes[client], kind, group_id="1"))

    def _send(self, client: int, message: Message) -> Message:
        (reply,) = self.grid.send_and_receive([message])
        return reply


def _sum(payload: bytes) -> int:
    """Of whole vectors in fp32, as `fedmask.wire.downlink` has it."""
    sums = [zlib.crc32(decode(each.body, (len(each.body) - 8) // 4)) for each in frames(payload)]
    return zlib.crc32(b"".join(struct.pack("<I", each) for each in sums))


@pytest.fixture
def federation(told: Settings, mask: Mask, tmp_path: Path) -> Callable[..., Federation]:
    def make(**changes: Any) -> Federation:
        client = replace(told.client, head=changes.pop("head", "local"))
        codec = replace(told.codec, up=changes.pop("up", "fp32"))
        return Federation(replace(told, client=client, codec=codec, **changes), mask, tmp_path / "clients")

    return make
