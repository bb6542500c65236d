"""A run: where it stands, how it is saved and resumed, and how a signal stops it."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, ConfigError, NonFiniteError
from ..formats import checkpoint
from ..formats.checkpoint_folder import CheckpointFolder
from ..parallel.engines import Engine
from ..parallel.settings import Settings, Start
from ..parallel.shards import StepResult, sizes_of
from ..predictor import describe, newest_checkpoint, outputs_of
from ..version import __version__
from .identity import OF_A_PHASE, PARTS, changes, difference, identity_of, parts_line
from .metrics_log import trim_jsonl

LOG = "metrics.jsonl"  # in the folder of a run

log = logging.getLogger("scratchnet.trainer")


class Run:
    """Where a run stands: what a checkpoint holds besides model, optimizer and scheduler. A context manager, in which
    the folder of checkpoints is locked.

    resume: see `Trainer.fit`. config: stored in checkpoints. callbacks: moments.Callbacks, which is told of each step.
    """

    engine: Engine
    POSITION = ("epoch", "batch", "step", "samples", "loss_sum", "history")
    PHASE = ("phase_epoch", "phase_batch", "epoch_batches")

    def __init__(
        self,
        settings: Settings,
        folder: Path | None,
        config: dict[str, Any],
        resume: str | Path | None,
        new_phase: bool,
        callbacks: Any,
    ):
        self.settings, self.folder, self.config, self.resume = settings, folder, config, resume
        self.new_phase, self.what_changes = new_phase, ""
        self.callbacks = callbacks
        self.loader = settings.loader
        self.checkpoints: CheckpointFolder | None = None
        self.history: list[dict[str, Any]] = []
        self.epoch, self.step = 0, 0
        self.phase_epoch, self.phase_batch, self.epoch_batches = 0, 0, len(self.loader)  # where this phase began
        self.memory: dict[str, np.ndarray] = {}  # state of an engine
        self._start_epoch()
        self._open = contextlib.ExitStack()
        parts = {"model": settings.model, "optimizer": settings.optimizer, "scheduler": settings.scheduler}
        self.parts: dict[str, Any] = {name: part for name, part in parts.items() if part is not None}
        self.identity = identity_of(settings)
        self.prediction: dict[str, Any] = {}
        if folder is not None:
            self.prediction = describe(settings.model, self.loader, outputs_of(settings.loss))

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._open.__exit__(*exc_info)

    # --- progress ---

    @property
    def here(self) -> Start:
        """Where an engine goes on."""
        done = (self.epoch - self.phase_epoch) * len(self.loader) + self.batch
        return Start(self.step, self.phase_batch + done, self.memory)

    def _start_epoch(self) -> None:
        self.batch, self.samples, self.loss_sum = 0, 0, 0.0

    def count(self, steps: list[StepResult], bar: Any) -> None:
        """These steps are done."""
        for step in steps:
            total, count = 0.0, 0
            for positions, losses in zip(step.batches, step.losses.tolist(), strict=True):
                for n, loss in zip(sizes_of(len(positions), len(losses)), losses, strict=True):
                    if not math.isnan(loss):
                        self.loss_sum, self.samples = self.loss_sum + loss * n, self.samples + n
                        total, count = total + loss * n, count + n
                self.batch += 1
                bar.update()
            self.step += 1
            self.callbacks.count(total / count if count else math.nan)
        if steps:
            bar.show_workers(self.engine)

    def next_epoch(self) -> None:
        self.epoch += 1
        self._start_epoch()

    # --- checkpoints ---

    def start(self) -> None:
        """Lock the folder, and load the checkpoint from which the run goes on, if there is one."""
        if self.folder is not None:
            checkpoint.dumps({"config": self.config, "scheduler": self.parts.get("scheduler")})  # not after an epoch
            self.checkpoints = self._open.enter_context(CheckpointFolder(self.folder))
        found = None
        if self.checkpoints is not None and self.resume in (None, "auto"):
            if self.resume is None and self.checkpoints.steps():
                raise CheckpointError(
                    f"{self.folder}: expected an empty folder for a new run, got one with checkpoints; "
                    "resume='auto' goes on with them"
                )
            latest = self.checkpoints.load_latest()
            found = latest and latest[1]
        elif self.resume == "auto":
            raise ConfigError("fit: expected Trainer(folder=...) with resume='auto', got none")
        elif self.resume is not None:
            found = checkpoint.load(self.resume)
        if found is not None:
            self.load(found)
        if self.checkpoints is not None and self.folder is not None:
            self.checkpoints.require_newest(self.step)  # before the log forgets what came after this step
            trim_jsonl(self.folder / LOG, self.epoch)

    def require_finite(self) -> None:
        """Raises NonFiniteError if a parameter is not finite: then a gradient was not."""
        for name, parameter in self.settings.model.named_parameters():
            if not np.isfinite(parameter.detach().numpy()).all():
                raise NonFiniteError(f"fit: step {self.step}: expected finite parameters, got others in {name!r}")

    def save(self) -> None:
        """Raises NonFiniteError, and saves nothing, if a parameter is not finite."""
        if self.checkpoints is not None:
            self.require_finite()
            self.keep_memory()
            self.checkpoints.save(self.step, **self.state())

    def keep_memory(self) -> None:
        """What the engine keeps between steps, for `state`; all ranks of a job call this together."""
        self.memory = self.engine.state()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        position = {name: getattr(self, name) for name in (*self.POSITION, *self.PHASE)}
        rest = {"memory": self.memory, "identity": self.identity, "config": self.config, "version": __version__}
        rest["prediction"] = self.prediction
        if self.callbacks.all:
            rest["callbacks"] = self.callbacks.state_dict()
        return {**self.parts, "position": position, **rest}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave. Raises CheckpointError if that was another run."""
        for name in ("identity", "position", *self.parts):
            if name not in state:
                raise CheckpointError(f"resume: expected a checkpoint of a Trainer, got one without {name!r}")
        position = {"phase_epoch": 0, "phase_batch": 0, "epoch_batches": len(self.loader), **state["position"]}
        if other := difference(state["identity"], self.identity, OF_A_PHASE if self.new_phase else ()):
            raise CheckpointError(f"resume: {other}")
        if self.new_phase and position["batch"]:
            raise CheckpointError(
                f"resume: expected a checkpoint from the end of an epoch for a new phase, got one after batch "
                f"{position['batch']} of epoch {position['epoch'] + 1}; finish that epoch first, with the old settings"
            )
        if "version" not in state and self.settings.shards > 2:
            log.warning("resume: version 0.1, which saved this, added shards up in another order: bits will differ")
        was, now = (identity.get(PARTS, {}) for identity in (state["identity"], self.identity))
        if was != now:
            log.warning("resume: saved with %s; from here on the bits follow %s", parts_line(was), parts_line(now))
        for name, value in position.items():
            setattr(self, name, value)
        if self.new_phase:
            self._begin_phase(state)
        else:
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            self.memory = state.get("memory", {})
        if "callbacks" in state:
            self.callbacks.load_state_dict(state["callbacks"])

    def _begin_phase(self, state: dict[str, Any]) -> None:
        """Weights and the optimizer's state go on; its options and the schedule, which begins anew, are those given."""
        self.what_changes = f"new phase after epoch {self.epoch}: {changes(state['identity'], self.identity)}"
        optimizer = self.settings.optimizer
        given = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
        self.settings.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        for group, options in zip(optimizer.param_groups, given, strict=True):
            group.update(options)
        self.phase_batch += (self.epoch - self.phase_epoch) * self.epoch_batches  # random numbers do not repeat
        self.phase_epoch, self.epoch_batches = self.epoch, len(self.loader)


