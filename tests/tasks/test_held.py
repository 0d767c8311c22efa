"""Tasks that a process holds are those of the files as they are now."""

import os
from pathlib import Path

import pytest

import fedmask.tasks.held
from fedmask.errors import FedmaskError
from fedmask.tasks import AS_FOUND, Reading, Task
from fedmask.tasks.held import forget_tasks, held_tasks

from .conftest import write_splits

UP = [{"text_a": f"t{row}", "label": ("up", "no")[row % 2]} for row in range(20)]
DOWN = [{"text_a": f"t{row}", "label": ("no", "up")[row % 2]} for row in range(20)]


@pytest.mark.parametrize("source", ["tsv", "csv", "jsonl", "hub"])
def test_a_changed_file_is_read_again_and_no_other(source: str, tmp_path: Path) -> None:
    def held() -> Task:
        (task,) = held_tasks(source, str(tmp_path), ("t",), AS_FOUND)
        return task

    write_splits(source, tmp_path, "t", {"train": UP, "validation": UP, "test": UP})
    first = held()
    assert held() is first
    times = {path: path.stat() for path in tmp_path.rglob("*") if path.is_file()}
    write_splits(source, tmp_path, "t", {"train": DOWN, "validation": DOWN, "test": DOWN})
    for path, stat in times.items():  # as a copy that keeps times does
        if path.exists():
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = held()
    assert second.train.digest != first.train.digest
    assert held() is second


def test_a_split_that_comes_or_goes_is_seen(tmp_path: Path) -> None:
    write_splits("csv", tmp_path, "t", {"train": UP, "validation": UP, "test": UP})
    assert len(held_tasks("csv", str(tmp_path), ("t",), AS_FOUND)[0].train) == 20
    (tmp_path / "t" / "test.csv").rename(tmp_path / "elsewhere")
    assert len(held_tasks("csv", str(tmp_path), ("t",), AS_FOUND)[0].train) == 18
    (tmp_path / "elsewhere").rename(tmp_path / "t" / "test.csv")
    assert len(held_tasks("csv", str(tmp_path), ("t",), AS_FOUND)[0].train) == 20
    (tmp_path / "t" / "train.csv").unlink()
    with pytest.raises(FedmaskError, match="no such file"):
        held_tasks("csv", str(tmp_path), ("t",), AS_FOUND)


def test_a_module_its_neighbours_and_their_files_are_seen(tmp_path: Path) -> None:
    rows = tmp_path / "rows.txt"
    (tmp_path / "tasks.py").write_text(
        "import fedmask\nfrom rows_of import read\n\n\n"
        "def only():\n    return fedmask.Task('t', read(), read(), read())\n"
    )
    neighbour = "from pathlib import Path\n\n\ndef read():\n    lines = (Path(__file__).parent / 'rows.txt').open()\n"
    (tmp_path / "rows_of.py").write_text(neighbour + "    return [line.split() for line in lines]\n")

    def label() -> int:
        (task,) = held_tasks("python", str(tmp_path), ("tasks:only",), AS_FOUND)
        assert held_tasks("python", str(tmp_path), ("tasks:only",), AS_FOUND)[0] is task  # also after the first time
        return int(task.train.labels[0])

    rows.write_text("a up\nb no\n")
    assert label() == 1
    rows.write_text("a no\nb up\n")
    assert label() == 0
    (tmp_path / "rows_of.py").write_text(neighbour + "    return [line.split() for line in lines][::-1]\n")
    assert label() == 1


def test_other_words_on_the_rows_are_other_tasks_and_few_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fedmask.tasks.held, "MAX_HELD", 2)
    write_splits("csv", tmp_path, "t", {"train": UP, "validation": UP, "test": UP})

    def get(reading: Reading) -> Task:
        return held_tasks("csv", str(tmp_path), ("t",), reading)[0]

    plain, named = get(AS_FOUND), get(Reading(classes=("up", "no")))
    assert (plain.labels, named.labels) == (("no", "up"), ("up", "no"))
    assert get(AS_FOUND) is plain
    get(Reading(classes=("up", "no", "x")))
    assert get(AS_FOUND) is plain  # the one used longest ago has gone
    assert get(Reading(classes=("up", "no"))) is not named
    forget_tasks()
    assert get(AS_FOUND) is not plain
