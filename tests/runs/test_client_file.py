"""runs.client_file: what a deployed client says for itself, and what it refuses a server."""

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmask.errors import FedmaskError
from fedmask.runs import client_file
from fedmask.runs.client_file import ClientFile, read_client_file
from fedmask.runs.config import ConfigError
from fedmask.wire.setup import Settings
from server.app import settings_for
from server.compose import compose

OWN = {
    "client_id": 2,
    "superlink": "server:9443",
    "authority": "authority.crt",
    "key": "client.key",
    "folder": "state",
    "data": {"source": "tsv", "root": "data", "task": "sst2"},
    "device": "cpu",
    "threads": None,
    "model_path": None,
    "limits": {"rounds": 10, "steps": 6, "batch_size": 8, "memory_bytes": None},
}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(**changes: Any) -> Path:
        path = tmp_path / "client.yaml"
        path.write_text(yaml.safe_dump(OWN | changes))
        return path

    return make


@pytest.fixture
def own(write: Write) -> ClientFile:
    return read_client_file(write())


@pytest.fixture
def asked() -> Settings:
    """What a server asks for that keeps within the limits."""
    return settings_for(compose(["model=tiny", "data=own", "client.batch_size=8", "clients=3", "threads=2"]))


def test_paths_are_taken_from_the_files_folder(own: ClientFile, tmp_path: Path) -> None:
    assert (own.key, own.data.root) == (str(tmp_path / "client.key"), str(tmp_path / "data"))
    assert own.states == tmp_path / "state" / "runs"
    assert own.model_path is None


def test_a_client_is_warm_only_where_it_says_so(own: ClientFile, write: Write) -> None:
    assert own.warm is False
    assert read_client_file(write(warm=True)).warm is True
    with pytest.raises(ConfigError, match="warm=often: must be true or false"):
        read_client_file(write(warm="often"))


def test_all_faults_are_told_at_once(write: Write, tmp_path: Path) -> None:
    faulty = write(client_id=-1, device="gpu", color="red", data={"source": "own", "root": None, "task": "x"})
    with pytest.raises(ConfigError) as error:
        read_client_file(faulty)
    assert [line.removeprefix(f"{tmp_path / 'client.yaml'}: ").partition(":")[0] for line in error.value.faults] == [
        "color",
        "client_id=-1",
        "data.source=own",
        "device=gpu",
    ]


@pytest.mark.parametrize(
    "superlink", ["server", "server:", ":9443", "server:0", "server:99999", "server:https", "https://server:9443"]
)
def test_a_server_has_a_port(superlink: str, write: Write) -> None:
    with pytest.raises(ConfigError, match=f"superlink={superlink}: must be host:port of the server"):
        read_client_file(write(superlink=superlink))


NAME, DECIMAL = "must be the name of its task", "write a decimal number"
PATHS = ("authority", "key", "folder", "model_path")


