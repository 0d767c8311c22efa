"""Deployed clients of one task whose rows have different classes share a head where the classes are named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from flwr.clientapp import ClientApp

from fedmask.runs.checkpoint import load_checkpoint
from server.local_grid import LocalGrid

CLASSES = ["money", "sport", "food"]
ROWS = {0: ["food", "sport", "money"], 1: ["sport", "food"]}
"""By client the classes of its rows."""


def client_yaml(folder: Path, client_id: int, **data: Any) -> Path:
    folder /= str(client_id)
    (folder / "topic").mkdir(parents=True)
    classes = ROWS[client_id]
    rows = "".join(
        f"a text on {classes[row % len(classes)]} {row},{classes[row % len(classes)]}\n" for row in range(12)
    )
    for split in ("train", "validation", "test"):
        (folder / "topic" / f"{split}.csv").write_text("text,label\n" + rows)
    own = {
        "client_id": client_id,
        "superlink": "s:1",
        "authority": "a",
        "key": "k",
        "folder": "state",
        "data": {"source": "csv", "root": ".", "task": "topic"} | data,
        "device": "cpu",
        "limits": {"rounds": 3, "steps": 100, "batch_size": 5},
    }
    (folder / "client.yaml").write_text(yaml.safe_dump(own))
    return folder / "client.yaml"


@pytest.mark.parametrize("said_by", ["run", "clients"])
def test_one_head_of_all_classes(
    said_by: str, federate: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    of_run = [f"data.classes=[{','.join(CLASSES)}]"] if said_by == "run" else []
    of_client = {"classes": CLASSES} if said_by == "clients" else {}

    def grid(app: ClientApp, num_clients: int) -> LocalGrid:
        made = LocalGrid(app, num_clients)
        for client_id, node in enumerate(made.get_node_ids()):
            file = client_yaml(tmp_path, client_id, **of_client)
            made.context(node).node_config["client-file"] = str(file)
        return made

    own = ["data=own", "data.root=null", "data.tasks=null", "clients=2", "client.head=shared", "rounds=1", *of_run]
    run = federate(*own, grid=grid, output=tmp_path / "run")
    heads = load_checkpoint(run.folder / "checkpoints").state.heads
    assert [len(head) for head in heads.values()] == [3 * 65]
    assert "client 1, task topic: no training row has the class money" in caplog.text
