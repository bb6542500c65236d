"""What a group of processes can do together, whatever carries their data: the interface, and the group of one process.

arena.py has the group that shares memory, ../mpi/communicator.py the ranks of an MPI job. Both say in `_plan` how they
carry out a call; arguments, arrays that are not contiguous and the texts of errors are dealt with here, once.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ... import checks
from ...errors import CollectiveError, ConfigError, DtypeError
from .collectives import DTYPES, UFUNCS, algorithm_of

ENDINGS = {1: "had returned from its function", 2: "had raised an exception"}  # signatures of ranks that call no more
RETURNED, RAISED = ENDINGS
TEXT_BYTES = 512  # in which a rank tells the others what it called, for their error messages
Shape = int | Sequence[int]
Action = Callable[[np.ndarray], object]  # what a call does to a flat contiguous array, in place


class Call(NamedTuple):
    """A collective call whose arguments were checked, and what error messages call it."""

    kind: str
    op: str
    root: int
    algorithm: str
    text: str


class Communicator(ABC):
    """`size` processes, of which this is number `rank`; they make the same calls in the same order.

    Arrays are NumPy's: float32, float64, int32 or int64, of any shape and size (0 too), the same shape, dtype and
    arguments on all ranks; not masked ones. Every method works in place and returns its array (or a part of it). One
    that is not contiguous is copied there and back. Results have the same bits on every rank and in every run,
    whichever rank comes first.

    Raises DtypeError for what is not such an array, ConfigError for an unknown op, algorithm or root, and on every rank
    that waits CollectiveError: when the ranks made different calls (it names them), when a rank has returned or died,
    or when the wait exceeds the time limit. After a CollectiveError every further call raises it again.
    """

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size
        self._actions: dict[tuple, Action] = {}  # of calls that were made before
        self._broken: str | None = None  # why a call failed

    def all_reduce(self, array: np.ndarray, op: str = "sum", algorithm: str = "auto") -> np.ndarray:
        """array = the sum, mean, max or min over all ranks, elementwise; NaN wins in max and min, as in NumPy.

        algorithm: a name of `collectives.ALGORITHMS`, which describes them, or "auto". The default ones add in rank
        order. Different algorithms may add in different orders, so floats may differ in the last bits between them.
        """
        return self._collective("all_reduce", array, op, 0, algorithm)

    def reduce_scatter(self, array: np.ndarray, op: str = "sum") -> np.ndarray:
        """Reduces as `all_reduce`, but each rank only its own part; the rest of its array is then undefined.

        Returns this rank's part: array.reshape(-1)[comm.part(array.size)].
        """
        return np.asarray(self._collective("reduce_scatter", array, op)).reshape(-1)[self.part(array.size)]

    def all_gather(self, array: np.ndarray) -> np.ndarray:
        """Every rank's own part (`part`) goes to all ranks. reduce_scatter, then all_gather, is an all_reduce."""
        return self._collective("all_gather", array)

    def broadcast(self, array: np.ndarray, root: int = 0) -> np.ndarray:
        """array = that of rank `root`."""
        return self._collective("broadcast", array, "sum", root)

    @abstractmethod
    def barrier(self) -> None:
        """Returns when all ranks have called it."""

    @abstractmethod
    def empty(self, shape: Shape, dtype: Any = np.float32) -> np.ndarray:
        """An array of this rank, of unknown content, in the memory on which its collectives are fastest."""

    def part(self, n: int, rank: int | None = None) -> slice:
        """The elements of a flat array of n that belong to `rank` (this one if None).

        Parts are contiguous, in rank order, and begin on multiples of 16 elements; so the last may be empty.
        """
        n = checks.integer("part: n", n, 0)
        rank = self.rank if rank is None else checks.integer("part: rank", rank, 0, self.size - 1)
        return slice(*(min(n, -(-(n * k // self.size) // 16) * 16) for k in (rank, rank + 1)))

    # --- for implementations ---

    @abstractmethod
    def _plan(self, call: Call, array: np.ndarray) -> Action:
        """How this group carries out a call with arrays of this shape and dtype; raises CollectiveError if it fails."""

    def _collective(
        self, kind: str, array: np.ndarray, op: str = "sum", root: int = 0, algorithm: str = "auto"
    ) -> np.ndarray:
        if self._broken:
            raise CollectiveError(self._broken)
        try:
            act = self._actions[kind, type(array), array.shape, array.dtype, op, root, algorithm]
        except (KeyError, AttributeError, TypeError):  # the first such call, no array, or an argument without a hash
            call = self._checked(kind, array, op, root, algorithm)
            act = self._plan(call, np.asarray(array))
            self._actions[kind, type(array), array.shape, array.dtype, op, root, algorithm] = act
        plain = np.asarray(array)  # np.matrix never has one dimension
        if plain.flags.carray:
            act(plain.reshape(-1))
            return array
        require_writeable(plain)
        copy = np.array(plain, order="C")
        act(copy.reshape(-1))
        plain[...] = copy
        return array

    def _checked(self, kind: str, array: np.ndarray, op: str, root: int, algorithm: str) -> Call:
        """Raises DtypeError or ConfigError unless a collective takes these arguments."""
        if not isinstance(array, np.ndarray) or array.dtype not in map(np.dtype, DTYPES):
            found = f"{array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
            remedy = _REMEDIES.get(array.dtype.kind, "") if isinstance(array, np.ndarray) else ""
            raise DtypeError(f"collective: expected a NumPy array of {', '.join(DTYPES)}, got {found}{remedy}")
        if isinstance(array, np.ma.MaskedArray):
            raise DtypeError(
                "collective: expected a NumPy array, got one with a mask; reduce .filled(0) and the count of valid ones"
            )
        require_writeable(array)
        if not isinstance(op, str) or op not in UFUNCS:
            raise ConfigError(f"collective: expected op to be one of {', '.join(UFUNCS)}, got {checks.shown(op)}")
        if op == "mean" and array.dtype.kind == "i":
            raise DtypeError(f"collective: expected floats for a mean, got {array.dtype}; take the sum")
        if isinstance(root, bool) or not isinstance(root, int | np.integer) or not 0 <= root < self.size:
            raise ConfigError(f"collective: expected a root from 0 to {self.size - 1}, got {checks.shown(root)}")
        algorithm_of(algorithm)
        details = {
            "all_reduce": f", {op}, {algorithm}", "reduce_scatter": f", {op}", "broadcast": f", root {root}"
        }  # fmt: skip
        text = f"{kind}({array.dtype} {array.shape}{details.get(kind, '')})"
        return Call(kind, op, int(root), algorithm, text)


_REMEDIES = {  # kind of a dtype -> what to do with arrays of it
    "b": "; send .astype('int32'), whose max is `any` and whose min is `all`",
    "u": "; send .astype('int64')",
    "i": "; send .astype('int32')",
    "f": "; send .astype('float32')",
    "c": "; send .view('float64') of complex128, which has both parts",
}


def require_writeable(array: np.ndarray) -> None:
    if not array.flags.writeable:
        raise DtypeError("collective: expected an array to write the result to, got a read-only one")


# --- calls that differ ------------------------------------------------------------------------------------------------

_signatures: dict[str, int] = {}


def signature_of(text: str) -> int:
    """A number above those of ENDINGS that stands for a call."""
    if text not in _signatures:
        _signatures[text] = 8 + int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")
    return _signatures[text]


def encoded(text: str) -> np.ndarray:
    """(TEXT_BYTES,) uint8: the beginning of a text, and zeros."""
    return np.frombuffer(text.encode()[:TEXT_BYTES].ljust(TEXT_BYTES, b"\0"), np.uint8)


def mismatch(number: int, signatures: Sequence[int], texts: np.ndarray) -> str:
    """The error message for call `number`, which is not the same on all ranks.

    signatures: of the ranks' calls. texts: (size, TEXT_BYTES) uint8, what each rank called, or why it raised.
    """
    ranks: dict[str, list[int]] = {}
    for rank, signature in enumerate(signatures):
        text = texts[rank].tobytes().rstrip(b"\0").decode(errors="replace")
        call = f"raised {text}" if signature == RAISED and text else ENDINGS.get(signature, f"called {text}")
        ranks.setdefault(call, []).append(rank)
    calls = "; ".join(f"{ranks_named(who)} {call}" for call, who in ranks.items())
    return f"collective call {number} is not the same on all ranks: {calls}"


def ranks_named(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


# --- a group of one ---------------------------------------------------------------------------------------------------


class SerialCommunicator(Communicator):
    """A group of one: this process. Arguments are checked as in any group, and there is nothing to do."""

    def __init__(self) -> None:
        super().__init__(0, 1)

    def _plan(self, call, array):
        return lambda x: None

    def barrier(self):
        pass

    def empty(self, shape, dtype=np.float32):
        shape = shape if isinstance(shape, tuple | list) else (shape,)
        return np.empty(checks.lengths("empty", shape), checks.dtype("empty", dtype))
