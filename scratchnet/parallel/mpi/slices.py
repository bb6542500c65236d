"""How machines of an MPI job merge: each owns some slices of the parameters, and updates those.

    each machine adds up the gradients of its shards, subtree by subtree of the tree over all shards (comm/tree.py)
    while it computes, each final part of such a sum goes to the machine that owns it                (reduce_scatter)
    when all parts are there, each rank merges and updates its pieces, as a worker of a pool does
    each piece of new parameters goes to all other machines                                         (all_gather)

which has the bits of one process, as a subtree has the same sum wherever it is made. For M machines and n bytes of
gradients a machine sends (S + 1) (M-1)/M n bytes, in two hops, however many shards it has: S is the number of its
subtrees, 1 where its shards are one, and at most 2 log2 K. The optimizer's state of a piece stays with its owner until
somebody asks for all of it.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...native.atomics import publish
from ..comm.arena_kernels import count_final
from ..comm.memory import SharedMemory, round_up
from ..comm.tree import subtrees, tree_sum
from ..phases import NORMS
from ..pool.layout import Extent
from ..pool.replica import Replica
from ..pool.training_arena import TrainingArena
from ..pool.worker import Worker
from .communicator import MpiCommunicator
from .machines import MESSAGE_BYTES, Machine, extents_of

GRAIN, ROUNDS = 1 << 17, 8  # least bytes of a piece, and most pieces of a rank
PHASES = ("norm", "slice")  # machines own the pieces of these
KINDS = ("gradients", "buffers", "parameters")  # of messages, which may be on their way between two ranks at once


class Route(NamedTuple):
    """Arrays that go from one rank to another: of a thing (a shard or a piece), in memory here, at some extents."""

    thing: int
    sender: int
    receiver: int
    memory: np.ndarray
    extents: Sequence[Extent]


class Messages:
    """Persistent sends and receives, by the number of the thing (a shard or a piece) that they transfer.

    Each is a pair (extent, request). text: what error messages call the exchange.
    """

    def __init__(self, comm: MpiCommunicator, text: str):
        self._comm, self._text, self._library = comm, text, comm.library
        self.sends: dict[int, list[tuple[Extent, Any]]] = defaultdict(list)
        self.receives: dict[int, list[tuple[Extent, Any]]] = defaultdict(list)
        self._started: list[Any] = []

    def start_receives(self, things: Iterable[int] | None = None) -> None:
        """Of these things (None: all). From now on their memory may be overwritten."""
        self.start([m for thing in (self.receives if things is None else things) for m in self.receives.get(thing, ())])

    def start_sends(self, things: Iterable[int] | None = None) -> None:
        """Of these things (None: all)."""
        self.start([m for thing in (self.sends if things is None else things) for m in self.sends.get(thing, ())])

    def start(self, messages: Iterable[tuple[Extent, Any]]) -> None:
        requests = [request for _, request in messages]
        if requests:
            with self._comm.waiting(self._text):
                self._library.Prequest.Startall(requests)
            self._started += requests

    def progress(self) -> None:
        """Let the library continue what was started."""
        with self._comm.waiting(self._text):
            self._library.Prequest.Testall(self._started)

    def wait(self) -> None:
        """Returns when all that was started is done."""
        with self._comm.waiting(self._text):
            self._library.Prequest.Waitall(self._started)
        self._started = []

    def release(self) -> None:
        for kept in (*self.sends.values(), *self.receives.values()):
            for _, request in kept:
                request.Free()


class Slices:
    """The exchange of the header; all ranks take part. They `attach` the arena of their machine, and `detach` it.

    count: of pieces. Pieces go round the ranks, so that each layer belongs to all machines, and all links are busy as
    soon as its gradients are final. With clip_norm there are NORMS pieces, as the parts of the norm are folded where
    the pieces are. On each machine one rank sends and receives what concerns a piece of another machine: `partner`.

    A sum of several shards lies in `partial`, a row for each subtree of this machine; on the machine that receives it,
    in the slot of the subtree's first shard. `final` says how far shards are: a word for each shard and parameter, with
    one writer, holds the number of steps in which that gradient was final.
    """

    arena: TrainingArena
    worker: Worker  # of this rank

    def __init__(self, machine: Machine, replica: Replica, most: int = ROUNDS):
        self.machine, self.replica, self.layout, size = machine, replica, replica.layout, machine.comm.size
        rounds = int(np.clip(self.layout.parameter_bytes // (size * GRAIN), 1, most))
        self.count = size * rounds if replica.settings.clip_norm is None else NORMS
        self.own = self._pieces_of([machine.ordinal])
        self._of_machine = self._pieces_of(machine.ordinals(machine.number))
        self._of_others = sorted(set(range(self.count)) - set(self._of_machine))
        shards = replica.shards
        self._subtrees = [list(subtrees(machine.shards(i, shards), shards)) for i in range(machine.count)]
        self._messages: dict[Any, Messages] = {}
        self._kept_leaves: dict[tuple[int, ...], list[int]] = {}
        numbers = {i: number for number, i in enumerate(self.layout.parameters)}
        self._spans = [(numbers[i], p.offset, p.offset + round_up(p.nbytes)) for i, p in self.layout.parameters.items()]
        self._numbers, self._stride = numbers, round_up(len(numbers) * 8) // 8
        self._needed: dict[Extent, tuple[int, int]] = {}

    def _pieces_of(self, ordinals: Iterable[int]) -> list[int]:
        """The pieces that these ranks own."""
        return sorted(piece for i in ordinals for piece in range(i, self.count, self.machine.comm.size))

    def _partner(self, piece: int, machine: int) -> int:
        """The ordinal of the rank of a machine that exchanges a piece with its owner, on another machine."""
        owner, here = piece % self.machine.comm.size, self.machine.ordinals(machine)
        there = self.machine.ordinals(self.machine.machine_at(owner))
        number = piece // self.machine.comm.size * len(there) + owner - there.start  # of the owner machine's pieces
        return here[number % len(here)]

    def attach(self, arena: TrainingArena, worker: Worker) -> None:
        """Before the first step. All ranks call this at once."""
        self.arena, self.worker = arena, worker
        worker.leaves = self._leaves
        if self.replica.device.is_host:  # a GPU's gradients are there when all are
            self.replica.on_final = self.send_final
        own, size = self._subtrees[self.machine.number], arena.slots.shape[-1]
        sums = [subtree for subtree in own if len(subtree) > 1]
        begin, words = round_up(len(sums) * size), self.replica.shards * self._stride
        memory = self.machine.memory(begin + 8 * words)
        self._partial = dict(zip(sums, memory.array(0, (len(sums), size), np.uint8), strict=True))
        self._final = memory.array(begin, words, np.int64)
        if self.machine.leaders:
            memory.commit(begin, 8 * words)
            self._commit_memory(memory, range(0, len(sums) * size, size), arena.extents["slots"])

    def detach(self) -> None:
        """After the last step, when no message is on its way."""
        for messages in self._messages.values():
            messages.release()
        self.replica.on_final = None

    def abandon(self) -> None:
        """This rank goes no further, because of an error."""

    def _commit_memory(self, partial: SharedMemory, rows: Iterable[int], slots: Extent) -> None:
        """For sums that this machine sends, and for what its pieces need of the other machines' sums."""
        rings, shards, size = slots.shape
        here, begins = self.machine.number, self.layout.begins if size > self.layout.nbytes else [0]
        for extent, row in itertools.product(extents_of(self.layout, begins, self._of_others, self.count), rows):
            partial.commit(row + extent.offset, extent.nbytes)
        received = [s.start for i, there in enumerate(self._subtrees) if i != here for s in there]
        extents = extents_of(self.layout, begins, self._of_machine, self.count)
        places = [*itertools.product(extents, received)]
        if self.count - 1 in self._of_machine:
            own = self.machine.shards(here, shards)
            places += itertools.product(self._buffers(), [k for k in range(shards) if k not in own])
        for (extent, k), ring in itertools.product(places, range(rings)):
            self.arena.memory.commit(slots.offset + (ring * shards + k) * size + extent.offset, extent.nbytes)

    def _leaves(self, full: tuple[int, ...]) -> list[int]:
        """Which slots this machine folds, of the shards that have samples: its own, and the other machines' sums."""
        if full not in self._kept_leaves:
            others = [tree for i, trees in enumerate(self._subtrees) if i != self.machine.number for tree in trees]
            sums = [tree.start for tree in others if not set(full).isdisjoint(tree)]
            own = self.machine.shards(self.machine.number, self.replica.shards)
            self._kept_leaves[full] = sorted([k for k in full if k in own] + sums)
        return self._kept_leaves[full]

    # --- a step -----------------------------------------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """Start to receive gradients. Nobody reads those of the step before any more."""
        self._step, full = step, self.worker.shares_of(step).full
        gradients = self._gradients(step)
        gradients.start_receives(self._leaves(full))
        self._buffer_messages(step).start_receives(full)
        shards = {tree: [k for k in tree if k in full] for tree in self._subtrees[self.machine.number]}
        self._shards = {tree: own for tree, own in shards.items() if own}
        self._unsent = {tree: gradients.sends.get(tree.start, []) for tree in self._shards}

    def send_final(self, batch: int, k: int, parameters: list[int]) -> None:
        """In shard k the gradients of these parameters are final for this batch: send the sums that are complete."""
        arena, entry = self.arena, self._step % self.arena.window
        last = max(a for a, lo, hi in self.worker.shares_of(self._step).parts[k] if lo < hi)
        if not arena.local[entry] and batch == arena.first[entry] + last:
            self._finish(k, [self._numbers[i] for i in parameters])

    def done(self, phase: str, piece: int, step: int) -> None:
        """This rank has done a piece of a phase: send what that completes."""
        if phase == "shard":
            self._finish(piece, range(len(self._numbers)))
        elif phase == "slice":
            self._parameters(step).start_sends([piece])

    def _finish(self, k: int, numbers: Iterable[int]) -> None:
        """The gradients of these parameters are final in shard k: send what is final in all shards of a subtree."""
        for number in numbers:
            publish(self._final, k * self._stride + number, self._step + 1)
        for tree in self._unsent:
            if self._unsent[tree]:
                self._send_sums(tree)
        self._gradients(self._step).progress()

    def _send_sums(self, tree: range, all_are_final: bool = False) -> None:
        """Add up the shards of a subtree, where all of them are final, and send the sums that were not sent yet."""
        shards = self._shards[tree]
        ready: list[tuple[Extent, Any]] = []
        waiting: list[tuple[Extent, Any]] = []
        final = np.zeros(len(self._numbers) + 1, np.int64)  # how many parameters are, of those before each
        count_final(self._final, np.array(shards) * self._stride, self._step + 1, final)
        for message in self._unsent[tree]:
            low, high = self._needs(message[0])
            is_ready = all_are_final or final[high] - final[low] == high - low
            (ready if is_ready else waiting).append(message)
        if tree in self._partial:
            slots = self.arena.slots[self._step % len(self.arena.slots)]
            for extent, _ in ready:
                add_up(slots, shards, extent, self._partial[tree])
        self._unsent[tree] = waiting
        self._gradients(self._step).start(ready)

    def _needs(self, extent: Extent) -> tuple[int, int]:
        """The parameters whose gradients lie in an extent of a slot: numbers low to high. Of states in a page: all."""
        if extent not in self._needed:
            start, end = extent.offset, extent.offset + extent.nbytes
            found = [number for number, lo, hi in self._spans if lo < end and start < hi] or [0, len(self._spans) - 1]
            self._needed[extent] = found[0], found[-1] + 1
        return self._needed[extent]

    def send_gradients(self, step: int) -> None:
        """Send what was not sent yet. All ranks have computed all their shards."""
        self._parameters(step).start_receives()
        for tree in self._unsent:
            self._send_sums(tree, all_are_final=True)
        self._buffer_messages(step).start_sends(self.worker.shares_of(step).full)

    def wait_for_gradients(self, step: int) -> None:
        self._gradients(step).wait()
        self._buffer_messages(step).wait()

    def share_norm(self, step: int) -> None:
        """All parts of the norm go to all ranks."""
        share_norm(self.machine.comm, self.arena.squares[step % len(self.arena.squares)], self.own)

    def wait_for_parameters(self, step: int) -> None:
        """Receive the other machines' pieces, and seal them as if this machine had done them."""
        self._parameters(step).wait()
        if self.machine.leaders:
            seals = self.arena.pieces[-1].sealed(self.arena.words)
            seals[np.setdiff1d(np.arange(self.count), self._of_machine)] = step + 1

    def share_states(self, with_older: bool) -> None:
        """The optimizer's state in the newest page goes to all machines; with_older: that in all pages."""
        pages, newest = len(self.arena.pages), self.arena.committed() % len(self.arena.pages)
        for number in range(pages) if with_older else [newest]:
            messages = self._page(number, self.layout.begins[1:])
            messages.start_receives()
            messages.start_sends()
            messages.wait()

    # --- the messages of a step --------------------------------------------------------------------------------------

    def _gradients(self, step: int) -> Messages:
        """By the first shard of a subtree: its sum, of gradients or after local steps of pages, goes to the owners."""
        ring, is_local = step % len(self.arena.slots), bool(self.arena.local[step % self.arena.window])
        return self._made("gradients", self._routes_of_sums, ring, is_local)

    def _routes_of_sums(self, ring: int, is_local: bool) -> Iterator[Route]:
        machine, me, slots = self.machine, self.machine.ordinal, self.arena.slots[ring]
        begins = self.layout.begins if is_local else [0]
        for number, trees in enumerate(self._subtrees):
            is_here = number == machine.number
            for tree, piece in itertools.product(trees, self._of_others if is_here else self.own):
                ends = self._partner(piece, number), piece % machine.comm.size
                if me in ends:
                    memory = self._partial.get(tree, slots[tree.start])
                    yield Route(tree.start, *ends, memory, self._extents(piece, begins))

    def _buffer_messages(self, step: int) -> Messages:
        """By shard: its buffers go to the owner of the last piece."""
        return self._made("buffers", self._routes_of_buffers, step % len(self.arena.slots))

    def _routes_of_buffers(self, ring: int) -> Iterator[Route]:
        machine, owner = self.machine, (self.count - 1) % self.machine.comm.size
        starts = machine.starts(self.replica.shards)
        for sender, (start, end) in enumerate(itertools.pairwise(starts)):
            if machine.machine_at(sender) != machine.machine_at(owner):
                for k in range(start, end):
                    yield Route(k, sender, owner, self.arena.slots[ring, k], self._buffers())

    def _parameters(self, step: int) -> Messages:
        """By piece, after a step: new parameters; with the optimizer's state, if shards take local steps from them."""
        begins = self.layout.begins if self.replica.strategy.trains_locally(step + 1) else [0]
        return self._page((step + 1) % len(self.arena.pages), begins)

    def _page(self, number: int, begins: Sequence[int]) -> Messages:
        """By piece: all that lies like the parameters at `begins` of a page goes to all other machines."""
        return self._made("parameters", self._routes_of_parameters, number, tuple(begins))

    def _routes_of_parameters(self, number: int, begins: Sequence[int]) -> Iterator[Route]:
        machine, page = self.machine, self.arena.pages[number]
        others = [(machine.number + i) % machine.count for i in range(1, machine.count)]  # not all at one machine
        for piece in range(self.count):
            owner = piece % machine.comm.size
            ends = [(owner, self._partner(piece, i)) for i in (others if piece in self.own else [machine.number])]
            if piece in self.own or (piece in self._of_others and ends[0][1] == machine.ordinal):
                buffers = self._buffers() if piece == self.count - 1 and 0 in begins else []
                extents = self._extents(piece, begins) + buffers
                yield from (Route(piece, *each, page, extents) for each in ends)

    def _extents(self, piece: int, begins: Sequence[int]) -> list[Extent]:
        """The extents of a piece in a page or a slot, without buffers."""
        return extents_of(self.layout, begins, [piece], self.count, MESSAGE_BYTES)

    def _buffers(self) -> list[Extent]:
        """The extent of all buffers. They belong to the last piece, as in pool/slices.py."""
        size = self.layout.nbytes - self.layout.parameter_bytes
        return [Extent(self.layout.parameter_bytes, (size,), np.dtype(np.uint8))] if self.layout.buffers else []

    def _made(self, what: str, routes: Callable[..., Iterator[Route]], *details: Any) -> Messages:
        """The messages of a kind that this rank sends and receives on routes(*details), made at their first use."""
        if (what, details) not in self._messages:
            comm, me, direct = self.machine.comm, self.machine.ordinal, self.machine.direct
            found = self._messages[what, details] = Messages(comm, f"the exchange of {what}")
            tags: dict[tuple[int, int], int] = defaultdict(int)  # messages of two ranks arrive in any order
            for thing, sender, receiver, memory, extents in routes(*details):
                if me == sender:
                    make, kept, other = direct.Send_init, found.sends, receiver
                elif me == receiver:
                    make, kept, other = direct.Recv_init, found.receives, sender
                else:
                    continue
                for extent in extents:
                    tag = KINDS.index(what) + len(KINDS) * tags[sender, receiver]
                    kept[thing].append((extent, make(extent.of(memory), self.machine.rank_at[other], tag)))
                    tags[sender, receiver] += 1
        return self._messages[what, details]


def share_norm(comm: MpiCommunicator, squares: np.ndarray, own: Sequence[int]) -> None:
    """All parts of a norm go to all ranks. own: those that this rank has."""
    parts = np.zeros(len(squares))
    parts[own] = squares[own]
    # Exact in any order of additions: each part is 0 on all ranks but one.
    comm.wait(comm.group.Iallreduce(comm.library.IN_PLACE, parts), "parts of a norm")
    squares[:] = parts


def add_up(slots: np.ndarray, shards: Sequence[int], extent: Extent, out: np.ndarray) -> None:
    """The sum, along the tree, of what slots of these shards hold at an extent goes to that extent of `out`."""
    np.copyto(extent.of(out), tree_sum(shards, lambda k: extent.of(slots[k]), np.add))
