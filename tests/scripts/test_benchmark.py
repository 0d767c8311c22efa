"""scripts/benchmark.py: what it writes, refuses and checks. No time is asserted: that is its own business."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message

import benchmark
from benchmarks import aggregate, checkpoint, codec, inference, mask, simulate, step, switch, threads
from benchmarks.encoders import random_encoder
from benchmarks.measure import Timing, alternate, in_fresh_process, memory_of, time_rows
from benchmarks.rows import Row, Settings
from benchmarks.tables import verdict
from client.app import app as client_app
from fedmask.errors import FedmaskError
from fedmask.training.delta import SelectedEntries

ROOT = Path(__file__).resolve().parent.parent.parent
KEYS = ["section", "work", "variant", "rival", "value", "rival_value", "unit", "ratio", "target", "met"]

SETTINGS = Settings(is_trial=False, repeats=1, say=lambda what: None)


def row(value: float, rival_value: float, target: float | None) -> Row:
    return Row("mask", "a model", "ours", "theirs", value, rival_value, "s", target)


# ----------------------------------------------------------------------------------------------------------------------
# The command
# ----------------------------------------------------------------------------------------------------------------------


def test_a_section_leaves_its_rows_and_says_where_they_were_measured(tmp_path: Path) -> None:
    line = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "section=inference", "trial=true"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [*line, f"output={tmp_path}"], env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    rows = json.loads((tmp_path / "benchmark.json").read_text())
    assert [list(each) for each in rows] == [KEYS] * 6
    assert {each["section"] for each in rows} == {"inference"}
    assert [each["unit"] for each in rows] == ["s", "s of CPU"] * 2 + ["parameters", "operations"]
    facts = json.loads((tmp_path / "machine.json").read_text())
    assert (facts["threads"], facts["OMP_NUM_THREADS"], facts["torch"]) == (1, "1", torch.__version__)
    assert facts["cpu"] in finished.stdout
    assert facts["commit"] in finished.stdout
    assert "a trial" in finished.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["section=masks"], "section=masks: must be one of mask, "),
        (["sections=mask"], "sections=mask: unknown; the keys are section, output"),
        (["section"], "section: unknown"),
        (["section=mask", "trial=yes"], "trial=yes: must be true or false"),
        (["output=here"], "give either section=, to measure, or readme=true"),
        (["section=mask", "readme=true"], "give either section=, to measure, or readme=true"),
        (["readme=true", "output=nowhere"], "nowhere/benchmark.json: there is no such file; run section=all"),
    ],
)
def test_nonsense_ends_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert benchmark.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(benchmark, "_section", lambda name: pytest.fail("measured"))
    assert benchmark.main(["section=mask", f"output={tmp_path / 'file'}"]) == 2
    assert capsys.readouterr().err == f"{tmp_path / 'file'}: File exists\n"


def test_rows_are_on_disk_when_a_run_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def section(name: str) -> Callable[[Settings], Iterator[Row]]:
        def rows(settings: Settings) -> Iterator[Row]:
            yield row(1.0, 2.0, None)
            if name == "step":
                raise KeyboardInterrupt

        return rows

    monkeypatch.setattr(benchmark, "SECTIONS", ("mask", "step", "inference"))
    monkeypatch.setattr(benchmark, "_section", section)
    assert benchmark.main(["section=all", f"output={tmp_path}"]) == 130
    assert len(json.loads((tmp_path / "benchmark.json").read_text())) == 2


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.delitem(sys.modules, "benchmarks.step")
    with pytest.raises(FedmaskError, match=r"^section=step: needs the package peft; `make setup` installs it$"):
        benchmark._section("step")


def test_every_section_has_a_module() -> None:
    for name in benchmark.SECTIONS:
        assert (ROOT / "scripts" / "benchmarks" / f"{name}.py").is_file()


def test_a_step_is_timed_in_processes_that_wait_in_their_own_ways() -> None:
    rows = list(threads.rows(replace(SETTINGS, is_trial=True)))
    assert [row.rival for row in rows] == [threads.ONE, threads.SPINNING]
    assert all(0 < value < threads.MOST_SECONDS for row in rows for value in (row.value, row.rival_value))


# ----------------------------------------------------------------------------------------------------------------------
# Rows and measuring
# ----------------------------------------------------------------------------------------------------------------------


def test_a_ratio_says_how_many_times_better() -> None:
    found = row(2.0, 5.0, 2.5).to_json()
    assert list(found) == KEYS
    assert (found["ratio"], found["met"]) == (2.5, True)
    assert row(2.0, 4.9, 2.5).met is False
    assert row(2.0, 1.0, None).to_json()["met"] is None
    told = verdict([row(2.0, 5.0, 2.5), row(2.0, 1.0, 1.0), row(2.0, 1.0, None)])
    assert told.splitlines()[0] == "targets met: 1 of 2"
    assert told.splitlines()[1] == "  missed: a model: ours 2 s, theirs 1: 0.5x, at least 1 MISSED"


def test_works_are_run_in_turn_after_a_warm_up() -> None:
    order: list[str] = []
    timings = alternate({name: partial(order.append, name) for name in "abc"}, 5)
    assert "".join(order) == "abc" * 6
    assert {name: len(timing.wall_seconds) for name, timing in timings.items()} == {"a": 5, "b": 5, "c": 5}
    assert all(min(timing.cpu_seconds) >= 0 for timing in timings.values())


def test_medians_stand_in_the_rows_and_the_target_is_for_wall_time() -> None:
    timings = {"ours": Timing((1.0, 9.0, 2.0), (4.0, 4.0, 5.0)), "theirs": Timing((6.0, 1.0, 7.0), (8.0, 0.0, 9.0))}
    wall, cpu = time_rows("mask", "a model", "ours", "theirs", timings, 3.0)
    assert (wall.value, wall.rival_value, wall.unit, wall.met) == (2.0, 6.0, "s", True)
    assert (cpu.value, cpu.rival_value, cpu.unit, cpu.met) == (4.0, 8.0, "s of CPU", None)


def test_memory_is_the_peak_of_the_work_in_a_fresh_process() -> None:
    held_here = np.ones(30_000_000)
    # What is prepared takes 200 MB for a moment: that is no part of the work, which takes 80.
    memory = memory_of(partial(eval, "(b'x' * 200_000_000, lambda: b'x' * 80_000_000)[1]"))
    assert memory.growth_bytes == pytest.approx(80e6, rel=0.1)
    assert memory.loaded_bytes < held_here.nbytes


def test_a_measuring_process_that_fails_ends_in_one_line() -> None:
    with pytest.raises(FedmaskError, match=r"^a measuring process died with exit code 3; is memory short\?$"):
        in_fresh_process(os._exit, 3)
    with pytest.raises(FedmaskError, match=r"^a measuring process failed: ValueError: invalid literal"):
        in_fresh_process(int, "x")


# ----------------------------------------------------------------------------------------------------------------------
# Sections
# ----------------------------------------------------------------------------------------------------------------------


def test_masks_are_compared_before_their_times_are(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = random_encoder("tiny")
    mask.check_same_entries(encoder, 0.005)
    others = mask.select(encoder, "largest", density=0.005, base_digest="0" * 64)
    monkeypatch.setattr(mask, "selected", lambda encoder, density: others)
    with pytest.raises(FedmaskError, match=r"^mask: select and torch.topk choose different entries"):
        mask.check_same_entries(encoder, 0.005)


def test_every_way_to_train_takes_steps() -> None:
    for name, variant in step.VARIANTS.items():
        task = step.Task(step.TRIAL_BATCHES[0])
        steps = variant(task, task.encoder)
        first = next(steps).clone()
        assert not torch.equal(first, next(steps)), name
    pairs = (*step.TIME_PAIRS, *step.MEMORY_PAIRS)
    assert {name for variant, rival, _ in pairs for name in (variant, rival)} == set(step.VARIANTS)


def test_the_rivals_of_a_mask_train_the_same_entries_or_as_many() -> None:
    task = step.Task(step.TRIAL_BATCHES[0])
    selected = step._mask(task.encoder, 0.005)
    before = {name: tensor.clone() for name, tensor in task.encoder.named_parameters()}
    steps = step.VARIANTS[step.PUBLISHED](task, task.encoder)
    for _ in range(3):
        next(steps)
    for name, tensor in task.encoder.named_parameters():
        changed = set(torch.nonzero((tensor != before[name]).flatten()).flatten().tolist())
        assert changed <= set(selected.indices.get(name, np.empty(0, np.int64)).tolist()), name
    adapted = random_encoder("tiny")
    next(step.VARIANTS["supertuning 0.005"](task, adapted))
    count = sum(tensor.numel() for name, tensor in adapted.named_parameters() if "supertuning_values" in name)
    assert selected.num_selected - len(selected.shapes) <= count <= selected.num_selected


def test_a_fast_wrong_gradient_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    task = step.Task(step.TRIAL_BATCHES[0])
    for name, found in step._masks(task.encoder).items():
        step.check_gradient(task, name, found, torch.full((found.num_selected,), 0.01))
    take = step.SelectedGradient.take
    monkeypatch.setattr(step.SelectedGradient, "take", lambda self: take(self) * 1.0001)
    with pytest.raises(
        FedmaskError, match=r"^step: the gradient of pafi 0.005 differs from the dense one by 0.0001 of"
    ):
        step.check_gradient(task, "pafi 0.005", found, torch.zeros(found.num_selected))


def test_merging_that_costs_an_operation_would_be_seen() -> None:
    encoder = random_encoder("tiny")
    inputs = inference.random_inputs(encoder, 2, 8)
    before = inference._operations(encoder, inputs)
    torch.nn.utils.parametrize.register_parametrization(
        encoder.get_submodule("encoder.layer.0.intermediate.dense"), "weight", torch.nn.Identity()
    )
    encoder.get_submodule("encoder.layer.0.intermediate.dense").register_forward_hook(lambda m, i, out: out + 0)
    assert (inference._operations(encoder, inputs) - before).total() == 1


def test_a_switch_that_leaves_another_model_ends_the_benchmark() -> None:
    encoder = random_encoder("tiny")
    entries = SelectedEntries(encoder, mask.select(encoder, "pafi", density=0.01, base_digest="0" * 64))
    deltas = [torch.full((entries.mask.num_selected,), size) for size in (0.1, 0.2)]
    copies = [switch._full_copy(encoder, entries, delta) for delta in deltas]
    switch._check_same_switch(encoder, entries, deltas, copies)
    with pytest.raises(FedmaskError, match=r"^switch: a scatter and a full copy leave different models"):
        switch._check_same_switch(encoder, entries, deltas, copies[::-1])


@pytest.mark.parametrize("new", [partial(bytes, 20_000), partial(torch.zeros, 5_000)])
def test_memory_of_idle_clients_grows_with_what_is_kept_for_each(
    new: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switch, "NUM_CLIENTS", (2, 12))
    kept: list[object] = []

    def hoarding(message: Message, context: Context) -> Message:
        kept.append(new())
        return client_app(message, context)

    monkeypatch.setattr(switch, "client_app", hoarding)
    hoarded = switch._memory_row(SETTINGS)
    assert hoarded.rival_value > switch.SPARE_BYTES
    assert hoarded.met is False
    assert hoarded.value > 3 * 20_000 * 0.9  # the mask, a round of training, its scoring


def test_another_mean_than_flowers_ends_the_benchmark() -> None:
    updates = np.random.default_rng(0).standard_normal((3, 1000), dtype=np.float32)
    records = [aggregate._record(update, 7, weight) for update, weight in zip(updates, (1, 2, 3), strict=True)]
    aggregate.check_same_mean(updates, [1, 2, 3], records)
    with pytest.raises(FedmaskError, match=r"^aggregate: fedmask and Flower come to different means"):
        aggregate.check_same_mean(updates, [1, 2, 4], records)


def test_every_codec_stands_beside_its_limit() -> None:
    rows = list(codec.rows(SETTINGS))
    judged = {row.variant: row.rival_value for row in rows if row.target is not None}
    assert set(judged) == {*codec.NAMES, *(f"{name}+entropy" for name in codec.NAMES)}
    assert {limit for spec, limit in judged.items() if spec.endswith("+entropy")} == {0.05}
    assert {limit for spec, limit in judged.items() if not spec.endswith("+entropy")} == {0.02}


@pytest.mark.parametrize("work", ["vectors", "training"])
def test_rounds_are_timed_without_the_first_and_without_scoring(work: str) -> None:
    if work == "vectors":
        turn = simulate.exchange_vectors(simulate.LOCAL, 3, 2)
    else:
        turn = simulate.train(simulate.LOCAL, "tiny", 5, 4, 2)
    assert len(turn.round_seconds) == len(turn.round_cpu_seconds) == 2
    assert min(turn.round_seconds) > 0
    assert turn.start_seconds > 0
    assert turn.peak_bytes > turn.growth_bytes >= 0


# ----------------------------------------------------------------------------------------------------------------------
# The README
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a whole run leaves it."""

    def rows(settings: Settings) -> Iterator[Row]:
        yield row(0.123456, 5.0, 20.0)
        yield row(2.0, 1.0, 0.97)
        yield row(3.0, 4.0, None)

    monkeypatch.setattr(benchmark, "SECTIONS", ("mask",))
    monkeypatch.setattr(benchmark, "_section", lambda name: rows)
    assert benchmark.main(["section=mask", f"output={tmp_path / 'out'}"]) == 0
    return tmp_path / "out"


