"""A folder of one process alone: whoever comes second is told, and no lock outlives its process. A home's paths."""

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from fedmask.errors import FedmaskError
from fedmask.files import LOCK, locked, output_fault, path_fault, with_home


def hold(folder: Path, sending: Connection) -> None:
    with locked(folder, "refused"):
        sending.send("held")
        signal.pause()


def test_whoever_comes_second_is_told_until_the_first_is_killed(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("fork")
    receiving, sending = processes.Pipe(duplex=False)
    first = processes.Process(target=hold, args=(tmp_path / "run", sending))
    first.start()
    assert receiving.recv() == "held"
    with pytest.raises(FedmaskError, match=r"^refused$"), locked(tmp_path / "run", "refused"):
        pytest.fail("two hold one folder")
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    assert (tmp_path / "run" / LOCK).exists()
    with locked(tmp_path / "run", "refused"):
        (tmp_path / "run" / "file").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]


def test_a_folder_that_stays_empty_is_gone_and_can_be_held_again(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError), locked(tmp_path / "run", "refused"):
            raise RuntimeError
        assert not (tmp_path / "run").exists()


def test_a_lock_that_its_holder_has_just_removed_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def open_before_it_is_removed(path: Path, mode: str = "r") -> object:
        file = opened(path, mode)
        monkeypatch.undo()
        path.unlink()
        return file

    monkeypatch.setattr(Path, "open", open_before_it_is_removed)
    with locked(tmp_path, "refused"):
        assert (tmp_path / LOCK).exists()
        with pytest.raises(FedmaskError), locked(tmp_path, "refused"):
            pytest.fail("two hold one folder")


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("~", "/home/me"),
        ("~/", "/home/me/"),
        ("~/a b/~", "/home/me/a b/~"),
        ("~root/x", "/root/x"),
        ("a/~/b", "a/~/b"),
        ("./~/b", "./~/b"),
        ("a~", "a~"),
        ("", ""),
    ],
)
def test_a_leading_tilde_is_a_home_and_nothing_else_is_changed(
    written: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert with_home(written) == path
    assert path_fault(with_home(written)) is None


def test_what_names_no_file_is_told() -> None:
    gone = "~nobody-has-this-name/x"
    assert with_home(gone) == gone
    fault = path_fault(gone)
    assert fault == f"there is no home folder ~nobody-has-this-name; a name with a ~ in front is written ./{gone}"
    assert path_fault("a\0b") == "no path has a NUL character"
    for variable in ("$HOME/runs", "runs/$USER", "a${X}b", "${"):
        assert "write the path out" in str(path_fault(variable))
    assert [path_fault(path) for path in ("a$", "5$", "$5", "a$/b", "(x)[y]{z}$")] == [None] * 5


def test_nobody_writes_into_the_root_of_all_folders() -> None:
    assert [output_fault(path) is None for path in ("/", "//", "/tmp/..", "/runs", "runs", "")] == [False] * 3 + [
        True
    ] * 3
    assert output_fault("a\0b") == path_fault("a\0b")
