"""fedmask.runs.config: strict building, every fault with its key, the way to YAML and back."""

import copy
import math
import os
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmask.errors import FedmaskError
from fedmask.runs.config import (
    KEYS,
    SECTIONS,
    ConfigError,
    RunConfig,
    build,
    check,
    flat,
    from_yaml,
    is_allowed,
    read_value,
    to_dict,
    unknown_key,
)

VALID: dict[str, Any] = {
    "model": {
        "name": "tiny",
        "hub": None,
        "path": None,
        "weights": "random",
        "dtype": "float32",
        "geometry": {"model_type": "bert"},
    },
    "data": {
        "source": "demo",
        "root": None,
        "tasks": None,
        "text": None,
        "text_b": None,
        "label": None,
        "classes": None,
        "partition": "natural",
        "alpha": 0.3,
        "examples_per_client": 100,
        "max_length": 64,
    },
    "mask": {
        "rule": "pafi",
        "density": 0.0003,
        "scope": "global",
        "include": None,
        "exclude": [],
        "embeddings": False,
        "key_biases": False,
        "seed": 0,
        "rank": None,
    },
    "client": {
        "local_epochs": 1,
        "batch_size": 16,
        "learning_rate": 0.01,
        "head_learning_rate": 0.005,
        "weight_decay": 0.0,
        "head": "local",
        "head_init": "random",
    },
    "server": {
        "learning_rate": 1.0,
        "combine": "mean",
        "trim": 0.1,
        "clip_norm": None,
        "max_norm": None,
        "max_examples": None,
        "min_clients": None,
        "min_replies": 1,
        "max_retries": 0,
        "timeout_seconds": 3600.0,
    },
    "codec": {"up": "int8", "down": "fp32", "rotate": 1, "error_feedback": True},
    "ray": {"address": None, "client_cpus": 1.0, "client_gpus": 0.0},
    "log": {"tensorboard": False},
    "clients": 10,
    "clients_per_round": None,
    "rounds": 5,
    "score_every": 1,
    "score_test": True,
    "baseline": "none",
    "compare": [],
    "runtime": "local",
    "workers": 1,
    "seed": 0,
    "device": "cpu",
    "threads": 2,
    "output": None,
    "overwrite": False,
    "resume": None,
}
UNTAKEN_BY_HIWI = {"rule": "hiwi", "density": None, "scope": None, "rank": 4}


def changed(**changes: object) -> dict[str, Any]:
    """VALID with dotted keys (a double underscore for the dot) set."""
    raw = copy.deepcopy(VALID)
    for name, value in changes.items():
        section, _, entry = name.rpartition("__")
        (raw[section] if section else raw)[entry] = value
    return raw


