"""The file of one client in a deployment: what the server may not set. In: YAML. Out: `ClientFile`, or all its faults.

    client_id: 0                  # by which the federation knows it, and no other client
    superlink: host:8000          # where the server is reached
    authority: authority.crt      # the certificate that signed the server's
    key: client.key               # by which the server knows this client
    folder: state                 # what stays on this client, and what can be made again
    data: {source: tsv, root: data, task: sst2}   # and as of a run: text, text_b, label (columns), classes
    device: cpu
    threads: null                 # CPU threads; null: as many as the run says, and no more than there are CPUs
    model_path: null              # folder of the base model; null: where its name leads
    warm: false                   # true: a process with the libraries in memory stays, and is forked for each message
    limits: {rounds: 1000, steps: 10000, batch_size: 64, memory_bytes: null, runs: 1000, disk_bytes: null}

Paths are taken from the file's own folder, or from home where they begin with a ~; what may be null, `warm` and
`limits.runs` may be left out. Whatever a server asks for beyond a limit is refused. `memory_bytes: null` is three
quarters of the machine's memory, for what the base model needs is the server's word; on a GPU there is no such limit.
`disk_bytes: null` is half of the disk that `folder` is on.
"""

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmask.errors import ConfigError, FedmaskError
from fedmask.files import output_fault, path_fault
from fedmask.processes import machine_memory_bytes
from fedmask.runs.config import KEYS, Allowed, column_faults, dotted_key, path_text, read_value, usable_cpus
from fedmask.runs.strict_yaml import read_mapping_file
from fedmask.shown import shown

if TYPE_CHECKING:
    from fedmask.wire.setup import Settings  # torch: whoever starts a client's processes needs none of it

USUAL_RUNS = 1000
"""Whose folders a client keeps that does not say how many."""

OWN = "own"
"""The data source of a run whose clients have their data by their own files."""

_SECTIONS = ("data", "limits")


@dataclass(frozen=True)
class OwnData:
    """Where a client's one task comes from: as of a run's `data`."""

    source: str
    root: str | None
    task: str
    text: str | None = None
    text_b: str | None = None
    label: str | None = None
    classes: tuple[str, ...] | None = None
    """In the place of the run's, where given."""


@dataclass(frozen=True)
class Limits:
    """The most that a client does for a run."""

    rounds: int
    """How often it trains in one run, repeated rounds counted, and the last round that it trains in."""
    steps: int
    """Of the optimizer in one round."""
    batch_size: int
    """Examples a step."""
    memory_bytes: int | None
    """Of data that its process may hold (RLIMIT_DATA); None: see `ClientFile.memory_bytes`."""
    runs: int = USUAL_RUNS
    """Whose folders it keeps."""
    disk_bytes: int | None = None
    """Of these folders together; None: see `ClientFile.disk_bytes`."""


@dataclass(frozen=True)
class ClientFile:
    """One client's own word; paths are absolute."""

    client_id: int
    superlink: str
    authority: str
    key: str
    folder: str
    data: OwnData
    device: str
    threads: int | None
    model_path: str | None
    warm: bool
    """Whether messages are forked from a process with the libraries in memory, or each imports them."""
    limits: Limits

    @property
    def states(self) -> Path:
        """Holds one folder a run: what the client keeps from message to message."""
        return Path(self.folder) / "runs"

    @property
    def cache(self) -> Path:
        """Holds what can be made again."""
        return Path(self.folder) / "cache"

    @property
    def memory_bytes(self) -> int | None:
        """Of data that the client's process may hold; None: as many as there are."""
        if self.limits.memory_bytes is not None or self.device != "cpu":  # a GPU's driver reserves what it never uses
            return self.limits.memory_bytes
        return machine_memory_bytes() * 3 // 4

    @property
    def disk_bytes(self) -> int:
        """Of the folders of runs together."""
        return self.limits.disk_bytes or shutil.disk_usage(self.folder).total // 2

    def applied_to(self, settings: "Settings") -> "Settings":
        """A server's settings with this client's own in their place.

        Raises FedmaskError where the server asks for what this client does not do.
        """
        if settings.data.source != OWN:
            raise FedmaskError(
                f"client {self.client_id} has data of its own, and the run says data={settings.data.source}; "
                f"run with data={OWN}"
            )
        if settings.model.path is not None:
            raise FedmaskError(
                f"client {self.client_id}: the run says where the base model lies, model.path; that is for the "
                "client's own file to say, as model_path"
            )
        if settings.client.batch_size > self.limits.batch_size:
            raise self._beyond("client.batch_size", settings.client.batch_size, "batch_size")
        return replace(
            settings,
            model=replace(settings.model, path=self.model_path),
            data=replace(
                settings.data,
                source=self.data.source,
                root=self.data.root,
                tasks=(self.data.task,),
                text=self.data.text,
                text_b=self.data.text_b,
                label=self.data.label,
                classes=self.data.classes or settings.data.classes,
            ),
            device=self.device,
            threads=self.threads or min(settings.threads, usable_cpus()),
        )

    def check_round(self, settings: "Settings", num_examples: int, server_round: int) -> None:
        """Raises FedmaskError for a round beyond the last, or with more steps than this client makes."""
        if server_round > self.limits.rounds:
            raise self._beyond("round", server_round, "rounds")
        steps = settings.client.local_epochs * math.ceil(num_examples / settings.client.batch_size)
        if steps > self.limits.steps:
            raise self._beyond("steps a round", steps, "steps")

    def _beyond(self, what: str, asked: int, limit: str) -> FedmaskError:
        return FedmaskError(
            f"client {self.client_id}: the run asks for {what} {asked}, this client's limits.{limit} is "
            f"{getattr(self.limits, limit)}"
        )


