"""client.app: message in, message out; what a client lacks it names, and what it must not send it does not send."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from numpy.typing import NDArray

import client.app
import client.process
from fedmask.errors import MaskMismatchError
from fedmask.masks import Mask, MaskRecipe
from fedmask.models import BaseModel
from fedmask.models.identity import inputs_digest
from fedmask.training.delta import load_adapter
from fedmask.training.head import HeadOrigin, load_head_origin
from fedmask.wire.codecs import codec
from fedmask.wire.messages import facts_of, pack, payload_of
from fedmask.wire.setup import Setup
from fedmask.wire.vectors import frame, unframe

Federate = Callable[..., Any]


TRAINED = {"num-examples", "train-loss"}


def whole(name: str, layout_digest: str, values: NDArray[np.float32]) -> bytes:
    return frame(name, layout_digest, codec("fp32").encode(values, 0))


def zeros(mask: Mask) -> bytes:
    return whole("delta", mask.digest, np.zeros(mask.num_selected, np.float32))


def test_a_client_introduces_itself_and_proves_mask_and_inputs(
    federation: Federate, mask: Mask, tiny: BaseModel
) -> None:
    facts = dict(facts_of(federation().tell(1).content))
    assert len(str(facts.pop("head-layout"))) == 64
    assert len(str(facts.pop("data-digest"))) == len(str(facts.pop("classes-digest"))) == 16
    assert facts == {
        "client-id": 1,
        "task": "only",
        "metric": "accuracy",
        "mask-digest": mask.digest,
        "inputs-digest": tiny.inputs_digest,
        "head-size": 2 * 65,
        "num-classes": 2,
        "num-examples": 10,
    }


def test_it_keeps_the_setup_in_its_context_and_nothing_large(federation: Federate) -> None:
    talk = federation()
    talk.tell(0)
    state = talk.grid.context(talk.nodes[0]).state
    assert list(state) == ["setup"]
    assert state.config_records["setup"]["bytes"] == Setup(talk.told, talk.mask.recipe).to_bytes()
    assert len(state.config_records["setup"]["bytes"]) < 2000
    assert list(talk.grid.context(talk.nodes[1]).state) == []


def test_training_answers_with_the_update_and_what_it_weighs(federation: Federate, mask: Mask) -> None:
    talk = federation()
    talk.tell(0)
    reply = talk.ask("train", 0, zeros(mask), round=1, version=0)
    found = unframe(payload_of(reply.content), [("delta", mask.digest, mask.num_selected)])["delta"].values
    assert np.count_nonzero(found) > 0.9 * found.size
    assert set(facts_of(reply.content)) == TRAINED
    assert facts_of(reply.content)["num-examples"] == 10


def test_the_update_is_local_minus_received(federation: Federate, mask: Mask) -> None:
    talk = federation(head="frozen")
    talk.tell(0)
    layout = [("delta", mask.digest, mask.num_selected)]
    first = unframe(payload_of(talk.ask("train", 0, zeros(mask), round=1, version=0).content), layout)["delta"]
    start = whole("delta", mask.digest, first.values)
    update = unframe(payload_of(talk.ask("train", 0, start, round=2, version=1).content), layout)["delta"].values
    # Adam's steps are as large as its rate, and there are two batches. The local delta itself would be near twice that.
    rate = talk.told.client.learning_rate
    assert np.abs(update).max() <= 2 * rate * 1.01
    assert np.abs(update + first.values).max() > 2 * rate * 1.5


def test_the_base_model_is_as_it_was_after_every_message(federation: Federate, mask: Mask) -> None:
    talk = federation()
    talk.tell(0)
    encoder = client.process.texts_for(talk.told).base.encoder
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    ones = whole("delta", mask.digest, np.ones(mask.num_selected, np.float32))
    talk.ask("train", 0, ones, round=1, version=0)
    talk.ask("evaluate", 0, round=1, version=0, split="validation")
    assert all(before[name].equal(tensor) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize(("kind", "more"), [("train", {"round": 1}), ("evaluate", {"split": "test"})])
def test_a_client_without_its_mask_says_so(
    federation: Federate, mask: Mask, kind: str, more: dict[str, object]
) -> None:
    reply = federation().ask(kind, 0, zeros(mask), version=0, **more)
    assert dict(facts_of(reply.content)) == {"missing": "mask"}
    assert payload_of(reply.content) == b""


@pytest.mark.parametrize(("kind", "more"), [("train", {"round": 1}), ("evaluate", {"split": "test"})])
def test_a_client_without_the_vectors_of_this_version_says_so(
    federation: Federate, mask: Mask, kind: str, more: dict[str, object]
) -> None:
    talk = federation()
    talk.tell(0)
    ones = whole("delta", mask.digest, np.ones(mask.num_selected, np.float32))
    talk.ask("evaluate", 0, ones, version=4, split="validation")
    assert "counts" in facts_of(talk.ask("evaluate", 0, version=4, split="test").content)
    assert facts_of(talk.ask(kind, 0, version=5, sum=1, **more).content) == {"missing": "vectors"}
    talk.ask("evaluate", 0, ones, version=4, split="validation")
    client.process._run_in_process.cache_clear()  # the process was restarted, the context was not
    assert dict(facts_of(talk.ask(kind, 0, version=4, **more).content)) == {"missing": "vectors"}


def test_scoring_answers_with_counts_of_the_whole_split(federation: Federate, mask: Mask) -> None:
    talk = federation()
    talk.tell(0)
    for split, total in (("validation", 10), ("test", 12)):
        reply = talk.ask("evaluate", 0, zeros(mask), version=0, split=split)
        metrics = facts_of(reply.content)
        assert set(metrics) == {"counts", "own-counts", "majority-counts"}
        assert metrics["counts"][1] == total  # type: ignore[index]
        assert payload_of(reply.content) == b""


def test_vectors_of_another_mask_are_refused_with_an_error_reply(federation: Federate, mask: Mask) -> None:
    talk = federation()
    talk.tell(0)
    other = whole("delta", "ab" * 32, np.zeros(mask.num_selected, np.float32))
    reply = talk.ask("train", 0, other, round=1, version=0)
    assert reply.has_error()
    assert "has layout " + "ab" * 8 in str(reply.error.reason)


@pytest.mark.parametrize("config", [{"version": 0}, {"round": "1", "version": 0}, {"round": 1}])
def test_a_request_without_its_facts_is_refused(federation: Federate, mask: Mask, config: dict[str, Any]) -> None:
    talk = federation()
    talk.tell(0)
    reply = talk.ask("train", 0, zeros(mask), **config)
    assert reply.has_error()
    assert "expected a whole number" in str(reply.error.reason)


def test_a_setup_that_cannot_be_read_is_refused_and_not_kept(federation: Federate) -> None:
    talk = federation()
    reply = talk.tell(0, b"\xff\x00\x00\x00{}")
    assert reply.has_error()
    assert "setup of 6 bytes cannot be read" in str(reply.error.reason)
    assert list(talk.grid.context(talk.nodes[0]).state) == []


def test_a_mask_of_other_base_weights_is_refused_naming_both_and_not_kept(
    federation: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mismatch(*_: object) -> Mask:
        raise MaskMismatchError("digest aa, expected bb")

    monkeypatch.setattr(MaskRecipe, "rebuild", mismatch)
    talk = federation()
    facts = dict(facts_of(talk.tell(1).content))
    assert facts == {"client-id": 1, "mask-mismatch": "digest aa, expected bb"}
    assert list(talk.grid.context(talk.nodes[1]).state) == []
    by_indices = facts_of(talk.tell(1, Setup(talk.told, talk.mask).to_bytes()).content)
    assert by_indices["mask-digest"] == talk.mask.digest


def with_inputs(talk: Any, **changes: object) -> bytes:
    """The setup of a server whose base model differs from this process's by these."""
    inputs = {**talk.mask.recipe.inputs, **changes}
    told = dataclasses.replace(talk.told, inputs_digest=inputs_digest(inputs))
    return Setup(told, dataclasses.replace(talk.mask.recipe, inputs=inputs)).to_bytes()


