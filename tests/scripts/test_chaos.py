"""scripts/chaos.py: each part sees the harm that it does, and what would be a fault is told as one.

Kills and resumes themselves are tested in tests/server/test_resume.py, malformed replies in test_faults.py.
"""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict

import chaos
from client.app import app as client_app
from faults import byzantine, gate, kills, replies
from faults.left import differences
from faults.loss import Losing, loss
from faults.malformed import KINDS
from faults.outcome import Outcome, Settings
from faults.pages import BEGIN, END, rewrite
from faults.undisturbed import norms_of
from faults.updates import payload_with, vectors_of
from fedmask.errors import FedmaskError
from fedmask.wire.messages import facts_of, pack, payload_of
from fedmask.wire.vectors import NamedVector
from server.local_grid import LocalGrid

SMALL = (
    "model=tiny",
    "mask.density=0.01",
    "data=tsv",
    "data.tasks=[only]",
    "data.examples_per_client=8",
    "data.max_length=16",
    "client.head=shared",
    "clients=3",
    "rounds=2",
)

GOOD = Outcome("Harm", "nothing", "nothing came of it", True, ("what", "how often"), (("once", "1"),), ("As it is.",))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of runs in tmp_path with one task of few rows."""
    folder = tmp_path / "data" / "only"
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        rows = "".join(f"text {row}\t{row % 2}\n" for row in range(300 if split == "train" else 10))
        (folder / f"{split}.tsv").write_text(f"text_a\tlabel\n{rows}")
    return Settings((*SMALL, f"data.root={folder.parent}"), tmp_path, jobs=1, say=lambda what: None)


# ----------------------------------------------------------------------------------------------------------------------
# The command
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kills=x"], "kills=x: must be a whole number of at least 0"),
        (["loss=1"], "loss=1: must be a number from 0 and below 1"),
        (["loss=half"], "loss=half: must be a number from 0 and below 1"),
        (["kill=100"], "kill=100: no such key"),
        (["replies=10", "rounds=none"], "rounds=none: must be a whole number of at least 1"),
        (["replies=10", "compare=[alone]"], "compare=[alone]: chaos takes no compare"),
        (["kills=1", "jobs=0"], "jobs=0: must be a whole number of at least 1"),
        (
            ["kills=0"],
            "give either one of kills, replies, loss, byzantine, liars, gate, deployed, each above 0, or report=true",
        ),
        (["kills=1", "report=true"], "give either one of kills, "),
        (["report=yes"], "report=yes: must be true or false"),
        (["report=true"], "runs/chaos/chaos.json: there is no such file; run the parts with output=runs/chaos first"),
        (["loss=0.5", "workers=2"], "workers=2 baseline=none: give these to kills alone"),
        (["kills=1", "loss=0.5", "baseline=alone"], "workers=1 baseline=alone: give these to kills alone"),
        (["replies=1", "clients=1", "data.tasks=[topic]"], "clients=1: replies needs a good client and a bad one"),
        (["kills=1", "rounds=5"], "rounds=5: kills needs at least 6"),
        (["byzantine=10"], "byzantine=10: must be fewer than clients=10"),
    ],
)
def test_nonsense_ends_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert chaos.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1


def test_parts_are_told_kept_beside_each_other_and_end_with_one_where_a_limit_is_missed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = {"kills": GOOD, "loss": replace(GOOD, passed=False, figure="3 points")}
    monkeypatch.setattr(chaos, "_part", lambda name: lambda amount, settings: outcomes[name])
    here = ["data=tsv", f"data.root={tmp_path}", "data.tasks=[a,b]", f"output={tmp_path / 'out'}"]
    assert chaos.main(["loss=0.5", *here]) == 1
    assert "MISSED: 3 points" in capsys.readouterr().out
    assert chaos.main(["kills=3", f"output={tmp_path / 'out'}"]) == 0
    found = json.loads((tmp_path / "out" / "chaos.json").read_text())
    assert list(found) == ["kills", "loss"]
    assert found["loss"]["command"] == (
        "python scripts/chaos.py loss=0.5 output=FOLDER data=tsv data.root=DIR 'data.tasks=[a,b]'"
    )
    assert str(tmp_path) not in json.dumps(found)


def test_the_pages_are_made_from_the_outcomes(tmp_path: Path) -> None:
    parts = {"kills": GOOD.to_json() | {"command": "python it", "commit": "abc", "date": "2026-01-01"}}
    pages = tmp_path / "page.md", tmp_path / "README.md"
    for page in pages:
        page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    rewrite(*pages, parts)
    for page in pages:
        text = page.read_text()
        assert text.startswith(f"before\n{BEGIN}\n")
        assert text.endswith(f"\n{END}\nafter\n")
        assert "old" not in text
    assert "| once | 1 |" in pages[0].read_text()
    assert "| Harm | nothing came of it | nothing | yes | abc |" in pages[1].read_text()
    pages[1].write_text("no markers")
    before = pages[0].read_text()
    with pytest.raises(FedmaskError, match=r"README.md: has no lines"):
        rewrite(*pages, parts | {"loss": parts["kills"]})
    assert pages[0].read_text() == before


# ----------------------------------------------------------------------------------------------------------------------
# Kills
# ----------------------------------------------------------------------------------------------------------------------


def process(code: str, tmp_path: Path) -> kills._Process:
    return kills._Process(["-c", code], tmp_path / "log")


def test_a_process_is_killed_at_its_moment_and_told_by_its_end(tmp_path: Path) -> None:
    waiting = process("import time; print('run folder: x', flush=True); time.sleep(600)", tmp_path)
    waiting.kill_at(0.01)
    assert (waiting.fault(), waiting.was_killed) == ("", True)
    failing = process("import sys; print('no data'); sys.exit(3)", tmp_path)
    failing.kill_at(600)
    assert (failing.fault(), failing.was_killed) == ("ended with code 3: no data", False)
    finding = process("print('round-00002.safetensors: damaged (x); taking the one before')", tmp_path)
    assert finding.fault().startswith("round-00002.safetensors: damaged")


def test_a_chain_that_did_not_end_in_the_same_bits_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "adapter.safetensors").write_bytes(b"adapter")
    whole: Any = SimpleNamespace(folder=tmp_path, config=SimpleNamespace(rounds=6))
    good, bad = (
        kills.Chain({kills.AT_RANDOM: 2, kills.IN_CHECKPOINT: 1}, 1, ""),
        kills.Chain({kills.AT_RANDOM: 1}, 0, "x"),
    )
    assert kills._outcome([good], whole).passed
    outcome = kills._outcome([good, bad], whole)
    assert not outcome.passed
    assert outcome.figure.startswith("3 of 4 kills ended in the same bits, 1 of them in the writing")
    assert outcome.notes[0] == "chain 1: x."


def test_files_that_differ_or_are_missing_are_named() -> None:
    assert differences({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 3, "d": 4}) == ["b", "c", "d"]


# ----------------------------------------------------------------------------------------------------------------------
# Replies
# ----------------------------------------------------------------------------------------------------------------------


def test_malformed_replies_of_every_kind_are_sent_and_none_is_accepted(settings: Settings) -> None:
    many = replace(settings, overrides=(*settings.overrides, "clients=26"))
    outcome = replies.replies(len(KINDS) + 1, many)
    assert outcome.passed, outcome
    assert {row[0]: row[2:] for row in outcome.rows} == dict.fromkeys(KINDS, ("1", "1")) | {
        next(iter(KINDS)): ("2", "2")
    }


def test_a_reply_that_is_accepted_is_seen(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(replies, "malformed", lambda kind, request, reply, generator: reply)
        outcome = replies.replies(1, settings)
    assert not outcome.passed
    assert "1 accepted" in outcome.figure
    assert "not the same bits: adapter" in outcome.figure
    assert replies.replies(1, settings).passed  # made anew


# ----------------------------------------------------------------------------------------------------------------------
# Loss, byzantine
# ----------------------------------------------------------------------------------------------------------------------


def asked(kind: str, server_round: int, **more: str) -> tuple[Message, Message]:
    grid = LocalGrid(client_app, 1)
    request = Message(RecordDict(), next(iter(grid.get_node_ids())), kind, group_id=str(server_round))
    request.content = pack(facts={"round": server_round, **more})
    return request, Message(RecordDict(), reply_to=request)


def test_about_half_of_the_rounds_replies_are_lost_the_same_in_every_process_and_none_of_the_test_split() -> None:
    def lost(losing: Losing) -> list[bool]:
        return [losing(client, *asked("train", number)) is None for number in range(1, 51) for client in range(8)]

    first = Losing(0.5, seed=3)
    found = lost(first)
    assert found == lost(Losing(0.5, seed=3))
    assert 0.4 < np.mean(found) < 0.6
    assert lost(first) != found  # asked again, the same replies are not lost again
    for kind, more in (("evaluate", {"split": "test"}), ("query.mask", {})):
        assert all(Losing(0.99, 0)(client, *asked(kind, 1, **more)) is not None for client in range(20))


def test_an_attacker_scales_all_its_vectors_and_nobody_else_does() -> None:
    vectors = [
        NamedVector(name, "ab" * 16, np.arange(size, dtype=np.float32)) for name, size in (("delta", 5), ("head", 3))
    ]
    for client_id, factor in ((0, -3.0), (1, 1.0)):
        request, reply = asked("train", 1)
        reply.content = pack(payload_with(vectors), {"num-examples": 5})
        sent = byzantine.times(-3.0, 1)(client_id, request, reply)
        assert sent is not None
        for found, before in zip(vectors_of(payload_of(sent.content)), vectors, strict=True):
            assert (found.name, found.layout_digest) == (before.name, before.layout_digest[:16])
            np.testing.assert_array_equal(found.values, factor * before.values)
        assert facts_of(sent.content) == {"num-examples": 5}


def test_scores_stand_beside_those_of_the_run_without_harm(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byzantine, "FACTORS", {"its update x 1": 1.0})
    outcome = byzantine.byzantine(1, settings)
    assert [row[1] for row in outcome.rows] == ["none", "none", "clip_norm", "trimmed_mean", "median"]
    assert outcome.rows[0][2] == outcome.rows[1][2]  # its own update once is no attack
    assert outcome.rows[1][3] == "-0.0"
    clip = json.loads((settings.output / "runs" / "byzantine-1-x1-median" / "summary.json").read_text())
    assert clip["score"]
    assert norms_of(settings).median() > 0
    lossy = loss(0.5, settings)
    assert lossy.rows[0][1] == outcome.rows[0][2]
    before = {path: path.stat().st_mtime_ns for path in settings.output.rglob("summary.json")}
    assert loss(0.5, settings) == lossy
    assert {path: path.stat().st_mtime_ns for path in settings.output.rglob("summary.json")} == before
    with pytest.raises(
        FedmaskError, match=r"undisturbed: holds a run of other overrides, name another output \(seed=1"
    ):
        loss(0.5, replace(settings, overrides=(*settings.overrides, "seed=1")))


# ----------------------------------------------------------------------------------------------------------------------
# Gate: its callers are tested in tests/deploy/test_open_gate.py
# ----------------------------------------------------------------------------------------------------------------------

HELD = gate.Row("send a byte a second", 500, 700, {"kept": [0.1, 0.2], "new": [1.9]}, gate=10**8, grown=10**6)


@pytest.mark.parametrize(
    ("row", "log", "passed"),
    [
        (HELD, "gate, turned away: 5\n", True),
        (replace(HELD, calls={"kept": [2.1], "new": [0.1]}), "", False),
        (replace(HELD, calls={"kept": [], "new": [0.1]}), "", False),
        (replace(HELD, gate=2 * 10**8), "", False),
        (replace(HELD, grown=10**7), "", False),
        (HELD, "Traceback (most recent call last):\n" + 40 * "  line\n", False),
    ],
)
def test_a_gate_that_does_not_hold_is_told(row: gate.Row, log: str, passed: bool) -> None:
    outcome = gate._outcome(500, [row], log)
    assert outcome.passed is passed
    assert len(outcome.rows[0]) == len(outcome.columns)
    assert "500 callers that send a byte a second, 100 bodies of 60 MB and others" in outcome.figure
