"""Who does what in a step: workers take pieces of work as they become free, and seal them when they are done.

A step goes through phases (the gradients of shards, then slices of the merge and update, say), and a phase has pieces.
Each piece has two words. `claim` holds step * OWNERS + rank + 1 of the worker that has it in this step; `seal` counts
the steps in which it was done. A worker takes a piece by one compare-and-exchange; nobody else writes either word until
the piece is sealed. If a worker dies, the parent waits until the process is gone and puts the claims of its unsealed
pieces back to step * OWNERS: they are free again. So there is no lock that a dead worker could hold, and a worker that
comes late takes nothing of an old step.

One rule says when a piece may be taken: *its phase may do step t once the phase before has done it*. The phase before
the first one is the last one, `slack` steps behind. A phase may need others instead: those of a pipeline do.
"""

from collections.abc import Sequence

import numpy as np

from ...native.atomics import LINE, NEVER, REACHED, compare_exchange, load_acquire, publish, store_release, wait_a_turn
from ...native.compile import jit
from ..phases import Phase

OWNERS = 1 << 16  # more than there are workers, or pieces of a phase
STOPPED, NOTHING = -1, -2
GO, STOP = 0, LINE  # words: steps that may be begun; whether to leave
FIRST = 2 * LINE  # the first word of the pieces
UNBOUNDED = 1 << 40  # more steps than there are
# Columns of the table that `take` reads. BY_RANK: does its search begin at the worker's rank? TURN: of row i, the phase
# to look at after i others. NEEDS: how many, (phase, paired, slack, lag) each in the columns from NEEDS_AT on. From MAY
# on: may the worker take piece 0, 1, ...?
CLAIMS, SEALS, COUNT, EXCLUSIVE, BY_RANK, TURN, NEEDS, NEEDS_AT, MAY = range(9)


