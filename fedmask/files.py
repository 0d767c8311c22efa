"""Files that are whole or not there: written under a temporary name, flushed, renamed."""

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write the file so that a reader, or a kill at any moment, sees the old content or the new, never a part."""
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
