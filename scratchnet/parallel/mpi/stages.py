"""Stages and parts of a model on the ranks of an MPI job: what a piece reads and another machine made is a message.

The ranks of a machine share an arena, whose words say which pieces are done (pool/claims.py). Each rank does its own
pieces, and no others. A piece of another machine counts as done here when its messages (routes.py) have arrived. All
receives of a step start when it begins, and each send when its piece is done, so messages travel while both ends
compute.

    forward and backward pieces, in the order of the schedule       messages between stages, and of slots
    all ranks say that they have computed their gradients           losses, and what is not finite
    merge and update, by the ranks that have a stage                new parameters

The pages of a machine hold its own stages. The optimizer's state of a slice stays with the rank that updates it. When
the run settles, the model and the optimizer of every rank get all there is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from ...errors import NonFiniteError
from ...native.atomics import LINE, publish
from ..pool.claims import NOTHING, OWNERS, table_of, take
from ..pool.replica import Replica
from ..settings import Settings
from .engine import Ranks, share
from .machines import MESSAGE_BYTES, Machine
from .routes import MERGES, Route, Routes
from .slices import share_norm

FINITE = np.iinfo(np.int64).max  # in place of 0 in `bad`, where the least number counts


class Messages:
    """The messages of this rank on some routes, in each step anew. tags: of messages so far, by sender and receiver.

    arrived: called with the phase and the piece of a route when its last message has come.
    """

    def __init__(
        self,
        machine: Machine,
        memory: np.ndarray,
        tags: dict[tuple[int, int], int],
        routes: Iterable[Route],
        arrived: Callable[[int, int], None] = lambda number, piece: None,
    ):
        self._comm, self._library, me = machine.comm, machine.comm.library, machine.ordinal
        self._sends: dict[tuple[int, int], list[tuple[Route, list[Any]]]] = defaultdict(list)  # by phase and piece
        self._receives: list[Any] = []
        self._route_of: list[Route] = []  # of each of these requests
        for route in routes:
            ends = route.sender, route.receiver
            if me not in ends:
                continue
            make = machine.direct.Send_init if me == route.sender else machine.direct.Recv_init
            requests = []
            for data in route.data(memory, MESSAGE_BYTES):
                requests.append(make(data, machine.rank_at[sum(ends) - me], tags[ends]))
                tags[ends] += 1
            if me == route.sender:
                self._sends[route.number, route.piece].append((route, requests))
            else:
                self._receives += requests
                self._route_of += [route] * len(requests)
        self._counts, self._left = Counter(self._route_of), Counter[Route]()  # messages; those that have not come
        self._started: list[Any] = []
        self._arrived = arrived

    def start(self) -> None:
        """Start to receive what a step brings."""
        self._left = self._counts.copy()
        self._library.Prequest.Startall(self._receives)

    def send(self, number: int, piece: int) -> None:
        """A piece is done: send what it gave."""
        for route, requests in self._sends.get((number, piece), ()):
            for block, copy in route.blocks:
                copy[...] = block
            self._library.Prequest.Startall(requests)
            self._started += requests

    def look(self) -> None:
        """Note what has come."""
        for i in (self._library.Request.Testsome(self._receives) if self._left else None) or ():
            route = self._route_of[i]
            self._left[route] -= 1
            if not self._left[route]:
                del self._left[route]
                for block, copy in route.blocks:
                    block[...] = copy
                self._arrived(route.number, route.piece)

    def Test(self) -> bool:  # as a request of MPI, so that `comm.wait` waits for it
        """Has all come that a step brings, and is all gone that it sends?"""
        self.look()
        return not self._left and self._library.Request.Testall(self._started)

    def wait(self, text: str) -> None:
        """Returns when that is so. text: what error messages call the wait."""
        self._comm.wait(self, text)
        self._started = []

    def release(self) -> None:
        for request in (*self._receives, *[r for own in self._sends.values() for _, requests in own for r in requests]):
            request.Free()


class StagedRanks(Ranks):
    """`Ranks` of which each has its own stages, or parts of stages."""

    # --- what is whose ----------------------------------------------------------------------------------------------

    def _replica_of(self, settings: Settings) -> Replica:
        """Rank 0 says where the model is cut: that may depend on the time that its ops take there."""
        settings, names, first = dataclasses.replace(settings, workers=self._comm.size), b"", None
        if self._comm.rank == 0:
            first = Replica.of(settings)
            names = "\n".join(first.plan.names[1:]).encode()  # type: ignore[union-attr]
        if cut := share(self._comm, "where the model is cut", names).decode():
            strategy: Any = settings.strategy
            settings = dataclasses.replace(settings, strategy=dataclasses.replace(strategy, cut=cut.split("\n")))
        replica = first or Replica.of(settings)
        size, machine, own = self._comm.size, self._machine, set[int]()
        for place in (stage.place for stage in replica.plan.stages):  # type: ignore[union-attr]
            owners = {replica.strategy.owner(place, k, size) for k in range(replica.shards)}
            own |= {place.stage} if machine.number in map(machine.machine_at, owners) else set()
        replica.stages_here = sorted(own)
        return replica

    def _slices_of(self, replica: Replica) -> int:
        return replica.strategy.slices(self._comm.size)  # with fewer, a piece would wait for another replica's

    def _attach(self) -> None:
        arena, machine = self.arena, self._machine
        self._routes = routes = Routes(machine, self.replica, arena)
        owners = [np.array([routes.owner(phase, i) for i in range(phase.pieces)]) for phase in routes.phases]
        own = [ranks == machine.ordinal for ranks in owners]
        self._worker.table = table_of(arena.pieces, own)  # its own: others may still write those in the arena
        self._pieces = [np.flatnonzero(mine).tolist() for mine in own]
        self._merges = routes.numbered(*MERGES)
        self._gradients = sum(map(len, self._pieces[: self._merges[0][0]]))
        words = [[pieces.seals + i * LINE for i in range(pieces.count)] for pieces in arena.pieces]
        is_here = np.vectorize(routes.is_here, otypes=[bool])
        self._elsewhere = np.concatenate(
            [np.array(own)[~is_here(ranks)] for own, ranks in zip(words, owners, strict=True)]
        )
        self._judged = range(self.replica.shards)
        kinds = [routes.between_stages(), routes.of_slots(), *map(routes.of_page, range(len(arena.pages)))]
        if machine.leaders:
            for begin, end in routes.used_here([route for kind in kinds for route in kind]):
                arena.memory.commit(begin, end - begin)
        made = machine, arena.memory.array(0, arena.memory.size, np.uint8), defaultdict[Any, int](int)
        self._between = Messages(*made, kinds[0], self._seal)
        self._slots, *self._new = [Messages(*made, routes) for routes in kinds[1:]]

    def _detach(self) -> None:
        for messages in (self._between, self._slots, *self._new):
            messages.release()

    # --- a step -----------------------------------------------------------------------------------------------------

    def _compute(self, step: int) -> None:
        arena, machine = self.arena, self._machine
        new = self._new[(step + 1) % len(self._new)]
        for messages in (self._between, self._slots, new):
            messages.start()
        for _ in range(self._gradients):
            self._comm.wait(self, "what another stage sends")
            number, piece = divmod(self._taken, OWNERS)
            with contextlib.suppress(NonFiniteError):  # it is in `bad`; others count on this piece, until `_agree`
                self._worker.do(number, piece)
            self._seal(number, piece)
            self._between.send(number, piece)
            self._slots.send(number, piece)
        self._between.wait("what another stage sends")
        self._slots.wait("the exchange of gradients")
        self._agree(step)
        self._share_losses(step)
        for number, phase in self._merges:
            for piece in self._pieces[number]:
                self._worker.do(number, piece)
                new.send(number, piece)
            if phase.name == "norm":
                share_norm(self._comm, arena.squares[step % len(arena.squares)], self._pieces[number])
        new.wait("the exchange of parameters")
        arena.words[self._elsewhere] = step + 1
        if machine.leaders:
            arena.bad[(step + 1) % arena.window] = 0
        machine.synchronize("the end of a step")

    def Test(self) -> bool:  # as a request of MPI, so that `comm.wait` waits for it
        """Is there a piece that this rank can do?"""
        self._between.look()
        worker = self._worker
        self._taken = int(take(worker.arena.words, worker.table, worker.rank, -1, worker.scratch))
        return self._taken != NOTHING

    def _seal(self, number: int, piece: int) -> None:
        """A piece is done, or what it gave has come."""
        publish(self.arena.words, self.arena.pieces[number].seals + piece * LINE, self.submitted)

    def _agree(self, step: int) -> None:
        try:
            super()._agree(step)
        except NonFiniteError:
            self._gather()  # whoever names the op needs all parameters
            raise

    def _share_losses(self, step: int) -> None:
        """Losses, and what is not finite, go to all ranks. One rank has a loss; the others bring zero bits."""
        arena, group, library, entry = self.arena, self._comm.group, self._comm.library, step % self.arena.window
        own = [self._pieces[number] for number, _ in self._routes.numbered("forward")][-1]
        losses, bad = np.zeros(arena.losses[entry].shape), arena.bad[entry].copy()
        losses[:, own] = arena.losses[entry][:, own]
        bad[bad == 0] = FINITE
        for array, op in ((losses.view(np.int64), library.BOR), (bad, library.MIN)):
            self._comm.wait(group.Iallreduce(library.IN_PLACE, array, op), "the exchange of losses")
        bad[bad == FINITE] = 0
        arena.losses[entry], arena.bad[entry] = losses, bad

    # --- state ------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Returns when all ranks have called it, with all parameters and states in the model and the optimizer."""
        self._gather()
        self._comm.handshake("settle")

    def read(self) -> None:
        """Nothing: `drain` has done it, and one rank alone cannot."""

    def _gather(self) -> None:
        """Each slice of the newest page goes from its owner to all ranks."""
        layout, newest = self.replica.layout, self.arena.newest()
        page = np.zeros(layout.page_bytes, np.uint8)
        with self._comm.waiting("settle"):
            for _, merge in self._routes.numbered("slice"):
                for piece in range(merge.pieces):
                    owner = self._routes.owner(merge, piece)
                    for extent in self._routes.written(merge, piece, layout.begins):
                        own = slice(extent.offset, extent.offset + extent.nbytes)
                        if owner == self._machine.ordinal:
                            page[own] = newest[own]
                        for at in range(own.start, own.stop, 1 << 30):  # counts are int32
                            data = page[at : min(at + (1 << 30), own.stop)]
                            self._comm.group.Bcast(data, self._machine.rank_at[owner])
        self.replica.read(layout.page(page))

    @contextlib.contextmanager
    def following(self, within_epoch: bool) -> Iterator[None]:
        before = self._digests()
        yield
        for (i, new), old in zip(self._digests().items(), before.values(), strict=True):
            if new != old:
                raise self._changed(i)

    def _digests(self) -> dict[int, bytes]:
        states = self.replica.optimizer.states
        return {i: hashlib.sha256(states[i].param._data.tobytes()).digest() for i in self.replica.layout.parameters}
