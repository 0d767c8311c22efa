"""Clients get disjoint rows of their own task, as many and as skewed as asked, the same in every process."""

import contextlib
import io
import subprocess
import sys
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmask.errors import FedmaskError
from fedmask.tasks.partition import FEWEST_EXAMPLES, ClientData, notes_for, partition, pool, sole_client
from fedmask.tasks.task import Split, Task


def make(name: str, label_counts: list[int], domains: str | None = None) -> Task:
    """A task whose train rows are all different and shuffled; class c has label_counts[c] rows."""
    labels = np.random.default_rng(len(name)).permutation(np.repeat(np.arange(len(label_counts)), label_counts))
    texts = tuple(f"{name} {row}" for row in range(len(labels)))
    train = Split(texts, None, labels, None if domains is None else tuple(domains))
    classes = [f"class {c}" for c in range(len(label_counts))]
    return Task(name, train, train.take([0]), train.take([0]), labels=classes)


def make_regression(name: str, count: int) -> Task:
    rows = [(f"{name} {row}", row / 2) for row in range(count)]
    return Task(name, rows, rows[:1], rows[:1])


def texts(clients: tuple[ClientData, ...]) -> list[tuple[str, ...]]:
    return [client.train.text_a for client in clients]


def label_totals(clients: tuple[ClientData, ...]) -> np.ndarray:
    return np.sum([np.bincount(c.train.labels, minlength=c.task.num_outputs) for c in clients], axis=0)


