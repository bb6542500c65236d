"""What travels between host and GPU: through pinned memory of the host, from and to which the GPU copies by itself.

`prefetch` brings batches ahead of time, with a stream for copies and events that keep both in step; `PinnedTransfer`
brings one piece of memory there, or back, when it is wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from . import memory, movement
from .compile import event, numba_cuda, stream
from .memory import DeviceArray


class PinnedTransfer:
    """Pieces of at most `nbytes` bytes, one after the other, in the order of the kernels."""

    def __init__(self, nbytes: int):
        self._pinned = numba_cuda.pinned_array(nbytes, np.uint8)

    @staticmethod
    def memory(nbytes: int) -> DeviceArray:
        """Bytes on the GPU, zeros; a multiple of 4 of them."""
        whole = memory.empty(nbytes // 4, np.float32)  # of integers, limits would be looked for
        movement.fill(whole, 0)
        return whole.view(np.uint8)

    def send(self, x: np.ndarray, out: DeviceArray) -> None:
        """Bytes to the GPU: for kernels that are launched from now on."""
        memory.synchronize()  # what was sent before may still be on its way from the same memory
        self._pinned[: x.size] = x
        memory.send(out[: x.size].view(np.float32), self._pinned[: x.size].view(np.float32))

    def receive(self, x: DeviceArray, out: np.ndarray) -> None:
        """Bytes from the GPU: what all kernels launched until now made of them."""
        memory.receive(x.view(np.float32), self._pinned[: x.size].view(np.float32))
        out[...] = self._pinned[: x.size]


def prefetch(batches: Iterable[Sequence[np.ndarray]]) -> Iterator[list[DeviceArray]]:
    """The batches on the GPU, of which the next one travels there while this one is worked on.

    Each passes through pinned memory, from which the GPU copies by itself, in a stream of its own.
    """
    staging = (Staging(), Staging())
    under_way: Transfer | None = None
    try:
        for number, batch in enumerate(batches):
            following = staging[number % 2].send(batch)
            if under_way is not None:
                yield under_way.arrive()
            under_way = following
        if under_way is not None:
            yield under_way.arrive()
            under_way = None
    finally:
        if under_way is not None:
            under_way.arrive()  # its memory is not for others before it has come


class Staging:
    """One batch at a time. Two of these take turns: one batch travels while another is worked on."""

    def __init__(self) -> None:
        self._pinned: list[np.ndarray] = []
        self._arrived: Any = None  # the event after the last copy

    def send(self, batch: Sequence[np.ndarray]) -> Transfer:
        """Starts the journey of a batch, when the one before has left the pinned memory."""
        if self._arrived is None:
            self._arrived = event()
        else:
            self._arrived.synchronize()
        arrays = []
        for i, x in enumerate(batch):
            if i == len(self._pinned) or self._pinned[i].nbytes < x.nbytes:
                self._pinned[i:] = [numba_cuda.pinned_array(max(x.nbytes, 1), np.uint8)]
            arrays.append(memory.empty(x.shape, x.dtype))
        ready = event()
        ready.record(stream())  # kernels launched until now may still use the memory that the pool gave us
        ready.wait(stream("copy"))
        for pinned, x, out in zip(self._pinned, batch, arrays, strict=False):
            if x.size:
                staged = pinned[: x.nbytes].view(x.dtype)
                staged[:] = x.reshape(-1)
                memory.send(out, staged, "copy")
        self._arrived.record(stream("copy"))
        return Transfer(arrays, self._arrived)


class Transfer:
    """A batch under way."""

    def __init__(self, arrays: list[DeviceArray], arrived: Any):
        self._arrays, self._arrived = arrays, arrived

    def arrive(self) -> list[DeviceArray]:
        """The arrays, for kernels that are launched from now on: those wait until it has come."""
        self._arrived.wait(stream())
        return self._arrays
