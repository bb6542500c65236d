"""Trainer: the loop around a model, in five steps: prepare, split, compute, merge, report.

It takes batches from a DataLoader and hands them to an engine, which splits each into K logical shards, computes their
gradients, and adds them up along a fixed tree into one optimizer step; it reports epochs to a progress line, a metrics
log and checkpoints.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import checks
from ..data import DataLoader, Dataset
from ..data.dataset import check_meanings, gather, meaning_of, selects
from ..errors import CallbackError, ConfigError, DtypeError, ShapeError
from ..grad_mode import evaluating, training
from ..kernels import get_num_threads, set_num_threads
from ..kernels.signatures import FLOATS
from ..nn import Module
from ..parallel.comm.job import is_first_rank, started_as
from ..parallel.engines import begin, engine_of, is_distributed, share_record
from ..parallel.model.parts_plan import plan_of, table
from ..parallel.model.roster import roster
from ..parallel.placement import Placement
from ..parallel.settings import Settings
from ..parallel.shards import SHARDS
from ..parallel.strategies import Strategy, strategy_of
from ..precisions import checked_precision, current_precision, precision
from ..sealed import Sealed
from ..tensor import Tensor
from .checks import check_hooks, check_loss, check_parts, check_precision, check_schedule, step_schedule
from .evaluation import evaluated, share
from .history import History
from .metrics_log import append_jsonl
from .moments import Callbacks, checked_callbacks
from .options import check_count, check_live, check_merges, require_workers
from .progress import epoch_line, first_line, precision_lines, progress_bar, say
from .run import LOG, Run, Stop, stop_on_signal

LOADER = "DataLoader(data, batch_size=32) makes one"


class Trainer(Sealed):
    """Trains a model by synchronous gradient descent over K shards a batch.

    loss(output, target) must be a mean over the batch: shard k of n_k samples weighs n_k / n, so the merged
    gradient is the batch's true mean. K = `shards` enters the arithmetic (see parallel/comm/tree.py) and
    so the last bits of the result; nothing else about the machine does.

    model, optimizer, loss: as in PyTorch.
    scheduler: of the learning rate. Its `by` says when it steps: once an optimizer step (the default, also of one
        that does not say), an epoch, or an epoch with a metric of its record.
    workers: processes that compute, 1 for this one alone; "auto" measures and picks. With an exact strategy (all but
        the asynchronous ones) neither their number nor how often any of them dies changes a bit.
    devices: where the workers compute, a name for each, such as ("cuda:0", "cuda:1") or ("cuda:0", "cpu"). None: on
        the model's device, and if that is "cuda", on a GPU each. The bits of workers on GPUs do not depend on their
        number either, see docs/gpu.md. GPUs and CPUs round differently: where there are both, shard k is always
        computed on the kind of device of devices[k mod len(devices)], and "auto" is refused.
    strategy: how gradients become new parameters: a value of `scratchnet.parallel`, such as LocalSGD(every=8), or the
        name of one: "all_reduce" (the default), "parameter_server", "local_sgd", "hogwild".
    shards: K. None means 1 with one worker, and 8 with any other number, "auto" and the ranks of an MPI job, too; one a
        sample where a batch has fewer. So 2, 3 or 7 workers give the same bits, and one gives them with shards=8.
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
    callbacks: objects that a run calls after each epoch, or after some steps: EarlyStopping(), BestCheckpoint(), ... of
        `scratchnet.callbacks`, or your own; see `scratchnet.trainer.moments`.
    precision: in which type matrix products read their operands, see `scratchnet.precision`; "float16" is of GPUs.
        Weights, gradients and updates stay float32, and `evaluate`, `predict` and saved models compute in float32.
    patience: seconds without progress after which a worker counts as stuck, is killed, and replaced; at least 20 times
        the longest time that a piece of work, or reading the first shard, has taken so far.
    timeline: file that shows what each worker did when, for https://ui.perfetto.dev; None writes none.
    memory: with workers="auto", bytes of arrays that a worker may hold; a model that is larger is cut into stages.

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
        patience: float = 30.0,
        callbacks: Sequence[Any] = (),
        precision: str = "float32",
        memory: float | None = None,
    ):
        self.model, self.optimizer, self.loss, self.scheduler = model, optimizer, loss, scheduler
        self.strategy: Any = strategy
        self.workers: Any = workers
        self.devices, self._shards, self._is_auto = devices, shards, isinstance(workers, str) and workers == "auto"
        self.accumulate, self.clip_norm, self.nonfinite, self.memory = accumulate, clip_norm, nonfinite, memory
        self.seed, self.save_every, self.progress = seed, save_every, progress
        self.config = {} if config is None else config
        self.folder: Any = folder
        self.timeline: Any = timeline
        self.jit, self.patience, self.callbacks, self.precision = jit, patience, callbacks, precision
        self._is_first, self._is_running, self._has_cast = is_first_rank(), False, False
        self._device, self._placement = "", Placement(None, "cpu")
        self._meaning: dict[str, Any] = {}  # of the data that the last run trained on
        self._check()

    def _check(self) -> None:
        """Raises ConfigError for settings outside their range, or that do not go together. Before each run, too: until
        then they may be changed."""
        if not isinstance(self.workers, str) or self.workers != "auto":
            require_workers(self.workers)
        check_count("shards", self._shards)
        check_count("save_every", self.save_every)
        if isinstance(self.accumulate, bool) or not isinstance(self.accumulate, int) or self.accumulate < 1:
            checks.refuse("Trainer", "accumulate to be an integer of at least 1", self.accumulate)
        if not isinstance(self.nonfinite, str) or self.nonfinite not in ("raise", "skip"):
            checks.refuse("Trainer", "nonfinite 'raise' or 'skip'", self.nonfinite)
        if self.clip_norm is not None and not (checks.is_number(self.clip_norm) and self.clip_norm > 0):
            checks.refuse("Trainer", "clip_norm > 0 or None", self.clip_norm)
        checks.number("Trainer: patience", self.patience, "(0, inf]")
        if self.memory is not None and checks.number("Trainer: memory", self.memory, "(0, inf)") and not self._is_auto:
            raise ConfigError(f"Trainer: expected workers='auto' with memory, got {self.workers!r}")
        checks.function("Trainer: loss", self.loss)
        checks.integer("Trainer: seed", self.seed)
        checks.flag("Trainer: jit", self.jit)
        checked_precision("Trainer: precision", self.precision)
        checks.flag("Trainer: progress", self.progress)
        checks.instance("Trainer: config", self.config, dict, "a dict or None")
        self.callbacks = checked_callbacks("Trainer: callbacks", self.callbacks)
        self.strategy = strategy_of(self.strategy)
        if self.clip_norm is not None or self.nonfinite == "skip" or self.accumulate > 1:
            check_merges(self.strategy)
        check_parts(self.model, self.optimizer, self.scheduler)
        plan_of(self.model, self.strategy.parts, self.strategy.plan)
        check_loss(self.loss, self.shards * self.accumulate)
        if self.workers != 1 or self.devices is not None or is_distributed():
            check_hooks(self.model)
        self._device = next(iter(self.model.parameters())).device
        self._placement = Placement(self.devices, self._device)
        check_precision(self.model, self.precision, (*self._placement.kinds, self._device), self.strategy)
        if isinstance(self.workers, int):
            self._placement.check(self.workers)
            self.strategy.check_workers(self.workers)
        elif self._placement.are_mixed:
            raise ConfigError(f"Trainer: expected a number of workers on {self._placement}, of two kinds, got 'auto'")
        elif self._placement.names is not None and self.memory is not None:
            raise ConfigError(f"Trainer: expected no memory with 'auto' on {self._placement}, got {self.memory!r}")
        self.folder = None if self.folder is None else Path(checks.path("Trainer: folder", self.folder))
        self.timeline = None if self.timeline is None else Path(checks.path("Trainer: timeline", self.timeline))

    def __setattr__(self, name: str, value: Any) -> None:
        """Raises ConfigError for a setting that the run in progress would not see."""
        if self.__dict__.get("_is_running") and not name.startswith("_") and self._refusal(name) is None:
            if name == "workers":
                return self.resize(value)
            check_live(name, value)
        super().__setattr__(name, value)

    @property
    def shards(self) -> int:
        """K, the parts of a batch; with fewer samples than K some of them are empty."""
        return self._shards_of(self.workers)

    @shards.setter
    def shards(self, shards: int | None) -> None:
        self._shards = shards

    def _shards_of(self, workers: int | str) -> int:
        is_alone = workers == 1 and not self._is_auto and not is_distributed()
        return self._shards or (1 if is_alone else SHARDS)

    def resize(self, workers: int) -> None:
        """Have so many workers from the next step on; while `fit` runs, another thread may call it.

        No bit changes. Raises ConfigError while a run is in progress if that would change the number of shards: from or
        to one worker, in a Trainer without `shards`.
        """
        require_workers(workers)
        self._placement.check(workers)
        self.strategy.check_workers(workers)
        if self._is_running and self._shards_of(workers) != self.shards:
            found = f"{self.workers} -> {workers} workers, whose default is not the same"
            raise ConfigError(f"resize: expected a Trainer with shards=K, so that the arithmetic stays, got {found}")
        super().__setattr__("workers", workers)

    # --- training -----------------------------------------------------------------------------------------------

    def fit(
        self,
        train_loader: DataLoader,
        val_loader: DataLoader | None = None,
        epochs: int = 1,
        resume: str | Path | None = None,
        new_phase: bool = False,
    ) -> History:
        """Trains until `epochs` epochs are done in all, those before a resume included; all modules train.

        resume: "auto" goes on from the newest whole checkpoint of the folder, or starts if there is none; a path
        goes on from that file. The result has the bytes of a run that was never interrupted.

        new_phase: go on from `resume` with other settings: batch size, data, learning rate, schedule, clipping. Weights
        and the state of the optimizer stay, a schedule begins anew; the run prints what changes.

        Raises NonFiniteError, naming the step and the first op, if a loss is not finite; CheckpointError if the
        checkpoint is of another run (other shards, batch size, seed, ...), or if the folder holds a run and
        `resume` is None.
        """
        if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 0:
            checks.refuse("fit", "epochs >= 0", epochs)
        checks.instance("fit: train_loader", train_loader, DataLoader, "a DataLoader", LOADER)
        if val_loader is not None:
            checks.instance("fit: val_loader", val_loader, DataLoader, "a DataLoader", LOADER)
        if resume is not None:
            checks.path("fit: resume", resume)
        if checks.flag("fit: new_phase", new_phase) and resume is None:
            raise ConfigError("fit: expected resume='auto' or a file with new_phase=True, got neither")
        if (around := current_precision()) != "float32":
            raise ConfigError(f"fit: expected no sn.precision around it, got {around!r}; use Trainer(precision=...)")
        if self._is_running:
            raise ConfigError("fit: expected a Trainer at rest, got one whose run goes on; make another")
        self._check()
        check_schedule(self.scheduler, val_loader is not None)
        if not len(train_loader):
            raise ConfigError("fit: expected at least one batch to train on, got none")
        self._meaning = meaning_of(train_loader.dataset)
        if val_loader is not None:
            check_meanings("fit: val_loader", self._meaning, meaning_of(val_loader.dataset))
        train_loader = self._typed(train_loader)
        choice = self._choose(train_loader) if self.workers == "auto" and not is_distributed() else None
        with contextlib.ExitStack() as stack:
            stack.enter_context(training(self.model))
            if choice and choice.plan.workers == 1:
                stack.callback(set_num_threads, get_num_threads())
                set_num_threads(choice.plan.threads)
            settings, callbacks = self._settings(train_loader), Callbacks(self.callbacks)
            run = stack.enter_context(Run(settings, self.folder, self.config, resume, new_phase, callbacks))
            begin(run.settings, run)
            stop = stack.enter_context(stop_on_signal())
            run.engine = engine_of(run.settings, run.here, stop)
            stack.push(lambda kind, error, trace: run.engine.close(error))
            if self.progress and self._is_first:
                say(self._first_line(run.settings.shards))
                lines = precision_lines(run.identity)
                lines += table(self.model, self.strategy.parts, self.strategy.plan)
                for line in [*lines, *roster(run.engine, self.strategy, run.settings.shards)]:
                    say(line)
                if run.what_changes:
                    say(run.what_changes)
                if train_loader.num_workers:
                    say("num_workers of the loader rests: workers of the Trainer read their own samples")
            self._is_running = True
            stack.callback(setattr, self, "_is_running", False)
            callbacks.begin(self, run, epochs)
            stack.push(lambda kind, error, trace: callbacks.end(error))
            callbacks.call("on_fit_start")
            while run.epoch < epochs and not callbacks.stopped:
                seconds = self._epoch(run, epochs, val_loader, stop)
                stop.leave_if_requested()
                if choice and self.progress:
                    say(choice.compare(seconds / len(train_loader)))
                    choice = None
            callbacks.call("on_fit_end")
            history = History(run.history, run.engine.report(), callbacks.stopped)
        if self.progress and self._is_first:
            if history.stopped:
                say(f"stopped after step {run.step}: {history.stopped}")
            for line in history.lines_of_workers():
                say(line)
        return history

    def _first_line(self, shards: int) -> str:
        job = started_as()
        count, what = (job[1], "rank") if job and is_distributed() else (self.workers, "worker")
        return first_line(count, what, shards, self._shards is None, self.strategy.is_exact)

    def _settings(self, loader: DataLoader) -> Settings:
        samples = min(loader.batch_size, len(loader.order))
        return Settings(
            model=self.model,
            optimizer=self.optimizer,
            loss=self.loss,
            scheduler=self.scheduler,
            loader=loader,
            strategy=self.strategy,
            shards=self._shards or min(self.shards, samples),
            seed=self.seed,
            accumulate=self.accumulate,
            clip_norm=self.clip_norm,
            skip_nonfinite=self.nonfinite == "skip",
            jit=self.jit,
            workers=self.workers,
            placement=self._placement,
            timeline=self.timeline,
            keeps_checkpoints=self.folder is not None,
            patience=self.patience,
            precision=self.precision,
        )

    def _typed(self, loader: DataLoader) -> DataLoader:
        """The loader with floats in the model's type. A warning says so where they come in another one."""
        dtype = next((t.dtype for t in self.model.parameters() if t.dtype in FLOATS), FLOATS[0])  # halves: by casts
        typed = loader.typed(dtype, self._say_cast if self._is_first else None)
        if selects(loader.source) and len(loader):  # a recorded step would cast them without a word
            gather(typed.source, loader.indices(0)[:1])
        return typed

    def _say_cast(self, name: Any, found: Any, dtype: Any) -> None:
        if not self._has_cast:
            self._has_cast = True
            warnings.warn(
                f"Trainer: field {name} of the samples is {found} and the model {dtype}, so samples are cast to "
                f"{dtype}; DataLoader(dtype='{dtype}') says that this is meant",
                stacklevel=2,
            )

    def _choose(self, loader: DataLoader) -> Any:
        """workers="auto": take the fastest plan; returns the planner's Choice."""
        from ..parallel.planner import choose  # here, not above: most runs need no planner

        choice = choose(self._settings(loader), self.memory)
        self.workers, self.strategy = choice.plan.workers, choice.plan.of(self.strategy)
        if self.progress:
            say(choice.explain())
        return choice

    def _epoch(self, run: Run, epochs: int, val_loader: DataLoader | None, stop: Stop) -> float:
        """Train an epoch, from where the run stands, and report it. Returns the seconds of training."""
        start, first = time.perf_counter(), run.samples
        shows = self.progress and self._is_first
        self.model.train()
        with progress_bar(run.epoch, epochs, run.batch, len(run.loader), shows) as bar:
            for positions in run.loader.batch_indices(run.epoch, run.batch):
                run.engine.submit(positions)
                run.count(run.engine.finished(), bar)
                if not run.engine.is_between:
                    continue
                if run.callbacks.are_due(run.engine.submitted):
                    run.count(run.engine.settled(), bar)
                    self._call(run, "on_step_end")
                    if run.callbacks.stopped:
                        run.save()
                        return time.perf_counter() - start
                if stop.requested or (self.save_every and run.engine.submitted % self.save_every == 0):
                    run.count(run.engine.settled(), bar)
                    run.save()
                stop.leave_if_requested()
                if run.engine.workers != self.workers:
                    self._resize(run, bar, stop)
            run.count(run.engine.settled(), bar)
        run.require_finite()
        seconds = time.perf_counter() - start
        record: dict[str, Any] = {"epoch": run.epoch + 1, "step": run.step, **run.engine.loss_scale()}
        record["train_loss"] = share(run.loss_sum, run.samples)
        if val_loader is not None and self._is_first:
            record |= {f"val_{name}": value for name, value in self.evaluate(val_loader).items()}
        record = share_record(record)
        step_schedule(self.scheduler, record)
        run.history.append(record)
        timing = {"seconds": seconds, "samples_per_second": (run.samples - first) / seconds}
        if self.folder is not None and self._is_first:
            append_jsonl(self.folder / LOG, record | timing)
        if shows:
            say(epoch_line(record | timing, epochs))
        run.next_epoch()
        self._call(run, "on_epoch_end")
        run.save()
        return seconds

    def _call(self, run: Run, moment: str) -> None:
        """Raises CallbackError, with the run saved if it can be."""
        try:
            run.callbacks.call(moment)
        except CallbackError:
            if run.callbacks.can_save:
                run.save()
            raise

    def _resize(self, run: Run, bar: Any, stop: Stop) -> None:
        """Let the run go on with self.workers workers."""
        if not run.engine.resize(self.workers):
            run.count(run.engine.settled(), bar)
            run.engine.close()
            run.memory = run.engine.state()
            run.engine = engine_of(self._settings(run.loader), run.here, stop)

    # --- evaluation ---------------------------------------------------------------------------------------------

    def evaluate(self, loader: DataLoader) -> dict[str, float]:
        """{"loss": ..., "accuracy": ...} over a loader, in evaluation mode; accuracy if targets are class numbers.

        Labels that the loss ignores count for neither; class weights are those of all labels together.
        Raises ConfigError for data of other classes or features than those that `fit` trained on.
        """
        checks.instance("evaluate", loader, DataLoader, "a DataLoader", LOADER)
        if not len(loader):
            raise ConfigError("evaluate: expected at least one batch, got none")
        check_meanings("evaluate", self._meaning, meaning_of(loader.dataset))
        return evaluated(self.model, self.loss, self._typed(loader).batches(0), self._device)

    def predict(self, x: Any, batch_size: int = 1024) -> np.ndarray:
        """The model's outputs for the rows of x (for a classifier: logits), in evaluation mode, as a NumPy array."""
        if isinstance(x, Dataset):
            checks.refuse("predict", "rows", x, DtypeError, "dataset[:][0] are those of a data set")
        x, batch_size = checks.array("predict", x), checks.integer("predict: batch_size", batch_size, 1)
        if not x.ndim:
            checks.refuse("predict", "rows", x, ShapeError)
        with evaluating(self.model, "predict"), precision("float32"):
            starts = range(0, max(len(x), 1), batch_size)
            outputs = [self.model(Tensor(x[i : i + batch_size], device=self._device)).numpy() for i in starts]
        return np.concatenate(outputs)
