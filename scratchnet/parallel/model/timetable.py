"""Who does which piece of a step when, if each piece takes so long: the rule of pool/claims.py, without processes.

It predicts what a schedule costs before anybody runs it. `workers="auto"`, the pictures of the book and the simulation
of many workers read it, and the tests compare it with what the literature says of each schedule:

    schedule             seconds for which each of S workers waits in a step of K shards, K >= S
    "gpipe", "1f1b"      (S - 1) (f + b + w), a part (S - 1) / (K + S - 1) of the step
    "zero_bubble"        (S - 1) (f + b - w)

with f, b, w the seconds of a stage's forward pass, of the gradients of what it was sent, and of its parameters, if they
are about equal. The second line is ZB-H1 (Qi, Wan, Huang and Lin, "Zero Bubble Pipeline Parallelism", ICLR 2024).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..phases import Need, Phase, Place
from ..strategies import Strategy

GRADIENTS = ("shard", "forward", "backward", "backward_inputs", "backward_weights")  # phases with a piece a shard


class Span(NamedTuple):
    """A worker does a piece of a phase, from `start` to `end`."""

    worker: int
    phase: Phase
    piece: int
    start: float
    end: float


def bubble(schedule: str, stages: int, shards: int, forward: float, inputs: float, weights: float) -> float:
    """The part of a step in which workers wait, by the formula; with fewer shards than stages fewer w fill it."""
    filled = min(shards, stages) - 1 if schedule == "zero_bubble" else 1 - stages
    waits = (stages - 1) * (forward + inputs) - filled * weights
    return waits / (shards * (forward + inputs + weights) + waits)


def idle(spans: Sequence[Span], workers: int) -> float:
    """The part of the time of so many workers in which they do nothing."""
    length = max(span.end for span in spans) - min(span.start for span in spans)
    return 1 - sum(span.end - span.start for span in spans) / (workers * length)


def timetable(
    strategy: Strategy, phases: Sequence[Phase], workers: int, seconds: Callable[[Phase, int], float]
) -> list[Span]:
    """The pieces of one step in the order in which they are taken. phases: of the strategy, or some of them that need
    no others. seconds: that a piece of a phase takes.
    """
    step = _Step(strategy, phases, workers)
    spans, running, idle_workers, now = [], list[tuple[float, int, int, int]](), list(range(workers)), 0.0
    while True:
        waiting = []
        for rank in idle_workers:
            if (taken := step.take(rank)) is None:
                waiting.append(rank)
                continue
            p, piece = taken
            end = now + seconds(phases[p], piece)
            spans.append(Span(rank, phases[p], piece, now, end))
            heapq.heappush(running, (end, rank, p, piece))
        if not running:
            return spans
        idle_workers, now = waiting, running[0][0]
        while running and running[0][0] <= now:
            _, rank, p, piece = heapq.heappop(running)
            step.done[p][piece] = True
            idle_workers.append(rank)
        idle_workers.sort()


class Sizes(NamedTuple):
    """Bytes of a stage, or of a whole model: its parameters; of a shard, all that its ops give, and what it sends."""

    parameters: int
    activations: int
    sent: int = 0


def held(strategy: Strategy, spans: Sequence[Span], workers: int, sizes: Sequence[Sizes], states: int) -> list[int]:
    """Bytes of arrays that each worker holds: pages and slots of its stages, what travels, and the graphs of shards
    that are under way in a timetable. states: arrays that the optimizer keeps of each parameter.

    Workers that share a stage share its updates: each reads all its parameters, and the optimizer's state of its slice.
    """
    shards = max(span.piece for span in spans if span.phase.name in GRADIENTS) + 1
    owner = (lambda s, k: strategy.owner(Place(s), k, workers)) if len(sizes) > 1 else lambda s, k: k % workers
    found = []
    for rank in range(workers):
        total = 0.0
        for s, (parameters, _, sent) in enumerate(sizes):
            if not (own := sum(owner(s, k) == rank for k in range(shards))):
                continue
            share = 1 / len({owner(s, k) for k in range(shards)})
            total += parameters * strategy.pages * (1 + states * share)
            total += parameters * strategy.rings * (own + (shards - own) * share)
            total += 2 * own * (sent + (sizes[s - 1].sent if s else 0))
        found.append(int(total + _graphs(strategy, [span for span in spans if span.worker == rank], sizes)))
    return found


def _graphs(strategy: Strategy, spans: Sequence[Span], sizes: Sequence[Sizes]) -> int:
    """The most bytes of graphs that a worker with these spans holds at a time."""
    lives: dict[tuple[int, int, bool], tuple[float, float]] = {}
    for span in spans:
        if span.phase.name in GRADIENTS:
            again = strategy.recompute and span.phase.name != "forward"
            key = span.phase.stage or 0, span.piece, again
            lives[key] = lives.get(key, (span.start, 0.0))[0], span.end
    changes = [(end, -sizes[s].activations) for (s, *_), (_, end) in lives.items()]
    changes += [(start, sizes[s].activations) for (s, *_), (start, _) in lives.items()]
    return max(itertools.accumulate(change for _, change in sorted(changes)), default=0)


class _Step:
    """Which pieces are taken, and which are done."""

    def __init__(self, strategy: Strategy, phases: Sequence[Phase], workers: int):
        self.done = [[False] * phase.pieces for phase in phases]
        self._taken = [[False] * phase.pieces for phase in phases]
        self._needs = [
            [(p - need.back, need) for need in phase.waits() if not need.slack and 0 <= p - need.back < len(phases)]
            for p, phase in enumerate(phases)
        ]
        turns = sorted(range(len(phases)), key=lambda p: (-phases[p].urgency, -p))
        self._may = [[(p, _own(strategy, phases[p], rank, workers)) for p in turns] for rank in range(workers)]

    def take(self, rank: int) -> tuple[int, int] | None:
        """A phase and a piece for a worker that is free."""
        for p, pieces in self._may[rank]:
            for piece in pieces:
                if not self._taken[p][piece] and all(self._is_met(q, need, piece) for q, need in self._needs[p]):
                    self._taken[p][piece] = True
                    return p, piece
        return None

    def _is_met(self, before: int, need: Need, piece: int) -> bool:
        if not need.paired:
            return all(self.done[before])
        return piece < need.lag or self.done[before][piece - need.lag]


def _own(strategy: Strategy, phase: Phase, rank: int, workers: int) -> list[int]:
    """The pieces of a phase that a worker may take, in the order in which it looks at them."""
    pieces, stage = range(phase.pieces), phase.stage
    if stage is None:
        return [(rank + i) % phase.pieces for i in pieces]
    return [piece for piece in pieces if strategy.owner(phase.place, piece, workers) == rank]
