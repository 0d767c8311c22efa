"""fedmask.runs.report on real runs: one page, made from the folder alone, whose figures are those of summary.json."""

import json
import re
import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message

from client.app import app as client_app
from fedmask.errors import FedmaskError
from fedmask.runs.report import write_report

Run = Any
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome installed")
BY_TASK, AGAINST_BYTES = "Validation score by task and round", "Validation score against cumulative wire bytes"
SPREAD, GAINS = "Clients' scores on test, sorted, by task", "Clients' gains over training alone, sorted"
VOID = {"meta", "br", "hr", "link", "img", "input"}


@dataclass
class Page(HTMLParser):
    """A report, read back."""

    figures: dict[str, tuple[str, str]] = field(default_factory=dict)
    """By name: the exact value and the visible text."""
    tables: list[list[list[str]]] = field(default_factory=list)
    svgs: list[str] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self._open.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self._open]
        if "style" in tags:
            return
        self.text += data
        if "td" in tags or "th" in tags:
            self.tables[-1][-1][-1] += data
        if tags and tags[-1] == "data":
            attributes = self._open[-1][1]
            name, value = attributes["data-figure"], attributes["value"]
            assert name is not None
            assert value is not None
            assert self.figures.setdefault(name, (value, data)) == (value, data)

    def plot(self, label: str) -> str:
        return next(svg for svg in self.svgs if f'aria-label="{escape(label)}"' in svg)

    def table(self, first_cell: str) -> list[list[str]]:
        return next(table for table in self.tables if table[0][:1] == [first_cell])


