"""One model switched from client to client: fedmask writes k values, a framework of full copies loads a state dict.

Memory is what one more idle client takes of the process that simulates it, server and client side together: the slope
between two federations that have both trained and scored.
"""

import gc
import tempfile
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.encoders import random_encoder
from benchmarks.measure import alternate, time_rows
from benchmarks.rows import Row, Settings
from client.app import app as client_app
from client.process import forget_data
from fedmask.errors import FedmaskError
from fedmask.masks import select
from fedmask.models import lay_out_in_one_piece, load_base
from fedmask.runs.config import RunConfig
from fedmask.tasks import load_tasks
from fedmask.training.delta import SelectedEntries
from fedmask.training.head import HeadLayout
from server.app import SilentObserver, run_federation
from server.compose import compose
from server.local_grid import LocalGrid

MODELS = ("roberta-base", "roberta-large")
DENSITY = 0.0003
SCATTER, FULL_COPY = "one scatter of k values", "load_state_dict of a full copy"
LEAST_FASTER = 150.0
SWITCHES_A_RUN = 16
"""From client to client and back. Of so many the first counts little, which finds the caches cold; a row of its own
shows that one."""
NUM_CLIENTS = (20, 220)
SPARE_BYTES = 1024
"""What an idle client may take beside its values and its head."""


def rows(settings: Settings) -> Iterator[Row]:
    for model in ("tiny",) if settings.is_trial else MODELS:
        yield from _switch_rows(model, settings)
    yield _memory_row(settings)


def _switch_rows(model: str, settings: Settings) -> Iterator[Row]:
    settings.say(f"making {model}")
    encoder = random_encoder(model)
    lay_out_in_one_piece(encoder)  # as a base model is when it is loaded
    entries = SelectedEntries(encoder, select(encoder, "pafi", density=DENSITY, base_digest="0" * 64))
    generator = torch.Generator().manual_seed(0)
    deltas = [torch.randn(entries.mask.num_selected, generator=generator) * 0.01 for _ in range(2)]
    copies = [_full_copy(encoder, entries, delta) for delta in deltas]
    _check_same_switch(encoder, entries, deltas, copies)
    millions = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
    for num_switches, target in ((SWITCHES_A_RUN, LEAST_FASTER), (1, None)):
        cold = "" if target else ", caches cold"
        work = f"{model}, {millions:.0f}M parameters, density {DENSITY}, switches in a run: {num_switches}{cold}"
        settings.say(work)
        works = {
            SCATTER: partial(_scatter, entries, deltas, num_switches),
            FULL_COPY: partial(_load, encoder, copies, num_switches),
        }
        yield from time_rows("switch", work, SCATTER, FULL_COPY, alternate(works, settings.repeats), target)


def _full_copy(encoder: nn.Module, entries: SelectedEntries, delta: Tensor) -> dict[str, Tensor]:
    with entries.written(delta):
        return {name: tensor.clone() for name, tensor in encoder.state_dict().items()}


def _scatter(entries: SelectedEntries, deltas: list[Tensor], num_switches: int) -> None:
    for _, delta in zip(range(num_switches), cycle(deltas), strict=False):
        entries.write(delta)


def _load(encoder: nn.Module, copies: list[dict[str, Tensor]], num_switches: int) -> None:
    for _, copy in zip(range(num_switches), cycle(copies), strict=False):
        encoder.load_state_dict(copy)


def _check_same_switch(
    encoder: nn.Module, entries: SelectedEntries, deltas: list[Tensor], copies: list[dict[str, Tensor]]
) -> None:
    """Raises FedmaskError where the two ways do not leave the same model."""
    encoder.load_state_dict(copies[0])
    entries.write(deltas[1])
    if not all(torch.equal(tensor, copies[1][name]) for name, tensor in encoder.state_dict().items()):
        raise FedmaskError("switch: a scatter and a full copy leave different models")


# ----------------------------------------------------------------------------------------------------------------------
# Memory of an idle client
# ----------------------------------------------------------------------------------------------------------------------


def _memory_row(settings: Settings) -> Row:
    few, many = (2, 6) if settings.is_trial else NUM_CLIENTS
    work = f"tiny model, {many} clients beside {few}, between two rounds"
    settings.say(work)
    for _ in range(2):  # what a process makes once, or keeps of its last two runs, is there from here on
        _federate(few)
    slope = (_federate(many) - _federate(few)) / (many - few)
    return Row("switch", work, "an idle client", "its values, its head and 1 KB", slope, _limit_bytes(), "bytes", 1.0)


def _federate(num_clients: int) -> int:
    """Bytes that a federation holds between two rounds, its clients' data among them; their files lie on disk."""
    forget_data()
    gc.collect()
    observer = _Weighing()
    tensor_bytes_before = _tensor_bytes()
    with tempfile.TemporaryDirectory() as folder:
        config = replace(_config(num_clients), output=str(Path(folder) / "run"))
        tracemalloc.start()
        try:
            run_federation(LocalGrid(client_app, num_clients), config, observer)
        finally:
            tracemalloc.stop()
    return observer.held_bytes - tensor_bytes_before


class _Weighing(SilentObserver):
    """Notes what Python and torch hold when the second round begins."""

    held_bytes = 0

    def stage_started(self, server_round: int, stage: str, num_clients: int) -> None:
        if (server_round, stage) == (2, "training"):
            gc.collect()
            traced_bytes, _ = tracemalloc.get_traced_memory()
            self.held_bytes = traced_bytes + _tensor_bytes()


def _tensor_bytes() -> int:
    """Of all tensors' memory, which tracemalloc does not see; what lies mapped on disk counts as well. Sparse tensors
    are left out: a base model's gradient has some, and no client any."""
    tensors = (found for found in gc.get_objects() if type(found) in (Tensor, nn.Parameter))
    storages = (tensor.untyped_storage() for tensor in tensors if tensor.layout == torch.strided)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _config(num_clients: int) -> RunConfig:
    data = ["data.tasks=[topic]", "data.partition=iid", "data.examples_per_client=2", "data.max_length=16"]
    return compose(["model=tiny", f"clients={num_clients}", "rounds=2", "score_test=false", "threads=1", *data])


def _limit_bytes() -> int:
    """Of a client of `_config`."""
    config = _config(1)
    encoder = load_base("tiny", geometry=config.model.geometry).encoder
    num_values = select(encoder, "pafi", density=DENSITY, base_digest="0" * 64).num_selected
    task = load_tasks(config.data.source, config.data.root, config.data.tasks)[0]
    head = HeadLayout(task.name, task.labels, encoder.config.hidden_size)
    return 4 * (num_values + head.size) + SPARE_BYTES
