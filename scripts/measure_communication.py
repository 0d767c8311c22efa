"""Measure what a round costs on the wire, by codec; or what a score has cost, by finished run:

    python scripts/measure_communication.py [codecs=[fp32,int4+entropy,sign]] [steps=5] [output=DIR] [KEY=VALUE ...]
    python scripts/measure_communication.py run=DIR [codecs=[...]] [steps=5] [output=DIR]
    python scripts/measure_communication.py runs=[DIR,DIR] [output=DIR]

First form: KEY=VALUE is as for simulate.py. Client 0 is sent the mask, trains for so many steps from a delta of zeros,
and its update is what each codec encodes, for both ways. Second: configuration and base model of a finished run; its
delta goes down, and what client 0 makes of it in so many steps comes up; trust=true where that configuration names code
to run (data=python). The messages are those of a run, answered by
the client of a run, with what each codec makes of the delta in place of their payload. Third: score against the bytes
of all messages.

Prints a table; writes communication.csv and communication.png into output=DIR, by default runs/communication. What
rivals would send stands beside, by formula (`fedmask.wire.projections`) and labelled as projection. A task head that
travels, scoring messages, HTTP and TLS come on top of what the table says; seconds are bytes over the rate of the link.
"""

import preparation  # noqa: F401

# isort: split
import csv
import io
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedmask.errors import FedmaskError
from fedmask.files import write_atomically
from fedmask.runs.command import asks_for_help, exit_code, own_arguments, switch, usable_path
from fedmask.runs.config import RunConfig, read_config
from fedmask.runs.trust import TRUST, check_trusted
from fedmask.wire.codecs import codec
from fedmask.wire.projections import full_finetuning_bytes_each_way, projections
from server.compose import compose

if TYPE_CHECKING:
    from flwr.app import Message
    from rich.table import Table

    from fedmask.masks import Mask
    from fedmask.models import BaseModel
    from fedmask.runs.communication_plot import Bar
    from server.local_grid import LocalGrid

CODECS = (
    *("fp32", "fp16", "bf16", "int8", "int8+entropy", "int4", "int4+entropy", "sign"),
    *("topk:0.1:int4+entropy", "topk:0.05:sign", "topk:0.01:int4+entropy", "topk:0.005:sign"),
)
KEYS = ("codecs", "steps", "output", "run", "runs", TRUST)
LINKS_MBIT = (10, 100)
TABLE, PLOT = "communication.csv", "communication.png"
SEED = 1
"""Of the codecs' rounding."""

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    codecs: tuple[str, ...]
    steps: int
    output: Path
    run: Path | None
    runs: tuple[Path, ...]
    overrides: tuple[str, ...]
    """Of the configuration; none with run or runs."""
    is_trusted: bool
    """Whether code may be run that the configuration of `run` names."""


def main(arguments: list[str]) -> int:
    if asks_for_help(arguments):
        print(__doc__)
        return 0
    return exit_code(lambda: run(read_request(arguments)))


def run(request: Request) -> None:
    if request.runs:
        compare(request)
    else:
        measure(request)


def read_request(arguments: Sequence[str]) -> Request:
    """Raises FedmaskError for an argument that has no sense, and for a codec that does not exist."""
    own, overrides = own_arguments(arguments, KEYS, paths=("output", "run"))
    given = {"steps": "5", "output": "runs/communication", TRUST: "false"} | own
    codecs = _listed(given["codecs"]) if "codecs" in given else CODECS
    for spec in codecs:
        codec(spec)
    if not given["steps"].isdecimal() or int(given["steps"]) < 1:
        raise FedmaskError(f"steps={given['steps']}: must be a whole number of at least 1")
    if "run" in given and "runs" in given:
        raise FedmaskError("give either run=DIR, to measure codecs on it, or runs=[DIR,DIR], to compare runs")
    if overrides and ("run" in given or "runs" in given):
        raise FedmaskError(f"{overrides[0]}: a finished run says itself how it was made; leave it out")
    return Request(
        codecs=codecs,
        steps=int(given["steps"]),
        output=Path(given["output"]),
        run=Path(given["run"]) if "run" in given else None,
        runs=tuple(Path(usable_path("runs", path)) for path in _listed(given["runs"])) if "runs" in given else (),
        overrides=tuple(overrides),
        is_trusted=switch(given, TRUST),
    )


