"""Learning-rate schedules: each sets the options of an optimizer's groups to a closed form of the optimizer's steps.

Call `step()` after each `optimizer.step()`, or after each epoch: a schedule counts its own steps, so T_max, milestones
and the like are numbers of steps or of epochs as you call it. `by` tells a Trainer which: "step" (the default) or
"epoch"; ReduceLROnPlateau goes by "metric". The value depends on the starting value and the step alone, so a schedule
can be resumed anywhere. One schedule an optimizer, or several in a SequentialLR: another one would overwrite the first.

A group that is added to the optimizer later joins with the learning rate that it has then, as in PyTorch: from there
the schedule scales it like the others.
"""

import bisect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import checks
from ..errors import CheckpointError, ConfigError
from .optimizer import Optimizer
from .schedule import ANNEALING, LRScheduler, checked, groups_of, milestones_of

__all__ = [
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]


class StepLR(LRScheduler):
    """lr = base * gamma ** (step // step_size)."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, *, by: str = "step"):
        self.step_size = checked("StepLR: step_size", step_size, 1, integer=True)
        self.gamma = checked("StepLR: gamma", gamma, 0)
        super().__init__(optimizer, by, step_size=self.step_size, gamma=self.gamma)

    def values(self, group: int, step: int) -> dict[str, Any]:
        return {"lr": self.base_lrs[group] * self.gamma ** (step // self.step_size)}


class CosineAnnealingLR(LRScheduler):
    """lr = eta_min + (base - eta_min) * (1 + cos(pi * step / T_max)) / 2 (Loshchilov and Hutter 2017, no restarts)."""

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, *, by: str = "step"):
        self.T_max = checked("CosineAnnealingLR: T_max", T_max, 1, integer=True)
        self.eta_min = checked("CosineAnnealingLR: eta_min", eta_min, 0)
        super().__init__(optimizer, by, T_max=self.T_max, eta_min=self.eta_min)

    def values(self, group: int, step: int) -> dict[str, Any]:
        return {"lr": ANNEALING["cos"](self.base_lrs[group], self.eta_min, step / self.T_max)}


class LinearLR(LRScheduler):
    """lr = base * factor, the factor on a line from start_factor to end_factor in total_iters steps, then constant."""

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        *,
        by: str = "step",
    ):
        self.start_factor = checked("LinearLR: start_factor", start_factor, 0)
        self.end_factor = checked("LinearLR: end_factor", end_factor, 0)
        self.total_iters = checked("LinearLR: total_iters", total_iters, 1, integer=True)
        options = {"start_factor": self.start_factor, "end_factor": self.end_factor, "total_iters": self.total_iters}
        super().__init__(optimizer, by, **options)

    def values(self, group: int, step: int) -> dict[str, Any]:
        fraction = min(step, self.total_iters) / self.total_iters
        return {"lr": self.base_lrs[group] * ANNEALING["linear"](self.start_factor, self.end_factor, fraction)}


class ConstantLR(LRScheduler):
    """lr = base * factor for total_iters steps, then base."""

    def __init__(self, optimizer: Optimizer, factor: float = 1 / 3, total_iters: int = 5, *, by: str = "step"):
        self.factor = checked("ConstantLR: factor", factor, 0)
        self.total_iters = checked("ConstantLR: total_iters", total_iters, 1, integer=True)
        super().__init__(optimizer, by, factor=self.factor, total_iters=self.total_iters)

    def values(self, group: int, step: int) -> dict[str, Any]:
        return {"lr": self.base_lrs[group] * (self.factor if step < self.total_iters else 1.0)}


class PolynomialLR(LRScheduler):
    """lr = base * (1 - step / total_iters) ** power, 0 from step total_iters on."""

    def __init__(self, optimizer: Optimizer, total_iters: int = 5, power: float = 1.0, *, by: str = "step"):
        self.total_iters = checked("PolynomialLR: total_iters", total_iters, 1, integer=True)
        self.power = checked("PolynomialLR: power", power, 0)
        super().__init__(optimizer, by, total_iters=self.total_iters, power=self.power)

    def values(self, group: int, step: int) -> dict[str, Any]:
        return {"lr": self.base_lrs[group] * (1 - min(step, self.total_iters) / self.total_iters) ** self.power}


class ExponentialLR(LRScheduler):
    """lr = base * gamma ** step."""

    def __init__(self, optimizer: Optimizer, gamma: float, *, by: str = "step"):
        self.gamma = checked("ExponentialLR: gamma", gamma, 0)
        super().__init__(optimizer, by, gamma=self.gamma)

    def values(self, group: int, step: int) -> dict[str, Any]:
        return {"lr": self.base_lrs[group] * self.gamma**step}


class MultiStepLR(LRScheduler):
    """lr = base * gamma ** (number of milestones <= step)."""

    def __init__(self, optimizer: Optimizer, milestones: Sequence[int], gamma: float = 0.1, *, by: str = "step"):
        self.milestones = milestones_of("MultiStepLR", milestones)
        self.gamma = checked("MultiStepLR: gamma", gamma, 0)
        super().__init__(optimizer, by, milestones=self.milestones, gamma=self.gamma)

    def values(self, group: int, step: int) -> dict[str, Any]:
        return {"lr": self.base_lrs[group] * self.gamma ** bisect.bisect_right(self.milestones, step)}


class CosineAnnealingWarmRestarts(LRScheduler):
    """lr = eta_min + (base - eta_min) * (1 + cos(pi * t / T)) / 2, t steps after the last restart.

    The first period T is T_0 steps long, each other one T_mult times the one before (Loshchilov and Hutter 2017).
    """

    def __init__(self, optimizer: Optimizer, T_0: int, T_mult: int = 1, eta_min: float = 0.0, *, by: str = "step"):
        self.T_0 = checked("CosineAnnealingWarmRestarts: T_0", T_0, 1, integer=True)
        self.T_mult = checked("CosineAnnealingWarmRestarts: T_mult", T_mult, 1, integer=True)
        self.eta_min = checked("CosineAnnealingWarmRestarts: eta_min", eta_min, 0)
        super().__init__(optimizer, by, T_0=self.T_0, T_mult=self.T_mult, eta_min=self.eta_min)

    def values(self, group: int, step: int) -> dict[str, Any]:
        period = self.T_0
        if self.T_mult == 1:
            step %= period
        while step >= period:
            step, period = step - period, period * self.T_mult
        return {"lr": ANNEALING["cos"](self.base_lrs[group], self.eta_min, step / period)}


class LambdaLR(LRScheduler):
    """lr = base * lr_lambda(step), of one function, or of one a group.

    Functions are not saved, as in PyTorch: give the same ones when you resume. A saved state has the rates that they
    gave, so others are refused.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        *,
        by: str = "step",
    ):
        groups = len(groups_of(optimizer))
        self.is_one_for_all = not isinstance(lr_lambda, list | tuple)
        given: Any = [lr_lambda] * groups if self.is_one_for_all else lr_lambda
        if len(given) != groups:
            raise ConfigError(f"LambdaLR: expected one lr_lambda or {groups}, one a group, got {len(given)}")
        self.lr_lambdas = [checks.function("LambdaLR: lr_lambda", function) for function in given]
        super().__init__(optimizer, by)

    def values(self, group: int, step: int) -> dict[str, Any]:
        factor = checks.number("LambdaLR: the result of lr_lambda", self.lr_lambdas[group](step), "[0, inf)")
        return {"lr": self.base_lrs[group] * factor}

    def _join(self) -> None:
        missing = len(self.optimizer.param_groups) - len(self.lr_lambdas)
        if missing and not self.is_one_for_all:
            raise ConfigError(f"LambdaLR: expected {len(self.lr_lambdas)} groups, one a function, got {missing} more")
        self.lr_lambdas += self.lr_lambdas[:1] * missing
        super()._join()

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        return state | {"lrs": [self.values(i, self.last_step)["lr"] for i in range(len(self.base_lrs))]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        before = self.state_dict()
        super().load_state_dict(state)
        if (mine := self.state_dict()["lrs"]) != state["lrs"]:
            super().load_state_dict(before)
            raise CheckpointError(f"LambdaLR: expected the functions that gave the rates {state['lrs']}, got {mine}")


class SequentialLR(LRScheduler):
    """Schedules one after the other: number i begins, at its own step 0, at step milestones[i - 1].

    >>> warm, fall = LinearLR(optimizer, 0.1, total_iters=5), CosineAnnealingLR(optimizer, 95)
    >>> scheduler = SequentialLR(optimizer, [warm, fall], milestones=[5])

    They must be closed forms of the same optimizer. Call `step` of this one alone.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: Sequence[LRScheduler],
        milestones: Sequence[int],
        *,
        by: str = "step",
    ):
        self.schedulers = checks.items("SequentialLR: schedulers", schedulers, "a list of schedules")
        for schedule in self.schedulers:
            checks.instance("SequentialLR", schedule, LRScheduler, "schedules")
            if schedule.optimizer is not optimizer or schedule.by == "metric":
                raise ConfigError(f"SequentialLR: expected closed forms of its own optimizer, got {schedule!r}")
        self.milestones = milestones_of("SequentialLR", milestones)
        if not self.schedulers or len(self.milestones) != len(self.schedulers) - 1:
            found = f"{len(self.milestones)} and {len(self.schedulers)}"
            raise ConfigError(f"SequentialLR: expected one milestone fewer than schedulers, got {found}")
        described = [{"name": type(s).__name__, **s.options} for s in self.schedulers]
        super().__init__(optimizer, by, schedulers=described, milestones=self.milestones)
        for schedule in self.schedulers:
            schedule.base_lrs = self.base_lrs  # one list for all

    def _at(self, step: int) -> tuple[LRScheduler, int]:
        """The schedule of a step, and its own step."""
        i = bisect.bisect_right(self.milestones, step)
        return self.schedulers[i], step - (self.milestones[i - 1] if i else 0)

    def values(self, group: int, step: int) -> dict[str, Any]:
        schedule, own = self._at(step)
        return schedule.values(group, own)

    def _set(self, step: int) -> None:
        super()._set(step)
        schedule, own = self._at(step)
        schedule.last_step = own

    def _join(self) -> None:
        current, own = self._at(self.last_step)
        current.last_step = own
        for schedule in (current, *self.schedulers):  # the first one finds the base of a new group
            schedule._join()


class ReduceLROnPlateau(LRScheduler):
    """lr = max(lr * factor, min_lr) when a metric was not better than its best for more than `patience` steps.

    Call `step(metric)`, usually once an epoch; a Trainer does, with the value of `monitor` in the epoch's record:
    "val_loss" (of mode "max" "val_accuracy") unless given.
    mode: "min" or "max" is better. threshold: a better metric is below best * (1 - threshold), with threshold_mode
        "abs" below best - threshold; of mode "max" above, with a plus. As in PyTorch, so "rel" is for positive ones.
    cooldown: steps after a reduction in which nothing counts. eps: reductions by less are left out.
    """

    _UNITS = ("metric",)
    STATE = "best", "bad_steps", "cooling"

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
        eps: float = 1e-8,
        *,
        monitor: str | None = None,
    ):
        name = "ReduceLROnPlateau"
        self.mode = checks.one_of(f"{name}: mode", mode, ("min", "max"))
        self.factor = checks.number(f"{name}: factor", factor, "[0, 1)")
        self.patience = checked(f"{name}: patience", patience, 0, integer=True)
        self.threshold = checked(f"{name}: threshold", threshold, 0)
        self.threshold_mode = checks.one_of(f"{name}: threshold_mode", threshold_mode, ("rel", "abs"))
        self.cooldown = checked(f"{name}: cooldown", cooldown, 0, integer=True)
        self.min_lr, self.eps = checked(f"{name}: min_lr", min_lr, 0), checked(f"{name}: eps", eps, 0)
        if monitor is not None and not isinstance(monitor, str):
            checks.refuse(f"{name}: monitor", "the name of a metric or None", monitor)
        self.monitor = monitor or {"min": "val_loss", "max": "val_accuracy"}[mode]
        self.sign = 1.0 if mode == "min" else -1.0
        self.best: float | None = None
        self.bad_steps = self.cooling = 0
        names = "mode factor patience threshold threshold_mode cooldown min_lr eps monitor"
        super().__init__(optimizer, "metric", **{name: getattr(self, name) for name in names.split()})

    def values(self, group: int, step: int) -> dict[str, Any]:
        """What the group has."""
        return {"lr": self.optimizer.param_groups[group]["lr"]}

    def step(self, metric: Any) -> None:  # type: ignore[override]
        """Takes the metric of one more epoch; NaN is not better than anything."""
        self._outside_of_steps("ReduceLROnPlateau.step")
        try:
            value = float(metric)
        except (TypeError, ValueError):
            checks.refuse("ReduceLROnPlateau: step", "a number", metric)
        self.last_step += 1
        is_better = self._is_better(value)
        self.bad_steps = 0 if is_better else self.bad_steps + 1
        if is_better:
            self.best = value
        if self.cooling > 0:
            self.cooling, self.bad_steps = self.cooling - 1, 0
        if self.bad_steps > self.patience:
            self.cooling, self.bad_steps = self.cooldown, 0
            for group in self.optimizer.param_groups:
                lr = max(group["lr"] * self.factor, self.min_lr)
                if group["lr"] - lr > self.eps:
                    group.take({"lr": lr})

    def _is_better(self, value: float) -> bool:
        if self.best is None:
            return value == value
        margin = self.threshold * (self.best if self.threshold_mode == "rel" else 1.0)
        return self.sign * value < self.sign * (self.best - self.sign * margin)

    def state_dict(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in self.STATE}
        return super().state_dict() | own | {"lrs": self.get_last_lr()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        for name in self.STATE:
            setattr(self, name, state[name])
        for group, lr in zip(self.optimizer.param_groups, state["lrs"], strict=True):
            group.take({"lr": lr})


class OneCycleLR(LRScheduler):
    """Up from max_lr / div_factor to max_lr in the first pct_start of the steps, then down to 1 / final_div_factor
    of where it began (Smith and Topin 2018).

    max_lr: one number, for groups that join later, too, or one a group.
    total_steps: the optimizer's; the rate is lowest at the last, total_steps - 1.
    anneal_strategy: the way between, "cos" or "linear".
    cycle_momentum: momentum (beta1 of Adam) goes the other way, from max_momentum down to base_momentum and back.

    Raises ConfigError for arguments out of range, and from `step` after more than total_steps.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int,
        *,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        by: str = "step",
    ):
        groups = len(groups_of(optimizer))
        self.is_one_for_all = not isinstance(max_lr, Sequence | np.ndarray)
        given: Any = [max_lr] * groups if self.is_one_for_all else max_lr
        rates = checks.items("OneCycleLR: max_lr", given, "a number or a list of them")
        if len(rates) != groups:
            raise ConfigError(f"OneCycleLR: expected one max_lr or {groups}, one a group, got {len(rates)}")
        checks.one_of("OneCycleLR: anneal_strategy", anneal_strategy, ANNEALING)
        self.max_lrs = [checked("OneCycleLR: max_lr", rate, 0) for rate in rates]
        self.total_steps = checked("OneCycleLR: total_steps", total_steps, 1, integer=True)
        self.anneal, self.cycle_momentum = (
            ANNEALING[anneal_strategy],
            checks.flag("OneCycleLR: cycle_momentum", cycle_momentum),
        )
        self.peak = checked("OneCycleLR: pct_start", pct_start, 0, 1) * self.total_steps - 1
        self.base_momentum = checked("OneCycleLR: base_momentum", base_momentum, 0, 1)
        self.max_momentum = checked("OneCycleLR: max_momentum", max_momentum, 0, 1)
        self.start = 1 / checked("OneCycleLR: div_factor", div_factor, 1)
        self.end = self.start / checked("OneCycleLR: final_div_factor", final_div_factor, 1)
        super().__init__(
            optimizer,
            by,
            max_lr=self.max_lrs,
            total_steps=self.total_steps,
            pct_start=float(pct_start),
            anneal_strategy=anneal_strategy,
            cycle_momentum=self.cycle_momentum,
            base_momentum=self.base_momentum,
            max_momentum=self.max_momentum,
            div_factor=float(div_factor),
            final_div_factor=float(final_div_factor),
        )

    def values(self, group: int, step: int) -> dict[str, Any]:
        if step > self.total_steps:
            raise ConfigError(f"OneCycleLR: expected at most total_steps={self.total_steps} steps, got one more")
        max_lr, high, low = self.max_lrs[group], self.max_momentum, self.base_momentum
        if step <= self.peak:
            begin, end, lr, momentum = 0.0, self.peak, (max_lr * self.start, max_lr), (high, low)
        else:
            begin, end, lr, momentum = self.peak, self.total_steps - 1.0, (max_lr, max_lr * self.end), (low, high)
        fraction = min((step - begin) / (end - begin), 1.0) if end > begin else 1.0
        values = {"lr": self.anneal(*lr, fraction)}
        if self.cycle_momentum:
            values |= self._momentum(group, self.anneal(*momentum, fraction))
        return values

    def _join(self) -> None:
        missing = len(self.optimizer.param_groups) - len(self.max_lrs)
        if missing and not self.is_one_for_all:
            raise ConfigError(f"OneCycleLR: expected {len(self.max_lrs)} groups, one a max_lr, got {missing} more")
        self.max_lrs += self.max_lrs[:1] * missing
        super()._join()

    def _momentum(self, group: int, value: float) -> dict[str, Any]:
        """The option that plays the part of momentum in this optimizer, set to value."""
        options = dict(self.optimizer.param_groups[group])
        if "betas" in options:
            return {"betas": (value, options["betas"][1])}
        if "momentum" in options:
            return {"momentum": value}
        raise ConfigError(f"OneCycleLR: expected momentum or betas with cycle_momentum, got {', '.join(options)}")
