"""What one run is asked to do: a nested mapping comes in, frozen dataclasses come out, or all faults at once.

Each field carries its meaning and what it allows in one place, from which the checks, the error texts and `--help`
are made. The library reads these dataclasses; only `server/compose.py` knows Hydra.
"""

import difflib
import hashlib
import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin, get_type_hints

from fedmask.errors import ConfigError as ConfigError
from fedmask.errors import FedmaskError
from fedmask.files import with_home
from fedmask.runs.other_words import OTHER_VALUES, meant_by
from fedmask.runs.strict_yaml import read_mapping, read_mapping_file
from fedmask.shown import shown
from fedmask.tasks import SOURCES
from fedmask.tasks.labels import alike, clean, shown_both

# ----------------------------------------------------------------------------------------------------------------------
# What a value may be
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Allowed:
    """The values that one key may take."""

    text: str
    """Completes "must be ..."."""
    read: Callable[[object], Any]
    """The value as the dataclass holds it; raises ValueError for a value that is not allowed."""
    choices: Mapping[str, str] | None = None
    """The words that may be given, and what each means; None where any value of the type will do."""
    kind: Literal["text", "path", "value"] = "value"
    """A text and a path are taken as they are written, without a grammar; a path may begin with a ~."""


def _whole(low: int, high: int | None = None) -> Allowed:
    def read(value: object) -> int:
        # A bool is an int to Python, and `rounds=true` a slip to a person.
        if type(value) is not int or value < low or (high is not None and value > high):
            raise ValueError
        return value

    return Allowed(
        f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}", read
    )


def _number(text: str, holds: Callable[[float], bool]) -> Allowed:
    def read(value: object) -> float:
        if type(value) not in (int, float) or not math.isfinite(value) or not holds(value):  # type: ignore[arg-type]
            raise ValueError
        return float(value)  # type: ignore[arg-type]

    return Allowed(text, read)


def _text(what: str) -> Allowed:
    def read(value: object) -> str:
        if not isinstance(value, str) or not value.strip():
            raise ValueError
        value.encode()  # files and messages are UTF-8; a name in another encoding is a ValueError
        return value

    return Allowed(what, read, kind="text")


def path_text(what: str) -> Allowed:
    """A path as it is written, with a home folder in the place of a leading ~."""
    as_text = _text(what)
    return Allowed(what, lambda value: with_home(as_text.read(value)), kind="path")


