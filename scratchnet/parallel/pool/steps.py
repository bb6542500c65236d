"""The steps of a run in an arena: who submits them, what came of them; done by other processes, or here.

    page t -> [gradient of shard k -> slot k]  all sealed -> [slice s of page t + 1]  all sealed = step t is committed

`Steps` describes each step in an entry of the arena, ahead of time. Its subclasses have the pieces done: `Solo` by this
process, pool.Pool by processes, mpi.engine.Ranks by the ranks of a job. They are engines, see parallel/engines.py.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ...data.dataset import positions_of
from ...errors import IndexOutOfRangeError, NonFiniteError
from ...precisions import FIRST_SCALE, SCALED
from ..comm.memory import SharedMemory
from ..settings import Settings, Start
from ..shards import StepResult, nonfinite_loss
from .claims import allow
from .compress import Compressor
from .device_memory import Blocks, DeviceArena, why_on_host
from .replica import Replica
from .timeline import Timeline
from .training_arena import COMPUTE, MERGE, SHARDS, WAIT, TrainingArena
from .worker import LOSS_IS_BAD, Worker

SLICES = 16  # the most pieces of a merge and update: one a worker

log = logging.getLogger("scratchnet.parallel")


class Steps:
    """An engine whose model, optimizer and scheduler follow when its steps are `settled`.

    replica: of the model and optimizer at `start`. slices, memory: see TrainingArena.
    """

    workers: int
    _on_gpus: DeviceArena | None = None  # pages and slots, if they are not in the arena

    def __init__(
        self, replica: Replica, start: Start, slices: int, memory: Callable[[int], SharedMemory] = SharedMemory
    ):
        self.replica, self.settings, self.strategy = replica, replica.settings, replica.strategy
        self.arena = TrainingArena(replica, slices, memory)
        timeline = self.settings.timeline
        self.timeline = None if timeline is None else Timeline(timeline, self.arena)
        for pieces in self.arena.pieces:
            pieces.sealed(self.arena.words)[:] = start.step
        self.write()
        allow(self.arena.words, start.step)
        self.submitted = self._collected = start.step
        self._samples, self._next_batch = positions_of(replica.dataset), start.batch
        self._batches: list[np.ndarray] = []  # of a step that is not submitted yet
        self._done: list[StepResult] = []
        self.compressor = Compressor(replica, self.arena) if self.strategy.compression else None
        if self.compressor:
            self.compressor.start()
        arena = self.arena
        arena.scales[...] = 1.0
        if self.settings.precision == SCALED:
            arena.scales[start.step % arena.window] = FIRST_SCALE, 0, 0
        self._load_state(start.state)

    def use_gpus(self, numbers: Sequence[int] | None) -> Blocks | None:
        """Have pages and slots on GPUs of these numbers, see DeviceArena, if there can be: what workers are told."""
        if (why := why_on_host(self.replica)) is not None:
            log.info("gradients go through the memory of the host: %s", why)
            return None
        self._on_gpus = DeviceArena(self.arena, numbers)
        self._on_gpus.write(self.arena.newest_page())
        return self._on_gpus.blocks

    def leave_gpus(self) -> None:
        """Give their memory back."""
        if self._on_gpus:
            self._on_gpus.free()
            self._on_gpus = None

    # --- the engine -------------------------------------------------------------------------------------------------

    @property
    def is_between(self) -> bool:
        return not self._batches

    def submit(self, positions: np.ndarray) -> None:
        self._batches.append(positions)
        if len(self._batches) == self.strategy.batches(self.submitted, self.settings.accumulate):
            self._begin()

    def finished(self) -> list[StepResult]:
        done, self._done = self._done, []
        return done

    def settled(self) -> list[StepResult]:
        if self._batches:
            self._begin()
        try:
            self.drain()
        except NonFiniteError:
            self._name_origin()
            raise
        self.read()
        return self.finished()

    @contextlib.contextmanager
    def following(self, within_epoch: bool) -> Iterator[None]:
        yield
        self.write()

    def state(self) -> dict[str, np.ndarray]:
        """Older pages, for gradients that are behind; residuals and factors of compression; the loss scale."""
        arena, found = self.arena, {}
        if self.strategy.lag:
            found["pages"] = arena.pages.copy()
        if self.compressor is not None:
            found |= {"residuals": arena.residuals[self.submitted % 2].copy(), "factors": arena.factors.copy()}
        if self.settings.precision == SCALED:
            found["scales"] = arena.scales[self.submitted % arena.window].copy()
        return found

    def loss_scale(self) -> dict[str, float]:
        if self.settings.precision != SCALED:
            return {}
        scale, _, skipped = self.arena.scales[self.submitted % self.arena.window].tolist()
        return {"loss_scale": scale, "skipped": int(skipped)}

    def _load_state(self, state: dict[str, np.ndarray]) -> None:
        arrays = {"pages": self.arena.pages, "factors": self.arena.factors}
        arrays["residuals"] = self.arena.residuals[self.submitted % 2]
        arrays["scales"] = self.arena.scales[self.submitted % self.arena.window]
        for name, array in state.items():
            arrays[name][...] = array

    def report(self) -> list[dict[str, float]]:
        columns = {"computing": COMPUTE, "merging": MERGE, "waiting": WAIT, "shards": SHARDS}
        return [
            {name: float(self.arena.times[rank, column]) for name, column in columns.items()}
            | {"starts": int(self.arena.starts[rank])}
            for rank in range(self.workers)
        ]

    def close(self, error: BaseException | None = None) -> None:
        self.read()  # whatever happened, committed steps are not lost
        if self.timeline:
            self.timeline.write(self.workers)

    # --- steps ------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """A step of the batches that have come together."""
        batches, self._batches = self._batches, []
        is_local = self.strategy.trains_locally(self.submitted)
        numbers = []
        for _ in batches if is_local else batches[:1]:
            numbers.append(self.replica.next_numbers())
            if (schedule := self.settings.schedule_of_steps) is not None:
                schedule.step()
        try:
            self.submit_step(batches, numbers, is_local)
        except NonFiniteError:
            self._name_origin()
            raise
        self._next_batch += len(batches)

    def submit_step(self, batches: Sequence[np.ndarray], numbers: Sequence[np.ndarray], is_local: bool) -> None:
        """Describe the next step: positions of the samples of each batch, numbers for the optimizer's kernel in each of
        its updates, and whether shards take local steps.
        """
        arena, entry = self.arena, self.submitted % self.arena.window
        positions = np.concatenate(batches) if len(batches) > 1 else batches[0]
        if positions.view(np.uint64).max() >= self._samples:  # as unsigned, negative ones are too large as well
            raise IndexOutOfRangeError(
                f"fit: expected positions from 0 to {self._samples - 1}, got {positions.min()} to {positions.max()}"
            )
        arena.positions[entry, : len(positions)] = positions
        arena.counts[entry] = 0
        arena.counts[entry, : len(batches)] = [len(batch) for batch in batches]
        arena.numbers[entry, : len(numbers)] = numbers
        arena.batches[entry], arena.first[entry], arena.local[entry] = len(batches), self._next_batch, is_local
        arena.version[entry] = max(0, self.submitted - self.strategy.lag)
        self.submitted += 1
        allow(arena.words, self.submitted)

    def drain(self) -> None:
        """Return when all submitted steps are done."""
        raise NotImplementedError

    def write(self) -> None:
        """The model and the optimizer go to the newest page."""
        self.replica.write(self.replica.layout.page(self.arena.newest()))
        if self._on_gpus:
            self._on_gpus.write(self.arena.newest_page())

    def read(self) -> None:
        """The newest page goes to the model and the optimizer."""
        if self._on_gpus:
            self._on_gpus.read(self.arena.newest_page())
        self.replica.read(self.replica.layout.page(self.arena.newest()))

    def collect(self) -> int:
        """Note the results of steps that are done; returns how many steps are."""
        committed = self.arena.committed()
        for number in range(self._collected, committed):
            self._done.append(self.result(number))
            if self.settings.skip_nonfinite:
                bad = self.arena.bad[number % self.arena.window]
                for k in np.flatnonzero(bad):
                    what = self.name_of(bad[k])
                    log.warning("step %d was skipped: in shard %d the %s is not finite", number, k, what)
        self._collected = committed
        return committed

    def result(self, number: int) -> StepResult:
        """Of a step in the window; its losses mean something once it is done."""
        arena, entry = self.arena, number % self.arena.window
        counts = arena.counts[entry, : arena.batches[entry]].tolist()
        ends = list(itertools.accumulate(counts))
        positions = arena.positions[entry, : ends[-1]].copy()
        batches = [positions[end - n : end] for n, end in zip(counts, ends, strict=True)]
        return StepResult(number, int(arena.first[entry]), batches, arena.losses[entry, : len(counts)].copy())

    def name_of(self, bad: int) -> str:
        """What was not finite, from a shard's `bad`."""
        return "loss" if bad == LOSS_IS_BAD else f"gradient of {self.replica.name_of(int(bad) - 1)!r}"

    def _name_origin(self) -> None:
        """A loss in a worker is not finite: it is computed once more here, to raise an error that names the op."""
        self.read()
        step = self.result(self.arena.committed())
        if self.strategy.merges_gradients and not self.strategy.lag:
            for i, positions in enumerate(step.batches):
                if origin := nonfinite_loss(self.settings, positions, step.first + i, step.number):
                    raise origin from None


def slices_of(replica: Replica, workers: int) -> int:
    """In how many pieces so many workers that share memory merge and update."""
    return min(replica.strategy.slices(workers), SLICES)


class Solo(Steps):
    """This process does all pieces of a step when it is submitted."""

    workers = 1

    def __init__(self, settings: Settings, start: Start):
        super().__init__(Replica.of(settings), start, slices=1)
        self.arena.starts[0] = 1
        blocks = None if self.replica.device.is_host else self.use_gpus(None)
        self._worker = Worker(0, self.arena, self.replica, spins=-1, blocks=blocks)

    def submit_step(self, batches: Sequence[np.ndarray], numbers: Sequence[np.ndarray], is_local: bool) -> None:
        super().submit_step(batches, numbers, is_local)
        try:
            self._worker.run()
        except NonFiniteError as error:
            step, k = self._worker.doing or (self.submitted, 0)
            raise NonFiniteError(f"fit: step {step}, shard {k}: {error}") from None
        self.collect()

    def drain(self) -> None:
        """Nothing is left to do."""

    def resize(self, workers: int) -> bool:
        return workers == 1
