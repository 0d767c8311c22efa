"""server.overrides: a command line becomes choices and values, or one line with what is meant; any text does."""

import string
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import server.overrides
from fedmask.runs.config import KEYS
from fedmask.runs.other_words import OTHER_WORDS
from server.compose import groups
from server.overrides import Overrides, given_twice, read_overrides

GROUPS = groups()
MODELS, CODECS = (", ".join(GROUPS[group]) for group in ("model", "codec"))
NOT_KEY_VALUE = "must be key=value; --help lists all keys"
STUDY = "many runs are a study: scripts/study.py experiment=FILE.yaml"


def read(*overrides: str) -> Overrides:
    return read_overrides(overrides, GROUPS, {"first"})


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        # a key and its value in another form
        (["--rounds", "3"], f"--rounds 3: {NOT_KEY_VALUE}; write rounds=3"),
        (["rounds", "3"], f"rounds 3: {NOT_KEY_VALUE}; write rounds=3"),
        (["rounds:", "3"], f"rounds: 3: {NOT_KEY_VALUE}; write rounds=3"),
        (["rounds:3"], f"rounds:3: {NOT_KEY_VALUE}; write rounds=3"),
        (["rounds", "=", "3"], f"rounds = 3: {NOT_KEY_VALUE}; write rounds=3"),
        (["rounds", "=3"], f"rounds =3: {NOT_KEY_VALUE}; write rounds=3"),
        (["rounds=", "3"], f"rounds= 3: {NOT_KEY_VALUE}; write rounds=3"),
        (["--lr", "0.1"], f"--lr 0.1: {NOT_KEY_VALUE}; write client.learning_rate=0.1"),
        (["--learning-rate", "0.1"], f"--learning-rate 0.1: {NOT_KEY_VALUE}; write client.learning_rate=0.1"),
        (["--model", "tiny"], f"--model tiny: {NOT_KEY_VALUE}; write model=tiny"),
        (["--rounds"], f"--rounds: {NOT_KEY_VALUE}; write rounds=..."),
        (["overwrite"], f"overwrite: {NOT_KEY_VALUE}; write overwrite=true"),
        (["--overwrite", "seed=1"], f"--overwrite: {NOT_KEY_VALUE}; write overwrite=true"),
        (["nonsense"], f"nonsense: {NOT_KEY_VALUE}"),
        (["--rounds=3"], "--rounds=3: no such key; did you mean rounds?"),
        (["ROUNDS=3"], "ROUNDS=3: no such key; did you mean rounds?"),
        (["client.learning-rate=1"], "client.learning-rate=1: no such key; did you mean client.learning_rate?"),
        # words of other programs
        (["lr=0.1"], "lr=0.1: no such key; did you mean client.learning_rate?"),
        (["client.lr="], "client.lr='': no such key; did you mean client.learning_rate?"),
        (["epochs=3"], "epochs=3: no such key; did you mean client.local_epochs?"),
        (["num_rounds=3"], "num_rounds=3: no such key; did you mean rounds?"),
        (["num-clients=3"], "num-clients=3: no such key; did you mean clients?"),
        (["model_name=bert"], "model_name=bert: no such key; did you mean model.path?"),
        (["rule=pafi"], "rule=pafi: no such key; did you mean mask?"),
        # what another script takes
        (["-m"], f"-m: {STUDY}"),
        (["--multirun"], f"--multirun: {STUDY}"),
        (["rounds=1,2"], f"rounds=1,2: a run takes one value a key; a list is written [a,b]; {STUDY}"),
        (["adapter=RUN"], "adapter=RUN: no key of a run; scripts/merge.py adapter=RUN/adapter.safetensors output="),
        (["seeds=2"], "seeds=2: no key of a run; scripts/study.py experiment=NAME seeds=N runs a study"),
        (["experiment=first"], "experiment=first: a study of many runs; give it to scripts/study.py"),
        # a group for what a single key takes
        (["model=/a/b"], f"model=/a/b: must be one of {MODELS}; a folder or a hub name is given as model.path=/a/b"),
        (["model=bert-base-uncased"], f"model=bert-base-uncased: must be one of {MODELS}; a folder"),
        (["data=/a/b"], "data=/a/b: must be one of csv, demo, "),
        (["data=glue/sst2"], "data=glue/sst2: must be one of csv, demo, "),
        (["mask=0.01"], f"mask=0.01: must be one of {', '.join(GROUPS['mask'])}; write mask.density=0.01"),
        (["client=4"], "client=4: must be default; write clients=4"),
        (["codec=topk:0.1"], f"codec=topk:0.1: must be one of {CODECS}; write codec.up=topk:0.1 codec"),
        # twice in one value
        (["model.geometry={a: 1, a: 2}"], "model.geometry={a: 1, a: 2}: a stands twice; leave one out"),
        (["model.geometry={b:'x,b:1',b:2}"], "model.geometry={b:'x,b:1',b:2}: b stands twice; leave one out"),
        # numbers that YAML files do not have
        (["rounds=1_0"], "rounds=1_0: 1_0 has underscores, and a number has none; a text stands in quotes: '1_0'"),
        (["client.learning_rate=1_0.5e-3"], "client.learning_rate=1_0.5e-3: 1_0.5e-3 has underscores, and a number"),
        (["data.tasks=[a,2024_1]"], "data.tasks=[a,2024_1]: 2024_1 has underscores, and a number has none; a text"),
        (["model.geometry={a_1: 1_0}"], "model.geometry={a_1: 1_0}: 1_0 has underscores, and a number has none; a"),
        # beyond what can be read
        (["seed=" + "9" * 5000], "seed=999"),
        (["data.tasks=" + "[" * 500 + "]" * 500], "data.tasks=[[["),
    ],
    ids=lambda part: str(part)[:40],
)
def test_what_people_write_instead_is_one_line_with_what_is_meant(overrides: Sequence[str], fault: str) -> None:
    found = read("seed=1", *overrides, "threads=1")
    (told,) = found.faults
    assert told.startswith(fault)
    assert told.isprintable()
    assert found.values["threads"] == 1


