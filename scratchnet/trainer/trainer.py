"""Trainer: the loop around a model, in five steps: prepare, split, compute, merge, report.

It takes batches from a DataLoader, splits each into K logical shards, computes their gradients, merges them in
shard order into one optimizer step, and reports epochs to a progress line, a metrics log and checkpoints.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import tracing
from ..autograd import no_grad
from ..data import DataLoader
from ..data.dataset import gather, selects
from ..errors import CheckpointError, ConfigError, DeviceError, NonFiniteError
from ..formats import checkpoint
from ..formats.checkpoint_folder import CheckpointFolder
from ..jit import jit as jitted
from ..kernels import device as find_device
from ..kernels import get_num_threads, set_num_threads
from ..nn import Module
from ..nonfinite import first_nonfinite
from ..parallel.comm.job import is_first_rank, report_end, started_as
from ..parallel.pool.placement import Placement
from ..parallel.shards import StepResult, first_stream, require_finite, shard_loss, split, weighted_mean
from ..parallel.strategies import AllReduce, Strategy, options_of, strategy_of
from ..random import Generator
from ..tensor import Tensor, default_device
from . import metrics_log

if TYPE_CHECKING:
    from ..parallel.planner import Choice

Batch = tuple[np.ndarray, ...]
SAY_EVERY = 0.5  # seconds between two looks at workers


class History:
    """What each epoch brought: a list of records, and a column of them by name: `history["val_loss"]`.

    workers: of each worker that there was in the end, seconds that it computed, merged and waited, shards that it did,
    and processes that it had; of more than one, if there was a pool.
    """

    def __init__(self, records: list[dict[str, Any]], workers: Sequence[dict[str, float]] = ()):
        self.records, self.workers = records, list(workers)

    def lines_of_workers(self) -> list[str]:
        """A line a worker: what it did with its time."""
        lines = []
        for rank, row in enumerate(self.workers if len(self.workers) > 1 else []):
            total = sum(row[name] for name in ("computing", "merging", "waiting")) or 1.0
            parts = [f"{row[name] / total:4.0%} {name}" for name in ("computing", "merging", "waiting")]
            again = f", started {row['starts']} times" if row["starts"] > 1 else ""
            lines.append(f"worker {rank}  {'  '.join(parts)}  {row['shards']:,.0f} shards{again}")
        return lines

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, column: str) -> list[Any]:
        return [record.get(column) for record in self.records]

    def __repr__(self) -> str:
        return f"History({len(self)} epochs, last {self.records[-1] if self.records else None})"


class Trainer:
    """Trains a model by synchronous gradient descent over K shards a batch.

    loss(output, target) must be a mean over the batch: shard k of n_k samples weighs n_k / n, so the merged
    gradient is the batch's true mean. K = `shards` enters the arithmetic (sums are folded in shard order) and
    so the last bits of the result; nothing else about the machine does.

    model, optimizer, loss, scheduler: as in PyTorch; the scheduler steps once an optimizer step.
    workers: processes that compute, 1 for this one alone; "auto" measures and picks. With a strategy that is exact (all
        but the asynchronous ones) neither their number nor how often any of them dies changes a bit.
    devices: where the workers compute, a name for each, such as ("cuda:0", "cuda:1") or ("cuda:0", "cpu"); None: on the
        model's device, and if that is "cuda", on a GPU each. Parameters, merges and updates stay in the host's memory,
        so the bits of workers on GPUs do not depend on their number either; but they are others than those of the one
        process that workers=1 without `devices` is, which updates on the GPU. GPUs and CPUs round differently: where
        there are both, shard k is always computed on the kind of device that devices[k mod len(devices)] is. Under MPI
        there are no GPUs so far, and "auto" does not look at them.
    strategy: how gradients become new parameters: a value of `scratchnet.parallel`, such as LocalSGD(every=8), or the
        name of one: "all_reduce" (the default), "parameter_server", "local_sgd", "hogwild".
    shards: K; None means one a worker.
    seed: of the random numbers that layers draw; those of batch b and shard k depend on (seed, b, k) alone.
    accumulate: batches whose mean gradient makes one step. Each shard goes over them one after the other.
    clip_norm: scale the merged gradient so that its norm, as one vector, is at most this.
    nonfinite: "raise" NonFiniteError where a loss or gradient is NaN or infinite, or "skip" that step, with a warning.
    folder: where checkpoints and metrics.jsonl go; None keeps nothing.
    save_every: steps between checkpoints; None saves at the end of each epoch.
    config: anything JSON can hold, stored in the checkpoint for whoever reads it.
    jit: record a step once for each shape of batch and replay it compiled (see `scratchnet.jit`); False where a model
        looks at values of its tensors. The bits are the same.
    progress: show a progress bar (if tqdm is installed) and print a line an epoch.
    timeline: file for what each worker did when, which https://ui.perfetto.dev opens; None keeps none.

    In a job that MPI started (mpirun, srun), its ranks share the work of a run, and the bits are those of one process:
    see `scratchnet.parallel.mpi.engine`. Only rank 0 evaluates, prints and keeps files.

    SIGINT and SIGTERM during `fit` end the run after the step in hand, with a checkpoint if there is a folder;
    a second one ends it at once. Raises ConfigError for arguments outside their range.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Any,
        loss: Callable[..., Tensor],
        scheduler: Any = None,
        workers: int | str = 1,
        shards: int | None = None,
        strategy: str | Strategy = "all_reduce",
        *,
        devices: Sequence[str] | None = None,
        seed: int = 0,
        accumulate: int = 1,
        clip_norm: float | None = None,
        nonfinite: str = "raise",
        folder: str | Path | None = None,
        save_every: int | None = None,
        config: dict[str, Any] | None = None,
        jit: bool = True,
        progress: bool = True,
        timeline: str | Path | None = None,
    ):
        if workers != "auto":
            _require_workers(workers)
        for name, value in {"shards": shards, "save_every": save_every}.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"Trainer: expected {name} >= 1 or None, got {value!r}")
        if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
            raise ConfigError(f"Trainer: expected accumulate to be an integer of at least 1, got {accumulate!r}")
        if nonfinite not in ("raise", "skip"):
            raise ConfigError(f"Trainer: expected nonfinite 'raise' or 'skip', got {nonfinite!r}")
        if clip_norm is not None and not (isinstance(clip_norm, int | float) and clip_norm > 0):
            raise ConfigError(f"Trainer: expected clip_norm > 0 or None, got {clip_norm!r}")
        self.strategy = strategy_of(strategy)
        if not self.strategy.merges_gradients and (clip_norm is not None or nonfinite == "skip" or accumulate > 1):
            raise ConfigError(
                "Trainer: expected a strategy that merges gradients with accumulate, clip_norm or nonfinite='skip', "
                f"got {self.strategy}"
            )
        self.model, self.optimizer, self.loss, self.scheduler = model, optimizer, loss, scheduler
        self._device = next(iter(model.parameters())).device
        self.devices, self._placement = devices, Placement(devices, self._device)
        if isinstance(workers, int):
            self._placement.check(workers)
        elif self._placement.names is not None:
            raise ConfigError("Trainer: expected a number of workers with devices, or a model on 'cuda', got 'auto'")
        self.workers: Any = workers
        self._shards = shards
        self.accumulate, self.clip_norm, self.nonfinite = accumulate, clip_norm, nonfinite
        self.seed, self.save_every, self.config, self.progress = seed, save_every, config or {}, progress
        self.folder = None if folder is None else Path(folder)
        self.jit, self.timeline = jit, timeline
        self._generators: list[Generator] = []  # one a shard
        self._train = jitted(self._compute_and_merge) if jit else self._compute_and_merge
        self._select = jitted(self._select_and_compute) if jit else None
        self._is_first, job = is_first_rank(), started_as()
        self._ranks = None if job is None or job[1] == 1 else import_module("scratchnet.parallel.mpi.engine")

    @property
    def shards(self) -> int:
        """K."""
        return self._shards or (self.workers if isinstance(self.workers, int) else 1)

    def resize(self, workers: int) -> None:
        """Have so many workers from the next step on: for another thread, while `fit` runs; or before it.

        The number of shards stays as it is, so no bit changes; without `shards` it is the number of workers, and then
        this raises ConfigError while a run is in progress.
        """
        _require_workers(workers)
        self._placement.check(workers)
        if self._shards is None and self._is_running:
            raise ConfigError("resize: expected a Trainer with shards=K, whose arithmetic stays the same, got none")
        self.workers = workers

    _is_running = False

    # --- training -----------------------------------------------------------------------------------------------

    def fit(
        self,
        train_loader: DataLoader,
        val_loader: DataLoader | None = None,
        epochs: int = 1,
        resume: str | Path | None = None,
    ) -> History:
        """Trains until `epochs` epochs are done in all, those before a resume included.

        resume: "auto" goes on from the newest whole checkpoint of the folder, or starts if there is none; a path
        goes on from that file. The result has the bytes of a run that was never interrupted.

        Raises NonFiniteError, naming the step and the first op, if a loss is not finite; CheckpointError if the
        checkpoint is of another run (other shards, batch size, seed, ...), or if the folder holds a run and
        `resume` is None.
        """
        if not isinstance(epochs, int) or epochs < 0:
            raise ConfigError(f"fit: expected epochs >= 0, got {epochs!r}")
        if not len(train_loader):
            raise ConfigError("fit: expected at least one batch to train on, got none")
        choice = self._choose(train_loader) if self.workers == "auto" and not self._ranks else None
        run = _Run(train_loader, self)
        with contextlib.ExitStack() as stack:
            if choice and choice.plan.workers == 1:
                stack.callback(set_num_threads, get_num_threads())
                set_num_threads(choice.plan.threads)
            start = functools.partial(self._start, run, resume, stack)
            if self._ranks:
                self._ranks.begin(self, run, start)
            else:
                report_end()
                start()
            run.stop = stack.enter_context(_stop_on_signal())
            run.engine = _engine_of(self, run)
            stack.push(lambda *exc_info: run.engine.__exit__(*exc_info))
            self._is_running = True
            stack.callback(lambda: setattr(self, "_is_running", False))
            while run.epoch < epochs:
                seconds = self._epoch(run, epochs, val_loader)
                run.stop.leave_if_requested()
                if choice and self.progress:
                    print(choice.compare(seconds / len(train_loader)), flush=True)
                    choice = None
            history = History(run.history, run.engine.report())
        if self.progress and self._is_first:
            print("\n".join(history.lines_of_workers()), end="\n" if len(history.workers) > 1 else "", flush=True)
        return history

    def _choose(self, loader: DataLoader) -> Choice:
        """workers="auto": the fastest plan, tried with this model and optimizer, which are put back afterwards."""
        from ..parallel.planner import choose  # here, not above: importing scratchnet does not load multiprocess

        parts = {"model": self.model, "optimizer": self.optimizer}
        before = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}

        def engine_of(workers: int) -> _Alone | _Pooled:
            trial = Trainer(
                self.model, self.optimizer, self.loss, None, workers, self._shards, self.strategy, seed=self.seed,
                accumulate=self.accumulate, clip_norm=self.clip_norm, nonfinite=self.nonfinite, jit=self.jit,
            )  # fmt: skip
            return _engine_of(trial, _Run(loader, trial))

        try:
            most = self._shards or min(loader.batch_size, len(loader.dataset))
            choice = choose(most, engine_of, lambda: loader.batch_indices(0))
        finally:
            for name, part in parts.items():
                part.load_state_dict(before[name])
        self.workers = choice.plan.workers
        if self.progress:
            print(choice.explain(), flush=True)
        return choice

    def _epoch(self, run: _Run, epochs: int, val_loader: DataLoader | None) -> float:
        """Seconds of training."""
        start, first = time.perf_counter(), run.samples
        self.model.train()
        with _bar(run, epochs, self.progress and self._is_first) as bar:
            for positions in run.loader.batch_indices(run.epoch, run.batch):
                run.engine.submit(positions)
                run.count(run.engine.finished(), bar)
                if not run.engine.is_between:
                    continue
                if run.stop.requested or (self.save_every and run.engine.submitted % self.save_every == 0):
                    run.count(run.engine.settled(), bar)
                    run.save(self)
                run.stop.leave_if_requested()
                if run.engine.workers != self.workers:
                    self._resize(run, bar)
            run.count(run.engine.settled(), bar)
        seconds = time.perf_counter() - start
        record: dict[str, Any] = {
            "epoch": run.epoch + 1,
            "step": run.step,
            "train_loss": run.loss_sum / max(run.samples, 1),
        }
        if val_loader is not None and self._is_first:
            record |= {f"val_{name}": value for name, value in self.evaluate(val_loader).items()}
        if self._ranks:
            record = self._ranks.share_record(record)
        run.history.append(record)
        timing = {"seconds": seconds, "samples_per_second": (run.samples - first) / seconds}
        if self.folder is not None and self._is_first:
            metrics_log.append_jsonl(self.folder / "metrics.jsonl", record | timing)
        if self.progress and self._is_first:
            print(_line(record | timing, epochs), flush=True)
        run.next_epoch()
        run.save(self)
        return seconds

    def _resize(self, run: _Run, bar: Any) -> None:
        """Let the run go on with self.workers workers."""
        if not run.engine.resize(self.workers):
            run.count(run.engine.settled(), bar)
            run.engine.__exit__(None, None, None)
            run.memory = run.engine.memory()
            run.engine = _engine_of(self, run)

    def _step(self, dataset: Any, positions: np.ndarray, step: int) -> dict[int, float]:
        """One optimizer step in this process; the losses of the shards that are not empty."""
        self._start_streams(step)
        try:
            if self._select is not None and selects(dataset):
                losses = self._select(dataset, Tensor(positions, device=self._device))
            else:
                losses = self._train(*self._tensors(gather(dataset, positions)))
        except NonFiniteError:
            lost = NonFiniteError(f"fit: expected a finite loss at step {step}, got one that was not")
            raise self._origin(gather(dataset, positions), step, step) or lost from None
        return {k: loss.item() for k, loss in losses.items()}

    def _start_streams(self, batch: int) -> None:
        """Each shard's random numbers begin where those of a batch do."""
        self._generators += [Generator(self.seed) for _ in range(self.shards - len(self._generators))]
        for k, generator in enumerate(self._generators):
            generator.stream = first_stream(batch, k, self.shards)

    def _tensors(self, batch: Batch) -> tuple[Tensor, ...]:
        return tuple(Tensor(array, device=self._device) for array in batch)

    def _select_and_compute(self, dataset: Any, positions: Tensor) -> dict[int, Tensor]:
        """The same, for a step that gathers its rows itself."""
        with default_device(self._device):
            batch = dataset.select(positions)
        return self._compute_and_merge(*batch)

    def _compute_and_merge(self, *batch: Tensor) -> dict[int, Tensor]:
        """One optimizer step; the losses of the shards that are not empty."""
        n, losses = len(batch[0]), {}
        shards = [split(batch, k, self.shards) for k in range(self.shards)]
        self.optimizer.zero_grad()
        with _merged_buffers(self.model, [len(shard[0]) / n for shard in shards]) as next_shard:
            for k, shard in enumerate(shards):
                if len(shard[0]):
                    losses[k] = self._loss(shard, k)
                    require_finite(losses[k])
                    losses[k].backward(np.full(losses[k].shape, len(shard[0]) / n, losses[k].dtype))
                    next_shard()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        return {k: loss.detach() for k, loss in losses.items()}

    def _loss(self, shard: tuple[Tensor, ...], k: int) -> Tensor:
        return shard_loss(self.model, self.loss, shard, self._generators[k])

    def _origin(self, batch: Batch, number: int, step: int) -> NonFiniteError | None:
        """Which shard's loss is not finite, and which op made it so: a batch is computed once more, with a record."""
        self._start_streams(number)
        for k in range(self.shards):
            shard = split(self._tensors(batch), k, self.shards)
            if len(shard[0]) and not math.isfinite(value := (loss := self._loss(shard, k)).item()):
                origin = first_nonfinite(loss)
                return NonFiniteError(
                    f"fit: expected a finite loss, got {value} at step {step}, shard {k}, from {origin}"
                )
        return None

    def _start(self, run: _Run, resume: str | Path | None, stack: contextlib.ExitStack) -> None:
        if self.folder is not None:
            run.checkpoints = stack.enter_context(CheckpointFolder(self.folder))
        self._resume(run, resume)

    def _resume(self, run: _Run, resume: str | Path | None) -> None:
        found = None
        if run.checkpoints is not None and resume in (None, "auto"):
            if resume is None and run.checkpoints.steps():
                raise CheckpointError(
                    f"{self.folder}: expected an empty folder for a new run, got one with checkpoints; "
                    "resume='auto' goes on with them"
                )
            latest = run.checkpoints.load_latest()
            found = latest and latest[1]
        elif resume == "auto":
            raise ConfigError("fit: expected Trainer(folder=...) with resume='auto', got none")
        elif resume is not None:
            found = checkpoint.load(resume)
        if found is not None:
            run.load(found, self)
        if self.folder is not None:
            _trim_log(self.folder / "metrics.jsonl", run.epoch)

    # --- evaluation ---------------------------------------------------------------------------------------------

    def evaluate(self, loader: DataLoader) -> dict[str, float]:
        """{"loss": ..., "accuracy": ...} over a loader, in evaluation mode; accuracy if targets are class numbers."""
        if not len(loader):
            raise ConfigError("evaluate: expected at least one batch, got none")
        loss_sum, correct, samples, classes = 0.0, 0, 0, True
        with _evaluating(self.model):
            for *inputs, target in loader.batches(0):
                output = self.model(*(Tensor(array, device=self._device) for array in inputs))
                loss_sum += self.loss(output, Tensor(target, device=self._device)).item() * len(target)
                samples += len(target)
                classes = classes and output.ndim == 2 and target.ndim == 1 and target.dtype.kind in "iu"
                if classes:
                    correct += int((output.numpy().argmax(axis=1) == target).sum())
        result = {"loss": loss_sum / samples}
        return result | {"accuracy": correct / samples} if classes else result

    def predict(self, x: Any, batch_size: int = 1024) -> np.ndarray:
        """The model's outputs for the rows of x (for a classifier: logits), in evaluation mode, as a NumPy array."""
        x = np.asarray(x)
        with _evaluating(self.model):
            starts = range(0, max(len(x), 1), batch_size)
            outputs = [self.model(Tensor(x[i : i + batch_size], device=self._device)).numpy() for i in starts]
        return np.concatenate(outputs)