def test_a_base_that_reads_or_computes_otherwise_is_refused_naming_what_differs_and_not_kept(
    federation: Federate,
) -> None:
    talk = federation()
    for changes, unlike in (
        ({"tokenizer": "0" * 16}, "another tokenizer"),
        ({"hidden_act": "relu"}, "hidden_act its default instead of relu"),
        ({"num_attention_heads": 2}, "num_attention_heads 4 instead of 2"),
    ):
        assert dict(facts_of(talk.tell(1, with_inputs(talk, **changes)).content)) == {
            "client-id": 1,
            "inputs-mismatch": f"this base model reads or computes otherwise than the run's: {unlike}; take the same "
            "copy of tiny on server and clients",
        }
        assert list(talk.grid.context(talk.nodes[1]).state) == []
    assert "mask-digest" in facts_of(talk.tell(1).content)


def test_without_a_recipe_the_digest_of_the_inputs_is_enough_to_refuse(federation: Federate) -> None:
    talk = federation(inputs_digest="0" * 64)
    for mask in (None, talk.mask):
        told = dataclasses.replace(talk.told, baseline="frozen" if mask is None else "none")
        facts = dict(facts_of(talk.tell(0, Setup(told, mask).to_bytes()).content))
        assert "another tokenizer or setting (digest " in str(facts["inputs-mismatch"])


