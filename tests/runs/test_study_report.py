"""fedmask.runs.study_report: every number comes from a finished cell, and the README's from the results file."""

import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from fedmask.errors import FedmaskError
from fedmask.runs.study import Cell, Finished, Study, chosen_rates, final_results, next_cells, read_results, read_study
from fedmask.runs.study_report import comparison_table, score_table, write_study

ROOT = Path(__file__).resolve().parent.parent.parent
STUDY = """
question: which one?
budget_hours: 1
overrides: [threads=1]
settings:
  a: {title: first, overrides: [rounds=2]}
  b: {title: second, overrides: [rounds=3]}
rows:
  tuned: {title: a tuned one, overrides: [], finalist: true, tune: {setting: b, client.learning_rate: [0.01, 0.03]}}
  alone: {title: each alone, overrides: [baseline=alone], settings: [a]}
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "small.yaml").write_text(STUDY)
    return read_study(tmp_path / "small.yaml")


@pytest.fixture
def finished(study: Study) -> dict[str, Finished]:
    done: dict[str, Finished] = {}
    while cells := next_cells(study, 3, done):
        for cell in cells:
            score = 0.5 + 0.1 * cell.seed + (0.05 if "client.learning_rate=0.03" in cell.overrides else 0)
            communication = {
                "uplink_bytes_per_client_round": 1234.4,
                "downlink_bytes_per_client_round": 5678.0,
                "mask_bytes_per_client": 2000.0,
            }
            summary = {
                "mean_score": score if cell.is_final else None,
                "score": {"t": score} if cell.is_final else {},
                "worst_client_score": {"t": score - 0.1} if cell.is_final else {},
                "own_score": {"t": score + 0.1} if cell.is_final else {},
                "own_majority_score": {"t": 0.6} if cell.is_final else {},
                "communication": communication,
                "seconds": 1800.0,
            }
            done[cell.name] = Finished(cell, "abc1234", summary, ((1, score - 0.2, 10), (2, score, 20)))
    return done


def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text("before\n<!-- study small -->\nold\n<!-- end of study small -->\nafter\n")
    return path


def test_scores_are_means_with_the_spread_of_the_seeds(study: Study, finished: dict[str, Finished]) -> None:
    lines = list(score_table(study, final_results(study, 3, finished)))
    spread = statistics.stdev([0.55, 0.65, 0.75])
    assert lines[0] == "|  | (a) first | (b) second | bytes a client and round, up + down, on (a) |"
    tuned = f"0.650 ± {spread:.3f} (0.550)"  # in brackets the first seed, which the other row ran with
    assert lines[2] == f"| a tuned one | {tuned} | {tuned} | 1,234 + 5,678 |"
    assert lines[3] == "| each alone | 0.500 |  | 1,234 + 5,678 |"


def test_a_row_is_held_against_another_seed_against_seed(tmp_path: Path) -> None:
    """Losses of 1, 2 and 3 points: 2 ± 1 / sqrt(3)."""
    (tmp_path / "few.yaml").write_text(
        STUDY.replace("rows:", "rows:\n  whole: {title: whole, overrides: [], finalist: true}").replace(
            "settings: [a]}",
            "settings: [a], finalist: true, against: {row: whole, payload: 0.25, points: 1.5}}\n"
            "  few: {title: few, overrides: [codec=int8], settings: [a], finalist: true,"
            " against: {row: whole, payload: 0.25, points: 1.4}}",
        )
    )
    study = read_study(tmp_path / "few.yaml")

    def cell(row: str, seed: int, score: float, payload: float) -> Finished:
        sent = {f"{way}_payload_bytes_per_client_round": payload for way in ("uplink", "downlink")}
        summary = {"mean_score": score, "communication": sent, "seconds": 1}
        return Finished(Cell(row, "a", seed, True, ()), "abc1234", summary, ((1, score, 10),))

    whole = [cell("whole", seed, 0.8 + seed, 400.0) for seed in range(3)]
    for name, payload in (("alone", 100.0), ("few", 101.0)):
        rows = [cell(name, seed, 0.8 + seed - (seed + 1) / 100, payload) for seed in range(3)]
        results = {("whole", "a"): whole, (name, "a"): list(reversed(rows))}
        (line,) = list(comparison_table(study, results))[2:]
        title = study.rows[name].title
        share, most, met = ("25.00%", "1.5", "yes") if name == "alone" else ("25.25%", "1.4", "**no**")
        assert line == f"| {title} | whole | {share} | 25.0% | +2.00 ± 0.58 | {most} | {met} |"
    alone = {("whole", "a"): whole, ("few", "a"): rows[:1]}
    assert list(comparison_table(study, alone))[2] == "| few | whole | 25.25% | 25.0% | +1.00 | 1.4 |  |"


def test_bytes_of_another_setting_than_the_others_are_marked(study: Study, finished: dict[str, Finished]) -> None:
    results = dict(final_results(study, 3, finished))
    results["alone", "b"] = results.pop(("alone", "a"))  # now (b) is the common one
    del results["tuned", "b"]
    results["tuned", "a"][0].summary["communication"]["uplink_bytes_per_client_round"] = 9.0
    lines = list(score_table(study, results))
    assert lines[0].endswith("on (a) |")
    assert lines[2].endswith("| 9 + 5,678 |")
    assert lines[3].endswith("|  | 0.500 | 1,234 + 5,678 on (b) |")


def test_the_page_tells_what_was_tried_and_what_was_chosen(
    study: Study, finished: dict[str, Finished], tmp_path: Path
) -> None:
    write_study(study, 3, finished, tmp_path / "docs", None)
    page = (tmp_path / "docs" / "small.md").read_text()
    assert "client.learning_rate 0.01: 0.500" in page
    assert "client.learning_rate 0.03: 0.550" in page
    assert "| client.learning_rate 0.03 |" in page
    assert "always the client's majority label | 0.600 ± 0.000 (0.600) | 0.600 ± 0.000 (0.600) |" in page
    runs = f"{len(finished)} runs of {len(finished) / 2:.1f} hours of wall time together on one thread each, commit abc"
    assert runs in page
    assert (tmp_path / "docs" / "small.svg").read_text().count("<svg") == 1


def test_cells_that_the_study_no_longer_asks_for_are_kept_and_not_counted(
    study: Study, finished: dict[str, Finished], tmp_path: Path
) -> None:
    some = next(entry for entry in finished.values() if entry.cell.row == "alone")
    stale = replace(some, cell=replace(some.cell, overrides=("rounds=99",)))
    write_study(study, 3, finished | {stale.cell.name: stale}, tmp_path, None)
    assert f"{len(finished)} runs of" in (tmp_path / "small.md").read_text()
    assert len(read_results(tmp_path / "small.jsonl")) == len(finished) + 1


def test_only_what_stands_between_the_markers_is_rewritten(
    study: Study, finished: dict[str, Finished], tmp_path: Path
) -> None:
    path = readme(tmp_path)
    write_study(study, 3, finished, tmp_path / "docs", path)
    first = path.read_text()
    assert first.startswith("before\n<!-- study small -->\n|  | (a) first |")
    assert first.endswith("\n<!-- end of study small -->\nafter\n")
    assert "old" not in first
    again = read_results(tmp_path / "docs" / "small.jsonl")
    written = write_study(study, 3, again, tmp_path / "docs", path)
    assert path.read_text() == first
    assert sorted(file.name for file in written) == ["README.md", "small.jsonl", "small.md", "small.svg"]


def test_the_same_cells_give_the_same_plot(study: Study, finished: dict[str, Finished], tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_study(study, 3, finished, tmp_path / folder, None)
    assert (tmp_path / "one" / "small.svg").read_bytes() == (tmp_path / "two" / "small.svg").read_bytes()


def test_nothing_is_written_where_there_is_nothing_to_write_or_no_place_for_it(
    study: Study, finished: dict[str, Finished], tmp_path: Path
) -> None:
    with pytest.raises(FedmaskError, match=r"^study small: no final cell is finished yet"):
        write_study(study, 3, {}, tmp_path / "docs", None)
    path = tmp_path / "README.md"
    path.write_text("no place\n")
    with pytest.raises(FedmaskError, match=r"^README\.md: has no lines <!-- study small --> and <!-- end of study"):
        write_study(study, 3, finished, tmp_path / "docs", path)
    assert not (tmp_path / "docs").exists()
    assert path.read_text() == "no place\n"


def test_an_unfinished_study_shows_what_there_is(study: Study, finished: dict[str, Finished], tmp_path: Path) -> None:
    some = {name: entry for name, entry in finished.items() if entry.cell.row == "alone"}
    write_study(study, 3, some, tmp_path, None)
    page = (tmp_path / "small.md").read_text()
    assert "still open" in page
    assert "| a tuned one | 0." not in page
    assert chosen_rates(study, study.rows["tuned"], some) is None


@pytest.mark.parametrize("results", sorted((ROOT / "docs" / "studies").glob("*.jsonl")), ids=lambda path: path.stem)
def test_the_documents_of_this_project_are_what_their_results_say(results: Path, tmp_path: Path) -> None:
    study = read_study(ROOT / "conf" / "study" / f"{results.stem}.yaml")
    copy = tmp_path / "README.md"
    copy.write_text((ROOT / "README.md").read_text())
    write_study(study, 3, read_results(results), tmp_path / "studies", copy)
    assert copy.read_text() == (ROOT / "README.md").read_text()
    for name in (f"{results.stem}.md", results.name):
        assert (tmp_path / "studies" / name).read_text() == (results.parent / name).read_text()
