"""fedmask.runs.outcome: who was lost in every round, and why nobody has a score."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fedmask.runs.outcome import NAMED, lost_clients, lost_lines, unscored


def line(cohort: list[int], lost: dict[int, str], mean_score: float | None = 0.5) -> dict[str, Any]:
    texts = {str(client_id): cause for client_id, cause in lost.items()}
    return {"cohort": cohort, "failed": sorted(lost), "lost": texts, "mean_score": mean_score}


def test_a_client_that_was_lost_whenever_it_was_drawn_is_named_with_its_last_cause() -> None:
    rounds = [line([0, 1, 2], {1: "no-reply: late", 2: "a: b"}), line([0, 2], {}), line([1], {1: "client-error: disk"})]
    assert lost_clients(rounds) == [{"client": 1, "rounds": 2, "cause": "client-error: disk"}]


@given(st.lists(st.dictionaries(st.integers(0, 5), st.booleans()), max_size=8))
def test_those_are_the_clients_that_no_round_kept(rounds: list[dict[int, bool]]) -> None:
    lines = [line(sorted(drawn), {client: "a: b" for client, is_lost in drawn.items() if is_lost}) for drawn in rounds]
    drawn = {client for each in rounds for client in each}
    kept = {client for each in rounds for client, is_lost in each.items() if not is_lost}
    assert [each["client"] for each in lost_clients(lines)] == sorted(drawn - kept)


def test_rounds_of_a_version_that_kept_no_causes_count_those_that_failed() -> None:
    old = {"cohort": [0, 1], "failed": [1], "mean_score": 0.5}
    (lost,) = lost_clients([old, line([0, 1], {0: "a: b", 1: "a: c"})])
    assert lost == {"client": 1, "rounds": 2, "cause": "a: c"}
    assert lost_clients([old])[0]["cause"] == "its cause was not kept by the version that ran this round"


def test_few_are_named_in_lines_and_the_others_counted() -> None:
    assert lost_lines({}) == []
    lost = [{"client": number, "rounds": 2, "cause": "a: b"} for number in range(NAMED + 2)]
    lost += [{"client": 10 + number, "rounds": 1, "cause": f"c: {number}"} for number in range(NAMED + 1)]
    lines = lost_lines({"lost_clients": lost})
    assert lines[:2] == [
        "clients 0, 1, 2, 3, 4 and 2 more were lost in every round: a: b",
        "client 10 was lost in every round: c: 0",
    ]
    assert lines[NAMED:] == ["lost in every round for other causes: 2; summary.json names them"]
    assert lost_lines({"lost_clients": lost[:2]}) == ["clients 0, 1 were lost in every round: a: b"]


def test_a_run_with_a_score_is_scored() -> None:
    assert unscored(True, 0.0, {1: "a: b"}, [line([0], {})]) is None
    assert unscored(False, None, {}, [line([0], {}, None), line([0], {}, 0.1)]) is None


def test_a_run_that_nobody_could_be_scored_in_says_why() -> None:
    assert unscored(True, None, {3: "a: b", 1: "a: c"}, [line([1, 3], {})]) == (
        "no client could be scored on the test split: client 1: a: c, and 1 more"
    )
    assert unscored(False, None, {}, [line([0, 1], {1: "a: b"}, None)] * 2) == (
        "no client could be scored on the validation split in any round: client 1: a: b"
    )