class _Alone:
    """AllReduce in this process: a step is done as soon as it is submitted, as one recorded program."""

    workers, is_between = 1, True

    def __init__(self, trainer: Trainer, run: _Run):
        self._trainer, self._dataset, self.submitted = trainer, run.loader.dataset, run.step
        self._done: list[StepResult] = []

    def submit(self, positions: np.ndarray) -> None:
        losses = self._trainer._step(self._dataset, positions, self.submitted)
        row = np.array([[losses.get(k, math.nan) for k in range(self._trainer.shards)]])
        self._done.append(StepResult(self.submitted, self.submitted, [positions], row))
        self.submitted += 1

    def finished(self) -> list[StepResult]:
        """The steps that were done since the last call."""
        done, self._done = self._done, []
        return done

    settled = finished

    def resize(self, workers: int) -> bool:
        """Have so many workers from now on; False: that takes another engine."""
        return workers == 1

    def memory(self) -> dict[str, np.ndarray]:
        """What is to be saved besides model, optimizer and scheduler."""
        return {}

    def report(self) -> list[dict[str, float]]:
        """What each worker did."""
        return []

    def __exit__(self, *exc_info: Any) -> None:
        pass


class _Pooled:
    """Steps of any strategy in a pool of processes, by the ranks of an MPI job, or piece by piece in this process.

    The trainer's model and optimizer follow when the steps are `settled`.
    """

    def __init__(self, trainer: Trainer, run: _Run):
        from ..parallel.pool.pool import Pool, Solo  # here, not above: importing scratchnet does not load multiprocess
        from ..parallel.pool.replica import Replica

        loader, self._trainer, self._strategy = run.loader, trainer, trainer.strategy
        batch = min(loader.batch_size, len(loader.dataset))
        if trainer.shards > batch:
            raise ConfigError(f"Trainer: expected at most one shard a sample, got {trainer.shards} for {batch} samples")
        first = split((next(loader.batch_indices(0)),), 0, trainer.shards)[0]
        self._replica = Replica(
            trainer.model, trainer.optimizer, trainer.loss, trainer.shards, trainer.seed, trainer.strategy,
            trainer.clip_norm, trainer.nonfinite == "skip", trainer.jit,
        )  # fmt: skip
        self._replica.leave_out_untrained(loader.dataset, first)
        options: dict[str, Any] = {"span": self._strategy.span(trainer.accumulate), "first": run.step}
        options["timeline"] = trainer.timeline
        pool: Callable[..., Any] = functools.partial(Pool, workers=trainer.workers, placement=trainer._placement)
        if trainer.workers == 1 and trainer.devices is None:
            pool = Solo
        if trainer._ranks:
            pool = functools.partial(trainer._ranks.Ranks, run=run, keeps=trainer.folder is not None)
        self._pool = pool(self._replica, loader.dataset, batch, **options)
        self._pool.remember(run.memory)
        self._batches: list[np.ndarray] = []
        self._next = run.batches
        self.finished = self._pool.finished
        self.report = self._pool.report

    @property
    def submitted(self) -> int:
        return self._pool.submitted

    @property
    def workers(self) -> int:
        return self._pool.workers

    @property
    def is_between(self) -> bool:
        """Is there no step of which only some batches are known?"""
        return not self._batches

    def submit(self, positions: np.ndarray) -> None:
        self._batches.append(positions)
        if len(self._batches) == self._strategy.batches(self.submitted, self._trainer.accumulate):
            self._begin()

    def _begin(self) -> None:
        """A step of the batches that have come together."""
        batches, self._batches = self._batches, []
        apart = self._strategy.trains_apart(self.submitted)
        numbers = []
        for _ in batches if apart else batches[:1]:
            numbers.append(self._replica.next_numbers())
            if self._trainer.scheduler is not None:
                self._trainer.scheduler.step()
        with self._origin_named():
            self._pool.submit(batches, numbers, self._next, apart)
        self._next += len(batches)

    def settled(self) -> list[StepResult]:
        """All steps are done, and the trainer's model and optimizer have their state."""
        if self._batches:
            self._begin()
        with self._origin_named():
            self._pool.drain()
        self._pool.read()
        return self.finished()

    @contextlib.contextmanager
    def _origin_named(self) -> Iterator[None]:
        """A loss that is not finite in a worker is computed once more here, which can name the op."""
        try:
            yield
        except NonFiniteError:
            self._pool.read()
            step = self._pool.current()
            if self._strategy.merges_gradients and not self._strategy.lag:
                for i, positions in enumerate(step.batches):
                    batch = gather(self._pool.dataset, positions)
                    if origin := self._trainer._origin(batch, step.first + i, step.number):
                        raise origin from None
            raise

    def resize(self, workers: int) -> bool:
        if not self._pool.has_processes:
            return workers == 1
        self._pool.resize(workers)
        return True

    def memory(self) -> dict[str, np.ndarray]:
        return self._pool.memory()

    def __exit__(self, *exc_info: Any) -> None:
        self._pool.read()  # what is committed is not lost, whatever happened
        self._pool.__exit__(*exc_info)