def _listed(text: str) -> tuple[str, ...]:
    """`[a,b]`, or one alone."""
    return tuple(entry.strip() for entry in text.removeprefix("[").removesuffix("]").split(","))


# ----------------------------------------------------------------------------------------------------------------------
# What a round costs, by codec
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One codec, measured, or one rival, projected; bytes are per client, of train messages per round."""

    name: str
    formula: str
    """Of a projection; empty where the bytes were measured."""
    downlink_payload_bytes: int
    uplink_payload_bytes: int
    downlink_wire_bytes: int
    uplink_wire_bytes: int
    mask_wire_bytes: int
    """Once, both ways."""
    downlink_error: float | None
    uplink_error: float | None
    """Length of what one message loses, over the length of the vector; nothing is fed back."""
    times_less: float
    """Than full fine-tuning, per client and round, both ways."""

    @property
    def is_projection(self) -> bool:
        return bool(self.formula)

    @property
    def round_bytes(self) -> int:
        return self.downlink_wire_bytes + self.uplink_wire_bytes

    def run_bytes(self, config: RunConfig) -> int:
        """Of all clients over all rounds, with the masks."""
        taking_part = min(config.clients_per_round or config.clients, config.clients)
        return self.mask_wire_bytes * config.clients + self.round_bytes * taking_part * config.rounds

    def seconds(self, link_mbit: int) -> float:
        """Of a client in a round, on a link of so many Mbit/s, one way after the other."""
        return 8 * self.round_bytes / (1e6 * link_mbit)


def measure(request: Request) -> None:
    from client.process import population
    from fedmask.runs.communication_plot import bytes_by_codec
    from fedmask.runs.console import console

    config = _config(request)
    # What is wrong with the data is told before a model is loaded.
    first, *_ = population(config.data, config.clients, config.seed)
    if (num_steps := first.num_examples // config.client.batch_size) < request.steps:
        raise FedmaskError(
            f"steps={request.steps}: client 0 has {first.num_examples} training examples, enough for {num_steps} steps "
            f"of client.batch_size={config.client.batch_size}; ask for fewer, or for fewer clients"
        )
    console.print(f"training {request.steps} steps on client 0 of {config.clients}", markup=False)
    with tempfile.TemporaryDirectory() as folder:
        exchanged = exchange(config, _adapter(request.run), Path(folder))
    lines = [*(encoded(spec, exchanged) for spec in request.codecs), *rivals(exchanged.base)]
    title = _title(config, exchanged, request)
    console.print(_table(title, lines, config))
    for note in _notes(lines, config):
        console.print(note, markup=False)
    _write(request.output, _csv(lines, config), bytes_by_codec(title, [_bar(line) for line in lines]))
    console.print(f"{request.output / TABLE}, {request.output / PLOT}", markup=False)


def _config(request: Request) -> RunConfig:
    """With as many examples a client as the steps take, in one epoch; what is measured is the delta, not a head."""
    config = compose(request.overrides) if request.run is None else _config_of(request.run)
    if request.run is not None:
        check_trusted(config, f"run={request.run}", request.is_trusted)
    if config.baseline != "none":
        raise FedmaskError(f"baseline={config.baseline}: sends no vectors; there is nothing to measure")
    data = replace(config.data, examples_per_client=request.steps * config.client.batch_size)
    client = replace(config.client, local_epochs=1)
    client = client if client.head != "shared" else replace(client, head="local")
    codec = replace(config.codec, up="fp32", down="fp32")  # the update itself, for others to encode
    return replace(config, data=data, client=client, codec=codec)


def _config_of(run: Path) -> RunConfig:
    from fedmask.runs.folder import CONFIG, SUMMARY

    if not (run / SUMMARY).is_file():
        raise FedmaskError(f"{run}: holds no finished run, for it has no {SUMMARY}; name the folder of one")
    return read_config(run / CONFIG)


def _adapter(run: Path | None) -> Values | None:
    from fedmask.runs.folder import ADAPTER
    from fedmask.training.delta import load_adapter

    return None if run is None else load_adapter(run / ADAPTER).values


@dataclass(frozen=True, eq=False)
class Exchanged:
    """A round's two messages with one client, and the vectors that they carry."""

    base: "BaseModel"
    mask: "Mask"
    request: "Message"
    reply: "Message"
    mask_wire_bytes: int
    down: Values
    up: Values
    part: NDArray[np.int64] | None
    """Indices of the entries that travel in a round; None for all."""


