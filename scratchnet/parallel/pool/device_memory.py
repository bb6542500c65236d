"""The memory in which a worker computes gradients: the arena itself, or device memory on a GPU.

The arena lies in the memory of the host, so the protocol is the same for workers on GPUs: such a worker copies the
parameters of a version to its GPU once, and the gradient of each shard back to the shard's slot, each in one transfer.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from .layout import Page, PageLayout
from .replica import Replica
from .training_arena import TrainingArena


class HostMemory:
    """The memory of a worker on the host: the arena itself."""

    def __init__(self, arena: TrainingArena, layout: PageLayout):
        self.arena, self.layout = arena, layout
        self.pages: list[Page] = [layout.page(memory) for memory in arena.pages]
        self._slots = [list(ring) for ring in arena.slots]

    def page(self, version: int) -> Page:
        """The page of a version; the same object for the same memory."""
        return self.pages[version % len(self.pages)]

    def slot(self, ring: int, k: int) -> np.ndarray:
        """Where the gradient of shard k is written; the same object for the same memory."""
        return self._slots[ring][k]

    def copy(self, version: int, ring: int, k: int) -> np.ndarray:
        """A slot that holds a copy of the whole page of a version."""
        slot = self._slots[ring][k]
        slot[...] = self.arena.pages[version % len(self.pages)]
        return slot

    def flush(self, ring: int, k: int) -> None:
        """Copy what was written to the slot of shard k to the arena, if it lies elsewhere."""

    @cached_property
    def scratch(self) -> np.ndarray:
        """A slot that no other worker sees."""
        return np.zeros(self.layout.nbytes, np.uint8)


class GpuMemory(HostMemory):
    """The memory of a worker on a GPU: one page and one slot."""

    def __init__(self, arena: TrainingArena, layout: PageLayout):
        super().__init__(arena, layout)
        from ...kernels.cuda.staging import PinnedTransfer

        self._transfer = PinnedTransfer(max(layout.nbytes, arena.slots.shape[2]))
        self._page, self._slot = self._transfer.memory(layout.nbytes), self._transfer.memory(arena.slots.shape[2])
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
        self._transfer.receive(self._slot, self._slots[ring][k])

    @cached_property
    def scratch(self):
        return self._transfer.memory(self.layout.nbytes)


def memory_for(replica: Replica, arena: TrainingArena) -> HostMemory:
    """The memory in which `replica` computes gradients."""
    return (HostMemory if replica.device.is_host else GpuMemory)(arena, replica.layout)
