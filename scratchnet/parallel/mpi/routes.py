"""What travels between the machines of a job whose model is divided: which bytes of the arena, from whom to whom, when.

    after      of stage s, shard k   to machines that                     travel
    forward                          have stages that read them           activations
    backward                         have earlier stages                  gradients of activations
    backward                         update its parameters                its part of slot k
    slice i of a stage               have other shards or parts of it     new parameters

A route is made on all ranks alike, from the plan and from who owns what. stages.py sends and receives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..comm.memory import round_up
from ..phases import NORMS, Phase
from ..pool.layout import Extent
from ..pool.replica import Replica
from ..pool.training_arena import TrainingArena
from .machines import Machine

Span = tuple[int, int]  # of bytes in the arena: begin, end
LARGE = ("pages", "slots", "activations", "gradients")  # arrays of the arena of which a machine needs a part
MERGES, LAST_BACKWARDS = ("norm", "slice"), ("backward", "backward_weights")  # phases


class Route:
    """What goes from a rank to one on another machine, when a piece of phase `number` is done.

    sender, receiver: ordinals. blocks: arrays whose bytes do not lie side by side, and copies, which travel.
    """

    def __init__(self, number: int, piece: int, sender: int, receiver: int):
        self.number, self.piece, self.sender, self.receiver = number, piece, sender, receiver
        self.spans: set[Span] = set()
        self.blocks: list[tuple[np.ndarray, np.ndarray]] = []

    def data(self, memory: np.ndarray, most: int) -> Iterator[np.ndarray]:
        """The bytes, in arrays of at most so many; one at least. memory: the arena's, as bytes."""
        whole = [memory[begin:end] for begin, end in merged(self.spans)]
        whole += [copy.reshape(-1).view(np.uint8) for _, copy in self.blocks]
        for array in whole or [memory[:0]]:
            yield from (array[at : at + most] for at in range(0, max(len(array), 1), most))