def _engine_of(trainer: Trainer, run: _Run) -> Any:
    """What computes the steps of a run."""
    if trainer._ranks and "cuda" in trainer._placement.kinds:
        raise DeviceError("Trainer: expected a model on 'cpu' and no GPU among devices under MPI, got 'cuda'")
    is_all_reduce = isinstance(trainer.strategy, AllReduce) and trainer.strategy.compression is None
    is_plain = is_all_reduce and trainer.accumulate == 1 and trainer.clip_norm is None
    is_alone = trainer.workers == 1 and trainer.devices is None and trainer.timeline is None and not trainer._ranks
    return (_Alone if is_alone and is_plain and trainer.nonfinite == "raise" else _Pooled)(trainer, run)


class _Run:
    """Where a run stands: what a checkpoint holds besides model, optimizer and scheduler."""

    def __init__(self, loader: DataLoader, trainer: Trainer):
        self.loader = loader
        self.checkpoints: CheckpointFolder | None = None
        self.stop = _Stop()
        self.history: list[dict[str, Any]] = []
        self.epoch, self.step = 0, 0
        self.memory: dict[str, np.ndarray] = {}  # of the merges, from a checkpoint
        self._start_epoch()
        self.identity = {  # all that the arithmetic of a run depends on, besides the three state dicts
            "shards": trainer.shards,
            "seed": trainer.seed,
            "batch_size": loader.batch_size,
            "samples": len(loader.dataset),
            "shuffle": bool(loader.shuffle),
            "loader_seed": loader.seed,
            "drop_last": bool(loader.drop_last),
            "accumulate": trainer.accumulate,
            "clip_norm": trainer.clip_norm,
            "nonfinite": trainer.nonfinite,
            "devices": list(trainer._placement.kinds) if trainer._placement.are_mixed else None,
            **options_of(trainer.strategy),
        }

    engine: Any  # _Alone or _Pooled

    @property
    def batches(self) -> int:
        """Of the whole run, so far."""
        return self.epoch * len(self.loader) + self.batch

    def _start_epoch(self) -> None:
        self.batch, self.samples, self.loss_sum = 0, 0, 0.0

    def count(self, steps: list[StepResult], bar: Any) -> None:
        """Steps that were done."""
        for step in steps:
            for positions, losses in zip(step.batches, step.losses.tolist(), strict=True):
                for k, loss in enumerate(losses):
                    if not math.isnan(loss):
                        n = len(split((positions,), k, len(losses))[0])
                        self.loss_sum, self.samples = self.loss_sum + loss * n, self.samples + n
                self.batch += 1
                bar.update()
            self.step += 1
        if steps:
            bar.say(self.engine)

    def next_epoch(self) -> None:
        self.epoch += 1
        self._start_epoch()

    def save(self, trainer: Trainer) -> None:
        """Raises NonFiniteError, and saves nothing, if a parameter is NaN or infinite: a gradient was, not its loss."""
        if self.checkpoints is not None:
            for name, parameter in trainer.model.named_parameters():
                if not np.isfinite(parameter.detach().numpy()).all():
                    raise NonFiniteError(f"fit: step {self.step}: expected finite parameters, got others in {name!r}")
            self.memory = self.engine.memory()
            self.checkpoints.save(self.step, **self.state(trainer))

    def state(self, trainer: Trainer) -> dict[str, Any]:
        """What a checkpoint holds."""
        position = {name: getattr(self, name) for name in self._POSITION}
        rest = {"memory": self.memory, "identity": self.identity, "config": trainer.config}
        return {**_parts(trainer), "position": position, **rest}

    def load(self, state: dict[str, Any], trainer: Trainer) -> None:
        for name in ("identity", "position", *_parts(trainer)):
            if name not in state:
                raise CheckpointError(f"resume: expected a checkpoint of a Trainer, got one without {name!r}")
        for name, value in self.identity.items():
            if state["identity"].get(name) != value:
                raise CheckpointError(f"resume: expected {name}={state['identity'].get(name)}, as saved, got {value}")
        for name, part in _parts(trainer).items():
            part.load_state_dict(state[name])
        for name in self._POSITION:
            setattr(self, name, state["position"][name])
        self.memory = state.get("memory", {})

    _POSITION = ("epoch", "batch", "step", "samples", "loss_sum", "history")


