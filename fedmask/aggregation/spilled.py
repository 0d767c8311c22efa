"""Vectors for the rules that need all of them at once: on disk, read back a block of columns at a time.

n vectors (k,) take 4 n k bytes of a file without a name in the folder for temporary files (TMPDIR), and memory for one
block, whatever n and k: at most MAX_BLOCK_VALUES numbers, or n where n is more.
"""

import tempfile
import weakref
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fedmask.errors import FedmaskError

MAX_BLOCK_VALUES = 2**22
"""Numbers in a block: 32 MiB of float64."""


class SpilledVectors:
    """float32 vectors (k,), appended one by one."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it is closed with this object)
        weakref.finalize(self, self._file.close)
        self.num_vectors = 0

    def append(self, values: NDArray[np.float32]) -> None:
        """Raises FedmaskError for another shape, and where the disk is full."""
        if values.shape != (self._size,):
            raise FedmaskError(f"vectors of {self._size} values: found one of shape {values.shape}")
        try:
            self._file.write(np.ascontiguousarray(values, np.float32).data)
            self._file.flush()
        except OSError as error:
            raise FedmaskError(
                f"{self.num_vectors + 1} updates of {self._size:,} values cannot be held in {tempfile.gettempdir()}: "
                f"{error.strerror}; set TMPDIR to a folder with room, or take server.combine=mean"
            ) from error
        self.num_vectors += 1

    def rows(self) -> Iterator[NDArray[np.float32]]:
        """The vectors, (k,) each, in the order in which they were appended."""
        if self.num_vectors:
            empty = np.empty((self.num_vectors, 0), np.float32)
            yield from (
                np.memmap(self._file, np.float32, "r", shape=(self.num_vectors, self._size)) if self._size else empty
            )

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Columns and the vectors' values in them, float64 (n, width), -0.0 made 0.0; blocks cover 0..k in order.

        Raises FedmaskError where nothing was appended.
        """
        if not self.num_vectors:
            raise FedmaskError("a combination of no updates: no client's reply was accepted")
        if not self._size:
            return
        vectors = np.memmap(self._file, np.float32, "r", shape=(self.num_vectors, self._size))
        width = max(1, MAX_BLOCK_VALUES // self.num_vectors)
        for start in range(0, self._size, width):
            columns = slice(start, min(start + width, self._size))
            # -0.0 sorts like 0.0: where both stand in a column, their order would show in the result's sign.
            yield columns, vectors[:, columns].astype(np.float64) + 0.0
