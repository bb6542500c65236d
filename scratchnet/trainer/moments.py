"""Moments: when a run calls its callbacks, and what it shows them.

    on_fit_start   before the first step of this call of `fit`
    on_step_end    after each step, or after every `callback.every` of them
    on_epoch_end   after an epoch and its validation, before the checkpoint
    on_fit_end     after the last epoch, or where a callback stopped the run
    on_exception   instead, where an exception ends the run, a signal included; its second argument

A callback is any object with some of these methods, whose argument is a `Progress`. They run in this process alone
(under MPI, in rank 0), when all steps so far are done, and draw random numbers of their own: one that only looks
changes no bit of the run. Where one changes values of parameters, the run goes on from them, with any number of
workers. Until the last step neither the parameters that the optimizer has may change, nor dtype, shape or device of the
model's, nor the Trainer's callbacks; nor what else workers have copies of, and nothing may under MPI: that is a
CallbackError. What its `state_dict` gives is in the checkpoints.
"""

from __future__ import annotations

import itertools
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import checks
from ..errors import CallbackError, ConfigError
from ..formats import checkpoint
from ..parallel.comm.job import is_first_rank
from ..parallel.engines import share_record
from ..parallel.shards import streams_kept
from .run import Run

MOMENTS = "on_fit_start", "on_step_end", "on_epoch_end", "on_fit_end", "on_exception"

_WATCHING: set[int] = set()  # callbacks of the runs of this process that go on


class Progress:
    """What a callback sees of a run; `model` and `optimizer` hold the state after step `step`.

    trainer, model, optimizer, config, folder: of the run. epochs: the number that `fit` is asked for.
    losses: in on_step_end the mean losses of the last `every` steps, the newest last; elsewhere those of later steps.
    """

    def __init__(self, trainer: Any, run: Run, epochs: int):
        self.trainer, self.epochs, self._run = trainer, epochs, run
        self.model, self.optimizer, self.config = trainer.model, trainer.optimizer, trainer.config
        self.losses: list[float] = []
        self.stopped: str | None = None

    @property
    def folder(self) -> Path | None:
        return self._run.folder

    @property
    def loader(self) -> Any:
        """The DataLoader of the training data."""
        return self._run.loader

    @property
    def epoch(self) -> int:
        """Epochs that are done."""
        return self._run.epoch

    @property
    def phase_epoch(self) -> int:
        """Epochs that were done when this phase of the run began; 0 in a run of one phase."""
        return self._run.phase_epoch

    @property
    def step(self) -> int:
        """Optimizer steps that are done, in all epochs."""
        return self._run.step

    @property
    def history(self) -> list[dict[str, Any]]:
        """A record for each epoch that is done; see History."""
        return self._run.history

    @property
    def record(self) -> dict[str, Any]:
        """The newest record; {} before the first."""
        return self._run.history[-1] if self._run.history else {}

    def metric(self, name: str) -> float:
        """A value of the newest record. Raises ConfigError where it has none of that name."""
        value = self.record.get(name)
        if value is None:
            known = ", ".join(key for key in self.record if key not in ("epoch", "step")) or "none"
            raise ConfigError(f"expected a metric of the run, {known}, got {name!r}; val_* take a val_loader in fit")
        return value

    def save(self, path: str | Path) -> None:
        """A checkpoint of this moment, from which `fit(resume=path)` goes on."""
        checkpoint.save(path, **self._run.state())

    def keep(self) -> None:
        """All ranks together: what `save` needs."""
        self._run.keep_memory()

    def stop(self, reason: str) -> None:
        """End the run here, with its checkpoint and History; `reason` is printed."""
        self.stopped = reason

    def __repr__(self) -> str:
        return f"Progress(epoch {self.epoch}/{self.epochs}, step {self.step})"


