"""The optimizers: each names an update kernel, its state arrays and its numbers; one `step` runs them all.

Gradients come from `Tensor.grad`; the kernel writes the new parameter and state over the old ones. A step is one
call a parameter: kernel(param, grad, *state, new_param, *new_state, numbers).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from .. import tracing
from ..errors import CheckpointError, ConfigError, DtypeError, ShapeError
from ..ops.table import contiguous
from ..tensor import FLOATS, Tensor

Group = dict[str, Any]

# option: (lowest value, the first value that is too large)
RANGES = {
    "lr": (0.0, math.inf),
    "momentum": (0.0, math.inf),
    "weight_decay": (0.0, math.inf),
    "eps": (0.0, math.inf),
    "alpha": (0.0, 1.0),
    "betas": (0.0, 1.0),
}
PAIRS = {"betas"}


class ParameterState:
    """A parameter, the group it is in, what the rule remembers of it (arrays), and how many steps it took."""

    __slots__ = ("arrays", "dtype", "group", "param", "shape", "step")

    def __init__(self, param: Tensor, group: Group, n_arrays: int):
        self.param, self.group, self.step = param, group, 0
        self.shape, self.dtype = param.shape, param.dtype
        self.arrays = [param._device.aligned(param.shape, param.dtype) for _ in range(n_arrays)]
        for array in self.arrays:
            param._device.fill(array, 0)


class Optimizer:
    """Base of all optimizers.

    params: tensors, or dictionaries {"params": tensors, option: value, ...} whose options override the defaults.
    The options of group i are in `param_groups[i]` and may be changed at any time.

    Raises ConfigError for an option unknown or out of range, no parameters, one twice, or one that cannot be trained.
    """

    kernel: str  # the update's name in the device table
    n_numbers: int  # that it takes
    state_names: tuple[
        str, ...
    ]  # names of the arrays, as large as the parameter, that the update keeps; they start at 0

    def __init__(self, params: Iterable[Tensor] | Iterable[Group], **defaults: Any):
        self.defaults = defaults
        self.param_groups: list[Group] = []
        self.states: list[ParameterState] = []
        groups = _as_list(params)
        if not groups or not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)

    def add_param_group(self, group: Group) -> None:
        """Adds parameters with options of their own."""
        if not isinstance(group, dict) or "params" not in group:
            raise ConfigError(f"{self._name}: expected a group with 'params', got {type(group).__name__}")
        params = _as_list(group["params"])
        group = self.defaults | group | {"params": params}
        self._check_options(group)
        self._check_parameters(params)
        self.param_groups.append(group)
        self.states += [ParameterState(param, group, len(self.state_names)) for param in params]

    def numbers(self, group: Group, step: int) -> tuple[float, ...]:
        """What the kernel takes after the arrays; `step` counts the parameter's updates from 1."""
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Forgets the gradients of all parameters."""
        for slot in self.states:
            slot.param.zero_grad()

    def step(self) -> None:
        """Updates, in place, every parameter that has a gradient.

        Raises ShapeError or DtypeError if a gradient does not fit its parameter; then nothing was updated.
        """
        if tracing.current() is not None:
            for slot in self.states:
                tracing.touch(slot.param)
        ready = [(s, self._gradient(s, s.param.grad)) for s in self.states if s.param.grad is not None]
        slots = [slot for slot, _ in ready]
        numbers: dict[
            Any, tuple[ParameterState, np.ndarray]
        ] = {}  # one array for all slots of a group that took as many steps
        own = [numbers.setdefault((id(s.group), s.step), (s, np.empty(self.n_numbers)))[1] for s in slots]
        leaders = list(numbers.values())
        self.advance(slots, leaders)
        for (slot, gradient), array in zip(ready, own, strict=True):
            data, arrays = slot.param._data, slot.arrays
            getattr(tracing.active(slot.param._device), self.kernel)(data, gradient, *arrays, data, *arrays, array)
        tracing.updated([slot.param for slot in slots], lambda: self.advance(slots, leaders))

    def advance(
        self, slots: list[ParameterState], leaders: list[tuple[ParameterState, np.ndarray]]
    ) -> Callable[[], None]:
        """One more step of each slot; returns what takes it back.

        leaders: a slot of each group and number of steps, and the array of the kernel's numbers for all such slots.
        """
        for slot in slots:
            slot.step += 1
            slot.param._owner._version += 1
        for slot, numbers in leaders:
            numbers[:] = self.numbers(slot.group, slot.step)

        def take_back():
            for slot in slots:
                slot.step -= 1

        return take_back

    def _gradient(self, slot: ParameterState, grad: Tensor) -> np.ndarray:
        """The gradient as a contiguous array, checked against the slot."""
        param, gradient = slot.param, grad._data
        if gradient.shape != slot.shape:
            raise ShapeError(f"{self._name}: expected a gradient of shape {slot.shape}, got {gradient.shape}")
        if gradient.dtype != slot.dtype or param._data.dtype != slot.dtype:
            raise DtypeError(
                f"{self._name}: expected parameter and gradient {slot.dtype}, got {param.dtype} and {gradient.dtype}"
            )
        return gradient if gradient.flags.c_contiguous else contiguous(tracing.active(param._device), gradient)

    # --- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """{"state": [{"step": n, name: array, ...} for each parameter], "param_groups": [options]}, all copies.

        In the groups, "params" holds the parameters' numbers.
        """
        state = [
            {"step": slot.step}
            | {
                name: slot.param._device.to_host(a).copy()
                for name, a in zip(self.state_names, slot.arrays, strict=True)
            }
            for slot in self.states
        ]
        groups = [
            group | {"params": [i for i, slot in enumerate(self.states) if slot.group is group]}
            for group in self.param_groups
        ]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state; everything is checked before anything is written.

        Raises CheckpointError if the groups, the options, or the shapes and dtypes of the arrays are not as here.
        """
        try:
            expected, found = _layout(self.state_dict()), _layout(state)
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{self._name}: expected a state dict of its own, got {error!r:.200}") from None
        for what in expected | found:
            if expected.get(what) != found.get(what):
                raise CheckpointError(
                    f"{self._name}: state dict: {what}: expected {expected.get(what)}, got {found.get(what)}"
                )
        try:
            for group in state["param_groups"]:
                self._check_options(group)
        except ConfigError as error:
            raise CheckpointError(f"state dict: {error}") from None
        for group, new in zip(self.param_groups, state["param_groups"], strict=True):
            group |= {k: tuple(v) if k in PAIRS else v for k, v in new.items() if k != "params"}
        for slot, new in zip(self.states, state["state"], strict=True):
            slot.step = new["step"]
            for array, name in zip(slot.arrays, self.state_names, strict=True):
                slot.param._device.write(array, new[name])

    # --- checks and printing --------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _check_options(self, group: Group) -> None:
        if unknown := group.keys() - self.defaults.keys() - {"params"}:
            known = ", ".join(self.defaults)
            raise ConfigError(f"{self._name}: expected options {known}, got {', '.join(sorted(map(str, unknown)))}")
        for option in RANGES.keys() & group.keys():
            low, end = RANGES[option]
            values = group[option] if option in PAIRS else [group[option]]
            if not _all_in(values, low, end, n=1 + (option in PAIRS)):
                kind = "two numbers" if option in PAIRS else "a number"
                raise ConfigError(
                    f"{self._name}: expected {option} to be {kind} in [{low:g}, {end:g}), got {group[option]!r}"
                )

    def _check_parameters(self, params: list[Tensor]) -> None:
        if not params:
            raise ConfigError(f"{self._name}: expected at least one parameter, got none")
        seen = {id(slot.param) for slot in self.states}
        for param in params:
            if not isinstance(param, Tensor):
                raise ConfigError(f"{self._name}: expected tensors, got {type(param).__name__}")
            problems = {
                "one twice": id(param) in seen,
                "the result of an op": not param.is_leaf,
                str(param.dtype): param.dtype not in FLOATS,
                "strided memory": not param._data.flags.c_contiguous,
                "read-only memory": not param._data.flags.writeable,
            }
            if found := [what for what, is_so in problems.items() if is_so]:
                raise ConfigError(f"{self._name}: expected parameters that can be changed in place, got {found[0]}")
            seen.add(id(param))

    def __repr__(self) -> str:
        lines = []
        for group in self.param_groups:
            options = ", ".join(f"{k}={v!r}" for k, v in group.items() if k != "params")
            lines.append(f"{self._name}({len(group['params'])} parameters, {options})")
        return "\n".join(lines)