def span_of(extent: Extent) -> Span:
    return extent.offset, extent.offset + extent.nbytes


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same bytes in as few spans as can be, in order."""
    found: list[Span] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        elif begin < end:
            found.append((begin, end))
    return found


class Routes:
    """The routes of a job. Ranks, counted machine by machine, are the workers of `Place.owner`."""

    def __init__(self, machine: Machine, replica: Replica, arena: TrainingArena):
        self.machine, self.layout, self.arena, self.shards = machine, replica.layout, arena, range(replica.shards)
        plan: Any = replica.plan
        self.plan = plan
        self.phases = [pieces.phase for pieces in arena.pieces]
        self._strategy, self._states = replica.strategy, list(replica.layout.parameters)
        of_ops = zip(*self.plan.made.values(), strict=True)  # for each size that a shard may have
        self._sizes = [max(made.nbytes for made in sizes) for sizes in of_ops]

    def owner(self, phase: Phase, piece: int) -> int:
        """The ordinal of the rank that does a piece."""
        size = self.machine.comm.size
        return piece % size if phase.stage is None else self._strategy.owner(phase.place, piece, size)

    def is_here(self, ordinal: int) -> bool:
        """Is this rank on this machine?"""
        return self.machine.machine_at(ordinal) == self.machine.number

    def numbered(self, *names: str) -> list[tuple[int, Phase]]:
        """The phases of these names, and their numbers."""
        return [(number, phase) for number, phase in enumerate(self.phases) if phase.name in names]

    def _add(self, found: dict[Any, Route], number: int, piece: int, reader: int, spans: Iterable[Span]) -> None:
        """`reader` needs these bytes of a piece, of which its machine gets one copy."""
        sender, there = self.owner(self.phases[number], piece), self.machine.machine_at(reader)
        if self.machine.machine_at(sender) != there:
            found.setdefault((number, piece, there), Route(number, piece, sender, reader)).spans |= {*spans}

    # --- between stages ---------------------------------------------------------------------------------------------

    def between_stages(self) -> list[Route]:
        """Activations and their gradients."""
        found: dict[Any, Route] = {}
        forward = {phase.stage: number for number, phase in self.numbered("forward")}
        backward = {phase.stage: number for number, phase in self.numbered("backward", "backward_inputs")}
        for s, (stage, link) in enumerate(zip(self.plan.stages, self.plan.links, strict=True)):
            for k in self.shards:
                reader = self.owner(self.phases[forward[s]], k)
                for r in link.after:
                    ops = set(self.plan.stages[r].leaves).intersection(stage.takes)
                    self._add(found, forward[r], k, reader, self._activations(k, ops))
                for r in link.before:
                    ops = {op for op in (*stage.takes, *stage.leaves) if self.plan.later(op, s) == (op, r)}
                    self._add(found, backward[r], k, reader, self._gradients(k, r, ops))
        return [*found.values()]

    def _activations(self, k: int, ops: Iterable[int]) -> Iterator[Span]:
        return self._rows("activations", k, [(self.plan.activation_at[op], self._sizes[op]) for op in ops])

    def _gradients(self, k: int, s: int, ops: Iterable[int]) -> Iterator[Span]:
        return self._rows("gradients", k, [(self.plan.gradient_at[op, s], self._sizes[op]) for op in ops])

    def _rows(self, name: str, k: int, places: Sequence[tuple[int, int]]) -> Iterator[Span]:
        """Places (begin, size) in the memory of shard k, in each batch of a step."""
        offset, (_, span, size), _ = self.arena.extents[name]
        rows = [offset + (k * span + a) * size for a in range(span)]
        return ((row + begin, row + begin + nbytes) for row in rows for begin, nbytes in places)

    # --- merges -----------------------------------------------------------------------------------------------------

    def of_slots(self) -> list[Route]:
        """The gradients and buffers that a shard gave, to those that merge them."""
        found: dict[Any, Route] = {}
        for number, phase in self.numbered(*LAST_BACKWARDS):
            stage = self.plan.stages[phase.stage]
            whole = [self.layout.parameters[self._states[j]] for j in stage.parameters if j not in stage.blocks]
            own = merged((e.offset, e.offset + round_up(e.nbytes)) for e in whole)
            for _, merge in self.numbered(*MERGES):
                for piece in range(merge.pieces if merge.stage in (None, stage.place.stage) else 0):
                    read = [span_of(e) for e in self._cut(merge, piece)]
                    spans = [(max(a, lo), min(b, hi)) for a, b in own for lo, hi in read if max(a, lo) < min(b, hi)]
                    if merge.stage is not None and piece == merge.pieces - 1:
                        buffers = [self.layout.buffers[i] for i in stage.buffers]
                        spans += [span_of(e) for e in buffers]
                    for k in self.shards:
                        self._add(found, number, k, self.owner(merge, piece), self._at("slots", k, spans))
        for route in found.values():
            for extent, keys in self._shared(route):
                array = extent.of(self.arena.slots[0, route.piece])
                route.blocks += [(array[key], np.empty(array[key].shape, array.dtype)) for key in keys]
        return [*found.values()]

    def _shared(self, route: Route) -> list[tuple[Extent, list[Any]]]:
        """Parameters of which the stage of a route has blocks, and their keys."""
        blocks = self.plan.stages[self.phases[route.number].stage].blocks
        return [(self.layout.parameters[self._states[j]], keys) for j, keys in blocks.items()]

    def of_page(self, page: int) -> list[Route]:
        """The new parameters and buffers in this page."""
        found: dict[Any, Route] = {}
        for number, merge in self.numbered("slice"):
            own = [phase for _, phase in self.numbered("forward") if phase.place.stage == merge.stage]
            readers = sorted({self.owner(phase, k) for phase in own for k in self.shards})
            for piece in range(merge.pieces):
                spans = [span_of(e) for e in self.written(merge, piece)]
                for reader in readers:
                    self._add(found, number, piece, reader, self._at("pages", page, spans))
        return [*found.values()]

    def written(self, merge: Phase, piece: int, begins: Iterable[int] = (0,)) -> list[Extent]:
        """Where in a page a slice writes: all that lies like the parameters at `begins`, and buffers."""
        cut = self._cut(merge, piece)
        found = [extent._replace(offset=begin + extent.offset) for begin in begins for extent in cut]
        return found + (self.layout.buffers_of(merge.stage) if piece == merge.pieces - 1 else [])

    def _cut(self, merge: Phase, piece: int) -> list[Extent]:
        if merge.stage is None:
            return self.layout.cut((piece, NORMS))
        return [extent for _, extent in self.layout.cut_stage((piece, merge.pieces), merge.stage)]

    def _at(self, name: str, row: int, spans: Iterable[Span]) -> Iterator[Span]:
        """Spans of a row of an array in the arena."""
        offset, shape, _ = self.arena.extents[name]
        at = offset + row * shape[-1]
        return ((at + begin, at + end) for begin, end in spans)

    # --- memory -----------------------------------------------------------------------------------------------------

    def used_here(self, routes: Iterable[Route]) -> list[Span]:
        """All that this machine writes: what its pieces do, and what it receives."""
        arena, layout = self.arena, self.layout
        spans = {span_of(e) for name, e in arena.extents.items() if name not in LARGE}
        for route in (route for route in routes if self.is_here(route.receiver)):
            shared = [span_of(extent) for extent, _ in self._shared(route)] if route.blocks else []
            spans |= {*route.spans, *self._at("slots", route.piece, shared)}
        for s, phase in enumerate(phase for _, phase in self.numbered("forward")):
            stage = self.plan.stages[s]
            merge = next(own for _, own in self.numbered("slice") if own.stage == stage.place.stage)
            for k in (k for k in self.shards if self.is_here(self.owner(phase, k))):
                spans |= {*self._activations(k, stage.leaves), *self._gradients(k, s, stage.takes)}
                for piece in range(merge.pieces):
                    own = [span_of(e) for e in self.written(merge, piece)]
                    spans |= {*self._at("slots", k, own)}
                    own = [span_of(e) for e in self.written(merge, piece, layout.begins)]
                    spans |= {span for page in range(len(arena.pages)) for span in self._at("pages", page, own)}
        return merged(spans)