def phase_start(folder: str | Path, resume: str | Path | None, new_phase: bool = False) -> int:
    """The epoch at which the schedule of `fit(resume=resume, new_phase=new_phase)` begins; 0 for a run in one phase."""
    if resume is None or (resume == "auto" and not any(Path(folder).glob("checkpoint-*"))):
        return 0
    position = checkpoint.load(newest_checkpoint(folder if resume == "auto" else resume)).get("position", {})
    return position.get("epoch" if new_phase else "phase_epoch", 0)


# --- signals ---------------------------------------------------------------------------------------------------------


class Stop:
    """Whether the run is to end after the step in hand.

    asked: the signal that this process got. requested: the one that the run obeys; under MPI its engine sets it, once
    all ranks know of it, and until then it is None.
    """

    asked: int | None = None
    requested: int | None = None
    is_shared = False

    def ask(self, number: int) -> None:
        self.asked = number
        if not self.is_shared:
            self.requested = number

    def share(self) -> None:
        """Leave `requested` to an engine from now on."""
        self.is_shared, self.requested = True, None

    def leave_if_requested(self) -> None:
        if self.requested == signal.SIGINT:
            raise KeyboardInterrupt
        if self.requested is not None:
            sys.exit(128 + self.requested)


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Inside, the first SIGINT or SIGTERM only asks the run to stop; the next one acts as it did before.

    A signal that this process ignores, as one that `nohup` or a shell started in the background, stays ignored.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # Python takes signals in the main thread only
        yield stop
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # None: a handler that is no Python function, which could not be put back.
    previous = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def ask(number: int, frame: Any) -> None:
        stop.ask(number)
        restore()

    for number in previous:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        restore()
