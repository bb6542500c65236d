"""Learning-rate schedules: each sets the options of an optimizer's groups to a closed form of the optimizer's steps.

Call `step()` after each `optimizer.step()`. The value depends on the starting value and the step alone, so a
schedule can be resumed anywhere. One schedule an optimizer: a second one would overwrite the first.

A group that is added to the optimizer later joins with the learning rate that it has then, as in PyTorch: from there
the schedule scales it like the others.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import checks
from ..errors import CheckpointError, ConfigError
from ..sealed import Sealed
from ..stateful import Stateful
from .optimizer import Group, Optimizer

ANNEALING = {  # from start to end, as the fraction goes from 0 to 1
    "cos": lambda start, end, fraction: end + (start - end) / 2 * (1 + math.cos(math.pi * fraction)),
    "linear": lambda start, end, fraction: start + (end - start) * fraction,
}


class LRScheduler(Sealed, Stateful):
    """Base of all schedules. options: the constructor's numbers, kept so that a saved schedule can be recognised.

    base_lrs: the groups' learning rates when the schedule was made. It sets those of step 0 at once. The base of a
    group that joins later is the one from which the schedule would have come to its learning rate.
    """

    def __init__(self, optimizer: Optimizer, **options: Any):
        self.optimizer, self.options, self.last_step = optimizer, options, 0
        self.base_lrs = [float(group["lr"]) for group in _groups(optimizer)]
        self._set(0)

    def values(self, group: int, step: int) -> dict[str, Any]:
        """The options of a group at a step, in closed form."""
        raise NotImplementedError

    def step(self) -> None:
        """One optimizer step is done: sets the values for the next one."""
        self._advance()
        self._repeats(self._advance)

    def _advance(self) -> Callable[[], None]:
        before = self.last_step
        self._set(before + 1)
        return lambda: self._set(before)

    def get_last_lr(self) -> list[float]:
        """The learning rate of each group, as last set."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """{"last_step", "base_lrs", "options"}: numbers and lists of them."""
        self._join()
        return {"last_step": self.last_step, "base_lrs": list(self.base_lrs), "options": dict(self.options)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved step and sets its values. Raises CheckpointError if it is not of an equal schedule."""
        self._outside_of_steps("load_state_dict")
        name, mine = type(self).__name__, self.state_dict()
        if not isinstance(state, Mapping) or state.keys() != mine.keys():
            raise CheckpointError(f"{name}: expected a state dict of {', '.join(mine)}, got {checks.shown(state)}")
        if state["options"] != mine["options"]:
            raise CheckpointError(f"{name}: expected options {mine['options']}, got {state['options']}")
        step, base_lrs, n = state["last_step"], state["base_lrs"], len(self.base_lrs)
        if type(step) is not int or step < 0 or len(base_lrs) != n or not all(type(lr) is float for lr in base_lrs):
            checks.refuse(name, f"a step and {n} rates", (step, base_lrs), CheckpointError)
        self.base_lrs = list(base_lrs)
        self._set(step)

    def _refusal(self, name: str) -> str | None:
        if name in self.options:
            return "a schedule whose options stay as they are, got another value; make a new one"
        return super()._refusal(name)

    def _join(self) -> None:
        """Takes in the groups that are new."""
        for i in range(len(self.base_lrs), len(self.optimizer.param_groups)):
            self.base_lrs.append(0.0)
            at_0 = self.values(i, self.last_step)["lr"]
            self.base_lrs[i] = 1.0
            slope = self.values(i, self.last_step)["lr"] - at_0
            lr = float(self.optimizer.param_groups[i]["lr"])
            self.base_lrs[i] = (lr - at_0) / slope if slope else lr

    def _set(self, step: int) -> None:
        self._join()
        groups = self.optimizer.param_groups
        for group, values in zip(groups, [self.values(i, step) for i in range(len(groups))], strict=True):
            group.take(values)
        self.last_step = step

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{type(self).__name__}({options})"