@pytest.mark.parametrize("key", [*PATHS, "data.root"])
def test_a_leading_tilde_is_the_home_folder(key: str, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    data = {"data": {"source": "tsv", "root": "~/mine", "task": "~/task"}}
    own = read_client_file(write(**({key: "~/mine"} if key in PATHS else data)))
    assert (own.data.root if key == "data.root" else getattr(own, key)) == "/home/me/mine"
    assert own.data.task == ("~/task" if key == "data.root" else "sst2")


def test_a_path_that_can_be_none_is_told(write: Write, tmp_path: Path) -> None:
    def faults(**paths: str) -> list[str]:
        with pytest.raises(ConfigError) as error:
            read_client_file(write(**paths))
        return [fault.removeprefix(f"{tmp_path / 'client.yaml'}: ") for fault in error.value.faults]

    assert faults(key="~nobody-has-this/x", folder="a\0b") == [
        "key=~nobody-has-this/x: there is no home folder ~nobody-has-this; a name with a ~ in front is written "
        "./~nobody-has-this/x",
        "folder='a\\x00b': no path has a NUL character",
    ]
    assert faults(key="${HOME}/client.key", folder="/") == [
        "key=${HOME}/client.key: nobody puts its value in the place of ${HOME}, for a shell does that outside of "
        "single quotes only; write the path out",
        "folder=/: this is the root of all folders; name one of its own",
    ]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("task: 2024", f'data.task=2024: {NAME}; as a text it stands in quotes: "2024"'),
        ("task: 1.50", f'data.task=1.50: {NAME}; YAML takes 1.50 for 1.5: as a text it stands in quotes: "1.50"'),
        ("task: no", f'data.task=no: {NAME}; YAML takes no for false: as a text it stands in quotes: "no"'),
        ("task: true", f'data.task=true: {NAME}; as a text it stands in quotes: "true"'),
        ("task: null", f'data.task=null: {NAME}; as a text it stands in quotes: "null"'),
        ("task:", "data.task='': must be the name of its task"),
        ("task: [sst2]", "data.task=[sst2]: must be the name of its task"),
        (
            "task: 0777",
            f'line 2: data.task: 0777: YAML reads it in base 8, as 511; {DECIMAL}, or "0777" if it is a text',
        ),
        (
            "task: 1:30",
            f'line 2: data.task: 1:30: YAML reads it in base 60, as 90; {DECIMAL}, or "1:30" if it is a text',
        ),
        ("task: a\n  task: b", "line 3: data.task stands twice, first in line 2; leave one out"),
        ("task: a\ndata: {}", "line 3: data stands twice, first in line 1; leave one out"),
    ],
)
def test_a_name_that_yaml_takes_for_something_else_is_told_how_it_is_written(
    line: str, fault: str, tmp_path: Path
) -> None:
    path = tmp_path / "client.yaml"
    others = yaml.safe_dump({key: value for key, value in OWN.items() if key != "data"})
    path.write_text(
        f"data:\n  {line}\n  source: demo\n{others}" if "data:" not in line else f"data:\n  {line}\n{others}"
    )
    with pytest.raises(ConfigError) as error:
        read_client_file(path)
    assert f"{path}: {fault}" in error.value.faults
    assert len(error.value.faults) == 1


@pytest.mark.parametrize("task", ["2024-01-01", "'2024'", "'no'", '"null"', "08", "0o17"])
def test_what_is_a_text_is_a_name(task: str, write: Write) -> None:
    path = write(data={"source": "demo", "root": None, "task": "TASK"})
    path.write_text(path.read_text().replace("TASK", task))
    assert read_client_file(path).data.task == task.strip("'\"")


@settings(deadline=None, max_examples=200)
@given(junk=st.binary(max_size=20), place=st.integers(0, 10**4), cut=st.integers(0, 20))
def test_any_bytes_are_a_file_or_lines(junk: bytes, place: int, cut: int) -> None:
    whole = yaml.safe_dump(OWN).encode()
    place %= len(whole)
    faults: tuple[str, ...] = ("none",)
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(whole[:place] + junk + whole[place + cut :])
        file.flush()
        try:
            read_client_file(Path(file.name))
        except ConfigError as error:
            faults = error.faults
    assert all(fault.isprintable() for fault in faults)


