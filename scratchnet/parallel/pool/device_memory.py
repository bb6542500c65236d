"""The memory in which a worker computes gradients: the arena, or copies on a GPU of what it reads and writes there.

The arena lies in the memory of the host, so all of the shard protocol is the same on a GPU: a worker copies the
parameters of a version there once, and the gradient of each shard back to the shard's slot, both in one piece.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from .replica import Page, PageLayout, Replica
from .training_arena import TrainingArena


class HostMemory:
    """Of a worker on the host: the arena itself."""

    def __init__(self, arena: TrainingArena, layout: PageLayout):
        self.arena, self.layout = arena, layout
        self.pages: list[Page] = [layout.page(memory) for memory in arena.pages]
        self._slots = [list(ring) for ring in arena.slots]

    def page(self, version: int) -> Page:
        """Parameters and buffers of a version; the same object for the same memory."""
        return self.pages[version % len(self.pages)]

    def slot(self, ring: int, k: int) -> np.ndarray:
        """Where the gradient of shard k is to be written; the same object for the same memory."""
        return self._slots[ring][k]

    def copy(self, version: int, ring: int, k: int) -> np.ndarray:
        """A slot with a whole page in it."""
        slot = self._slots[ring][k]
        slot[...] = self.arena.pages[version % len(self.pages)]
        return slot

    def hand_in(self, ring: int, k: int) -> None:
        """What was written to the slot of shard k goes to the arena."""

    @cached_property
    def scratch(self) -> np.ndarray:
        """A slot of the worker's own."""
        return np.zeros(self.layout.nbytes, np.uint8)


class GpuMemory(HostMemory):
    """Of a worker on a GPU: one page and one slot."""

    def __init__(self, arena: TrainingArena, layout: PageLayout):
        super().__init__(arena, layout)
        from ...kernels.cuda.staging import PinnedTransfer

        self._transfer = PinnedTransfer(max(layout.nbytes, arena.slots.shape[2]))
        self._page, self._slot = self._transfer.memory(layout.nbytes), self._transfer.memory(arena.slots.shape[2])
        self._read: Any = [self._page]
        self._version = -1

    def page(self, version):
        stays = len(self.pages) > 1  # Hogwild's only page changes all the time
        if version != self._version or not stays:
            self._transfer.send(self.pages[version % len(self.pages)][0], self._page)
            self._version = version
        return self._read

    def slot(self, ring, k):
        return self._slot

    def copy(self, version, ring, k):
        self._transfer.send(self.arena.pages[version % len(self.pages)], self._slot)
        return self._slot

    def hand_in(self, ring, k):
        self._transfer.receive(self._slot, self._slots[ring][k])

    @cached_property
    def scratch(self):
        return self._transfer.memory(self.layout.nbytes)


def memory_for(replica: Replica, arena: TrainingArena) -> HostMemory:
    """For what `replica` computes."""
    return (HostMemory if replica.device.is_host else GpuMemory)(arena, replica.layout)
