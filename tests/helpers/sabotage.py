"""Ways to break what keeps a run exact, so that the drill has something to find. SABOTAGE names one of them.

`apply` is called in the parent, and in each worker when it opens its job: see Loss.
"""

import functools
import os
import subprocess

import numpy as np
import victim

from scratchnet.formats import checkpoint
from scratchnet.native.atomics import LINE
from scratchnet.parallel import engines, shards
from scratchnet.parallel.comm.tree import tree_sum
from scratchnet.parallel.pool import compress, slices, worker
from scratchnet.parallel.pool.replica import Gradient
from scratchnet.parallel.pool.slices import Slice as Exact


def apply(folder):
    if os.environ.get("SABOTAGE"):
        globals()[os.environ["SABOTAGE"]](folder)


class Loss(victim.Loss):
    def __setstate__(self, state):
        super().__setstate__(state)
        apply(self.folder)


class Slice:
    """A slice of merge and update that does it in another way; `true`: the slices that it is made of."""

    def __init__(self, *true):
        self.true, self.written = true, true[-1].written


def arrival_order(folder):
    """Gradients are added in the order in which they came, not in that of their shards."""
    compute = Gradient.compute

    def stamped(self, positions, weight, batch, k):
        result = compute(self, positions, weight, batch, k)
        with open(f"{folder}/done-{k}", "w"):
            os.utime(f"{folder}/done-{k}")
        return result

    class Arrived(Slice):
        def __init__(self, replica, part, old, new, slots, *of_buffers_and_stage):
            super().__init__(Exact(replica, part, old, new, slots))
            self.of, self.slots, self.shards = (replica, part, old, new), slots, replica.shards

        def update(self, *numbers):
            order = list(self.slots)
            if len(self.slots) == self.shards:  # none is empty
                order.sort(key=lambda k: os.stat(f"{folder}/done-{k}").st_mtime_ns)
            slots = {place: self.slots[k] for place, k in zip(self.slots, order, strict=True)}
            Exact(*self.of, slots).update(*numbers)

    Gradient.compute, worker.Slice = stamped, Arrived


def chain(set_attribute):
    """Shards are added one after the other."""
    for module in (engines, shards, slices, compress):
        set_attribute(module, "tree_sum", lambda numbers, leaf, add: functools.reduce(add, map(leaf, numbers)))


def compact(set_attribute):
    """Where a shard has no samples, those after it take its place in the tree."""

    def renumbered(numbers, leaf, add):
        return tree_sum(range(len(list(numbers))), lambda place: leaf(list(numbers)[place]), add)

    for module in (engines, shards, slices, compress):
        set_attribute(module, "tree_sum", renumbered)


def in_place(folder):
    """An update overwrites what it reads, so that it cannot be done again."""

    class InPlace(Slice):
        def __init__(self, replica, part, old, new, slots, *of_buffers_and_stage):
            self.both = Exact(replica, part, old, new, slots)
            super().__init__(Exact(replica, part, old, old, slots))

        def update(self, *numbers):
            self.true[0].update(*numbers)
            for old, _, new in self.both.segments:
                for source, target in zip(old, new, strict=True):
                    np.copyto(target, source)

    worker.Slice = InPlace


def seal_first(folder):
    """A gradient, or what a stage sends, is sealed before it is there."""
    publish = worker.publish

    def sealed(do):
        def done(self, k, step):
            phases = [pieces for pieces in self.arena.pieces if pieces.phase.name == do.__name__]
            at = next(pieces.seals for pieces in phases if pieces.phase.stage == self.stage)
            publish(self.arena.words, at + k * LINE, step + 1)
            do(self, k, step)

        return done

    def seal_once(words, at, steps):
        if words[at] < steps:
            publish(words, at, steps)

    for name in ("shard", "forward", "backward"):
        setattr(worker.Worker, name, sealed(getattr(worker.Worker, name)))
    worker.publish = seal_once


def no_checksum(folder):
    """A checkpoint is believed."""
    checkpoint._check_digest = lambda blob: None


def leave_something(folder):
    """A process and an open file stay."""
    if os.getpid() == os.getsid(0):
        leave_something.process = subprocess.Popen(
            ["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        leave_something.file = open(f"{folder}/left", "w")  # noqa: SIM115
