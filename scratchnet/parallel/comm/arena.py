"""The communicator of processes that share memory.

`Arena` is what they share, made by the process that starts them; each of them makes an `ArenaCommunicator` of it. The
work is done by arena_kernels.py, and the algorithms of collectives.py run over its mailboxes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ...errors import CollectiveError, SharedMemoryError
from ...native.atomics import ABORTED, LATE, REACHED, load_acquire, nanoseconds, publish
from ...native.compile import JIT_ENABLED, jit
from . import arena_kernels as kernels
from .arena_kernels import MISMATCH, Words
from .collectives import ALGORITHMS, algorithm_of
from .communicator import DTYPES, GONE, RETURNED, UFUNCS, Communicator, checked, named, ranks_named, signature_of
from .folds import which
from .memory import ALIGNMENT, Heap, Layout, SharedMemory, available_bytes, cores

STAGE = 1 << 20  # bytes that a rank shows at a time, twice; a quarter of that was measured half as fast
MAIL = 1 << 22  # bytes of all mailboxes together, at most, but for PARCELS[0]
PARCELS = 1 << 12, 1 << 16  # bytes of a parcel, least and most
TEXT = 512  # bytes in which a rank says what it called, for the others' error messages
HEAP = 1 << 36  # bytes that the arrays of a rank's `empty` may fill: addresses, not memory
SPINS = 512  # looks before a rank that waits lets others run: 10 to 30 us, should another program have its core
PATIENCE = 10.0  # seconds for the other ranks to say what they called, once calls turned out to differ

_KINDS = {"reduce_scatter": kernels.REDUCE_SCATTER, "all_gather": kernels.ALL_GATHER, "broadcast": kernels.BROADCAST}
_ARENA_KINDS = {"one_shot": kernels.ONE_SHOT, "arena": kernels.ALL_REDUCE}


@jit
def _load(words, at):
    return load_acquire(words, at)


class Arena:
    """What `size` ranks share: words, places to show data, mailboxes, and a heap each. It travels to child processes.

    Raises SharedMemoryError where there is not enough memory.
    """

    def __init__(self, size: int):
        self.size, layout = size, Layout()
        self.parcel = int(np.clip(MAIL // (2 * size * size), *PARCELS)) // ALIGNMENT * ALIGNMENT
        self.words_at = layout.place(8 * Words(size).total)
        self.texts_at = layout.place(TEXT * size)
        self.mail_at = layout.place(2 * size * size * self.parcel)
        self.stage_at = layout.place(2 * STAGE * size)
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
        return self.memory.array(self.words_at, Words(self.size).total, np.int64)

    def abort(self) -> None:
        """Let every wait of every rank end at once, with a CollectiveError."""
        self.words[kernels.ABORT] = 1


class _Plan(NamedTuple):
    """A call as the kernel wants it; it was checked, and is kept for the next time."""

    run: Callable | None  # an algorithm that sends messages, or None
    op: str
    text: str
    call: np.ndarray


class ArenaCommunicator(Communicator):
    """Rank `rank` of the processes that share `arena`; one process may hold one of each rank.

    timeout: seconds that a call may wait for the others; None for ever. spins: see `atomics.wait_until`; by default
    many where each rank has a core to itself.
    """

    def __init__(self, arena: Arena, rank: int, timeout: float | None = None, spins: int | None = None):
        self.arena, self.rank, self.size, self.timeout = arena, rank, arena.size, timeout
        self._words = arena.words
        self._heap = Heap(arena.memory, arena.heaps_at + rank * arena.heap_bytes, arena.heap_bytes)
        self._texts = arena.memory.array(arena.texts_at, (arena.size, TEXT), np.uint8)
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
            kernels.STAGE: base + arena.stage_at,
            kernels.STAGE_BYTES: STAGE,
            kernels.MAIL: base + arena.mail_at,
            kernels.PARCEL: arena.parcel,
        }.items():
            self._state[word] = value
        self._plans: dict[tuple, _Plan] = {}
        self._broken: str | None = None

    # --- the interface ---

    def all_reduce(self, array, op="sum", algorithm="auto"):
        if self._broken:
            raise CollectiveError(self._broken)
        try:
            plan = self._plans[array.shape, array.dtype, op, algorithm]
        except (KeyError, AttributeError, TypeError):
            plan = self._plan_all_reduce(array, op, algorithm)
        if not array.flags.carray:
            return self._through_copy(array, lambda copy: self.all_reduce(copy, op, algorithm))
        if plan.run is not None:
            self._by_messages(array.reshape(-1), plan)
            return array
        status = kernels.collective(array.reshape(-1), self._words, self._state, plan.call)
        if status != REACHED:
            self._fail(status, plan.text)
        return array

    def reduce_scatter(self, array, op="sum"):
        self._collective("reduce_scatter", array, op)
        return array.reshape(-1)[self.part(array.size)]

    def all_gather(self, array):
        return self._collective("all_gather", array)

    def broadcast(self, array, root=0):
        return self._collective("broadcast", array, root=root)

    def barrier(self):
        self._enter("barrier()")

    def empty(self, shape, dtype=np.float32):
        return self._heap.empty(shape, dtype)

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
            self._fail(status, f"a message to rank {receiver} or from rank {sender}")

    # --- how calls are made, and how they fail ---

    def _collective(self, kind, array, op="sum", root=0):
        if self._broken:
            raise CollectiveError(self._broken)
        try:
            plan = self._plans[kind, array.shape, array.dtype, op, root]
        except (KeyError, AttributeError, TypeError):
            checked(array, op, root, self.size)
            detail = {"reduce_scatter": f", {op}", "all_gather": "", "broadcast": f", root {root}"}[kind]
            plan = self._plan(f"{kind}({named(array)}{detail})", array, _KINDS[kind], op, root)
            self._plans[kind, array.shape, array.dtype, op, root] = plan
        if not array.flags.carray:
            return self._through_copy(array, lambda copy: self._collective(kind, copy, op, root))
        status = kernels.collective(array.reshape(-1), self._words, self._state, plan.call)
        if status != REACHED:
            self._fail(status, plan.text)
        return array

    def _through_copy(self, array, call):
        if not array.flags.writeable:
            checked(array, "sum", 0, 1)
        copy = np.array(array, order="C")
        call(copy)
        array[...] = copy
        return array

    def _plan_all_reduce(self, array, op, algorithm):
        checked(array, op, 0, self.size)
        name = algorithm_of(algorithm, array.nbytes)
        if name == "one_shot" and array.nbytes > STAGE:
            name = "arena"  # it shows the whole array at once
        text = f"all_reduce({named(array)}, {op}, {algorithm})"
        plan = self._plan(text, array, _ARENA_KINDS.get(name, 0), op, 0)._replace(run=ALGORITHMS[name].run)
        self._plans[array.shape, array.dtype, op, algorithm] = plan
        return plan

    def _plan(self, text, array, kind, op, root):
        dtype = array.dtype
        loops = [which("sum" if op == "mean" else op, dtype.name), which(op, dtype.name)]
        call = np.array([kind, root, signature_of(text), dtype.itemsize, *loops], np.int64)
        return _Plan(None, op, text, call)

    def _by_messages(self, x, plan):
        self._enter(plan.text)
        ufunc = UFUNCS[plan.op]
        plan.run(self, x, lambda low, high, out: ufunc(low, high, out=out))
        if plan.op == "mean":
            np.divide(x, self.size, out=x)

    def _enter(self, text):
        if self._broken:
            raise CollectiveError(self._broken)
        status = kernels.enter(self._words, self._state, signature_of(text), -1)
        if status != REACHED:
            self._fail(status, text)

    def leave(self, how: int = RETURNED) -> None:
        """Say that this rank makes no more calls: RETURNED or RAISED. Whoever waits for it gets a CollectiveError.

        Not after a call that failed: it may have ended half way, where others would take this for its next step.
        """
        if not self._broken:
            kernels.leave(self._words, self._state, how)

    def _fail(self, status, text):
        if self._broken is None:
            reasons = {ABORTED: self._why_aborted, LATE: self._why_late, MISMATCH: self._why_mismatch}
            self._broken = reasons[status](text)
        raise CollectiveError(self._broken)

    def _why_aborted(self, text):
        return f"{text}: rank {self.rank} stopped waiting, because another worker failed"

    def _why_late(self, text):
        synced = [self._words[Words(self.size).syncs(rank)] for rank in range(self.size)]
        missing = [str(rank) for rank in range(self.size) if synced[rank] < self._state[kernels.SYNCS]]
        return f"{text}: rank {self.rank} waited {self.timeout} s for {ranks_named(missing)}"

    def _why_mismatch(self, text):
        """What each rank called. All of them see that calls differ, so each writes down its own for the others."""
        words, number = Words(self.size), int(self._state[kernels.CALLS])
        line = text.encode()[: TEXT - 1]
        self._texts[self.rank, : len(line)] = list(line)
        self._texts[self.rank, len(line) :] = 0
        publish(self._words, words.text(self.rank), number)
        callers: dict[str, list[str]] = {}
        deadline = nanoseconds() + int(PATIENCE * 1e9)
        for rank in range(self.size):
            signature = int(self._words[words.call(rank, number - 1)])
            said = GONE.get(signature)
            if said is None:
                status = kernels.wait_until(
                    self._words, words.text(rank), number, kernels.ABORT, deadline, 0, self._state[kernels.SCRATCH :]
                )
                said = bytes(self._texts[rank]).rstrip(b"\0").decode(errors="replace")
                said = f"called {said}" if status == REACHED else "called something else"
            callers.setdefault(said, []).append(str(rank))
        calls = "; ".join(f"{ranks_named(ranks)} {said}" for said, ranks in callers.items())
        return f"collective call {number} is not the same on all ranks: {calls}"


_NOTHING = np.empty(0, np.uint8)


def warm_up(dtypes: Any = DTYPES) -> None:
    """Compile, or load, all that communicators run, so that the processes started afterwards find it in the cache."""
    if not JIT_ENABLED:
        return
    comm = ArenaCommunicator(Arena(1), 0)
    comm.barrier()
    comm.exchange(_NOTHING, 0, _NOTHING, 0)
    publish(comm._words, 1, _load(comm._words, 1))
    kernels.wait_until(comm._words, 1, 0, kernels.ABORT, 0, 0, comm._state[kernels.SCRATCH :])
    for dtype in dtypes:
        comm.all_reduce(np.ones(1, dtype))
    comm.leave()
