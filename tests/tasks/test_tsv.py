"""Folders of TSV files become tasks; a fault is told with its file, column or line."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from fedmask.errors import FedmaskError
from fedmask.tasks import load_tasks
from fedmask.tasks.tsv import load, load_task

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SINGLE = "text_a\tlabel\ngood\tpositive\nbad\tnegative\n"


def write(folder: Path, train: str = SINGLE, validation: str | None = None, test: str | None = None) -> Path:
    """A task's folder whose other splits are like train unless given."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, text in {"train": train, "validation": validation, "test": test}.items():
        (folder / f"{split}.tsv").write_bytes((train if text is None else text).encode())
    return folder


def test_a_classification(tmp_path: Path) -> None:
    write(tmp_path / "reviews", test="label\ttext_a\npositive\tfine\n")
    (task,) = load(str(tmp_path), ["reviews"])
    assert (task.name, task.labels, task.metric) == ("reviews", ("negative", "positive"), "accuracy")
    assert task.train.text_a == ("good", "bad")
    assert task.train.labels.tolist() == [1, 0]
    assert task.test.text_a == ("fine",)
    assert task.train.domains is None


def test_pairs_and_domains(tmp_path: Path) -> None:
    folder = write(tmp_path / "pairs", "text_a\ttext_b\tlabel\tdomain\na\tb\tsame\tnews\nc\td\tother\tmail\n")
    task = load_task(folder, "pairs")
    assert task.train.text_b is not None
    assert task.train.text_b == ("b", "d")
    assert task.train.domains == ("news", "mail")


def test_quotes_and_line_ends_are_text(tmp_path: Path) -> None:
    folder = write(tmp_path / "t", '\ufefftext_a\tlabel\r\n"open\tyes\r\n\r\nsay "hi"\tno\r\n')
    task = load_task(folder, "t")
    assert task.train.text_a == ('"open', 'say "hi"')
    assert task.labels == ("no", "yes")


def test_numbers_with_a_decimal_point_are_a_regression(tmp_path: Path) -> None:
    task = load_task(write(tmp_path / "t", "text_a\tlabel\na\t0.5\nb\t2\n"), "t")
    assert (task.labels, task.metric) == (None, "spearman")
    assert task.train.labels.tolist() == [0.5, 2.0]
    classes = load_task(write(tmp_path / "u", "text_a\tlabel\na\t0\nb\t1\n"), "u")
    assert (classes.labels, classes.metric) == (("0", "1"), "accuracy")


