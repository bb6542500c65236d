"""What a group of processes can do together, whatever carries it: the interface, and the group of one process.

arena.py has the group that shares memory, mpi.py the one that MPI started.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import ConfigError, DtypeError
from .job import started_as

OPS = ("sum", "mean", "max", "min")
DTYPES = tuple(map(np.dtype, ("float32", "float64", "int32", "int64")))
UFUNCS = {"sum": np.add, "mean": np.add, "max": np.maximum, "min": np.minimum}
GONE = {1: "had returned from its function", 2: "had raised an exception"}  # signatures of ranks that call no more
RETURNED, RAISED = GONE
Shape = int | Sequence[int]


class Communicator(ABC):
    """`size` processes, of which this is number `rank`; they make the same calls in the same order.

    Arrays are NumPy's: float32, float64, int32 or int64, of any shape and size (0 too), the same shape, dtype and
    arguments on all ranks. Every method works in place and returns its array (or a part of it). One that is not
    contiguous is copied there and back. Results have the same bits on every rank and in every run, whoever comes first.

    Raises DtypeError for what is not such an array, ConfigError for an unknown op, algorithm or root, and on every rank
    that waits CollectiveError: when the ranks made different calls (it names them), when a rank has returned or died,
    or when the wait exceeds the time limit.
    """

    rank: int
    size: int

    @abstractmethod
    def all_reduce(self, array: np.ndarray, op: str = "sum", algorithm: str = "auto") -> np.ndarray:
        """array = the sum, mean, max or min over all ranks, elementwise; NaN wins in max and min, as in NumPy.

        algorithm: a name of `collectives.ALGORITHMS`, which describes them, or "auto". The default ones add in rank
        order. Different algorithms may add in different orders, so floats may differ in the last bits between them.
        """

    @abstractmethod
    def reduce_scatter(self, array: np.ndarray, op: str = "sum") -> np.ndarray:
        """Reduces as `all_reduce`, but each rank only its own part; the rest of its array is then undefined.

        Returns this rank's part: array.reshape(-1)[comm.part(array.size)].
        """

    @abstractmethod
    def all_gather(self, array: np.ndarray) -> np.ndarray:
        """Every rank's own part (`part`) goes to all ranks. reduce_scatter, then all_gather, is an all_reduce."""

    @abstractmethod
    def broadcast(self, array: np.ndarray, root: int = 0) -> np.ndarray:
        """array = that of rank `root`."""

    @abstractmethod
    def barrier(self) -> None:
        """Returns when all ranks have come here."""

    @abstractmethod
    def empty(self, shape: Shape, dtype: Any = np.float32) -> np.ndarray:
        """An array of this rank, of unknown content, where its collectives are the fastest: nothing is copied."""

    def part(self, n: int, rank: int | None = None) -> slice:
        """The elements of a flat array of n that belong to `rank` (this one if None).

        Parts are contiguous, in rank order, and begin on multiples of 16 elements; so the last may be empty.
        """
        rank = self.rank if rank is None else rank
        return slice(*(min(n, -(-(n * k // self.size) // 16) * 16) for k in (rank, rank + 1)))


def checked(array: np.ndarray, op: str, root: int, size: int) -> None:
    """Raises DtypeError or ConfigError unless a collective takes these arguments."""
    if not isinstance(array, np.ndarray) or array.dtype not in DTYPES:
        found = f"{array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
        raise DtypeError(f"collective: expected a NumPy array of {', '.join(map(str, DTYPES))}, got {found}")
    if not array.flags.writeable:
        raise DtypeError("collective: expected an array to write the result to, got a read-only one")
    if op not in OPS:
        raise ConfigError(f"collective: expected op to be one of {', '.join(OPS)}, got {op!r}")
    if op == "mean" and array.dtype.kind == "i":
        raise DtypeError(f"collective: expected floats for a mean, got {array.dtype}; take the sum")
    if isinstance(root, bool) or not isinstance(root, int | np.integer) or not 0 <= root < size:
        raise ConfigError(f"collective: expected a root from 0 to {size - 1}, got {root!r}")


# --- what error messages call things ----------------------------------------------------------------------------------


def ranks_named(ranks: Sequence[Any]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def named(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape}"


_signatures: dict[str, int] = {}


def signature_of(text: str) -> int:
    """A number above those of GONE that stands for a call."""
    if text not in _signatures:
        _signatures[text] = 8 + int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")
    return _signatures[text]


def world() -> Communicator:
    """All ranks of the job that MPI started, which all of them call; or a group of this process alone."""
    job = started_as()
    if job is None or job[1] == 1:
        return SerialCommunicator()
    from ..mpi import communicator as mpi

    return mpi.world()


# --- a group of one ---------------------------------------------------------------------------------------------------


class SerialCommunicator(Communicator):
    """A group of one: this process. Arguments are checked as in any group, and there is nothing to do."""

    rank, size = 0, 1

    def all_reduce(self, array, op="sum", algorithm="auto"):
        from .collectives import algorithm_of

        checked(array, op, 0, 1)
        algorithm_of(algorithm)
        return array

    def reduce_scatter(self, array, op="sum"):
        checked(array, op, 0, 1)
        return array.reshape(-1)

    def all_gather(self, array):
        return self.broadcast(array)

    def broadcast(self, array, root=0):
        checked(array, "sum", root, 1)
        return array

    def barrier(self):
        pass

    def empty(self, shape, dtype=np.float32):
        return np.empty(shape, dtype)