def faults_of(raw: Mapping[Any, Any]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        build(raw)
    assert str(caught.value) == "\n".join(caught.value.faults)
    assert all("\n" not in fault for fault in caught.value.faults)
    return caught.value.faults


def test_build_gives_the_values_as_given() -> None:
    config = build(changed(compare=["frozen", "alone"], data__alpha=1))
    assert (config.clients, config.mask.density, config.client.head) == (10, 0.0003, "local")
    assert config.compare == ("frozen", "alone")
    assert type(config.data.alpha) is float
    assert config.model.geometry == {"model_type": "bert"}


def test_threads_null_is_the_number_of_usable_cpus() -> None:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert build(changed(threads=None)).threads == usable
    assert build(changed(threads=7)).threads == 7


def test_on_ray_threads_null_is_the_cpus_of_a_client() -> None:
    for cpus, threads in ((1, 1), (0.5, 1), (3, 3)):
        assert build(changed(threads=None, runtime="ray", ray__client_cpus=cpus)).threads == threads
    assert build(changed(threads=2, runtime="ray")).threads == 2


PATTERNS = "['*.attention.*']"
BAD_VALUES = [
    (
        "codec.up",
        "int5",
        "codec.up=int5: must be fp32, fp16, bf16, int8, int4, sign, topk:FRACTION or topk:FRACTION:NAME, each with "
        "+entropy behind it or without",
    ),
    ("codec.rotate", 0, "codec.rotate=0: must be a whole number from 1 to 65536"),
    ("rounds", 0, "rounds=0: must be a whole number of at least 1"),
    ("rounds", "3", "rounds=3: must be a whole number of at least 1"),
    ("rounds", True, "rounds=true: must be a whole number of at least 1"),
    ("rounds", 2.0, "rounds=2.0: must be a whole number of at least 1"),
    ("rounds", None, "rounds=null: must be a whole number of at least 1"),
    ("clients", -1, "clients=-1: must be a whole number of at least 1"),
    ("clients_per_round", 0, "clients_per_round=0: must be a whole number of at least 1, or null (all)"),
    ("seed", -1, "seed=-1: must be a whole number of at least 0"),
    ("threads", 0, "threads=0: must be a whole number of at least 1, or null (this process's share of the CPUs)"),
    ("output", "", "output='': must be a folder, or null (a new one under runs/)"),
    ("output", 3, "output=3: must be a folder, or null (a new one under runs/)"),
    ("output", ["a", None], "output=[a,null]: must be a folder, or null (a new one under runs/)"),
    ("overwrite", 1, "overwrite=1: must be true or false"),
    ("overwrite", "yes\nno", "overwrite='yes\\nno': must be true or false"),
    ("baseline", "frozn", "baseline=frozn: must be one of none, frozen, alone, central; did you mean frozen?"),
    ("runtime", "cluster", "runtime=cluster: must be one of local, ray"),
    ("compare", "frozen", "compare=frozen: must be a list of baselines out of frozen, alone, central, each once"),
    (
        "compare",
        ["frozen", "allone"],
        "compare=[frozen,allone]: must be a list of baselines out of frozen, alone, central, each once;"
        " did you mean alone?",
    ),
    (
        "compare",
        ["frozen", "frozen"],
        "compare=[frozen,frozen]: must be a list of baselines out of frozen, alone, central, each once",
    ),
    ("model.weights", None, "model.weights=null: must be one of pretrained, random"),
    ("model.dtype", "bfloat", "model.dtype=bfloat: must be one of float32, bfloat16; did you mean bfloat16?"),
    ("model.dtype", None, "model.dtype=null: must be one of float32, bfloat16"),
    (
        "model.geometry",
        {"hidden_size": 3},
        "model.geometry={'hidden_size': 3}: must be a mapping of names to numbers or words, model_type among them,"
        " or null (pretrained weights only)",
    ),
    ("data.alpha", 0, "data.alpha=0: must be a number above 0"),
    ("data.alpha", math.inf, "data.alpha=inf: must be a number above 0"),
    ("data.alpha", math.nan, "data.alpha=nan: must be a number above 0"),
    ("data.alpha", 10**400, "data.alpha=1000"),
    ("data.max_length", 7, "data.max_length=7: must be a whole number from 8 to 512"),
    ("data.max_length", 513, "data.max_length=513: must be a whole number from 8 to 512"),
    ("data.partition", "dirichelt", "data.partition=dirichelt: must be one of iid, dirichlet, natural; "),
    (
        "data.tasks",
        "sst2",
        "data.tasks=sst2: must be a list of task names such as [sst2,trec], each once, or null (demo: all it has)",
    ),
    ("data.tasks", [], "data.tasks=[]: must be a list of task names"),
    ("data.tasks", [1], "data.tasks=[1]: must be a list of task names"),
    ("data.tasks", ["a", "a"], "data.tasks=[a,a]: must be a list of task names such as [sst2,trec], each once"),
    ("data.examples_per_client", 0, "data.examples_per_client=0: must be a whole number of at least 1, or null"),
    ("mask.rule", "pafii", "mask.rule=pafii: must be one of pafi, largest, random, hiwi, ffn_bias, bitfit, all; did"),
    ("mask.density", 0, "mask.density=0: must be a number above 0 and at most 1, or null (the other rules)"),
    ("mask.density", 1.5, "mask.density=1.5: must be a number above 0 and at most 1, or null (the other rules)"),
    ("mask.density", False, "mask.density=false: must be a number above 0 and at most 1, or null (the other rules)"),
    ("mask.scope", "globl", "mask.scope=globl: must be one of global, per_tensor, or null (the other rules); did you"),
    ("mask.include", [], f"mask.include=[]: must be a list of patterns such as {PATTERNS}, each once, or null"),
    ("mask.exclude", None, f"mask.exclude=null: must be a list of patterns such as {PATTERNS}, each once"),
    ("mask.embeddings", "true", "mask.embeddings=true: must be true or false"),
    ("mask.rank", 0, "mask.rank=0: must be a whole number of at least 1, or null (the other rules)"),
    ("client.learning_rate", 0, "client.learning_rate=0: must be a number above 0"),
    ("client.learning_rate", "1e-3", "client.learning_rate=1e-3: must be a number above 0"),
    ("client.weight_decay", -0.1, "client.weight_decay=-0.1: must be a number of at least 0"),
    ("client.head", "shraed", "client.head=shraed: must be one of local, shared, frozen; did you mean shared?"),
    (
        "server.combine",
        "trimmed",
        "server.combine=trimmed: must be one of mean, median, trimmed_mean; did you mean",
    ),
    ("server.trim", 0.5, "server.trim=0.5: must be a number above 0 and below 0.5"),
    ("server.clip_norm", 0, "server.clip_norm=0: must be a number above 0, or null (none)"),
    ("server.max_norm", -1, "server.max_norm=-1: must be a number above 0, or null ("),
    ("server.min_replies", 0, "server.min_replies=0: must be a whole number of at least 1"),
    ("server.max_retries", -1, "server.max_retries=-1: must be a whole number of at least 0"),
    ("server.timeout_seconds", 0, "server.timeout_seconds=0: must be a number above 0 and at most 1000000"),
    (
        "server.timeout_seconds",
        1e9,
        "server.timeout_seconds=1000000000.0: must be a number above 0 and at",
    ),
    ("model", 3, "model=3: must be a section with the keys name, hub, path, weights, dtype, geometry"),
]


@pytest.mark.parametrize(("key", "value", "text"), BAD_VALUES, ids=lambda part: str(part)[:30])
def test_a_value_that_is_not_allowed_is_one_line(key: str, value: object, text: str) -> None:
    (fault,) = faults_of(changed(**{key.replace(".", "__"): value}))
    assert fault.startswith(text)


@settings(deadline=None)
@given(key=st.sampled_from(sorted(KEYS)), junk=st.sampled_from([object(), b"x", {1: 2}, {"a"}, [[]], -3, "\n", 1e400]))
def test_junk_in_any_key_is_one_line_that_names_it(key: str, junk: object) -> None:
    (fault,) = faults_of(changed(**{key.replace(".", "__"): junk}))
    assert fault.startswith(f"{key}=")


@settings(deadline=None)
@given(st.integers(-5, 600), st.floats(-1, 2))
def test_ranges_hold_at_every_value(length: int, density: float) -> None:
    _, faults = check(changed(data__max_length=length, mask__density=density))
    assert any(fault.startswith("data.max_length=") for fault in faults) == (not 8 <= length <= 512)
    assert any(fault.startswith("mask.density=") for fault in faults) == (not 0 < density <= 1)


def test_all_faults_come_together_each_once() -> None:
    raw = changed(rounds=0, mask__density=7, client__head="x", clients_per_round=20, rond=3, data__alpa=1)
    del raw["seed"], raw["model"]["hub"]
    assert faults_of(raw) == (
        "data.alpa=1: no such key; did you mean data.alpha?",
        "rond=3: no such key; did you mean rounds?",
        "model.hub: missing; must be a hub name, or null (none: the model is made from its geometry and a seed)",
        "mask.density=7: must be a number above 0 and at most 1, or null (the other rules)",
        "client.head=x: must be one of local, shared, frozen",
        "rounds=0: must be a whole number of at least 1",
        "seed: missing; must be a whole number of at least 0",
        "clients_per_round=20: more than there are, clients=10; must be at most that, or null (all)",
    )


PATHS = ("model.path", "data.root", "output", "resume")


def test_which_keys_are_paths_follows_from_their_type() -> None:
    assert tuple(key for key, entry in KEYS.items() if entry.allowed.kind == "path") == PATHS
    texts = {key for key, entry in KEYS.items() if entry.allowed.kind == "text"}
    assert {"model.name", "model.hub", "ray.address"} <= texts
    assert all(is_allowed("any text", KEYS[key].allowed) for key in texts.union(PATHS))


@pytest.mark.parametrize("key", PATHS)
def test_a_leading_tilde_of_a_path_is_the_home_folder(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    raw = changed(data__source="hub", data__tasks=["a"], **{key.replace(".", "__"): "~/a"})
    assert flat(to_dict(build(raw)))[key] == "/home/me/a"
    assert flat(to_dict(build(changed(model__name="~/a"))))["model.name"] == "~/a"


@pytest.mark.parametrize(
    ("key", "value", "written", "ending"),
    [
        ("data.tasks", [2024], None, """in quotes: "data.tasks=['2024']\""""),
        ("data.tasks", ["a", 1.5, True, None], None, """in quotes: "data.tasks=[a,'1.5','true','null']\""""),
        ("data.tasks", "sst2", None, "; a list is written data.tasks=[sst2]"),
        ("compare", "frozen", None, "; a list is written compare=[frozen]"),
        ("compare", "frozn", None, "; did you mean frozen?"),
        ("compare", [3], None, "out of frozen, alone, central, each once"),
        ("data.tasks", [["a"]], None, "or null (demo: all it has)"),
        ("output", 3, None, '; as a text it stands in quotes: "3"'),
        ("output", False, "no", '; YAML takes no for false: as a text it stands in quotes: "no"'),
        ("output", object(), None, "or null (a new one under runs/)"),
        ("model.name", None, "null", '; as a text it stands in quotes: "null"'),
        ("model.name", None, None, "must be a name"),
        ("rounds", "3", None, "; this is a text: write 3 without quotes"),
        ("rounds", "0", None, "must be a whole number of at least 1"),
        ("overwrite", "true", None, "; this is a text: write true without quotes"),
        ("client.learning_rate", "1e-5", None, "; this is a text: write 1.0e-05 without quotes"),
        ("client.head_learning_rate", "nan", None, "must be a number above 0"),
        ("output", "\udcff", None, "or null (a new one under runs/)"),
        ("device", "gpu", None, "; did you mean cuda?"),
        ("model.dtype", "bf16", None, "; did you mean bfloat16?"),
        ("server.combine", "fedavg", None, "; did you mean mean?"),
    ],
)
def test_a_value_of_another_type_is_told_how_it_is_written(
    key: str, value: object, written: str | None, ending: str
) -> None:
    with pytest.raises(FedmaskError) as caught:
        read_value(key, value, KEYS[key].allowed, written)
    assert str(caught.value).startswith(f"{key}=")
    assert str(caught.value).endswith(ending)


@settings(deadline=None)
@given(st.sampled_from(sorted(KEYS)), st.text() | st.integers() | st.floats() | st.none() | st.lists(st.text()))
def test_what_is_told_to_be_written_is_allowed(key: str, value: object) -> None:
    said = ""
    try:
        read_value(key, value, KEYS[key].allowed)
    except FedmaskError as error:
        said = str(error)
    if "this is a text: write " in said:
        number = said.rpartition("write ")[2].removesuffix(" without quotes")
        assert is_allowed(yaml.safe_load(number), KEYS[key].allowed)
    if "a list is written" in said:
        assert is_allowed([value], KEYS[key].allowed)


def test_a_key_that_is_no_word_is_unknown() -> None:
    assert faults_of({**VALID, 3: 4}) == ("3=4: no such key; --help lists all keys",)


def test_a_missing_section_is_missing_key_by_key() -> None:
    raw = changed()
    del raw["client"]
    assert [fault.partition(":")[0] for fault in faults_of(raw)] == [key for key in KEYS if key.startswith("client.")]


@pytest.mark.parametrize(
    ("key", "ending"),
    [
        ("rond", "did you mean rounds?"),
        ("learning_rate", "did you mean client.learning_rate or server.learning_rate?"),
        ("epochs", "did you mean client.local_epochs?"),
        ("client.lr", "did you mean client.learning_rate?"),
        ("batch-size", "did you mean client.batch_size?"),
        ("mask.densty", "did you mean mask.density?"),
        ("qqqqqq", "--help lists all keys"),
    ],
)
def test_an_unknown_key_gets_the_closest_one(key: str, ending: str) -> None:
    assert unknown_key(key, 3) == f"{key}=3: no such key; {ending}"


CONTRADICTIONS: list[tuple[dict[str, object], list[str]]] = [
    (
        {"mask": {**VALID["mask"], **UNTAKEN_BY_HIWI, "density": 0.1}},
        ["mask.density=0.1: mask=hiwi takes no density; leave it out, or take mask=pafi|largest|random"],
    ),
    (
        {"mask": {**VALID["mask"], **UNTAKEN_BY_HIWI, "scope": "global", "include": ["a"], "exclude": ["b", "c"]}},
        [
            "mask.scope=global: mask=hiwi takes no scope; leave it out, or take mask=pafi|largest|random",
            "mask.include=[a]: mask=hiwi takes no include; leave it out, or take mask=pafi|largest|random",
            "mask.exclude=[b,c]: mask=hiwi takes no exclude; leave it out, or take mask=pafi|largest|random",
        ],
    ),
    (
        {"mask__embeddings": True, "mask__key_biases": True, "mask__seed": 3, "mask__rank": 4},
        [
            "mask.embeddings=true: mask=pafi takes no embeddings; leave it out, or take mask=all",
            "mask.key_biases=true: mask=pafi takes no key_biases; leave it out, or take mask=bitfit",
            "mask.seed=3: mask=pafi takes no seed; leave it out, or take mask=random",
            "mask.rank=4: mask=pafi takes no rank; leave it out, or take mask=hiwi",
        ],
    ),
    (
        {"mask__rule": "hiwi", "mask__density": None, "mask__scope": None, "mask__rank": 4}
        | {"client__learning_rate": None},
        ["client.learning_rate=null: mask=hiwi has one rate for all models; give a number, or leave it out"],
    ),
    (
        {"mask__density": None, "mask__scope": None},
        ["mask.density=null: mask=pafi needs a density", "mask.scope=null: mask=pafi needs a scope"],
    ),
    ({"mask": {**VALID["mask"], **UNTAKEN_BY_HIWI, "rank": None}}, ["mask.rank=null: mask=hiwi needs a rank"]),
    (
        {"data__source": "tsv"},
        [
            "data.root=null: data=tsv needs a folder: data.root=DIR",
            "data.tasks=null: data=tsv needs a list: data.tasks=[...]",
        ],
    ),
    ({"data__source": "hub"}, ["data.tasks=null: data=hub needs a list: data.tasks=[...]"]),
    (
        {"data__source": "own", "data__root": "d", "data__tasks": ["a"], "baseline": "central"},
        [
            "data.root=d: data=own reads no folder; leave it out, or take data=tsv|csv|jsonl|hub|python",
            "data.tasks=[a]: with data=own each client's own file says its task; leave it out",
            "data=own: central pools the data of all clients, and these do not leave their clients; leave one out",
        ],
    ),
    (
        {"data__source": "python", "data__tasks": ["m:t"]},
        ["data.root=null: data=python needs a folder: data.root=DIR"],
    ),
    (
        {"data__root": "my data"},
        ["data.root=my data: data=demo reads no folder; leave it out, or take data=tsv|csv|jsonl|hub|python"],
    ),
    (
        {"data__text": "review", "data__label": "kind"},
        [
            "data.text=review: data=demo has no columns to name; leave it out, or take data=tsv|csv|jsonl|hub",
            "data.label=kind: data=demo has no columns to name; leave it out, or take data=tsv|csv|jsonl|hub",
        ],
    ),
    (
        {"data__source": "own", "data__text": "review"},
        ["data.text=review: with data=own each client's own file names its columns; leave it out"],
    ),
    (
        {"data__source": "hub", "data__tasks": ["a"], "data__text_b": "reply"},
        ["data.text_b=reply: the second text of a pair; name the first with data.text="],
    ),
    (
        {"data__source": "hub", "data__tasks": ["a"], "data__text": "x", "data__text_b": "x", "data__label": "x"},
        [
            "data.text_b=x: this column is named twice; each is one of text, second text and label",
            "data.label=x: this column is named twice; each is one of text, second text and label",
        ],
    ),
    (
        {"data__classes": ["up", "up ", "Up"]},
        ["data.classes: 'up' and 'up ' differ in blanks or Unicode form only: they are one class"],
    ),
    (
        {"clients_per_round": 11},
        ["clients_per_round=11: more than there are, clients=10; must be at most that, or null (all)"],
    ),
    (
        {"server__min_clients": 11},
        ["server.min_clients=11: more than there are, clients=10; must be at most that, or null (all)"],
    ),
    (
        {"server__min_replies": 11},
        ["server.min_replies=11: more than a round can bring, clients=10; must be at most that"],
    ),
    (
        {"server__min_replies": 4, "clients_per_round": 3},
        ["server.min_replies=4: more than a round can bring, clients_per_round=3; must be at most that"],
    ),
    (
        {"server__min_replies": 2, "data__tasks": ["a"], "compare": ["central"]},
        ["server.min_replies=2: more than a round can bring, the tasks that central pools=1; must be at most that"],
    ),
    (
        {"clients": 2, "data__tasks": ["a", "b", "c"]},
        ["clients=2: fewer than the 3 tasks of data.tasks; every task needs a client"],
    ),
    (
        {"model__weights": "pretrained"},
        ["model.weights=pretrained: model=tiny is on no hub; give model.path=, or take model.weights=random"],
    ),
    (
        {"model__geometry": None},
        ["model.geometry=null: model.weights=random needs a geometry, or the one of model.path="],
    ),
    (
        {"model__geometry": {"model_type": "bert", "max_position_embeddings": 63}},
        ["data.max_length=64: model=tiny reads at most 63 tokens"],
    ),
    (
        {"model__geometry": {"model_type": "roberta", "max_position_embeddings": 65, "pad_token_id": 1}},
        ["data.max_length=64: model=tiny reads at most 63 tokens"],
    ),
]


@pytest.mark.parametrize(("changes", "faults"), CONTRADICTIONS)
def test_values_that_contradict_each_other(changes: dict[str, object], faults: list[str]) -> None:
    assert list(faults_of(changed(**changes))) == faults


NO_CONTRADICTIONS: list[dict[str, object]] = [
    {"client__learning_rate": None},
    {"clients_per_round": 10},
    {"clients": 3, "data__tasks": ["a", "b", "c"]},
    {"mask": {**VALID["mask"], **UNTAKEN_BY_HIWI}},
    {"mask": {**VALID["mask"], "rule": "all", "density": None, "scope": None, "embeddings": True}},
    {"mask": {**VALID["mask"], "rule": "random", "seed": 3}},
    {"model__path": "folder", "model__weights": "pretrained"},
    {"model__path": "folder", "model__geometry": None},
    {"model__geometry": {"model_type": "bert", "max_position_embeddings": 64}},
    {"model__geometry": {"model_type": "bert", "max_position_embeddings": "?"}},
    {"model__geometry": {"model_type": "roberta", "max_position_embeddings": 66, "pad_token_id": 1}},
]


@pytest.mark.parametrize("changes", NO_CONTRADICTIONS)
def test_values_that_go_together_build(changes: dict[str, object]) -> None:
    build(changed(**changes))


def test_nothing_is_said_of_what_depends_on_an_undecided_key() -> None:
    raw = changed(mask__rank=4, clients_per_round=11, rounds=0)
    values, faults = check(raw, undecided={"mask.rule", "clients", "rounds"})
    assert faults == []
    assert not {"mask.rule", "clients", "rounds"} & values.keys()


def test_a_wrong_value_is_not_also_called_missing() -> None:
    raw = changed(data__source="tsv", data__root=3, data__tasks="sst2", mask__density=7)
    assert [fault.partition("=")[0] for fault in faults_of(raw)] == ["data.root", "data.tasks", "mask.density"]


# ----------------------------------------------------------------------------------------------------------------------
# YAML and back
# ----------------------------------------------------------------------------------------------------------------------

WORDS = st.text(min_size=1).filter(str.strip)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)


@st.composite
def raws(draw: st.DrawFn) -> dict[str, Any]:
    """Mappings that build, with hard texts and floats where any are allowed."""
    clients = draw(st.integers(5, 10**6))
    return changed(
        model__path=draw(st.none() | WORDS),
        data__source="hub",
        data__root=draw(st.none() | WORDS),
        data__tasks=draw(st.lists(WORDS, min_size=1, max_size=5, unique=True)),
        data__alpha=draw(POSITIVE),
        mask__density=draw(st.floats(0, 1, exclude_min=True)),
        mask__include=draw(st.none() | st.lists(WORDS, min_size=1, unique=True)),
        mask__exclude=draw(st.lists(WORDS, unique=True)),
        client__learning_rate=draw(st.none() | POSITIVE),
        clients=clients,
        clients_per_round=draw(st.none() | st.integers(1, clients)),
        compare=draw(st.lists(st.sampled_from(["frozen", "alone"]), unique=True)),
        seed=draw(st.integers(0, 2**63)),
        threads=draw(st.none() | st.integers(1, 64)),
        output=draw(st.none() | WORDS),
        overwrite=draw(st.booleans()),
        resume=draw(st.none() | WORDS),
    )


@settings(deadline=None)
@given(raws())
def test_the_written_configuration_reads_back_equal(raw: dict[str, Any]) -> None:
    config = build(raw)
    assert from_yaml(yaml.safe_dump(to_dict(config), sort_keys=False)) == config
    assert list(to_dict(config)) == list(VALID)


@pytest.mark.parametrize(("rule", "before"), [("bitfit", True), ("pafi", False), ("all", False)])
def test_a_run_from_before_there_were_key_biases_trained_all_biases(rule: str, before: bool) -> None:
    taken = {} if rule == "pafi" else {"mask__density": None, "mask__scope": None}
    raw = changed(mask__rule=rule, **taken)
    assert from_yaml(yaml.safe_dump(raw)).mask.key_biases is False
    del raw["mask"]["key_biases"]
    assert from_yaml(yaml.safe_dump(raw)).mask.key_biases is before


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: [", "not YAML: while parsing a flow node expected the node content, but found '<stream end>' in"),
        ("- 1", "not a configuration: expected a mapping of keys to values, found [1]"),
        ("", "not a configuration: expected a mapping of keys to values, found null"),
    ],
)
def test_a_text_that_is_no_configuration_is_one_line(text: str, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_yaml(text)
    assert str(caught.value).startswith(fault)
    assert "\n" not in str(caught.value)


def edited(old: str, new: str) -> str:
    """The text of a configuration as a person may have edited it."""
    text = yaml.safe_dump(to_dict(build(changed())), sort_keys=False)
    assert text.count(old) == 1
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("rounds: 5", "rounds: 5\nrounds: 7", r"line \d+: rounds stands twice, first in line \d+; leave one out"),
        ("rounds: 5", "rounds: 010", "line [0-9]+: rounds: 010: YAML reads it in base 8, as 8; write a decimal number"),
        ("rounds: 5", "rounds: 1:30", "line [0-9]+: rounds: 1:30: YAML reads it in base 60, as 90; write a decimal"),
        ("output: null", "output: no", "output=no: must be a folder, .* YAML takes no for false: as a text it stands"),
        ("output: null", "output: 2024", "output=2024: must be a folder, .*; as a text it stands in quotes"),
        ("tasks: null", "tasks: [2024]", r"data.tasks=\[2024\]: must be a list"),
        ("rounds: 5", "rounds: .nan", "rounds=.nan: must be a whole number of at least 1"),
        ("alpha: 0.3", "alpha: .inf", "data.alpha=.inf: must be a number above 0"),
    ],
)
def test_an_edited_configuration_is_read_strictly(old: str, new: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=f"^{fault}") as caught:
        from_yaml(edited(old, new))
    assert len(caught.value.faults) == 1