def _as_list(params: Any) -> list[Any]:
    return [params] if isinstance(params, Tensor | dict) else list(params)


def _all_in(values: Any, low: float, end: float, n: int) -> bool:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        return False
    return len(numbers) == n and all(low <= number < end for number in numbers)


def _layout(state: Mapping[str, Any]) -> dict[str, str]:
    """All that must be alike for one state dict to be loaded over another, by name."""
    layout = {}
    for i, group in enumerate(state["param_groups"]):
        layout[f"options of group {i}"] = ", ".join(sorted(group))
        layout[f"parameters of group {i}"] = str(list(group["params"]))
    for i, slot in enumerate(state["state"]):
        for name, value in slot.items():
            is_count = type(value) is int and value >= 0
            layout[f"{name} of parameter {i}"] = "a count" if is_count else f"{value.dtype} {value.shape}"
    return layout


class SGD(Optimizer):
    """g += weight_decay * p;  v = momentum * v + g;  p -= lr * (g + momentum * v if nesterov else v).

    As torch.optim.SGD (Sutskever et al. 2013, with the learning rate outside).
    """

    kernel, n_numbers, state_names = "sgd", 4, ("velocity",)

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)

    def _check_options(self, group: Group) -> None:
        super()._check_options(group)
        if group["nesterov"] and not group["momentum"] > 0:
            raise ConfigError(f"SGD: expected momentum > 0 with nesterov, got {group['momentum']}")

    def numbers(self, group: Group, step: int) -> tuple[float, ...]:
        return float(group["lr"]), float(group["momentum"]), bool(group["nesterov"]), float(group["weight_decay"])


