"""Who does what in a step: pieces of work that workers take as they become free, and seal when they are done.

Each piece has two words. `claim` holds step * OWNERS + rank + 1 of the worker that has it in this step; `seal` the
number of steps in which it was done. A worker takes a piece by one compare-and-exchange; no one else writes either word
until it is sealed. If its owner dies, the parent, once the process is gone, puts the claim back to step * OWNERS: then
it is free again. So there is no lock that a dead worker could hold, and a late worker takes nothing of an old step.
"""

import numpy as np

from ..kernels.cpu.atomics import (
    LINE,
    NEVER,
    REACHED,
    compare_exchange,
    load_acquire,
    store_release,
    wait_a_turn,
)
from ..kernels.cpu.compile import jit

OWNERS = 1 << 16  # more than there are workers
ALL_SEALED, STOPPED = -1, -2
GO, STOP = 0, LINE  # words: steps that may be begun; not 0: leave


class Pieces:
    """Words of `count` pieces, from `first` on."""

    def __init__(self, first: int, count: int):
        self.claims, self.seals, self.count = first, first + count * LINE, count
        self.end = first + 2 * count * LINE

    def sealed(self, words: np.ndarray) -> np.ndarray:
        """(count,): in how many steps each piece was done."""
        return words[self.seals : self.end : LINE]

    def owned(self, words: np.ndarray, rank: int) -> list[tuple[int, int]]:
        """(piece, step) that worker `rank` has taken and not sealed."""
        claims, seals = words[self.claims : self.seals : LINE], self.sealed(words)
        return [
            (i, int(claim) // OWNERS)
            for i, (claim, seal) in enumerate(zip(claims, seals, strict=True))
            if int(claim) % OWNERS == rank + 1 and seal <= int(claim) // OWNERS
        ]

    def release(self, words: np.ndarray, piece: int, step: int) -> None:
        """Free again, because its owner is dead."""
        _store(words, self.claims + piece * LINE, step * OWNERS)


@jit
def _store(words, at, value):
    store_release(words, at, value)


def allow(words: np.ndarray, steps: int) -> None:
    """Let workers begin `steps` steps in all; what they need for these was written before."""
    _store(words, GO, steps)


def stop(words: np.ndarray) -> None:
    """Let all workers leave."""
    _store(words, STOP, 1)


@jit
def take(words, claims, seals, count, step, rank, spins, scratch):
    """A piece for worker `rank` to do in `step`; ALL_SEALED if there is none left, and all are done; or STOPPED.

    It looks first at the piece that has its own number, so that a worker tends to have the same ones in each step.
    """
    free = step * OWNERS
    turn = 0
    while True:
        sealed = 0
        for i in range(count):
            piece = (rank + i) % count
            at = claims + piece * LINE
            seen = load_acquire(words, at)
            if seen <= free and compare_exchange(words, at, seen, free + rank + 1):
                return piece
            if load_acquire(words, seals + piece * LINE) > step:
                sealed += 1
        if sealed == count:
            return ALL_SEALED
        if wait_a_turn(words, STOP, turn, NEVER, spins, scratch) != REACHED:
            return STOPPED
        turn += 1


@jit
def seal(words, seals, piece, step):
    """Piece done in `step`: what was written for it is there for all who see this."""
    store_release(words, seals + piece * LINE, step + 1)


@jit
def wait_for_step(words, step, spins, scratch):
    """Until `step` may be begun: True; or, if all shall leave, False."""
    turn = 0
    while load_acquire(words, GO) <= step:
        if wait_a_turn(words, STOP, turn, NEVER, spins, scratch) != REACHED:
            return False
        turn += 1
    return True