class Pieces:
    """The words of a phase's pieces, from word `first` on."""

    def __init__(self, phase: Phase, first: int):
        self.phase, self.claims, self.count = phase, first, phase.pieces
        self.seals = first + (1 if phase.exclusive else self.count) * LINE
        self.end = self.seals + self.count * LINE

    def sealed(self, words: np.ndarray) -> np.ndarray:
        """(count,): in how many steps each piece was done."""
        return words[self.seals : self.end : LINE]

    def owned(self, words: np.ndarray, rank: int) -> list[tuple[int, int]]:
        """(piece, step) that worker `rank` has taken and not sealed; of an exclusive phase (0, pieces done so far)."""
        claims, seals = words[self.claims : self.seals : LINE], self.sealed(words)
        if self.phase.exclusive:
            seals = seals.sum(keepdims=True)
        return [
            (i, int(claim) // OWNERS)
            for i, (claim, seal) in enumerate(zip(claims, seals, strict=True))
            if int(claim) % OWNERS == rank + 1 and seal <= int(claim) // OWNERS
        ]

    def release(self, words: np.ndarray, piece: int, step: int) -> None:
        """Free a piece whose owner is dead."""
        publish(words, self.claims + piece * LINE, step * OWNERS)


def lay_out(phases: Sequence[Phase]) -> list[Pieces]:
    """The pieces of all phases, whose words lie one after the other."""
    pieces: list[Pieces] = []
    for phase in phases:
        pieces.append(Pieces(phase, pieces[-1].end if pieces else FIRST))
    return pieces


def table_of(pieces: Sequence[Pieces], may: Sequence[np.ndarray | None] = ()) -> np.ndarray:
    """What `take` looks up: (phases, columns) int64.

    may: of each phase, from the first one on, bools: the pieces that the worker may take; None, or no entry: all.
    """
    needs = [p.phase.waits() for p in pieces]
    end = MAY + max(p.count for p in pieces)
    table = np.ones((len(pieces), end + 4 * max(map(len, needs))), np.int64)
    turns = sorted(range(len(pieces)), key=lambda i: (-pieces[i].phase.urgency, -i))
    for i, (columns, p) in enumerate(zip(table, pieces, strict=True)):
        columns[:MAY] = (
            p.claims,
            p.seals,
            p.count,
            p.phase.exclusive,
            p.phase.stage is None,
            turns[i],
            len(needs[i]),
            end,
        )
        own = [((i - need.back) % len(pieces), need.paired, need.slack, need.lag) for need in needs[i]]
        columns[end : end + 4 * len(own)] = np.ravel(own)
    allow_pieces(table, pieces, may)
    return table


def allow_pieces(table: np.ndarray, pieces: Sequence[Pieces], may: Sequence[np.ndarray | None]) -> None:
    """Change which pieces a worker may take; see `table_of`."""
    for columns, p, own in zip(table, pieces, may, strict=False):
        if own is not None:
            columns[MAY : MAY + p.count] = own


def allow(words: np.ndarray, steps: int) -> None:
    """Let workers begin `steps` steps in all, whose entries have been written."""
    publish(words, GO, steps)


def stop(words: np.ndarray) -> None:
    """Let all workers leave."""
    publish(words, STOP, 1)


@jit
def _fewest(words, seals, count):
    fewest = load_acquire(words, seals)
    for i in range(1, count):
        fewest = min(fewest, load_acquire(words, seals + i * LINE))
    return fewest


@jit
def _total(words, seals, count):
    total = 0
    for i in range(count):
        total += load_acquire(words, seals + i * LINE)
    return total


@jit
def _paired_limit(words, phases, p, piece):
    """How many steps of a piece may be done, for all that single pieces of other phases say."""
    limit, at = UNBOUNDED, phases[p, NEEDS_AT]
    for need in range(at, at + 4 * phases[p, NEEDS], 4):
        other = piece - phases[p, need + 3]
        if phases[p, need + 1] and other >= 0:
            done = load_acquire(words, phases[phases[p, need], SEALS] + other * LINE)
            limit = min(limit, done + phases[p, need + 2])
    return limit


@jit
def _most_behind(words, phases, p, rank):
    """Of the pieces of phase p that may be done, the one that was done in the fewest steps, and that number; or -1.

    Among equals the search begins at the worker's rank, so that a worker tends to get the same pieces in each step; in
    a stage of a pipeline at the first shard, whose result the next stage waits for.
    """
    seals, count, at = phases[p, SEALS], phases[p, COUNT], phases[p, NEEDS_AT]
    all_limit, paired = UNBOUNDED, False
    for need in range(at, at + 4 * phases[p, NEEDS], 4):
        if phases[p, need + 1]:
            paired = True
        else:
            before = phases[p, need]
            done = _fewest(words, phases[before, SEALS], phases[before, COUNT])
            all_limit = min(all_limit, done + phases[p, need + 2])
    go = load_acquire(words, GO)
    best, fewest = -1, UNBOUNDED
    for i in range(count):
        piece = (rank + i) % count if phases[p, BY_RANK] else i
        done = load_acquire(words, seals + piece * LINE)
        limit = min(all_limit, _paired_limit(words, phases, p, piece)) if paired else all_limit
        if done < min(limit, go, fewest) and phases[p, MAY + piece]:
            claim = load_acquire(words, phases[p, CLAIMS] + (0 if phases[p, EXCLUSIVE] else piece * LINE))
            if phases[p, EXCLUSIVE] or claim <= done * OWNERS:
                best, fewest = piece, done
    return best, fewest


@jit
def _take_one(words, phases, rank):
    """Urgent phases come first, and later ones, because other workers wait for them."""
    for turn in range(len(phases)):
        p = phases[turn, TURN]
        piece, done = _most_behind(words, phases, p, rank)
        if piece < 0:
            continue
        at = phases[p, CLAIMS] + piece * LINE
        if phases[p, EXCLUSIVE]:
            at, done = phases[p, CLAIMS], _total(words, phases[p, SEALS], phases[p, COUNT])
        free = done * OWNERS
        seen = load_acquire(words, at)
        if seen <= free and compare_exchange(words, at, seen, free + rank + 1):
            if phases[p, EXCLUSIVE]:  # before the claim succeeded, others may have done pieces
                piece, done = _most_behind(words, phases, p, rank)
                if piece < 0:
                    store_release(words, at, free)
                    continue
            return p * OWNERS + piece
    return NOTHING


@jit
def take(words, phases, rank, spins, scratch):
    """A piece for worker `rank` to do: number of the phase * OWNERS + number of the piece; or STOPPED.

    phases: see `table_of`. spins: see `atomics.wait_a_turn`; if negative, return NOTHING instead of waiting.
    """
    turn = 0
    while True:
        taken = _take_one(words, phases, rank)
        if taken != NOTHING or spins < 0:
            return taken
        if wait_a_turn(words, STOP, turn, NEVER, spins, scratch) != REACHED:
            return STOPPED
        turn += 1
