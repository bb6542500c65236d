"""The communicator of processes that MPI started, on one machine or on many, through mpi4py.

    mpirun -n 4 python program.py        Open MPI, MPICH and their kin; srun does the same under Slurm

Only arrays travel, by the methods of mpi4py that begin with a capital letter: nothing is ever pickled. Every call
begins with a meeting, in which each rank shows a few words. So calls that differ are named instead of deadlocking, and
whoever waits there, waits politely; the message itself then finds all ranks ready.
"""

import contextlib
import functools
import struct
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...errors import CollectiveError, ConfigError
from ..comm.collectives import ALGORITHMS, algorithm_of
from ..comm.communicator import GONE, RAISED, RETURNED, UFUNCS, Communicator, checked, named, ranks_named, signature_of
from ..comm.job import started_as, tell_end
from .watch import PATIENCE, Watch

ORDERS = ("exact", "fast")
WORDS = 5  # int64 that a rank shows at a meeting: the call's signature, and what the caller adds
ROW, NO_WORDS = struct.Struct(f"{WORDS}q"), (WORDS - 1) * (0,)
SPINS = 2000  # looks before a rank that waits begins to sleep between them: about a millisecond
NAP = 5e-5  # seconds
TEXT = 512  # bytes in which a rank says what it called, for the others' error messages