class Callbacks:
    """The callbacks of a run, which it calls at its moments; all ranks of a job call this, and rank 0 the callbacks."""

    def __init__(self, callbacks: Sequence[Any]):
        self.all = list(callbacks)
        self.every = [_every(c) for c in self.all if hasattr(c, "on_step_end")]
        self._losses: deque[float] = deque(maxlen=max(self.every, default=0))
        self._progress: Progress | None = None
        self.can_save = True  # False: a callback changed the run into one that no checkpoint of it can be loaded into

    @property
    def stopped(self) -> str | None:
        """Why a callback ended the run."""
        return None if self._progress is None else self._progress.stopped

    def begin(self, trainer: Any, run: Run, epochs: int) -> None:
        """Raises ConfigError if one of them watches a run that goes on."""
        for callback in self.all:
            if id(callback) in _WATCHING:
                checks.refuse("fit: callbacks", "an object for each run that goes on", callback, remedy="make another")
        _WATCHING.update(map(id, self.all))
        self._progress = Progress(trainer, run, epochs)

    def count(self, loss: float) -> None:
        """A step is done."""
        self._losses.append(loss)

    def are_due(self, step: int) -> bool:
        """Does one want to be called after this step?"""
        return any(step % every == 0 for every in self.every)

    def call(self, moment: str) -> None:
        """Raises CallbackError, on all ranks, where a callback raised, or changed more than values. See `can_save`."""
        progress = self._progress
        assert progress is not None
        if not self.all:
            return
        progress.keep()
        cause, before = None, _form(progress)
        if is_first_rank():
            try:
                with progress._run.engine.following(moment == "on_step_end"):
                    self._call(moment, progress)
                    if moment != "on_fit_end":  # no step follows
                        _require_form(progress, before)
            except CallbackError as error:
                cause = error
            except ConfigError as error:
                cause = CallbackError(f"{moment}, after step {progress.step}: {error}")
        shared = share_record(
            {
                "stopped": progress.stopped,
                "error": None if cause is None else str(cause),
                "can_save": cause is None or _form(progress) == before,
            }
        )
        progress.stopped, self.can_save = shared["stopped"], shared["can_save"]
        if shared["error"] is not None:
            raise cause or CallbackError(shared["error"])

    def end(self, error: BaseException | None) -> None:
        """The run ends, with this exception. What callbacks raise now is a warning."""
        self._tell(error)
        _WATCHING.difference_update(map(id, self.all))

    def _tell(self, error: BaseException | None) -> None:
        if error is None or self._progress is None or not is_first_rank():
            return
        for callback in self.all:
            if hasattr(callback, "on_exception"):
                self._progress.losses = self._losses_for(callback, False)
                try:
                    callback.on_exception(self._progress, error)
                except Exception as second:
                    name = type(callback).__name__
                    warnings.warn(f"{name}.on_exception: {_line(second)}", RuntimeWarning, 2)

    def _call(self, moment: str, progress: Progress) -> None:
        for callback in self.all:
            method = getattr(callback, moment, None)
            if method is None:
                continue
            if moment == "on_step_end" and progress.step % _every(callback):
                continue
            progress.losses = self._losses_for(callback, moment == "on_step_end")
            try:
                with streams_kept():
                    method(progress)
            except Exception as error:
                name = f"{type(callback).__name__}.{moment}"
                what = str(error) if isinstance(error, ConfigError) else _line(error)
                raise CallbackError(f"{name}, after step {progress.step}: {what}") from error

    def _losses_for(self, callback: Any, is_due: bool) -> list[float]:
        """Those that it has not seen in an on_step_end before this one."""
        assert self._progress is not None
        every = _every(callback)
        count = every if is_due else self._progress.step % every
        return list(itertools.islice(self._losses, max(len(self._losses) - count, 0), None))

    # --- what checkpoints keep ---

    def state_dict(self) -> dict[str, Any]:
        states = {name: callback.state_dict() for name, callback in self._named() if hasattr(callback, "state_dict")}
        return {"losses": list(self._losses), "states": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses.extend(state["losses"])
        for name, callback in self._named():
            older = name.replace(getattr(callback, "watches", ""), "")  # of a version that did not say what it watches
            found = state["states"].get(name, state["states"].get(older))
            if found is not None and hasattr(callback, "load_state_dict"):
                callback.load_state_dict(found)

    def _named(self) -> Iterator[tuple[str, Any]]:
        """By the name of the class and what it `watches`; the second of a name is "EarlyStopping of val_loss 2"."""
        counts: Counter[str] = Counter()
        for callback in self.all:
            name = type(callback).__name__ + getattr(callback, "watches", "")
            counts[name] += 1
            yield name if counts[name] == 1 else f"{name} {counts[name]}", callback


def _form(progress: Progress) -> dict[str, Any]:
    """What engines and checkpoints rely on besides values: which parameters are updated, and what each tensor is."""
    named = itertools.chain(progress.model.named_parameters(), progress.model.named_buffers())
    form: dict[str, Any] = {repr(name): f"{t.dtype} {t.shape} on {t.device}" for name, t in named}
    return {"groups of the optimizer": [id(state.param) for state in progress.optimizer.states], **form}


def _require_form(progress: Progress, before: dict[str, Any]) -> None:
    found = [
        f"{what} of {now} instead of {was}" if isinstance(now, str) else f"new {what}"
        for what, now in _form(progress).items()
        if (was := before.get(what, now)) != now
    ]
    pairs = itertools.zip_longest(progress.trainer.callbacks, progress._run.callbacks.all)
    found += ["new callbacks of the Trainer"] * any(now is not was for now, was in pairs)
    if found:
        raise ConfigError(f"expected callbacks that change values alone, got {found[0]}; end the run and fit again")


def _line(error: Exception) -> str:
    """The first line; the rest is in the traceback of the cause."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _every(callback: Any) -> int:
    """The rhythm of its on_step_end."""
    return getattr(callback, "every", 1)


def checked_callbacks(what: str, callbacks: Any) -> list[Any]:
    """A list of callbacks. Raises ConfigError for what is none: it has no method that would be called, or one, such as
    `on_epoch_start`, of a moment that there is not.
    """
    given = checks.items(what, callbacks, "a list of callbacks")
    if len({id(callback) for callback in given}) < len(given):
        checks.refuse(what, "each object once", given)
    for callback in given:
        has = [name for name in MOMENTS if callable(getattr(callback, name, None))]
        if not has or isinstance(callback, type):
            remedy = "give an object, not its class" if isinstance(callback, type) else ""
            methods = f"{', '.join(MOMENTS[:-1])} or {MOMENTS[-1]}"
            checks.refuse(what, f"an object with a method {methods}", callback, remedy=remedy)
        for name in dir(callback):
            if name.startswith("on_") and name not in MOMENTS and callable(getattr(callback, name, None)):
                method = f"{type(callback).__name__}.{name}"
                raise ConfigError(f"{what}: expected methods of moments, {', '.join(MOMENTS)}, got {method}")
        if "on_step_end" in has:
            checks.integer(f"{what}: {type(callback).__name__}.every", _every(callback), 1)
    return given
