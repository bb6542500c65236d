"""The memory in which a worker computes gradients, and in which they are merged: one class a place.

    HostMemory     the arena itself
    GpuMemory      the arena; but the gradient of a shard is computed on a GPU, which gets the parameters of a version
                   in one transfer, and gives the gradient back in another
    PeerMemory     pages and slots are on GPUs: neither gradients nor parameters go through the host

The protocol is the same for all of them, as its words lie in the arena.

    the pages on the first GPU of the first workers; slot k on GPU k mod G of their G

The parent of the workers holds the memory on GPUs (DeviceArena), in which it computes nothing, and workers open it, by
kernels/cuda/ipc.py. So a worker that dies takes nothing along: what it had sealed stays, and what it had not is done
again. A worker seals a piece once its GPU has done it, and who reads it begins after the seal. Between steps the parent
copies a page from the GPU to the arena, for those that read parameters on the host, or back.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ... import checks
from ...errors import DeviceError
from ...native import vectors
from ..comm.memory import round_up
from ..comm.tree import tree_sum
from .layout import Page
from .replica import Replica
from .slices import sum_of_squares
from .training_arena import TrainingArena

Leaves = Mapping[int, Any]  # by shard, ascending
VARIABLE = "SCRATCHNET_GRADIENTS"
MOST_SHARDS = 64  # whose slots a kernel takes as arguments


# --- in a worker ------------------------------------------------------------------------------------------------------


class HostMemory:
    """The memory of a worker on the host: the arena itself.

    pages: each version of the parameters, buffers and state, in turn. slots: [ring][k], what is merged.
    """

    pages: list[Page]
    slots: list[list[Any]]

    def __init__(self, replica: Replica, arena: TrainingArena):
        self.replica, self.arena, self.layout = replica, arena, replica.layout
        self._place()

    def _place(self) -> None:
        self.pages = [self.layout.page(memory) for memory in self.arena.pages]
        self.slots = [list(ring) for ring in self.arena.slots]

    def page(self, version: int) -> Page:
        """Where the parameters of a version are read; the same object for the same memory."""
        return self.pages[version % len(self.pages)]

    def slot(self, ring: int, k: int) -> Any:
        """Where the gradient of shard k is written; the same object for the same memory."""
        return self.slots[ring][k]

    def copy(self, version: int, ring: int, k: int) -> Any:
        """A slot that holds a copy of the whole page of a version."""
        slot = self.slots[ring][k]
        slot[...] = self.arena.pages[version % len(self.pages)]
        return slot

    def flush(self, ring: int, k: int) -> None:
        """Copy what was written for shard k to where it is merged, if that is elsewhere."""

    def finish(self, ring: int, k: int, scale: float) -> int:
        """`flush` a gradient without the loss scale; 0, or 1 + the number of a parameter that is not finite in it."""
        self.flush(ring, k)
        self.replica.unscale(self.slots[ring][k], scale)
        return 1 + self.replica.find_nonfinite(self.slots[ring][k])

    def folded(self, part: tuple[int, int], gradients: Leaves) -> Leaves:
        """What is left to be folded of slice s of n, (s, n) = part."""
        return gradients

    def sum_of_squares(self, part: tuple[int, int], gradients: Leaves) -> float:
        """Of slice s of n, (s, n) = part, of the merged gradient, in float64."""
        return sum_of_squares(self.layout, part, gradients)

    def wait(self) -> None:
        """Return when all that was begun is done, so that others may read it."""

    @cached_property
    def scratch(self) -> Any:
        """A slot that no other worker sees."""
        return np.zeros(self.layout.nbytes, np.uint8)


class GpuMemory(HostMemory):
    """The memory of a worker on a GPU: one page and one slot."""

    def _place(self):
        super()._place()
        from ...kernels.cuda.staging import PinnedTransfer

        size = self.arena.slots.shape[2]
        self._transfer = PinnedTransfer(max(self.layout.nbytes, size))
        self._page, self._slot = self._transfer.memory(self.layout.nbytes), self._transfer.memory(size)
        self._read: Any = [self._page]
        self._version = -1

    def page(self, version):
        stays = len(self.pages) > 1  # with one page (Hogwild) others write it at any time
        if version != self._version or not stays:
            self._transfer.send(self.pages[version % len(self.pages)][0], self._page)
            self._version = version
        return self._read

    def slot(self, ring, k):
        return self._slot

    def copy(self, version, ring, k):
        self._transfer.send(self.arena.pages[version % len(self.pages)], self._slot)
        return self._slot

    def flush(self, ring, k):
        self._transfer.receive(self._slot, self.slots[ring][k])

    @cached_property
    def scratch(self):
        return self._transfer.memory(self.layout.nbytes)


class PeerMemory(HostMemory):
    """Of a worker on a GPU whose slots and pages others read there: a page, a slot and a merged gradient of its own."""

    def __init__(self, replica: Replica, arena: TrainingArena, blocks: Blocks):
        self._blocks = blocks
        super().__init__(replica, arena)

    def _place(self):
        from ...kernels.cuda.staging import PinnedTransfer

        pages, slots = self._blocks.opened()
        self.pages, self.slots = [self.layout.page(memory) for memory in pages], [slots]
        own: Any = (PinnedTransfer.memory(self.layout.nbytes) for _ in range(3))
        self._page, self._slot, self._merged = own
        self._read: Any = [self._page]
        self._version = -1
        self._folds: dict[Any, Any] = {}
        self._device = self.replica.device

    def page(self, version):
        if version != self._version:
            self._device.write(self._page, self.pages[version % len(self.pages)][0])
            self._version = version
        return self._read

    def slot(self, ring, k):
        return self._slot

    def finish(self, ring, k, scale):
        device, gradients = self._device, [segment.extent.of(self._slot) for segment in self.layout.segments]
        for own in gradients if scale != 1 else ():
            device.mul(own, np.full((), 1 / scale, own.dtype), own)
        bad = 0
        if not all(map(self._is_finite, gradients)):
            bad = 1 + self.replica.find_nonfinite(device.to_host(self._slot))
        device.write(self.slots[ring][k], self._slot)
        return bad

    def _is_finite(self, x: Any) -> bool:
        """False for what is not finite, and for a sum that is too large: one number to be read."""
        total = self._device.empty((1, 1), x.dtype)
        self._device.sum(x.reshape(1, -1, 1), total)
        return bool(np.isfinite(total.item()))

    def folded(self, part, gradients):
        return gradients if len(gradients) == 1 else {next(iter(gradients)): self.add_up(part, gradients, self._merged)}

    def add_up(self, part: tuple[int, int], gradients: Leaves, out: Any) -> Any:
        """`out` gets slice s of n, (s, n) = part, of the sum of these gradients along the tree."""
        from ...kernels.cuda.folds import fold_tree

        kind = part, tuple(gradients), id(out)
        if kind not in self._folds:
            places = {k: i for i, k in enumerate(gradients)}
            tree = tree_sum(gradients, places.__getitem__, _pair)
            self._folds[kind] = [
                (tree, [extent.of(slot) for slot in gradients.values()], extent.of(out))
                for extent in self.layout.cut(part)
            ]
        for fold in self._folds[kind]:
            fold_tree(*fold)
        return out

    def sum_of_squares(self, part, gradients):
        (merged,) = self.folded(part, gradients).values()
        own = (self._device.to_host(extent.of(merged)) for extent in self.layout.cut(part))
        return float(sum(map(vectors.sum_of_squares, own)))

    def wait(self):
        from ...kernels.cuda.memory import synchronize

        synchronize()


def _pair(left: Any, right: Any) -> Any:
    return left, right


def memory_for(replica: Replica, arena: TrainingArena, blocks: Blocks | None) -> HostMemory:
    """The memory in which `replica` computes gradients. blocks: where pages and slots are on GPUs."""
    if blocks is not None:
        return PeerMemory(replica, arena, blocks)
    return (HostMemory if replica.device.is_host else GpuMemory)(replica, arena)


# --- what a parent holds ----------------------------------------------------------------------------------------------


class Blocks(NamedTuple):
    """What workers are told: the handle of the memory on each GPU, and the bytes of a page and of a slot."""

    handles: Sequence[Any]
    pages: int
    page_bytes: int
    slots: int
    slot_bytes: int

    def size(self, i: int) -> int:
        """Bytes on GPU i."""
        return self._begin(i) + len(range(i, self.slots, len(self.handles))) * self.slot_bytes

    def _begin(self, i: int) -> int:
        """Where on GPU i the slots begin."""
        return 0 if i else self.pages * self.page_bytes

    def opened(self) -> tuple[list[Any], list[Any]]:
        """The pages and the slots, as bytes on GPUs."""
        from ...kernels.cuda.ipc import opened

        memory = [opened(handle, self.size(i)) for i, handle in enumerate(self.handles)]
        pages = [memory[0][at : at + self.page_bytes] for at in range(0, self._begin(0), self.page_bytes)]
        slots = []
        for k in range(self.slots):
            number, i = divmod(k, len(memory))
            begin = self._begin(i) + number * self.slot_bytes
            slots.append(memory[i][begin : begin + self.slot_bytes])
        return pages, slots


class DeviceArena:
    """What the parent holds, on the GPUs of these numbers; None: for itself, on the one on which it computes.

    slots: how many; None: all of the arena.
    Raises DeviceError if there is no room.
    """

    def __init__(self, arena: TrainingArena, numbers: Sequence[int] | None, slots: int | None = None):
        from ...kernels.cuda.ipc import Held, Own

        make, numbers = (Own, [0]) if numbers is None else (Held, list(dict.fromkeys(numbers)))
        self._pages, (_, every, size) = arena.pages, arena.slots.shape
        pages, page_bytes = arena.pages.shape
        slots = every if slots is None else slots
        self.blocks = Blocks([b""] * len(numbers), pages, page_bytes, slots, round_up(size))
        self._held: list[Any] = []
        try:
            for i, number in enumerate(numbers):
                self._held.append(make(number, max(self.blocks.size(i), 1)))
        except BaseException as error:
            self.free()
            if isinstance(error, DeviceError):
                raise DeviceError(f"{error}; {VARIABLE}=host keeps pages and slots in the memory of the host") from None
            raise
        self.blocks = self.blocks._replace(handles=[held.handle for held in self._held])

    def write(self, page: int) -> None:
        """Copy a page of the arena to the GPU."""
        self._held[0].send(page * self.blocks.page_bytes, self._pages[page])

    def read(self, page: int) -> None:
        """Copy a page from the GPU to the arena."""
        self._held[0].receive(page * self.blocks.page_bytes, self._pages[page])

    def free(self) -> None:
        """Give the memory back. All workers have ended."""
        for held in self._held:
            held.free()


def why_on_host(replica: Replica, by_nccl: bool = False) -> str | None:
    """Why gradients go through the memory of the host, though workers have GPUs; None: they need not.

    by_nccl: would they go between ranks of an MPI job? The answer does not depend on the number of workers, as it
    changes bits: CPUs and GPUs update differently.
    """
    settings, strategy = replica.settings, replica.strategy
    if checks.one_of(VARIABLE, os.environ.get(VARIABLE) or "gpu", ("gpu", "host")) == "host":
        return f"{VARIABLE}=host"
    reasons = {
        "some workers compute on CPUs": settings.placement.are_mixed,
        f"{strategy} is not exact": not strategy.is_exact,
        f"{strategy} keeps old parameters": strategy.lag > 0,
        f"{strategy} takes local steps": strategy.has_local_steps,
        f"{strategy} compresses them": strategy.compression is not None,
        f"{strategy} divides the model": strategy.stages > 1 or strategy.parts > 1,
        "some gradients are by rows": bool(replica.layout.by_rows),
        f"there are more than {MOST_SHARDS} shards": replica.shards > MOST_SHARDS,
    }
    if found := [reason for reason, holds in reasons.items() if holds]:
        return found[0]
    if by_nccl:
        from ...kernels.cuda import nccl

        return nccl.why_not()
    from ...kernels.cuda.ipc import why_not_shared

    return why_not_shared()
