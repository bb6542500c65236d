"""The communicator of processes that share memory.

The process that starts the others makes an `Arena`, the memory that they share; each of them makes an
`ArenaCommunicator` of it. arena_kernels.py does the work, and the algorithms of collectives.py send their messages
through buffers of the arena.
"""

import functools
from typing import Any

import numpy as np

from ...errors import CollectiveError, SharedMemoryError
from ...native.atomics import ABORTED, LATE, REACHED, nanoseconds, publish
from ...native.compile import JIT_ENABLED
from ...native.limits import available_bytes, cores
from . import arena_kernels as kernels
from .arena_kernels import MISMATCH
from .collectives import ALGORITHMS, DTYPES, algorithm_of, reduce_by_messages
from .communicator import (
    ENDINGS,
    RETURNED,
    TEXT_BYTES,
    Communicator,
    encoded,
    mismatch,
    ranks_named,
    signature_of,
)
from .folds import which
from .memory import ALIGNMENT, Heap, Layout, SharedMemory

STAGING = 1 << 20  # bytes of each of a rank's two staging buffers; with a quarter of that, half the speed was measured
MESSAGES = 1 << 22  # bytes of all message buffers together, unless the least CHUNK needs more
CHUNK = 1 << 12, 1 << 16  # bytes of a message that pass at a time, least and most
HEAP = 1 << 36  # bytes that the arrays of a rank's `empty` may fill: addresses, not memory
SPINS = 512  # looks before a rank that waits lets others run: 10 to 30 us, should another program have its core
PATIENCE = 10.0  # seconds that a rank waits to read what the others called, once calls turned out to differ

_KINDS = {"reduce_scatter": kernels.REDUCE_SCATTER, "all_gather": kernels.ALL_GATHER, "broadcast": kernels.BROADCAST}
_ALL_REDUCE_KINDS = {"one_shot": kernels.ONE_SHOT, "arena": kernels.ALL_REDUCE}


