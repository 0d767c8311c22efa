"""server.losses: no update is lost for its loss, and no client that lies swamps the round's mean."""

import json
import logging
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as st

from faults.malformed import rewrite
from fedmask.aggregation import WeightedMean
from fedmask.wire.messages import facts_of
from server.losses import FAR_ABOVE, MAX_LOSS, RoundLosses

Run = Any
SOUND = st.floats(0.0, FAR_ABOVE, width=32)
ANY = st.floats(0.0, MAX_LOSS, width=32)


def mean_of(losses: list[float], tasks: list[str] | None = None, weights: list[int] | None = None) -> float:
    found = RoundLosses()
    for client_id, loss in enumerate(losses):
        found.add(client_id, tasks[client_id] if tasks else "a", loss, weights[client_id] if weights else 10)
    return found.mean(1)


@given(st.lists(st.tuples(SOUND, st.integers(1, 10**9), st.sampled_from("ab")), min_size=1, max_size=30))
def test_it_is_the_mean_by_examples_bit_for_bit(replies: list[tuple[float, int, str]]) -> None:
    plain = WeightedMean(1)
    for loss, weight, _ in replies:
        plain.add(np.array([loss], np.float32), weight)
    losses, weights, tasks = (list(column) for column in zip(*replies, strict=True))
    assert mean_of(losses, tasks, weights) == plain.result()[0]


@given(st.lists(ANY, min_size=2, max_size=20), ANY, st.integers(0, 20))
def test_one_liar_among_clients_of_its_task_does_not_swamp_the_mean(sound: list[float], lie: float, place: int) -> None:
    losses = [*sound[:place], lie, *sound[place:]]
    assert mean_of(losses) <= FAR_ABOVE * max(statistics.median(losses), 1.0) * (1 + 1e-9)


def test_large_losses_are_sound_where_a_task_has_them_and_another_task_has_not() -> None:
    assert mean_of([8e9, 7e9, 9e9, 0.5, 0.6, 0.7], list("pppttt")) == pytest.approx((24e9 + 1.8) / 6)


def test_a_task_of_few_clients_has_no_witness() -> None:
    assert mean_of([0.5, 1e30]) == pytest.approx(5e29)
    assert mean_of([0.5, 1e30, 0.5]) == 0.5


def test_a_client_that_is_left_out_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    losses = RoundLosses()
    with caplog.at_level(logging.WARNING):
        for server_round in (1, 2):
            losses.clear()
            for client_id in range(4):
                losses.add(client_id, "a", 1e9 if client_id == 2 else 0.25, 10)
            assert losses.mean(server_round) == 0.25
    assert caplog.messages == [
        "round 1: client 2 has a train loss of 1e+09, far above the others of task a: it is left out of the rounds' "
        "mean loss; its updates count"
    ]


# ----------------------------------------------------------------------------------------------------------------------
# End to end
# ----------------------------------------------------------------------------------------------------------------------

PRICES = """
from fedmask import Task


def rows(first, size, low, high):
    for number in range(first, first + size):
        yield f"a flat of {number} rooms", low + (high - low) * (number % 7) / 6


def prices(low=40_000.0, high=134_500.0):
    return Task("prices", rows(0, 40, low, high), rows(40, 10, low, high), rows(50, 10, low, high))


def stars():
    return prices(1e24, 1e25)
"""


@pytest.fixture
def prices(tmp_path: Path) -> list[str]:
    (tmp_path / "flats.py").write_text(PRICES)
    return [f"data.root={tmp_path}", "data.tasks=['flats:prices']"]


@pytest.mark.parametrize("task", ["prices", "stars"])
def test_a_regression_on_large_numbers_trains(task: str, federate: Callable[..., Run], prices: list[str]) -> None:
    """Prices have squares of 1e10, the distances of stars squares beyond float32: both are counted in a unit."""
    run = federate(prices[0], f"data.tasks=['flats:{task}']")
    assert [line["failures"] for line in run.rounds] == [0, 0]
    assert all(0 < line["train_loss"] < 100 for line in run.rounds)
    assert np.count_nonzero(run.values) > 0.9 * run.values.size
    assert set(run.summary["score"]) == {"prices"}


def test_a_lie_moves_neither_the_adapter_nor_the_figure(
    federate: Callable[..., Run], filtering_grid: Callable[..., Any]
) -> None:
    def lie(client: int, request: Message, reply: Message) -> Message:
        if client == 1 and request.metadata.message_type == "train":
            rewrite(reply, facts=facts_of(reply.content) | {"train-loss": 3e38})
        return reply

    one_task = 'data.tasks=["small:first"]'
    honest, lied = federate(one_task), federate(one_task, grid=filtering_grid(lie))
    assert lied.adapter == honest.adapter
    assert [line["failures"] for line in lied.rounds] == [0, 0]
    assert all(line["train_loss"] < 1 for line in lied.rounds)
    assert json.loads((lied.folder / "summary.json").read_text())["score"] == honest.summary["score"]