def test_a_server_that_does_not_tell_the_inputs_is_warned_of(
    federation: Federate, caplog: pytest.LogCaptureFixture
) -> None:
    talk = federation(inputs_digest="")
    recipe = dataclasses.replace(talk.mask.recipe, inputs=None)
    facts = facts_of(talk.tell(1, Setup(talk.told, recipe).to_bytes()).content)
    assert facts["mask-digest"] == talk.mask.digest
    (line,) = caplog.messages
    assert line.startswith("the run does not say with which tokenizer and settings")


def test_a_client_beyond_the_federation_is_refused(federation: Federate) -> None:
    talk = federation(clients=1)
    reply = talk.tell(1)
    assert reply.has_error()
    assert "client 1 is not in this federation of 1 clients: give their nodes the partition-ids 0 to 0" in str(
        reply.error.reason
    )


# ----------------------------------------------------------------------------------------------------------------------
# Heads and baselines
# ----------------------------------------------------------------------------------------------------------------------


def head_file(talk: Any, number: int) -> Path:
    return Path(talk.folder) / f"client-{number:05d}" / "head.safetensors"


def heads_of_two_rounds(talk: Any, mask: Mask) -> list[bytes]:
    """Client 0 trains twice, each reply accepted; its head after each round."""
    heads = []
    for server_round in (1, 2):
        talk.ask("train", 0, zeros(mask), round=server_round, version=0, state_round=server_round - 1)
        heads.append(head_file(talk, 0).read_bytes())
    return heads


def test_a_local_head_goes_on_from_where_it_was(federation: Federate, mask: Mask) -> None:
    talk = federation()
    talk.tell(0)
    heads = heads_of_two_rounds(talk, mask)
    assert heads[0] != heads[1]
    assert not head_file(talk, 1).exists()


def test_a_shared_head_travels_and_is_kept_when_it_was_scored(
    federation: Federate, mask: Mask, tiny: BaseModel
) -> None:
    talk = federation(head="shared")
    facts = facts_of(talk.tell(0).content)
    head = ("head", str(facts["head-layout"]), 130)
    payload = zeros(mask) + whole("head", head[1], np.full(130, 0.5, np.float32))
    reply = talk.ask("train", 0, payload, round=1, version=0)
    found = unframe(payload_of(reply.content), [head, ("delta", mask.digest, mask.num_selected)])
    assert set(found) == {"head", "delta"}
    assert 0 < np.abs(found["head"].values).max() <= 2 * 0.005 * 1.01  # two steps of Adam at its rate
    assert not head_file(talk, 0).exists()
    talk.ask("evaluate", 0, payload, version=0, split="test")
    assert head_file(talk, 0).exists()