def read(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    page.svgs = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert not page._open
    return page


def report(run: Run) -> str:
    return (run.folder / "report.html").read_text()


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def figures_of(folder: Path) -> dict[str, Any]:
    """All figures of a folder's summary.json, and of its baselines', as the report names them."""
    figures = dict(flat(json.loads((folder / "summary.json").read_text())))
    for path in (folder / "compare").glob("*/summary.json"):
        figures |= flat(json.loads(path.read_text()), f"compare/{path.parent.name}/")
    return figures


def check_figures(page: Page, folder: Path) -> None:
    expected = figures_of(folder)
    assert page.figures
    for name, (value, text) in page.figures.items():
        assert json.loads(value) == expected[name], name
        decimals = len(text.partition(".")[2])
        assert abs(float(text.replace(",", "")) - expected[name]) <= 0.5 * 10**-decimals + 1e-12, name


def chromium(page: Path, profile: Path) -> str:
    """The document as the browser has built it."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"]
    done = subprocess.run(
        [*command, f"--user-data-dir={profile}", page.as_uri()], capture_output=True, text=True, timeout=300, check=True
    )
    return done.stdout


@pytest.fixture(scope="module")
def compared_run(federate: Callable[..., Run]) -> Run:
    """A federated run beside the frozen baseline, with a client that fails in the first round and one never drawn."""

    def app(message: Message, context: Context) -> Message:
        server_round = message.metadata.group_id
        if (context.node_config["partition-id"], message.metadata.message_type, server_round) == (1, "train", "2"):
            raise RuntimeError("no disk")
        return client_app(message, context)

    run = federate("compare=[frozen]", "clients_per_round=3", "rounds=3", "score_every=2", app=app)
    alone_in_its_report = report(run)
    federate("baseline=frozen", "clients_per_round=3", "rounds=3", output=run.folder / "compare" / "frozen")
    assert report(run) == alone_in_its_report
    write_report(run.folder)
    return run


# ----------------------------------------------------------------------------------------------------------------------
# The page
# ----------------------------------------------------------------------------------------------------------------------


def test_its_figures_are_those_of_the_summary(compared_run: Run) -> None:
    page = read(report(compared_run))
    check_figures(page, compared_run.folder)
    expected = figures_of(compared_run.folder)
    scores = ("score.", "worst_client_score.", "mean_score")
    wanted = {name for name in expected if name.removeprefix("compare/frozen/").startswith(scores)}
    wanted |= {name for name in expected if name.startswith(("communication.", "mask.selected_by_tensor."))}
    wanted |= {"model.num_parameters", "mask.num_selected", "mask.density", "seconds", "clients_never_drawn"}
    assert wanted <= page.figures.keys()


@needs_chromium
def test_a_browser_shows_the_figures_of_the_summary(compared_run: Run, tmp_path: Path) -> None:
    dom = chromium(compared_run.folder / "report.html", tmp_path / "profile")
    shown, written = read(dom), read(report(compared_run))
    check_figures(shown, compared_run.folder)
    assert shown.figures == written.figures
    assert shown.tables == written.tables
    assert len(shown.svgs) == len(written.svgs) == 7


@needs_chromium
def test_it_fits_a_narrow_phone(compared_run: Run, tmp_path: Path) -> None:
    frame, everything = tmp_path / "frame.html", report(compared_run).replace("<details", "<details open")
    measure = "document.title = frames[0].document.documentElement.scrollWidth"
    frame.write_text(
        f'<iframe style="border: 0; width: 360px; height: 700px" srcdoc="{escape(everything)}"></iframe>'
        f"<script>addEventListener('load', () => {{ {measure} }})</script>"
    )
    assert "<title>360</title>" in chromium(frame, tmp_path / "profile")


def test_it_knows_nothing_of_the_network(compared_run: Run) -> None:
    html = report(compared_run)
    assert "http" not in html
    assert "//" not in html.replace(str(compared_run.folder), "")
    assert "<script" not in html
    assert set(re.findall(r'(?:href|src|url)[=(]"?(.)', html)) == {"#"}


def test_made_again_it_is_the_same(compared_run: Run) -> None:
    before = (compared_run.folder / "report.html").read_bytes()
    (compared_run.folder / "report.html").unlink()
    assert write_report(compared_run.folder) == compared_run.folder / "report.html"
    assert (compared_run.folder / "report.html").read_bytes() == before


def test_it_says_the_result_in_words_and_what_was_run(plain_run: Run) -> None:
    text, sent = read(report(plain_run)).text, plain_run.summary["communication"]
    assert f"Mean test score over 2 tasks: {plain_run.summary['mean_score']:.3f}." in text
    up, down = sent["uplink_bytes_per_client_round"], sent["downlink_bytes_per_client_round"]
    assert f"A client sends {up:,.0f} bytes and receives {down:,.0f} bytes a round." in text
    full = sent["full_finetuning_bytes_per_client_round"]
    assert f"would exchange {full / (up + down):,.0f} times as much (projection: {full:,} bytes" in text
    assert "weights are random: its scores mean nothing" in text
    assert (plain_run.folder / "config.yaml").read_text() in text


def test_names_from_the_folder_are_escaped(compared_run: Run, tmp_path: Path) -> None:
    odd = "<i>a&b</i>"
    shutil.copytree(compared_run.folder, tmp_path / "run")
    for name in ("rounds.jsonl", "communication.jsonl", "summary.json", "config.yaml"):
        text = (tmp_path / "run" / name).read_text()
        for word in ("first", "client-error", "evaluate", "tiny", "attention.self.query.weight"):
            text = text.replace(word, f"{word}{odd}")
        (tmp_path / "run" / name).write_text(text)
    html = write_report(tmp_path / "run").read_text()
    page = read(html)
    assert "<i>" not in html
    assert f"first{odd}" in [row[0] for row in page.table("task")]
    assert page.table("cause of failure")[1][0] == f"client-error{odd}"
    assert page.figures[f"score.first{odd}"]
    for word in ("evaluate", "tiny", "attention.self.query.weight"):
        assert f"{word}{odd}" in page.text


def test_a_folder_that_is_damaged_ends_in_one_line(plain_run: Run, tmp_path: Path) -> None:
    shutil.copytree(plain_run.folder, tmp_path / "run")
    with (tmp_path / "run" / "rounds.jsonl").open("a") as file:
        file.write('{"round": 3, "clie')
    with pytest.raises(FedmaskError) as caught:
        write_report(tmp_path / "run")
    assert str(caught.value).startswith(f"{tmp_path / 'run' / 'rounds.jsonl'}: damaged")
    assert "\n" not in str(caught.value)


def test_no_name_of_a_client_steers_a_terminal_or_breaks_the_page(plain_run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(plain_run.folder, folder)
    odd = "\x1b]0;pwned\x07\x1b[2J\u202e\ud800\x9b1m\x00"
    for name in ("summary.json", "rounds.jsonl", "clients.jsonl"):
        text = (folder / name).read_text()
        assert "small:first" in text or "first" in text
        (folder / name).write_text(text.replace('"first"', json.dumps(odd)))
    write_report(folder)
    content = (folder / "report.html").read_text(encoding="utf-8")
    assert "\\x1b]0;pwned\\x07\\x1b[2J\\u202e\\ud800\\x9b1m\\x00" in content
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", content)
    read(content)


def test_a_report_that_cannot_be_written_loses_no_run(
    federate: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError("disk is full")

    monkeypatch.setattr("fedmask.runs.report.write_atomically", full)
    with pytest.raises(OSError, match="disk is full"):
        federate("rounds=1", output=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["score"]
    assert (tmp_path / "run" / "adapter.safetensors").exists()


# ----------------------------------------------------------------------------------------------------------------------
# Scores
# ----------------------------------------------------------------------------------------------------------------------


def test_a_baseline_stands_beside_the_run(compared_run: Run, plain_run: Run) -> None:
    page = read(report(compared_run))
    assert page.table("task")[0] == ["task", "federated", "worst client", "frozen", "worst client"]
    assert page.table("task")[-1][0] == "mean over tasks"
    against_bytes = page.plot(AGAINST_BYTES)
    assert against_bytes.count("stroke-dasharray") == 1
    assert read(report(plain_run)).table("task")[0] == ["task", "federated", "worst client"]
    assert "stroke-dasharray" not in read(report(plain_run)).plot(AGAINST_BYTES)


def test_rounds_without_scores_are_left_out_of_the_plots(compared_run: Run, plain_run: Run) -> None:
    assert [line["mean_score"] is None for line in compared_run.rounds] == [True, False, False]
    points = sum(len(line["score"]) for line in compared_run.rounds)
    assert points_of(compared_run, BY_TASK, AGAINST_BYTES) == [points, 2]
    assert points_of(plain_run, BY_TASK, AGAINST_BYTES) == [2 * 2, 2]


def points_of(run: Run, *labels: str) -> list[int]:
    page = read(report(run))
    return [page.plot(label).count("<use") for label in labels]


def test_loss_and_scores_by_round_stand_beside_the_baselines(compared_run: Run, plain_run: Run) -> None:
    beside = "Validation score by round, beside the baselines"
    # Of the run 2 rounds were scored, of the baseline all 3.
    assert points_of(compared_run, "Training loss by round", beside) == [3 + 3, 2 + 3]
    assert points_of(plain_run, "Training loss by round") == [2]
    assert not any(beside in svg for svg in read(report(plain_run)).svgs)


def test_without_a_test_split_it_says_so(federate: Callable[..., Run]) -> None:
    page = read(report(federate("score_test=false", "rounds=1")))
    assert page.text.count("No client was scored on the test split.") == 2
    assert "mean_score" not in page.figures


def test_under_label_skew_the_own_mix_stands_beside(federate: Callable[..., Run]) -> None:
    run = federate("data.partition=dirichlet", "rounds=1")
    page = read(report(run))
    assert page.table("task")[0] == ["task", "federated", "worst client", "own mix", "majority label"]
    check_figures(page, run.folder)
    assert {"own_score.first", "own_majority_score.second"} <= page.figures.keys()


# ----------------------------------------------------------------------------------------------------------------------
# Every client
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def beside_alone(federate: Callable[..., Run]) -> Run:
    run = federate("compare=[alone]", "clients=6", "data.partition=dirichlet")
    federate("baseline=alone", "clients=6", "data.partition=dirichlet", output=run.folder / "compare" / "alone")
    write_report(run.folder)
    return run


def scores_on_test(folder: Path) -> dict[int, dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]
    return {line["client"]: line for line in lines if line["split"] == "test"}


def test_the_spread_the_worst_and_the_best_are_shown_by_task(beside_alone: Run) -> None:
    page, scores = read(report(beside_alone)), scores_on_test(beside_alone.folder)
    alone = scores_on_test(beside_alone.folder / "compare" / "alone")
    table = next(table for table in page.tables if "median" in table[0])
    assert table[0] == [
        "task",
        "clients",
        "worst (client)",
        "median",
        "best (client)",
        "better off than alone",
        "worse off",
    ]
    assert len(table) == 3
    for task, number, worst, middle, best, better, worse in table[1:]:
        of_task = sorted((line for line in scores.values() if line["task"] == task), key=lambda line: line["score"])
        assert int(number) == len(of_task)
        assert middle == f"{statistics.median(line['score'] for line in of_task):.3f}"
        for shown, line in ((worst, of_task[0]), (best, of_task[-1])):
            score, client = re.fullmatch(r"(\S+)\s\((\d+)\)", shown).groups()  # type: ignore[union-attr]
            assert scores[int(client)]["score"] == line["score"] == pytest.approx(float(score), abs=6e-4)
        gains = [line["score"] - alone[line["client"]]["score"] for line in of_task]
        assert (int(better), int(worse)) == (sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains))
    assert points_of(beside_alone, SPREAD, GAINS) == [6, 6]


def test_those_who_are_worse_off_than_alone_are_named(beside_alone: Run) -> None:
    scores, alone = scores_on_test(beside_alone.folder), scores_on_test(beside_alone.folder / "compare" / "alone")
    worse = [client for client, line in scores.items() if line["score"] < alone[client]["score"]]
    text = read(report(beside_alone)).text
    assert (f"Worse off than alone: {len(worse)} clients ({', '.join(map(str, worse))})." in text) == bool(worse)
    assert ("No client is worse off than alone." in text) == (not worse)


def test_each_client_has_a_row_with_what_it_scores_alone(beside_alone: Run) -> None:
    scores, alone = scores_on_test(beside_alone.folder), scores_on_test(beside_alone.folder / "compare" / "alone")
    table = next(table for table in read(report(beside_alone)).tables if table[0][:2] == ["task", "client"])
    assert table[0] == ["task", "client", "score", "own mix", "alone", "training examples"]
    assert sorted(table[1:], key=lambda row: int(row[1])) == [
        [
            line["task"],
            str(client),
            f"{line['score']:.3f}",
            f"{line['own_score']:.3f}",
            f"{alone[client]['score']:.3f}",
            str(line["num_examples"]),
        ]
        for client, line in scores.items()
    ]


def test_of_many_clients_the_worst_and_the_best_are_listed(
    plain_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(plain_run.folder, tmp_path / "run")
    (line, *_) = scores_on_test(plain_run.folder).values()
    many = [line | {"client": number, "score": number / 1000, "task": "first"} for number in range(1000)]
    (tmp_path / "run" / "clients.jsonl").write_text("".join(json.dumps(each) + "\n" for each in many))
    page = read(write_report(tmp_path / "run").read_text())
    table = next(table for table in page.tables if table[0][:2] == ["task", "client"])
    assert [row[1] for row in table[1:]] == [
        *map(str, range(10)),
        "980 more in between",
        *map(str, range(990, 1000)),
    ]
    assert page.plot(SPREAD).count("<use") <= 40
    assert len(page.plot(SPREAD)) < 20_000


def test_a_run_of_a_version_that_kept_no_clients_scores_has_a_page_too(plain_run: Run, tmp_path: Path) -> None:
    shutil.copytree(plain_run.folder, tmp_path / "run")
    (tmp_path / "run" / "clients.jsonl").unlink()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for key in ("lost_clients", "lost_on_test", "unscored"):
        del summary[key]
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    assert "of a version that kept no client's score" in read(write_report(tmp_path / "run").read_text()).text


def test_without_a_test_split_the_last_scored_rounds_clients_stand_there(federate: Callable[..., Run]) -> None:
    page = read(report(federate("score_test=false", "rounds=3", "score_every=2", "clients_per_round=3")))
    assert "On the validation split, after round 3;" in page.text
    assert "Clients' scores on validation, sorted, by task" in "".join(page.svgs).replace("&#x27;", "'")


# ----------------------------------------------------------------------------------------------------------------------
# Bytes, clients, mask
# ----------------------------------------------------------------------------------------------------------------------


def test_bytes_are_summed_by_kind_and_direction(federate: Callable[..., Run]) -> None:
    run = federate("client.head=shared", "rounds=1")
    rows = {row[0]: row[1:] for row in read(report(run)).table("kind, direction")[1:]}
    for kind, direction in (("mask", "down"), ("train", "up"), ("evaluate", "down"), ("head", "up")):
        lines = [line for line in run.ledger if (line["kind"], line["direction"]) == (kind, direction)]
        sums = [f"{sum(line[key] for line in lines):,}" for key in ("payload_bytes", "wire_bytes")]
        assert rows[f"{kind}, {direction}"] == ["inside others" if kind == "head" else f"{len(lines)}", *sums]
    messages = sum(int(row[0]) for row in list(rows.values())[:-1] if row[0].isdecimal())
    assert rows["all"][0] == str(messages)
    assert rows["all"][2] == f"{run.summary['communication']['total_bytes']:,}"


def test_who_took_part_and_who_failed_is_shown_client_by_client(compared_run: Run) -> None:
    def mark(client: int, line: Mapping[str, Any]) -> str:
        if client not in line["cohort"]:
            return "·"
        return "✕" if (client, line["round"]) == (1, 2) else "●"

    page, rounds = read(report(compared_run)), compared_run.rounds
    rows = [[str(client), *(mark(client, line) for line in rounds)] for client in range(4)]
    assert {"●", "✕", "·"} <= {cell for row in rows for cell in row}
    assert page.table("client") == [["client", "1", "2", "3"], *rows]
    assert page.table("cause of failure")[1] == ["client-error", "1", "-"]
    assert "Clients that failed in a round: 1 (1)." in page.text


def test_clients_that_were_never_drawn_are_named(federate: Callable[..., Run]) -> None:
    run = federate("clients_per_round=1", "rounds=1")
    (drawn,) = run.rounds[0]["cohort"]
    others = ", ".join(str(client) for client in range(4) if client != drawn)
    assert f"Clients never drawn: 3 ({others})." in read(report(run)).text


def test_many_clients_are_counted_by_round(compared_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedmask.runs.report.participation.MAX_GRID_CLIENTS", 3)
    shutil.copytree(compared_run.folder, tmp_path / "run")
    page = read(write_report(tmp_path / "run").read_text())
    assert len(page.svgs) == 8
    assert "clients, of 4" in page.text
    assert not any(table[0][:1] == ["client"] for table in page.tables)


def test_a_baseline_without_a_mask_has_a_report_too(federate: Callable[..., Run]) -> None:
    run = federate("baseline=frozen", "rounds=1")
    page = read(report(run))
    check_figures(page, run.folder)
    assert "so it has no mask" in page.text
    assert "A baseline sends no vectors." in page.text
    assert "times as much" not in page.text
    assert "Nothing failed." in page.text


def test_the_mask_is_spread_over_layers_and_kinds(federate: Callable[..., Run], plain_run: Run) -> None:
    assert "layer" in read(plain_run.folder.joinpath("report.html").read_text()).svgs[-1]
    run = federate("mask=all", "mask.density=null", "mask.embeddings=true", "rounds=1")
    page = read(report(run))
    rows = {row[0]: row[1] for row in page.table("tensor")[1:]}
    assert rows == {name: f"{number:,}" for name, number in run.summary["mask"]["selected_by_tensor"].items()}
    ticks = re.findall(r"<text[^>]*>([^<]*)</text>", page.svgs[-1])
    assert ticks[:3] == ["rest", "0", "1"]
    assert "all other kinds" in page.text
    bars = re.findall(r"var\(--series-(\d)\)", page.svgs[-1])
    assert sorted(set(bars)) == list("012345")
