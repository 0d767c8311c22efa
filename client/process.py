"""What one process holds for all the clients in it: one base model, one mask, every text tokenized once.

A process may run one client (deployment) or many (simulation); a client switch costs one scatter of k values. Scoring
shares work as well: clients with the same delta and task differ in their heads only, so a split is encoded once.
"""

import dataclasses
import logging
import resource
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from client.held import take_up_held
from fedmask.errors import FedmaskError, InputsMismatchError
from fedmask.masks import Mask, MaskRecipe
from fedmask.models import BaseModel, load_base
from fedmask.models.identity import check_inputs
from fedmask.models.size import num_parameters_of
from fedmask.processes import machine_memory_bytes
from fedmask.runs.client_file import ClientFile
from fedmask.runs.config import DataConfig, ModelConfig
from fedmask.tasks import Reading
from fedmask.tasks.held import forget_tasks, held_tasks
from fedmask.tasks.partition import ClientData, partition, pool, sole_client
from fedmask.tasks.task import Split, Task
from fedmask.training.delta import SelectedEntries
from fedmask.training.fitness import check_fitness
from fedmask.training.gradient import SelectedGradient
from fedmask.training.head import HeadLayout
from fedmask.training.text import TokenizedSplit, encode, tokenize
from fedmask.training.token_cache import cached_tokens
from fedmask.wire.downlink import Received
from fedmask.wire.setup import Settings, Setup

BYTES_A_PARAMETER = 8
"""Float32 values are there twice while a base model is laid out in one piece."""


class Texts:
    """The clients' data under one base model, tokenized on first use; the base model's features likewise."""

    def __init__(self, base: BaseModel, clients: tuple[ClientData, ...], max_length: int) -> None:
        self.base = base
        self.clients = clients
        self._by_id = {client.client_id: client for client in clients}
        self._max_length = max_length
        self._tokens: dict[tuple[str, str], TokenizedSplit] = {}
        self._ranges: dict[int, tuple[int, int]] = _ranges(clients)
        self._base_features: dict[tuple[str, str | int], Tensor] = {}
        self._head_starts: dict[tuple[HeadLayout, str, int], Tensor] = {}

    def client(self, client_id: int) -> ClientData:
        if client_id not in self._by_id:
            raise FedmaskError(
                f"client {client_id} is not in this federation of {len(self.clients)} clients: give their nodes the "
                f"partition-ids 0 to {len(self.clients) - 1} (with flwr run: num-supernodes={len(self.clients)})"
            )
        return self._by_id[client_id]

    def training(self, client_id: int) -> TokenizedSplit:
        """The client's own training examples: a part of its task's."""
        first, end = self._ranges[client_id]
        return self._tokenized("train", self.client(client_id).task).part(first, end)

    def split(self, task: Task, name: str) -> TokenizedSplit:
        """A task's whole `validation` or `test` split."""
        return self._tokenized(name, task)

    def base_features(self, task: Task, split: str) -> Tensor:
        """Features (n, H) of a whole split under the base model without any delta; encoded once."""
        return self._encoded_once((split, task.name), lambda: self.split(task, split))

    def base_training_features(self, client_id: int) -> Tensor:
        """Features (n, H) of the client's own training examples under the base model; encoded once."""
        return self._encoded_once(("train", client_id), lambda: self.training(client_id))

    def _encoded_once(self, key: tuple[str, str | int], tokens: Callable[[], TokenizedSplit]) -> Tensor:
        if key not in self._base_features:
            self._base_features[key] = encode(self.base.encoder, tokens())
        return self._base_features[key]

    def head_start(self, layout: HeadLayout, head_init: str, seed: int) -> Tensor:
        """What a head of this layout starts from, float32 (size,); the same in every process with this base model."""
        key = (layout, head_init, seed)
        if key not in self._head_starts:
            self._head_starts[key] = self._make_head_start(layout, head_init, seed)
        return self._head_starts[key]

    def _make_head_start(self, layout: HeadLayout, head_init: str, seed: int) -> Tensor:
        if head_init == "random" or layout.labels is None:  # a regression has no names to start from
            return layout.random_start(seed)
        names = tuple(name.replace("_", " ") for name in layout.labels)
        rows = Split(names, None, np.zeros(len(names), np.int64))
        tokens = tokenize(rows, self.base.tokenizer, self.base.encoder, self._max_length)
        return layout.label_name_start(encode(self.base.encoder, tokens))

    def _tokenized(self, split: str, task: Task) -> TokenizedSplit:
        """train: what the task's clients have, in client order."""
        key = (split, task.name)
        if key not in self._tokens:
            rows = (
                self._training_rows(task)
                if split == "train"
                else {"validation": task.validation, "test": task.test}[split]
            )
            self._tokens[key] = cached_tokens(rows, self.base.tokenizer, self.base.encoder, self._max_length)
        return self._tokens[key]

    def _training_rows(self, task: Task) -> Split:
        return task.train.take(np.concatenate([client.rows for client in self.clients if client.task is task]))


