"""server.app: a configuration becomes a run folder that holds what the contract says; the baselines beside it."""

import copy
import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from flwr.app import Context, Message, RecordDict

import fedmask
from client.app import app as client_app
from fedmask.errors import FedmaskError
from fedmask.masks import RULES
from fedmask.models import BaseModel
from fedmask.runs.config import from_yaml
from fedmask.training.delta import Delta
from fedmask.training.head import HeadOrigin, load_head, load_head_origin
from fedmask.wire.messages import facts_of
from server.app import app as server_app
from server.app import resolved, run_digest, select_mask
from server.compose import compose
from server.local_grid import LocalGrid

Run = Any
ONE_TASK = 'data.tasks=["small:first"]'


def own_values(run: Run, client: int) -> np.ndarray:
    return Delta.load(run.folder / "clients" / f"client-{client:05d}" / "adapter.safetensors").values


# ----------------------------------------------------------------------------------------------------------------------
# The folder
# ----------------------------------------------------------------------------------------------------------------------


def test_what_a_run_leaves_and_nothing_else(plain_run: Run) -> None:
    found = {str(path.relative_to(plain_run.folder)) for path in plain_run.folder.rglob("*") if path.is_file()}
    assert found == {
        "config.yaml",
        "rounds.jsonl",
        "communication.jsonl",
        "clients.jsonl",
        "adapter.safetensors",
        "summary.json",
        "report.html",
        *(f"clients/client-0000{number}/head.safetensors" for number in range(4)),
        *(f"clients/client-0000{number}/state/round-0000{done}.safetensors" for number in range(4) for done in (1, 2)),
        *(f"checkpoints/round-0000{done}.safetensors" for done in (1, 2)),
    }


def test_rounds_have_one_line_each_from_1_with_the_keys_of_the_contract(plain_run: Run) -> None:
    assert [line["round"] for line in plain_run.rounds] == [1, 2]
    for line in plain_run.rounds:
        keys = {"round", "clients", "failures", "train_loss", "score", "own_score", "mean_score", "seconds"}
        assert keys <= set(line)
        assert (line["clients"], line["failures"]) == (4, 0)
        assert set(line["score"]) == set(line["own_score"]) == {"first", "second"}
        assert line["mean_score"] == pytest.approx(np.mean(list(line["score"].values())))
        assert line["seconds"] > 0


def test_a_rounds_line_has_the_bytes_of_all_messages_until_then(plain_run: Run) -> None:
    for field in ("payload_bytes", "wire_bytes"):
        by_round = [sum(line[field] for line in plain_run.ledger if line["round"] <= number) for number in (1, 2)]
        assert plain_run.rounds[0][field] == by_round[0]
        # The test split is scored in the last round too, after its line was written.
        assert by_round[0] < plain_run.rounds[1][field] <= by_round[1]


def test_a_rounds_line_is_there_when_the_round_ends(
    federate: Callable[..., Run], tmp_path: Path, filtering_grid: Callable[..., Any]
) -> None:
    lines: dict[int, int] = {}

    def look(client: int, request: Any, reply: Any) -> Any:
        if request.metadata.message_type == "train":
            server_round = facts_of(request.content)["round"]
            lines[server_round] = len((tmp_path / "run" / "rounds.jsonl").read_text().splitlines())
        return reply

    federate(output=tmp_path / "run", grid=filtering_grid(look))
    assert lines == {1: 0, 2: 1}


def test_adapter_and_heads_of_a_run_say_where_they_come_from_and_that_it_is_the_same_run(
    plain_run: Run, tiny: BaseModel
) -> None:
    adapter = fedmask.load_adapter(plain_run.folder / "adapter.safetensors")
    run, max_length = plain_run.summary["run_digest"], plain_run.config.data.max_length
    assert (adapter.run, adapter.max_length) == (run, max_length)
    assert adapter.recipe.inputs == tiny.inputs
    assert adapter.heads is not None
    for head in sorted((plain_run.folder / "clients").glob("*/head.safetensors")):
        assert load_head_origin(head) == HeadOrigin("tiny", tiny.digest, tiny.inputs, run, max_length, pairs=False)
        layout = load_head(head)[0]
        assert adapter.heads[layout.digest] == layout.task
    assert set(adapter.heads.values()) == {"first", "second"}


def test_files_of_one_run_done_twice_have_the_same_bytes_whatever_it_ran_on(
    federate: Callable[..., Run], plain_run: Run
) -> None:
    again = federate("score_every=2", "server.timeout_seconds=77", "log.tensorboard=false")
    assert again.summary["run_id"] != plain_run.summary["run_id"]
    assert (again.adapter, again.heads) == (plain_run.adapter, plain_run.heads)


