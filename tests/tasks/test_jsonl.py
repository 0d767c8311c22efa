"""JSON lines become tasks."""

import json
from pathlib import Path

import pytest

from fedmask.errors import FedmaskError
from fedmask.tasks.jsonl import load_task


def write(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_bytes(text.encode())
    return folder


def lines(*labels: object) -> str:
    return "".join(json.dumps({"text": f"t{row}", "label": label}) + "\n" for row, label in enumerate(labels))


@pytest.mark.parametrize(
    ("labels", "classes", "targets"),
    [
        (["up", "down", "up"], ("down", "up"), [1, 0, 1]),
        ([10, 2, 10], ("2", "10"), [1, 0, 1]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
        (["1.5", "0", "1.5"], ("0", "1.5"), [1, 0, 1]),
        ([1.5, 0, 3], None, [1.5, 0.0, 3.0]),
    ],
)
def test_a_label_is_what_its_type_says(
    tmp_path: Path, labels: list[object], classes: tuple[str, ...] | None, targets: list[float]
) -> None:
    task = load_task(write(tmp_path / "t", lines(*labels)), "t")
    assert (task.labels, task.train.labels.tolist()) == (classes, targets)


def test_lines_as_other_programs_write_them(tmp_path: Path) -> None:
    text = '\ufeff{"id": 1, "text": "a\\u2028b\\n", "label": "up"}\r\n\n  {"label": "down", "text": "\u2028"}'
    assert load_task(write(tmp_path / "t", text), "t").train.text_a == ("a\u2028b\n", "\u2028")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", "text": "b", "label": "up"}', "the key 'text' stands twice in an object; leave one"),
        ('{"text": "a", "label": "up", "more": {"k": 1, "k": 2}}', "the key 'k' stands twice in an object; leave one"),
        ('{"text": "a", "label"}', "not JSON: Expecting ':' delimiter"),
        ('["a", "up"]', "not a JSON object; data=jsonl takes one object a line, with a text and a label"),
        ("[" * 100_000, "not JSON: "),
        ('{"text": "a", "label": ' + "1" * 5000 + "}", "not JSON: Exceeds the limit (4300 digits)"),
        ('{"text": "a", "label": ' + "1" * 400 + "}", "a label must be a whole number below 2^63, or a class name"),
        ('{"text": "a", "label": null}', "the label is empty"),
        ('{"text": "a"}', "the label is empty"),
        ('{"text": "a", "label": NaN}', "the label is empty"),
        ('{"text": "a", "label": ["up"]}', "a label must be a class name or a number, not ['up']"),
        ('{"text": null, "label": "up"}', "a text must be a str, not None (key 'text', missing or null)"),
        ('{"label": "up"}', "a text must be a str, not None (key 'text', missing or null)"),
        ('{"text": 5, "label": "up"}', "a text must be a str, not 5 (key 'text')"),
        ('{"text": "a", "label": 0.5}', "label 0.5 is a float among class names"),
        ('{"text": "cut \\ud83d", "label": "up"}', "a text has half of a surrogate pair, '\\ud83d', at character 5"),
        ('{"text": "a", "label": "\\ud83d"}', "a label must be a class name or a number, not '\\ud83d'"),
    ],
)
def test_a_fault_names_its_line(tmp_path: Path, line: str, message: str) -> None:
    folder = write(tmp_path / "t", lines("up", "down") + line + "\n")
    with pytest.raises(FedmaskError) as error:
        load_task(folder, "t")
    assert str(error.value).startswith(f"{folder}/train.jsonl:3: {message}")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            json.dumps([{"text": "a", "label": "up"}], indent=1),
            "1: not JSON: Expecting value at character 3; data=jsonl",
        ),
        (json.dumps({"text": "a", "label": "up"}, indent=1), "1: not JSON: Expecting property name enclosed in double"),
        (json.dumps([{"text": "a", "label": "up"}]), "1: not a JSON object; data=jsonl takes one object a line"),
    ],
)
def test_json_of_another_form_is_told_what_is_read(tmp_path: Path, text: str, message: str) -> None:
    folder = write(tmp_path / "t", text)
    with pytest.raises(FedmaskError) as error:
        load_task(folder, "t")
    assert str(error.value).startswith(f"{folder}/train.jsonl:{message}")
    assert str(error.value).endswith("one object a line, with a text and a label, and no list around them")


def test_a_label_with_a_point_is_the_one_that_is_named(tmp_path: Path) -> None:
    task = load_task(write(tmp_path / "t", lines(0, 1, 1.0)), "t")
    assert task.notes[0].startswith("a regression, for labels such as 1.0 have a decimal point; where they are classes")


def test_targets_beyond_any_float(tmp_path: Path) -> None:
    folder = write(tmp_path / "t", lines(0.5, 1.5) + '{"text": "a", "label": 1e999}\n')
    with pytest.raises(FedmaskError, match=r"train\.jsonl:3: label inf is not a number, and this task is a regression"):
        load_task(folder, "t")
