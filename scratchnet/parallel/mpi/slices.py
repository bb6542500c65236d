"""How machines of an MPI job merge by slices: each owns some pieces of the parameters, and updates those.

A pool's merge and update of a piece needs the gradients of all shards, as far as the piece goes, and nothing else. So

    while a shard is computed, what is final of its gradient goes to the machine that owns it  (reduce_scatter)
    when all has come, each rank merges and updates pieces of its machine, as a worker of a pool does
    each piece of new parameters goes to all other machines                                    (all_gather)

which has the bits of one process, as shards are folded in their order. For K shards on M machines, and n bytes of
gradients, a machine sends (K/M + 1) (M-1)/M n bytes, in two hops, and makes a part of the update; the chain
(mpi_machines.py) 2 n bytes in 2 (M-1) hops: `choose` takes the cheaper one. The optimizer's state of a piece stays with
its owner, until somebody asks for all of it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ...errors import ConfigError
from ..comm.memory import round_up
from ..phases import NORMS
from ..pool.layout import Extent
from ..pool.replica import Replica
from ..pool.training_arena import TrainingArena
from ..pool.worker import Worker
from ..shards import starts_of
from .communicator import MpiCommunicator
from .machines import PIECE, Machine, extents_of

FORCED = "SCRATCHNET_MPI_MERGE"  # "chain" or "slices": that one, whatever it costs
LINK = 20e-6, 1.25e9  # alpha and beta, see chain_seconds, of which the choice is made: 10 Gbit/s
EACH = 2e-6  # seconds that a message takes a rank that sends it, and one that gets it; over TCP, on a busy machine
GRAIN, ROUNDS = 1 << 17, 8  # a piece has so many bytes at least, and a rank so many pieces at most
PHASES = ("norm", "slice")  # whose pieces machines own


class Messages:
    """Sends and receives that are the same whenever they are made, by the number of the thing that travels.

    Of each a list, of places and requests. text: what it is, for messages of errors.
    """

    def __init__(self, comm: MpiCommunicator, text: str):
        self._comm, self._text, self._library = comm, text, comm.library
        self.sends: dict[int, list[tuple[Extent, Any]]] = defaultdict(list)
        self.takes: dict[int, list[tuple[Extent, Any]]] = defaultdict(list)
        self._started: list[Any] = []

    def take(self, things: Iterable[int] | None = None) -> None:
        """Let these things come (all): from now on what they replace may be overwritten."""
        self.start([m for thing in (self.takes if things is None else things) for m in self.takes.get(thing, ())])

    def give(self, things: Iterable[int] | None = None) -> None:
        self.start([m for thing in (self.sends if things is None else things) for m in self.sends.get(thing, ())])

    def start(self, messages: Iterable[tuple[Extent, Any]]) -> None:
        requests = [request for _, request in messages]
        if requests:
            with self._comm.waiting(self._text):
                self._library.Prequest.Startall(requests)
            self._started += requests

    def poke(self) -> None:
        """Let the library see to what is on its way."""
        with self._comm.waiting(self._text):
            self._library.Prequest.Testall(self._started)

    def wait(self) -> None:
        """Until all that was started is done."""
        with self._comm.waiting(self._text):
            self._library.Prequest.Waitall(self._started)
        self._started = []

    def release(self) -> None:
        for kept in (*self.sends.values(), *self.takes.values()):
            for _, request in kept:
                request.Free()


class Slices:
    """The exchange of the header; all ranks take part. They `join` the arena of their machine, and `leave` it.

    count: pieces. They go round the ranks, so that each layer belongs to all machines, and all links are busy as soon
    as its gradients are there. The parts of a norm are folded where the pieces are, so then there are as many. With
    each other machine a rank exchanges what its shards and pieces, and those of one rank there, are to bring.
    """

    arena: TrainingArena
    worker: Worker  # of this rank

    def __init__(self, machine: Machine, replica: Replica):
        self.machine, self.replica, self.layout, size = machine, replica, replica.layout, machine.comm.size
        rounds = int(np.clip(self.layout.parameter_bytes // (size * GRAIN), 1, ROUNDS))
        self.count = size * rounds if replica.settings.clip_norm is None else NORMS
        self.own = self._of([machine.place])  # pieces of this rank
        self._here = self._of(machine.places(machine.number))  # of this machine
        self._messages: dict[Any, Messages] = {}
        self._needed: dict[Extent, frozenset[int]] = {}

    def _of(self, places: Iterable[int]) -> list[int]:
        """The pieces of ranks."""
        return sorted(piece for place in places for piece in range(place, self.count, self.machine.comm.size))

    def seconds(self, alpha: float, beta: float) -> float:
        """Of a step: see `slices_seconds`."""
        machine, each = self.machine, range(self.machine.count)
        shards = [len(machine.shards(i, self.replica.shards)) for i in each]
        shares = [len(self._of(machine.places(i))) / self.count for i in each]
        return slices_seconds(shards, shares, self.layout.parameter_bytes, alpha, beta)

    def join(self, arena: TrainingArena, worker: Worker) -> None:
        """Before the first step."""
        self.arena, self.worker = arena, worker
        self.replica.on_final = self.send_final
        if self.machine.leaders:
            self._take_memory()

    def leave(self) -> None:
        """After the last step: all messages have come."""
        for messages in self._messages.values():
            messages.release()
        self.replica.on_final = None

    def _take_memory(self) -> None:
        """For gradients of others' shards, as far as the pieces of this machine go."""
        offset, (rings, shards, size), _ = self.arena.extents["slots"]
        own = self.machine.shards(self.machine.number, shards)
        begins = self.layout.begins if size > self.layout.nbytes else [0]
        for place in self._places(self._here, begins, None):
            for row in range(rings * shards):
                if row % shards not in own:
                    self.arena.memory.commit(offset + row * size + place.offset, place.nbytes)

    # --- a step -----------------------------------------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """Nobody reads the last step's gradients any more."""
        self._step, slots, full = step, self._slots(step), self._full(step)
        slots.take(full)
        self._unsent = {k: slots.sends.get(k, []) for k in full}
        self._final: dict[int, set[int]] = defaultdict(set)  # parameters whose gradients are final, by shard

    def send_final(self, batch: int, k: int, parameters: list[int]) -> None:
        """Shard k is done with this batch, as far as gradients of these parameters go."""
        arena, entry = self.arena, self._step % self.arena.window
        last = max(a for a, lo, hi in self.worker.shares_of(self._step).parts[k] if lo < hi)
        if arena.local[entry] or batch != arena.first[entry] + last:
            return
        slots, final, unsent = self._slots(self._step), self._final[k], self._unsent[k]
        final |= set(parameters)
        slots.start([message for message in unsent if self._needs(message[0]) <= final])
        self._unsent[k] = [message for message in unsent if not self._needs(message[0]) <= final]
        slots.poke()

    def _needs(self, place: Extent) -> frozenset[int]:
        """The parameters whose gradients lie in a place; or, of buffers, something that is never told."""
        if place not in self._needed:
            offset, end = place.offset, place.offset + place.nbytes
            parameters = [(p.offset, p.offset + round_up(p.nbytes)) for p in self.layout.parameters.values()]
            found = [i for i, (start, stop) in enumerate(parameters) if start < end and offset < stop]
            self._needed[place] = frozenset(found or [-1])
        return self._needed[place]

    def send_gradients(self, step: int) -> None:
        """What was not sent yet. All shards are done, everywhere."""
        self._parameters(step).take()
        self._slots(step).start([message for messages in self._unsent.values() for message in messages])

    def wait_for_gradients(self, step: int) -> None:
        self._slots(step).wait()

    def share_norm(self, step: int) -> None:
        """The parts of it that this rank has, to all."""
        squares, comm = self.arena.squares[step % len(self.arena.squares)], self.machine.comm
        parts = np.zeros(len(squares))
        parts[self.own] = squares[self.own]
        comm.wait(comm.group.Iallreduce(comm.library.IN_PLACE, parts), "parts of a norm")  # exact: all others are 0
        squares[:] = parts

    def send_parameters(self, piece: int, step: int) -> None:
        """A piece of the new page, which is done."""
        self._parameters(step).give([piece])

    def wait_for_parameters(self, step: int) -> None:
        """Those of other machines: to the steps of this one they are as if they had been done here."""
        self._parameters(step).wait()
        if self.machine.leaders:
            seals = self.arena.pieces[-1].sealed(self.arena.words)
            seals[np.setdiff1d(np.arange(self.count), self._here)] = step + 1

    def share_states(self, with_older: bool) -> None:
        """The optimizer's state, to all machines: of the newest page, or of older ones, too."""
        pages, newest = len(self.arena.pages), self.arena.committed() % len(self.arena.pages)
        for number in range(pages) if with_older else [newest]:
            messages = self._page(number, self.layout.begins[1:])
            messages.take()
            messages.give()
            messages.wait()

    def _full(self, step: int) -> tuple[int, ...]:
        """Shards that are not empty."""
        return self.worker.shares_of(step).full

    # --- what travels -----------------------------------------------------------------------------------------------

    def _slots(self, step: int) -> Messages:
        """Of a step, by shard: the gradient or, after local steps, the page goes to the owners of its pieces."""
        arena, size = self.arena, self.machine.comm.size
        ring, is_local = step % len(arena.slots), bool(arena.local[step % arena.window])
        if ("slots", ring, is_local) not in self._messages:
            begins, starts = self.layout.begins if is_local else [0], starts_of(self.replica.shards, size)
            makers = [place for place in range(size) for _ in range(starts[place], starts[place + 1])]
            owned = [self._of(self.machine.places(i)) for i in range(self.machine.count)]
            places = [self._places(pieces, begins) for pieces in owned]
            slots = arena.slots[ring]
            self._messages["slots", ring, is_local] = self._between(
                "gradients", makers, slots, lambda _, to: places[to]
            )
        return self._messages["slots", ring, is_local]

    def _parameters(self, step: int) -> Messages:
        """After a step; with the optimizer's state, if shards take local steps from it."""
        begins = self.layout.begins if self.replica.strategy.trains_locally(step + 1) else [0]
        return self._page((step + 1) % len(self.arena.pages), begins)

    def _page(self, number: int, begins: list[int]) -> Messages:
        """By piece: what lies in a page where `begins` say goes to all other machines."""
        key = "page", number, tuple(begins)
        if key not in self._messages:
            makers = [piece % self.machine.comm.size for piece in range(self.count)]
            pages, places = [self.arena.pages[number]] * self.count, lambda piece, _: self._places([piece], begins)
            self._messages[key] = self._between("parameters", makers, pages, places)
        return self._messages[key]

    def _places(self, pieces: Sequence[int], begins: list[int], most: int | None = PIECE) -> list[Extent]:
        """Where pieces lie in a page, or a slot. Buffers belong to the last piece, see `Replica.slice_of`."""
        layout, found = self.layout, extents_of(self.layout, begins, pieces, self.count, most)
        if layout.buffers and self.count - 1 in pieces and 0 in begins:
            size = layout.nbytes - layout.parameter_bytes
            found.append(Extent(layout.parameter_bytes, (size,), np.dtype(np.uint8)))
        return found

    def _between(
        self, what: str, makers: Sequence[int], memory: Sequence[np.ndarray], parts: Callable[[int, int], list[Extent]]
    ) -> Messages:
        """Of each thing: makers, the place that makes it; its memory; parts(thing, machine), what goes to a machine."""
        machine, found = self.machine, Messages(self.machine.comm, f"the exchange of {what}")
        here, others = machine.number, [(machine.number + i) % machine.count for i in range(1, machine.count)]
        tags: dict[int, int] = defaultdict(int)  # of what passes between this rank and another: it comes in any order
        for thing, maker in enumerate(makers):
            if maker == machine.place:
                ends = [(i, machine.through(maker, i)) for i in others]
                make, kept = machine.direct.Send_init, found.sends
            elif machine.home(maker) != here and machine.through(maker, here) == machine.place:
                ends, make, kept = [(here, maker)], machine.direct.Recv_init, found.takes
            else:
                continue
            for to, place in ends:
                rank = machine.rank_at[place]
                for part in parts(thing, to):
                    kept[thing].append((part, make(part.of(memory[thing]), rank, tags[rank])))
                    tags[rank] += 1
        return found