def _ranges(clients: tuple[ClientData, ...]) -> dict[int, tuple[int, int]]:
    """By client_id where a client's rows stand among all rows of its task's clients."""
    ends: Counter[str] = Counter()
    ranges = {}
    for client in clients:
        first = ends[client.task.name]
        ends[client.task.name] += client.num_examples
        ranges[client.client_id] = first, ends[client.task.name]
    return ranges


class RunInProcess:
    """One run as this process takes part in it."""

    def __init__(self, setup: Setup, texts: Texts) -> None:
        """Raises InputsMismatchError where this process's base model reads or computes otherwise than the server's, and
        MaskMismatchError where the recipe does not fit its weights."""
        self.settings: Settings = setup.settings
        self.texts = texts
        base = self.texts.base
        _check_inputs(setup, base)
        if isinstance(setup.mask, MaskRecipe):
            self.mask: Mask | None = setup.mask.rebuild(base.encoder, base.digest)
        else:
            self.mask = setup.mask
        self.entries = None if self.mask is None else SelectedEntries(base.encoder, self.mask)
        self.gradient = None if self.entries is None else SelectedGradient(base.encoder, self.entries)
        self.received = Received(setup.settings.codec, setup.settings.seed)
        self._features: tuple[Tensor, dict[tuple[str, str], Tensor]] = (torch.zeros(0), {})

    def features(self, delta: Tensor, task: Task, split: str) -> Tensor:
        """Features (n, H) of a split under the global delta; encoded once for all clients of the task."""
        # By its values, not by its version: a run that is started again counts its versions again.
        if not torch.equal(self._features[0], delta):
            self._features = (delta, {})
        cached = self._features[1]
        if (task.name, split) not in cached:
            cached[(task.name, split)] = self.encode_with(delta, task, split)
        return cached[(task.name, split)]

    def encode_with(self, delta: Tensor, task: Task, split: str) -> Tensor:
        """Features (n, H) of a split under a delta of the client's own."""
        assert self.entries is not None
        with self.entries.written(delta):
            return encode(self.texts.base.encoder, self.texts.split(task, split))


def _check_inputs(setup: Setup, base: BaseModel) -> None:
    expected = setup.mask.inputs if isinstance(setup.mask, MaskRecipe) else None
    remedy = f"take the same copy of {base.name} on server and clients"
    if expected is not None:
        check_inputs(base.inputs, expected, "the run's", remedy)
    elif not setup.settings.inputs_digest:
        logging.getLogger("fedmask").warning(
            "the run does not say with which tokenizer and settings its base model is used: only weights are compared"
        )
    elif setup.settings.inputs_digest != base.inputs_digest:
        raise InputsMismatchError(
            f"this base model reads or computes otherwise than the run's: another tokenizer or setting (digest "
            f"{base.inputs_digest[:12]} instead of {setup.settings.inputs_digest[:12]}); {remedy}"
        )


def run_in_process(setup_bytes: bytes, own: ClientFile | None = None) -> RunInProcess:
    """The run of this setup, from data and base model as their files are now; the same object for every client of it in
    this process.

    own: of the one client of a process that is deployed; what it says stands in the place of what the server says.
    """
    run = begun_run(setup_bytes, own)
    if texts_for(run.settings, own) is not run.texts:  # a file has changed: a run that is resumed must not see the old
        _run_in_process.cache_clear()
        run = begun_run(setup_bytes, own)
    return run


