"""How machines of an MPI job merge by slices: each owns some pieces of the parameters, and updates those.

To merge and update a piece, a pool needs what the gradients of all shards hold of this piece, and nothing else. So

    while a shard is computed, each final part of its gradient goes to the machine that owns it     (reduce_scatter)
    when all parts are there, each rank merges and updates its pieces, as a worker of a pool does
    each piece of new parameters goes to all other machines                                         (all_gather)

which has the bits of one process, as shards are folded in their order. For K shards on M machines, and n bytes of
gradients, a machine sends (K/M + 1) (M-1)/M n bytes, in two hops, and makes a part of the update; the chain
(machines.py) sends 2 n bytes in 2 (M-1) hops. `choose` takes the cheaper one. The optimizer's state of a piece stays
with its owner until somebody asks for all of it.
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
from .machines import MESSAGE_BYTES, Machine, extents_of

MERGE_VARIABLE = "SCRATCHNET_MPI_MERGE"  # "chain" or "slices": that one, whatever it costs
LINK = 20e-6, 1.25e9  # alpha and beta of the link that `choose` assumes, see chain_seconds: 10 Gbit/s
OVERHEAD = 2e-6  # seconds of a rank's time that it takes to send, or to receive, a message; over TCP, on a busy machine
GRAIN, ROUNDS = 1 << 17, 8  # least bytes of a piece, and most pieces of a rank
PHASES = ("norm", "slice")  # machines own the pieces of these


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
    the pieces are. With each other machine a rank exchanges messages through one rank there, its peer.
    """

    arena: TrainingArena
    worker: Worker  # of this rank

    def __init__(self, machine: Machine, replica: Replica):
        self.machine, self.replica, self.layout, size = machine, replica, replica.layout, machine.comm.size
        rounds = int(np.clip(self.layout.parameter_bytes // (size * GRAIN), 1, ROUNDS))
        self.count = size * rounds if replica.settings.clip_norm is None else NORMS
        self.own = self._pieces_of([machine.ordinal])
        self._of_machine = self._pieces_of(machine.ordinals(machine.number))
        self._messages: dict[Any, Messages] = {}
        self._needed: dict[Extent, frozenset[int]] = {}

    def _pieces_of(self, ordinals: Iterable[int]) -> list[int]:
        """The pieces that these ranks own."""
        return sorted(piece for i in ordinals for piece in range(i, self.count, self.machine.comm.size))

    def seconds(self, alpha: float, beta: float) -> float:
        """What the exchange of a step takes: see `slices_seconds`."""
        machine, each = self.machine, range(self.machine.count)
        shards = [len(machine.shards(i, self.replica.shards)) for i in each]
        shares = [len(self._pieces_of(machine.ordinals(i))) / self.count for i in each]
        return slices_seconds(shards, shares, self.layout.parameter_bytes, alpha, beta)

    def attach(self, arena: TrainingArena, worker: Worker) -> None:
        """Before the first step."""
        self.arena, self.worker = arena, worker
        self.replica.on_final = self.send_final
        if self.machine.leaders:
            self._commit_memory()

    def detach(self) -> None:
        """After the last step, when no message is on its way."""
        for messages in self._messages.values():
            messages.release()
        self.replica.on_final = None

    def _commit_memory(self) -> None:
        """For what this machine's pieces need of the gradients of other machines' shards."""
        offset, (rings, shards, size), _ = self.arena.extents["slots"]
        own = self.machine.shards(self.machine.number, shards)
        begins = self.layout.begins if size > self.layout.nbytes else [0]
        for extent in self._extents(self._of_machine, begins, None):
            for slot in range(rings * shards):
                if slot % shards not in own:
                    self.arena.memory.commit(offset + slot * size + extent.offset, extent.nbytes)

    # --- a step -----------------------------------------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """Start to receive gradients. Nobody reads those of the step before any more."""
        self._step, slots, full = step, self._slots(step), self._full(step)
        slots.start_receives(full)
        self._unsent = {k: slots.sends.get(k, []) for k in full}
        self._final: dict[int, set[int]] = defaultdict(set)  # parameters whose gradients are final, by shard

    def send_final(self, batch: int, k: int, parameters: list[int]) -> None:
        """In shard k the gradients of these parameters are final for this batch: send those that are for the step."""
        arena, entry = self.arena, self._step % self.arena.window
        last = max(a for a, lo, hi in self.worker.shares_of(self._step).parts[k] if lo < hi)
        if arena.local[entry] or batch != arena.first[entry] + last:
            return
        slots, final, unsent = self._slots(self._step), self._final[k], self._unsent[k]
        final |= set(parameters)
        slots.start([message for message in unsent if self._needs(message[0]) <= final])
        self._unsent[k] = [message for message in unsent if not self._needs(message[0]) <= final]
        slots.progress()

    def _needs(self, extent: Extent) -> frozenset[int]:
        """The parameters whose gradients lie in an extent; of buffers one that is never final."""
        if extent not in self._needed:
            offset, end = extent.offset, extent.offset + extent.nbytes
            parameters = [(p.offset, p.offset + round_up(p.nbytes)) for p in self.layout.parameters.values()]
            found = [i for i, (start, stop) in enumerate(parameters) if start < end and offset < stop]
            self._needed[extent] = frozenset(found or [-1])
        return self._needed[extent]

    def send_gradients(self, step: int) -> None:
        """Send what was not sent yet. All ranks have computed all their shards."""
        self._parameters(step).start_receives()
        self._slots(step).start([message for messages in self._unsent.values() for message in messages])

    def wait_for_gradients(self, step: int) -> None:
        self._slots(step).wait()

    def share_norm(self, step: int) -> None:
        """All parts of the norm go to all ranks."""
        squares, comm = self.arena.squares[step % len(self.arena.squares)], self.machine.comm
        parts = np.zeros(len(squares))
        parts[self.own] = squares[self.own]
        # Exact in any order of additions: each part is 0 on all ranks but one.
        comm.wait(comm.group.Iallreduce(comm.library.IN_PLACE, parts), "parts of a norm")
        squares[:] = parts

    def send_parameters(self, piece: int, step: int) -> None:
        """Start to send a finished piece of the new page."""
        self._parameters(step).start_sends([piece])

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

    def _full(self, step: int) -> tuple[int, ...]:
        """Shards that are not empty."""
        return self.worker.shares_of(step).full

    # --- the messages of a step --------------------------------------------------------------------------------------

    def _slots(self, step: int) -> Messages:
        """By shard: its gradient or, after local steps, its page goes to the owners of the pieces."""
        arena, size = self.arena, self.machine.comm.size
        ring, is_local = step % len(arena.slots), bool(arena.local[step % arena.window])
        key = "slots", ring, is_local
        if key not in self._messages:
            begins, starts = self.layout.begins if is_local else [0], starts_of(self.replica.shards, size)
            sources = [ordinal for ordinal in range(size) for _ in range(starts[ordinal], starts[ordinal + 1])]
            owned = [self._pieces_of(self.machine.ordinals(i)) for i in range(self.machine.count)]
            extents = [self._extents(pieces, begins) for pieces in owned]
            self._messages[key] = self._between("gradients", sources, arena.slots[ring], lambda _, to: extents[to])
        return self._messages[key]

    def _parameters(self, step: int) -> Messages:
        """By piece, after a step: new parameters; with the optimizer's state, if shards take local steps from them."""
        begins = self.layout.begins if self.replica.strategy.trains_locally(step + 1) else [0]
        return self._page((step + 1) % len(self.arena.pages), begins)

    def _page(self, number: int, begins: list[int]) -> Messages:
        """By piece: all that lies like the parameters at `begins` of a page goes to all other machines."""
        key = "page", number, tuple(begins)
        if key not in self._messages:
            sources = [piece % self.machine.comm.size for piece in range(self.count)]
            pages = [self.arena.pages[number]] * self.count
            self._messages[key] = self._between(
                "parameters", sources, pages, lambda piece, _: self._extents([piece], begins)
            )
        return self._messages[key]

    def _extents(self, pieces: Sequence[int], begins: list[int], most: int | None = MESSAGE_BYTES) -> list[Extent]:
        """The extents of pieces in a page or a slot. Buffers belong to the last piece, as in pool/slices.py."""
        layout, found = self.layout, extents_of(self.layout, begins, pieces, self.count, most)
        if layout.buffers and self.count - 1 in pieces and 0 in begins:
            size = layout.nbytes - layout.parameter_bytes
            found.append(Extent(layout.parameter_bytes, (size,), np.dtype(np.uint8)))
        return found

    def _between(
        self, what: str, sources: Sequence[int], memory: Sequence[np.ndarray], parts: Callable[[int, int], list[Extent]]
    ) -> Messages:
        """The messages that transfer things. sources[i]: the ordinal that makes thing i; memory[i]: where it lies;
        parts(i, machine): the extents that go to a machine.
        """
        machine, found = self.machine, Messages(self.machine.comm, f"the exchange of {what}")
        here, others = machine.number, [(machine.number + i) % machine.count for i in range(1, machine.count)]
        tags: dict[int, int] = defaultdict(int)  # of messages between this rank and another, which come in any order
        for thing, source in enumerate(sources):
            if source == machine.ordinal:
                ends = [(i, machine.peer(source, i)) for i in others]
                make, kept = machine.direct.Send_init, found.sends
            elif machine.machine_at(source) != here and machine.peer(source, here) == machine.ordinal:
                ends, make, kept = [(here, source)], machine.direct.Recv_init, found.receives
            else:
                continue
            for to, ordinal in ends:
                rank = machine.rank_at[ordinal]
                for part in parts(thing, to):
                    kept[thing].append((part, make(part.of(memory[thing]), rank, tags[rank])))
                    tags[rank] += 1
        return found


# --- what it costs ----------------------------------------------------------------------------------------------------


def chain_seconds(machines: int, nbytes: float, alpha: float, beta: float) -> float:
    """Seconds that the chain takes, by Hockney's model: a message of b bytes takes alpha + b / beta seconds.

    The first message goes all the way and back, and the others follow. Machines between others send everything twice.
    """
    if machines == 1:
        return 0.0
    return 2 * (machines - 1) * (alpha + MESSAGE_BYTES / beta) + min(machines - 1, 2) * nbytes / beta


def slices_seconds(shards: Sequence[int], shares: Sequence[float], nbytes: float, alpha: float, beta: float) -> float:
    """Seconds that an exchange by slices takes, by the same model. shards: of each machine; shares: of the parameters.

    The machine that sends or receives the most decides. It begins its messages to the others one by one.
    """
    machines, total = len(shards), sum(shards)
    if machines == 1:
        return 0.0
    most = max(
        max(own * (1 - share) + share * (machines - 1), (total - own) * share + 1 - share)
        for own, share in zip(shards, shares, strict=True)
    )
    return 2 * alpha + 2 * (machines - 1) * OVERHEAD + most * nbytes / beta


def choose(machine: Machine, replica: Replica) -> Slices | None:
    """The cheaper way to merge; None: the chain. Raises ConfigError for an unknown name in SCRATCHNET_MPI_MERGE."""
    forced = os.environ.get(MERGE_VARIABLE) or ""
    if forced not in ("", "chain", "slices"):
        raise ConfigError(f"{MERGE_VARIABLE}: expected 'chain' or 'slices', got {forced!r}")
    if forced == "chain":
        return None
    found, chain = Slices(machine, replica), chain_seconds(machine.count, replica.layout.parameter_bytes, *LINK)
    return found if forced or found.seconds(*LINK) <= chain else None
