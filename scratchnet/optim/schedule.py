"""The base of all learning-rate schedules: what they keep, how they are resumed, and how later groups join them."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .. import checks
from ..errors import CheckpointError, ConfigError
from ..sealed import Sealed
from ..stateful import Stateful
from .optimizer import Group, Optimizer


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))


def _linear(start: float, end: float, fraction: float) -> float:
    return start + (end - start) * fraction


ANNEALING = {"cos": _cosine, "linear": _linear}  # from start to end, as the fraction goes from 0 to 1


class LRScheduler(Sealed, Stateful):
    """Base of all schedules. options: the constructor's numbers, kept so that a saved schedule can be recognised.

    base_lrs: the groups' learning rates before the first schedule. It sets those of step 0 at once. The base of a
    group that joins later is the one from which the schedule would have come to its learning rate.
    by: what a Trainer steps it by.
    """

    def __init__(self, optimizer: Optimizer, by: str = "step", **options: Any):
        self.by = checks.one_of(f"{type(self).__name__}: by", by, self._UNITS)
        self.optimizer, self.options, self.last_step = optimizer, options, 0
        if by != self._UNITS[0]:
            self.options["by"] = by
        self.base_lrs = [group.initial_lr for group in groups_of(optimizer)]
        self._set(0)

    _UNITS: tuple[str, ...] = ("step", "epoch")

    def values(self, group: int, step: int) -> dict[str, Any]:
        """The options of a group at a step, in closed form."""
        raise NotImplementedError

    def step(self) -> None:
        """One optimizer step, or epoch, is done: sets the values for the next one."""
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
        self.base_lrs[:] = base_lrs
        self._set(step)

    def _refusal(self, name: str) -> str | None:
        if name in self.options or name == "by":
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


def groups_of(optimizer: Optimizer) -> list[Group]:
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"lr_scheduler: expected an optimizer, got {type(optimizer).__name__}")
    return optimizer.param_groups


def checked(name: str, value: Any, low: float, high: float = math.inf, integer: bool = False) -> Any:
    """value as a Python number. Raises ConfigError if it is none, or not in [low, high]."""
    kinds = int | np.integer if integer else int | float | np.integer | np.floating
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high or value == math.inf:
        kind = "an integer" if integer else "a number"
        checks.refuse(name, f"{kind} in [{low:g}, {high:g}]", value)
    return int(value) if integer else float(value)


def milestones_of(name: str, values: Any) -> list[int]:
    """Steps in ascending order."""
    given = checks.items(f"{name}: milestones", values, "a list of steps")
    steps = [checked(f"{name}: milestones", step, 0, integer=True) for step in given]
    if steps != sorted(steps):
        checks.refuse(f"{name}: milestones", "steps in ascending order", steps)
    return steps
