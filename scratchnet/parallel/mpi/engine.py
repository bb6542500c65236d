"""Training by the ranks of an MPI job: the steps of a run, with the bits of one process for any number of ranks.

Each machine is a pool: its ranks share an arena and do the pieces of a step as workers do (worker.py). Shards are
shared out among all ranks, and between two phases machines tell each other what the next one needs:

    shard     losses of each shard, and its gradient (or, in a round of LocalSGD, its page): what belongs to the slices
              that a machine owns, or along the chain the sum of all (mpi_machines.py). With compression what each
              shard sends: K (M-1)/M of that travel to each of M machines
    project   PowerSGD: the second factors
    norm      its parts, from machines that own slices
    slice     the new parameters, from machines that own slices; the optimizer's state only before somebody reads it.
              Otherwise nothing: every machine has made the whole new page

so every exact strategy, its compression, clipping and skipping is the code of the pool, and has its bits. Rank 0 alone
touches the run's folder; what it loads, all ranks get.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import threading
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import CollectiveError, ConfigError, NonFiniteError
from ...formats import checkpoint
from ...kernels import get_num_threads, set_num_threads
from .. import failpoints
from ..comm.communicator import RAISED, ranks_named
from ..comm.job import RESTARTS, is_first_rank
from ..comm.memory import cores
from ..phases import Phase
from ..pool.replica import Replica
from ..pool.steps import Steps, slices_of
from ..pool.worker import Worker
from ..settings import Settings, Start
from ..shards import starts_of
from .communicator import MpiCommunicator, world
from .machines import PIECE, Chain, extents_of, fold, machine_of
from .slices import PHASES, Slices, choose

TOLD_AFTER = ("shard", "project")  # phases that are told shard by shard


def begin(settings: Settings, run: Any) -> None:
    """run.start() on rank 0, which may load a checkpoint; then all ranks have its run.state()."""
    if settings.workers != 1:
        raise _refused(f"expected workers=1 under MPI: its ranks are the workers, got {settings.workers!r}")
    if not settings.strategy.is_exact:
        raise _refused(
            "expected a strategy that is exact under MPI, got "
            f"{settings.strategy}: its workers read and write one set of parameters at any time, in shared memory"
        )
    comm, machine = world(), machine_of(world())
    if cores() == os.cpu_count():  # ranks of one machine take an equal part each, unless they were told to take less
        set_num_threads(min(get_num_threads(), max(1, cores() // machine.neighbours)))
    blob = b""
    with _Told(comm):
        if comm.rank == 0:
            run.start()
            blob = checkpoint.dumps(run.state())
        blob = share(comm, "fit", blob)
        if comm.rank:
            run.load(checkpoint.loads(blob))


def share(comm: MpiCommunicator, text: str, blob: bytes) -> bytes:
    """Rank 0's bytes, on all ranks."""
    size = int(comm.handshake(text, len(blob))[0, 0])
    data = np.frombuffer(blob, np.uint8).copy() if comm.rank == 0 else np.empty(size, np.uint8)
    with comm.waiting(text):
        for at in range(0, size, 1 << 30):  # counts are int32
            comm.group.Bcast(data[at : at + (1 << 30)])
    return data.tobytes()


def share_record(record: dict[str, Any]) -> dict[str, Any]:
    """Rank 0's record of an epoch, on all ranks."""
    return json.loads(share(world(), "the epoch's record", json.dumps(record).encode()))


class _Told:
    """Inside, an exception of this rank alone is told to the others, whose next meeting then raises CollectiveError."""

    def __init__(self, comm: MpiCommunicator):
        self.comm = comm

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is not None and not self.comm.is_broken:
            step = f", step {self.comm.watch.step}" if self.comm.watch.step >= 0 else ""
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            sys.stderr.write(f"scratchnet: rank {self.comm.rank}{step}: {what}\n")  # one write: lines stay whole
            sys.stderr.flush()
            error.already_reported = True
            self.comm.finish(RAISED, what)