def _parts(trainer: Trainer) -> dict[str, Any]:
    parts = {"model": trainer.model, "optimizer": trainer.optimizer, "scheduler": trainer.scheduler}
    return {name: part for name, part in parts.items() if part is not None}


@contextlib.contextmanager
def _evaluating(model: Module) -> Iterator[None]:
    """Evaluation mode and no recording, then the mode that was before."""
    was_training = model.training
    model.eval()
    try:
        with no_grad():
            yield
    finally:
        model.train(was_training)


@contextlib.contextmanager
def _merged_buffers(model: Module, weights: list[float]) -> Iterator[Callable[[], None]]:
    """Every shard sees the buffers (running statistics) of the step's start; afterwards they are the weighted mean.

    Call what it yields after each non-empty shard. Integer buffers (counters) advance once a step.
    """
    buffers = list(model.buffers())
    before = [_copy(buffer) for buffer in buffers]
    after: list[list[Tensor]] = []

    def next_shard() -> None:
        after.append([_copy(buffer) for buffer in buffers])
        for buffer, old in zip(buffers, before, strict=True):
            _assign(buffer, old)

    yield next_shard
    weights = [weight for weight in weights if weight]
    for i, buffer in enumerate(buffers):
        _assign(buffer, weighted_mean([shard[i] for shard in after], weights))


