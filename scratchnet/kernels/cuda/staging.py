"""Transfers between host and GPU, through pinned host memory, which the GPU copies without help of the CPU.

`prefetch` transfers batches ahead of time in a stream of their own; events keep it in step with the kernels.
`PinnedTransfer` transfers one piece of memory, in either direction, when asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from . import memory, movement
from .compile import Event, machine, stream
from .memory import DeviceArray


class PinnedTransfer:
    """Transfers of at most `nbytes` bytes each, in the order of the kernels."""

    def __init__(self, nbytes: int):
        self._pinned = machine.pinned(nbytes)

    @staticmethod
    def memory(nbytes: int) -> DeviceArray:
        """Zero bytes on the GPU, a multiple of 4."""
        whole = memory.empty(nbytes // 4, np.float32)  # not integers, whose limits each transfer would compute
        movement.fill(whole, 0)
        return whole.view(np.uint8)

    def send(self, x: np.ndarray, out: DeviceArray) -> None:
        """Copies x (bytes) to the GPU, for kernels that are launched from now on."""
        memory.synchronize()  # the last transfer may still read the same pinned memory
        self._pinned[: x.size] = x
        memory.send(out[: x.size].view(np.float32), self._pinned[: x.size].view(np.float32))

    def receive(self, x: DeviceArray, out: np.ndarray) -> None:
        """Copies x (bytes) from the GPU, after all kernels that were launched until now."""
        memory.receive(x.view(np.float32), self._pinned[: x.size].view(np.float32))
        out[...] = self._pinned[: x.size]


def prefetch(batches: Iterable[Sequence[np.ndarray]]) -> Iterator[list[DeviceArray]]:
    """The batches as arrays on the GPU: the next one is transferred while the caller works on this one."""
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
            under_way.arrive()  # else the pool might give away memory that the transfer still writes


class Staging:
    """Pinned memory for one batch. `prefetch` alternates between two: one is filled while the other is transferred."""

    def __init__(self) -> None:
        self._pinned: list[np.ndarray] = []
        self._arrived: Any = None  # the event after the last copy

    def send(self, batch: Sequence[np.ndarray]) -> Transfer:
        """Starts the transfer of a batch, after the last one has left the pinned memory."""
        if self._arrived is None:
            self._arrived = Event()
        else:
            self._arrived.synchronize()
        arrays = []
        for i, x in enumerate(batch):
            if i == len(self._pinned) or self._pinned[i].nbytes < x.nbytes:
                self._pinned[i:] = [machine.pinned(max(x.nbytes, 1))]
            arrays.append(memory.empty(x.shape, x.dtype))
        ready = Event()
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
    """A batch whose transfer has started."""

    def __init__(self, arrays: list[DeviceArray], arrived: Any):
        self._arrays, self._arrived = arrays, arrived

    def arrive(self) -> list[DeviceArray]:
        """The arrays; kernels that are launched from now on wait for the transfer."""
        self._arrived.wait(stream())
        return self._arrays
