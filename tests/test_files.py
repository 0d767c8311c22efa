"""A folder of one process alone: whoever comes second is told, and no lock outlives its process. A home's paths. What
is written goes into no file that somebody else has put there, and into no folder that others write."""

import multiprocessing
import os
import signal
import stat
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from fedmask.errors import FedmaskError
from fedmask.files import (
    LOCK,
    check_own,
    locked,
    make_folder,
    output_fault,
    own_folder,
    path_fault,
    with_home,
    write_atomically,
)


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


# ----------------------------------------------------------------------------------------------------------------------
# Whose files
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    """Of this process, until the test ends."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_no_file_that_waits_under_the_temporary_name_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "victim").write_text("mine")
    monkeypatch.setattr("fedmask.files.secrets.token_hex", lambda number: "known")
    for name in (f".a.{os.getpid()}.part", f".a.{os.getpid()}-known.part"):
        (tmp_path / name).symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "a", b"theirs")
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (tmp_path / "a").exists()


def test_a_file_is_written_though_somebody_has_guessed_the_old_temporary_name(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / f".a.{os.getpid()}.part").symlink_to(tmp_path / "victim")
    write_atomically(tmp_path / "a", b"theirs")
    assert (tmp_path / "victim").read_text() == "mine"
    assert (tmp_path / "a").read_bytes() == b"theirs"
    assert not (tmp_path / "a").is_symlink()


def test_a_private_file_is_its_owners_alone_and_no_file_or_folder_is_everybodys(
    tmp_path: Path, umask: Callable[[int], int]
) -> None:
    umask(0)
    write_atomically(tmp_path / "one" / "two" / "private", b"", private=True)
    write_atomically(tmp_path / "one" / "two" / "public", b"")
    assert mode_of(tmp_path / "one" / "two" / "private") == 0o600
    for path in ("one", "one/two", "one/two/public"):
        assert not mode_of(tmp_path / path) & 0o002
    umask(0o027)
    write_atomically(tmp_path / "one" / "two" / "public", b"")
    assert mode_of(tmp_path / "one" / "two" / "public") == 0o640


def test_a_folder_of_ones_own_is_closed_to_others(tmp_path: Path, umask: Callable[[int], int]) -> None:
    umask(0)
    own_folder(tmp_path / "a" / "b", "name another")
    assert mode_of(tmp_path / "a" / "b") == 0o700
    (tmp_path / "a" / "b").chmod(0o777)
    with pytest.raises(FedmaskError, match="others may write into this folder; close it by `chmod go-w"):
        own_folder(tmp_path / "a" / "b", "name another")
    assert mode_of(tmp_path / "a" / "b") == 0o777
    own_folder(tmp_path / "a" / "b", "name another", tighten=True)
    assert mode_of(tmp_path / "a" / "b") == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
@pytest.mark.parametrize("what", ["folder", "link"])
def test_another_users_folder_is_refused(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o700)
    if what == "link":
        folder = tmp_path / "link"
        folder.symlink_to(tmp_path / "theirs")
    os.chown(folder, 4321, 4321, follow_symlinks=False)
    for tighten in (False, True):
        with pytest.raises(FedmaskError, match="another user's, who may put anything there; name another"):
            own_folder(folder, "name another", tighten)
    with pytest.raises(FedmaskError, match="another user's"):
        check_own(folder, "name another")


def test_a_folder_in_the_place_of_a_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        make_folder(tmp_path / "file" / "inner")
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "file")


def test_a_lock_is_not_made_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / LOCK).symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match=LOCK), locked(tmp_path / "folder", "held"):
        pass
    assert not (tmp_path / "victim").exists()
