"""server.members: what a client says of itself is checked, and the clients of one task mean the same by it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message
from hypothesis import given
from hypothesis import strategies as st

from client.app import app as client_app
from faults.malformed import rewrite
from fedmask.errors import FedmaskError
from fedmask.training.head import HeadLayout
from fedmask.wire.messages import facts_of
from server.app import SilentObserver, run_federation
from server.compose import compose
from server.local_grid import LocalGrid
from server.members import Member, apart, check_tasks

Run = Any
REMEDY = (
    "give all of them the same classes in one order: data.classes=[...] of the run, or data: {classes: [...]} in "
    "client.yaml"
)


def member(
    client_id: int, labels: tuple[str, ...] | None = ("no", "yes"), metric: str = "accuracy", **other: Any
) -> Member:
    layout = HeadLayout("topic", labels, 64)
    facts = (layout.digest, layout.size, len(labels or ()), layout.classes_digest)
    found = Member(client_id, 100 + client_id, "topic", metric, *facts, num_examples=10, data_digest="0" * 16)
    return replace(found, **other)


def refusal(*members: Member) -> str:
    with pytest.raises(FedmaskError) as caught:
        check_tasks(members)
    start, _, rest = str(caught.value).partition(": ")
    assert start == "the clients of task topic do not mean the same by it"
    return rest


def test_clients_that_mean_the_same_are_taken() -> None:
    check_tasks([])
    check_tasks([member(2), member(0), member(1, data_digest="1" * 16, num_examples=3)])
    check_tasks([member(0), member(1, ("a", "b", "c"), task="other", head_layout="0" * 64)])


def test_a_class_that_one_client_lacks_is_told_with_the_remedy() -> None:
    three = ("money", "news", "sport")
    assert refusal(member(1, three), member(0, three[1:])) == (f"client 0 with 2 classes, client 1 with 3; {REMEDY}")


def test_the_larger_group_comes_first_and_is_counted() -> None:
    others = [member(number, ("a", "b")) for number in (3, 1, 2)]
    assert refusal(member(0, ("a",)), *others).startswith("client 1 and 2 more with 2 classes, client 0 with 1; ")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (("a", "b"), ("a", "c"), f"client 0 and client 1 with 2 classes each, but not the same; {REMEDY}"),
        (("a", "b"), ("b", "a"), f"client 0 and client 1 with the same 2 classes in another order; {REMEDY}"),
        (
            ("a", "b"),
            None,
            "it is of 2 classes at client 0 and a regression at client 1; call one of them another task",
        ),
    ],
)
def test_classes_that_differ_are_told(first: tuple[str, ...], second: tuple[str, ...] | None, expected: str) -> None:
    assert refusal(member(0, first), member(1, second)) == expected


def test_another_metric_or_another_width_of_the_model_is_told() -> None:
    assert refusal(member(0), member(1, metric="f1")) == (
        "it is scored by accuracy at client 0 and by f1 at client 1; give it one metric, or call one of them another "
        "task"
    )
    wider = HeadLayout("topic", ("no", "yes"), 128)
    assert refusal(member(0), member(1, head_layout=wider.digest, head_size=wider.size)) == (
        "their heads have 130 numbers at client 0 and 258 at client 1, for the same classes; use one base model"
    )


def test_all_tasks_that_differ_are_named() -> None:
    one, other = member(0), member(1, ("a",))
    with pytest.raises(FedmaskError, match=r"^the clients of task a do not mean .* \(and so do those of b\): client 0"):
        check_tasks([replace(each, task=task) for task in "ab" for each in (one, other)])


@given(st.lists(st.permutations(["a", "b", "c"]).map(tuple), min_size=2, max_size=6), st.randoms())
def test_one_task_has_one_order_of_classes_whoever_answers_first(orders: list[Any], chance: Any) -> None:
    members = [member(number, order) for number, order in enumerate(orders)]
    chance.shuffle(members)
    if len(set(orders)) == 1:
        check_tasks(members)
    else:
        assert "in another order" in refusal(*members)


def test_who_means_another_thing_is_apart_from_most_or_from_who_is_witnessed() -> None:
    liar, *honest = member(0, ("a",)), member(1), member(2)
    assert list(apart([liar, *honest])) == [0]
    assert list(apart([liar, honest[0]])) == [1]  # of two that differ nobody can tell
    assert list(apart([liar, honest[0]], witnessed={1})) == [0]
    assert list(apart([liar, replace(liar, client_id=3), honest[0]], witnessed={1})) == [0, 3]
    shared = replace(honest[0], task="other")
    assert list(apart([liar, shared, *honest], witnessed={2})) == [1, 0]
    assert apart(honest) == {}


# ----------------------------------------------------------------------------------------------------------------------
# End to end
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["local", "shared", "frozen"])
def test_two_deployed_clients_with_other_classes_are_found_before_the_first_round(head: str, tmp_path: Path) -> None:
    grid = LocalGrid(client_app, 2, 0)
    for number, context in enumerate(grid._contexts.values()):
        labels = ("money", "news", "sport")[: 3 - number]
        context.node_config["client-file"] = str(deployed(tmp_path / f"{number}", number, labels))
    shared = ["model=tiny", "mask.density=0.01", "data=own", "clients=2", "data.max_length=16", "threads=1", "rounds=1"]
    config = compose([*shared, f"client.head={head}", f"output={tmp_path / 'run'}"])
    with pytest.raises(FedmaskError) as caught:
        run_federation(grid, config, SilentObserver())
    assert str(caught.value) == (
        f"the clients of task topic do not mean the same by it: client 0 with 3 classes, client 1 with 2; {REMEDY}"
    )
    assert not (tmp_path / "run").exists()


def deployed(folder: Path, client_id: int, labels: tuple[str, ...]) -> Path:
    """A client's own file, and its data beside it."""
    (folder / "topic").mkdir(parents=True)
    rows = "".join(f"a {word} text\t{label}\n" for label in labels for word in ("short", "longer"))
    for split in ("train", "validation", "test"):
        (folder / "topic" / f"{split}.tsv").write_text(f"text_a\tlabel\n{rows}")
    file = folder / "client.yaml"
    file.write_text(
        f"client_id: {client_id}\nsuperlink: server:8000\nauthority: a.crt\nkey: a.key\nfolder: state\n"
        "data: {source: tsv, root: ., task: topic}\ndevice: cpu\n"
        "limits: {rounds: 10, steps: 1000, batch_size: 64}\n"
    )
    return file


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"num-classes": -1}, "client 1 has num-classes -1, allowed is 0 to "),
        ({"num-classes": 2.0}, "num-classes is 2.0, expected a whole number"),
        ({"num-examples": 0}, "client 1 has num-examples 0, allowed is 1 to 1,000,000,000"),
        ({"num-examples": 10**10}, "client 1 has num-examples 10000000000, allowed is "),
        ({"classes-digest": "x" * 90}, f"client 1 has classes-digest '{'x' * 80}', expected 16 hex digits"),
        ({"data-digest": ""}, "client 1 has data-digest '', expected 16 hex digits"),
        ({"classes-digest": None}, "classes-digest is None, expected a text"),
    ],
)
def test_facts_that_no_client_has_stop_the_run_in_one_line(
    facts: dict[str, Any], message: str, federate: Callable[..., Run]
) -> None:
    def app(request: Message, context: Context) -> Message:
        reply = client_app(request, context)
        if request.metadata.message_type == "query.mask" and context.node_config["partition-id"] == 1:
            told = facts_of(reply.content) | facts
            rewrite(reply, facts={name: value for name, value in told.items() if value is not None})
        return reply

    with pytest.raises(FedmaskError) as caught:
        federate(app=app)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