class Arena:
    """What `size` ranks share: words, texts, message and staging buffers, and a heap each. It travels to child
    processes.

    Raises SharedMemoryError where there is not enough memory.
    """

    def __init__(self, size: int):
        self.size, layout = size, Layout()
        self.chunk = int(np.clip(MESSAGES // (2 * size * size), *CHUNK)) // ALIGNMENT * ALIGNMENT
        self.words_at = layout.place(8 * kernels.total_words(size))
        self.texts_at = layout.place(TEXT_BYTES * size)
        self.messages_at = layout.place(2 * size * size * self.chunk)
        self.staging_at = layout.place(2 * STAGING * size)
        self.heaps_at = layout.size
        self.heap_bytes = min(HEAP, available_bytes() or HEAP) // 4096 * 4096
        while True:  # fewer addresses where the process may have only so many (ulimit -v)
            try:
                self.memory = SharedMemory(self.heaps_at + size * self.heap_bytes, committed=self.heaps_at)
                return
            except SharedMemoryError:
                if self.heap_bytes < 1 << 20:
                    raise
                self.heap_bytes //= 2

    @property
    def words(self) -> np.ndarray:
        return self.memory.array(self.words_at, kernels.total_words(self.size), np.int64)

    def abort(self) -> None:
        """Let every wait of every rank end at once, with a CollectiveError."""
        self.words[kernels.ABORT] = 1


class ArenaCommunicator(Communicator):
    """Rank `rank` of the processes that share `arena`; one process may hold one of each rank.

    timeout: seconds that a call may wait for the others; None for ever. spins: see `atomics.wait_until`; by default
    many where each rank has a core to itself.
    """

    def __init__(self, arena: Arena, rank: int, timeout: float | None = None, spins: int | None = None):
        super().__init__(rank, arena.size)
        self.arena, self.timeout = arena, timeout
        self._words = arena.words
        self._heap = Heap(arena.memory, arena.heaps_at + rank * arena.heap_bytes, arena.heap_bytes)
        self._texts = arena.memory.array(arena.texts_at, (arena.size, TEXT_BYTES), np.uint8)
        if spins is None:
            spins = SPINS if self.size <= cores() else 16
        base = arena.memory.array(0, 1, np.uint8).ctypes.data
        self._state = np.zeros(kernels.STATE_WORDS, np.int64)
        for word, value in {
            kernels.RANK: rank,
            kernels.SIZE: self.size,
            kernels.SPINS: spins,
            kernels.TIMEOUT: int((timeout or 0) * 1e9),
            kernels.HEAP: base + arena.heaps_at,
            kernels.HEAP_BYTES: self.size * arena.heap_bytes,
            kernels.STAGING: base + arena.staging_at,
            kernels.STAGING_BYTES: STAGING,
            kernels.MESSAGES: base + arena.messages_at,
            kernels.CHUNK_BYTES: arena.chunk,
        }.items():
            self._state[word] = value

    def barrier(self):
        self._handshake("barrier()")

    def empty(self, shape, dtype=np.float32):
        return self._heap.empty(shape, dtype)

    def _plan(self, call, array):
        kind = _KINDS.get(call.kind)
        if kind is None:
            name = algorithm_of(call.algorithm, array.nbytes)
            if name == "one_shot" and array.nbytes > STAGING:
                name = "arena"  # the other stages the whole array at once
            if ALGORITHMS[name].run:
                return functools.partial(self._by_messages, ALGORITHMS[name].run, call)
            kind = _ALL_REDUCE_KINDS[name]
        dtype = array.dtype
        loops = [which("sum" if call.op == "mean" else call.op, dtype.name), which(call.op, dtype.name)]
        words = np.array([kind, call.root, signature_of(call.text), dtype.itemsize, *loops], np.int64)
        return functools.partial(self._by_kernel, words, call.text)

    def _by_kernel(self, call, text, x):
        status = kernels.collective(x, self._words, self._state, call)
        if status != REACHED:
            raise self._failure(status, text)

    def _by_messages(self, run, call, x):
        self._handshake(call.text)
        reduce_by_messages(run, self, x, call.op)

    def _handshake(self, text):
        if self._broken:
            raise CollectiveError(self._broken)
        status = kernels.handshake(self._words, self._state, signature_of(text), -1)
        if status != REACHED:
            raise self._failure(status, text)

    # --- messages: the Link of collectives.py ---

    def send(self, array, receiver):
        self.exchange(array, receiver, _NOTHING, self.rank)

    def receive(self, array, sender):
        self.exchange(_NOTHING, self.rank, array, sender)

    def exchange(self, outgoing, receiver, incoming, sender):
        """Contiguous arrays of any dtype; `incoming` has the size of what `sender` sends."""
        status = kernels.exchange(
            outgoing.reshape(-1).view(np.uint8), receiver, incoming.reshape(-1).view(np.uint8), sender,
            self._words, self._state,
        )  # fmt: skip
        if status != REACHED:
            raise self._failure(status, f"a message to rank {receiver} or from rank {sender}")

    # --- how it ends ---

    def finish(self, ending: int = RETURNED) -> None:
        """This rank makes no more calls, because its function RETURNED or RAISED. Ranks that wait for it raise
        CollectiveError.

        After a failed call this does nothing: the call may have ended half way, where others would take it for a step.
        """
        if not self._broken:
            kernels.finish(self._words, self._state, ending)

    def _failure(self, status, text):
        if self._broken is None:
            reasons = {ABORTED: self._why_aborted, LATE: self._why_late, MISMATCH: self._why_mismatch}
            self._broken = reasons[status](text)
        return CollectiveError(self._broken)

    def _why_aborted(self, text):
        return f"{text}: rank {self.rank} stopped waiting, because another worker failed"

    def _why_late(self, text):
        own = self._state[kernels.BARRIERS]
        missing = [rank for rank in range(self.size) if self._words[kernels.word(rank, kernels.BARRIERS_LINE)] < own]
        return f"{text}: rank {self.rank} waited {self.timeout} s for {ranks_named(missing)}"

    def _why_mismatch(self, text):
        """All ranks see that calls differ, so each writes its own for the others to read."""
        number, deadline = int(self._state[kernels.CALLS]), nanoseconds() + int(PATIENCE * 1e9)
        self._texts[self.rank] = encoded(text)
        publish(self._words, kernels.word(self.rank, kernels.TEXT_LINE), number)
        signatures, texts = [], np.zeros_like(self._texts)
        for rank in range(self.size):
            signatures.append(int(self._words[kernels.call_word(rank, number - 1)]))
            if signatures[-1] not in ENDINGS:
                at, scratch = kernels.word(rank, kernels.TEXT_LINE), self._state[kernels.SCRATCH :]
                status = kernels.wait_until(self._words, at, number, kernels.ABORT, deadline, 0, scratch)
                texts[rank] = self._texts[rank] if status == REACHED else encoded("something else")
        return mismatch(number, signatures, texts)


_NOTHING = np.empty(0, np.uint8)


def warm_up(dtypes: Any = DTYPES) -> None:
    """Compile, or load, all that communicators run, so that the processes started afterwards find it in the cache."""
    if not JIT_ENABLED:
        return
    comm = ArenaCommunicator(Arena(1), 0)
    comm.barrier()
    comm.exchange(_NOTHING, 0, _NOTHING, 0)
    publish(comm._words, kernels.word(0, kernels.TEXT_LINE), comm._words[kernels.call_word(0, 0)])
    kernels.wait_until(comm._words, 1, 0, kernels.ABORT, 0, 0, comm._state[kernels.SCRATCH :])
    for dtype in dtypes:
        comm.all_reduce(np.ones(1, dtype))
    comm.finish()
