"""Tables as spreadsheets and data frames write them become tasks."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmask.errors import FedmaskError
from fedmask.tasks import Reading
from fedmask.tasks.csv import load_task


def write(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    for split in ("train", "validation", "test"):
        (folder / f"{split}.csv").write_bytes(text.encode())
    return folder


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_cells_in_quotes_hold_what_a_table_is_made_of(tmp_path: Path, separator: str, quoting: int) -> None:
    texts = ['he said "fine", twice', "two\nlines; one text", "tab\there", "plain"]
    rows = [["", "text", "label"], *([str(row), text, "no" if row % 2 else "yes"] for row, text in enumerate(texts))]
    written = io.StringIO()
    csv.writer(written, delimiter=separator, quoting=quoting).writerows(rows)  # a data frame's index is column ""
    task = load_task(write(tmp_path / "t", "\ufeff" + written.getvalue()), "t")
    assert task.train.text_a == tuple(texts)
    assert task.labels == ("no", "yes")


def test_what_a_spreadsheet_leaves_behind(tmp_path: Path) -> None:
    text = "sep=;\r\ntext;label;domain;;\r\ngood;up;shop;;\r\n;;;;\r\n\r\nbad;down;mail;;\r\n;;;;\r\n"
    task = load_task(write(tmp_path / "t", text), "t")
    assert (task.train.text_a, task.train.domains) == (("good", "bad"), ("shop", "mail"))


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(["up", "down"])), min_size=4
    ).filter(lambda rows: len({label for _, label in rows}) == 2)
)
def test_what_the_library_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    written = io.StringIO()
    csv.writer(written).writerows([("text", "label"), *rows])
    task = load_task(write(tmp_path_factory.mktemp("csv"), written.getvalue()), "t")
    assert list(zip(task.train.text_a, (task.labels[index] for index in task.train.labels), strict=True)) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,label\na,b,c\n", "train.csv:2: 3 fields, but the header has 2"),
        ('text,label\n"a\nb",up\nc\n', "train.csv:4: 1 fields, but the header has 2"),
        ('text,label\n"a "b" c",up\n', "train.csv:2: ',' expected after '\"'; a quote inside a cell is written twice"),
        ('text,label\n"never ends,up\n', "train.csv:2: unexpected end of data; a quote inside a cell is written twice"),
        ("text,label\n,\n", "train.csv: no rows under the header"),
        ("", "train.csv: the file is empty"),
        ("text,label,text\na,up,b\n", "train.csv: the column 'text' stands there twice; leave one, or give them names"),
        ('text,label\n"a\nb",up\nc,down\nd,\n', "train.csv:5: the label is empty"),
        ("review,label\na,up\n", "train.csv: no text column among review, label; known are text_a+text_b, text_a, "),
        (
            '"text", "label"\n"a", "up"\n',
            "train.csv:1: a blank stands between the separator and a quote, which then is",
        ),
        ('text,label\n"a", "up"\n"b", "down"\n', "train.csv:2: a blank stands between the separator and a quote, "),
        ('text;label\na;  "up"\nb;down\n', "train.csv:2: a blank stands between the separator and a quote, which"),
        ('id,text,label\n1, "a, b",up\n', "train.csv:2: a blank stands between the separator and a quote, which"),
        ('id,text,label\n1,a,up\n2, "b\nc", up\n', "train.csv:3: a blank stands between the separator and a quote"),
        (
            "a" * 10_000_001 + ",label\nb,up\n",
            "train.csv:1: a cell has more than 10,000,000 characters; shorten it, or",
        ),
        (
            "text,label\n" + "b" * 10_000_001 + ",up\n",
            "train.csv:2: a cell has more than 10,000,000 characters; shorten",
        ),
    ],
)
def test_a_fault_names_its_place(tmp_path: Path, text: str, message: str) -> None:
    folder = write(tmp_path / "t", text)
    with pytest.raises(FedmaskError) as error:
        load_task(folder, "t")
    assert str(error.value).startswith(f"{folder}/{message}")


def test_a_blank_and_a_quote_inside_of_quotes_are_a_part_of_the_text(tmp_path: Path) -> None:
    folder = write(tmp_path / "t", 'text,label\n" ""hm""",up\n" ""a""\nb", down\n')
    task = load_task(folder, "t")
    assert (task.train.text_a, task.labels) == ((' "hm"', ' "a"\nb'), ("down", "up"))


def test_long_texts_and_long_names_are_read(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    folder = write(tmp_path / "t", f"{'n' * 200_000},text,label\n1,{'a' * 200_000},up\n2,b,down\n")
    assert len(load_task(folder, "t").train.text_a[0]) == 200_000
    assert csv.field_size_limit() == before


def test_columns_that_stand_twice_and_are_not_read_do_not_matter(tmp_path: Path) -> None:
    folder = write(tmp_path / "t", "text,label,note,note\na,up,1,2\nb,down,3,4\n")
    assert load_task(folder, "t").train.text_a == ("a", "b")
    with pytest.raises(FedmaskError, match="the column 'note' stands there twice"):
        load_task(folder, "t", Reading(text="note"))