def _groups(optimizer: Optimizer) -> list[Group]:
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"lr_scheduler: expected an optimizer, got {type(optimizer).__name__}")
    return optimizer.param_groups


def _checked(name: str, value: Any, low: float, high: float = math.inf, integer: bool = False) -> Any:
    """value as a Python number. Raises ConfigError if it is none, or not in [low, high]."""
    kinds = int | np.integer if integer else int | float | np.integer | np.floating
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high or value == math.inf:
        kind = "an integer" if integer else "a number"
        checks.refuse(name, f"{kind} in [{low:g}, {high:g}]", value)
    return int(value) if integer else float(value)


class StepLR(LRScheduler):
    """lr = base * gamma ** (step // step_size)."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1):
        self.step_size = _checked("StepLR: step_size", step_size, 1, integer=True)
        self.gamma = _checked("StepLR: gamma", gamma, 0)
        super().__init__(optimizer, step_size=self.step_size, gamma=self.gamma)

    def values(self, group: int, step: int) -> dict[str, Any]:
        return {"lr": self.base_lrs[group] * self.gamma ** (step // self.step_size)}


class CosineAnnealingLR(LRScheduler):
    """lr = eta_min + (base - eta_min) * (1 + cos(pi * step / T_max)) / 2 (Loshchilov and Hutter 2017, no restarts)."""

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0):
        self.T_max = _checked("CosineAnnealingLR: T_max", T_max, 1, integer=True)
        self.eta_min = _checked("CosineAnnealingLR: eta_min", eta_min, 0)
        super().__init__(optimizer, T_max=self.T_max, eta_min=self.eta_min)

    def values(self, group: int, step: int) -> dict[str, Any]:
        return {"lr": ANNEALING["cos"](self.base_lrs[group], self.eta_min, step / self.T_max)}


class LinearLR(LRScheduler):
    """lr = base * factor, the factor on a line from start_factor to end_factor in total_iters steps, then constant."""

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: int = 5
    ):
        self.start_factor = _checked("LinearLR: start_factor", start_factor, 0)
        self.end_factor = _checked("LinearLR: end_factor", end_factor, 0)
        self.total_iters = _checked("LinearLR: total_iters", total_iters, 1, integer=True)
        super().__init__(
            optimizer, start_factor=self.start_factor, end_factor=self.end_factor, total_iters=self.total_iters
        )

    def values(self, group: int, step: int) -> dict[str, Any]:
        fraction = min(step, self.total_iters) / self.total_iters
        return {"lr": self.base_lrs[group] * ANNEALING["linear"](self.start_factor, self.end_factor, fraction)}


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
    ):
        groups = len(_groups(optimizer))
        self.is_one_for_all = not isinstance(max_lr, Sequence | np.ndarray)
        given: Any = [max_lr] * groups if self.is_one_for_all else max_lr
        rates = checks.items("OneCycleLR: max_lr", given, "a number or a list of them")
        if len(rates) != groups:
            raise ConfigError(f"OneCycleLR: expected one max_lr or {groups}, one a group, got {len(rates)}")
        checks.one_of("OneCycleLR: anneal_strategy", anneal_strategy, ANNEALING)
        self.max_lrs = [_checked("OneCycleLR: max_lr", rate, 0) for rate in rates]
        self.total_steps = _checked("OneCycleLR: total_steps", total_steps, 1, integer=True)
        self.anneal, self.cycle_momentum = (
            ANNEALING[anneal_strategy],
            checks.flag("OneCycleLR: cycle_momentum", cycle_momentum),
        )
        self.peak = _checked("OneCycleLR: pct_start", pct_start, 0, 1) * self.total_steps - 1
        self.base_momentum = _checked("OneCycleLR: base_momentum", base_momentum, 0, 1)
        self.max_momentum = _checked("OneCycleLR: max_momentum", max_momentum, 0, 1)
        self.start = 1 / _checked("OneCycleLR: div_factor", div_factor, 1)
        self.end = self.start / _checked("OneCycleLR: final_div_factor", final_div_factor, 1)
        super().__init__(
            optimizer,
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
