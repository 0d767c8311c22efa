"""Files that are whole or not there: written under a temporary name, flushed, renamed."""

import os
from pathlib import Path

from fedmask.errors import FedmaskError

_SCRAPS = ".*.part"
"""The temporary names."""


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


def remove_scraps(folder: Path, in_subfolders: bool = False) -> None:
    """Remove what writes that were killed have left in a folder to which nobody writes now."""
    for scrap in list(folder.rglob(_SCRAPS) if in_subfolders else folder.glob(_SCRAPS)):
        scrap.unlink(missing_ok=True)