def test_the_remedies_of_a_group_are_whole() -> None:
    (model,) = read("model=~/bert").faults
    assert model.endswith("; a folder or a hub name is given as model.path=~/bert")
    (folder,) = read("data=~/mine").faults
    assert folder.endswith("; your own files are given as data=tsv data.root=~/mine data.tasks=[...]")
    (hub,) = read("data=glue/sst2").faults
    assert hub.endswith("; a data set of the hub is given as data=hub data.tasks=[glue/sst2]")
    (close,) = read("model=tinny").faults
    assert close.endswith("; did you mean tiny?")


@pytest.mark.parametrize("word", sorted(OTHER_WORDS))
def test_each_word_of_another_program_is_told_what_to_write(word: str) -> None:
    (fault,) = read(f"{word}=x").faults
    assert fault == f"{word}=x: no such key; did you mean {OTHER_WORDS[word]}?"
    (split,) = read(f"--{word.replace('_', '-')}", "x").faults
    assert split.endswith(f"; write {OTHER_WORDS[word]}=x")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("output=~/a,b=[c]", "~/a,b=[c]"),  # the home folder takes its place when the value is checked
        ("model.hub=2024", "2024"),
        ("ray.address=ray://host:10001", "ray://host:10001"),
        ("output=null", None),
        ("output= a", " a"),
        ("data.tasks=[2024,no,'7']", [2024, "no", "7"]),
        ("model.geometry={a:1,b:{a:2}}", {"a": 1, "b": {"a": 2}}),
        ("model.geometry={a:'b:1,b:2'}", {"a": "b:1,b:2"}),
        ("mask.include=['{a:1,a:2}']", ["{a:1,a:2}"]),
        ("data.tasks=['1_0',a_1]", ["1_0", "a_1"]),
    ],
)
def test_a_value_is_read_as_it_is_written(override: str, value: object) -> None:
    found = read(override)
    assert found.faults == []
    assert found.values == {override.partition("=")[0]: value}


def test_of_a_key_given_twice_the_last_counts_and_it_is_told() -> None:
    overrides = ["rounds=2", "mask=hiwi", "seed=1", "rounds=3", "mask=pafi", "seed=1", "rounds=4"]
    found = read(*overrides)
    assert (found.values, found.choices, found.faults) == ({"rounds": 4, "seed": 1}, {"mask": "pafi"}, [])
    assert list(given_twice(overrides)) == [
        "rounds is given 3 times; the last counts: rounds=4",
        "mask is given 2 times; the last counts: mask=pafi",
    ]


WORDS = st.sampled_from([*KEYS, *GROUPS, *OTHER_WORDS, "-m", "=", ""])
TEXTS = st.text(string.printable, max_size=12) | st.text(max_size=5) | st.text("[]{}()'\"\\,:=~$ae1.-", max_size=12)
PARTS = (st.sampled_from(["", "-", "--", "+", "~"]), WORDS, st.sampled_from(["=", ":", " = ", ""]), TEXTS)
ARGUMENTS = st.tuples(*PARTS).map("".join)


@settings(deadline=None, max_examples=300)
@given(st.lists(ARGUMENTS | TEXTS, max_size=5))
def test_any_arguments_are_values_or_lines(overrides: list[str]) -> None:
    found = read(*overrides)
    assert all(fault.isprintable() for fault in found.faults)
    assert len(found.faults) + len(found.values) + len(found.choices) <= len(overrides)
    assert found.values.keys() <= KEYS.keys()
    assert all(name in GROUPS[group] for group, name in found.choices.items())


def test_a_fault_of_its_own_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.overrides, "_key_twice", lambda text: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        read("rounds=3")
