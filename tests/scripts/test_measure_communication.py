"""scripts/measure_communication.py: its bytes are those of a run's messages; tables, plots and what it refuses."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import measure_communication
import simulate
from fedmask.runs.folder import RunFolder
from fedmask.wire.codecs import codec, decode
from measure_communication import CODECS, Line, exchange, main
from server.compose import compose

TINY = [
    "model=tiny",
    "mask.density=0.01",
    "clients=3",
    "rounds=2",
    "data.tasks=[topic,question_type]",
    "client.batch_size=4",
]
FRAME_BYTES = 16 + len("delta")
PNG = b"\x89PNG\r\n\x1a\n"


def rows_of(output: Path) -> list[dict[str, str]]:
    with (output / "communication.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 3 clients with 8 examples each, which are two steps."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    data = ["data.examples_per_client=8", "data.max_length=16", "threads=1"]
    assert simulate.main([*TINY, *data, f"output={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("measured")
    arguments = [*TINY, "data.max_length=16", "threads=1", "codecs=[fp32,int4+entropy,topk:0.1:sign]", "steps=2"]
    assert main([*arguments, f"output={output}"]) == 0
    return output


def test_bytes_are_those_of_a_runs_train_messages(finished: Path, measured: Path) -> None:
    """The ledger of a run with the same configuration counts what is measured here, message for message."""
    lines = [line for line in RunFolder(finished, False, resume=True).communication() if line.client == 0]
    replies = [line for line in lines if (line.kind, line.direction) == ("train", "up")]
    # Scoring brings the vectors down before training would; its message says which split, and not which state.
    requests = [line for line in lines if (line.kind, line.direction, line.round) == ("evaluate", "down", 1)]
    fp32 = rows_of(measured)[0]
    assert {int(fp32["uplink_payload_bytes"])} == {line.payload_bytes for line in replies}
    # A mean loss is told in as many digits as it has.
    assert all(abs(int(fp32["uplink_wire_bytes"]) - line.wire_bytes) <= 3 for line in replies)
    assert [int(fp32["downlink_payload_bytes"])] == [line.payload_bytes for line in requests]
    assert abs(int(fp32["downlink_wire_bytes"]) - requests[0].wire_bytes) < 40


def test_the_masks_bytes_are_those_of_a_run(finished: Path, measured: Path) -> None:
    mask = [line for line in RunFolder(finished, False, resume=True).communication() if line.kind == "mask"]
    of_client_0 = sum(line.wire_bytes for line in mask if line.client == 0)
    # The settings travel with it, and say how many examples a client has and where heads stay.
    assert abs(int(rows_of(measured)[0]["mask_wire_bytes"]) - of_client_0) <= 4


def test_codecs_are_measured_and_rivals_projected(measured: Path) -> None:
    rows = rows_of(measured)
    assert [row["name"] for row in rows[:3]] == ["fp32", "int4+entropy", "topk:0.1:sign"]
    assert [row["name"] for row in rows[3:]] == ["full fine-tuning", "LoRA r=8", "BitFit", "FedKSeed"]
    assert [bool(row["formula"]) for row in rows] == [False] * 3 + [True] * 4
    sizes = [int(row["round_bytes"]) for row in rows]
    assert sizes[0] > sizes[1] > sizes[2]
    errors = [float(row["uplink_error"]) for row in rows[:3]]
    assert errors[0] == 0 < errors[1] < errors[2] < 1
    assert float(rows[3]["times_less"]) == 1
    assert (measured / "communication.png").read_bytes().startswith(PNG)


def test_a_codecs_line_is_its_own_bytes_and_error(tmp_path: Path) -> None:
    config = compose([*TINY, "data.examples_per_client=8", "data.max_length=16", "threads=1"])
    exchanged = exchange(config, None, tmp_path)
    line = measure_communication.encoded("int4+entropy", exchanged)
    body = codec("int4+entropy").encode(exchanged.up, measure_communication.SEED)
    assert line.uplink_payload_bytes == FRAME_BYTES + len(body)
    lost = decode(body, exchanged.up.size) - exchanged.up
    assert line.uplink_error == pytest.approx(np.linalg.norm(lost) / np.linalg.norm(exchanged.up))
    assert np.linalg.norm(exchanged.up) > 0


def test_a_finished_runs_delta_goes_down(finished: Path, tmp_path: Path) -> None:
    assert main([f"run={finished}", "codecs=int8", "steps=1", f"output={tmp_path}"]) == 0
    line = rows_of(tmp_path)[0]
    assert line["name"] == "int8"
    assert 0 < float(line["downlink_error"]) != float(line["uplink_error"]) > 0


def line_of(**changes: Any) -> Line:
    facts: dict[str, Any] = {"name": "fp32", "formula": "", "downlink_payload_bytes": 0, "uplink_payload_bytes": 0}
    facts |= {"downlink_wire_bytes": 1000, "uplink_wire_bytes": 1500, "mask_wire_bytes": 300, "downlink_error": 0.0}
    return Line(**(facts | {"uplink_error": 0.0, "times_less": 1.0} | changes))


def test_a_whole_run_and_seconds_on_a_link() -> None:
    line = line_of()
    assert line.run_bytes(compose([*TINY])) == 3 * 300 + 3 * 2 * 2500
    assert line.run_bytes(compose([*TINY, "clients_per_round=2"])) == 3 * 300 + 2 * 2 * 2500
    assert line.seconds(10) == 8 * 2500 / 10_000_000


def test_runs_are_compared_by_their_bytes(finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "second"
    data = ["data.examples_per_client=8", "data.max_length=16", "threads=1", "score_test=false"]
    assert simulate.main([*TINY, *data, "rounds=1", f"output={other}"]) == 0
    assert main([f"runs=[{finished},{other}]", f"output={tmp_path / 'out'}"]) == 0
    rows = rows_of(tmp_path / "out")
    assert [(row["run"], row["round"]) for row in rows] == [("first", "1"), ("first", "2"), ("second", "1")]
    ledger = list(RunFolder(finished, False, resume=True).communication())
    assert int(rows[0]["bytes_until"]) == sum(line.wire_bytes for line in ledger if line.round <= 1)
    assert int(rows[1]["bytes_until"]) == sum(line.wire_bytes for line in ledger)
    assert (tmp_path / "out" / "communication.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["codecs=[fp32,int3]"], "codec 'int3': there is no such codec; known are fp32"),
        (["steps=0"], "steps=0: must be a whole number of at least 1"),
        (["steps=few"], "steps=few: must be a whole number"),
        (["run=a", "runs=[b,c]"], "give either run=DIR"),
        (["run=a", "model=tiny"], "model=tiny: a finished run says itself how it was made"),
        (["run=nowhere"], "nowhere: holds no finished run, for it has no summary.json"),
        (["runs=[a/b,c/b]"], "runs=[b,b]: two of these folders have one name"),
        (["model=tin"], "model=tin: must be one of"),
        (["model=tiny", "baseline=alone"], "baseline=alone: sends no vectors"),
        (["model=tiny", "data.tasks=[topics]"], "unknown task 'topics' in the demo"),
    ],
)
def test_what_has_no_sense_ends_in_one_line(
    arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(what)
    assert printed.count("\n") == 1


def test_all_codecs_that_are_measured_unasked_exist() -> None:
    assert len({codec(spec).spec for spec in CODECS}) == len(CODECS)
