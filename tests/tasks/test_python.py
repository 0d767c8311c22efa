"""Tasks from a module of one's own."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

import fedmask
from fedmask.errors import FedmaskError
from fedmask.tasks import load_tasks
from fedmask.tasks.python import _modules_of, load, stamp

MODULE = """
from fedmask.tasks.task import Task
from neighbour import ROWS

print("ran", end="")
reviews = Task("reviews", train=ROWS, validation=ROWS, test=ROWS)


def made():
    import neighbour
    return Task("made", train=neighbour.ROWS, validation=ROWS, test=ROWS)


number = 3


def broken():
    raise KeyError("no\\nsuch")


def bad_rows():
    return Task("bad", train=[], validation=ROWS, test=ROWS)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_tasks.py").write_text(MODULE)
    (tmp_path / "neighbour.py").write_text("ROWS = [('good', 'yes'), ('bad', 'no')]\n")
    (tmp_path / "wrong.py").write_text("x = 1\ndef oops(:\n")
    (tmp_path / "needs.py").write_text("x = 1\nimport not_installed_anywhere\n")
    monkeypatch.delitem(sys.modules, "neighbour", raising=False)
    return tmp_path


def test_an_attribute_or_a_function(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = load_tasks("python", str(folder), ["my_tasks:made", "my_tasks:reviews"])
    assert [task.name for task in tasks] == ["made", "reviews"]
    assert tasks[0].labels == ("no", "yes")
    assert capsys.readouterr().out == "ran"


def test_the_import_path_is_left_alone(folder: Path) -> None:
    before = list(sys.path)
    load(str(folder), ["my_tasks:made"])
    with pytest.raises(FedmaskError):
        load(str(folder), ["wrong:x"])
    assert sys.path == before
    assert "my_tasks" not in sys.modules
    assert "wrong" not in sys.modules


def test_a_module_may_have_the_name_of_a_loaded_one(folder: Path) -> None:
    import json

    (folder / "json.py").write_text((folder / "my_tasks.py").read_text())
    assert load(str(folder), ["json:reviews"])[0].name == "reviews"
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_tasks", r"""data\.tasks: 'my_tasks' is not "module:attribute"$"""),
        (":reviews", r"""data\.tasks: ':reviews' is not "module:attribute"$"""),
        ("my_task:reviews", r"my_task\.py: no such file; .* has: my_tasks, needs, neighbour, wrong$"),
        (
            "my_tasks:review",
            r"unknown task 'review' in my_tasks\.py; there are: reviews\. Did you mean 'reviews'\?$",
        ),
        ("my_tasks:number", r"data\.tasks: my_tasks:number is a int, not a fedmask\.Task or a function giving one$"),
        ("my_tasks:broken", r"my_tasks\.py:18: KeyError: 'no\\nsuch'$"),
        ("my_tasks:bad_rows", r"^task bad, train: there are no rows; give at least one$"),
        ("wrong:x", r"wrong\.py: SyntaxError: invalid syntax \(wrong\.py, line 2\)$"),
        ("needs:x", r"needs\.py:2: ModuleNotFoundError: No module named 'not_installed_anywhere'$"),
    ],
)
def test_a_fault_is_one_line_with_its_place(folder: Path, name: str, message: str) -> None:
    with pytest.raises(FedmaskError, match=message) as error:
        load(str(folder), [name])
    assert "\n" not in str(error.value)


def test_modules_are_run_anew_and_are_gone_afterwards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (before,) = load(str(folder), ["my_tasks:made"])
    (folder / "neighbour.py").write_text("ROWS = [('good', 'no'), ('bad', 'yes')]\n")  # as long as before
    assert "neighbour" not in sys.modules
    (after,) = load(str(folder), ["my_tasks:made"])
    assert before.train.labels.tolist() == after.train.labels.tolist()[::-1]
    mine = ModuleType("neighbour")
    mine.__file__ = str(folder / "neighbour.py")
    monkeypatch.setitem(sys.modules, "neighbour", mine)  # a notebook has imported it
    assert load(str(folder), ["my_tasks:made"])[0].train.digest == after.train.digest
    assert sys.modules["neighbour"] is mine
    assert not list(folder.rglob("*.pyc"))


def test_the_program_itself_is_not_run_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where it lies in the folder of the modules, as with data.root=. in a copy of the project."""
    root = Path(fedmask.__file__).parents[1]
    (tmp_path / "tasks.py").write_text(
        "import fedmask, torch\nonly = fedmask.Task('t', *[[('a', 'x'), ('b', 'y')]] * 3)\n"
    )
    monkeypatch.setattr("fedmask.tasks.python._modules_in", lambda folder: [])
    before = set(sys.modules)
    assert not {name for name in _modules_of(root) if name.partition(".")[0] in ("fedmask", "torch", "numpy")}
    (task,) = load(str(tmp_path), ["tasks:only"])
    assert type(task) is fedmask.Task
    assert before <= set(sys.modules)


def test_a_stamp_is_of_every_file_that_was_opened(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    rows = tmp_path_factory.mktemp("elsewhere") / "rows.csv"
    rows.write_text("good,yes\nbad,no\n")
    (folder / "reading.py").write_text(
        "from fedmask import Task\nfrom neighbour import ROWS\n"
        f"mine = [line.split(',') for line in open({str(rows)!r}).read().split()]\n"
        "only = Task('only', mine, ROWS, ROWS)\n"
    )
    load(str(folder), ["reading:only"])
    first = stamp(str(folder), ["reading:only"])
    assert {str(rows), str(folder / "reading.py"), str(folder / "neighbour.py")} == set(first)
    rows.write_text("good,no\nbad,yes\n")
    changed = stamp(str(folder), ["reading:only"])
    assert {path for path in first if first[path] != changed[path]} == {str(rows)}


def test_a_fault_of_our_own_keeps_its_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise KeyError("a bug of fedmask's")

    monkeypatch.setattr("fedmask.tasks.task.notes_on", broken)
    with pytest.raises(KeyError, match="a bug of fedmask's"):
        load(str(folder), ["my_tasks:made"])


def test_a_module_that_ends_the_program_does_not(folder: Path) -> None:
    (folder / "ends.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(FedmaskError, match=r"ends\.py:2: SystemExit: 0$"):
        load(str(folder), ["ends:x"])


def test_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(FedmaskError, match=r"data=python needs data\.root=FOLDER and data\.tasks="):
        load(None, ["a:b"])
    with pytest.raises(FedmaskError, match=r"data=python needs data\.root=FOLDER and data\.tasks="):
        load(str(tmp_path), None)
    with pytest.raises(FedmaskError, match=r"data\.root=.*/nowhere: no such folder"):
        load(str(tmp_path / "nowhere"), ["a:b"])
