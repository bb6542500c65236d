"""Training by the ranks of an MPI job: the steps of a run, with the bits of one process for any number of ranks.

Each machine is a pool: its ranks share an arena and do the pieces of a step as workers do (pool/worker.py). Shards are
divided among all ranks, and between two phases machines exchange what the next one needs:

    shard     the losses of each shard, and sums of gradients (or, after local steps, of pages): of what belongs to the
              slices that a machine owns (slices.py). With compression what each shard sends: K (M-1)/M of that travel
              to each of M machines
    project   PowerSGD: the second factors
    norm      its parts, from machines that own slices
    slice     the new parameters, from machines that own slices; the optimizer's state only before somebody reads it

So every exact strategy, its compression, clipping and skipping is the code of the pool, and has its bits. Rank 0 alone
touches the run's folder, and sends what it loads to all ranks. stages.py has the ranks of a model that is divided.
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
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...errors import CollectiveError, ConfigError, NonFiniteError
from ...formats import checkpoint
from ...kernels import get_num_threads, set_num_threads
from ...native.limits import cores
from .. import failpoints
from ..comm.communicator import RAISED, ranks_named
from ..comm.job import RESTARTS, is_first_rank
from ..phases import Phase
from ..pool.device_memory import DeviceArena
from ..pool.replica import Replica
from ..pool.steps import Steps, slices_of
from ..pool.worker import Worker
from ..settings import Settings, Start
from ..shards import starts_of
from .communicator import MpiCommunicator, world
from .gpus import GpuSlices, are_linked
from .machines import MESSAGE_BYTES, extents_of, machine_of
from .slices import PHASES, Slices, add_up

EXCHANGED = ("shard", "project")  # phases after which machines exchange what they made of each shard


def begin(settings: Settings, run: Any) -> None:
    """run.start() on rank 0, which may load a checkpoint; then run.load(...) of its state on the others.

    Raises ConfigError, on all ranks, for settings that a job cannot have.
    """
    if settings.workers != 1:
        raise _refused(f"expected workers=1 under MPI: its ranks are the workers, got {settings.workers!r}")
    if not settings.strategy.is_exact:
        raise _refused(
            "expected a strategy that is exact under MPI, got "
            f"{settings.strategy}: its workers read and write one set of parameters at any time, in shared memory"
        )
    comm, machine = world(), machine_of(world())
    try:
        settings.strategy.check_workers(comm.size)
    except ConfigError as error:
        raise _reported_once(error) from None
    if cores() == os.cpu_count():  # nobody bound this rank to fewer cores: ranks of a machine take an equal part each
        set_num_threads(min(get_num_threads(), max(1, cores() // machine.neighbours)))
    blob = b""
    with _announced(comm):
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


@contextlib.contextmanager
def _announced(comm: MpiCommunicator) -> Iterator[None]:
    """Inside, an exception of this rank alone is announced to the others."""
    try:
        yield
    except BaseException as error:
        _announce(comm, error)
        raise


def _announce(comm: MpiCommunicator, error: Any) -> None:
    """Report an exception of this rank alone, and tell the others, whose next handshake then raises CollectiveError."""
    if comm.is_broken:
        return
    step = f", step {comm.watch.step}" if comm.watch.step >= 0 else ""
    what = f"{type(error).__name__}: {error}".splitlines()[0]
    sys.stderr.write(f"scratchnet: rank {comm.rank}{step}: {what}\n")  # in one write, so that lines do not mix
    sys.stderr.flush()
    error.already_reported = True
    comm.finish(RAISED, what)


def _refused(text: str) -> ConfigError:
    return _reported_once(ConfigError(f"Trainer: {text}"))


def _reported_once(error: ConfigError) -> ConfigError:
    """An error that all ranks raise at once, and the first one reports."""
    error.already_reported = not is_first_rank()  # type: ignore[attr-defined]
    return error


class Ranks(Steps):
    """An engine, see Steps, whose ranks all make the same calls.

    stop: `stop.asked` is the signal that this rank got; `stop.requested` is set on all ranks after the same step.
    """

    workers = 1
    _slices: Slices | None = None  # of what machines own
    _is_fast = False

    def __init__(self, settings: Settings, start: Start, stop: Any):
        self._comm = comm = world()
        self._machine = machine_of(comm)
        self._listens = threading.current_thread() is threading.main_thread()
        self._wakeup = comm.watch.listen() if self._listens else -1
        self._stop, self._keeps = stop, settings.keeps_checkpoints
        stop.share()  # a signal only sets `asked` from now on
        with _announced(comm):
            replica = self._replica_of(settings)
            slices = self._slices_of(replica)  # on GPUs each rank is a machine
            super().__init__(replica, start._replace(state={}), slices, self._machine.memory)
            for name in self.arena.ENTRY:  # each rank writes its own, so that it need not wait for another to do it
                setattr(self.arena, name, np.zeros_like(getattr(self.arena, name)))
            fail = failpoints.armed(comm.rank, int(os.environ.get(RESTARTS, "0")))
            self._worker = Worker(self._machine.local.rank, self.arena, replica, -1, fail, blocks=self._on_gpu())
            self._state: dict[str, np.ndarray] = {}
            self._attach()
            self._load_state(start.state)
        comm.handshake("first step")  # now nobody writes the state of the start any more

    def _replica_of(self, settings: Settings) -> Replica:
        return Replica.of(settings)

    def _slices_of(self, replica: Replica) -> int:
        """In how many pieces the merge and update is done."""
        if not replica.device.is_host and are_linked(self._comm, replica):
            self._machine = machine_of(self._comm, 1)
            self._slices = GpuSlices(self._machine, replica)
            return self._slices.count
        machine, strategy = self._machine, replica.strategy
        is_plain = machine.count > 1 and not strategy.compression
        self._is_fast = is_plain and strategy.order == "fast"  # the library's order
        self._slices = Slices(machine, replica) if is_plain and not self._is_fast else None
        return self._slices.count if self._slices else slices_of(replica, machine.local.size)

    def _on_gpu(self) -> Any:
        """The memory of this rank's GPU as `Blocks`, where gradients stay on it."""
        if not isinstance(self._slices, GpuSlices):
            return None
        self._on_gpus = DeviceArena(self.arena, None, len(self._slices.shards))
        self._on_gpus.write(self.arena.newest_page())
        return self._slices.blocks(self._on_gpus.blocks)

    def _attach(self) -> None:
        """Before the first step: what is whose, and memory for it. All ranks call this at once."""
        machine, replica = self._machine, self.replica
        self._pieces = [self._own(pieces.phase) for pieces in self.arena.pieces]
        self._judged = self._pieces[0]
        self._shards = machine.shards(machine.number, replica.shards)
        if self._is_fast:
            self._total = machine.memory(size := self.arena.slots.shape[-1]).array(0, size, np.uint8)
            self._worker.folded = self._total
        if machine.leaders:
            self._commit_memory()
        if self._slices:
            self._slices.attach(self.arena, self._worker)
        self._rows: dict[str, np.ndarray] = {}  # what machines exchange after a phase: (shards, bytes)

    def _detach(self) -> None:
        """After the last step."""
        if self._slices:
            self._slices.detach()

    def _commit_memory(self) -> None:
        """For all that this machine writes. Without compression its slots hold the gradients of its own shards."""
        arena, own = self.arena, self._shards
        for name, (offset, shape, dtype) in arena.extents.items():
            if name == "slots" and self._on_gpus:
                continue
            if name == "slots" and not self.compressor:
                rings, shards, size = shape
                for ring in range(rings):
                    arena.memory.commit(offset + (ring * shards + own.start) * size, len(own) * size)
            else:
                arena.memory.commit(offset, math.prod(shape) * dtype.itemsize)

    def _own(self, phase: Phase) -> Sequence[int]:
        """The pieces that this rank does. Shards, and slices that machines own, are divided among all ranks; other
        pieces are done on each machine.
        """
        if self._slices and phase.name in PHASES:
            return self._slices.own
        machine = self._machine
        if phase.name in EXCHANGED:
            return range(*machine.starts(phase.pieces)[machine.ordinal : machine.ordinal + 2])
        return range(*starts_of(phase.pieces, machine.local.size)[machine.local.rank : machine.local.rank + 2])

    @contextlib.contextmanager
    def following(self, within_epoch: bool) -> Iterator[None]:
        yield
        theta = self.replica.layout.page(self.arena.newest())[0]
        for i, extent in self.replica.layout.parameters.items():
            own = self.replica.optimizer.states[i].param._data
            if extent.of(theta).tobytes() != self.replica.at(own).to_host(own).tobytes():
                raise self._changed(i)

    def _changed(self, i: int) -> ConfigError:
        name = self.replica.name_of(i)
        return ConfigError(f"expected callbacks that change nothing under MPI, where rank 0 has them, got {name!r}")

    def resize(self, workers: int) -> bool:
        raise ConfigError(f"resize: expected workers=1 under MPI: its ranks are the workers, got {workers!r}")

    # --- a step -----------------------------------------------------------------------------------------------------

    def submit_step(self, batches: Sequence[np.ndarray], numbers: Sequence[np.ndarray], is_local: bool) -> None:
        """See Steps. All ranks submit the same step; when this returns, the step is done."""
        step = self._comm.watch.step = self.submitted
        super().submit_step(batches, numbers, is_local)
        self._compute(step)
        self.collect()

    def _compute(self, step: int) -> None:
        """All pieces of a step that are this rank's."""
        if self._slices:
            self._slices.begin(step)
        for number, pieces in enumerate(self.arena.pieces):
            with contextlib.suppress(NonFiniteError):  # it is in `bad`, and `_agree` lets all ranks raise it
                for piece in self._pieces[number]:
                    self._worker.do(number, piece)
                    if self._slices:
                        self._slices.done(pieces.phase.name, piece, step)
            self._finish_phase(pieces.phase.name, step)
        self._worker.scale_next(step)  # a machine may have no slice that does so: of a norm there are few

    def _finish_phase(self, phase: str, step: int) -> None:
        """Returns when all pieces of a phase are done, and this machine has what the next phase needs."""
        machine = self._machine
        if phase == "shard":
            self._agree(step)
        if self._slices:
            self._exchange_slices(self._slices, phase, step)
            machine.synchronize(f"phase {phase!r}")
            return
        if phase != "shard":
            machine.synchronize(f"phase {phase!r}")
        if machine.count == 1 or phase not in EXCHANGED:
            return
        if self._is_fast:
            self._sum_of_machine(step)
            machine.synchronize("the sum of a machine")
        if machine.leaders:
            with self._comm.waiting("the exchange of gradients"):
                self._exchange_shards(phase, step)
                if self._is_fast:
                    self._sum()
        machine.synchronize("the exchange of gradients")

    def _agree(self, step: int) -> None:
        """Returns when all ranks have computed their gradients. All raise if samples differ, or one is not finite."""
        comm, entry = self._comm, step % self.arena.window
        samples, bad = zlib.crc32(self.arena.positions[entry].tobytes(), step), self.arena.bad[entry]
        shard = next((k for k in self._judged if bad[k]), -1)
        brought = comm.handshake("training step", shard, bad[shard], self._stop.asked or 0, samples)
        others = [rank for rank in range(comm.size) if brought[rank, 3] != brought[0, 3]]
        if others:
            raise comm.failed(CollectiveError(f"step {step}: {ranks_named(others)} took other samples than rank 0"))
        found = brought[brought[:, 0] >= 0, :2]
        if len(found) and not self.settings.skip_nonfinite:
            shard, what = min(found.tolist())
            what = f"expected a finite {self.name_of(what)}, got one that is not"
            raise comm.failed(NonFiniteError(f"fit: step {step}, shard {shard}: {what}"))
        self._stop.requested = int(brought[:, 2].max()) or None

    # --- between machines -------------------------------------------------------------------------------------------

    def _exchange_slices(self, slices: Slices, phase: str, step: int) -> None:
        """After a phase: owners of slices receive what they need, or send what all others need."""
        if phase == "shard":
            slices.send_gradients(step)
            if self._machine.leaders:
                with self._comm.waiting("the exchange of losses"):
                    self._exchange_shards(phase, step)
            slices.wait_for_gradients(step)
        elif phase == "norm":
            slices.share_norm(step)
        else:
            slices.wait_for_parameters(step)

    def _exchange_shards(self, phase: str, step: int) -> None:
        """What a phase made of each shard, but for its gradient, goes to all machines.

        What compression sends goes whole: with c n bytes a shard, where a gradient has n, a machine sends
        K/M c (M-1) n. By slices it would send (K/M c + 1) (M-1)/M n, because new parameters travel uncompressed. That
        is more if K/M < 1 / (c (M-1)): with one shard a machine, for c = 0.02 (TopK(0.01)) up to 50 machines, for
        c = 1/2 (Float16) up to two. And what TopK keeps of a slice has no fixed size, and PowerSGD needs whole factors.
        """
        if phase not in self._rows:
            self._rows[phase] = np.zeros((self.replica.shards, self._packed(phase, 0, step).size), np.uint8)
        rows = self._rows[phase]
        for k in self._shards:
            rows[k] = self._packed(phase, k, step)
        self._machine.share_rows(rows)
        for k, data in enumerate(rows):
            if k not in self._shards:
                for field in self._fields(phase, k, step):
                    own, data = data[: field.nbytes], data[field.nbytes :]
                    field[...] = own.view(field.dtype)
                if self.compressor:
                    self.compressor.unpack(phase, k, data)

    def _packed(self, phase: str, k: int, step: int) -> np.ndarray:
        parts = [np.ascontiguousarray(field).view(np.uint8) for field in self._fields(phase, k, step)]
        return np.concatenate(parts + (self.compressor.pack(phase, k) if self.compressor else []))

    def _fields(self, phase: str, k: int, step: int) -> list[np.ndarray]:
        """The arrays of a shard that machines exchange: its losses, what is not finite, and buffers."""
        arena, layout, entry = self.arena, self.replica.layout, step % self.arena.window
        buffers = arena.slots[step % len(arena.slots), k, layout.parameter_bytes : layout.nbytes]
        found = [arena.losses[entry, :, k], arena.bad[entry, k : k + 1], buffers] if phase == "shard" else []
        return found[:2] if self._slices else found  # with slices, buffers go to the owner of the last piece alone

    def _sum(self) -> None:
        """_total = the sum of all machines' _total, in an order of the library's choice."""
        extents, library = extents_of(self.replica.layout, [0], most=MESSAGE_BYTES), self._comm.library
        leaders = self._machine.leaders
        library.Request.Waitall([leaders.Iallreduce(library.IN_PLACE, e.of(self._total)) for e in extents])

    def _sum_of_machine(self, step: int) -> None:
        """This rank's slice of _total = the sum of the machine's slots."""
        full, slots = self._worker.shares_of(step).full, self.arena.slots[step % len(self.arena.slots)]
        own = [k for k in self._shards if k in full]
        for extent in self.replica.layout.cut((self._machine.local.rank, self._machine.local.size)):
            extent.of(self._total)[...] = 0
            if own:
                add_up(slots, own, extent, self._total)

    # --- state, and the end -------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Returns when all ranks have called it. Rank 0 then has the state that a checkpoint keeps of all shards."""
        machine = self._machine
        if self._slices:
            self._slices.share_states(with_older=self._keeps and self.replica.strategy.lag > 0)
        machine.synchronize("settle")
        if self._keeps and self.compressor and machine.leaders:
            with self._comm.waiting("the exchange of residuals"):
                machine.share_rows(self.arena.residuals[self.submitted % 2])
        if self._keeps and self._comm.rank == 0:
            self._state = super().state()  # now, before the others go on
        self._comm.handshake("settle")

    def state(self) -> dict[str, np.ndarray]:
        return self._state

    def close(self, error: BaseException | None = None) -> None:
        if error is not None and self._slices:
            self._slices.abandon()
        self.read()
        if self.timeline and self._comm.rank == 0:
            self.timeline.write(self._machine.local.size)
        if error is None:
            self._detach()
        if self._listens:
            signal.set_wakeup_fd(self._wakeup)
        if error is not None and self._comm.is_broken and not hasattr(error, "already_reported"):
            error.already_reported = not self._comm.reports  # type: ignore[attr-defined]
        if error is not None and not self._stop.requested:
            _announce(self._comm, error)
        self._comm.watch.step = -1