def test_a_fault_of_its_own_keeps_its_traceback(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_file, "read_value", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        read_client_file(write())


def test_limits_have_to_be_said(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"limits\.steps=null: must be a whole number of at least 1"):
        read_client_file(write(limits={"rounds": 10, "batch_size": 8}))


@pytest.mark.parametrize("content", ["", "- a", "a: [", "\0"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "client.yaml").write_text(content)
    with pytest.raises(ConfigError):
        read_client_file(tmp_path / "client.yaml")


def test_its_word_stands_in_the_place_of_the_servers(own: ClientFile, asked: Settings, tmp_path: Path) -> None:
    own = replace(own, threads=1, model_path="/models/mine")
    here = own.applied_to(replace(asked, device="cuda"))
    assert (here.data.source, here.data.root, here.data.tasks) == ("tsv", str(tmp_path / "data"), ("sst2",))
    assert (here.device, here.threads, here.model.path) == ("cpu", 1, "/models/mine")
    assert (here.client, here.codec, here.seed) == (asked.client, asked.codec, asked.seed)
    assert own.applied_to(asked).data.max_length == asked.data.max_length


def test_columns_and_classes_are_its_own(write: Write, asked: Settings) -> None:
    data = {"source": "csv", "root": "data", "task": "mail", "text": "body", "label": "folder"}
    own = read_client_file(write(data=data | {"classes": ["spam", "ham"]}))
    here = own.applied_to(asked).data
    assert (here.source, here.text, here.text_b, here.label, here.classes) == (
        "csv",
        "body",
        None,
        "folder",
        ("spam", "ham"),
    )
    of_the_run = replace(asked, data=replace(asked.data, classes=("x", "y")))
    assert own.applied_to(of_the_run).data.classes == ("spam", "ham")
    assert read_client_file(write(data=data)).applied_to(of_the_run).data.classes == ("x", "y")


@pytest.mark.parametrize(
    "line", ["data.task: x", "limits.rounds: 7", "data.text_a: x", "data.source: csv", "limits.odd: 1"]
)
def test_a_key_of_a_section_does_not_stand_a_second_time_with_a_dot(write: Write, line: str) -> None:
    path = write()
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ConfigError) as caught:
        read_client_file(path)
    key, _, value = line.partition(": ")
    section, _, entry = key.partition(".")
    assert caught.value.faults == (
        f"{path}: {key}={value}: no key of a file has a dot; write {entry} once, under {section}",
    )


def test_text_a_is_another_spelling_of_text(write: Write) -> None:
    data = {"source": "csv", "root": "data", "task": "mail", "text_a": "body"}
    assert read_client_file(write(data=data)).data.text == "body"
    with pytest.raises(ConfigError, match=r"data\.text_a=body: the same as data\.text; leave one of the two out"):
        read_client_file(write(data=data | {"text": "head"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "python", "text": "body"}, "data.text=body: data=python has no columns to name; leave it out"),
        ({"text_b": "reply"}, "data.text_b=reply: the second text of a pair; name the first with data.text="),
        ({"classes": ["a", "a"]}, "data.classes=[a,a]: must be a list of class names such as [down,up], each once"),
        ({"label": 3}, "data.label=3: must be a column"),
    ],
)
def test_columns_that_cannot_be(write: Write, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_client_file(write(data={"source": "csv", "root": "data", "task": "mail"} | changes))
    assert message in str(error.value)


def test_a_run_without_a_word_on_threads_takes_the_servers_and_no_more_than_there_are_cpus(
    own: ClientFile, asked: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedmask.runs.client_file.usable_cpus", lambda: 3)
    assert own.applied_to(asked).threads == 2
    assert own.applied_to(replace(asked, threads=1024)).threads == 3
    assert replace(own, threads=4).applied_to(replace(asked, threads=1024)).threads == 4  # its own word


def test_memory_and_disk_have_limits_where_none_is_said(own: ClientFile, write: Write, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    there_is = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert own.memory_bytes is not None
    assert 0 < own.memory_bytes <= there_is * 3 / 4
    assert own.disk_bytes == shutil.disk_usage(tmp_path).total // 2
    assert own.limits.runs == 1000
    assert replace(own, device="cuda").memory_bytes is None
    limits = {"rounds": 1, "steps": 1, "batch_size": 1, "memory_bytes": 7, "runs": 8, "disk_bytes": 9}
    said = read_client_file(write(limits=limits))
    assert (said.memory_bytes, said.limits.runs, said.disk_bytes) == (7, 8, 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"source": "demo"}}, "client 2 has data of its own, and the run says data=demo; run with data=own"),
        ({"model": {"path": "/etc"}}, "model.path; that is for the client's own file to say"),
        ({"client": {"batch_size": 9}}, r"asks for client.batch_size 9, this client's limits.batch_size is 8"),
    ],
)
def test_what_it_does_not_do_is_refused(
    own: ClientFile, asked: Settings, changes: dict[str, dict[str, Any]], message: str
) -> None:
    sections = {name: replace(getattr(asked, name), **values) for name, values in changes.items()}
    with pytest.raises(FedmaskError, match=message):
        own.applied_to(replace(asked, **sections))


def test_rounds_and_steps_are_limited(own: ClientFile, asked: Settings) -> None:
    own.check_round(asked, num_examples=48, server_round=10)
    with pytest.raises(FedmaskError, match=r"round 11, this client's limits\.rounds is 10"):
        own.check_round(asked, num_examples=48, server_round=11)
    with pytest.raises(FedmaskError, match=r"steps a round 7, this client's limits\.steps is 6"):
        own.check_round(asked, num_examples=49, server_round=1)