def exchange(config: RunConfig, delta: Values | None, folder: Path) -> Exchanged:
    """Introduce client 0 and let it train from the delta (k,); without one from zeros, and what comes up stands for
    what goes down too. folder: for what the client keeps.
    """
    from flwr.app import Message

    from client.app import app as client_app
    from fedmask.wire.downlink import Downlink
    from fedmask.wire.messages import pack, payload_of, wire_bytes
    from fedmask.wire.setup import Setup
    from fedmask.wire.uplink import part_of
    from fedmask.wire.vectors import unframe
    from server.app import run_digest, settings_for, with_rate
    from server.local_grid import LocalGrid

    base, mask = _base_and_mask(config)
    config = with_rate(config, mask)
    part = part_of(mask.num_selected, config.codec.rotate, 1, config.seed)
    config = replace(config, codec=replace(config.codec, rotate=1))
    grid = LocalGrid(client_app, config.clients, config.seed)
    grid.keep_client_state_in(folder)
    node_id = next(iter(grid.get_node_ids()))
    digests = {"run_digest": run_digest(config, base, mask), "inputs_digest": base.inputs_digest}
    told = Setup(replace(settings_for(config), **digests), mask.recipe)
    setup = Message(pack(told.to_bytes()), node_id, "query.mask", group_id="0")
    facts = _answer(grid, setup)
    expected, downlink = [("delta", mask.digest, mask.num_selected)], Downlink(config.codec, config.seed)
    downlink.advance(1, {} if delta is None else {expected[0][:2]: delta})
    facts_sent = {"round": 1, "version": 1, "sum": downlink.checksum(expected), "state-round": 0}
    request = Message(pack(downlink.payload(expected, None), facts_sent), node_id, "train", group_id="1")
    reply = _answer(grid, request)
    update = unframe(payload_of(reply.content), expected)["delta"].values
    mask_wire_bytes = wire_bytes(setup) + wire_bytes(facts)
    return Exchanged(base, mask, request, reply, mask_wire_bytes, update if delta is None else delta, update, part)


def _base_and_mask(config: RunConfig) -> "tuple[BaseModel, Mask]":
    import torch

    from fedmask.models import load_base
    from server.app import select_mask

    torch.set_num_threads(config.threads)
    model = config.model
    base = load_base(model.name, model.hub, model.path, model.weights, model.geometry, model.dtype)
    mask = select_mask(config, base)
    assert mask is not None, "a run that sends vectors has a mask"
    return base, mask


def _answer(grid: "LocalGrid", message: "Message") -> "Message":
    """Raises FedmaskError where the client could not do what it was asked."""
    (reply,) = grid.send_and_receive([message])
    if reply.has_error():
        raise FedmaskError(f"the client failed: {reply.error.reason}")
    return reply