def test_the_metric_goes_by_the_name(tmp_path: Path) -> None:
    assert load_task(write(tmp_path / "cola"), "cola").metric == "matthews"
    mrpc = load_task(
        write(tmp_path / "mrpc", "text_a\ttext_b\tlabel\na\tb\tequivalent\na\tc\tnot_equivalent\n"), "mrpc"
    )
    assert (mrpc.metric, mrpc.labels) == ("f1", ("not_equivalent", "equivalent"))
    stsb = load_task(write(tmp_path / "stsb", "text_a\ttext_b\tlabel\na\tb\t4\na\tc\t1\n"), "stsb")
    assert (stsb.metric, stsb.labels) == ("spearman", None)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("body\tlabel\na\tb\n", None, "train.tsv: no text column among body, label; known are text_a+text_b, text_a, "),
        ("text_a\tclass\na\tb\n", None, "train.tsv: no column 'label'; the header has text_a, class"),
        (SINGLE, "text_a\tlabel\n", "test.tsv: no rows under the header"),
        (SINGLE, "", "test.tsv: the file is empty"),
        ("text_a\tlabel\ttext_a\na\tb\tc\n", None, "train.tsv: the column 'text_a' stands there twice; leave one"),
        ("text_a\tlabel\tlabel \na\tb\tc\n", None, "train.tsv: the column 'label' stands there twice; leave one"),
        (SINGLE, SINGLE + "\nshort\n", "test.tsv:5: 1 fields, but the header has 2"),
        (SINGLE, SINGLE + "a\tb\tc\n", "test.tsv:4: 3 fields, but the header has 2"),
        (SINGLE, SINGLE + "a\t\n", "test.tsv:4: the label is empty"),
        (
            SINGLE,
            SINGLE + "\na\tneutral\n",
            "test.tsv:5: label 'neutral' is not a class of train; the classes are negative, positive",
        ),
        (
            "text_a\tlabel\na\t0.5\n",
            "text_a\tlabel\na\t1\nb\thigh\n",
            "test.tsv:3: label 'high' is not a number, and this task is a regression",
        ),
        (SINGLE, SINGLE + "a\rb\tpositive\n", "test.tsv:4: 1 fields, but the header has 2"),
        (
            SINGLE,
            SINGLE + "a" * 10_000_001 + "\tup\n",
            "test.tsv:4: a cell has more than 10,000,000 characters; shorten",
        ),
    ],
)
def test_a_fault_names_its_place(tmp_path: Path, train: str, test: str | None, message: str) -> None:
    folder = write(tmp_path / "reviews", train, test=test)
    with pytest.raises(FedmaskError) as error:
        load_task(folder, "reviews")
    assert str(error.value).startswith(f"{folder}/{message}")
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    folder = write(tmp_path / "t")
    (folder / "train.tsv").write_bytes(b"text_a\tlabel\n\xff\tx\n")
    with pytest.raises(FedmaskError, match=r"train\.tsv: not UTF-8 text: 'utf-8' codec"):
        load_task(folder, "t")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    write(tmp_path / "reviews")
    (tmp_path / "reviews" / "test.tsv").unlink()
    (tmp_path / "reviews" / "train.tsv").rename(tmp_path / "reviews" / "dev.tsv")
    with pytest.raises(
        FedmaskError, match=r"reviews/train\.tsv: no such file; a task needs train\.tsv, and where there"
    ):
        load(str(tmp_path), ["reviews"])
    (tmp_path / "reviews" / "dev.tsv").rename(tmp_path / "reviews" / "train.tsv")
    with pytest.raises(
        FedmaskError, match=r"unknown task 'review' in .*; there are: reviews\. Did you mean 'reviews'\?"
    ):
        load(str(tmp_path), ["review"])
    with pytest.raises(FedmaskError, match=r"/train\.csv: no such file; .*; train\.tsv is there: take data=tsv$"):
        load_tasks("csv", str(tmp_path), ["reviews"])
    with pytest.raises(FedmaskError, match=r"data=tsv needs data\.tasks=\[\.\.\.\]; .* has: reviews"):
        load(str(tmp_path), None)
    with pytest.raises(FedmaskError, match=r"data\.root=.*/nowhere: no such folder"):
        load(str(tmp_path / "nowhere"), ["reviews"])
    with pytest.raises(FedmaskError, match=r"data=tsv needs data\.root=DIR"):
        load(None, ["reviews"])


@pytest.mark.parametrize(
    ("names", "second"),
    [
        ("text\tid", None),
        ("sentence\tid", None),
        ("content\tid", None),
        ("text_a\ttext", None),
        ("sentence1\tsentence2", ("b", "d")),
    ],
)
def test_columns_have_the_usual_names_of_all_sources(
    tmp_path: Path, names: str, second: tuple[str, ...] | None
) -> None:
    task = load_task(write(tmp_path / "t", f"{names}\tlabel\na\tb\tup\nc\td\tdown\n"), "t")
    assert (task.train.text_a, task.train.text_b) == (("a", "c"), second)


