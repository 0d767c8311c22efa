"""The Flower ClientApp: message -> library call -> message.

`query.mask` brings the mask and the settings, once; `train` brings the global delta and takes the update (local minus
global) back; `evaluate` brings the global delta, unless the client holds it, and takes counts back; `query.vectors`
brings the global delta to a client that held it before its process ended. What a client does not hold it asks for: its
reply names what is missing, and the server sends it again in the same round. What never travels is the client's state:
each message names the round whose state it is about.

A node that names a file of its client's own (`client-file`) is a deployed one: what that file says stands in
the place of what the server says. Elsewhere all is the run's.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from numpy.typing import NDArray
from torch import Tensor

from client.counts import check_room, count_training
from client.held import keep_held
from client.process import RunInProcess, begun_run, run_in_process
from client.state import ClientState, Kept, LostStateError
from fedmask.errors import FedmaskError, InputsMismatchError, MaskMismatchError
from fedmask.files import home
from fedmask.processes import seconds_since_start
from fedmask.randomness import seed_for
from fedmask.runs.client_file import ClientFile, read_client_file
from fedmask.tasks.partition import ClientData, notes_for
from fedmask.training.evaluation import count
from fedmask.training.fitness_checks import check_token_types
from fedmask.training.head import HeadLayout, HeadOrigin
from fedmask.training.local import LocalResult, LocalSettings, train_delta_and_head, train_head
from fedmask.training.reparametrisation import BiasNetworks, Direct, Reparametrisation
from fedmask.training.text import TokenizedSplit
from fedmask.wire.downlink import Expected
from fedmask.wire.messages import Fact, Facts, error_reply, facts_of, pack, payload_of, whole_number, word
from fedmask.wire.uplink import encode_updates
from fedmask.wire.vectors import NamedVector

SETUP = "setup"
"""The record of a node's Flower state in which the setup is kept: small, so that it may travel with the context."""

STATE_FOLDER = "FEDMASK_STATE_FOLDER"
"""The variable of a client's process that names the folder of what stays with its clients; by default one at home."""


CLIENT_FILE = "client-file"
"""The key of a node's configuration that names its client's own file: its absence means a simulation."""