def _switch() -> Allowed:
    def read(value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    return Allowed("true or false", read)


def _one_of(*tables: Mapping[str, str], **more: str) -> Allowed:
    """Words and what each means; a table where a word is one of Python's own."""
    choices = {word: meaning for table in (*tables, more) for word, meaning in table.items()}

    def read(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError
        return value

    return Allowed(one_of_text(choices), read, choices)


def _list_of(what: str, item: Allowed, may_be_empty: bool = False) -> Allowed:
    def read(value: object) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or not (value or may_be_empty):
            raise ValueError
        items = tuple(item.read(entry) for entry in value)
        if len(set(items)) < len(items):
            raise ValueError
        return items

    return Allowed(f"a list of {what}, each once", read, item.choices)


def _geometry() -> Allowed:
    def read(value: object) -> dict[str, int | float | str]:
        if not isinstance(value, Mapping) or "model_type" not in value:
            raise ValueError
        if not all(isinstance(key, str) and isinstance(entry, int | float | str) for key, entry in value.items()):
            raise ValueError
        return dict(value)

    return Allowed("a mapping of names to numbers or words, model_type among them", read)


def _codec() -> Allowed:
    def read(value: object) -> str:
        from fedmask.wire.codecs import codec  # numpy: late

        if not isinstance(value, str):
            raise ValueError
        try:
            return codec(value).spec
        except FedmaskError as error:
            raise ValueError from error

    names = "fp32, fp16, bf16, int8, int4, sign"
    return Allowed(f"{names}, topk:FRACTION or topk:FRACTION:NAME, each with +entropy behind it or without", read)


def _or_null(allowed: Allowed, meaning: str) -> Allowed:
    def read(value: object) -> Any:
        return None if value is None else allowed.read(value)

    return replace(allowed, text=f"{allowed.text}, or null ({meaning})", read=read)


def one_of_text(choices: Collection[str]) -> str:
    """`one of a, b, c`, or the only choice there is."""
    return f"one of {', '.join(choices)}" if len(choices) > 1 else next(iter(choices))


_POSITIVE = _number("a number above 0", lambda value: value > 0)
_BASELINES = {
    "frozen": "encoder untouched, heads trained",
    "alone": "each client by itself",
    "central": "all of a task's data pooled",
}

# ----------------------------------------------------------------------------------------------------------------------
# The keys: type, meaning, what is allowed
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelConfig:
    """The base model: arguments of `fedmask.models.load_base`."""

    name: Annotated[str, "The configuration's name in conf/model, for people", _text("a name")]
    hub: Annotated[
        str | None,
        "The name on the model hub, and in the local hub cache",
        _or_null(_text("a hub name"), "none: the model is made from its geometry and a seed"),
    ]
    path: Annotated[
        str | None,
        "A folder, or a hub name, of any encoder with a tokenizer; wins over model.hub",
        _or_null(path_text("a folder or a hub name"), "model.hub"),
    ]
    weights: Annotated[
        str,
        "Where the weights come from",
        _one_of(pretrained="as published", random="seeded; figures made with it say so"),
    ]
    dtype: Annotated[
        str,
        "What the weights are cast to once loaded; deltas, heads and optimizer state are float32 either way",
        _one_of(float32="4 bytes each", bfloat16="2 bytes; slow where the processor has no instructions for it"),
    ]
    geometry: Annotated[
        dict[str, int | float | str] | None,
        "Arguments of the Hugging Face configuration, used where model.weights=random and model.path=null",
        _or_null(_geometry(), "pretrained weights only"),
    ]


@dataclass(frozen=True)
class DataConfig:
    """The tasks, and how their rows reach the clients."""

    source: Annotated[
        str,
        "Where the tasks come from",
        _one_of({name: entry.meaning for name, entry in SOURCES.items()}),
    ]
    root: Annotated[
        str | None,
        "tsv, csv, jsonl: the folder of the task folders; python: the folder of your module; hub: a folder of saved "
        "data sets",
        _or_null(path_text("a folder"), "demo; hub: the data-set hub and its local cache"),
    ]
    tasks: Annotated[
        tuple[str, ...] | None,
        "Names of the tasks, in order",
        _or_null(_list_of("task names such as [sst2,trec]", _text("a name")), "demo: all it has"),
    ]
    text: Annotated[
        str | None,
        "The column of the texts, of a pair's first; for tsv, csv, jsonl and hub; data.text_a= is the same",
        _or_null(_text("a column"), "by its usual name: text, text_a, sentence, ..."),
    ]
    text_b: Annotated[
        str | None,
        "The column of a pair's second texts, beside data.text",
        _or_null(_text("a column"), "single texts where data.text is given, else by its usual name"),
    ]
    label: Annotated[str | None, "The column of the labels", _or_null(_text("a column"), "label")]
    classes: Annotated[
        tuple[str, ...] | None,
        "Class names in their order, of which a client's rows may lack some: so clients with different ones share a "
        "head; with data=own a client's own file may say them",
        _or_null(_list_of("class names such as [down,up]", _text("a name")), "those of a task's training rows"),
    ]
    partition: Annotated[
        str,
        "How a task's training rows are dealt to its clients",
        _one_of(
            iid="at random",
            dirichlet="label skew, by data.alpha",
            natural="by domain inside a task, where it has domains",
        ),
    ]
    alpha: Annotated[float, "Concentration of the Dirichlet partition; small is skewed", _POSITIVE]
    examples_per_client: Annotated[
        int | None,
        "Training examples a client (under dirichlet: on average); all there are where a task has fewer, which is told",
        _or_null(_whole(1), "all there are"),
    ]
    max_length: Annotated[int, "Tokens that a text is cut to", _whole(8, 512)]


@dataclass(frozen=True)
class MaskConfig:
    """The rule that selects the trainable entries, and its options: arguments of `fedmask.masks.select`."""

    rule: Annotated[
        str,
        "Which entries of the base model are trained",
        _one_of(
            pafi="smallest magnitude",
            largest="largest magnitude",
            random="drawn",
            hiwi="feed-forward biases, through small networks",
            ffn_bias="feed-forward biases, directly",
            bitfit="all biases that outputs depend on",
            all="full fine-tuning",
        ),
    ]
    density: Annotated[
        float | None,
        "Selected entries / parameters of the base model, a fraction; for pafi, largest and random",
        _or_null(_number("a number above 0 and at most 1", lambda value: 0 < value <= 1), "the other rules"),
    ]
    scope: Annotated[
        str | None,
        "Over what the entries compete; for pafi, largest and random",
        _or_null(
            _one_of({"global": "all candidate tensors together"}, per_tensor="each tensor gives its share"),
            "the other rules",
        ),
    ]
    include: Annotated[
        tuple[str, ...] | None,
        "Shell-style name patterns of the candidate tensors; for pafi, largest and random",
        _or_null(_list_of("patterns such as ['*.attention.*']", _text("a pattern")), "the encoder's 2-D weights"),
    ]
    exclude: Annotated[
        tuple[str, ...],
        "Shell-style name patterns taken out of the candidates; for pafi, largest and random",
        _list_of("patterns such as ['*.attention.*']", _text("a pattern"), may_be_empty=True),
    ]
    embeddings: Annotated[bool, "Whether the embeddings are trained too; for all", _switch()]
    key_biases: Annotated[
        bool,
        "Whether biases of attention keys are trained where the model's outputs do not depend on them, as in BERT; for "
        "bitfit",
        _switch(),
    ]
    seed: Annotated[int, "Seed of the draw, apart from the run's seed; for random", _whole(0)]
    rank: Annotated[
        int | None,
        "Width of the networks that produce the values; for hiwi",
        _or_null(_whole(1), "the other rules"),
    ]


@dataclass(frozen=True)
class ClientConfig:
    """Local training: AdamW on the packed delta and on the task head."""

    local_epochs: Annotated[int, "Passes over the client's examples in a round", _whole(1)]
    batch_size: Annotated[int, "Examples a step", _whole(1)]
    learning_rate: Annotated[
        float | None,
        "AdamW's rate for what the mask trains; by default the mask rule's own",
        _or_null(_POSITIVE, "by how many entries the mask selects, for pafi, largest and random; config.yaml says it"),
    ]
    head_learning_rate: Annotated[float, "AdamW's rate for the task head", _POSITIVE]
    weight_decay: Annotated[
        float,
        "AdamW's decoupled decay of the delta, towards the base weights; under hiwi of its networks",
        _number("a number of at least 0", lambda value: value >= 0),
    ]
    head: Annotated[
        str,
        "What becomes of the task head",
        _one_of(
            local="trained, kept by the client, never sent",
            shared="trained, averaged over a task's clients",
            frozen="as it starts, never trained",
        ),
    ]
    head_init: Annotated[
        str,
        "What a task head starts from",
        _one_of(
            random="small weights, seeded by the task",
            label_names="what the base model makes of the label names; a regression's is random",
        ),
    ]


@dataclass(frozen=True)
class ServerConfig:
    """What the server takes from its clients, and what it does with it."""

    learning_rate: Annotated[
        float,
        "How many times the combined update is added to the global delta; shared heads take it once",
        _POSITIVE,
    ]
    combine: Annotated[
        str,
        "How updates become one; median and trimmed_mean work within each task's clients, each counting alike, or over "
        "all clients for a task of fewer than three, take the mean of the tasks by their clients, and hold all "
        "updates, on disk in TMPDIR",
        _one_of(
            mean="weighted by examples, over all clients, none held",
            median="of each entry",
            trimmed_mean="of each entry without its largest and smallest, by server.trim",
        ),
    ]
    trim: Annotated[
        float,
        "Fraction of a task's clients left out at each end, rounded up; for server.combine=trimmed_mean",
        _number("a number above 0 and below 0.5", lambda value: 0 < value < 0.5),
    ]
    clip_norm: Annotated[
        float | None,
        "L2 norm that an update, its vectors together, is scaled down to where it is above",
        _or_null(_POSITIVE, "none"),
    ]
    max_norm: Annotated[
        float | None,
        "L2 norm of an update, its vectors together, above which it is rejected",
        _or_null(_POSITIVE, "1e30: above, sums would overflow"),
    ]
    max_examples: Annotated[
        int | None,
        "Examples that a client's update weighs by at most, whatever it says it has",
        _or_null(_whole(1), "as many as it says"),
    ]
    min_clients: Annotated[
        int | None,
        "Clients that a start or a resume needs: it goes on without who has not been set up within "
        "server.timeout_seconds, and names them",
        _or_null(_whole(1), "all of them"),
    ]
    min_replies: Annotated[int, "Usable updates without which a round of training does not count", _whole(1)]
    max_retries: Annotated[int, "How often such a round is repeated before the run is stopped", _whole(0)]
    timeout_seconds: Annotated[
        float,
        "Seconds that a round's clients have to train, and again to be scored; who is later is left out",
        _number("a number above 0 and at most 1000000", lambda value: 0 < value <= 10**6),
    ]


@dataclass(frozen=True)
class CodecConfig:
    """How vectors become bytes on the wire."""

    up: Annotated[str, "Codec of the clients' updates", _codec()]
    down: Annotated[
        str,
        "Codec of the server's vectors; one that loses something sends what changed since the version that a client "
        "holds, and what it lost is sent later",
        _codec(),
    ]
    rotate: Annotated[
        int,
        "Of every vector only one of so many parts travels in a round, the same for all clients; 1: all of it",
        _whole(1, 2**16),
    ]
    error_feedback: Annotated[
        bool,
        "Whether a client adds to its next update what its codec, or the rotation, left out of the last",
        _switch(),
    ]

    @property
    def keeps_residuals(self) -> bool:
        """Whether something of an update is left at the client for the next one."""
        from fedmask.wire.codecs import codec  # numpy: late

        return self.error_feedback and (self.rotate > 1 or not codec(self.up).is_lossless)


@dataclass(frozen=True)
class RayConfig:
    """Flower's simulation engine on Ray; read with runtime=ray only."""

    address: Annotated[
        str | None,
        "Address of a running Ray cluster, such as auto or ray://HOST:10001",
        _or_null(_text("an address"), "a Ray of this run's own on this machine"),
    ]
    client_cpus: Annotated[
        float,
        "CPUs of a client while it works: as many clients work side by side as the machine has room for",
        _POSITIVE,
    ]
    client_gpus: Annotated[
        float,
        "GPUs of a client while it works, in fractions where several share one",
        _number("a number of at least 0", lambda value: value >= 0),
    ]


@dataclass(frozen=True)
class LogConfig:
    """What a run writes beside its folder's own files."""

    tensorboard: Annotated[
        bool, "Whether scores, losses and bytes are also written as TensorBoard scalars, to DIR/tensorboard", _switch()
    ]


@dataclass(frozen=True)
class RunConfig:
    """One run, checked: made by `build` or `from_yaml`."""

    model: ModelConfig
    data: DataConfig
    mask: MaskConfig
    client: ClientConfig
    server: ServerConfig
    codec: CodecConfig
    ray: RayConfig
    log: LogConfig
    clients: Annotated[
        int, "Clients in the federation, at least one a task; client i has task i modulo their number", _whole(1)
    ]
    clients_per_round: Annotated[int | None, "Clients drawn each round, by the seed", _or_null(_whole(1), "all")]
    rounds: Annotated[int, "Rounds of training", _whole(1)]
    score_every: Annotated[
        int, "Rounds from one scoring on the validation split to the next; the last round is always scored", _whole(1)
    ]
    score_test: Annotated[
        bool, "Whether the test split is scored after the last round; false while rates are still chosen", _switch()
    ]
    baseline: Annotated[
        str,
        "What is run, with the same steps and the same scoring",
        _one_of(none="federated fine-tuning itself", **_BASELINES),
    ]
    compare: Annotated[
        tuple[str, ...],
        "Baselines to run after this run, with the same data, steps and scoring, into DIR/compare; shown beside it",
        _list_of(f"baselines out of {', '.join(_BASELINES)}", _one_of(_BASELINES), may_be_empty=True),
    ]
    runtime: Annotated[
        str, "Where server and clients run", _one_of(local="in one process", ray="Flower's simulation engine on Ray")
    ]
    workers: Annotated[
        int, "Processes that clients run in, with a base model and `threads` threads each; for runtime=local", _whole(1)
    ]
    seed: Annotated[int, "Seed of the whole run", _whole(0)]
    device: Annotated[
        str,
        "Where clients' models compute; only on the CPU do runs repeat bit for bit",
        _one_of(cpu="the CPU", cuda="an NVIDIA GPU that torch sees"),
    ]
    threads: Annotated[int, "CPU threads a process", _or_null(_whole(1), "this process's share of the CPUs")]
    output: Annotated[str | None, "Folder of the run", _or_null(path_text("a folder"), "a new one under runs/")]
    overwrite: Annotated[bool, "Whether a folder that already holds a run may be replaced", _switch()]
    resume: Annotated[
        str | None,
        "Folder of a run that was stopped: it goes on after its last finished round, and ends as if it had never "
        "stopped. Its own config.yaml says all else; what is given beside may not differ from it, but rounds= may be "
        "larger: a finished run then trains on, as if it had had so many rounds from the start. Where it names code to "
        "run (data=python), trust=true has to be given as well",
        _or_null(path_text("a folder"), "a new run"),
    ]

    @property
    def title(self) -> str:
        """What the run is called beside others."""
        return "federated" if self.baseline == "none" else self.baseline


@dataclass(frozen=True)
class Key:
    """One leaf of the configuration."""

    meaning: str
    allowed: Allowed


def _keys(section: type[Any], prefix: str = "") -> Iterator[tuple[str, Key]]:
    for name, hint in get_type_hints(section, include_extras=True).items():
        if get_origin(hint) is Annotated:
            yield f"{prefix}{name}", Key(*hint.__metadata__)


SECTIONS: Mapping[str, type[Any]] = {
    name: hint for name, hint in get_type_hints(RunConfig).items() if isinstance(hint, type) and is_dataclass(hint)
}
"""The nested parts of a run's configuration: model, data, mask, client, server, codec, ray, log."""
KEYS: Mapping[str, Key] = {
    **{key: entry for name, section in SECTIONS.items() for key, entry in _keys(section, f"{name}.")},
    **dict(_keys(RunConfig)),
}
"""Every key by its dotted name, in the order of the dataclasses."""

# ----------------------------------------------------------------------------------------------------------------------
# What goes with what
# ----------------------------------------------------------------------------------------------------------------------

_RANKED = ("density", "scope", "include", "exclude")
_TAKEN_BY_RULE: Mapping[str, Collection[str]] = {
    "pafi": _RANKED,
    "largest": _RANKED,
    "random": (*_RANKED, "seed"),
    "hiwi": ("rank",),
    "ffn_bias": (),
    "bitfit": ("key_biases",),
    "all": ("embeddings",),
}
_NOT_GIVEN: Mapping[str, object] = {
    "density": None,
    "scope": None,
    "include": None,
    "exclude": (),
    "embeddings": False,
    "key_biases": False,
    "seed": 0,
    "rank": None,
}
_NEEDED_BY_RULE = ("density", "scope", "rank")
_NEEDED_EXAMPLE = {"root": "a folder: data.root=DIR", "tasks": "a list: data.tasks=[...]"}


def _contradictions(values: Mapping[str, Any]) -> Iterator[str]:
    """Faults between values that are each allowed. A key that is not in `values` is not judged."""
    yield from _mask_options(values)
    yield from _data_options(values)
    yield from _model_options(values)
    yield from _client_counts(values)
    yield from _baselines(values)
    yield from _codecs(values)
    if values.get("runtime") == "ray" and values.get("workers", 1) > 1:
        yield f"workers={values['workers']}: for runtime=local; ray.client_cpus= says how many work at once on Ray"
    if "clients" in values and values.get("workers", 1) > values["clients"]:
        yield f"workers={values['workers']}: there are {values['clients']} clients; a worker without one has no use"


def _baselines(values: Mapping[str, Any]) -> Iterator[str]:
    baseline, compare = values.get("baseline"), values.get("compare") or ()
    if baseline in compare:
        yield f"compare={shown(list(compare))}: the run is baseline={baseline} itself; leave that one out"
    if "central" in (baseline, *compare) and values.get("clients_per_round") is not None:
        yield (
            f"clients_per_round={values['clients_per_round']}: central pools the data of all clients in every round; "
            "leave one of the two out"
        )


def _codecs(values: Mapping[str, Any]) -> Iterator[str]:
    if not {"codec.up", "codec.rotate", "codec.error_feedback"} <= values.keys():
        return
    up, combine, max_norm = values["codec.up"], values.get("server.combine"), values.get("server.max_norm")
    if up.startswith("topk") and combine in ("median", "trimmed_mean"):
        yield (
            f"server.combine={combine}: clients of codec.up={up} each send other entries, of which the middle one is "
            "zero; take server.combine=mean or another codec.up"
        )
    codec = CodecConfig(up, up, values["codec.rotate"], values["codec.error_feedback"])
    if max_norm is not None and codec.keeps_residuals:
        yield (
            f"server.max_norm={max_norm:g}: a client whose update is rejected sends what it left out, and more, the "
            "next time, and is rejected again; take server.clip_norm, or codec.error_feedback=false"
        )


def _mask_options(values: Mapping[str, Any]) -> Iterator[str]:
    rule = values.get("mask.rule")
    if rule is None:
        return
    for option, not_given in _NOT_GIVEN.items():
        value = values.get(f"mask.{option}", not_given)
        takers = [name for name, taken in _TAKEN_BY_RULE.items() if option in taken]
        if rule not in takers and value != not_given:
            others = f"leave it out, or take mask={'|'.join(takers)}"
            yield f"mask.{option}={shown(value)}: mask={rule} takes no {option}; {others}"
        if rule in takers and option in _NEEDED_BY_RULE and f"mask.{option}" in values and value is None:
            yield f"mask.{option}=null: mask={rule} needs a {option}"
    if "density" not in _TAKEN_BY_RULE[rule] and values.get("client.learning_rate", ...) is None:
        yield f"client.learning_rate=null: mask={rule} has one rate for all models; give a number, or leave it out"


def _data_options(values: Mapping[str, Any]) -> Iterator[str]:
    source = values.get("data.source")
    if source is None:
        return
    for option in SOURCES[source].needs:
        if values.get(f"data.{option}", ...) is None:
            yield f"data.{option}=null: data={source} needs {_NEEDED_EXAMPLE[option]}"
    root, tasks = values.get("data.root"), values.get("data.tasks")
    if root is not None and not SOURCES[source].reads_folder:
        readers = "|".join(name for name, entry in SOURCES.items() if entry.reads_folder)
        yield f"data.root={shown(root)}: data={source} reads no folder; leave it out, or take data={readers}"
    if source == "own" and tasks is not None:
        yield f"data.tasks={shown(tasks)}: with data=own each client's own file says its task; leave it out"
    yield from column_faults(values, source)
    if source == "own" and "central" in (values.get("baseline"), *(values.get("compare") or ())):
        yield "data=own: central pools the data of all clients, and these do not leave their clients; leave one out"


def column_faults(values: Mapping[str, Any], source: str | None) -> Iterator[str]:
    """Faults between the keys that name columns and classes, and the source; of None nothing is said."""
    named = {key: values[key] for key in ("data.text", "data.text_b", "data.label") if values.get(key) is not None}
    for key, value in named.items():
        if source == "own":
            yield f"{key}={shown(value)}: with data=own each client's own file names its columns; leave it out"
        elif source is not None and not SOURCES[source].has_columns:
            have = "|".join(name for name, entry in SOURCES.items() if entry.has_columns)
            yield f"{key}={shown(value)}: data={source} has no columns to name; leave it out, or take data={have}"
    if "data.text_b" in named and "data.text" in values and "data.text" not in named:
        yield f"data.text_b={shown(named['data.text_b'])}: the second text of a pair; name the first with data.text="
    for key in named:
        if list(named.values()).count(named[key]) > 1 and key != next(iter(named)):
            yield f"{key}={shown(named[key])}: this column is named twice; each is one of text, second text and label"
    for one, other in alike(tuple(values.get("data.classes") or ())):
        if clean(one) == clean(other):
            yield f"data.classes: {shown_both(one, other)} differ in blanks or Unicode form only: they are one class"


def _model_options(values: Mapping[str, Any]) -> Iterator[str]:
    needed = ("model.name", "model.hub", "model.path", "model.weights", "model.geometry")
    if any(key not in values for key in needed) or values["model.path"] is not None:
        return
    name, hub, _, weights, geometry = (values[key] for key in needed)
    if weights == "pretrained" and hub is None:
        yield f"model.weights=pretrained: model={name} is on no hub; give model.path=, or take model.weights=random"
    if geometry is None:
        if weights == "random":
            yield "model.geometry=null: model.weights=random needs a geometry, or the one of model.path="
        return
    # RoBERTa's first positions belong to its padding: 514 positions hold 512 tokens.
    positions, last_padding = geometry.get("max_position_embeddings"), geometry.get("pad_token_id", 1)
    if not isinstance(positions, int) or not isinstance(last_padding, int):
        return
    longest = positions - (last_padding + 1 if geometry["model_type"] == "roberta" else 0)
    if values.get("data.max_length", 0) > longest:
        yield f"data.max_length={values['data.max_length']}: model={name} reads at most {longest} tokens"


def _client_counts(values: Mapping[str, Any]) -> Iterator[str]:
    clients, drawn, tasks = (values.get(key) for key in ("clients", "clients_per_round", "data.tasks"))
    if clients is not None and drawn is not None and drawn > clients:
        yield f"clients_per_round={drawn}: more than there are, clients={clients}; must be at most that, or null (all)"
    yield from _min_replies(values)
    least = values.get("server.min_clients")
    if clients is not None and least is not None and least > clients:
        yield f"server.min_clients={least}: more than there are, clients={clients}; must be at most that, or null (all)"
    if clients is not None and tasks is not None and clients < len(tasks):
        yield f"clients={clients}: fewer than the {len(tasks)} tasks of data.tasks; every task needs a client"


def _min_replies(values: Mapping[str, Any]) -> Iterator[str]:
    needed, tasks = values.get("server.min_replies", 1), values.get("data.tasks")
    asked = {key: values.get(key) for key in ("clients", "clients_per_round")}
    if "central" in (values.get("baseline"), *(values.get("compare") or ())) and tasks is not None:
        asked["the tasks that central pools"] = len(tasks)
    for what, number in asked.items():
        if number is not None and needed > number:
            yield f"server.min_replies={needed}: more than a round can bring, {what}={number}; must be at most that"
            return


# ----------------------------------------------------------------------------------------------------------------------
# From a mapping to a configuration and back
# ----------------------------------------------------------------------------------------------------------------------


def build(raw: Mapping[str, object], written: Mapping[str, str] | None = None) -> RunConfig:
    """The configuration that a nested mapping of plain values describes; nothing is optional, nothing is guessed.

    `threads: null` becomes the number of CPUs that a process of the run may use. written: as of `check`. Raises
    ConfigError with every unknown key, missing key, wrong type, value out of range and contradiction, one line each.
    """
    values, faults = check(raw, written=written)
    if faults:
        raise ConfigError(faults)
    if values["threads"] is None:
        values["threads"] = _threads_a_process(values)
    nested = {name: section(**_section_values(values, name)) for name, section in SECTIONS.items()}
    return RunConfig(**nested, **{key: value for key, value in values.items() if "." not in key})


def _threads_a_process(values: Mapping[str, Any]) -> int:
    if values["runtime"] == "ray":  # a process works for one client at a time, and has that client's CPUs
        return max(1, int(values["ray.client_cpus"]))
    return max(1, usable_cpus() // int(values["workers"]))


def check(
    raw: Mapping[str, object], undecided: Collection[str] = (), written: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The allowed values by dotted key, and all faults of the others and between them.

    `undecided` names keys that are already known to be wrong: nothing is said of them, nor of what depends on them.
    written: by dotted key how a value stands in a file, where it is no text.
    """
    dotted = {name: value for name, value in raw.items() if name in KEYS and "." in name}
    given = flat({name: value for name, value in raw.items() if name not in dotted})
    faults = [dotted_key(key, value) for key, value in dotted.items()]
    faults += [unknown_key(key, value) for key, value in given.items() if key not in KEYS]
    values: dict[str, Any] = {}
    for name, key in KEYS.items():
        if name in undecided or name in dotted or name.partition(".")[0] in given.keys() & SECTIONS.keys():
            continue
        if name not in given:
            faults.append(f"{name}: missing; must be {key.allowed.text}")
            continue
        try:
            values[name] = read_value(name, given[name], key.allowed, (written or {}).get(name))
        except FedmaskError as fault:
            faults.append(str(fault))
    return values, faults + list(_contradictions(values))


def flat(raw: Mapping[str, object]) -> dict[str, object]:
    """Dotted keys and their values. A section that is no mapping stays under its own name."""
    given: dict[str, object] = {}
    for name, value in raw.items():
        if name in SECTIONS and isinstance(value, Mapping):
            given.update({f"{name}.{entry}": leaf for entry, leaf in value.items()})
        else:
            given[str(name)] = value
    return given


def _section_values(values: Mapping[str, Any], section: str) -> dict[str, Any]:
    return {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{section}.")}


def usable_cpus() -> int:
    """CPUs that this process may use."""
    # Containers and batch systems often give a process fewer CPUs than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Plain nested dicts of numbers, words, None and tuples, which YAML writes as lists; `build` takes them back."""
    return asdict(config)


def config_digest(config: RunConfig) -> str:
    """16 hex digits of what a run's config.yaml says, but for what a resume may change."""
    said = flat(to_dict(config))
    told = {
        key: value
        for key, value in said.items()
        # A key that came later says nothing while it has the value that all had before.
        if key not in _NOT_DIGESTED and not (key in ADDED_LATER and value == ADDED_LATER[key])
    }
    return hashlib.sha256(json.dumps(["fedmask-config-1", told], sort_keys=True).encode()).hexdigest()[:16]


_NOT_DIGESTED = ("rounds", "output", "overwrite", "resume", "server.min_clients")

ADDED_LATER: Mapping[str, object] = {
    "data.text": None,
    "data.text_b": None,
    "data.label": None,
    "data.classes": None,
    "mask.key_biases": True,
    "server.max_examples": None,
    "server.min_clients": None,
}
"""Keys that the config.yaml of an older run lacks, and the value that each had before it was a key; an option of mask
rules had it where the run's rule takes it, and is not given elsewhere."""


def from_yaml(text: str) -> RunConfig:
    """The configuration in the text of a run folder's config.yaml. Raises ConfigError like `build`."""
    found = read_mapping(text)
    return build(_with_added_keys(found.content), found.written)


def read_config(path: Path) -> RunConfig:
    """As from_yaml, of a run folder's file; each fault begins with its path."""
    found = read_mapping_file(path)
    try:
        return build(_with_added_keys(found.content), found.written)
    except ConfigError as error:
        raise ConfigError([f"{path}: {fault}" for fault in error.faults]) from error


def _with_added_keys(raw: Mapping[str, Any]) -> dict[str, Any]:
    """An older run's mapping with the keys that came later, where their section is there."""
    filled = {name: dict(value) if isinstance(value, Mapping) else value for name, value in raw.items()}
    for key, value in ADDED_LATER.items():
        section, dot, entry = key.partition(".")
        target = filled.get(section) if dot else filled
        if not isinstance(target, dict):
            continue
        is_untaken = section == "mask" and entry not in _TAKEN_BY_RULE.get(str(target.get("rule")), ())
        target.setdefault(entry or section, _NOT_GIVEN.get(entry) if is_untaken else value)
    return filled


# ----------------------------------------------------------------------------------------------------------------------
# One line a fault
# ----------------------------------------------------------------------------------------------------------------------


_SCALAR = (str, int, float, type(None))


def read_value(key: str, value: object, allowed: Allowed, written: str | None = None) -> Any:
    """The value as the configuration holds it. written: how it stands in a file, where it is no text.

    Raises FedmaskError: `key=value: must be ...`, and what to write instead where that can be told.
    """
    try:
        return allowed.read(value)
    except FedmaskError as error:
        raise FedmaskError(f"{key}={shown(value)}: {error}") from error
    except (ValueError, OverflowError):  # a whole number too large for a float
        fault = not_allowed(key, value if written is None else written, allowed.text, allowed.choices)
        raise FedmaskError(fault + _other_type(key, value, allowed, written)) from None


def _other_type(key: str, value: object, allowed: Allowed, written: str | None) -> str:
    """What to write where the same words are allowed as a value of another type: a number as a name, a list of one."""
    if isinstance(value, list | tuple):
        names = [entry if isinstance(entry, str) else shown(entry) for entry in value]
        if all(isinstance(entry, _SCALAR) for entry in value) and is_allowed(names, allowed):
            quoted = ",".join(name if entry is name else repr(name) for name, entry in zip(names, value, strict=True))
            return f'; a name that reads as a number or another value stands in quotes: "{key}=[{quoted}]"'
        return ""
    if not isinstance(value, str):
        text = shown(value) if written is None else written
        if not (isinstance(value, int | float) or written is not None) or not is_allowed(text, allowed):
            return ""
        taken = f"YAML takes {text} for {shown(value)}: " if text != shown(value) else ""
        return f'; {taken}as a text it stands in quotes: "{text}"'
    if is_allowed([value], allowed):
        return f"; a list is written {key}=[{value}]"
    plain = plain_value(value)
    return f"; this is a text: write {decimal(plain)} without quotes" if is_allowed(plain, allowed) else ""


def is_allowed(value: object, allowed: Allowed) -> bool:
    """Whether a key takes the value."""
    try:
        allowed.read(value)
    except (ValueError, OverflowError):
        return False
    return True


def plain_value(text: str) -> object:
    """The number or truth value that a text spells; else the text."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def decimal(value: object) -> str:
    """As YAML reads it: 1e-05 is a text there, 1.0e-05 a number."""
    text = shown(value)
    return text.replace("e", ".0e") if isinstance(value, float) and "." not in text else text


def not_allowed(key: str, value: object, allowed: str, choices: Collection[str] | None = None) -> str:
    """`key=value: must be ...`, with the closest choice where there is one."""
    return f"{key}={shown(value)}: must be {allowed}{_suggestion(value, choices or ())}"


def dotted_key(key: str, value: object) -> str:
    """A key of a section that stands outside of it, where it would win over what stands inside."""
    section, _, entry = key.partition(".")
    return f"{shown(key)}={shown(value)}: no key of a file has a dot; write {entry} once, under {section}"


def unknown_key(key: str, value: object, known: Collection[str] = KEYS) -> str:
    """`key=value: no such key`, with the closest key where there is one."""
    if key in SECTIONS:
        entries = ", ".join(entry.name for entry in fields(SECTIONS[key]))
        return not_allowed(key, value, f"a section with the keys {entries}")
    close = meant_by(key, known) or _close_keys(key, known)
    return f"{shown(key)}={shown(value)}: no such key; " + (
        f"did you mean {' or '.join(close)}?" if close else "--help lists all keys"
    )


def _close_keys(key: str, known: Collection[str]) -> list[str]:
    """The closest by their letters, or by those of their last parts."""
    if close := difflib.get_close_matches(key, known, n=1):
        return close
    last_parts = {name: name.rpartition(".")[2] for name in known}
    closest = difflib.get_close_matches(key.rpartition(".")[2], last_parts.values(), n=1)
    return [name for name, last in last_parts.items() if last in closest]


def _suggestion(value: object, choices: Collection[str]) -> str:
    words = [str(word) for word in (value if isinstance(value, list | tuple) else [value])]
    meant = [OTHER_VALUES[word] for word in words if OTHER_VALUES.get(word) in choices]
    close = meant or [match for word in words for match in difflib.get_close_matches(word, choices, n=1)]
    close = [match for match in close if match not in words]
    return f"; did you mean {close[0]}?" if close else ""