def test_the_readme_shows_the_rows_that_have_a_target(measured: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- benchmark -->\nold\n<!-- /benchmark -->\nafter\n")
    benchmark.rewrite_readme(measured, readme)
    lines = readme.read_text().splitlines()
    assert lines[:2] == ["before", "<!-- benchmark -->"]
    assert lines[-2:] == ["<!-- /benchmark -->", "after"]
    assert lines[4] == "| mask | a model | ours | theirs | 0.123 to 5 s | 40.5 | 20 | yes |"
    assert lines[5] == "| mask | a model | ours | theirs | 2 to 1 s | 0.5 | 0.97 | **no** |"
    assert lines[7].startswith("1 of 2 targets met. Made by `python scripts/benchmark.py section=all output=DIR`")
    assert json.loads((measured / "machine.json").read_text())["cpu"] in lines[7]
    text = readme.read_text()
    benchmark.rewrite_readme(measured, readme)
    assert readme.read_text() == text


def test_a_trial_never_comes_into_the_readme(measured: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- benchmark -->\n<!-- /benchmark -->\n")
    facts = json.loads((measured / "machine.json").read_text()) | {"is_trial": True}
    (measured / "machine.json").write_text(json.dumps(facts))
    with pytest.raises(FedmaskError, match="holds a trial"):
        benchmark.rewrite_readme(measured, readme)
    assert readme.read_text() == "<!-- benchmark -->\n<!-- /benchmark -->\n"


def test_a_part_of_a_benchmark_never_comes_into_the_readme(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "SECTIONS", ("mask", "step"))
    with pytest.raises(FedmaskError, match="lacks the sections step; run section=all"):
        benchmark.rewrite_readme(measured, tmp_path / "README.md")


def test_rows_of_other_sections_are_not_lost(
    measured: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "SECTIONS", ("mask", "inference"))
    before = (measured / "benchmark.json").read_bytes()
    assert benchmark.main(["section=inference", f"output={measured}"]) == 2
    assert "benchmark.json: holds rows of mask, which would be lost" in capsys.readouterr().err
    assert (measured / "benchmark.json").read_bytes() == before


def test_a_damaged_benchmark_is_told_in_one_line(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (measured / "benchmark.json").write_text("[{")
    assert benchmark.main(["readme=true", f"output={measured}"]) == 2
    assert "benchmark.json: is not JSON" in capsys.readouterr().err


def test_a_readme_without_a_place_is_left_alone(measured: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("no place\n")
    with pytest.raises(FedmaskError, match=r"^README\.md: has no lines <!-- benchmark --> and <!-- /benchmark -->"):
        benchmark.rewrite_readme(measured, readme)
    assert readme.read_text() == "no place\n"


# ----------------------------------------------------------------------------------------------------------------------
# Checkpoints
# ----------------------------------------------------------------------------------------------------------------------


def test_the_state_is_written_as_a_run_writes_it(tmp_path: Path) -> None:
    for write in (checkpoint.server_writes(tmp_path, 2), checkpoint.clients_write(tmp_path, 2)):
        for _ in range(4):
            write()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    assert len(list((tmp_path / "clients" / "client-00001" / "state").iterdir())) == 3


def test_what_writing_takes_is_a_part_of_the_round(tmp_path: Path) -> None:
    ((server, clients, whole),) = checkpoint.rounds_of(tmp_path / "run", "tiny", clients=5, examples=2, num_rounds=2)
    assert 0 < server < server + clients < whole
