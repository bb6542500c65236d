"""The machines of an MPI job: ranks that share memory, and how machines agree on what all shards gave together.

The ranks of a machine share one piece of memory and compute on it as the workers of a pool do. Gradients are folded in
the order of shards, over all machines, which gives the bits of one process; here by a chain:

    machine 0 folds its shards, and hands the sum to machine 1, which adds its own one by one, ... and the last one
    has the total, which goes back the same way; piece by piece, so that all links are busy at the same time

For M machines and n bytes of gradients it sends 2 n bytes a machine (n, of two), however many shards there are, in
2 (M-1) hops, and each machine makes the whole update. mpi_slices.py has the other way. "fast" leaves the sum over
machines to the library: 2 (M-1)/M n.
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

# Bytes that travel at a time. Open MPI announces more than 64 KiB before it sends them, and over
# TCP the answer waits behind the data on its way in the other direction: 430 ms a step, not 229, on 300 Mbit/s.
PIECE = 48 << 10
VARIABLE = "SCRATCHNET_MPI_SHARE"  # how many ranks of a machine share memory, at most; 1 where they cannot


class Machine:
    """The ranks that share memory with this one, `here`; and where they stand among all.

    number, of `count`: this machine's. place: this rank's among all ranks, machine by machine. leaders: one rank of
    each machine, on those ranks; None on others. neighbours: ranks on this machine, whether they share memory or not.
    """

    def __init__(self, comm: MpiCommunicator):
        self.comm, group = comm, comm.group
        most = int(os.environ.get(VARIABLE, 0)) or (comm.size if os.path.exists("/proc/self/fd") else 1)
        same = group.Split_type(comm.library.COMM_TYPE_SHARED, group.rank)
        self.here = same.Split(same.rank // most, group.rank)
        self.neighbours = same.size
        same.Free()
        leaders = group.Split(0 if self.here.rank == 0 else comm.library.UNDEFINED, group.rank)
        self.leaders: Any = leaders if self.here.rank == 0 else None
        found = np.zeros(3, np.int64)  # number, count, ranks on earlier machines
        if self.leaders:
            sizes = np.zeros(leaders.size, np.int64)
            leaders.Allgather(np.array([self.here.size]), sizes)
            found[:] = leaders.rank, leaders.size, sizes[: leaders.rank].sum()
        self.here.Bcast(found)
        self.number, self.count, first = found.tolist()
        self.place = first + self.here.rank
        stands = np.zeros((comm.size, 2), np.int64)
        group.Allgather(np.array([first, self.place]), stands)
        self._firsts = sorted(set(stands[:, 0].tolist()))  # place of each machine's first rank
        self.rank_at = np.argsort(stands[:, 1]).tolist()  # by place
        self.direct = group.Dup()  # of all ranks, for messages between any two of them
        ranks = np.zeros(self.here.size, np.int64)
        self.here.Allgather(np.array([comm.rank]), ranks)
        self._leader = int(ranks[0])

    def memory(self, size: int) -> SharedMemory:
        """`size` bytes of zeros, the same for all ranks of this machine; all ranks of the job call it at once.

        They have no name that could be left behind: the first rank makes them, and the others open its file. It takes
        no memory before it is committed or written.
        """
        memory = SharedMemory(size, committed=0) if self.leaders else None
        pid, fd = self.comm.handshake("shared memory", os.getpid(), memory.fd if memory else -1)[
            self._leader, :2
        ].tolist()
        if memory is None:
            try:
                memory = SharedMemory.opened(os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC), size)
            except OSError as error:
                raise SharedMemoryError(
                    f"shared memory: expected that of rank {self._leader}, got {error.strerror}; {VARIABLE}=1 lets "
                    "each rank have its own"
                ) from None
        self.meet("shared memory")  # the first rank's file stays open until then
        return memory

    def meet(self, text: str) -> None:
        """Returns when all ranks of this machine have come here, in `text`."""
        self.comm.wait(self.here.Ibarrier(), text)

    def shards(self, machine: int, shards: int) -> range:
        """Those of a machine: of its ranks, together."""
        starts, places = starts_of(shards, self.comm.size), self.places(machine)
        return range(starts[places.start], starts[places.stop])

    def places(self, machine: int) -> range:
        """Those of its ranks."""
        return range(self._firsts[machine], [*self._firsts, self.comm.size][machine + 1])

    def home(self, place: int) -> int:
        """The machine that a place is on."""
        return bisect.bisect(self._firsts, place) - 1

    def through(self, place: int, machine: int) -> int:
        """The place on another machine that a rank at `place` exchanges slices with."""
        there = self.places(machine)
        return there[(place - self._firsts[self.home(place)]) % len(there)]

    def spread(self, rows: np.ndarray) -> None:
        """rows[k], of (shards, bytes), from the machine that has shard k to all; leaders call it.

        All at once, each straight to its place: on a slow link an Allgatherv took twice as long.
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
    """The fold of the header, over arrays that lie at `places` of slots; for leaders. total: where its result goes."""

    def __init__(self, machine: Machine, places: Sequence[Extent], total: np.ndarray):
        self.machine, self.library, self.places, self.total = machine, machine.comm.library, places, total
        number, group = machine.number, machine.leaders
        self._partial = np.empty_like(total)

        def requests(make: Any, memory: np.ndarray, other: int, tag: int) -> list[Any]:
            return [make(place.of(memory), other, tag) for place in places] if 0 <= other < machine.count else []

        self._take = requests(group.Recv_init, self._partial, number - 1, 0)
        self._hand_on = requests(group.Send_init, self._partial, number + 1, 0)
        self._take_back = requests(group.Recv_init, total, number + 1, 1)
        self._hand_back = requests(group.Send_init, total, number - 1, 1)

    def fold(self, slots: Sequence[np.ndarray], first: int) -> None:
        """total = the sum of all machines' slots. first: the first machine that has any."""
        number, is_last = self.machine.number, not self._hand_on
        self._start(self._take_back)
        takes = self._take if number > first else []
        self._start(takes)
        for i, place in enumerate(self.places if number >= first else []):
            rows = [place.of(slot) for slot in slots]
            if takes:
                takes[i].Wait()
                rows.insert(0, place.of(self._partial))
            fold(rows, place.of(self.total if is_last else self._partial))
            for request in (self._hand_back if is_last else self._hand_on)[i : i + 1]:
                request.Start()
        for i, request in enumerate(self._take_back):
            request.Wait()
            for back in self._hand_back[i : i + 1]:
                back.Start()
        self.library.Prequest.Waitall([*self._hand_on, *self._hand_back])

    def release(self) -> None:
        """After the last fold."""
        for request in (*self._take, *self._hand_on, *self._take_back, *self._hand_back):
            request.Free()

    def _start(self, requests: list[Any]) -> None:
        if requests:
            self.library.Prequest.Startall(requests)


def fold(rows: Sequence[np.ndarray], out: np.ndarray) -> None:
    """out = the sum of rows, in their order; `out` may be the first one."""
    if len(rows) == 1:
        np.copyto(out, rows[0])
    for i, row in enumerate(rows[1:]):
        np.add(out if i else rows[0], row, out=out)


def extents_of(
    layout: PageLayout, begins: Iterable[int], parts: Iterable[int] = (0,), count: int = 1, most: int | None = None
) -> list[Extent]:
    """Of what lies like the parameters at `begins` of a page (see PageLayout), those of `count` parts: in runs of
    neighbours, of so many bytes at most.
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
