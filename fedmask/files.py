"""Files that are whole or not there: written under a temporary name, flushed, renamed. Folders of one process alone."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedmask.errors import FedmaskError

LOCK = ".lock"
"""The file in a folder by which a process holds the folder; what a killed process leaves of it holds nothing."""

_SCRAPS = ".*.part"
"""The temporary names."""

_VARIABLE = re.compile(r"\$(\{[^{}]*\}?|[A-Za-z_][A-Za-z0-9_]*)")
"""Of a shell's environment, which a path may have been meant to begin with."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write the file so that a reader, or a kill at any moment, sees the old content or the new, never a part.

    Its folder is flushed too, so that a file that is written later is not on the disk before this one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


@contextmanager
def locked(folder: Path, refusal: str) -> Iterator[None]:
    """Hold a folder, made where there is none, against every other process; the kernel lets go of it at a kill, too.

    A folder with nothing in it in the end is removed. Raises FedmaskError(refusal) where it is held already.
    """
    path = folder / LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
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