def _copy(t: Tensor) -> Tensor:
    device = tracing.active(find_device(t.device))
    out = device.empty(t.shape, t.dtype)
    device.copy(t._data, out)
    return Tensor(out, device=t.device)


def _assign(t: Tensor, value: Tensor) -> None:
    tracing.active(find_device(t.device)).copy(value._data, t._data)


# --- reporting -------------------------------------------------------------------------------------------------------


def _line(record: dict[str, Any], epochs: int) -> str:
    names = {"train_loss": "train loss", "val_loss": "val loss", "val_accuracy": "val accuracy"}
    parts = [f"{label} {record[name]:.4f}" for name, label in names.items() if name in record]
    speed = f"{record['seconds']:.2f} s  {record['samples_per_second']:,.0f} samples/s"
    return "  ".join([f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}", *parts, speed])


def _bar(run: _Run, epochs: int, show: bool) -> Any:
    """A progress bar over the batches of an epoch: tqdm's, where it is installed and there is a terminal."""
    try:
        from tqdm import tqdm
    except ImportError:
        return _NoBar()

    class Bar(tqdm):
        said, before = 0.0, np.zeros(0)

        def say(self, engine: _Alone | _Pooled) -> None:
            """What each worker did lately."""
            if self.disable or time.monotonic() < self.said + SAY_EVERY:
                return
            self.said = time.monotonic()
            rows = np.array([[row["computing"] + row["merging"], row["waiting"]] for row in engine.report()])
            new = rows - self.before if rows.shape == self.before.shape else rows
            self.before = rows
            if len(new) and (new.sum(axis=1) > 0).all():
                self.set_postfix_str("busy " + " ".join(f"{x:.0%}" for x in new[:, 0] / new.sum(axis=1)), refresh=False)

    return Bar(
        total=len(run.loader),
        initial=run.batch,
        desc=f"epoch {run.epoch + 1}/{epochs}",
        leave=False,
        unit="batch",
        disable=None if show else True,
    )


class _NoBar(contextlib.nullcontext):
    def __enter__(self) -> _NoBar:
        return self

    def update(self) -> None:
        pass

    def say(self, engine: _Alone | _Pooled) -> None:
        pass


def _trim_log(path: Path, epochs: int) -> None:
    """Drops the lines of epochs that a resumed run will do again, so that the log holds each epoch once."""
    if not path.exists():
        return
    records = metrics_log.read_jsonl(path)
    kept = [record for record in records if record.get("epoch", 0) <= epochs]
    if kept != records:
        metrics_log.write_jsonl(path, kept)


def _require_workers(workers: Any) -> None:
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ConfigError(f"Trainer: expected workers to be 'auto' or an integer of at least 1, got {workers!r}")


# --- signals ---------------------------------------------------------------------------------------------------------


class _Stop:
    """Set by SIGINT or SIGTERM; asked after each step."""

    requested: int | None = None

    def leave_if_requested(self) -> None:
        if self.requested == signal.SIGINT:
            raise KeyboardInterrupt
        if self.requested is not None:
            sys.exit(128 + self.requested)


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[_Stop]:
    """Inside, the first SIGINT or SIGTERM only asks to stop; the next one acts as it did before."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():  # Python takes signals in the main thread only
        yield stop
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def ask(number: int, frame: Any) -> None:
        stop.requested = number
        restore()

    for number in previous:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        restore()