def read_client_file(path: Path) -> ClientFile:
    """Raises ConfigError with every fault of the file, one line each."""
    found = read_mapping_file(path)
    dotted = {key: value for key, value in found.content.items() if key.partition(".")[0] in _SECTIONS and "." in key}
    given = dict(_leaves({key: value for key, value in found.content.items() if key not in dotted}))
    written, faults = dict(found.written), [f"{path}: {dotted_key(key, value)}" for key, value in dotted.items()]
    if "data.text_a" in given and given.get("data.text") is not None:
        faults.append(
            f"{path}: data.text_a={shown(given['data.text_a'])}: the same as data.text; leave one of the two out"
        )
    if "data.text_a" in given:
        given["data.text"] = given.pop("data.text_a")
        written.pop("data.text", None)
    unknown = [key for key in given if key not in _ALLOWED]
    faults += [f"{path}: {shown(key)}: no such key; there are {', '.join(_ALLOWED)}" for key in unknown]
    values: dict[str, Any] = {}
    for key, allowed in _ALLOWED.items():
        if key in dotted:
            continue
        try:
            values[key] = read_value(key, given.get(key), allowed, written.get(key))
        except FedmaskError as fault:
            faults.append(f"{path}: {fault}")
    paths = {key: values[key] for key, allowed in _ALLOWED.items() if allowed.kind == "path" and values.get(key)}
    for key, own in paths.items():
        if why := (output_fault if key == "folder" else path_fault)(own):
            faults.append(f"{path}: {key}={shown(own)}: {why}")
    faults += [f"{path}: {fault}" for fault in column_faults(values, values.get("data.source"))]
    if faults:
        raise ConfigError(faults)
    return _built(values | {key: _absolute(path, own) for key, own in paths.items()})


def _leaves(raw: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for key, value in raw.items():
        if key in _SECTIONS and isinstance(value, Mapping):
            yield from ((f"{key}.{entry}", leaf) for entry, leaf in value.items())
        else:
            yield key, value


def _absolute(file: Path, path: str) -> str:
    return str((file.resolve().parent / path).absolute())


def _built(values: Mapping[str, Any]) -> ClientFile:
    def section(name: str) -> dict[str, Any]:
        return {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{name}.")}

    whole = {key: value for key, value in values.items() if "." not in key}
    return ClientFile(**whole, data=OwnData(**section("data")), limits=Limits(**section("limits")))


def _or_null(allowed: Allowed) -> Allowed:
    text = f"{allowed.text}, or null"
    return replace(allowed, text=text, read=lambda value: None if value is None else allowed.read(value))


def _switch() -> Allowed:
    """False where it is not said."""
    return Allowed("true or false", lambda value: value is not None and KEYS["overwrite"].allowed.read(value))


def _address(value: object) -> str:
    host, _, port = str(value).rpartition(":")
    if not host or "/" in host or not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 2**16:
        raise ValueError
    return str(value)


def _source() -> Allowed:
    of_a_run = KEYS["data.source"].allowed
    choices = {name: meaning for name, meaning in (of_a_run.choices or {}).items() if name != OWN}

    def read(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError
        return value

    return Allowed(f"one of {', '.join(choices)}", read, choices)


_COUNT, _ID, _TEXT = (KEYS[key].allowed for key in ("rounds", "seed", "model.name"))
_ALLOWED: Mapping[str, Allowed] = {
    "client_id": _ID,
    "superlink": Allowed("host:port of the server", _address),
    "authority": path_text("the file of the server's authority"),
    "key": path_text("the file of this client's key"),
    "folder": path_text("a folder"),
    "data.source": _source(),
    "data.root": _or_null(path_text("a folder")),
    "data.task": replace(_TEXT, text="the name of its task"),
    **{f"data.{key}": KEYS[f"data.{key}"].allowed for key in ("text", "text_b", "label", "classes")},
    "device": KEYS["device"].allowed,
    "threads": _or_null(_COUNT),
    "model_path": _or_null(path_text("a folder")),
    "warm": _switch(),
    "limits.rounds": _COUNT,
    "limits.steps": _COUNT,
    "limits.batch_size": _COUNT,
    "limits.memory_bytes": _or_null(_COUNT),
    "limits.runs": replace(_COUNT, read=lambda value: USUAL_RUNS if value is None else _COUNT.read(value)),
    "limits.disk_bytes": _or_null(_COUNT),
}
