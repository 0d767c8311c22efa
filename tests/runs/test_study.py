"""fedmask.runs.study: which cells come next follows from the finished ones alone."""

import json
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmask.errors import FedmaskError
from fedmask.runs.study import (
    Cell,
    Finished,
    Study,
    chosen_rates,
    final_results,
    finished_cell,
    next_cells,
    planned_cells,
    read_results,
    read_study,
    results_text,
    tuning_results,
)

STUDY = """
question: which one?
budget_hours: 1
overrides: [threads=1]
settings:
  a: {title: first, overrides: [rounds=2]}
  b: {title: second, overrides: [rounds=3]}
rows:
  tuned:
    title: tuned
    overrides: [mask=pafi]
    finalist: true
    tune: {setting: b, client.learning_rate: [0.01, 0.03], server.learning_rate: [1, 2]}
  follower: {title: follower, overrides: [mask=random], settings: [a], rates_from: tuned}
  plain: {title: plain, overrides: [baseline=frozen]}
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "small.yaml").write_text(STUDY)
    return read_study(tmp_path / "small.yaml")


def finish(cell: Cell, score: float = 0.5) -> Finished:
    summary: dict[str, Any] = {"mean_score": score, "seconds": 1.0}
    return Finished(cell, "abc1234", summary, ((1, score / 2, 10), (2, score, 20)))


def ready(study: Study, finished: Mapping[str, Finished], seeds: int = 2) -> list[tuple[str, str, int, bool]]:
    return [(cell.row, cell.setting, cell.seed, cell.is_final) for cell in next_cells(study, seeds, finished)]


def run_all(study: Study, score: Any, seeds: int = 2) -> dict[str, Finished]:
    finished: dict[str, Finished] = {}
    while cells := next_cells(study, seeds, finished):
        for cell in cells:
            finished[cell.name] = finish(cell, score(cell))
    return finished


def test_first_come_the_candidates_and_what_needs_no_tuning(study: Study) -> None:
    assert ready(study, {}) == [
        ("tuned", "b", 0, False),
        ("tuned", "b", 0, False),
        ("plain", "a", 0, True),
        ("plain", "b", 0, True),
    ]
    first, second = next_cells(study, 2, {})[:2]
    assert first.overrides == (
        "threads=1",
        "rounds=3",
        "mask=pafi",
        "client.learning_rate=0.01",
        "server.learning_rate=1",
        "seed=0",
        "score_test=false",
    )
    assert "client.learning_rate=0.03" in second.overrides


def test_a_key_is_tuned_with_the_earlier_ones_at_their_best(study: Study) -> None:
    tuning = [cell for cell in next_cells(study, 2, {}) if not cell.is_final]
    finished = {cell.name: finish(cell, score) for cell, score in zip(tuning, (0.5, 0.7), strict=True)}
    (last,) = [cell for cell in next_cells(study, 2, finished) if not cell.is_final]
    assert {"client.learning_rate=0.03", "server.learning_rate=2"} <= set(last.overrides)
    assert chosen_rates(study, study.rows["tuned"], finished) is None
    finished[last.name] = finish(last, 0.6)
    for row in ("tuned", "follower"):
        rates = chosen_rates(study, study.rows[row], finished)
        assert rates == {"client.learning_rate": 0.03, "server.learning_rate": 1.0}
    assert [
        (rates["client.learning_rate"], rates["server.learning_rate"])
        for rates, _ in tuning_results(study, study.rows["tuned"], finished)
    ] == [(0.01, 1.0), (0.03, 1.0), (0.03, 2.0)]


def test_of_equal_candidates_the_first_is_taken(study: Study) -> None:
    finished = run_all(study, lambda cell: 0.5)
    assert chosen_rates(study, study.rows["tuned"], finished) == {
        "client.learning_rate": 0.01,
        "server.learning_rate": 1.0,
    }


def test_only_finalists_run_under_several_seeds_and_only_final_cells_are_scored_on_test(study: Study) -> None:
    finished = run_all(study, lambda cell: 0.5, seeds=3)
    final = [entry.cell for entry in finished.values() if entry.cell.is_final]
    assert sorted((cell.row, cell.setting, cell.seed) for cell in final) == sorted(
        [("tuned", setting, seed) for setting in "ab" for seed in range(3)]
        + [("follower", "a", 0), ("plain", "a", 0), ("plain", "b", 0)]
    )
    for entry in finished.values():
        assert ("score_test=false" in entry.cell.overrides) != entry.cell.is_final
    assert len(planned_cells(study, 3)) == len(finished)


def test_a_study_ends_in_the_same_cells_whatever_the_order_and_the_interruptions(study: Study) -> None:
    whole = run_all(study, lambda cell: hash(cell.overrides) % 97 / 97)
    for seed in range(20):
        generator, finished = random.Random(seed), dict[str, Finished]()
        while cells := next_cells(study, 2, finished):
            cell = generator.choice(cells)  # one finished, then everything is read again from what is finished
            finished[cell.name] = finish(cell, hash(cell.overrides) % 97 / 97)
        assert finished.keys() == whole.keys()


def test_changed_overrides_make_another_cell() -> None:
    cell = Cell("r", "a", 0, True, ("rounds=2",))
    assert cell.name == Cell("r", "a", 0, True, ("rounds=2",)).name
    assert cell.name != Cell("r", "a", 0, True, ("rounds=3",)).name


def test_results_are_read_back_and_do_not_depend_on_the_order(study: Study, tmp_path: Path) -> None:
    finished = run_all(study, lambda cell: 0.25)
    text = results_text(finished)
    backwards = dict(reversed(finished.items()))
    assert results_text(backwards) == text
    (tmp_path / "small.jsonl").write_text(text)
    again = read_results(tmp_path / "small.jsonl")
    assert results_text(again) == text
    assert {name: entry.as_dict() for name, entry in again.items()} == {
        name: entry.as_dict() for name, entry in finished.items()
    }
    assert final_results(study, 2, again).keys() == {
        ("tuned", "a"), ("tuned", "b"), ("follower", "a"), ("plain", "a"), ("plain", "b")
    }  # fmt: skip


@pytest.mark.parametrize("damage", ["cut", "never scored", "no seconds", "scores are words"])
def test_a_damaged_line_of_results_is_named(tmp_path: Path, damage: str) -> None:
    entry = finish(Cell("r", "a", 0, True, ()))
    good = results_text({"x": entry})
    raw = entry.as_dict()
    bad = {
        "cut": {"row": "r"},
        "never scored": raw | {"validation": []},
        "no seconds": raw | {"summary": {}},
        "scores are words": raw | {"validation": [[1, "high", 3]]},
    }[damage]
    (tmp_path / "small.jsonl").write_text(good + json.dumps(bad) + "\n")
    with pytest.raises(FedmaskError, match=r"small\.jsonl, line 2: no finished cell of a study"):
        read_results(tmp_path / "small.jsonl")


def test_results_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "small.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FedmaskError, match=r"small\.jsonl: no text"):
        read_results(tmp_path / "small.jsonl")


def test_a_finished_cell_has_its_scored_rounds_with_all_bytes_until_then() -> None:
    facts = {"row": "r", "setting": "a", "seed": 0, "is_final": True, "overrides": [], "commit": "abc"}
    rounds = [{"round": 1, "mean_score": None}, {"round": 2, "mean_score": 0.5}]
    messages = [{"round": r, "wire_bytes": size} for r, size in ((0, 1), (0, 2), (1, 10), (2, 100), (2, 200))]
    entry = finished_cell(facts, {"mean_score": 0.4, "seconds": 2.0, "model": {}}, rounds, messages)
    assert entry.validation == ((2, 0.5, 313),)
    assert entry.validation_score == 0.5
    assert entry.summary == {"mean_score": 0.4, "seconds": 2.0}


def test_all_faults_of_a_study_are_told(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(
        "question: q\nbudget: 1\noverrides: []\nsettings: {a: {overrides: []}}\n"
        "rows:\n  a/b: {title: y, overrides: []}\n  1: {title: one, overrides: []}\n"
        "  x: {title: x, overrides: [], settings: [z], rates_from: y}\n"
        "  w: {title: w, overrides: [], tune: {client.learning_rate: high}}\n"
    )
    with pytest.raises(FedmaskError) as caught:
        read_study(tmp_path / "bad.yaml")
    assert str(caught.value).splitlines() == [
        "study bad: bad.budget: no such key; there are question, budget_hours, overrides, settings, rows",
        "study bad: bad.budget_hours: missing",
        "study bad: rows.a/b: a name is of letters, digits and _, for folders are called by it",
        "study bad: settings.a.title: missing",
        "study bad: rows.w.tune.client.learning_rate: must be a list of numbers",
        "study bad: rows.w.tune.setting: missing; name the setting to tune on",
        "study bad: rows.x: no setting z; there are a",
        "study bad: rows.x.rates_from: y is no row with rates of its own to tune",
        "study bad: rows.w: no setting None; there are a",
    ]


def test_a_file_that_is_no_study_is_told(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("[1, 2")
    with pytest.raises(FedmaskError, match=r"^bad\.yaml: not YAML"):
        read_study(tmp_path / "bad.yaml")
    (tmp_path / "bad.yaml").write_text("[1, 2]")
    with pytest.raises(FedmaskError, match=r"^study bad: bad: must be a mapping"):
        read_study(tmp_path / "bad.yaml")


TEXT, NUMBERS = "must be a text, in quotes where YAML takes it for something else", "must be a list of numbers"
TUNED = "rows.tuned.tune.client.learning_rate"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("budget_hours: 1", "budget_hours: true", "small.budget_hours: not true; must be a number"),
        ("budget_hours: 1", "budget_hours: .inf", "small.budget_hours: not inf; must be a number"),
        ("budget_hours: 1", "budget_hours: 1:30", "line 3: budget_hours: 1:30: YAML reads it in base 60, as 90; write"),
        ("budget_hours: 1", "budget_hours: 1\nbudget_hours: 2", "line 4: budget_hours stands twice, first in line 3"),
        ("question: which one?", "question: no", f"small.question: not false; {TEXT}"),
        ("[threads=1]", "[threads=1, rounds: 2]", f"overrides: not {{'rounds': 2}}; {TEXT}"),
        ("[rounds=2]", "[2]", f"settings.a.overrides: not 2; {TEXT}"),
        ("title: plain", "title: 2024", f"rows.plain.title: not 2024; {TEXT}"),
        ("finalist: true", "finalist: 1", "rows.tuned.finalist: not 1; must be true or false"),
        ("settings: [a]", "settings: [on]", f"rows.follower.settings: not true; {TEXT}"),
        ("[0.01, 0.03]", "[1e-5, 3e-3]", f"{TUNED}: {NUMBERS}; write 1.0e-05 for 1e-5, 0.003 for 3e-3"),
        ("[0.01, 0.03]", "[true, .nan]", f"{TUNED}: {NUMBERS}"),
        ("  plain:", "  no:", 'line 15: the key no is read as another value than a text; write "no"'),
    ],
)
def test_a_study_is_read_strictly(old: str, new: str, fault: str, tmp_path: Path) -> None:
    assert STUDY.count(old) == 1
    (tmp_path / "small.yaml").write_text(STUDY.replace(old, new))
    with pytest.raises(FedmaskError) as caught:
        read_study(tmp_path / "small.yaml")
    (line,) = str(caught.value).splitlines()
    assert line.removeprefix("study small: ").removeprefix("small.yaml: ").startswith(fault)


@settings(deadline=None, max_examples=200)
@given(junk=st.binary(max_size=20), place=st.integers(0, 10**4), cut=st.integers(0, 20))
def test_any_bytes_are_a_study_or_lines(junk: bytes, place: int, cut: int) -> None:
    whole = STUDY.encode()
    place %= len(whole)
    lines = ["none"]
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(whole[:place] + junk + whole[place + cut :])
        file.flush()
        try:
            read_study(Path(file.name))
        except FedmaskError as error:
            lines = str(error).split("\n")
    assert all(line.isprintable() for line in lines)
