"""The plan of a pipeline: which ops, parameters and buffers each stage has, and what crosses between stages.

The parent makes it before the first step, from one traced forward pass for each size that a shard may have, and checks
it: the stages, one after the other, must give the bytes that one process gives. It travels to the workers.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ... import tracing
from ...errors import ConfigError
from ...random import Generator
from ...tensor import Tensor
from ..comm.memory import round_up
from ..phases import Link, Place
from ..shards import gathered, seed_others, shard_loss, split, streams_kept, tensors_of
from .cut import cut_into, shared
from .trace import WHO, Made, Trace


@dataclass(frozen=True)
class Stage:
    """One stage. ops: range of op numbers. takes: earlier ops whose outputs it reads; leaves: its ops that later stages
    read. parameters, buffers: positions in the page's lists. reads_batch: does it read a field of the batch?
    place: which stage it is, or which part of one. blocks: keys of what it reads of parameters that parts share.
    """

    ops: range
    takes: tuple[int, ...]
    leaves: tuple[int, ...]
    parameters: tuple[int, ...]
    buffers: tuple[int, ...]
    reads_batch: bool
    place: Place
    blocks: dict[int, list[Any]]


@dataclass
class Plan:
    """All stages. made, fields: of a shard of each size, what its ops give and what a batch is like.

    activation_at, gradient_at: where in a shard's memory lies what an op sent, and the gradient of that which stage s
    passes on, by (op, s): the sum over stage s and all later ones. has_gradient: those that there are.
    names: of the modules with which stages begin.
    """

    stages: list[Stage]
    names: list[str]
    made: dict[int, list[Made]]
    fields: dict[int, Any]
    activation_at: dict[int, int] = field(default_factory=dict)
    gradient_at: dict[tuple[int, int], int] = field(default_factory=dict)
    has_gradient: set[tuple[int, int]] = field(default_factory=set)
    activation_bytes: int = 0
    gradient_bytes: int = 0

    def __post_init__(self) -> None:
        sizes = [max(made[op].nbytes for made in self.made.values()) for op in range(len(self._any_made))]
        for s, stage in enumerate(self.stages):
            for op in stage.leaves:
                self.activation_at[op] = self.activation_bytes
                self.activation_bytes += round_up(sizes[op])
            for op in stage.takes:
                self.gradient_at[op, s] = self.gradient_bytes
                self.gradient_bytes += round_up(sizes[op])

    @property
    def links(self) -> list[Link]:
        """How the stages hang together."""
        found = []
        for s, stage in enumerate(self.stages):
            after = [r for r in range(s) if not set(stage.takes).isdisjoint(self.stages[r].leaves)]
            before = {later[1] for op in (*stage.takes, *stage.leaves) if (later := self.later(op, s))}
            found.append(Link(stage.place, tuple(after), tuple(sorted(before))))
        return found

    def members(self, number: int) -> tuple[set[int], set[int]]:
        """Parameters and buffers of a stage with all its parts, by position."""
        own = [stage for stage in self.stages if stage.place.stage == number]
        return {i for stage in own for i in stage.parameters}, {i for stage in own for i in stage.buffers}

    @property
    def _any_made(self) -> list[Made]:
        return next(iter(self.made.values()))

    def made_of(self, n: int) -> list[Made]:
        """Of a shard of n samples."""
        if n not in self.made:
            raise ConfigError(f"{WHO}: expected shards of {sorted(self.made)} samples, as in the first epoch, got {n}")
        return self.made[n]

    def later(self, op: int, s: int) -> tuple[int, int] | None:
        """(op, the first stage after s that passes on a gradient of its output), if there is one."""
        found = [reader for o, reader in self.has_gradient if o == op and reader > s]
        return (op, min(found)) if found else None

    def stand_ins(self, n: int) -> Any:
        """A batch of n samples that nobody may read."""
        return _mapped(self.fields[n], lambda like: Tensor(like.stand_in()))


def plan_of(replica: Any) -> tuple[Plan, list[np.ndarray]]:
    """The plan for a replica, without has_gradient; positions of a shard of each size. Raises ConfigError where there
    is none.
    """
    settings, strategy = replica.settings, replica.strategy
    batches = list(settings.loader.batch_indices(0))
    sizes: dict[int, np.ndarray] = {}
    for positions in sorted(batches, key=len, reverse=True):
        for k in range(replica.shards):
            own = split((positions,), k, replica.shards)[0]
            if len(own):
                sizes.setdefault(len(own), own)
    traces, fields, first = {}, {}, next(iter(sizes))
    for n in [first, *sizes]:  # the first one twice: it compiles kernels, and is measured then
        traces[n], fields[n] = traced(replica, sizes[n])
    trace = traces[first]
    starts = cut_into(trace, settings.model, strategy.stages, strategy.cut)
    names = {id(module): name for name, module in settings.model.named_modules()}
    kinds = [made.op for made in trace.made]
    for n, other in traces.items():
        if [made.op for made in other.made] != kinds:
            raise ConfigError(
                f"{WHO}: expected the same ops for shards of {first} and {n} samples, got {len(kinds)} and "
                f"{len(other.made)}, or others; drop_last=True and a batch that shards divide give one size"
            )
    bounds = [0, *(trace.calls[start][1] for start in starts), len(trace.made)]
    assert shared(trace, bounds) is None
    begins = ["", *(names[id(trace.calls[start][0])] for start in starts)]
    made = {n: found.made for n, found in traces.items()}
    stages = list[Stage]()
    for number, (lo, hi) in enumerate(itertools.pairwise(bounds)):
        shared_out = _parts_of(trace, number, lo, hi) if strategy.shares_parts(settings.workers) else None
        stages += shared_out or [_stage(trace, range(lo, hi), Place(number))]
    return Plan(stages, begins, made, fields), list(sizes.values())


def traced(replica: Any, positions: np.ndarray, of: type[Trace] = Trace) -> tuple[Trace, Any]:
    """The trace of a shard with the samples at `positions`, of this kind; and what its batch is like."""
    settings = replica.settings
    parameters = [replica.optimizer.states[i].param for i in replica.layout.parameters]
    buffers = list(settings.model.buffers())
    copies = [t._data.copy() for t in (*parameters, *buffers)]
    with replica.bound(copies), streams_kept():
        batch = tensors_of(gathered(replica.dataset, positions, settings.seed, 0), replica.tensor)
        fields: list[Tensor] = []
        _mapped(batch, fields.append)
        trace = of(parameters, buffers, fields)
        seed_others(settings.seed, 0, 1)
        with tracing.into(trace):
            shard_loss(settings.model, settings.loss, batch, Generator(settings.seed), settings.precision)
    trace.check_no_change()
    trace.tensors, trace._kept = [], []
    like = _mapped(batch, lambda t: Made("", t.shape, t.dtype, tuple(range(t.ndim))))
    return trace, like


def _mapped(batch: Any, function: Any) -> Any:
    if isinstance(batch, dict):
        return {name: function(value) for name, value in batch.items()}
    return [function(value) for value in batch]


def _stage(trace: Trace, ops: range, place: Place) -> Stage:
    later, own, reads = set().union(*trace.reads[ops.stop :]), [trace.uses[op] for op in ops], set[int]()
    blocks: dict[int, list[Any]] = {}
    for op in ops:
        reads |= trace.reads[op]
        if op in trace.blocks:
            blocks.setdefault(trace.blocks[op][0], []).append(trace.blocks[op][1])
    return Stage(
        ops,
        tuple(sorted(op for op in reads if op < ops.start)),
        tuple(op for op in ops if op in later),
        tuple(sorted({i for uses in own for i in uses["parameters"]})),
        tuple(sorted({i for uses in own for i in uses["buffers"]})),
        any(uses["fields"] for uses in own),
        place,
        blocks if place.parts > 1 else {},
    )


def _parts_of(trace: Trace, number: int, lo: int, hi: int) -> list[Stage] | None:
    """The ops of a stage cut where parts of layers begin and end; None where a parameter or a buffer would be shared,
    but for blocks of one that no two parts share.
    """
    parts = [(p, ops) for p, ops in trace.parts if lo <= ops.start and ops.stop <= hi and ops]
    places = {ops.start: Place(number, p, 1 + max(p for p, _ in parts)) for p, ops in parts}
    bounds = sorted({lo, hi, *places, *(ops.stop for _, ops in parts)})
    around = Place(number, 0, max([1, *(place.parts for place in places.values())]))
    found = [_stage(trace, range(*ends), places.get(ends[0], around)) for ends in itertools.pairwise(bounds)]
    ways: dict[int, list[list[Any] | None]] = {}
    for stage in found:
        for i in stage.parameters:
            reads = sum(i in trace.uses[op]["parameters"] for op in stage.ops)
            blocks = stage.blocks.get(i, [])
            ways.setdefault(i, []).append(blocks if len(blocks) == reads else None)
    buffers = [i for stage in found for i in stage.buffers]
    if len(set(buffers)) < len(buffers):
        return None
    for i, keys in ways.items():
        if len(keys) == 1:
            for stage in found:
                stage.blocks.pop(i, None)
            continue
        read = np.zeros(trace.shape_of(i), np.uint8)
        for key in itertools.chain.from_iterable(own or [...] for own in keys):
            read[key] += 1
        if None in keys or (read != 1).any():
            return None
    return found if len(found) > 1 else None