class Adam(Optimizer):
    """m = b1*m + (1-b1)*g;  v = b2*v + (1-b2)*g**2;  p -= lr/(1-b1**t) * m / (sqrt(v)/sqrt(1-b2**t) + eps).

    Kingma and Ba 2015, as torch.optim.Adam. g includes weight_decay * p; t counts the parameter's updates from 1.
    """

    kernel, n_numbers, state_names = "adam", 7, ("m", "v")
    decoupled = False

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def numbers(self, group: Group, step: int) -> tuple[float, ...]:
        beta1, beta2 = group["betas"]
        options = float(group["lr"]), float(beta1), float(beta2), float(group["eps"]), float(group["weight_decay"])
        return *options, self.decoupled, step


class AdamW(Adam):
    """Adam whose weight decay does not pass through the moments: p -= lr * weight_decay * p comes first.

    Loshchilov and Hutter 2019, as torch.optim.AdamW.
    """

    decoupled = True

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        super().__init__(params, lr, betas, eps, weight_decay)


class RMSprop(Optimizer):
    """g += weight_decay * p;  v = alpha*v + (1-alpha)*g**2;  u = momentum*u + g / (sqrt(v) + eps);  p -= lr * u.

    Tieleman and Hinton 2012 (lecture 6.5), as torch.optim.RMSprop.
    """

    kernel, n_numbers, state_names = "rmsprop", 5, ("v", "velocity")

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
    ):
        super().__init__(params, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum)

    def numbers(self, group: Group, step: int) -> tuple[float, ...]:
        options = float(group["lr"]), float(group["alpha"]), float(group["eps"])
        return *options, float(group["momentum"]), float(group["weight_decay"])