# --- what it costs ----------------------------------------------------------------------------------------------------


def chain_seconds(machines: int, nbytes: float, alpha: float, beta: float) -> float:
    """Of the chain, by Hockney's model: a message of b bytes takes alpha + b / beta seconds.

    A piece goes all the way and back, and the others follow. Machines between others send everything twice.
    """
    if machines == 1:
        return 0.0
    return 2 * (machines - 1) * (alpha + PIECE / beta) + min(machines - 1, 2) * nbytes / beta


def slices_seconds(shards: Sequence[int], shares: Sequence[float], nbytes: float, alpha: float, beta: float) -> float:
    """Of an exchange by slices, as above. shards: of each machine; shares: its part of the parameters.

    It takes as long as the machine needs that sends, or gets, the most. Messages to all others begin one by one.
    """
    machines, total = len(shards), sum(shards)
    if machines == 1:
        return 0.0
    most = max(
        max(own * (1 - share) + share * (machines - 1), (total - own) * share + 1 - share)
        for own, share in zip(shards, shares, strict=True)
    )
    return 2 * alpha + 2 * (machines - 1) * EACH + most * nbytes / beta


def choose(machine: Machine, replica: Replica) -> Slices | None:
    """The cheaper way to merge; None: the chain. Raises ConfigError for a name that is none."""
    forced = os.environ.get(FORCED) or ""
    if forced not in ("", "chain", "slices"):
        raise ConfigError(f"{FORCED}: expected 'chain' or 'slices', got {forced!r}")
    if forced == "chain":
        return None
    found, chain = Slices(machine, replica), chain_seconds(machine.count, replica.layout.parameter_bytes, *LINK)
    return found if forced or found.seconds(*LINK) <= chain else None