def test_the_frozen_baseline_trains_heads_only_and_sends_nothing(federation: Federate) -> None:
    talk = federation(baseline="frozen")
    reply = talk.tell(0, Setup(talk.told, None).to_bytes())
    assert facts_of(reply.content)["mask-digest"] == ""
    reply = talk.ask("train", 0, round=1, version=0)
    assert payload_of(reply.content) == b""
    assert facts_of(reply.content)["num-examples"] == 10
    assert sorted(path.name for path in head_file(talk, 0).parent.iterdir()) == ["head.safetensors", "state"]


def test_alone_a_client_keeps_its_own_delta_and_sends_nothing(federation: Federate) -> None:
    talk = federation(baseline="alone")
    talk.tell(0)
    assert payload_of(talk.ask("train", 0, round=1, version=0).content) == b""
    adapter = head_file(talk, 0).with_name("adapter.safetensors")
    first = adapter.read_bytes()
    talk.ask("train", 0, round=2, version=1, state_round=1)
    assert adapter.read_bytes() != first


def test_head_and_adapter_that_people_see_say_where_they_come_from(federation: Federate, tiny: BaseModel) -> None:
    talk = federation(baseline="alone")
    layout = str(facts_of(talk.tell(0).content)["head-layout"])
    talk.ask("train", 0, round=1, version=0)
    assert load_head_origin(head_file(talk, 0)) == HeadOrigin(
        "tiny", tiny.digest, tiny.inputs, "0123456789abcdef", max_length=64, pairs=False
    )
    adapter = load_adapter(head_file(talk, 0).with_name("adapter.safetensors"))
    assert (adapter.run, adapter.max_length, adapter.heads) == ("0123456789abcdef", 64, {layout: "only"})
    assert adapter.recipe.inputs == tiny.inputs


def test_a_node_that_lost_its_state_starts_like_a_new_one(federation: Federate, mask: Mask) -> None:
    talk = federation()
    talk.tell(0)
    talk.grid.context(talk.nodes[0]).state = RecordDict()
    assert facts_of(talk.ask("train", 0, zeros(mask), round=1, version=0).content)["missing"] == "mask"
    talk.tell(0)
    assert payload_of(talk.ask("train", 0, zeros(mask), round=1, version=0).content)


@pytest.mark.parametrize("baseline", ["none", "alone"])
def test_what_is_not_finite_is_never_kept(
    federation: Federate, mask: Mask, monkeypatch: pytest.MonkeyPatch, baseline: str
) -> None:
    talk = federation(baseline=baseline)
    talk.tell(0)
    payload = zeros(mask) if baseline == "none" else b""
    talk.ask("train", 0, payload, round=1, version=0)
    kept = {path: path.read_bytes() for path in talk.folder.rglob("*.safetensors")}
    assert kept
    trained = client.app._train_locally

    def broken(*arguments: Any) -> Any:
        result = trained(*arguments)
        result.head[0] = float("nan")
        return result

    monkeypatch.setattr(client.app, "_train_locally", broken)
    reply = talk.ask("train", 0, payload, round=2, version=0, state_round=1)
    assert "client 0: training in round 2 has come to numbers that are not finite; lower" in str(reply.error.reason)
    assert {path: path.read_bytes() for path in talk.folder.rglob("*.safetensors")} == kept


# ----------------------------------------------------------------------------------------------------------------------
# A round that is done again, or whose reply the server did not take
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", ["none", "alone"])
def test_a_round_that_is_done_again_gives_what_it_gave(federation: Federate, mask: Mask, baseline: str) -> None:
    talk = federation(baseline=baseline)
    talk.tell(0)
    payload = zeros(mask) if baseline == "none" else b""

    def train(server_round: int, state_round: int) -> dict[Path, bytes]:
        reply = talk.ask("train", 0, payload, round=server_round, version=0, state_round=state_round)
        assert set(facts_of(reply.content)) == TRAINED
        return {path: path.read_bytes() for path in head_file(talk, 0).parent.rglob("*.safetensors")}

    train(1, 0)
    second = train(2, 1)
    assert train(2, 1) == second
    third = train(3, 2)
    assert train(3, 1)[head_file(talk, 0)] != third[head_file(talk, 0)]  # round 2 was not accepted
    assert train(2, 1) == second


