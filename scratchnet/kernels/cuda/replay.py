"""Calls that a program repeats: their launches are packed once, and started all together, as one CUDA graph.

Whatever a launch reads of the host would stay in the graph as it was. So numbers that differ from step to step (a
learning rate, the key of random numbers) lie in memory of the GPU, where they are sent before the graph is started.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np

from ...errors import DeviceError
from . import memory
from .compile import captured, machine

PAGE = 4096  # bytes of numbers that are sent at once


class Numbers:
    """Numbers of launches in memory of the GPU; `refresh` sends those that have changed on the host."""

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}  # what a launch reads, by what it is made of
        self._entries: list[tuple[Callable, np.ndarray, np.ndarray]] = []
        self._read: list[bytes] = []  # what each was made of last
        self._pages: list[tuple[Any, np.ndarray]] = []  # on the GPU and here
        self._room = 0  # bytes left in the last page

    def of(self, dtype: np.dtype, make: Callable[[np.ndarray], Sequence], source: np.ndarray) -> Any:
        """make(source) as an array of `dtype` on the GPU. One source and rule have one array."""
        key = dtype, make, id(source)
        if key not in self._made:
            values = np.array(make(source), dtype)
            nbytes = -(-values.nbytes // 16) * 16
            if self._room < nbytes:
                self._pages.append((memory.empty(PAGE, np.uint8), np.zeros(PAGE, np.uint8)))
                self._room = PAGE
            start = PAGE - self._room
            there, here = (page[start : start + values.nbytes].view(dtype) for page in self._pages[-1])
            self._room -= nbytes
            self._entries.append((make, source, here))
            self._read.append(b"")
            self._made[key] = there
        return self._made[key]

    def refresh(self) -> None:
        """Before each start of the launches."""
        has_changed = False
        for i, (make, source, here) in enumerate(self._entries):
            if (read := source.tobytes()) != self._read[i]:
                here[:] = make(source)
                self._read[i], has_changed = read, True
        if has_changed:
            for there, here in self._pages:
                machine.send(there.address, here, machine.stream())  # pageable memory is read at once


_numbers: ContextVar[Numbers | None] = ContextVar("numbers", default=None)


def numbers(dtype: np.dtype, make: Callable[[np.ndarray], Sequence], source: np.ndarray) -> Any:
    """make(source) as an argument that a kernel may index: numbers, or where they will change, memory of the GPU."""
    kept = _numbers.get()
    return tuple(map(dtype.type, make(source))) if kept is None else kept.of(dtype, make, source)


class Replay:
    """Calls of kernels, whose launches are made once. Its first run starts them one by one, each later one as a graph.

    Where no graph can be made of them, as in the simulator, they are always started one by one.
    """

    def __init__(self, items: Iterable[Any]):
        """items: of fusion.py. stages: of each of them the kernels that it computes, and its launches as texts."""
        self.numbers = Numbers()
        self.launches: list[Callable[[], None]] = []
        self.stages: list[tuple[Sequence[str], list[str]]] = []
        token = _numbers.set(self.numbers)
        try:
            for item in items:
                found = captured(item.run)
                self.launches += [launch for launch, _ in found]
                self.stages.append((item.names, [text for _, text in found]))
        finally:
            _numbers.reset(token)
        self._started: Callable[[], None] = self._first

    def __call__(self) -> None:
        self.numbers.refresh()
        self._started()

    def run_watched(self, clock: Callable[[], int]) -> list[int]:
        """Starts the launches of one stage after the other, and waits for each: when each of them had ended."""
        self.numbers.refresh()
        ends, launches = [], iter(self.launches)
        for _, texts in self.stages:
            for launch in itertools.islice(launches, len(texts)):
                launch()
            memory.synchronize()
            ends.append(clock())
        return ends

    def synchronize(self) -> None:
        """Waits for the launches."""
        memory.synchronize()

    def _one_by_one(self) -> None:
        for launch in self.launches:
            launch()

    def _first(self) -> None:
        self._one_by_one()
        self._started = self._one_by_one
        with contextlib.suppress(DeviceError):  # of a driver that cannot capture one of them
            self._started = machine.Graph(self.launches)