def encoded(spec: str, exchanged: Exchanged) -> Line:
    """The round's messages with what a codec makes of their vectors."""
    down_payload, down_wire, down_error = _sent(spec, exchanged.request, exchanged.down, exchanged)
    up_payload, up_wire, up_error = _sent(spec, exchanged.reply, exchanged.up, exchanged)
    return Line(
        name=spec,
        formula="",
        downlink_payload_bytes=down_payload,
        uplink_payload_bytes=up_payload,
        downlink_wire_bytes=down_wire,
        uplink_wire_bytes=up_wire,
        mask_wire_bytes=exchanged.mask_wire_bytes,
        downlink_error=down_error,
        uplink_error=up_error,
        times_less=2 * full_finetuning_bytes_each_way(exchanged.base.num_parameters) / (down_wire + up_wire),
    )


def _sent(spec: str, message: "Message", vector: Values, exchanged: Exchanged) -> tuple[int, int, float]:
    """Payload bytes and wire bytes of the message with this vector (k,) in it, and the error of what travels of it."""
    from fedmask.wire.messages import facts_of, pack, wire_bytes
    from fedmask.wire.vectors import frame, unframe

    values = vector if exchanged.part is None else vector[exchanged.part]
    layout_digest = exchanged.mask.digest
    payload = frame("delta", layout_digest, codec(spec).encode(values, SEED))
    message.content = pack(payload, facts_of(message.content))
    decoded = unframe(payload, [("delta", layout_digest, values.size)])["delta"].values
    lost = np.linalg.norm(decoded.astype(np.float64) - values)
    # A vector of zeros has nothing to lose.
    return len(payload), wire_bytes(message), float(lost / (np.linalg.norm(values.astype(np.float64)) or 1.0))


def rivals(base: "BaseModel") -> Iterator[Line]:
    """Projections for this base model; a rival has no mask to send."""
    parameters = dict(base.encoder.named_parameters())
    num_biases = sum(values.numel() for name, values in parameters.items() if name.endswith("bias"))
    num_layers = int(base.encoder.config.num_hidden_layers)
    full = full_finetuning_bytes_each_way(base.num_parameters)
    for rival in projections(base.num_parameters, num_biases, num_layers, base.hidden_size):
        each_way = rival.bytes_each_way
        yield Line(rival.name, rival.formula, *4 * (each_way,), 0, None, None, times_less=full / each_way)


# ---- table, CSV and plot ---------------------------------------------------------------------------------------------


def _title(config: RunConfig, exchanged: Exchanged, request: Request) -> str:
    base, mask = exchanged.base, exchanged.mask
    weights = ", random weights: its errors mean little" if base.weights == "random" else ""
    start = "from zeros" if request.run is None else f"from the delta of {request.run.name}"
    return (
        f"{base.name}{weights}; {config.mask.rule}, {mask.num_selected:,} of {base.num_parameters:,} parameters; "
        f"{request.steps} steps {start}{'' if exchanged.part is None else f'; {len(exchanged.part):,} entries a round'}"
    )


def _table(title: str, lines: Sequence[Line], config: RunConfig) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    heading = f"{title}\nbytes of train messages per client and round"
    table = Table(title=heading, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("codec", no_wrap=True)
    columns = ("payload, both ways", "wire, down", "wire, up", "whole run", "times less than full")
    for column in (*columns, "error, up", *(f"seconds at {link} Mbit/s" for link in LINKS_MBIT)):
        table.add_column(column, justify="right", overflow="fold")
    for line in lines:
        sizes = (line.downlink_payload_bytes + line.uplink_payload_bytes, line.downlink_wire_bytes)
        sizes += (line.uplink_wire_bytes, line.run_bytes(config))
        error = "-" if line.uplink_error is None else f"{line.uplink_error:.2g}"
        seconds = (_shown_seconds(line.seconds(link)) for link in LINKS_MBIT)
        name = f"projection: {line.name}" if line.is_projection else line.name
        style = "dim" if line.is_projection else None
        table.add_row(name, *map(_size, sizes), f"{line.times_less:,.0f}", error, *seconds, style=style)
    return table


def _size(num_bytes: int) -> str:
    if num_bytes < 1e6:
        return f"{num_bytes:,}"
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:,.1f} GB"