def test_a_run_of_another_base_mask_or_training_is_another_run(tiny: BaseModel, overrides: list[str]) -> None:
    def digest(*more: str, base: BaseModel = tiny) -> str:
        config = compose([*overrides, *more])
        return run_digest(config, base, select_mask(config, base))

    changed = replace(tiny, digest="1" * 64)
    found = [
        digest(),
        digest("seed=1"),
        digest("mask.density=0.02"),
        digest("client.learning_rate=0.5"),
        digest("client.head=shared"),
        digest("server.combine=median"),
        digest("codec=int8"),
        digest("clients=6"),
        digest("clients_per_round=2"),
        digest("data.max_length=24"),
        digest("baseline=alone"),
        digest("baseline=frozen"),
        digest(base=changed),
    ]
    assert len(set(found)) == len(found)
    same = ["rounds=9", "threads=2", "output=elsewhere", "server.max_retries=3", "score_every=4"]
    assert {digest(*same), digest("data.root=/tmp", "data.tasks=['a:b']")} == {found[0]}


def test_the_summary_has_the_keys_of_the_contract(plain_run: Run, tiny: BaseModel) -> None:
    summary = json.loads((plain_run.folder / "summary.json").read_text())
    assert summary == plain_run.summary
    assert summary["model"] == {
        "name": "tiny",
        "weights": "random",
        "dtype": "float32",
        "num_parameters": tiny.num_parameters,
        "digest": tiny.digest,
        "inputs_digest": tiny.inputs_digest,
    }
    mask = summary["mask"]
    assert (mask["rule"], mask["num_selected"]) == ("pafi", round(0.01 * tiny.num_parameters))
    assert mask["density"] == mask["num_selected"] / tiny.num_parameters
    assert len(mask["digest"]) == 64
    selected = fedmask.select(tiny.encoder, rule="pafi", density=0.01).indices
    assert mask["selected_by_tensor"] == {name: len(indices) for name, indices in selected.items()}
    assert sum(mask["selected_by_tensor"].values()) == mask["num_selected"]
    for key in ("score", "own_score", "worst_client_score"):
        assert set(summary[key]) == {"first", "second"}
        assert all(0 <= value <= 1 for value in summary[key].values())
    assert all(summary["worst_client_score"][task] <= summary["score"][task] for task in summary["score"])
    assert summary["mean_score"] == pytest.approx(np.mean(list(summary["score"].values())))
    assert summary["seconds"] > 0


def test_a_rate_that_is_not_named_is_the_rules_for_so_many_entries(
    federate: Callable[..., Run], plain_run: Run
) -> None:
    rate = RULES["pafi"].rate
    assert rate is not None
    taken = yaml.safe_load((plain_run.folder / "config.yaml").read_text())["client"]["learning_rate"]
    assert taken == rate(plain_run.summary["mask"]["num_selected"])
    assert federate(f"client.learning_rate={taken!r}").adapter == plain_run.adapter
    other = federate("client.learning_rate=0.01", "rounds=1")
    assert yaml.safe_load((other.folder / "config.yaml").read_text())["client"]["learning_rate"] == 0.01


@pytest.mark.parametrize(("baseline", "has_rate"), [("alone", True), ("central", True), ("frozen", False)])
def test_baselines_that_train_entries_take_the_same_rate(
    federate: Callable[..., Run], plain_run: Run, baseline: str, has_rate: bool
) -> None:
    run = federate(f"baseline={baseline}", "rounds=1", "score_test=false")
    assert run.config.client.learning_rate == (plain_run.config.client.learning_rate if has_rate else None)