def _telling_the_cause(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """A Flower mod: what a handler raises is told in one line. Flower itself sends a whole traceback, or no cause."""
    try:
        return call_next(message, context)
    except Exception as error:
        if CLIENT_FILE in context.node_config:
            _log().error("%s: %s", type(error).__name__, error)
        return error_reply(message, error)


app = ClientApp(mods=[_telling_the_cause])


@dataclass(frozen=True, eq=False)
class Client:
    """One client, ready to work on a message."""

    run: RunInProcess
    data: ClientData
    layout: HeadLayout
    state: ClientState
    own: ClientFile | None
    """What a deployed client says for itself; None in a simulation, where all is the run's."""

    @property
    def shares_head(self) -> bool:
        return self.run.settings.client.head == "shared" and self.run.settings.exchanges_delta

    @property
    def origin(self) -> HeadOrigin:
        """Of the head that this client trains."""
        base, settings = self.run.texts.base, self.run.settings
        facts = settings.run_digest, settings.data.max_length, self.has_pairs
        return HeadOrigin(base.name, base.digest, base.inputs, *facts)

    @property
    def has_pairs(self) -> bool:
        """Whether its texts are pairs."""
        return self.data.task.train.text_b is not None


@app.query("mask")
def receive_mask(message: Message, context: Context) -> Message:
    """Take the mask and settings in; prove by digests that mask, tokenizer and model settings are the server's."""
    setup_bytes = payload_of(message.content)
    own = _own_file(context)
    try:
        run = run_in_process(setup_bytes, own)
    except MaskMismatchError as error:
        refusal: dict[str, int | str] = {"client-id": _client_id(context, own), "mask-mismatch": str(error)}
        return Message(pack(facts=refusal), reply_to=message)
    except InputsMismatchError as error:  # the mask's indices would not help
        if own is not None:
            _log().error("%s", error)
        refusal = {"client-id": _client_id(context, own), "inputs-mismatch": str(error)}
        return Message(pack(facts=refusal), reply_to=message)
    if own is not None:
        check_room(own, run.settings.run_id)
    context.state[SETUP] = _setup_record(setup_bytes)
    client = _client(run, context, own)
    check_token_types(run.texts.base, client.has_pairs)
    if own is not None:
        for note in notes_for([client.data], run.settings.data.examples_per_client):
            _log().warning("client %d, %s", client.data.client_id, note)
    facts: dict[str, int | float | str | bool] = {
        "client-id": client.data.client_id,
        "task": client.data.task.name,
        "metric": client.data.task.metric,
        "mask-digest": "" if run.mask is None else run.mask.digest,
        "inputs-digest": run.texts.base.inputs_digest,
        "head-layout": client.layout.digest,
        "head-size": client.layout.size,
        "num-classes": len(client.layout.labels or ()),
        "classes-digest": client.layout.classes_digest,
        "num-examples": client.data.num_examples,
        "data-digest": client.data.digest,
    }
    return Message(pack(facts=facts), reply_to=message)


@lru_cache(maxsize=2)
def _setup_record(setup_bytes: bytes) -> ConfigRecord:
    """One object for all clients of a process: of ten thousand, each holds a reference."""
    return ConfigRecord({"bytes": setup_bytes})


class MissingError(Exception):
    """What the client does not hold, though the message needs it: mask, or vectors."""


def _saying_what_is_missing(handler: Callable[[Message, Context], Message]) -> Callable[[Message, Context], Message]:
    """The handler, whose MissingError becomes a reply that asks for what is missing."""

    def handle(message: Message, context: Context) -> Message:
        try:
            return handler(message, context)
        except MissingError as missing:
            return Message(pack(facts={"missing": str(missing)}), reply_to=message)

    return handle


@app.train()
@_saying_what_is_missing
def train(message: Message, context: Context) -> Message:
    """Train from the received delta; send back the update, or what is missing."""
    client = _open(context)
    asked = facts_of(message.content)
    server_round, told = whole_number(asked, "round"), dict[str, Fact]()
    if client.own is not None:
        client.own.check_round(client.run.settings, client.data.num_examples, server_round)
        check_room(client.own, client.run.settings.run_id)
    received = _receive(client, message, asked)
    if client.own is not None:  # only now: who lacks something is asked again, and has trained nothing
        count_training(client.own, client.run.settings.run_id)
    try:
        kept = _own_state(client, asked)
    except LostStateError as lost:
        kept, told["state-lost"] = Kept(), str(lost)
    start_delta, start_head = _start(client, received, kept)
    result = _train_locally(client, start_delta, start_head, server_round)
    _check_finite(client, result, server_round)
    updates = _updates(client, result, start_delta, start_head)
    settings, client_id = client.run.settings, client.data.client_id
    payload, residuals = encode_updates(updates, kept.residuals, settings.codec, server_round, client_id, settings.seed)
    if settings.keeps_state:
        _keep(client, server_round, whole_number(asked, "state-round"), result, residuals)
    told |= {"num-examples": client.data.num_examples, "train-loss": result.mean_loss}
    return Message(pack(payload, told), reply_to=message)


def _check_finite(client: Client, result: LocalResult, server_round: int) -> None:
    """Raises FedmaskError where training has left the float32 numbers, and says what helps."""
    is_finite = torch.isfinite(result.delta).all() and torch.isfinite(result.head).all()
    if not is_finite or not math.isfinite(result.mean_loss):
        raise FedmaskError(
            f"client {client.data.client_id}: training in round {server_round} has come to numbers that are not finite;"
            " lower client.learning_rate or client.head_learning_rate"
        )


@app.evaluate()
@_saying_what_is_missing
def evaluate(message: Message, context: Context) -> Message:
    """Score the client's own model on its task's whole split; send back counts."""
    client = _open(context)
    asked = facts_of(message.content)
    split = word(asked, "split")
    received = _receive(client, message, asked)
    kept = _own_state(client, asked) if client.run.settings.keeps_own_model else Kept()
    delta, head = _start(client, received, kept)
    # The model this client would use from now on; where the server took no reply of its, that is none of its own.
    _show(client, Kept(head) if client.shares_head else kept)
    outputs = client.layout.outputs(head, _features(client, delta, split))
    if not torch.isfinite(outputs).all():
        raise FedmaskError(f"client {client.data.client_id}: its model's outputs on {split} are not finite")
    labels = client.run.texts.split(client.data.task, split).labels
    counts = count(client.data.task, outputs, labels, client.data.label_mix)
    told = {
        "counts": counts.whole.tolist(),
        "own-counts": counts.own.tolist(),
        "majority-counts": counts.majority.tolist(),
    }
    return Message(pack(facts=told), reply_to=message)


@app.query("vectors")
@_saying_what_is_missing
def hold_vectors(message: Message, context: Context) -> Message:
    """Take the global vectors in, to be scored with them later."""
    _receive(_open(context), message, facts_of(message.content))
    return Message(pack(), reply_to=message)


def _open(context: Context) -> Client:
    """The client of this node. Raises MissingError where it holds no mask."""
    if SETUP not in context.state.config_records:
        raise MissingError("mask")
    setup_bytes = context.state.config_records[SETUP]["bytes"]
    assert isinstance(setup_bytes, bytes)
    own = _own_file(context)
    return _client(begun_run(setup_bytes, own), context, own)


def _own_file(context: Context) -> ClientFile | None:
    """Raises FedmaskError where the file that the node names is not what it should be."""
    named = context.node_config.get(CLIENT_FILE)
    return None if named is None else read_client_file(Path(str(named)))


def _client_id(context: Context, own: ClientFile | None) -> int:
    return int(context.node_config["partition-id"]) if own is None else own.client_id


def _client(run: RunInProcess, context: Context, own: ClientFile | None) -> Client:
    client_id = _client_id(context, own)
    data = run.texts.client(client_id)
    layout = HeadLayout.of(data.task, run.texts.base.hidden_size)
    folder, run_id = _state_folder(context, own, run.settings.run_id), run.settings.run_id
    return Client(run, data, layout, ClientState(folder, run_id, client_id), own)


def _state_folder(context: Context, own: ClientFile | None, run_id: str) -> Path:
    """Where this process keeps the folders of its clients: a deployed client's file or a simulation's run names it,
    elsewhere every run has one."""
    if own is not None:
        return own.states / run_id
    if "state-folder" in context.node_config:
        return Path(str(context.node_config["state-folder"]))
    kept_in = os.environ.get(STATE_FOLDER)
    return (Path(kept_in) if kept_in else home(STATE_FOLDER) / ".fedmask" / "clients") / run_id


def _receive(client: Client, message: Message, asked: Facts) -> dict[str, NDArray[np.float32]]:
    """The global vectors that the message is about, by name: what is held, with what it brings.

    Raises MissingError where that is not enough.
    """
    if not (expected := _expected(client)):
        return {}
    version, checksum = whole_number(asked, "version"), whole_number(asked, "sum")
    payload = payload_of(message.content)
    vectors = client.run.received.take(payload, expected, version, checksum)
    if vectors is None:
        raise MissingError("vectors")
    if client.own is not None and payload:
        run_id = client.run.settings.run_id
        keep_held(client.own.states / run_id, run_id, client.run.received)
    return vectors


def _expected(client: Client) -> Expected:
    """The vectors that travel in this run."""
    expected = []
    if client.run.settings.exchanges_delta:
        assert client.run.mask is not None
        expected.append(("delta", client.run.mask.digest, client.run.mask.num_selected))
    if client.shares_head:
        expected.append(("head", client.layout.digest, client.layout.size))
    return expected


def _own_state(client: Client, asked: Facts) -> Kept:
    """The client's state after the round that a message names. Raises LostStateError."""
    if not client.run.settings.keeps_state:
        return Kept()
    return client.state.load(whole_number(asked, "state-round"), client.layout)


def _keep(
    client: Client,
    server_round: int,
    state_round: int,
    result: LocalResult,
    residuals: Mapping[str, NDArray[np.float32]],
) -> None:
    """What does not travel, or has not yet, becomes the client's state after this round."""
    settings = client.run.settings
    has_own_delta = settings.trains_delta and not settings.exchanges_delta
    kept = Kept(None if client.shares_head else result.head, result.delta if has_own_delta else None, residuals)
    client.state.keep(server_round, state_round, client.layout, kept)
    _show(client, kept)


def _show(client: Client, kept: Kept) -> None:
    """head.safetensors and, in baselines with one, adapter.safetensors are what the client has of its own."""
    settings, mask = client.run.settings, client.run.mask
    client.state.show_head(client.layout, kept.head, client.origin)
    if mask is not None and not settings.exchanges_delta:
        client.state.show_delta(mask, client.run.texts.base, kept.delta, client.layout, client.origin)


def _start(client: Client, received: Mapping[str, NDArray[np.float32]], kept: Kept) -> tuple[Tensor, Tensor]:
    """The delta (k,) and the head (size,) to begin with: received where they travel, else the client's own."""
    settings, mask = client.run.settings, client.run.mask
    if "delta" in received:
        delta = torch.from_numpy(received["delta"])
    elif kept.delta is not None:
        delta = kept.delta
    else:
        delta = torch.zeros(mask.num_selected if mask is not None and settings.trains_delta else 0)
    start = client.run.texts.head_start(client.layout, settings.client.head_init, settings.seed)
    if client.shares_head:
        return delta, start + torch.from_numpy(received["head"])
    return delta, start if kept.head is None else kept.head


def _train_locally(client: Client, delta: Tensor, head: Tensor, server_round: int) -> LocalResult:
    settings, data = client.run.settings, client.data
    local = LocalSettings(
        local_epochs=settings.client.local_epochs,
        batch_size=settings.client.batch_size,
        learning_rate=settings.client.learning_rate or 0.0,  # none where no delta is trained
        head_learning_rate=0.0 if settings.client.head == "frozen" else settings.client.head_learning_rate,
        weight_decay=settings.client.weight_decay,
        batch_seed=seed_for(settings.seed, "batches", server_round, data.client_id),
    )
    tokens, unit = client.run.texts.training(data.client_id), data.task.unit
    if unit == 1.0:
        return _trained(client, delta, head, tokens, local, server_round)
    # Large targets are counted in a unit for as long as the client trains; what comes and goes is in the labels' own.
    in_units = replace(tokens, labels=tokens.labels / unit)
    result = _trained(client, delta, head / unit, in_units, local, server_round)
    return replace(result, head=head if local.head_learning_rate == 0 else result.head * unit)


def _trained(
    client: Client, delta: Tensor, head: Tensor, tokens: TokenizedSplit, local: LocalSettings, server_round: int
) -> LocalResult:
    settings, data = client.run.settings, client.data
    if not settings.trains_delta:
        features = client.run.texts.base_training_features(data.client_id)
        _tell_start(client, server_round)
        trained_head, loss = train_head(features, client.layout, head, tokens, local)
        return LocalResult(delta, trained_head, loss)
    assert client.run.gradient is not None
    reparametrisation = _reparametrisation(client, delta, server_round)
    _tell_start(client, server_round)
    return train_delta_and_head(
        client.run.texts.base.encoder,
        client.run.gradient,
        reparametrisation,
        client.layout,
        head,
        tokens,
        local,
    )


def _tell_start(client: Client, server_round: int) -> None:
    """In a deployed client's log, what it costs that each message has a process of its own."""
    if client.own is None:
        return
    with suppress(OSError):  # where there is no /proc
        wall, cpu = seconds_since_start(), time.process_time()
        text = "client %d, round %d: %.2f s from the process's start to its first step, %.2f s of them on a CPU"
        _log().info(text, client.data.client_id, server_round, wall, cpu)


def _log() -> logging.Logger:
    """What comes out in the log of a deployed client."""
    logger = logging.getLogger("fedmask")
    if not logger.hasHandlers():  # Flower's process shows its own logger's messages, and others' warnings
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)
    return logger


def _reparametrisation(client: Client, delta: Tensor, server_round: int) -> Reparametrisation:
    settings = client.run.settings
    if settings.rank == 0:
        return Direct(delta)
    assert client.run.entries is not None
    generator = torch.Generator().manual_seed(seed_for(settings.seed, "hiwi", server_round, client.data.client_id))
    return BiasNetworks(client.run.entries, delta, settings.rank, generator)


def _updates(client: Client, result: LocalResult, delta: Tensor, head: Tensor) -> list[NamedVector]:
    """Local minus received, of each vector that travels."""
    updates = []
    if client.run.settings.exchanges_delta:
        assert client.run.mask is not None
        updates.append(NamedVector("delta", client.run.mask.digest, (result.delta - delta).numpy()))
    if client.shares_head:
        updates.append(NamedVector("head", client.layout.digest, (result.head - head).numpy()))
    return updates


def _features(client: Client, delta: Tensor, split: str) -> Tensor:
    settings, task = client.run.settings, client.data.task
    if not settings.trains_delta:
        return client.run.texts.base_features(task, split)
    if settings.exchanges_delta:
        return client.run.features(delta, task, split)
    return client.run.encode_with(delta, task, split)
