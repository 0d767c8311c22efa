"""Files that are whole or not there: written under a temporary name, flushed, renamed. Folders of one process alone;
folders that others cannot write."""

import fcntl
import os
import re
import secrets
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fedmask.errors import FedmaskError

LOCK = ".lock"
"""The file in a folder by which a process holds the folder; what a killed process leaves of it holds nothing."""

_SCRAPS = ".*.part"
"""The temporary names."""

_VARIABLE = re.compile(r"\$(\{[^{}]*\}?|[A-Za-z_][A-Za-z0-9_]*)")
"""Of a shell's environment, which a path may have been meant to begin with."""


def write_atomically(path: Path, content: bytes, private: bool = False) -> None:
    """Write the file so that a reader, or a kill at any moment, sees the old content or the new, never a part.

    Its folder is flushed too, so that a file that is written later is not on the disk before this one. private: whether
    its owner alone may read it; other files are readable as the umask has it, and never writable by everybody.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with new_file(temporary, private) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


def new_file(path: Path, private: bool) -> BinaryIO:
    """A file that was not there: never one, or a link to one, that somebody has put in its place. private: as of
    `write_atomically`. Raises FileExistsError where there is something."""
    how = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, how, 0o600 if private else 0o664), "wb")


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path, private: bool = False) -> None:
    """Make a folder and those above it, where there are none: whatever the umask says, not everybody may write into
    them. private: whether the last of them is its owner's alone; one that is there already stays as it is."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    for each in reversed(missing):
        with suppress(FileExistsError):  # another process was quicker
            each.mkdir(mode=0o700 if private and each == path else 0o775)
    if not path.is_dir():
        path.mkdir()  # raises: it is a file, or a link that leads nowhere


def own_folder(path: Path, remedy: str, tighten: bool = False) -> None:
    """Make a folder that is its owner's alone, where there is none, and hold one that is there against `check_own`.

    tighten: whether one that is this user's is closed to all others instead of being refused.
    """
    make_folder(path, private=True)
    if tighten and path.stat().st_uid == os.geteuid() and stat.S_IMODE(path.stat().st_mode) & _OTHERS:
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~_OTHERS)
    check_own(path, remedy)


_OTHERS = 0o077
_OTHERS_WRITE = 0o022


def check_own(path: Path, remedy: str) -> None:
    """Raises FedmaskError where somebody else could put files into a folder: it, or the link that leads to it, is
    another user's (the administrator's apart), or others may write into it. remedy: what to do instead of mending it.
    """
    found = path.stat()
    if not {found.st_uid, path.lstat().st_uid} <= {0, os.geteuid()}:
        raise FedmaskError(f"{path}: this folder is another user's, who may put anything there; {remedy}")
    if found.st_mode & _OTHERS_WRITE:
        raise FedmaskError(
            f"{path}: others may write into this folder; close it by `chmod go-w {shlex.quote(str(path))}`, or {remedy}"
        )


def is_own(path: Path) -> bool:
    """Whether a file is this user's or the administrator's, and nobody else may write into it."""
    found = path.stat()
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & _OTHERS_WRITE


def home(variable: str) -> Path:
    """The user's home folder. variable: of the environment, that names a folder of files instead of one at home.

    Raises FedmaskError for a user that has none, as in a container of an unnamed user.
    """
    try:
        return Path.home()
    except RuntimeError as error:
        raise FedmaskError(f"this user has no home folder; name a folder for files with {variable}=DIR") from error


def with_home(path: str) -> str:
    """The path with a home folder in the place of a leading ~ or ~USER, for a shell puts it there at the beginning of a
    word only. Unchanged where there is no such home folder, which `path_fault` tells.
    """
    return os.path.expanduser(path)  # noqa: PTH111 (pathlib would drop the ./ which says that a ~ is part of a name)


def path_fault(path: str) -> str | None:
    """Why this, after `with_home`, names no file; None where it may."""
    if path.startswith("~"):
        return f"there is no home folder {path.partition('/')[0]}; a name with a ~ in front is written ./{path}"
    if (variable := _VARIABLE.search(path)) is not None:
        return (
            f"nobody puts its value in the place of {variable[0]}, for a shell does that outside of single quotes "
            "only; write the path out"
        )
    return "no path has a NUL character" if "\0" in path else None


def output_fault(path: str) -> str | None:
    """As path_fault, of a folder to write into."""
    fault = path_fault(path)
    is_root = fault is None and os.path.realpath(path) == os.sep
    return "this is the root of all folders; name one of its own" if is_root else fault


def remove_scraps(folder: Path, in_subfolders: bool = False) -> None:
    """Remove what writes that were killed have left in a folder to which nobody writes now."""
    for scrap in list(folder.rglob(_SCRAPS) if in_subfolders else folder.glob(_SCRAPS)):
        scrap.unlink(missing_ok=True)


def through_no_link(path: str, flags: int) -> int:
    """For `open`: a file that is there is opened, or made; a link in its place is an error."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o664)


@contextmanager
def locked(folder: Path, refusal: str) -> Iterator[None]:
    """Hold a folder, made where there is none, against every other process; the kernel lets go of it at a kill, too.

    A folder with nothing in it in the end is removed. Raises FedmaskError(refusal) where it is held already.
    """
    path = folder / LOCK
    while True:
        make_folder(folder)
        with open(path, "a", opener=through_no_link) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise FedmaskError(refusal) from error
            if not _is_open_at(path, file.fileno()):  # removed by whoever held it until now
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
                with suppress(OSError):
                    folder.rmdir()
            return


def _is_open_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