@pytest.mark.parametrize("line", ["client.learning_rate: 0.5", "mask.density: 0.1", "model.geometry: {a: 1}"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_key_of_a_section_stands_inside_of_it_alone(line: str, inside: bool) -> None:
    key = line.partition(":")[0]
    section, _, entry = key.partition(".")
    raw = changed()
    if not inside:
        del raw[section][entry]
    with pytest.raises(ConfigError) as caught:
        from_yaml(yaml.safe_dump(raw) + line + "\n")
    (fault,) = caught.value.faults
    assert fault.startswith(f"{key}=")
    assert fault.endswith(f": no key of a file has a dot; write {entry} once, under {section}")


@settings(deadline=None)
@given(st.text(max_size=30), st.integers(0, 10**6))
def test_any_edit_is_a_configuration_or_lines(junk: str, place: int) -> None:
    text = edited("rounds: 5", "rounds: 6")
    place %= len(text)
    faults: tuple[str, ...] = ("none",)
    try:
        from_yaml(text[:place] + junk + text[place + len(junk) :])
    except ConfigError as error:
        faults = error.faults
    assert all(fault.isprintable() for fault in faults)


# ----------------------------------------------------------------------------------------------------------------------
# The keys themselves
# ----------------------------------------------------------------------------------------------------------------------


def is_instance(value: object, hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(is_instance(value, part) for part in get_args(hint))
    return isinstance(value, get_origin(hint) or hint)


@settings(deadline=None)
@given(raws())
def test_every_built_value_has_its_annotated_type(raw: dict[str, Any]) -> None:
    config = build(raw)
    for part in (config, config.model, config.data, config.mask, config.client):
        for name, hint in get_type_hints(type(part)).items():
            assert is_instance(getattr(part, name), hint), name


def test_every_field_is_a_key_with_a_meaning() -> None:
    expected = [f"{section}.{name}" for section, kind in SECTIONS.items() for name in get_type_hints(kind)]
    expected += [name for name in get_type_hints(RunConfig) if name not in SECTIONS]
    assert list(KEYS) == expected
    assert all(key.meaning and not key.meaning.endswith(".") for key in KEYS.values())


def test_rules_and_sources_are_those_of_the_library() -> None:
    from fedmask.masks import RULES
    from fedmask.tasks import SOURCES

    assert set(KEYS["mask.rule"].allowed.choices or ()) == set(RULES)
    assert set(KEYS["data.source"].allowed.choices or ()) == set(SOURCES)
    for name, rule in RULES.items():
        _, faults = check(changed(mask__rule=name))
        assert any("takes no density" in fault for fault in faults) == (not rule.takes_density)


def test_workers_are_of_one_machine_and_share_its_threads() -> None:
    with pytest.raises(ConfigError) as caught:
        build(changed(runtime="ray", workers=2))
    assert str(caught.value) == "workers=2: for runtime=local; ray.client_cpus= says how many work at once on Ray"
    alone, many = (build(changed(threads=None, workers=workers, clients=10_000)).threads for workers in (1, 10_000))
    assert (alone, many) == (len(os.sched_getaffinity(0)), 1)
    with pytest.raises(ConfigError, match=r"^workers=3: there are 2 clients; a worker without one has no use$"):
        build(changed(workers=3, clients=2))


def test_codecs_that_contradict_what_the_server_does_with_updates() -> None:
    (fault,) = faults_of(changed(codec__up="topk:0.1", server__combine="median"))
    assert fault.startswith("server.combine=median: clients of codec.up=topk:0.1 each send other entries")
    (fault,) = faults_of(changed(codec__up="sign", server__max_norm=2.0))
    assert fault.startswith("server.max_norm=2: a client whose update is rejected sends what it left out")
    for fine in (
        changed(codec__up="sign", server__combine="median"),
        changed(codec__up="sign", server__max_norm=2.0, codec__error_feedback=False),
        changed(codec__up="fp32", server__max_norm=2.0),
        changed(codec__up="topk:0.1", server__clip_norm=2.0),
    ):
        build(fine)


def test_baselines_that_contradict_the_run() -> None:
    from server.compose import compose

    with pytest.raises(ConfigError) as caught:
        compose(["baseline=frozen", "compare=[frozen,central]", "clients_per_round=2"])
    assert str(caught.value).splitlines() == [
        "compare=[frozen,central]: the run is baseline=frozen itself; leave that one out",
        "clients_per_round=2: central pools the data of all clients in every round; leave one of the two out",
    ]