@functools.cache
def library() -> Any:
    """mpi4py's module MPI, whose import starts MPI. Raises ConfigError where that cannot be."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"MPI: expected mpi4py (pip install mpi4py) and an MPI, got: {reason}") from None
    started = started_as()
    if started and started[1] != MPI.COMM_WORLD.size:
        raise ConfigError(
            f"MPI: expected {started[1]} ranks, as this process was started, got {MPI.COMM_WORLD.size}: "
            f"the starter is not of the MPI that mpi4py found, {MPI.Get_library_version().split(',')[0].strip()}"
        )
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise ConfigError("MPI: expected one that takes calls of several threads (MPI_THREAD_MULTIPLE), got another")
    return MPI


@functools.cache
def world() -> "MpiCommunicator":
    """All ranks of the job, made at the first call, which all of them make; at the end of the process it is left."""
    comm = MpiCommunicator()
    tell_end(comm.close)
    return comm


def run(fn: Callable, args: tuple, timeout: float | None) -> list:
    """`launch.run` in a job of several ranks: `fn(comm, *args)` once on this rank; [its result].

    An exception ends the job: it is printed with its traceback, and all other ranks are ended. Of one that all ranks
    raise, because their calls differed, they end by themselves.
    """
    comm = world()
    comm.timeout = timeout
    try:
        return [fn(comm, *args)]
    except BaseException as error:
        if hasattr(error, "said_elsewhere"):
            raise
        traceback.print_exc()
        comm.watch.end_job(f"rank {comm.rank} raised {type(error).__name__}: {error}".splitlines()[0])
        raise


class _Waiting:
    """See `MpiCommunicator.waiting`. A generator takes a microsecond more; all of Python around a message takes 5."""

    __slots__ = ("comm", "text")

    def __init__(self, comm: "MpiCommunicator", text: str):
        self.comm, self.text = comm, text

    def __enter__(self) -> None:
        self.comm.watch.wait_for(self.text)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.comm.watch.wait_for(None)
        if isinstance(error, self.comm.library.Exception):
            raise self.comm.strand(f"{self.text}: {error}".splitlines()[0]) from None


class MpiCommunicator(Communicator):
    """The ranks of an MPI communicator (all of the job by default). Making one is a call that all of them make.

    order: "exact" folds in rank order, as every `Communicator` does, so results have the bits of a fold by NumPy.
        "fast" leaves float sums and means of "auto" all-reduces and of reduce_scatter to the library's own Allreduce
        and Reduce_scatter, and gives that promise up: the order of additions is the library's choice, for each size of
        array and number of ranks, and some libraries do not even give all ranks the same bits.
    timeout: seconds that a call may wait for the other ranks; None for ever. A rank that shows no sign of life for
        `patience` seconds ends the job in any case (mpi_watch.py).

    Algorithms: "one_shot" gathers all arrays everywhere, "arena" is reduce_scatter and all_gather; "auto" takes one of
    the two by size. The others send messages.
    """

    def __init__(
        self, group: Any = None, order: str = "exact", timeout: float | None = None, patience: float = PATIENCE
    ):
        if order not in ORDERS:
            raise ConfigError(f"MpiCommunicator: expected order to be one of {', '.join(ORDERS)}, got {order!r}")
        self.library = library()
        group = group or self.library.COMM_WORLD
        started = group.Ibarrier()
        while not started.Test():  # ranks may start seconds apart, and in Dup those that wait take a core each
            time.sleep(NAP)
        self.group = group.Dup()
        self.rank, self.size, self.order, self.timeout = self.group.rank, self.group.size, order, timeout
        self.watch = Watch(self.library, self.group.Dup(), patience)
        self._mine: Any = np.zeros(WORDS, np.int64)  # what this rank shows at a meeting, and what all do
        self._theirs = np.zeros((self.size, WORDS), np.int64)
        self._signatures, self._words = self._theirs[:, 0], self._theirs[:, 1:]
        self._plans: dict[tuple, tuple[str, Callable]] = {}
        self._broken: str | None = None
        self.speaks = True  # is it this rank that says why a call failed?
        self._stranded = False  # others may still wait in a call that this rank has given up

    # --- the interface ---

    def all_reduce(self, array, op="sum", algorithm="auto"):
        try:
            text, reduce = self._plans[array.shape, array.dtype, op, algorithm]
        except (KeyError, AttributeError, TypeError):
            text, reduce = self._plan(array, op, algorithm)
        if not array.flags.writeable:
            checked(array, op, 0, self.size)
        return self._call(array, text, reduce)

    def _plan(self, array: np.ndarray, op: str, algorithm: str) -> tuple[str, Callable]:
        """What an all-reduce is called, and what it does; it was checked, and is kept for the next time."""
        checked(array, op, 0, self.size)
        name = algorithm_of(algorithm, array.nbytes)
        run = ALGORITHMS[name].run
        reduce = functools.partial(self._by_messages, run) if run else getattr(self, f"_{name}")
        if algorithm == "auto" and self._any_order(op):
            reduce = self._by_library
        plan = f"all_reduce({named(array)}, {op}, {algorithm})", functools.partial(reduce, op=op)
        self._plans[array.shape, array.dtype, op, algorithm] = plan
        return plan

    def reduce_scatter(self, array, op="sum"):
        checked(array, op, 0, self.size)
        scatter = self._scatter_by_library if self._any_order(op) else self._scatter
        self._call(array, f"reduce_scatter({named(array)}, {op})", lambda x: scatter(x, op))
        return array.reshape(-1)[self.part(array.size)]

    def all_gather(self, array):
        checked(array, "sum", 0, self.size)
        return self._call(array, f"all_gather({named(array)})", self._gather)

    def broadcast(self, array, root=0):
        checked(array, "sum", root, self.size)
        return self._call(array, f"broadcast({named(array)}, root {root})", lambda x: self.group.Bcast(x, root))

    def barrier(self):
        self.meet("barrier()")

    def empty(self, shape, dtype=np.float32):
        return np.empty(shape, dtype)

    # --- messages: the Link of collectives.py ---

    def send(self, array, receiver):
        self.group.Send(self._bytes(array), receiver)

    def receive(self, array, sender):
        self.group.Recv(self._bytes(array), sender)

    def exchange(self, outgoing, receiver, incoming, sender):
        """Contiguous arrays of any dtype; `incoming` has the size of what `sender` sends."""
        self.group.Sendrecv(self._bytes(outgoing), receiver, 0, self._bytes(incoming), sender, 0)

    def _bytes(self, array: np.ndarray) -> Any:
        return array.reshape(-1).view(np.uint8)

    # --- meetings ---

    def meet(self, text: str, *words: int) -> np.ndarray:
        """Returns when all ranks have made this call, `text`: (size, WORDS - 1) int64, the words that each brought.

        Raises CollectiveError on all ranks if their texts differ, and on this one if it waited for too long.
        """
        with self.waiting(text):
            return self._meet(signature_of(text), text, words)

    def _meet(self, signature: int, text: str, words: Sequence[int] = ()) -> np.ndarray:
        if self._broken:
            raise CollectiveError(self._broken)
        self.watch.calls += 1
        ROW.pack_into(self._mine, 0, signature, *words, *NO_WORDS[len(words) :])
        self._wait(self.group.Iallgather(self._mine, self._theirs), text)
        signatures = self._signatures.tolist()
        if signatures.count(signature) != self.size:
            raise self.fail(CollectiveError(self._why_mismatch(text)), signatures)
        return self._words

    def waiting(self, text: str) -> _Waiting:
        """Inside, this rank waits for others in `text`: the watch looks whether they live."""
        return _Waiting(self, text)

    def wait(self, request: Any, text: str) -> None:
        """Until an MPI request is done, in `text`: politely, and as long as the time limit allows."""
        with self.waiting(text):
            self._wait(request, text)

    def _wait(self, request: Any, text: str) -> None:
        for _ in range(SPINS):
            if request.Test():
                return
        start = time.monotonic()
        while not request.Test():
            time.sleep(NAP)
            if self.timeout is not None and time.monotonic() - start > self.timeout:
                waited = f"{text}: rank {self.rank} waited {self.timeout} s for {ranks_named(self.watch.behind())}"
                raise self.strand(waited)

    def strand(self, why: str) -> CollectiveError:
        """This rank gives up a call, in which others may wait still."""
        self._stranded, self._broken = True, why
        return CollectiveError(why)

    def _why_mismatch(self, text: str) -> str:
        """What each rank called. All of them see that calls differ, so each says its own to the others."""
        said = np.zeros((self.size, TEXT), np.uint8)
        line = text.encode()[:TEXT]
        said[self.rank, : len(line)] = list(line)
        self.group.Allgather(self.library.IN_PLACE, said)
        callers: dict[str, list[int]] = {}
        for rank, signature in enumerate(self._theirs[:, 0].tolist()):
            words = said[rank].tobytes().rstrip(bytes(1)).decode(errors="replace")
            called = f"raised {words}" if signature == RAISED and words else GONE.get(signature, f"called {words}")
            callers.setdefault(called, []).append(rank)
        calls = "; ".join(f"{ranks_named(ranks)} {called}" for called, ranks in callers.items())
        return f"collective call {self.watch.calls} is not the same on all ranks: {calls}"

    @property
    def is_broken(self) -> bool:
        """Has a call failed, or has this rank left? Then every further call fails."""
        return self._broken is not None

    def fail(self, error: Exception, signatures: Sequence[int] = ()) -> Exception:
        """Of an error that all ranks raise: no further call is made, and only one rank has to say why.

        signatures: what each rank called. One that raised an exception says that; else the lowest that called.
        """
        self._broken = str(error)
        callers = [rank for rank in range(self.size) if not len(signatures) or signatures[rank] not in GONE]
        self.speaks = not (RAISED in signatures or self.rank != min(callers))
        error.said_elsewhere = not self.speaks  # type: ignore[attr-defined]
        return error

    def leave(self, how: int = RETURNED, why: str = "") -> bool:
        """Say that this rank makes no more calls: RETURNED or RAISED. Who makes one meanwhile gets a CollectiveError.
        Did all ranks leave like this?

        why: what the others are told of an exception.

        It returns when all ranks have said so, or one has got that error. Not after a call that failed. What they wait
        for may be something else than a call; then an exception ends the job after `patience` seconds.
        """
        self.timeout = self.watch.patience if how == RAISED else None
        together = False
        with contextlib.suppress(CollectiveError), self.waiting(why):
            self._meet(how, why)
            together = True
        self._broken = self._broken or "this rank has left the group"
        return together

    def close(self) -> bool:
        """Leave, and end the watch. After a wait that broke off, the job is ended: MPI could not end in order.
        Did all ranks return from what they did?
        """
        together = self.leave()
        self.watch.close()
        if self._stranded:
            self.library.COMM_WORLD.Abort(1)
        return together

    # --- how it is done, for a flat contiguous array ---

    def _call(self, array: np.ndarray, text: str, act: Callable[[np.ndarray], Any]) -> np.ndarray:
        """The array, which all ranks meet with in `text`, and which then is what act(x) makes of it."""
        x = array if array.flags.carray else np.array(array, order="C")
        with self.waiting(text):
            self._meet(signature_of(text), text)
            act(x.reshape(-1))
        if x is not array:
            array[...] = x
        return array

    def _any_order(self, op: str) -> bool:
        """May the library fold? Not for a maximum: what it makes of NaN is not NumPy's."""
        return self.order == "fast" and op in ("sum", "mean")

    def _by_library(self, x: np.ndarray, op: str) -> None:
        self.group.Allreduce(self.library.IN_PLACE, x)
        self._finish(x, op)

    def _scatter_by_library(self, x: np.ndarray, op: str) -> None:
        mine, counts, _ = self._parts(x.size)
        folded = np.empty(counts[self.rank], x.dtype)
        self.group.Reduce_scatter(x, folded, counts)
        x[mine] = folded
        self._finish(x[mine], op)

    def _one_shot(self, x: np.ndarray, op: str) -> None:
        every = np.empty((self.size, x.size), x.dtype)
        self.group.Allgather(x, every)
        self._fold(list(every), op, x)

    def _arena(self, x: np.ndarray, op: str) -> None:
        self._scatter(x, op)
        self._gather(x)

    def _scatter(self, x: np.ndarray, op: str) -> None:
        mine, counts, starts = self._parts(x.size)
        counts[self.rank], own = 0, counts[self.rank]
        incoming = np.empty((self.size, own), x.dtype)
        taken = [own * (rank != self.rank) for rank in range(self.size)]
        self.group.Alltoallv([x, (counts, starts)], [incoming, (taken, [own * rank for rank in range(self.size)])])
        rows = list(incoming)
        rows[self.rank] = x[mine]
        self._fold(rows, op, x[mine])

    def _gather(self, x: np.ndarray) -> None:
        _, counts, starts = self._parts(x.size)
        self.group.Allgatherv(self.library.IN_PLACE, [x, (counts, starts)])

    def _by_messages(self, run: Callable, x: np.ndarray, op: str) -> None:
        ufunc = UFUNCS[op]
        run(self, x, lambda low, high, out: ufunc(low, high, out=out))
        self._finish(x, op)

    def _fold(self, rows: Sequence[np.ndarray], op: str, out: np.ndarray) -> None:
        """out = the rows folded in their order. `out` may be a row; the others are overwritten."""
        total = rows[0]
        for rank, row in enumerate(rows[1:], 1):
            last = rank == len(rows) - 1
            UFUNCS[op](total, row, out=out if last else total)
            total = out if last else total
        if total is not out:
            out[...] = total
        self._finish(out, op)

    def _finish(self, x: np.ndarray, op: str) -> None:
        if op == "mean":
            np.divide(x, self.size, out=x)

    def _parts(self, n: int) -> tuple[slice, list[int], list[int]]:
        """This rank's part of n elements; sizes and starts of all parts."""
        parts = [self.part(n, rank) for rank in range(self.size)]
        return parts[self.rank], [part.stop - part.start for part in parts], [part.start for part in parts]
