"""server.scores: counts become scores by task: mean over clients, the worst beside it, mean over tasks."""

import math

import pytest
from flwr.app import MetricRecord

from fedmask.errors import RejectedMessage
from server.members import Member
from server.scores import ClientScore, Scores


def member(client_id: int, task: str, metric: str = "accuracy") -> Member:
    return Member(client_id, 7, task, metric, "0" * 64, 130, 2, "0" * 16, num_examples=20, data_digest="0" * 16)


def scored(client_id: int, task: str, correct: int, own: int = 0, majority: int = 0, total: int = 10) -> ClientScore:
    counts = {"counts": [correct, total], "own-counts": [own, total], "majority-counts": [majority, total]}
    return ClientScore.of(member(client_id, task), MetricRecord(counts))


SCORES = Scores((scored(0, "b", 5, 7, 2), scored(1, "a", 10, 8, 3), scored(2, "b", 8, 4, 6), scored(3, "b", 5, 1, 1)))


def test_a_client_is_scored_by_its_tasks_metric() -> None:
    client = scored(3, "sst2", 6, 7, 5)
    assert (client.client_id, client.task) == (3, "sst2")
    assert (client.score, client.own_score, client.majority_score) == (0.6, 0.7, 0.5)
    tp, fp, fn = 3.0, 1.0, 2.0
    counts = MetricRecord({name: [tp, fp, fn] for name in ("counts", "own-counts", "majority-counts")})
    assert ClientScore.of(member(0, "mrpc", "f1"), counts).score == 2 * tp / (2 * tp + fp + fn)


def test_a_tasks_score_is_the_mean_over_its_clients() -> None:
    assert SCORES.score() == {"a": 1.0, "b": pytest.approx((0.5 + 0.8 + 0.5) / 3)}
    assert SCORES.own_score() == {"a": 0.8, "b": pytest.approx((0.7 + 0.4 + 0.1) / 3)}
    assert SCORES.majority_score() == {"a": 0.3, "b": pytest.approx((0.2 + 0.6 + 0.1) / 3)}


def test_the_worst_client_stands_beside_it() -> None:
    assert SCORES.worst_client_score() == {"a": 1.0, "b": 0.5}


def test_every_task_weighs_the_same_in_the_mean() -> None:
    assert SCORES.mean_score() == pytest.approx((1.0 + 0.6) / 2)


def test_tasks_come_in_sorted_order() -> None:
    assert list(SCORES.score()) == ["a", "b"]


def test_each_client_has_a_line_in_the_order_of_the_clients() -> None:
    lines = list(SCORES.lines(3, "validation"))
    assert [line["client"] for line in lines] == [0, 1, 2, 3]
    assert lines[0] == {
        "round": 3,
        "split": "validation",
        "client": 0,
        "task": "b",
        "score": 0.5,
        "own_score": 0.7,
        "majority_score": 0.2,
        "num_examples": 20,
    }


def test_no_client_has_no_mean() -> None:
    assert Scores(()).mean_score() is None
    assert Scores(()).score() == {}


@pytest.mark.parametrize(
    ("counts", "cause"),
    [
        (None, "undecodable"),
        ([], "undecodable"),
        ([1.0], "undecodable"),
        (3.0, "undecodable"),
        ([math.nan, 10.0], "not-finite"),
        ([math.inf, 10.0], "not-finite"),
        ([11.0, 10.0], "not-finite"),
        ([-11.0, 10.0], "not-finite"),
        ([1.0, math.inf], "not-finite"),
        ([-1.0, 10.0], "negative-counts"),
        ([-1.0, -10.0], "negative-counts"),
        ([1.0, 2.0, *[0.0] * 10**5], "undecodable"),
    ],
)
@pytest.mark.parametrize("name", ["counts", "own-counts", "majority-counts"])
def test_counts_that_give_no_score_are_rejected(counts: object, cause: str, name: str) -> None:
    record = {"counts": [1.0, 2.0], "own-counts": [1.0, 2.0], "majority-counts": [1.0, 2.0]}
    record.pop(name)
    if counts is not None:
        record[name] = counts  # type: ignore[assignment]
    with pytest.raises(RejectedMessage) as caught:
        ClientScore.of(member(0, "sst2"), MetricRecord(record))
    assert caught.value.cause == cause
    assert str(caught.value).startswith(f"{name} ")


@pytest.mark.parametrize("counts", [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0], 1.0])
def test_counts_of_another_length_are_rejected(counts: object) -> None:
    record = MetricRecord(dict.fromkeys(("counts", "own-counts", "majority-counts"), counts))  # type: ignore[arg-type]
    with pytest.raises(RejectedMessage, match="are no counts of f1"):
        ClientScore.of(member(0, "mrpc", "f1"), record)
