"""What all tests share: an offline process of one thread with a cache of its own; the tiny base in both dtypes."""

import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]

from fedmask.models import BaseModel, load_base
from server.answers import INTERNAL_ERROR

_cache = tempfile.TemporaryDirectory(prefix="fedmask-tests-")  # until this process ends
os.environ |= {
    "FEDMASK_CACHE_FOLDER": _cache.name,
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
torch.set_num_threads(1)

CONF = Path(__file__).parent.parent / "conf"


class _InternalErrors(logging.Handler):
    """Collects what the server tells of faults of its own over a reply."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if INTERNAL_ERROR in record.getMessage():
            self.told.append(self.format(record))


@pytest.fixture(autouse=True)
def internal_errors() -> Iterator[list[str]]:
    """What is told of faults of fedmask's own over a reply: a test fails on them, unless it has emptied the list."""
    handler, logger = _InternalErrors(), logging.getLogger("fedmask")
    logger.addHandler(handler)
    yield handler.told
    logger.removeHandler(handler)
    assert not handler.told, "\n".join(handler.told)


@pytest.fixture(scope="session")
def tiny() -> BaseModel:
    """BERT with 2 layers and hidden size 64, random weights, shared: a test that changes it changes a copy."""
    return load_base("tiny", geometry=_geometry())


@pytest.fixture(scope="session")
def tiny_bf16() -> BaseModel:
    """The same weights, rounded to bfloat16."""
    return load_base("tiny", geometry=_geometry(), dtype="bfloat16")


@pytest.fixture(scope="session")
def tiny_cuda() -> BaseModel:
    """The same weights on a GPU."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU that torch sees")
    return load_base("tiny", geometry=_geometry(), device="cuda")


def _geometry() -> dict[str, Any]:
    geometry: dict[str, Any] = yaml.safe_load((CONF / "model" / "tiny.yaml").read_text())["geometry"]
    return geometry
