"""Sets of the `datasets` library, saved to disk, become tasks."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from fedmask.errors import FedmaskError
from fedmask.tasks import Reading, hub, load_tasks


def save(root: Path, name: str, features: datasets.Features | None = None, **splits: dict[str, list[Any]]) -> None:
    sets = {split: datasets.Dataset.from_dict(columns, features=features) for split, columns in splits.items()}
    datasets.DatasetDict(sets).save_to_disk(str(root / name))


def features(*columns: str, names: tuple[str, ...] = ("bad", "good")) -> datasets.Features:
    texts = {column: datasets.Value("string") for column in columns}
    return datasets.Features({**texts, "label": datasets.ClassLabel(names=list(names))})


def rows(count: int, label: int | None = None) -> dict[str, list[Any]]:
    return {
        "sentence": [f"text {index}" for index in range(count)],
        "label": [index % 2 if label is None else label for index in range(count)],
    }


def test_a_set_with_three_labelled_splits(tmp_path: Path) -> None:
    save(tmp_path, "org/reviews", features("sentence"), train=rows(6), validation=rows(2), test=rows(4))
    (task,) = load_tasks("hub", str(tmp_path), ["org/reviews"])
    assert (task.name, task.labels, task.metric) == ("org/reviews", ("bad", "good"), "accuracy")
    assert (len(task.train), len(task.validation), len(task.test)) == (6, 2, 4)
    assert task.train.text_a[1] == "text 1"
    assert task.train.labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_class_indices_follow_the_feature_not_the_alphabet(tmp_path: Path) -> None:
    names = ("zebra", "ant", "never seen")
    save(tmp_path, "animals", features("sentence", names=names), train=rows(4), test=rows(4))
    task = hub.load_task(str(tmp_path), "animals")
    assert task.labels == names
    assert task.test.labels.tolist() == [0, 1, 0, 1]


def test_pairs_and_glue_metrics(tmp_path: Path) -> None:
    pairs = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "idx": [0, 1], "label": [0, 1]}
    mrpc = features("sentence1", "sentence2", names=("equivalent", "not_equivalent"))
    mrpc["idx"] = datasets.Value("int32")
    save(tmp_path, "glue/mrpc", mrpc, train=pairs, validation=pairs, test=pairs)
    save(tmp_path, "glue/stsb", train=pairs | {"label": [0.5, 4.0]}, validation=pairs | {"label": [1.0, 4.0]})
    task, regression = hub.load(str(tmp_path), ["glue/mrpc", "glue/stsb"])
    assert task.train.text_b is not None
    assert task.train.text_b == ("c", "d")
    assert (task.metric, task.labels) == ("f1", ("not_equivalent", "equivalent"))
    assert task.train.labels.tolist() == [1, 0]
    assert (regression.metric, regression.labels) == ("spearman", None)


def test_a_hidden_test_split_is_replaced_by_validation_and_that_by_a_tenth_of_train(tmp_path: Path) -> None:
    save(tmp_path, "glue/sst2", features("sentence"), train=rows(30), validation=rows(5), test=rows(7, label=-1))
    task = hub.load_task(str(tmp_path), "glue/sst2")
    assert task.test.text_a == tuple(f"text {index}" for index in range(5))
    assert (len(task.train), len(task.validation)) == (27, 3)
    assert set(task.train.text_a) | set(task.validation.text_a) == {f"text {index}" for index in range(30)}
    assert task.validation.text_a != ("text 0", "text 1", "text 2")
    assert hub.load_task(str(tmp_path), "glue/sst2").validation.text_a == task.validation.text_a


def test_a_set_without_validation_keeps_its_test_split(tmp_path: Path) -> None:
    save(tmp_path, "s", features("sentence"), train=rows(20), test=rows(4))
    task = hub.load_task(str(tmp_path), "s")
    assert (len(task.train), len(task.validation), len(task.test)) == (18, 2, 4)


def test_rows_without_a_label_are_left_out(tmp_path: Path) -> None:
    some = {"premise": ["a", "b", "c"], "hypothesis": ["d", "e", "f"], "label": [0, -1, 1]}
    save(tmp_path, "snli", features("premise", "hypothesis"), train=some, validation=some, test=some)
    task = hub.load_task(str(tmp_path), "snli")
    assert task.train.text_a == ("a", "c")
    assert task.train.labels.tolist() == [0, 1]


def test_whole_numbers_may_be_minus_one_where_they_are_class_names(tmp_path: Path) -> None:
    some = {"text": ["a", "b", "c"], "label": [-1, 0, 1]}
    save(tmp_path, "tone", train=some, validation=some, test=some)
    task = hub.load_task(str(tmp_path), "tone")
    assert task.labels == ("-1", "0", "1")
    assert task.train.labels.tolist() == [0, 1, 2]


def test_a_column_is_looked_for_in_every_split(tmp_path: Path) -> None:
    texts = {"sentence": ["a", "b"]}
    good = datasets.Dataset.from_dict(rows(20), features=features("sentence"))
    bare = datasets.Dataset.from_dict(texts)
    datasets.DatasetDict(train=good, validation=good, test=bare).save_to_disk(str(tmp_path / "s"))
    task = hub.load_task(str(tmp_path), "s")
    assert task.notes[0] == ("no test split (it has no column 'label'): the validation split takes its place")
    body = datasets.Dataset.from_dict({"body": ["a"], "label": [0]})
    datasets.DatasetDict(train=good, validation=body, test=good).save_to_disk(str(tmp_path / "t"))
    with pytest.raises(FedmaskError, match=r"^task t, validation: no column 'sentence'; there are: body, label"):
        hub.load_task(str(tmp_path), "t")


def test_a_set_without_splits_is_cut_in_three(tmp_path: Path) -> None:
    reviews = {"review": [f"text {row}" for row in range(20)], "labels": [row % 2 for row in range(20)]}
    kinds = datasets.Features(
        {"review": datasets.Value("string"), "labels": datasets.ClassLabel(names=["bad", "good"])}
    )
    datasets.Dataset.from_dict(reviews, features=kinds).save_to_disk(str(tmp_path / "org" / "plain"))
    (task,) = load_tasks("hub", str(tmp_path), ["org/plain"], Reading(text="review", label="labels"))
    assert (task.labels, len(task.train), len(task.validation), len(task.test)) == (("bad", "good"), 16, 2, 2)
    with pytest.raises(FedmaskError, match=r"there are: org/plain\. Did you mean 'org/plain'\?"):
        hub.load_task(str(tmp_path), "org/plan")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_without_rows(tmp_path: Path, split: str) -> None:
    full = datasets.Dataset.from_dict(rows(20), features=features("sentence"))
    sets = dict.fromkeys(("train", "validation", "test"), full) | {split: full.select([])}
    datasets.DatasetDict(sets).save_to_disk(str(tmp_path / "s"))
    if split == "train":
        with pytest.raises(FedmaskError, match=r"^task s: the train split has no rows; give it some$"):
            hub.load_task(str(tmp_path), "s")
        return
    task = hub.load_task(str(tmp_path), "s")
    assert any("(it has no rows)" in note for note in task.notes)
    assert len(task.test) == 20


def test_a_root_that_is_the_set_itself_is_told(tmp_path: Path) -> None:
    save(tmp_path, "org/reviews", train=rows(2))
    with pytest.raises(FedmaskError) as error:
        hub.load_task(str(tmp_path / "org" / "reviews"), "reviews")
    assert str(error.value).endswith(f"name the one that it lies in: data.root={tmp_path / 'org'} data.tasks=[reviews]")
    (tmp_path / "none").mkdir()
    with pytest.raises(
        FedmaskError, match=r"there are: none, for no folder below it has a dataset_dict\.json or a sta"
    ):
        hub.load_task(str(tmp_path / "none"), "reviews")


def test_rows_left_out_are_counted(tmp_path: Path) -> None:
    some = rows(20) | {"label": [None, *(row % 2 for row in range(19))]}
    save(tmp_path, "s", train=some, validation=rows(4), test=rows(4))
    task = hub.load_task(str(tmp_path), "s")
    assert (len(task.train), task.notes) == (19, ("1 row of train without a label, left out",))


def test_a_column_that_cannot_be_read_is_one_line_and_a_fault_of_our_own_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, "s", train=rows(20), validation=rows(4), test=rows(4))

    def broken(*arguments: object) -> None:
        raise KeyError("many\nwords of a decoder")

    with monkeypatch.context() as patched:
        patched.setattr(datasets.Dataset, "__getitem__", broken)
        with pytest.raises(FedmaskError, match=r"^task s: the column 'label' cannot be read \(.*words of a decoder"):
            hub.load_task(str(tmp_path), "s")
    monkeypatch.setattr("fedmask.tasks.table.class_names", broken)
    with pytest.raises(KeyError, match="words of a decoder"):
        hub.load_task(str(tmp_path), "s")


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": {"body": ["a"], "label": [0]}}, "task s: no text column among body, label; known are text_a+"),
        ({"train": {"text": ["a"], "topic": [0]}}, "task s: no column 'label'; there are: text, topic"),
        ({"test": {"text": ["a"], "label": [0]}}, "task s: no train split; there are: test"),
        (
            {"train": {"text": ["a", "b"], "label": [0, 1]}},
            "task s: neither a test nor a validation split with labels",
        ),
        (
            {"train": {"text": ["a", "b"], "label": [0, 1]}, "test": {"text": [None], "label": [1]}},
            "task s, test, row 1: a text must be a str, not None",
        ),
    ],
)
def test_a_set_that_does_not_fit(tmp_path: Path, splits: dict[str, dict[str, list[Any]]], message: str) -> None:
    save(tmp_path, "s", **splits)
    with pytest.raises(FedmaskError) as error:
        hub.load_task(str(tmp_path), "s")
    assert str(error.value).startswith(message)


def test_a_set_that_is_not_there(tmp_path: Path) -> None:
    save(tmp_path, "org/reviews", train=rows(2))
    with pytest.raises(FedmaskError, match=r"unknown task 'org/review' in .*; there are: org/reviews\. Did you mean"):
        hub.load_task(str(tmp_path), "org/review")
    with pytest.raises(FedmaskError, match=r"data\.root=.*nowhere: no such folder"):
        hub.load_task(str(tmp_path / "nowhere"), "s")
    with pytest.raises(FedmaskError, match=r"data=hub needs data\.tasks=\[\.\.\.\]"):
        hub.load(str(tmp_path), None)


def test_a_damaged_folder_is_one_line(tmp_path: Path) -> None:
    save(tmp_path, "s", train=rows(2))
    (tmp_path / "s" / "train" / "state.json").write_text("{")
    with pytest.raises(FedmaskError, match="s: not a readable data set: ") as error:
        hub.load_task(str(tmp_path), "s")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("glue/sst2", ("nyu-mll/glue", "sst2")),
        ("org/name", ("org/name", None)),
        ("org/name/config", ("org/name", "config")),
        ("imdb", ("imdb", None)),
    ],
)
def test_the_hub_is_asked_for(monkeypatch: pytest.MonkeyPatch, name: str, expected: tuple[str, str | None]) -> None:
    asked = []

    def load_dataset(path: str, config: str | None) -> Any:
        asked.append((path, config))
        assert datasets.are_progress_bars_disabled()
        split = datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]})
        return {"train": split, "validation": split, "test": split}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert hub.load_task(None, name).labels == ("x", "y")
    assert asked == [expected]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ConnectionError("many\nlines"),
            "task glue/sst2: the hub is not reachable and nyu-mll/glue is not in its local cache; "
            "give data.root=FOLDER with a set saved by DatasetDict.save_to_disk, or take data=tsv or data=demo",
        ),
        (
            ValueError("Config name\n is missing"),
            "task glue/sst2: nyu-mll/glue cannot be loaded: Config name is missing",
        ),
    ],
)
def test_a_hub_that_does_not_answer_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def load_dataset(path: str, config: str | None) -> Any:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(FedmaskError) as raised:
        hub.load_task(None, "glue/sst2")
    assert str(raised.value) == message


def test_loading_is_silent_and_leaves_the_settings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, "s", features("sentence"), train=rows(20), test=rows(4))
    capfd.readouterr()
    assert not datasets.are_progress_bars_disabled()
    hub.load_task(str(tmp_path), "s")
    assert not datasets.are_progress_bars_disabled()
    assert capfd.readouterr() == ("", "")


def test_a_fault_of_our_own_in_reading_a_folder_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, "s", train=rows(20), validation=rows(4), test=rows(4))

    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(hub, "_read_split", broken)
    with pytest.raises(ZeroDivisionError):
        hub.load_task(str(tmp_path), "s")