def test_exact_zeros_in_the_mask_are_told_once_and_kept(
    federate: Callable[..., Run], tiny: BaseModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    zeroed = copy.deepcopy(tiny.encoder)
    torch.nn.init.zeros_(zeroed.get_parameter("encoder.layer.1.output.dense.weight"))
    zeroed.save_pretrained(tmp_path / "zeroed")  # type: ignore[operator]
    tiny.tokenizer.save_pretrained(tmp_path / "zeroed")
    run = federate(f"model.path={tmp_path / 'zeroed'}", "model.weights=pretrained", "mask.density=0.001", "rounds=1")
    assert run.summary["mask"]["exact_zeros"] == run.summary["mask"]["num_selected"] == 206
    (told,) = (message for message in caplog.messages if "exactly zero" in message)
    assert told.startswith(
        "rule pafi: 206 of the 206 selected entries (100%) are exactly zero in the base model, 206 of"
    )


def test_communication_figures_are_those_of_the_ledger(plain_run: Run, tiny: BaseModel) -> None:
    lines, found = plain_run.ledger, plain_run.summary["communication"]

    def sum_of(field: str, kinds: set[str], directions: set[str]) -> int:
        return sum(line[field] for line in lines if line["kind"] in kinds and line["direction"] in directions)

    both = {"up", "down"}
    payload = 16 + len("delta") + 8 + 4 * 2061  # once each way: what scoring brings, training does not bring again
    assert found == {
        "mask_bytes_per_client": sum_of("wire_bytes", {"mask"}, both) / 4,
        "uplink_payload_bytes_per_client_round": payload,
        "downlink_payload_bytes_per_client_round": payload,
        "uplink_bytes_per_client_round": sum_of("wire_bytes", {"train", "evaluate"}, {"up"}) / (4 * 2),
        "downlink_bytes_per_client_round": sum_of("wire_bytes", {"train", "evaluate"}, {"down"}) / (4 * 2),
        "total_bytes": sum_of("wire_bytes", {"mask", "train", "evaluate"}, both),
        "full_finetuning_bytes_per_client_round": 2 * 4 * tiny.num_parameters,
    }
    assert payload <= 4 * plain_run.summary["mask"]["num_selected"] + 64
    assert {line["kind"] for line in lines} == {"mask", "train", "evaluate"}


def test_the_configuration_composes_back_to_the_same_run(
    plain_run: Run, federate: Callable[..., Run], tmp_path: Path
) -> None:
    config = from_yaml((plain_run.folder / "config.yaml").read_text())
    assert config == plain_run.config


def test_the_adapter_merges_into_its_base(plain_run: Run, tiny: BaseModel) -> None:
    delta = fedmask.load_adapter(plain_run.folder / "adapter.safetensors")
    merged = dict(delta.merge(tiny.encoder).named_parameters())
    changed = sum(int((merged[name] != tensor).sum()) for name, tensor in tiny.encoder.named_parameters())
    assert 0.9 * 2061 < changed <= 2061


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(plain_run: Run, federate: Callable[..., Run]) -> None:
    before = plain_run.adapter
    with pytest.raises(FedmaskError, match="already holds a run; name another, or say overwrite=true"):
        federate("rounds=1", output=plain_run.folder)
    assert plain_run.adapter == before
    assert len(plain_run.rounds) == 2


def test_overwriting_gives_what_a_new_folder_gives(
    federate: Callable[..., Run], plain_run: Run, tmp_path: Path
) -> None:
    federate("seed=3", output=tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    run = federate("overwrite=true", output=tmp_path / "run")
    assert run.adapter == plain_run.adapter
    assert run.heads == plain_run.heads  # none goes on from the head that lay there
    assert len(run.rounds) == 2
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("more", [["mask.density=1.0"], ["mask.density=0.000000001"], ["mask.include=[nothing*]"]])
def test_a_mask_that_cannot_be_is_told_before_the_folder_is_touched(
    more: list[str], federate: Callable[..., Run], tmp_path: Path
) -> None:
    with pytest.raises(FedmaskError) as caught:
        federate(*more, output=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


# ----------------------------------------------------------------------------------------------------------------------
# As Flower starts it
# ----------------------------------------------------------------------------------------------------------------------


def start(overrides: str) -> None:
    grid = LocalGrid(client_app, 4, seed=8)
    server_app(grid, Context(grid.run.run_id, 1, {}, RecordDict(), {"hydra": overrides}))


def test_flowers_server_app_runs_the_overrides_it_is_given(
    plain_run: Run, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("FEDMASK_STATE_FOLDER", str(tmp_path / "clients"))
    output = tmp_path / "a run"  # a blank, quoted for the shell's rules
    start(shlex.join([*overrides, f"output={output}"]))
    assert (output / "adapter.safetensors").read_bytes() == plain_run.adapter
    config = from_yaml((output / "config.yaml").read_text())
    assert replace(config, output=plain_run.config.output) == plain_run.config
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in printed] == [
        "federated, round 1/2",
        "federated, round 2/2",
        "run folder",
    ]


@pytest.mark.parametrize(
    ("overrides", "faults"),
    [
        ("compare=[frozen]", ["compare=[frozen]: flwr run runs one federation; run each with baseline=NAME"]),
        (
            "runtime=ray compare=[frozen,alone]",
            [
                "runtime=ray: flwr run brings a runtime of its own; leave it out",
                "compare=[frozen,alone]: flwr run runs one federation; run each with baseline=NAME",
            ],
        ),
        ("workers=2", ["workers=2: flwr run says how many clients work at once; leave it out"]),
        ("output='a b", ["hydra=output='a b: No closing quotation"]),
        ("rouns=3", ["rouns=3: no such key; did you mean rounds?"]),
        ("data=tsv data.root=~/gone data.tasks=[a]", ["data.root=/home/me/gone: there is no such folder"]),
        ("--rounds 3", ["--rounds 3: must be key=value; --help lists all keys; write rounds=3"]),
    ],
)
def test_what_flower_cannot_start_is_told_in_lines(
    overrides: str, faults: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    with pytest.raises(FedmaskError) as caught:
        start(overrides)
    assert str(caught.value).splitlines() == faults


def test_what_a_configuration_leaves_open_is_resolved_before_a_run() -> None:
    now = datetime(2026, 3, 4, 5, 6, 7)
    left_open = compose(["model=tiny"])
    assert (left_open.output, left_open.data.tasks) == (None, None)
    config = resolved(left_open, now)
    assert config.output == "runs/tiny-demo-pafi-20260304-050607"
    assert config.data.tasks is not None
    assert len(config.data.tasks) == 5
    given = compose(["model=tiny", "output=here", "data.tasks=[topic]"])
    assert resolved(given, now) == given


# ----------------------------------------------------------------------------------------------------------------------
# Baselines
# ----------------------------------------------------------------------------------------------------------------------


def test_the_frozen_baseline_sends_no_vector_and_has_no_delta(federate: Callable[..., Run]) -> None:
    run = federate("baseline=frozen")
    assert {line["payload_bytes"] for line in run.ledger if line["kind"] != "mask"} == {0}
    assert not (run.folder / "adapter.safetensors").exists()
    assert not list((run.folder / "clients").glob("*/adapter.safetensors"))
    assert len(set(run.heads)) == 4
    assert run.summary["mask"] == {
        "rule": "none",
        "num_selected": 0,
        "density": 0.0,
        "digest": "",
        "selected_by_tensor": {},
    }
    assert set(run.summary["score"]) == {"first", "second"}
    assert [line["failures"] for line in run.rounds] == [0, 0]


def test_alone_no_client_depends_on_another(federate: Callable[..., Run]) -> None:
    def app(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 0 and message.metadata.message_type == "train":
            raise RuntimeError("no disk")
        return client_app(message, context)

    run = federate("baseline=alone")
    assert {line["payload_bytes"] for line in run.ledger if line["kind"] != "mask"} == {0}
    assert not (run.folder / "adapter.safetensors").exists()
    one_lost = federate("baseline=alone", app=app)
    for client in (1, 2, 3):
        assert one_lost.kept(client, "adapter") == run.kept(client, "adapter")
        assert one_lost.kept(client, "head") == run.kept(client, "head")
    assert not (one_lost.folder / "clients" / "client-00000" / "adapter.safetensors").exists()
    assert len({own_values(run, client).tobytes() for client in range(4)}) == 4


def test_alone_a_client_starts_where_federation_starts(federate: Callable[..., Run]) -> None:
    alone = federate("baseline=alone", "rounds=1")
    together = federate("rounds=1")
    mean = np.mean([own_values(alone, client).astype(np.float64) for client in range(4)], axis=0)  # ten examples each
    assert together.values.tobytes() == mean.astype(np.float32).tobytes()


def test_central_has_one_client_a_task_with_the_rows_of_all(federate: Callable[..., Run]) -> None:
    run = federate("baseline=central", "rounds=1")
    assert len(list((run.folder / "clients").iterdir())) == 2
    assert run.rounds[0]["clients"] == 2
    assert own_values(run, 0).tobytes() != own_values(run, 1).tobytes()
    assert {line["payload_bytes"] for line in run.ledger if line["kind"] != "mask"} == {0}


def test_a_federation_of_one_client_is_central_training(federate: Callable[..., Run]) -> None:
    settings = ("clients=1", ONE_TASK, "data.examples_per_client=20")
    together, central = federate(*settings), federate(*settings, "baseline=central")
    np.testing.assert_allclose(together.values, own_values(central, 0), rtol=0, atol=1e-6)
    assert np.abs(together.values).max() > 0.01
    assert together.summary["score"] == central.summary["score"]
