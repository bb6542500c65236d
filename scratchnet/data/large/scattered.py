"""Rows that lie scattered over machines, each with the parts that were written there, until a job brings them together.

    rows-.../features, labels    as in a whole store, at their places; what other machines have is a hole
    rows-.../part-N              the part that begins with row N is there, to its last byte

So a part never moves on its own machine, and whoever is interrupted goes on with what it has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ... import checks
from ...errors import DataError
from ...formats.atomic import write_atomically
from .stored import FEATURES, LABELS, StoredRows, finish, forget_others, opened, row_sizes

PIECE = 1 << 18  # int32 numbers of a message, 1 MB: what a rank holds in memory
WRITER = "writer"  # the file that says which of the ranks that share a folder writes to it


class ScatteredRows:
    """What `from_spark(..., shared=False)` returns: the rows of a DataFrame, on the disks of the machines of executors.

    It travels to the ranks of a job as names and numbers; there `all_gather` makes a data set of it.
    """

    def __init__(self, files: str, bounds: Sequence[int], columns: int, about: Mapping[str, Any]):
        # bounds: the first row of each part, and the number of all rows. about: for `finish`.
        self.files, self.bounds, self.columns, self.about = Path(files), list(bounds), columns, dict(about)

    def __len__(self) -> int:
        return self.bounds[-1]

    def all_gather(self, comm: Any) -> StoredRows:
        """The rows as a data set on every rank: afterwards each machine of the job has the store as a whole.

        comm: the Communicator of the job, all of whose ranks call this. Parts that a machine lacks come to it over
        `comm`, 1 MB at a time; a machine keeps what it has, so a restart of the job sends only what is missing, and
        machines that come later get all from the others. Raises DataError where no machine of the job has a part, or
        a disk cannot be written.
        """
        if not (hasattr(comm, "all_reduce") and hasattr(comm, "broadcast")):
            checks.refuse("ScatteredRows.all_gather: comm", "the Communicator of the job", comm)
        try:
            self.files.mkdir(parents=True, exist_ok=True)
            write_atomically(self.files / WRITER, b"%d" % comm.rank)
            comm.barrier()
            writes = int((self.files / WRITER).read_bytes()) == comm.rank
            found = np.zeros((comm.size, len(self.bounds) - 1), np.int32)
            found[comm.rank] = self._present()
            self._fill(comm, comm.all_reduce(found).astype(bool), writes)
            if writes:
                finish(self.files, len(self), **self.about)
                forget_others(self.files)
            comm.barrier()
        except OSError as error:
            raise DataError(f"{self.files}: cannot be written or read ({error.strerror})") from None
        if not all(self._present()):
            raise DataError(f"{self.files}: expected all {len(self)} rows, found holes; remove the folder")
        return StoredRows(self.files.parent)

    def _present(self) -> list[bool]:
        return [marker(self.files, first).exists() for first in self.bounds[:-1]]

    def _fill(self, comm: Any, has: np.ndarray, writes: bool) -> None:
        """has: (ranks, parts), which rank has which part in its folder. writes: this rank does, for its folder."""
        if not (known := has.any(axis=0)).all():
            part = int(known.argmin())
            raise DataError(
                f"{self.files}: rows {self.bounds[part]} to {self.bounds[part + 1] - 1}: expected a machine of this "
                "job that has them, found none; ask for ranks on all machines of the executors, or call from_spark anew"
            )
        buffer = np.empty(PIECE, np.int32)
        for part in np.flatnonzero(~has.all(axis=0)).tolist():
            owners, bounds = np.flatnonzero(has[:, part]), self.bounds[part : part + 2]
            root, lacks = int(owners[part % len(owners)]), writes and not has[comm.rank, part]
            for name, size in zip((FEATURES, LABELS), row_sizes(self.columns, self.about["classes"]), strict=True):
                with opened(self.files / name) as file:
                    file.truncate(len(self) * size)
                    for at, numbers in _pieces(bounds[0] * size // 4, bounds[1] * size // 4, buffer):
                        file.seek(4 * at)
                        if comm.rank == root and file.readinto(numbers) != numbers.nbytes:  # type: ignore[attr-defined]
                            raise DataError(f"{self.files / name}: expected {len(self) * size} bytes, found fewer")
                        comm.broadcast(numbers, root)
                        if lacks:
                            file.write(numbers.data)
            if lacks:
                seal(self.files, bounds[0])


def _pieces(first: int, last: int, buffer: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(where, memory) of the numbers from `first` to `last`. Lengths are powers of two: ranks plan each but once."""
    while first < last:
        numbers = buffer[: min(len(buffer), 1 << ((last - first).bit_length() - 1))]
        yield first, numbers
        first += len(numbers)


def marker(files: Path, first: int) -> Path:
    return files / f"part-{first}"


def seal(files: Path, first: int) -> None:
    """The part that begins with this row is there, also after the machine has lost its power."""
    for name in (FEATURES, LABELS):
        with opened(files / name) as file:
            os.fsync(file.fileno())
    marker(files, first).touch()
