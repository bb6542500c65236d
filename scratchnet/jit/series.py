"""Series: replays of one program one after the other, in one compiled call.

Between two replays, Python takes longer than a small step. What differs from step to step is little: the inputs, what
effects fill in (the numbers of an optimizer, keys of random numbers), the results. So Python prepares these for many
steps at a time, each in a row of memory of its own, and the threads go from step to step by themselves (execute.py).

A small step may be faster on one thread: what several win is lost again when each fetches from the caches of the others
what they have just written. Bits do not depend on that, so it is measured as the series run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ..native.aligned import aligned
from ..tracing import Undo
from .program import Program, Stopped, take_back

TURNS = 32  # that one compiled call takes at most
SMALL = 1 << 16  # bytes of what differs from turn to turn; more is not copied
LIGHT = 1 << 23  # work of a turn, about 1 ms; only up to here one thread may be faster than several
TRIAL = 32  # of so many runs, one has the number of threads that was slower: this may have changed
PROBE = 8  # turns of such a run, some of which it takes to wake a thread
FORGOTTEN = 1.02  # the least seconds of a run count for less with each one that takes longer


class Series:
    """Turns of a program. results: the arrays that its caller reads after each."""

    def __init__(self, program: Program, results: Sequence[np.ndarray]):
        self.program, (self._executable,) = program, program.executables
        fills = program.trace.filled.values()
        self._inputs, self._fills, self._results = map(_rows, (program.inputs, fills, results))
        found = [[place[1:] for place in places or ()] for places in program.addresses]
        found += [self._executable.places_of(memory) for memory, _ in (*self._fills, *self._results)]
        places, firsts = list[int](), list[np.ndarray]()
        for (_, rows), own in zip((*self._inputs, *self._fills, *self._results), found, strict=True):
            first = rows.__array_interface__["data"][0] + rows.strides[0] * np.arange(TURNS)
            for place, offset in own:
                places.append(place)
                firsts.append(first + offset)
        self._places = np.array(places, np.int64)
        self._addresses = np.array(firsts, np.int64).reshape(-1, TURNS).T.copy()  # a row for each turn
        self._runs, shared = 0, self._executable.shared
        self._seconds = {shared: 0.0} | ({False: 0.0} if self._executable.work <= LIGHT else {})  # of a turn, by shared

    @classmethod
    def of(cls, program: Program, results: Sequence[np.ndarray]) -> Series | None:
        """None where a step needs Python between its kernels or after them, or where much differs from turn to turn."""
        moving = [*program.inputs, *program.trace.filled.values(), *results]
        is_compiled = len(program.parts) == len(program.executables) == 1 and not (program.outputs or program.early)
        is_plain = all(isinstance(x, np.ndarray) and x.flags.carray and 0 < x.nbytes <= SMALL for x in moving)
        is_apart = len({id(x) for x in moving}) == len(moving) and None not in program.addresses
        series = cls(program, results) if is_compiled and is_plain and is_apart else None
        return series if series is not None and len(series._places) else None

    def run(
        self, calls: Sequence[Sequence[np.ndarray]], before: Callable[[int], Any], holds: Callable[[], bool]
    ) -> int:
        """Does the step for the inputs of the first of `calls`, of which there are at most TURNS, in order.

        before(i): called before the effects of step i. holds: see `Program.begin`. Returns how many steps are done. If
        none is, a guard of the first one does not hold, or an effect failed; all is as it was before it.
        """
        undo: list[list[Undo]] = []
        executable, fitting = self._executable, self._executable.words[self._places]
        executable.done[0] = 0
        shared, most = self._choice()
        try:
            for turn, inputs in enumerate(calls[:most]):
                undo.append([])
                before(turn)
                for (_, rows), x in zip(self._inputs, inputs, strict=True):
                    rows[turn] = x
                try:
                    self.program.begin(undo[turn], holds)
                except Stopped:
                    take_back(undo.pop())
                    break
                for memory, rows in self._fills:
                    rows[turn] = memory
            if undo:
                self._run_turns(self._addresses[: len(undo)], shared)
        finally:  # a signal may have come at any time
            self.program.stop[0] = 0
            executable.words[self._places] = fitting
            take_back([action for actions in undo[executable.done[0] :] for action in actions])
        return int(executable.done[0])

    def _choice(self) -> tuple[bool, int]:
        """On all threads, or on one? Whichever took less time before; the other one gets a few turns now and then."""
        self._runs += 1
        faster, *slower = sorted(self._seconds, key=lambda shared: self._seconds[shared])
        return (slower[0], PROBE) if slower and self._runs % TRIAL == 1 else (faster, TURNS)

    def _run_turns(self, addresses: np.ndarray, shared: bool) -> None:
        start = time.perf_counter()
        self._executable.run_turns(self._places, addresses, shared)
        seconds, known = (time.perf_counter() - start) / len(addresses), self._seconds[shared]
        self._seconds[shared] = min(seconds, FORGOTTEN * known or seconds)

    def results(self, turn: int) -> None:
        """Puts the results of a turn of the last run where the program itself leaves its results."""
        for memory, rows in self._results:
            np.copyto(memory, rows[turn])


def _rows(arrays: Iterable[Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each array, and as many like it as there are turns, each of them at the begin of a cache line."""
    found = []
    for x in arrays:
        line = 64 // x.itemsize
        room = aligned((TURNS, -(-x.size // line) * line), x.dtype)
        found.append((x, np.ndarray((TURNS, *x.shape), x.dtype, room, 0, (room.strides[0], *x.strides))))
    return found