def begun_run(setup_bytes: bytes, own: ClientFile | None = None) -> RunInProcess:
    """As `run_in_process`, for a message after the first of a run: it goes on with the data that it began with."""
    if own is not None and own.memory_bytes is not None:
        limit_memory(own.memory_bytes)
    run = _run_in_process(setup_bytes, own)
    if torch.get_num_threads() != run.settings.threads:
        torch.set_num_threads(run.settings.threads)
    return run


@lru_cache(maxsize=2)
def _run_in_process(setup_bytes: bytes, own: ClientFile | None) -> RunInProcess:
    def as_here(settings: Settings) -> Settings:
        if own is None:
            return settings
        _check_size(settings.model, own)
        return own.applied_to(settings)

    def texts(settings: Settings) -> Texts:
        return texts_for(as_here(settings), own)

    setup = Setup.from_bytes(setup_bytes, lambda settings: texts(settings).base.num_parameters)
    run = RunInProcess(dataclasses.replace(setup, settings=as_here(setup.settings)), texts(setup.settings))
    if own is not None:  # elsewhere the server's process has done so
        check_fitness(run.texts.base, run.mask, setup.settings.data.max_length)
        take_up_held(own.states / run.settings.run_id, run.settings.run_id, run.received)
    return run


def _check_size(model: ModelConfig, own: ClientFile) -> None:
    """Raises FedmaskError where a server's geometry asks for a model that this client's memory does not hold."""
    is_made = model.weights == "random" or model.hub is None
    if not is_made or model.geometry is None or own.model_path is not None:
        return
    memory = machine_memory_bytes() if own.memory_bytes is None else own.memory_bytes
    num_parameters_of(model.name, model.geometry, memory // BYTES_A_PARAMETER)


# What follows is kept by the objects it is made from, and these are others once a file has changed: `held_tasks` and
# `load_base` see to that. So nothing outlives a changed file.


def texts_for(settings: Settings, own: ClientFile | None = None) -> Texts:
    """The texts of a run's clients, or of the one whose file it is; shared by the runs of one process that differ in
    how they train only. settings: as they are here."""
    if own is None:
        clients = population(settings.data, settings.clients, settings.seed, pooled=settings.baseline == "central")
    else:
        clients = _own_clients(own.client_id, _tasks(settings.data), settings.data.examples_per_client, settings.seed)
    base = load_base(**dataclasses.asdict(settings.model), device=settings.device)
    return _texts(base, clients, settings.data.max_length)


@lru_cache(maxsize=2)
def _texts(base: BaseModel, clients: tuple[ClientData, ...], max_length: int) -> Texts:
    return Texts(base, clients, max_length)


def population(data: DataConfig, num_clients: int, seed: int, pooled: bool = False) -> tuple[ClientData, ...]:
    """All clients with their data: tasks loaded and partitioned; pooled: one client a task, with its clients' data.

    Raises FedmaskError for a task, folder, file or partition that cannot be had.
    """
    dealt = (num_clients, data.partition, data.alpha, data.examples_per_client, seed)
    return _population(_tasks(data), dealt, pooled)


@lru_cache(maxsize=4)
def _population(tasks: tuple[Task, ...], dealt: tuple[Any, ...], pooled: bool) -> tuple[ClientData, ...]:
    return pool(_population(tasks, dealt, False)) if pooled else partition(tasks, *dealt)


@lru_cache(maxsize=2)
def _own_clients(client_id: int, tasks: tuple[Task, ...], examples: int | None, seed: int) -> tuple[ClientData, ...]:
    """The one client that is deployed: at most so many examples of its own task, drawn by the run's seed."""
    (task,) = tasks
    return (sole_client(client_id, task, examples, seed),)


def _tasks(data: DataConfig) -> tuple[Task, ...]:
    reading = Reading(data.text, data.text_b, data.label, data.classes)
    return held_tasks(data.source, data.root, data.tasks, reading)


def _forget() -> None:
    forget_tasks()
    _population.cache_clear()
    _own_clients.cache_clear()


population.cache_clear = _forget  # type: ignore[attr-defined]  # as of any cached function


def limit_memory(limit_bytes: int) -> None:
    """Bytes of data, shared libraries and mapped files apart, beyond which this process is given no memory."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = limit_bytes if most == resource.RLIM_INFINITY else min(limit_bytes, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