def test_a_client_is_scored_with_the_state_that_the_server_names(federation: Federate, mask: Mask) -> None:
    talk = federation()
    talk.tell(0)
    heads = heads_of_two_rounds(talk, mask)
    for state_round in (1, 2):
        talk.ask("evaluate", 0, version=0, split="test", state_round=state_round)
        assert head_file(talk, 0).read_bytes() == heads[state_round - 1]
    talk.ask("evaluate", 0, version=0, split="test", state_round=0)
    assert not head_file(talk, 0).exists()


def test_a_client_whose_state_is_lost_says_so_and_begins_anew(federation: Federate, mask: Mask) -> None:
    talk = federation()
    talk.tell(0)
    new = payload_of(talk.ask("train", 0, zeros(mask), round=2, version=0).content)
    reply = talk.ask("train", 0, zeros(mask), round=2, version=0, state_round=1)
    assert str(facts_of(reply.content)["state-lost"]).startswith("client 0: its state of round 1 is lost: ")
    assert payload_of(reply.content) == new
    reply = talk.ask("evaluate", 0, zeros(mask), version=0, split="test", state_round=1)
    assert "client 0: its state of round 1 is lost: " in str(reply.error.reason)
    reply = talk.ask("train", 0, zeros(mask), round=3, version=0, state_round=2)
    assert set(facts_of(reply.content)) == TRAINED


def test_a_state_of_another_run_is_not_gone_on_from(federation: Federate, mask: Mask) -> None:
    first = federation()
    first.tell(0)
    first.ask("train", 0, zeros(mask), round=1, version=0)
    second = federation(run_id="f" * 16)
    second.tell(0)
    reply = second.ask("train", 0, zeros(mask), round=2, version=0, state_round=1)
    assert f"is of run_id {first.told.run_id}, client_id 0, round 1, not of run_id {'f' * 16}" in str(
        facts_of(reply.content)["state-lost"]
    )


def test_vectors_that_are_handed_over_are_held(federation: Federate, mask: Mask) -> None:
    talk = federation()
    talk.tell(0)
    assert dict(facts_of(talk.ask("evaluate", 0, version=4, split="test").content)) == {"missing": "vectors"}
    assert not talk.ask("query.vectors", 0, zeros(mask), version=4).has_error()
    assert "counts" in facts_of(talk.ask("evaluate", 0, version=4, split="test").content)


# ----------------------------------------------------------------------------------------------------------------------
# Outside a simulation of our own
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["FEDMASK_STATE_FOLDER", "HOME"])
def test_a_node_that_is_told_no_folder_keeps_its_files_in_one_by_the_run(
    variable: str, federation: Federate, mask: Mask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDMASK_STATE_FOLDER", "")
    monkeypatch.setenv(variable, str(tmp_path / "kept"))
    talk = federation()
    for node in talk.nodes:
        del talk.grid.context(node).node_config["state-folder"]
    talk.tell(1)
    talk.ask("train", 1, zeros(mask), round=1, version=0)
    home = tmp_path / "kept" / ".fedmask" / "clients" if variable == "HOME" else tmp_path / "kept"
    folder = home / talk.told.run_id / "client-00001"
    assert sorted(path for path in (tmp_path / "kept").rglob("*") if path.is_file()) == [
        folder / "head.safetensors",
        folder / "state" / "round-00001.safetensors",
    ]


def test_what_a_client_raises_is_told_in_one_line_by_the_app_itself(federation: Federate, mask: Mask) -> None:
    talk = federation()
    talk.tell(0)
    message = Message(pack(b"", {"round": 1}), talk.nodes[0], "train", group_id="1")
    reply = client.app.app(message, talk.grid.context(talk.nodes[0]))  # no grid in between that would catch it
    assert reply.has_error()
    assert str(reply.error.reason).startswith("RejectedMessage: version is None, expected a whole number (")
    assert "\n" not in str(reply.error.reason)