def test_a_long_text_is_read(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    task = load_task(write(tmp_path / "t", SINGLE + "a" * 200_000 + "\tpositive\n"), "t")
    assert len(task.train.text_a[-1]) == 200_000
    assert csv.field_size_limit() == before


def test_a_root_at_another_depth_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "sets" / "reviews")
    monkeypatch.chdir(tmp_path / "sets" / "reviews")
    for root in (".", str(tmp_path / "sets" / "reviews")):
        with pytest.raises(FedmaskError) as error:
            load(root, ["reviews"])
        assert str(error.value) == (
            f"data.root={root}: this is the folder of a task; name the one that it lies in: "
            f"data.root={tmp_path / 'sets'} data.tasks=[reviews]"
        )
    with pytest.raises(FedmaskError, match=r"there are: sets/reviews\. Did you mean 'sets/reviews'\?"):
        load(str(tmp_path), ["reviews"])
    (tmp_path / "none").mkdir()
    with pytest.raises(FedmaskError, match=r"there are: none, for no folder below it holds a train\.tsv\.$"):
        load(str(tmp_path / "none"), ["reviews"])


def as_csv(rows: list[list[str]], quoting: int) -> str:
    written = io.StringIO()
    csv.writer(written, delimiter="\t", quoting=quoting, lineterminator="\n").writerows(rows)
    return written.getvalue()


PLAIN = [["text_a", "label"], ["good soup", "up"], ["cold soup", "down"]]


@pytest.mark.parametrize(
    "text",
    [
        as_csv(PLAIN, csv.QUOTE_ALL),
        "text_a\tlabel\n" + as_csv(PLAIN[1:], csv.QUOTE_ALL),
        'text_a\tlabel\n"good soup"\tup\n"cold "soup""\tdown\n',  # each text in quotes, by hand
        as_csv([*PLAIN, ['he said "fine"', "up"]], csv.QUOTE_MINIMAL),
        as_csv([*PLAIN, ["two\tcells", "up"]], csv.QUOTE_MINIMAL),
        'text_a\tlabel\ngood\t "up"\nbad\t "down"\n',
        as_csv([*PLAIN, ["two\nlines", "up"]], csv.QUOTE_MINIMAL),
        'text_a\tlabel\n"good, fine"\tup\nplain\tup\n"cold, bad"\tdown\n',  # as a spreadsheet exports a comma
    ],
)
def test_a_file_whose_cells_are_quoted_is_told(tmp_path: Path, text: str) -> None:
    with pytest.raises(
        FedmaskError, match=r"train\.tsv:\d+: .*data=tsv takes a quote as a part of the text; .*data=csv"
    ):
        load_task(write(tmp_path / "t", text), "t")


@pytest.mark.parametrize(
    "texts",
    [
        ['"To be"', "not to be", "so"],
        ['say "hi"', 'the "end"', "so"],
        ['"a" and "b"', "x, y", "so"],
        ['"yes, sir"', "no, sir", "so"],
        ['"', '""', "so"],
    ],
)
def test_quotes_that_are_a_part_of_texts_stay(tmp_path: Path, texts: list[str]) -> None:
    rows = "".join(f"{text}\t{label}\n" for text, label in zip(texts, ("up", "down", "up"), strict=True))
    assert load_task(write(tmp_path / "t", f"text_a\tlabel\n{rows}"), "t").train.text_a == tuple(texts)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the real tasks are not beside the repository")
def test_the_real_tasks_load() -> None:
    names = ["sst2", "trec", "cola", "mrpc", "stsb", "ag_news", "clinc_domain", "amazon_books"]
    tasks = {task.name: task for task in load_tasks("tsv", str(SHARED_DATA), names)}
    assert list(tasks) == names
    assert [len(split) for split in (tasks["trec"].train, tasks["trec"].validation, tasks["trec"].test)] == [
        4834,
        537,
        500,
    ]
    assert {name: task.num_outputs for name, task in tasks.items()} == {
        "sst2": 2,
        "trec": 6,
        "cola": 2,
        "mrpc": 2,
        "stsb": 1,
        "ag_news": 4,
        "clinc_domain": 10,
        "amazon_books": 2,
    }
    assert tasks["cola"].metric == "matthews"
    assert tasks["mrpc"].labels == ("not_equivalent", "equivalent")
    assert tasks["stsb"].metric == "spearman"
    assert 0 <= tasks["stsb"].train.labels.min() < tasks["stsb"].train.labels.max() <= 5
    assert tasks["stsb"].test.labels.dtype == np.float64
