"""The machines of an MPI job: ranks that share memory, and which shards and arrays are whose.

The ranks of a machine share one piece of memory and compute on it as the workers of a pool do. slices.py says how
machines merge. order="fast" leaves the sum over machines to the library: 2 (M-1)/M n bytes.

The *ordinal* of a rank is its number counted machine by machine.
"""

from __future__ import annotations

import bisect
import functools
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from ...errors import SharedMemoryError
from ..comm.memory import SharedMemory
from ..pool.layout import Extent, PageLayout
from ..shards import starts_of
from .communicator import MpiCommunicator

# Bytes of a message, at most. Open MPI announces more than 64 KiB before it sends them, and over TCP the answer waits
# behind the data on its way in the other direction: 430 ms a step, not 229, on 300 Mbit/s.
MESSAGE_BYTES = 48 << 10
SHARE_VARIABLE = "SCRATCHNET_MPI_SHARE"  # how many ranks of a machine share memory, at most; 1 where they cannot


class Machine:
    """The ranks that share memory with this one, and where they stand among all.

    number, of `count`: this machine's. local: the MPI communicator of its ranks. leaders: that of the first ranks of
    all machines, None on other ranks. ordinal: this rank's. rank_at: the rank of each ordinal. neighbours: how many
    ranks run on this machine, whether they share memory or not. most: see SHARE_VARIABLE, which 0 follows.
    """

    def __init__(self, comm: MpiCommunicator, most: int = 0):
        self.comm, group = comm, comm.group
        most = most or int(os.environ.get(SHARE_VARIABLE, 0)) or (comm.size if os.path.exists("/proc/self/fd") else 1)
        same = group.Split_type(comm.library.COMM_TYPE_SHARED, group.rank)
        self.local = same.Split(same.rank // most, group.rank)
        self.neighbours = same.size
        same.Free()
        leaders = group.Split(0 if self.local.rank == 0 else comm.library.UNDEFINED, group.rank)
        self.leaders: Any = leaders if self.local.rank == 0 else None
        self.direct = group.Dup()  # of all ranks, for messages between any two of them
        leader, leader_of = np.array([comm.rank]), np.zeros(comm.size, np.int64)
        self.local.Bcast(leader)  # the lowest rank of this machine
        group.Allgather(leader, leader_of)
        self.rank_at = sorted(range(comm.size), key=lambda rank: (leader_of[rank], rank))
        machines = sorted(set(leader_of.tolist()))
        self._leader, self._firsts = int(leader[0]), [self.rank_at.index(rank) for rank in machines]
        self.number, self.count = machines.index(self._leader), len(machines)
        self.ordinal = self.rank_at.index(comm.rank)
        self._starts: dict[int, list[int]] = {}

    def memory(self, size: int) -> SharedMemory:
        """`size` bytes of zeros that the ranks of this machine share. All ranks of the job call this at once.

        The memory has no name that could be left behind: the first rank makes it, and the others open its file. It
        takes none of the machine's before it is committed or written.
        """
        memory = SharedMemory(size, committed=0) if self.leaders else None
        files = self.comm.handshake("shared memory", os.getpid(), memory.fd if memory else -1)
        if memory is None:
            pid, fd = files[self._leader, :2].tolist()
            try:
                memory = SharedMemory.opened(os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC), size)
            except OSError as error:
                raise SharedMemoryError(
                    f"shared memory: expected that of rank {self._leader}, got {error.strerror}; {SHARE_VARIABLE}=1 "
                    "lets each rank have its own"
                ) from None
        self.synchronize("shared memory")  # the first rank's file stays open until then
        return memory

    def synchronize(self, text: str) -> None:
        """Returns when all ranks of this machine have called it. text: what error messages call the wait."""
        self.comm.wait(self.local.Ibarrier(), text)

    def starts(self, shards: int) -> list[int]:
        """Where the shards of each rank begin, of so many in all, by ordinal; and where the last ones end.

        All ranks get K/W, rounded down or up, so that nobody waits longer. Within that, a machine ends where a large
        subtree ends (comm/tree.py): then it has few sums to send.
        """
        if shards in self._starts:
            return self._starts[shards]
        size, begin, starts = self.comm.size, 0, self._starts.setdefault(shards, [0])
        least, most = shards // size, -(-shards // size)
        for machine in range(self.count):
            ranks = self.ordinals(machine)
            after, even = size - ranks.stop, shards * ranks.stop / size
            low = max(begin + least * len(ranks), shards - most * after)
            high = min(begin + most * len(ranks), shards - least * after)
            share = -(-shards * len(ranks) // size)
            reach = 1 << (share - 1).bit_length()  # to end with a subtree larger than the machine's share is no better
            end = min(range(low, high + 1), key=lambda end: (-min(end & -end, reach), abs(end - even)))
            starts += [begin + start for start in starts_of(end - begin, len(ranks))[1:]]
            begin = end
        return starts

    def shards(self, machine: int, shards: int) -> range:
        """The shards of a machine's ranks, of so many in all."""
        starts, ordinals = self.starts(shards), self.ordinals(machine)
        return range(starts[ordinals.start], starts[ordinals.stop])

    def ordinals(self, machine: int) -> range:
        """Those of a machine's ranks."""
        return range(self._firsts[machine], [*self._firsts, self.comm.size][machine + 1])

    def machine_at(self, ordinal: int) -> int:
        """The machine that a rank is on."""
        return bisect.bisect(self._firsts, ordinal) - 1

    def share_rows(self, rows: np.ndarray) -> None:
        """An all_gather of rows, (shards, bytes): rows[k] goes from the machine of shard k to all. Leaders call this.

        All messages start at once, and arrive where they belong: on a slow link an Allgatherv took twice as long.
        """
        group, blocks = self.leaders, [self.shards(machine, len(rows)) for machine in range(self.count)]
        own = blocks[self.number]
        requests = []
        for machine, block in enumerate(blocks):
            if machine != self.number:
                requests += [group.Irecv(rows[block.start : block.stop], machine, 2)] if block else []
                requests += [group.Isend(rows[own.start : own.stop], machine, 2)] if own else []
        self.comm.library.Request.Waitall(requests)


@functools.cache
def machine_of(comm: MpiCommunicator, most: int = 0) -> Machine:
    """Made at the first call, which all ranks make."""
    return Machine(comm, most)


def extents_of(
    layout: PageLayout, begins: Iterable[int], parts: Iterable[int] = (0,), count: int = 1, most: int | None = None
) -> list[Extent]:
    """The extents of some of `count` parts of all that lies like the parameters at `begins` of a page (see PageLayout).

    Neighbours form one run, which is cut into extents of at most `most` bytes.
    """
    found, parts = [], list(parts)
    for begin in begins:
        for spans in zip(*(layout.cut((s, count)) for s in parts), strict=True):
            runs: list[Extent] = []
            for span in spans:
                if runs and runs[-1].offset + runs[-1].nbytes == span.offset:
                    runs[-1] = Extent(runs[-1].offset, (runs[-1].shape[0] + span.shape[0],), span.dtype)
                else:
                    runs.append(span)
            for offset, (size,), dtype in runs:
                step = max(1, (most or max(size * dtype.itemsize, 1)) // dtype.itemsize)
                found += [
                    Extent(begin + offset + lo * dtype.itemsize, (min(step, size - lo),), dtype)
                    for lo in range(0, size, step)
                ]
    return found
