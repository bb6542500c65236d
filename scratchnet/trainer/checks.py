"""What a Trainer is given must belong together: a model, an optimizer of its parameters, a schedule of that."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np

from .. import checks
from ..errors import ConfigError
from ..nn import Module
from ..nn.losses import Loss
from ..optim import Optimizer
from ..precisions import SCALED, check_device


def check_parts(model: Module, optimizer: Any, scheduler: Any) -> None:
    """Raises ConfigError if the optimizer has parameters that the model lacks, or the schedule another optimizer.

    A trainable parameter in no group of the optimizer stays as it is, as in PyTorch, where whoever fine-tunes a head
    gives its parameters alone. It gets a warning, since it may also be a layer that was added too late.
    """
    for name, value, kind in (("a model", model, Module), ("an optimizer", optimizer, Optimizer)):
        if not isinstance(value, kind):
            checks.refuse("Trainer", name, value)
    if optimizer.takes_closure:
        raise ConfigError(
            f"Trainer: expected an optimizer that takes one gradient a step, got {type(optimizer).__name__}, which "
            "evaluates the loss several times; call optimizer.step(closure) in a loop of your own"
        )
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    held = {id(state.param) for state in optimizer.states}
    if foreign := len(held - named.keys()):
        raise ConfigError(
            f"Trainer: expected an optimizer of the model's parameters, got one with {foreign} of {len(held)} that the "
            "model does not have; make it from model.parameters()"
        )
    if scheduler is not None and getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise ConfigError(f"Trainer: expected a schedule of its optimizer, got {scheduler!r} of another one")
    idle = [name for key, name in named.items() if key not in held]
    idle = [name for name, parameter in model.named_parameters() if name in idle and parameter.requires_grad]
    if idle:
        warnings.warn(
            f"Trainer: {len(idle)} trainable parameters are in no group of the optimizer and stay as they are: "
            f"{', '.join(idle[:3])}{', ...' if len(idle) > 3 else ''}; requires_grad_(False) says that this is meant",
            stacklevel=_level_of_the_caller(),
        )


def check_precision(model: Module, precision: str, kinds: Iterable[str], strategy: Any) -> None:
    """Raises ConfigError for a precision that devices of these kinds, parameters or the strategy cannot have."""
    check_device("Trainer", precision, kinds)
    if precision == SCALED and not strategy.is_plain:
        raise ConfigError(
            f"Trainer: expected strategy='all_reduce' with precision={precision!r}, whose loss scale all workers share "
            f"in each step, got {strategy}; precision='bfloat16' needs no scale"
        )
    for name, parameter in model.named_parameters():
        if precision != "float32" and parameter.dtype != np.float32:
            raise ConfigError(
                f"Trainer: expected parameters of float32 with precision={precision!r}, got {parameter.dtype} in "
                f"{name!r}; model.to(dtype='float32') makes them"
            )


def check_schedule(scheduler: Any, is_validated: bool) -> None:
    """Raises ConfigError for a schedule by a metric that this run does not have."""
    by = getattr(scheduler, "by", "step")
    checks.one_of("Trainer: by of the scheduler", by, ("step", "epoch", "metric"))
    name = getattr(scheduler, "monitor", "val_loss")
    if by == "metric" and name.startswith("val_") and not is_validated:
        raise ConfigError(
            f"fit: expected a val_loader for {type(scheduler).__name__}, which watches {name!r}, got none; "
            "monitor='train_loss' watches that"
        )


def step_schedule(scheduler: Any, record: dict[str, Any]) -> None:
    """An epoch is done, with this record."""
    by = getattr(scheduler, "by", "step")
    if by == "epoch":
        scheduler.step()
    elif by == "metric":
        name = getattr(scheduler, "monitor", "val_loss")
        if name not in record:
            known = ", ".join(record)
            raise ConfigError(f"{type(scheduler).__name__}: expected monitor to be one of {known}, got {name!r}")
        scheduler.step(record[name])


def check_loss(loss: Any, parts: int) -> None:
    """Raises ConfigError for a loss that is no mean over the batch, for it would weigh as one. Warns of a mean that is
    not divided by the number of samples, where a batch has several parts.
    """
    if isinstance(loss, Loss) and loss.reduction in ("sum", "none"):
        raise ConfigError(
            f"Trainer: expected a loss that is a mean over the batch, got {loss!r}; write reduction='mean'"
        )
    if parts > 1 and getattr(loss, "has_weighted_mean", False):
        warnings.warn(
            f"Trainer: {loss!r} divides by the weights of the labels, each of the {parts} shards of a step by its "
            "own; the step takes their mean by samples. shards=1 divides by the weights of the whole batch",
            stacklevel=_level_of_the_caller(),
        )


def check_hooks(model: Module) -> None:
    """Raises ConfigError if the model has hooks, whose effects in other processes nobody here would see."""
    of_modules = [f"{type(module).__name__}" for module in model.modules() if module._hooks]
    of_parameters = [name for name, parameter in model.named_parameters() if parameter._hooks]
    if found := of_modules + of_parameters:
        raise ConfigError(
            f"Trainer: expected a model without hooks with workers, which would call them in other processes, got one "
            f"on {found[0]}; take workers=1, or remove() them"
        )


def _level_of_the_caller() -> int:
    """How many frames above `check_parts` the package was entered."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("scratchnet."):
        frame, level = frame.f_back, level + 1
    return level