def assert_sound(clients: tuple[ClientData, ...], tasks: list[Task]) -> None:
    """What holds under every scheme: ids in order, own task's rows only, none twice, mixes that are the labels'."""
    assert [client.client_id for client in clients] == list(range(len(clients)))
    for client in clients:
        task = tasks[client.client_id % len(tasks)]
        assert client.task is task
        position = {text: row for row, text in enumerate(task.train.text_a)}
        rows = [position[text] for text in client.train.text_a]
        np.testing.assert_array_equal(client.train.labels, task.train.labels[rows])
        if task.labels is None:
            assert client.label_mix is None
        else:
            counts = [client.train.labels.tolist().count(c) for c in range(len(task.labels))]
            np.testing.assert_allclose(client.label_mix, np.array(counts) / len(rows))
    dealt = Counter(text for client in clients for text in client.train.text_a)
    assert max(dealt.values()) == 1


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(8, 30), min_size=2, max_size=4),
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from(["iid", "dirichlet", "natural"]),
    st.floats(1e-3, 1e3),
    st.integers(0, 2**40),
)
def test_what_holds_under_every_scheme(
    counts: list[int], per_task: int, examples: int, scheme: str, alpha: float, seed: int
) -> None:
    tasks = [make("one", counts), make("other", counts[::-1])]
    clients = partition(tasks, 2 * per_task, scheme, alpha, examples, seed)
    assert_sound(clients, tasks)
    for task in tasks:
        sizes = [len(client.train) for client in clients if client.task is task]
        assert sum(sizes) == per_task * examples
        assert min(sizes) >= min(FEWEST_EXAMPLES, examples)
        if scheme != "dirichlet":
            assert set(sizes) == {examples}


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=2, max_size=6),
    st.integers(1, 6),
    st.sampled_from(["iid", "dirichlet"]),
    st.floats(1e-2, 10),
    st.integers(0, 2**40),
    st.data(),
)
def test_the_population_keeps_the_label_balance_to_within_a_row_a_class(
    counts: list[int], num_clients: int, scheme: str, alpha: float, seed: int, data: st.DataObject
) -> None:
    num_clients = min(num_clients, sum(counts))
    examples = data.draw(st.integers(1, sum(counts) // num_clients))
    clients = partition([make("one", counts)], num_clients, scheme, alpha, examples, seed)
    expected = np.array(counts) * num_clients * examples / sum(counts)
    assert np.abs(label_totals(clients) - expected).max() < 1


def test_all_rows_are_dealt_out_where_no_number_is_asked_for() -> None:
    tasks = [make("one", [50, 53]), make_regression("two", 41)]
    clients = partition(tasks, 8, "iid")
    assert_sound(clients, tasks)
    assert sorted(len(client.train) for client in clients) == [10, 10, 10, 11, 25, 26, 26, 26]
    clients = partition(tasks[:1], 4, "dirichlet", 0.3)
    assert label_totals(clients).tolist() == [50, 53]


def test_dirichlet_is_skewed_where_alpha_is_small_and_even_where_it_is_large() -> None:
    task = make("one", [600, 600, 600])

    def mean_distance(alpha: float) -> float:
        clients = partition([task], 9, "dirichlet", alpha, 100, seed=1)
        return float(np.mean([np.abs(np.asarray(client.label_mix) - 1 / 3).sum() for client in clients]))

    distances = [mean_distance(alpha) for alpha in (0.05, 0.5, 5.0, 1e4)]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.8
    assert distances[-1] < 0.05


def test_dirichlet_shares_a_class_out_by_dirichlet_proportions() -> None:
    """The first class's shares over m clients: mean 1/m, variance (1/m)(1 - 1/m) / (m alpha + 1)."""
    m, alpha = 4, 0.7
    task = make("one", [400, 400])
    shares = []
    for seed in range(40):
        clients = partition([task], m, "dirichlet", alpha, seed=seed)
        shares.append([np.sum(client.train.labels == 0) / 400 for client in clients])
    variance = (1 / m) * (1 - 1 / m) / (m * alpha + 1)
    np.testing.assert_allclose(np.mean(shares, axis=0), 1 / m, atol=4 * np.sqrt(variance / 40))
    assert np.var(shares) == pytest.approx(variance, rel=0.3)


def test_a_client_above_the_mean_gets_no_further_class() -> None:
    task = make("one", [100, 100, 100])
    for seed in range(10):
        for client in partition([task], 5, "dirichlet", 0.1, seed=seed):
            before_its_last_class = np.sum(client.train.labels < client.train.labels.max())
            assert before_its_last_class <= 300 / 5


def test_a_tiny_alpha_still_deals_out_every_row_without_a_warning() -> None:
    task = make("one", [20, 20, 20, 20])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for seed in range(40):
            assert label_totals(partition([task], 4, "dirichlet", 1e-4, seed=seed)).tolist() == [20, 20, 20, 20]


def test_natural_goes_by_domain_in_turns() -> None:
    task = make("one", [20, 20], domains="bca" * 13 + "c")
    clients = partition([task], 5, "natural", examples_per_client=6)
    assert_sound(clients, [task])
    assert [set(client.train.domains or ()) for client in clients] == [{"a"}, {"b"}, {"c"}, {"a"}, {"b"}]
    assert {len(client.train) for client in clients} == {6}
    two = partition([task], 2, "natural")
    assert [set(client.train.domains or ()) for client in two] == [{"a"}, {"b"}]
    assert [len(client.train) for client in two] == [13, 13]


@pytest.mark.parametrize("domains", [None, "a" * 40])
def test_natural_without_domains_is_iid(domains: str | None) -> None:
    task = make("one", [20, 20], domains)
    assert texts(partition([task], 3, "natural", examples_per_client=5)) == texts(
        partition([task], 3, "iid", examples_per_client=5)
    )


def test_iid_and_dirichlet_deal_out_the_same_draw() -> None:
    task = make("one", [80, 40])
    iid, dirichlet = (partition([task], 4, scheme, examples_per_client=10, seed=3) for scheme in ("iid", "dirichlet"))
    assert {text for part in texts(iid) for text in part} == {text for part in texts(dirichlet) for text in part}


def test_a_task_is_dealt_out_alike_whatever_stands_beside_it() -> None:
    one, other = make("one", [20, 20]), make("other", [20, 20])
    assert texts(partition([one], 2, "iid"))[1] == texts(partition([other, one], 4, "iid"))[3]


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "natural"])
def test_another_seed_deals_out_other_rows(scheme: str) -> None:
    task = make("one", [60, 60], domains="ab" * 60)
    first, again, other = (texts(partition([task], 3, scheme, 0.5, 10, seed)) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_rows_do_not_come_in_the_files_order() -> None:
    texts_of_first = texts(partition([make("one", [60, 60])], 2, "iid"))[0]
    rows = [int(text.split()[1]) for text in texts_of_first]
    assert rows != sorted(rows)


def test_no_random_state_is_touched_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    before = np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    for scheme in ("iid", "dirichlet", "natural"):
        partition([make("one", [30, 30], domains="ab" * 30)], 4, scheme, 0.05, 5)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index,union-attr]
    assert capfd.readouterr() == ("", "")


def test_another_process_deals_out_the_same_rows() -> None:
    code = """
from fedmask.tasks.partition import partition
from fedmask.tasks.task import Task
rows = [(f"t{i}", "abc"[i % 3]) for i in range(90)]
task = Task("one", rows, rows, rows)
for scheme in ("iid", "dirichlet"):
    print([client.train.text_a for client in partition([task], 4, scheme, 0.3, 9, seed=5)])
"""

    environment = {"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    here = io.StringIO()
    with contextlib.redirect_stdout(here):
        exec(code, {})
    assert done.stdout == here.getvalue()
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("num_clients", "changes", "message"),
    [
        (2, {"scheme": "random"}, "unknown data.partition='random'; choose one of iid, dirichlet, natural"),
        (1, {}, "clients=1 for 2 tasks: each task needs at least one client"),
        (2, {"examples_per_client": 0}, "data.examples_per_client=0: it must be at least 1, or null for all"),
        (50, {}, "task small has 20 training rows for 25 clients: ask for fewer clients"),
        (2, {"scheme": "dirichlet", "alpha": 0.0}, "data.alpha=0.0: it must be a number above 0"),
        (2, {"scheme": "dirichlet", "alpha": float("inf")}, "data.alpha=inf: it must be a number above 0"),
    ],
)
def test_what_cannot_be_dealt_out(num_clients: int, changes: dict[str, Any], message: str) -> None:
    tasks = [make("large", [30, 30]), make("small", [10, 10])]
    with pytest.raises(FedmaskError) as error:
        partition(tasks, num_clients, **changes)
    assert str(error.value) == message


