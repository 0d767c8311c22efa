"""server.compose: overrides and conf/ become one checked configuration, or all faults at once; and `--help`."""

import shutil
from pathlib import Path

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra.core.global_hydra import GlobalHydra
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

import server.compose
from fedmask.runs.config import KEYS, SECTIONS, ConfigError, ServerConfig, from_yaml, to_dict
from fedmask.runs.strict_yaml import read_mapping_file
from server.compose import CONF, compose, groups, help_text


def faults_of(*overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert str(caught.value).splitlines() == list(caught.value.faults)
    return caught.value.faults


@pytest.fixture(scope="module")
def compositions() -> dict[tuple[str, ...], DictConfig]:
    return {}


@pytest.fixture
def composed_once(compositions: dict[tuple[str, ...], DictConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra takes a tenth of a second for the same files each time: for the tests of what happens around it, once."""

    def remembered(name: str, overrides: list[str]) -> DictConfig:
        if tuple(overrides) not in compositions:
            compositions[tuple(overrides)] = hydra_compose(name, overrides=overrides)
        return compositions[tuple(overrides)]

    monkeypatch.setattr(server.compose, "hydra_compose", remembered)


# ----------------------------------------------------------------------------------------------------------------------
# What composes
# ----------------------------------------------------------------------------------------------------------------------


def test_the_defaults() -> None:
    config = compose([])
    assert (config.model.name, config.data.source, config.mask.rule, config.runtime) == (
        "minilm",
        "demo",
        "pafi",
        "local",
    )
    assert (config.clients, config.clients_per_round, config.rounds, config.seed) == (10, None, 5, 0)
    assert (config.mask.density, config.mask.scope) == (0.0003, "global")
    assert (config.data.partition, config.data.alpha, config.data.examples_per_client, config.data.max_length) == (
        "natural",
        0.3,
        100,
        64,
    )
    assert (config.client.local_epochs, config.client.batch_size, config.client.head) == (1, 8, "local")
    assert (config.client.head_learning_rate, config.client.weight_decay) == (0.005, 0.0)
    assert (config.baseline, config.compare, config.output, config.overwrite) == ("none", (), None, False)
    assert config.threads >= 1


@pytest.mark.parametrize("model", sorted(groups()["model"]))
def test_a_model_file_carries_its_own_name(model: str) -> None:
    assert compose([f"model={model}"]).model.name == model


@pytest.mark.parametrize(
    ("rule", "learning_rate"),
    [
        ("pafi", None),  # by the number of entries
        ("largest", None),
        ("random", None),
        ("hiwi", 3e-3),
        ("ffn_bias", 1e-2),
        ("bitfit", 5e-3),
        ("all", 1e-4),
    ],
)
def test_a_rule_brings_its_own_learning_rate(rule: str, learning_rate: float | None) -> None:
    config = compose([f"mask={rule}"])
    assert config.mask.rule == rule
    assert config.client.learning_rate == learning_rate
    assert compose([f"mask={rule}", "client.learning_rate=0.5"]).client.learning_rate == 0.5


def test_every_rule_and_source_has_its_file() -> None:
    assert set(groups()["mask"]) == set(KEYS["mask.rule"].allowed.choices or ())
    assert set(groups()["data"]) == set(KEYS["data.source"].allowed.choices or ())
    assert set(groups()["runtime"]) == set(KEYS["runtime"].allowed.choices or ())


@pytest.mark.parametrize("source", ["tsv", "hub", "python"])
def test_a_data_file_carries_its_own_source(source: str, tmp_path: Path) -> None:
    config = compose([f"data={source}", f"data.root={tmp_path}", "data.tasks=[a]"])
    assert (config.data.source, config.data.root, config.data.tasks) == (source, str(tmp_path), ("a",))


def test_an_experiment_wins_over_the_defaults_and_loses_to_the_command_line() -> None:
    assert compose(["experiment=demo"]).compare == ("frozen",)
    config = compose(["rounds=2", "experiment=demo", "compare=[]"])
    assert (config.rounds, config.compare) == (2, ())


def test_every_override_of_the_contract(tmp_path: Path) -> None:
    config = compose(
        [
            "model=roberta-base",
            "model.path=folder",
            "model.weights=random",
            "data=tsv",
            "data.tasks=[sst2,trec]",
            "data.partition=dirichlet",
            "data.alpha=1",
            "data.examples_per_client=null",
            "data.max_length=128",
            "workers=2",
            "score_every=2",
            "score_test=false",
            "server.learning_rate=1.5",
            "server.combine=trimmed_mean",
            "server.trim=0.2",
            "server.clip_norm=3",
            "server.max_norm=100",
            "server.max_examples=500",
            "server.min_clients=3",
            "server.min_replies=2",
            "server.max_retries=1",
            "server.timeout_seconds=60",
            "client.head_init=label_names",
            "ray.address=auto",
            "ray.client_cpus=0.5",
            "ray.client_gpus=0.25",
            "log.tensorboard=true",
            "mask=random",
            "mask.density=1e-3",
            "mask.scope=per_tensor",
            "mask.include=[*.weight]",
            "mask.exclude=[*.0.*,*.1.*]",
            "mask.seed=4",
            "clients=6",
            "clients_per_round=3",
            "rounds=7",
            "client.local_epochs=2",
            "client.batch_size=4",
            "client.learning_rate=1e-2",
            "client.head_learning_rate=2e-2",
            "client.weight_decay=0.1",
            "client.head=shared",
            "baseline=alone",
            "compare=[frozen]",
            "runtime=local",
            "seed=9",
            "threads=1",
            "overwrite=true",
            f"data.root={tmp_path}",
            f"output={tmp_path}/run",
        ]
    )
    flat = {key: value for key, value in to_dict(config).items() if key not in SECTIONS}
    assert flat == {
        "clients": 6,
        "clients_per_round": 3,
        "rounds": 7,
        "score_every": 2,
        "score_test": False,
        "baseline": "alone",
        "compare": ("frozen",),
        "runtime": "local",
        "workers": 2,
        "seed": 9,
        "device": "cpu",
        "threads": 1,
        "output": f"{tmp_path}/run",
        "overwrite": True,
        "resume": None,
    }
    assert config.server == ServerConfig(1.5, "trimmed_mean", 0.2, 3.0, 100.0, 500, 3, 2, 1, 60.0)
    assert config.client.head_init == "label_names"
    assert (config.ray.address, config.ray.client_cpus, config.ray.client_gpus) == ("auto", 0.5, 0.25)
    assert config.log.tensorboard
    assert (config.model.name, config.model.path, config.model.weights) == ("roberta-base", "folder", "random")
    assert (config.data.tasks, config.data.partition) == (("sst2", "trec"), "dirichlet")
    assert (config.data.alpha, config.data.examples_per_client, config.data.max_length) == (1.0, None, 128)
    assert (config.mask.density, config.mask.scope, config.mask.seed) == (1e-3, "per_tensor", 4)
    assert (config.mask.include, config.mask.exclude) == (("*.weight",), ("*.0.*", "*.1.*"))
    assert (config.client.local_epochs, config.client.batch_size, config.client.head) == (2, 4, "shared")
    assert (config.client.learning_rate, config.client.head_learning_rate, config.client.weight_decay) == (
        0.01,
        0.02,
        0.1,
    )


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("two words", "two words"),
        ("it's", "it's"),
        ("a,b=c", "a,b=c"),
        ("(x)[y]{z}$", "(x)[y]{z}$"),
        ("2024", "2024"),
        ("1e-3", "1e-3"),
        ("true", "true"),
        ("null", None),
        ("'quoted, text'", "quoted, text"),
        ('"null"', "null"),
        (r"'it\'s'", "it's"),
    ],
)
@pytest.mark.usefixtures("composed_once")
def test_paths_are_taken_as_written(written: str, read: str | None) -> None:
    config = compose([f"output={written}", f"model.path={written}"])
    assert (config.output, config.model.path) == (read, read)


@pytest.mark.usefixtures("composed_once")
def test_a_leading_tilde_of_any_path_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows").mkdir()
    config = compose(["output=~/runs", "model.path=~/bert", "data=hub", "data.root=~/rows", "data.tasks=['~/a']"])
    assert (config.output, config.model.path) == (f"{tmp_path}/runs", f"{tmp_path}/bert")
    assert (config.data.root, config.data.tasks) == (f"{tmp_path}/rows", ("~/a",))
    assert compose(["output=./~/runs"]).output == "./~/runs"
    assert faults_of("data=tsv", "data.root=~/gone", "data.tasks=[a]") == (
        f"data.root={tmp_path}/gone: there is no such folder",
    )


@pytest.mark.usefixtures("composed_once")
def test_what_can_be_no_path_is_told_for_each_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    none = "there is no home folder ~nobody-has-this; a name with a ~ in front is written ./~nobody-has-this"
    overrides = [f"{key}=~nobody-has-this" for key in ("output", "model.path", "data.root")]
    assert faults_of("data=hub", "data.tasks=[a]", *overrides) == tuple(f"{given}: {none}" for given in overrides)
    assert faults_of("resume=~nobody-has-this") == (f"resume=~nobody-has-this: {none}",)
    assert faults_of("resume=file") == ("resume=file: a file; name the run's folder",)
    assert faults_of("data=tsv", "data.root=file", "data.tasks=[a]") == (
        "data.root=file: must be a folder, but is a file",
    )
    unexpanded = [f"{key}=$HOME/a" for key in ("output", "model.path", "data.root")]
    variable = (
        "nobody puts its value in the place of $HOME, for a shell does that outside of single quotes only; write the "
        "path out"
    )
    assert faults_of("data=hub", "data.tasks=[a]", *unexpanded) == tuple(f"{given}: {variable}" for given in unexpanded)
    assert [fault.partition(":")[0] for fault in faults_of("output=a/${oc.env:HOME}")] == ["output=a/${oc.env"]
    root = "this is the root of all folders; name one of its own"
    assert [faults_of(f"output={path}") for path in ("/", "//", "/tmp/..")] == [
        (f"output={path}: {root}",) for path in ("/", "//", "/tmp/..")
    ]
    (long,) = faults_of(f"output={'x' * 5000}")
    assert long.endswith(": File name too long")
    (bytes_,) = faults_of("output=\udcff")  # as Python gives a name that is not UTF-8
    assert bytes_ == "output='\\udcff': must be a folder, or null (a new one under runs/)"


def test_a_run_is_resumed_by_a_path_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    text = yaml.safe_dump(to_dict(compose(["rounds=3", "output=~/run"])), sort_keys=False)
    (tmp_path / "run" / "config.yaml").write_text(text)
    config = compose(["resume=~/run", "output=~/run", "rounds=3"])
    assert (config.resume, config.output) == (f"{tmp_path}/run", f"{tmp_path}/run")
    (tmp_path / "run" / "config.yaml").write_text(text + "rounds: 5\n")
    (fault,) = faults_of("resume=~/run")
    assert fault.startswith(f"resume={tmp_path}/run: config.yaml: line ")
    assert fault.endswith("; leave one out")


def test_texts_in_lists_may_be_quoted() -> None:
    config = compose(["data=hub", "data.tasks=['a b', c d, \"e,f\", glue/sst2, my_tasks:reviews]"])
    assert config.data.tasks == ("a b", "c d", "e,f", "glue/sst2", "my_tasks:reviews")


def test_the_last_of_two_counts() -> None:
    config = compose(["rounds=2", "mask=hiwi", "rounds=3", "mask=bitfit"])
    assert (config.rounds, config.mask.rule) == (3, "bitfit")


@pytest.mark.parametrize("rule", sorted(groups()["mask"]))
def test_what_composes_survives_its_yaml(rule: str) -> None:
    config = compose([f"mask={rule}", "output=it's: here", "compare=[alone]"])
    assert from_yaml(yaml.safe_dump(to_dict(config), sort_keys=False)) == config


def test_hydra_leaves_no_folder_no_log_and_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compose(["rounds=2"])
    faults_of("rounds=0")
    assert list(tmp_path.iterdir()) == []
    assert not GlobalHydra().is_initialized()


def test_the_geometries_are_those_of_the_published_models() -> None:
    import torch
    from transformers import AutoConfig, AutoModel

    parameters = {}
    for name in groups()["model"]:
        geometry = compose([f"model={name}"]).model.geometry
        assert geometry is not None
        with torch.device("meta"):
            model = AutoModel.from_config(AutoConfig.for_model(**geometry))
        parameters[name] = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == {
        "minilm": 22_713_216,
        "roberta-base": 124_645_632,
        "roberta-large": 355_359_744,
        "tiny": 206_080,
    }
    assert round(0.0003 * parameters["minilm"]) == 6_814
    assert round(0.0003 * parameters["roberta-large"]) == 106_608


# ----------------------------------------------------------------------------------------------------------------------
# What does not
# ----------------------------------------------------------------------------------------------------------------------

RULES = "all, bitfit, ffn_bias, hiwi, largest, pafi, random"
LIST = "a list is written [a,b]"


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("mask=pafii", f"mask=pafii: must be one of {RULES}; did you mean pafi?"),
        ("mask=", f"mask='': must be one of {RULES}"),
        ("mask=[pafi,hiwi]", f"mask=[pafi,hiwi]: must be one of {RULES}"),
        ("mask={rule: pafi}", f"mask={{rule: pafi}}: must be one of {RULES}"),
        ("model=bert", "model=bert: must be one of minilm, roberta-base, roberta-large, tiny"),
        ("data=tvs", "data=tvs: must be one of csv, demo, hub, jsonl, own, python, tsv; did you mean tsv?"),
        ("client=fast", "client=fast: must be default"),
        ("experiment=dmo", "experiment=dmo: must be demo; did you mean demo?"),
        ("runtime=rya", "runtime=rya: must be one of local, ray; did you mean ray?"),
        ("rond=3", "rond=3: no such key; did you mean rounds?"),
        ("maks=hiwi", "maks=hiwi: no such key; did you mean mask?"),
        ("mask@x=pafi", "mask@x=pafi: no such key; did you mean mask?"),
        ("density=0.1", "density=0.1: no such key; did you mean mask.density?"),
        (
            "mask.learning_rate=1",
            "mask.learning_rate=1: no such key; did you mean client.learning_rate or server.learning_rate?",
        ),
        ("hydra.run.dir=x", "hydra.run.dir=x: no such key; --help lists all keys"),
        ("mask.rule=hiwi", "mask.rule=hiwi: comes with the file that mask=NAME takes; write mask=hiwi"),
        ("data.source=tsv", "data.source=tsv: comes with the file that data=NAME takes; write data=tsv"),
        ("model.name=tiny", "model.name=tiny: comes with the file that model=NAME takes; write model=tiny"),
        ("+rounds=3", "+rounds=3: keys can be neither added nor deleted; write key=value"),
        ("++rounds=3", "++rounds=3: keys can be neither added nor deleted; write key=value"),
        ("~rounds", "~rounds: keys can be neither added nor deleted; write key=value"),
        ("rounds", "rounds: must be key=value; --help lists all keys"),
        ("", "'': must be key=value; --help lists all keys"),
        ("--rounds", "--rounds: must be key=value; --help lists all keys"),
        ("rounds=1,2", f"rounds=1,2: a run takes one value a key; {LIST}"),
        ("rounds=range(1,3)", f"rounds=range(1,3): a run takes one value a key; {LIST}"),
        ("data.tasks=a,b", f"data.tasks=a,b: a run takes one value a key; {LIST}"),
        ("rounds=[", f"rounds=[: not a value; {LIST}, a text with special characters stands in quotes"),
        ("rounds=3\n4", f"'rounds=3\\n4': not a value; {LIST}, a text with special characters stands in quotes"),
        ("rounds=0", "rounds=0: must be a whole number of at least 1"),
        ("rounds=three", "rounds=three: must be a whole number of at least 1"),
        ("rounds='3'", "rounds=3: must be a whole number of at least 1"),
        ("clients=1e1", "clients=10.0: must be a whole number of at least 1"),
        ("overwrite=1", "overwrite=1: must be true or false"),
        ("mask.density=1.5", "mask.density=1.5: must be a number above 0 and at most 1, or null (the other rules)"),
        ("output=", "output='': must be a folder, or null (a new one under runs/)"),
        ("output=README.md/run", "output=README.md/run: must be a folder, but README.md is a file"),
        (
            "clients_per_round=11",
            "clients_per_round=11: more than there are, clients=10; must be at most that, or null",
        ),
        (
            "data.root=data",
            "data.root=data: data=demo reads no folder; leave it out, or take data=tsv|csv|jsonl|hub|python",
        ),
        ("mask.rank=4", "mask.rank=4: mask=pafi takes no rank; leave it out, or take mask=hiwi"),
    ],
)
@pytest.mark.usefixtures("composed_once")
def test_one_bad_override_is_one_line(
    override: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("README.md").touch()
    (found,) = faults_of("seed=1", override, "threads=1")
    assert found.startswith(fault)


@settings(max_examples=8, deadline=None)  # each example composes once, which takes a tenth of a second
@given(st.lists(st.text(), min_size=1, max_size=30))
def test_no_text_breaks_out_of_its_line(texts: list[str]) -> None:
    faults = faults_of(*texts, *(f"rounds=x{text}" for text in texts), "mask=" + "".join(texts) + "x")
    assert all(fault.isprintable() for fault in faults)
    assert len(faults) >= len(texts) + 1


def test_all_faults_come_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").touch()
    assert faults_of(
        "rounds=3",
        "model=tinny",
        "rond=3",
        "seed=[",
        "+x=1",
        "clients=4",
        "clients_per_round=5",
        "mask=hiwi",
        "mask.density=0.1",
        "data=tsv",
        "data.root=gone away",
        "client.head=none",
        "output=taken",
    ) == (
        "model=tinny: must be one of minilm, roberta-base, roberta-large, tiny; did you mean tiny?",
        "rond=3: no such key; did you mean rounds?",
        "seed=[: not a value; a list is written [a,b], a text with special characters stands in quotes",
        "+x=1: keys can be neither added nor deleted; write key=value",
        "client.head=none: must be one of local, shared, frozen",
        "mask.density=0.1: mask=hiwi takes no density; leave it out, or take mask=pafi|largest|random",
        "data.tasks=null: data=tsv needs a list: data.tasks=[...]",
        "clients_per_round=5: more than there are, clients=4; must be at most that, or null (all)",
        "output=taken: must be a folder, but taken is a file",
        "data.root=gone away: there is no such folder",
    )


def test_no_second_fault_follows_from_the_first() -> None:
    assert faults_of("mask=hiwii", "mask.rank=8") == (f"mask=hiwii: must be one of {RULES}; did you mean hiwi?",)
    assert faults_of("clients=2O", "clients_per_round=20") == ("clients=2O: must be a whole number of at least 1",)


def test_a_missing_data_folder_is_told_before_any_work(tmp_path: Path) -> None:
    missing = tmp_path / "gone"
    assert faults_of("data=tsv", f"data.root={missing}", "data.tasks=[a]", "rounds=0") == (
        "rounds=0: must be a whole number of at least 1",
        f"data.root={missing}: there is no such folder",
    )


@pytest.mark.parametrize(
    ("experiment", "fault"),
    [
        ("rond: 3", "rond=3: no such key; did you mean rounds?"),
        ("model: tiny", "model=tiny: must be a section with the keys name, hub, path, weights, dtype, geometry"),
        ("rounds: [", "conf/ does not compose with experiment=mine: while parsing a flow node expected"),
        ("rounds: ${gone}", "conf/ does not compose with experiment=mine: Interpolation key 'gone' not found"),
        (
            "defaults: [{override /mask: hiwii}]",
            "conf/ does not compose with experiment=mine: In 'config': Could not find 'mask/hiwii'",
        ),
    ],
)
def test_a_faulty_experiment_file_is_one_line(
    experiment: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = Path(shutil.copytree(CONF, tmp_path / "conf"))
    (conf / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{experiment}\n")
    monkeypatch.setattr(server.compose, "CONF", conf)
    (found,) = faults_of("experiment=mine", "model.path=folder")
    assert found.startswith(fault)


@pytest.mark.parametrize(
    ("experiment", "fault"),
    [
        ("rounds: 010", "mine.yaml: line 2: rounds: 010: YAML reads it in base 8, as 8; write a decimal number"),
        ("client: {batch_size: 1:30}", "mine.yaml: line 2: client.batch_size: 1:30: YAML reads it in base 60, as 90"),
        ("rounds: 2\nrounds: 3", "conf/ does not compose with experiment=mine: while constructing a mapping"),
        ("defaults: [{override /mask: octal}]", "octal.yaml: line 5: embeddings: 0777: YAML reads it in base 8"),
        ("data: {tasks: [2024]}", "data.tasks=[2024]: must be a list of task names"),
        ("output: no", "output=false: must be a folder"),
    ],
)
def test_the_files_of_conf_are_read_strictly(
    experiment: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = Path(shutil.copytree(CONF, tmp_path / "conf"))
    (conf / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{experiment}\n")
    all_ = (conf / "mask" / "all.yaml").read_text().splitlines()
    numbered = [line for line in all_ if not line.startswith("embeddings")]
    (conf / "mask" / "octal.yaml").write_text("\n".join([*numbered[:4], "embeddings: 0777", *numbered[4:]]))
    monkeypatch.setattr(server.compose, "CONF", conf)
    (found,) = faults_of("experiment=mine")
    assert fault in found
    assert found.isprintable()


def test_all_files_of_conf_are_strict_and_read_alike_by_hydra_and_the_library() -> None:
    for file in CONF.rglob("*.yaml"):
        read = read_mapping_file(file).content
        assert read == OmegaConf.to_container(OmegaConf.load(file)), file


WORDS = st.sampled_from([*KEYS, *groups(), "resume", "lr", "x"])
VALUES = st.text(max_size=8) | st.text("[]{}()'\"\\,:=~$ae1.-/", max_size=10) | st.integers().map(str)


@settings(max_examples=25, deadline=None)  # each example composes once or twice
@given(st.lists(st.builds("{}={}".format, WORDS, VALUES), max_size=4))
@example(["model.name=\U00018cd6"])
def test_any_command_line_is_a_configuration_or_lines(overrides: list[str]) -> None:
    faults: tuple[str, ...] = ("none",)
    try:
        compose(overrides)
    except ConfigError as error:
        faults = error.faults
    assert all(fault.isprintable() for fault in faults)


def test_a_fault_of_its_own_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.compose, "_check_numbers_and_names", lambda choices: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compose([])


# ----------------------------------------------------------------------------------------------------------------------
# --help
# ----------------------------------------------------------------------------------------------------------------------


def test_help_names_every_key_with_its_default_and_every_choice() -> None:
    lines = help_text().splitlines()
    key_lines = lines[next(number for number, line in enumerate(lines) if line.startswith("KEY=VALUE")) :]
    for key in KEYS:
        assert sum(line.startswith(f"  {key}=") for line in key_lines) == 1, key
    for group, names in groups().items():
        for name, meaning in names.items():
            assert meaning, f"conf/{group}/{name}.yaml says nothing of itself"
            assert sum(line[2:].split()[:1] == [f"{group}={name}"] for line in lines if line[:2] in ("* ", "  ")) >= 1
    starred = [line.split()[1] for line in lines if line.startswith("*")]
    assert starred == [
        "client=default",
        "codec=fp32",
        "data=demo",
        "mask=pafi",
        "model=minilm",
        "runtime=local",
        "server=default",
    ]


def test_help_gives_meaning_default_and_what_is_allowed() -> None:
    text = " ".join(help_text().split())
    assert "client.learning_rate=null AdamW's rate for what the mask trains; by default the mask rule's own: a" in text
    assert "or null (by how many entries the mask selects, for pafi, largest and random; config.yaml says it)." in text
    assert "clients_per_round=null Clients drawn each round, by the seed: a whole number of at least 1, or null" in text
    assert "data.partition=natural How a task's training rows are dealt to its clients: one of iid (at random)," in text
    assert "model.dtype=float32 What the weights are cast to once loaded" in text
    assert "mask.rule=pafi Which entries of the base model are trained; set by mask=NAME." in text


def test_help_fits_a_terminal_of_100_columns() -> None:
    assert max(map(len, help_text().splitlines())) <= 100
