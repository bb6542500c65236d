"""The machines of an MPI job: ranks that share memory, and how machines sum up what all shards gave.

The ranks of a machine share one piece of memory and compute on it as the workers of a pool do. Gradients are folded in
the order of shards, over all machines, which gives the bits of one process; here by a chain:

    machine 0 folds the gradients of its shards, and sends the sum to machine 1, which adds its own one by one, ...; the
    last machine has the total, which returns the same way, message by message, so that all links are busy at once

For M machines and n bytes of gradients a machine sends 2 n bytes (n if M = 2), however many shards there are, in
2 (M-1) hops, and makes the whole update. slices.py has the other way. order="fast" leaves the sum over machines to the
library: 2 (M-1)/M n bytes.

The *ordinal* of a rank is its number counted machine by machine.
"""

from __future__ import annotations

import bisect
import functools
import os
from collections.abc import Iterable, Sequence
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
    ranks run on this machine, whether they share memory or not.
    """

    def __init__(self, comm: MpiCommunicator):
        self.comm, group = comm, comm.group
        most = int(os.environ.get(SHARE_VARIABLE, 0)) or (comm.size if os.path.exists("/proc/self/fd") else 1)
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

    def shards(self, machine: int, shards: int) -> range:
        """The shards of a machine's ranks, of so many in all."""
        starts, ordinals = starts_of(shards, self.comm.size), self.ordinals(machine)
        return range(starts[ordinals.start], starts[ordinals.stop])

    def ordinals(self, machine: int) -> range:
        """Those of a machine's ranks."""
        return range(self._firsts[machine], [*self._firsts, self.comm.size][machine + 1])

    def machine_at(self, ordinal: int) -> int:
        """The machine that a rank is on."""
        return bisect.bisect(self._firsts, ordinal) - 1

    def peer(self, ordinal: int, machine: int) -> int:
        """The ordinal of the one rank on another machine with which a rank exchanges slices."""
        there = self.ordinals(machine)
        return there[(ordinal - self._firsts[self.machine_at(ordinal)]) % len(there)]

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
def machine_of(comm: MpiCommunicator) -> Machine:
    """Made at the first call, which all ranks make."""
    return Machine(comm)


class Chain:
    """The fold of the header, over arrays that lie at `extents` of slots; for leaders. total: gets the result."""

    def __init__(self, machine: Machine, extents: Sequence[Extent], total: np.ndarray):
        self.machine, self.library, self.extents, self.total = machine, machine.comm.library, extents, total
        number, group = machine.number, machine.leaders
        self._partial = np.empty_like(total)

        def requests(make: Any, memory: np.ndarray, other: int, tag: int) -> list[Any]:
            return [make(extent.of(memory), other, tag) for extent in extents] if 0 <= other < machine.count else []

        self._receive_partial = requests(group.Recv_init, self._partial, number - 1, 0)
        self._send_partial = requests(group.Send_init, self._partial, number + 1, 0)
        self._receive_total = requests(group.Recv_init, total, number + 1, 1)
        self._send_total = requests(group.Send_init, total, number - 1, 1)

    def fold(self, slots: Sequence[np.ndarray], first: int) -> None:
        """total = the sum of all machines' slots. first: the first machine that has any."""
        number, is_last = self.machine.number, not self._send_partial
        self._start(self._receive_total)
        receives = self._receive_partial if number > first else []
        self._start(receives)
        for i, extent in enumerate(self.extents if number >= first else []):
            arrays = [extent.of(slot) for slot in slots]
            if receives:
                receives[i].Wait()
                arrays.insert(0, extent.of(self._partial))
            fold(arrays, extent.of(self.total if is_last else self._partial))
            for request in (self._send_total if is_last else self._send_partial)[i : i + 1]:
                request.Start()
        for i, request in enumerate(self._receive_total):
            request.Wait()
            for send in self._send_total[i : i + 1]:
                send.Start()
        self.library.Prequest.Waitall([*self._send_partial, *self._send_total])

    def release(self) -> None:
        """After the last fold."""
        for request in (*self._receive_partial, *self._send_partial, *self._receive_total, *self._send_total):
            request.Free()

    def _start(self, requests: list[Any]) -> None:
        if requests:
            self.library.Prequest.Startall(requests)


def fold(arrays: Sequence[np.ndarray], out: np.ndarray) -> None:
    """out = the sum of arrays, in their order; `out` may be the first one."""
    if len(arrays) == 1:
        np.copyto(out, arrays[0])
    for i, array in enumerate(arrays[1:]):
        np.add(out if i else arrays[0], array, out=out)


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