def test_the_largest_possible_number_is_possible() -> None:
    tasks = [make("large", [30, 30]), make("small", [10, 10])]
    assert {len(client.train) for client in partition(tasks, 6, "iid", examples_per_client=6)} == {6}


def test_a_domain_that_is_too_small_is_named() -> None:
    task = make("one", [20, 20], domains="a" * 39 + "b")
    with pytest.raises(FedmaskError) as error:
        partition([task], 4, "natural", examples_per_client=8)
    assert str(error.value) == "task one, domain b, has 1 training rows for 2 clients: ask for fewer clients"


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(4, 12), min_size=2, max_size=3),
    st.integers(1, 4),
    st.integers(1, 12),
    st.sampled_from(["iid", "dirichlet", "natural"]),
)
def test_a_small_set_is_taken_whole_and_that_is_said(
    counts: list[int], num_clients: int, examples: int, scheme: str
) -> None:
    task = make("one", counts)
    clients = partition([task], num_clients, scheme, 1.0, examples)
    assert_sound(clients, [task])
    dealt = sum(client.num_examples for client in clients)
    assert dealt == min(num_clients * examples, sum(counts))
    said = [note for note in notes_for(clients, examples) if "examples_per_client" in note]
    assert bool(said) == (num_clients * examples > sum(counts))
    (alone,) = partition([task], 1, "iid", examples_per_client=examples)
    assert alone.rows.tolist() == sole_client(0, task, examples, 0).rows.tolist()  # deployed clients likewise


def test_what_no_client_got_is_counted_and_named() -> None:
    task = make("one", [20, 20, 1], domains="a" * 20 + "b" * 11 + "c" * 10)
    assert notes_for(partition([task], 3, "natural"), None) == []
    assert notes_for(partition([task], 2, "natural", examples_per_client=5), 5) == [
        "task one: no client got a row of 1 of its 3 classes: class 2",
        "task one: no client got a row of 1 of its 3 domains: c",
    ]
    assert notes_for(partition([task], 2, "iid", examples_per_client=25), 25) == [
        "task one: fewer training rows than data.examples_per_client=25 for 2 clients: 20 to 21 each, all there are"
    ]


def test_pool_gives_one_client_a_task_with_all_its_clients_rows() -> None:
    rows = [(f"a {row}", f"b {row}", "yes" if row % 2 else "no") for row in range(20)]
    tasks = [make("one", [20, 20]), Task("pairs", rows, rows, rows), make_regression("scores", 20)]
    clients = partition(tasks, 7, "iid", examples_per_client=5)
    pooled = pool(clients)
    assert_sound(pooled, tasks)
    for index, client in enumerate(pooled):
        assert client.train.text_a == sum(texts(clients)[index::3], ())
    assert pooled[1].train.text_b == tuple(text.replace("a", "b") for text in pooled[1].train.text_a)


def test_a_regression_has_no_labels_to_skew() -> None:
    tasks = [make_regression("scores", 20)]
    with pytest.raises(
        FedmaskError, match=r"dirichlet skews class labels, and task scores is a regression; take iid or"
    ):
        partition(tasks, 2, "dirichlet")
    assert_sound(partition(tasks, 2, "natural", examples_per_client=3), tasks)


def test_a_sole_client_has_the_rows_of_its_tasks_only_client() -> None:
    tasks = [make("one", [30, 20]), make("other", [12, 12, 12])]
    for client in partition(tasks, 2, "iid", examples_per_client=10, seed=3):
        alone = sole_client(client.client_id, client.task, 10, seed=3)
        assert alone.rows.tolist() == client.rows.tolist()
        assert (alone.client_id, alone.digest) == (client.client_id, client.digest)


@pytest.mark.parametrize("examples", [None, 50, 51])
def test_a_sole_client_has_no_more_than_there_is(examples: int | None) -> None:
    task = make("one", [30, 20])
    assert sorted(sole_client(7, task, examples, seed=0).rows) == list(range(50))