def _shown_seconds(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.2g}"


def _notes(lines: Sequence[Line], config: RunConfig) -> Iterator[str]:
    """What the table's words mean."""
    mask = f"the mask once a client: {lines[0].mask_wire_bytes:,} bytes"
    yield f"whole run: {config.clients} clients, {config.rounds} rounds, with {mask}"
    yield "error: length of what one message loses, over the length of the vector; nothing is fed back"
    yield from (f"projection, not measured: {line.name} = {line.formula}" for line in lines if line.is_projection)


def _csv(lines: Sequence[Line], config: RunConfig) -> str:
    rows = [
        asdict(line)
        | {"round_bytes": line.round_bytes, "run_bytes": line.run_bytes(config)}
        | {f"seconds_at_{link}_mbit": line.seconds(link) for link in LINKS_MBIT}
        for line in lines
    ]
    return _csv_text(rows)


def _csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """One line a row; the first names the columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _bar(line: Line) -> "Bar":
    from fedmask.runs.communication_plot import Bar

    error = "" if line.uplink_error is None else f", error {line.uplink_error:.2g}"
    note = f"{_size(line.round_bytes)}{error}"
    return Bar(line.name, line.round_bytes, note, line.is_projection)


def _write(output: Path, table: str, plot: bytes) -> None:
    write_atomically(output / TABLE, table.encode())
    write_atomically(output / PLOT, plot)


# ----------------------------------------------------------------------------------------------------------------------
# What a score has cost, by finished run
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoredRound:
    """Of a finished run."""

    run: str
    """Its folder's name."""
    round: int
    bytes_until: int
    """Wire bytes of all messages up to the round's end, both ways, all clients."""
    score: float
    """Validation score, mean over tasks."""


def compare(request: Request) -> None:
    from rich.table import Table

    from fedmask.runs.communication_plot import score_against_bytes
    from fedmask.runs.console import console

    names = [run.resolve().name for run in request.runs]
    if len(set(names)) < len(names):
        raise FedmaskError(f"runs=[{','.join(names)}]: two of these folders have one name, and could not be told apart")
    scored = {name: scored_rounds(run) for name, run in zip(names, request.runs, strict=True)}
    table = Table("run", title="the last round that was scored", title_justify="left")
    for column in ("rounds", "score", "bytes of all messages"):
        table.add_column(column, justify="right")
    for name, entries in scored.items():
        last = entries[-1]
        table.add_row(name, str(last.round), f"{last.score:.3f}", f"{last.bytes_until:,}")
    console.print(table)
    points = {name: [(entry.bytes_until, entry.score) for entry in entries] for name, entries in scored.items()}
    rows = [asdict(entry) for entries in scored.values() for entry in entries]
    _write(request.output, _csv_text(rows), score_against_bytes(points))
    console.print(f"{request.output / TABLE}, {request.output / PLOT}", markup=False)


def scored_rounds(run: Path) -> list[ScoredRound]:
    """The rounds of a finished run that were scored. Raises FedmaskError where the folder holds none."""
    from fedmask.runs.folder import ROUNDS, RunFolder

    _config_of(run)
    by_round: Counter[int] = Counter()
    for message in RunFolder(run, overwrite=False, resume=True).communication():
        by_round[message.round] += message.wire_bytes
    try:
        lines = [json.loads(line) for line in (run / ROUNDS).read_text().splitlines()]
        scores = {int(line["round"]): line["mean_score"] for line in lines}
    except (ValueError, TypeError, KeyError) as error:
        raise FedmaskError(f"{run / ROUNDS}: damaged ({error}); there is nothing to compare without it") from error
    until = dict(zip(sorted(by_round), accumulate(by_round[each] for each in sorted(by_round)), strict=True))
    found = [
        ScoredRound(run.resolve().name, each, until[each], score) for each, score in scores.items() if score is not None
    ]
    if not found:
        raise FedmaskError(f"{run}: no round of it was scored on the validation split")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
