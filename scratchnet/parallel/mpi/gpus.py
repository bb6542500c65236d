"""How ranks on GPUs merge without the host: as machines do (slices.py), each rank as a machine of its own, by NCCL.

    gradient of shard k -> slot k, on the GPU of its rank             all ranks say that they have theirs
    each rank adds up its shards, subtree by subtree, on its GPU
    slice s of each sum                                               goes to the GPU of the rank that owns it
    it folds what came along the tree, and updates its slice there
    slice s of the new parameters                                     goes to the GPUs of all other ranks

NCCL moves bytes and adds up nothing, so the bits are those of the tree, for any number of ranks: those of workers on
GPUs of one machine (pool/device_memory.py). For W ranks and n bytes a rank sends (S + 1) (W-1)/W n of them, S the
number of its subtrees. What is said between ranks (losses, what is not finite, parts of a norm) goes by MPI, as ever.

An exchange is waited for by looking whether it is done, never in the driver, so the watch can end the job meanwhile.
The link lives as long as a run. Where a rank dies the job ends; the next one, from the checkpoint, has a new link.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import logging
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ...errors import DeviceError
from ..comm.memory import round_up
from ..pool.device_memory import Blocks, PeerMemory, why_on_host
from ..pool.layout import Extent
from ..pool.replica import Replica
from ..pool.training_arena import TrainingArena
from ..pool.worker import Worker
from .communicator import MpiCommunicator
from .machines import Machine, extents_of
from .slices import Slices

log = logging.getLogger("scratchnet.parallel")


def are_linked(comm: MpiCommunicator, replica: Replica) -> bool:
    """Can gradients stay on the GPUs? All ranks call this at once, and have the same answer; one says why not."""
    from ...kernels.cuda import nccl
    from ...kernels.cuda.compile import machine

    why = why_on_host(replica, by_nccl=True)
    if why is None and replica.strategy.order == "fast":
        why = f"{replica.strategy} leaves the order of additions to MPI"
    own = (0, 0, 0) if why else (nccl.version(), *struct.unpack("<2q", machine.identity()))
    brought = comm.handshake("the way of gradients", *own)
    versions, gpus = brought[:, 0].tolist(), [tuple(gpu) for gpu in brought[:, 1:3].tolist()]
    teller = versions.index(0) if 0 in versions else 0
    if why is None and 0 not in versions:
        if len({*gpus}) < len(gpus):
            a, b = next((a, b) for a, b in itertools.combinations(range(len(gpus)), 2) if gpus[a] == gpus[b])
            why = f"ranks {a} and {b} share a GPU"
        elif len({*versions}) > 1:
            why = f"ranks have different versions of NCCL, {min(versions)} and {max(versions)}"
    if why and comm.rank == teller:
        log.info("gradients go through the memory of the host: %s", f"rank {teller}: {why}" if teller else why)
    return why is None and 0 not in versions


class Windows:
    """Bytes on the GPU at some extents of a slot; they are sliced as if all of it were there."""

    def __init__(self, extents: Sequence[Extent]):
        from ...kernels.cuda.staging import PinnedTransfer

        extents = sorted(extents)
        self._begins = [extent.offset for extent in extents]
        *self._places, size = itertools.accumulate((round_up(extent.nbytes) for extent in extents), initial=0)
        self._memory = PinnedTransfer.memory(max(size, 4))

    def __getitem__(self, key: slice) -> Any:
        if key.stop <= key.start:
            return self._memory[:0]
        i = bisect.bisect(self._begins, key.start) - 1
        at = self._places[i] + key.start - self._begins[i]
        return self._memory[at : at + key.stop - key.start]


class GpuBlocks:
    """What a rank's `PeerMemory` opens: its pages, slots of its own shards, and of the others what its slices need.

    slots: by shard. blocks: the memory of pages and of own slots. extents: at which the sums of others begin, by shard.
    """

    def __init__(self, blocks: Blocks, own: range, extents: dict[int, list[Extent]]):
        self._blocks, self._own, self._extents = blocks, own, extents

    def opened(self) -> tuple[list[Any], dict[int, Any]]:
        pages, slots = self._blocks.opened()
        received = {k: Windows(extents) for k, extents in self._extents.items()}
        return pages, dict(zip(self._own, slots, strict=True)) | received


class GpuSlices(Slices):
    """The exchange of the header, in the place of that of machines. All ranks make one at once.

    A rank has one slice; with clip_norm the slices are parts of the norm, as ever.
    """

    _link: Any = None

    def __init__(self, machine: Machine, replica: Replica):
        from ...kernels.cuda import nccl

        super().__init__(machine, replica, most=1)
        self.comm, self.shards = machine.comm, machine.shards(machine.number, replica.shards)
        self._others = [rank for rank in range(machine.count) if rank != machine.number]
        self._last = (self.count - 1) % machine.count  # who owns the last slice, to which the buffers belong
        cut = [extents_of(self.layout, [0], self._pieces_of([rank]), self.count) for rank in range(machine.count)]
        self._at = [[extent for extent in own if extent.nbytes] for own in cut]  # of each rank, in a slot or a page
        name = np.frombuffer(nccl.new_name() if self.comm.rank == 0 else bytes(nccl.NAME), np.int64)
        name = self.comm.broadcast(name.copy())
        with self._watched("the link of GPUs"):
            self._link = nccl.Link(machine.count, machine.number, name.tobytes())

    def blocks(self, blocks: Blocks) -> GpuBlocks:
        """blocks: the memory of all pages, and of a slot for each shard of this rank."""
        starts = {tree.start for rank in self._others for tree in self._subtrees[rank]}
        extents = {}
        for k in range(self.replica.shards):
            if k not in self.shards:
                buffers = self._buffers() if self._last == self.machine.number else []
                extents[k] = (self._at[self.machine.number] if k in starts else []) + buffers
        return GpuBlocks(blocks, self.shards, extents)

    def attach(self, arena: TrainingArena, worker: Worker) -> None:
        from ...kernels.cuda.staging import PinnedTransfer

        self.arena, self.worker = arena, worker
        worker.leaves = self._leaves
        assert isinstance(worker.gradients, PeerMemory)
        self._memory: PeerMemory = worker.gradients
        sums = [tree for tree in self._subtrees[self.machine.number] if len(tree) > 1]
        self._sums = {tree: PinnedTransfer.memory(self.layout.parameter_bytes) for tree in sums}

    def detach(self) -> None:
        with self._watched("the end of the link of GPUs"):
            self._link.close()

    def abandon(self) -> None:
        """This rank goes no further: what its GPU still waits for will not come."""
        if self._link:
            self._link.abort()

    # --- a step -----------------------------------------------------------------------------------------------------

    def begin(self, step: int) -> None:
        pass

    def done(self, phase: str, piece: int, step: int) -> None:
        pass

    def send_gradients(self, step: int) -> None:
        """Start to exchange sums, and buffers. All ranks have computed all their shards."""
        me, full = self.machine.number, self.worker.shares_of(step).full
        slots: Any = self._memory.slots[0]
        messages: list[tuple[int, int, Any, list[Extent]]] = []
        for rank, trees in enumerate(self._subtrees):
            for tree in trees:
                shards = [k for k in tree if k in full]
                if shards and rank == me:
                    total = slots[shards[0]]
                    if len(shards) > 1:
                        total = self._memory.add_up((0, 1), {k: slots[k] for k in shards}, self._sums[tree])
                    messages += [(me, other, total, self._at[other]) for other in self._others]
                elif shards:
                    messages.append((rank, me, slots[tree.start], self._at[me]))
            for k in self.machine.shards(rank, self.replica.shards) if rank != self._last else ():
                if k in full and me in (rank, self._last):
                    messages.append((rank, self._last, slots[k], self._buffers()))
        self._exchange("gradients", messages)
        self.worker.fail("gradients.sent", step)

    def wait_for_gradients(self, step: int) -> None:
        self._wait("gradients")

    def wait_for_parameters(self, step: int) -> None:
        """All ranks get all slices of the new page, and seal them as if they had done them."""
        self._share((step + 1) % len(self._memory.pages), range(1), lambda: self.worker.fail("parameters.sent", step))
        seals = self.arena.pieces[-1].sealed(self.arena.words)
        seals[self._of_others] = step + 1

    def share_states(self, with_older: bool) -> None:
        """The optimizer's state in the newest page goes to all ranks."""
        self._share(self.arena.committed() % len(self._memory.pages), range(1, len(self.layout.begins)))

    # --- messages ---------------------------------------------------------------------------------------------------

    def _share(self, page: int, parts: Iterable[int], sent: Any = lambda: None) -> None:
        """Parts of a page (0: parameters and buffers, j: a state) go from the owners of their slices to all others."""
        me, messages = self.machine.number, []
        for part, rank in itertools.product(parts, range(self.machine.count)):
            extents = self._at[rank] + (self._buffers() if rank == self._last and part == 0 else [])
            to = self._others if rank == me else [me]
            messages += [(rank, other, self._memory.pages[page][part], extents) for other in to]
        self._exchange("parameters", messages)
        sent()
        self._wait("parameters")

    def _exchange(self, what: str, messages: Sequence[tuple[int, int, Any, list[Extent]]]) -> None:
        """Start it. messages: from, to, memory here, extents in it."""

        def of(way: int) -> Iterator[tuple[int, Any]]:
            for *ends, memory, extents in messages:
                if ends[way] == self.machine.number:
                    for offset, nbytes in ((extent.offset, extent.nbytes) for extent in extents):
                        yield ends[1 - way], memory[offset : offset + nbytes]

        with self._watched(f"the exchange of {what}"):
            self._link.exchange(of(0), of(1))

    def _wait(self, what: str) -> None:
        """Returns when the exchange is done."""
        with self._watched(text := f"the exchange of {what}"):
            self.comm.wait(self._link, text)

    @contextlib.contextmanager
    def _watched(self, text: str) -> Iterator[None]:
        """Inside this rank waits for others. Where NCCL has lost one, the watch gets the time to say which."""
        try:
            with self.comm.waiting(text):
                yield
        except DeviceError:
            self.abandon()
            with self.comm.waiting(text):
                time.sleep(self.comm.watch.patience + 1)
            raise