def _refused(text: str) -> ConfigError:
    """What all ranks raise at once, and the first one says."""
    error = ConfigError(f"Trainer: {text}")
    error.already_reported = not is_first_rank()  # type: ignore[attr-defined]
    return error


class Ranks(Steps):
    """The steps of a run on all ranks; see Steps.

    stop: what a signal asked of this rank is in `stop.asked`; what all ranks do goes to `stop.requested`.
    """

    workers = 1

    def __init__(self, settings: Settings, start: Start, stop: Any):
        replica = Replica.of(settings)
        self._comm = comm = world()
        self._machine = machine = machine_of(comm)
        self._listens = threading.current_thread() is threading.main_thread()
        self._wakeup = comm.watch.listen() if self._listens else -1
        self._stop, self._keeps = stop, settings.keeps_checkpoints
        stop.share()  # the run stops when all ranks know of it
        with _Told(comm):
            strategy, is_plain = replica.strategy, machine.count > 1 and not replica.strategy.compression
            self._is_fast = is_plain and strategy.order == "fast"  # the library's order
            self._slices: Slices | None = choose(machine, replica) if is_plain and not self._is_fast else None
            slices = self._slices.count if self._slices else slices_of(replica, machine.here.size)
            super().__init__(replica, start._replace(state={}), slices, machine.memory)
            for name in self.arena.ENTRY:  # each rank writes its own, and need not wait for others to do it
                setattr(self.arena, name, np.zeros_like(getattr(self.arena, name)))
            fail = failpoints.armed(comm.rank, int(os.environ.get(RESTARTS, "0")))
            self._worker = Worker(machine.here.rank, self.arena, replica, -1, fail)
            self._pieces = [self._own(pieces.phase) for pieces in self.arena.pieces]
            self._shards = machine.shards(machine.number, replica.shards)
            if is_plain and not self._slices:
                self._total = machine.memory(size := self.arena.slots.shape[-1]).array(0, size, np.uint8)
                self._worker.folded = self._total
            if machine.leaders:
                self._take_memory()
            if self._slices:
                self._slices.join(self.arena, self._worker)
            self._chains: dict[bool, Chain] = {}  # of pages, or of gradients
            self._rows: dict[str, np.ndarray] = {}  # what travels after a phase: (shards, bytes)
            self._memory: dict[str, np.ndarray] = {}
            self._load_state(start.state)
        comm.handshake("first step")  # now nobody writes the state of the start any more

    def _take_memory(self) -> None:
        """All that this machine writes: of slots only those of its own shards, unless the others' come whole."""
        arena, own = self.arena, self._shards
        for name, (offset, shape, dtype) in arena.extents.items():
            if name == "slots" and not self.compressor:
                rings, shards, size = shape
                for ring in range(rings):
                    arena.memory.commit(offset + (ring * shards + own.start) * size, len(own) * size)
            else:
                arena.memory.commit(offset, math.prod(shape) * dtype.itemsize)

    def _own(self, phase: Phase) -> Sequence[int]:
        """The pieces that this rank does: shards are shared out among all, as slices are that machines own; the rest is
        done on each machine.
        """
        if self._slices and phase.name in PHASES:
            return self._slices.own
        machine, of_all = self._machine, phase.name in TOLD_AFTER
        size, place = (self._comm.size, machine.place) if of_all else (machine.here.size, machine.here.rank)
        return range(*starts_of(phase.pieces, size)[place : place + 2])

    def resize(self, workers: int) -> bool:
        raise ConfigError(f"resize: expected workers=1 under MPI: its ranks are the workers, got {workers!r}")

    # --- a step -----------------------------------------------------------------------------------------------------

    def submit_step(self, batches: Sequence[np.ndarray], numbers: Sequence[np.ndarray], is_local: bool) -> None:
        """See Steps; all ranks submit the same. When it returns, the step is done."""
        step = self._comm.watch.step = self.submitted
        super().submit_step(batches, numbers, is_local)
        if self._slices:
            self._slices.begin(step)
        for number, pieces in enumerate(self.arena.pieces):
            with contextlib.suppress(NonFiniteError):  # it is in `bad`, and all ranks raise when they meet
                for piece in self._pieces[number]:
                    self._worker.do(number, piece)
                    if self._slices and pieces.phase.name == "slice":
                        self._slices.send_parameters(piece, step)
            self._join(pieces.phase.name, step)
        self.collect()

    def _join(self, phase: str, step: int) -> None:
        """All pieces of a phase are done, and what they made is on this machine."""
        machine = self._machine
        if phase == "shard":
            self._meet(step)
        if self._slices:
            self._exchange(self._slices, phase, step)
            machine.meet(f"phase {phase!r}")
            return
        if phase != "shard":
            machine.meet(f"phase {phase!r}")
        if machine.count == 1 or phase not in TOLD_AFTER:
            return
        if self._is_fast:
            self._add_up_here(step)
            machine.meet("the sum of a machine")
        if machine.leaders:
            with self._comm.waiting("the exchange of gradients"):
                self._tell(phase, step)
                if not self.compressor:
                    self._sum(step)
        machine.meet("the exchange of gradients")

    def _meet(self, step: int) -> None:
        """All ranks have their gradients, finite ones of the same samples; or all raise."""
        comm, row = self._comm, step % self.arena.window
        samples, bad = zlib.crc32(self.arena.positions[row].tobytes(), step), self.arena.bad[row]
        shard = next((k for k in self._pieces[0] if bad[k]), -1)
        brought = comm.handshake("training step", shard, bad[shard], self._stop.asked or 0, samples)
        others = [rank for rank in range(comm.size) if brought[rank, 3] != brought[0, 3]]
        if others:
            raise comm.failed(CollectiveError(f"step {step}: {ranks_named(others)} took other samples than rank 0"))
        found = brought[brought[:, 0] >= 0, :2]
        if len(found) and not self.settings.skip_nonfinite:
            shard, what = found[found[:, 0].argmin()]
            what = f"expected a finite {self.name_of(what)}, got one that is not"
            raise comm.failed(NonFiniteError(f"fit: step {step}, shard {shard}: {what}"))
        self._stop.requested = int(brought[:, 2].max()) or None

    # --- between machines -------------------------------------------------------------------------------------------

    def _exchange(self, slices: Slices, phase: str, step: int) -> None:
        """What the owners of slices need after a phase, or all others need of them."""
        if phase == "shard":
            slices.send_gradients(step)
            if self._machine.leaders:
                with self._comm.waiting("the exchange of losses"):
                    self._tell(phase, step)
            slices.wait_for_gradients(step)
        elif phase == "norm":
            slices.share_norm(step)
        else:
            slices.wait_for_parameters(step)

    def _tell(self, phase: str, step: int) -> None:
        """What a phase made of each shard, but for its gradient, goes to all machines.

        What compression sends goes whole: of c n bytes a shard, where a gradient has n, a machine sends K/M c (M-1) n.
        By slices it would send (K/M c + 1) (M-1)/M n, because the new parameters travel uncompressed. That is more if
        K/M < 1 / (c (M-1)): for a shard each, with c = 0.02 (TopK(0.01)) up to 50 machines, with 1/2 (Float16) two.
        And what TopK keeps of a slice has no fixed size, and PowerSGD needs whole factors.
        """
        if phase not in self._rows:
            self._rows[phase] = np.zeros((self.replica.shards, self._record(phase, 0, step).size), np.uint8)
        rows = self._rows[phase]
        for k in self._shards:
            rows[k] = self._record(phase, k, step)
        self._machine.spread(rows)
        for k, data in enumerate(rows):
            if k not in self._shards:
                for field in self._fields(phase, k, step):
                    own, data = data[: field.nbytes], data[field.nbytes :]
                    field[...] = own.view(field.dtype)
                if self.compressor:
                    self.compressor.unpack(phase, k, data)

    def _record(self, phase: str, k: int, step: int) -> np.ndarray:
        parts = [np.ascontiguousarray(field).view(np.uint8) for field in self._fields(phase, k, step)]
        return np.concatenate(parts + (self.compressor.pack(phase, k) if self.compressor else []))

    def _fields(self, phase: str, k: int, step: int) -> list[np.ndarray]:
        """Of a shard: its losses, what is not finite, and buffers."""
        arena, layout, row = self.arena, self.replica.layout, step % self.arena.window
        buffers = arena.slots[step % len(arena.slots), k, layout.parameter_bytes : layout.nbytes]
        found = [arena.losses[row, :, k], arena.bad[row, k : k + 1], buffers] if phase == "shard" else []
        return found[:2] if self._slices else found  # then buffers are in what owners of slices get

    def _full(self, step: int, shards: Sequence[int]) -> list[np.ndarray]:
        """The slots of those shards that are not empty."""
        full, slots = self._worker.shares_of(step).full, self.arena.slots
        return [slots[step % len(slots), k] for k in shards if k in full]

    def _sum(self, step: int) -> None:
        """The sum of all shards' slots, to `_total`: of gradients, or of pages."""
        machine, is_local = self._machine, bool(self.arena.local[step % self.arena.window])
        if self._is_fast:
            places, library = extents_of(self.replica.layout, [0], most=PIECE), self._comm.library
            started = [machine.leaders.Iallreduce(library.IN_PLACE, place.of(self._total)) for place in places]
            library.Request.Waitall(started)
            return
        layout, begins = self.replica.layout, self.replica.layout.begins if is_local else [0]
        if is_local not in self._chains:
            self._chains[is_local] = Chain(machine, extents_of(layout, begins, most=PIECE), self._total)
        shards = [machine.shards(number, self.replica.shards) for number in range(machine.count)]
        first = next(number for number in range(machine.count) if self._full(step, shards[number]))
        self._chains[is_local].fold(self._full(step, self._shards), first)

    def _add_up_here(self, step: int) -> None:
        """This rank's slice of the sum of the machine's slots, to `_total`."""
        slots = self._full(step, self._shards)
        for place in self.replica.layout.cut((self._machine.here.rank, self._machine.here.size)):
            place.of(self._total)[...] = 0
            if slots:
                fold([place.of(slot) for slot in slots], place.of(self._total))

    # --- the rest -----------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """All ranks have come here, and rank 0 has what a checkpoint remembers of all shards."""
        machine = self._machine
        if self._slices:
            self._slices.share_states(with_older=self._keeps and self.replica.strategy.lag > 0)
        machine.meet("settle")
        if self._keeps and self.compressor and machine.leaders:
            with self._comm.waiting("the exchange of residuals"):
                machine.spread(self.arena.residuals[self.submitted % 2])
        if self._keeps and self._comm.rank == 0:
            self._memory = super().state()  # now: soon others go on
        self._comm.handshake("settle")

    def state(self) -> dict[str, np.ndarray]:
        return self._memory

    def close(self, error: BaseException | None = None) -> None:
        self.read()
        if self.timeline and self._comm.rank == 0:
            self.timeline.write(self._machine.here.size)
        if error is None:
            for chain in self._chains.values():
                chain.release()
            if self._slices:
                self._slices.leave()
        if self._listens:
            signal.set_wakeup_fd(self._wakeup)
        if error is not None and self._comm.is_broken and not hasattr(error, "already_reported"):
            error.already_reported = not self._comm.reports  # type: ignore[attr-defined]
        if not self._stop.requested:
            _Told(self._comm).__exit__(error and type(error), error, None)
        self._comm.watch.step = -1
