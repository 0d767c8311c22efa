"""scripts/simulate.py in a process that kills itself while it writes a file, half of which is on the disk then:

    python scripts/faults/dying.py PART_OF_PATH NUMBER [key=value ...]

It dies in the write of the NUMBERth file (from 1) with PART_OF_PATH in its path; where there are fewer, it ends as
simulate.py does.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def die_in_write(work: Callable[[], object], part_of_path: str, number: int) -> None:
    """Do the work in this process, which ends with half of the content written at this write of such a file."""
    import fedmask.files

    new_file, left = fedmask.files.new_file, [number]

    def new_file_(path: Path, private: bool) -> Any:
        file = new_file(path, private)
        if part_of_path in str(path):
            left[0] -= 1
            if not left[0]:
                return _DyingFile(file)
        return file

    fedmask.files.new_file = new_file_  # the process ends here
    work()


class _DyingFile:
    def __init__(self, file: Any) -> None:
        self._file = file

    def __enter__(self) -> "_DyingFile":
        return self

    def __exit__(self, *_: object) -> None: ...

    def write(self, content: bytes) -> None:
        self._file.write(content[: len(content) // 2])
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # where simulate.py is
    import simulate

    part_of_path, number, *overrides = sys.argv[1:]
    die_in_write(lambda: sys.exit(simulate.main(overrides)), part_of_path, int(number))
