"""Any bytes in the place of a task's files give a task or one line that says what is wrong."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmask.tasks import Reading, load_tasks

from .conftest import value_or_line

PARTS = {
    "tsv": [
        "text_a",
        "label",
        "text_b",
        "\t",
        "\n",
        "\r\n",
        '"',
        "up",
        "-1",
        "0.5",
        "\ufeff",
        "\0",
        "\u2028",
        "nan",
        " ",
    ],
    "csv": ["text", "label", ",", ";", "\n", "\r", '"', '""', "up", "1e999", "sep=;", "\0", "inf", "\n\n"],
    "jsonl": [
        '{"text": "a", "label": "up"}\n',
        '{"text": ',
        '"label": ',
        ", ",
        "}\n",
        "[",
        "{",
        '"\\ud83d"',
        "1e999",
        "NaN",
        "-1",
    ],
}


BEGUN = {
    "tsv": "text_a\tlabel\na\tup\nb\tdown\n" + "c\tup\n" * 3,
    "csv": "text,label\na,up\nb,down\n" + "c,up\n" * 3,
    "jsonl": '{"text": "a", "label": "up"}\n{"text": "b", "label": "down"}\n' * 2,
}


def file_bytes(source: str) -> st.SearchStrategy[bytes]:
    """Pieces of such a file in any order, after a good beginning or none; or just bytes."""
    beginning = st.sampled_from(["", BEGUN[source]])
    pieces = st.lists(st.sampled_from(PARTS[source]) | st.text(st.characters(exclude_categories=["Cs"]), max_size=3))
    return st.tuples(beginning, pieces).map(lambda given: (given[0] + "".join(given[1])).encode()) | st.binary()


@pytest.mark.parametrize("source", list(PARTS))
def test_any_bytes(source: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    made = []

    @settings(max_examples=150, deadline=None)
    @given(
        file_bytes(source),
        st.none() | file_bytes(source),
        st.sampled_from([Reading(), Reading(text="label", label="text")]),
    )
    def check(train: bytes, test: bytes | None, reading: Reading) -> None:
        folder: Path = tmp_path_factory.mktemp("fuzz")
        (folder / "t").mkdir()
        (folder / "t" / f"train.{source}").write_bytes(train)
        if test is not None:
            (folder / "t" / f"test.{source}").write_bytes(test)
        made.append(value_or_line(lambda: load_tasks(source, str(folder), ["t"], reading)))

    check()
    assert any(made)


@settings(deadline=None)
@given(st.lists(st.text() | st.integers() | st.none(), min_size=1), st.sampled_from(list(PARTS)), st.text())
def test_any_names_and_any_root(names: list[str], source: str, root: str) -> None:
    assert value_or_line(lambda: load_tasks(source, root, names)) is None
