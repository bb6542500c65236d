"""The base of all optimizers: one names an update kernel, its state arrays and its numbers; one `step` runs them all.

Gradients come from `Tensor.grad`; the kernel writes the new parameter and state over the old ones. A step is one
call a parameter: kernel(param, grad, *state, new_param, *new_state, numbers).

Whoever updates parameters in memory of his own (a replica in a worker process) uses the same parts: `states`,
`state_names`, `kernel`, `n_numbers`, and `advance`, which counts the step and fills in the numbers.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import checks
from ..errors import CheckpointError, ConfigError, DtypeError, GradientError, ShapeError
from ..grad_mode import recording
from ..kernels.signatures import FLOATS, HALVES
from ..ops.table import contiguous
from ..row_gradient import RowGradient
from ..sealed import Sealed
from ..stateful import Stateful
from ..tensor import Tensor


def update_rows(
    kernel: Callable[..., None],
    rows: np.ndarray,
    gradient: np.ndarray,
    old: Sequence[np.ndarray],
    new: Sequence[np.ndarray],
    numbers: np.ndarray,
) -> None:
    """An update of some rows alone. old, new: parameter and state before and after; gradient: of these rows."""
    own = [x[rows] for x in old]
    kernel(own[0], gradient, *own[1:], *own, numbers)
    for x, changed in zip(new, own, strict=True):
        x[rows] = changed


# option: (lowest value, the first value that is too large)
RANGES = {
    "lr": (0.0, math.inf),
    "lr_decay": (0.0, math.inf),
    "momentum": (0.0, math.inf),
    "weight_decay": (0.0, math.inf),
    "eps": (0.0, math.inf),
    "alpha": (0.0, 1.0),
    "rho": (0.0, 1.0),
    "betas": (0.0, 1.0),
}
PAIRS = {"betas"}
MOST_STEPS = 2**53  # up to here float64 counts
Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]


class Group(dict[str, Any]):
    """The options of some parameters by name, checked whenever one is set, and "params", the parameters themselves."""

    def __init__(self, optimizer: "Optimizer", options: Mapping[str, Any]):
        super().__init__(options)
        self._optimizer = optimizer
        self._initial_lr: float | None = None

    def __getitem__(self, name: str) -> Any:
        self._optimizer._relies_on_item(self, name)
        return super().__getitem__(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def setdefault(self, name: str, value: Any = None) -> Any:
        if name not in self:
            self[name] = value
        return self[name]

    def __ior__(self, options: Any) -> "Group":  # type: ignore[override, misc]
        self.update(options)
        return self

    def update(self, *options: Any, **named: Any) -> None:
        """Sets options. Raises ConfigError, and sets none, for one that is unknown or out of range."""
        self._optimizer._outside_of_steps("options of an optimizer")
        changed = dict(*options, **named)
        if "params" in changed and changed["params"] is not self["params"]:
            raise ConfigError(
                f"{self._optimizer._name}: expected a group with the params that it has; use add_param_group"
            )
        if "lr" in changed:
            self._initial_lr = None
        self.take(changed)

    @property
    def initial_lr(self) -> float:
        """The learning rate before the first schedule changed it; one that is set by hand counts as a new one."""
        if self._initial_lr is None:
            self._initial_lr = float(self["lr"])
        return self._initial_lr

    def take(self, options: dict[str, Any]) -> None:
        """Sets options that change with the steps: of a schedule, which a step that is replayed advances itself."""
        self._optimizer._check_options({**self, **options})
        super().update(options)

    def __reduce__(self) -> tuple:
        return Group.__new__, (Group,), (self._optimizer, self._initial_lr, dict(self))

    def __setstate__(self, state: tuple["Optimizer", float | None, dict[str, Any]]) -> None:
        self._optimizer, self._initial_lr, options = state
        super().update(options)


class ParameterState:
    """What an optimizer keeps of one parameter.

    param, group: the parameter and its options. arrays: what the rule remembers of it, one array of its shape and dtype
    for each of `state_names`. step: how many updates it had.
    """

    __slots__ = ("arrays", "dtype", "group", "param", "shape", "step")

    def __init__(self, param: Tensor, group: Group, n_arrays: int):
        self.param, self.group, self.step = param, group, 0
        self.shape, self.dtype = param.shape, param.dtype
        self.arrays = [param._device.aligned(param.shape, param.dtype) for _ in range(n_arrays)]
        for array in self.arrays:
            param._device.fill(array, 0)


class Optimizer(Sealed, Stateful):
    """Base of all optimizers.

    params: tensors, or dictionaries {"params": tensors, option: value, ...} whose options override the defaults.
    The options of group i are in `param_groups[i]` and may be changed at any time. `states` holds a ParameterState for
    each parameter, in the order of the groups. maximize: climb instead of descend, as long as the optimizer lives.

    Raises ConfigError for an option unknown or out of range, no parameters, one twice, or one that cannot be trained.
    """

    kernel: str  # the update's name in the device table
    n_numbers: int  # that it takes
    state_names: tuple[str, ...]  # of the arrays, as large as the parameter, that the update keeps; they start at 0

    takes_rows = True  # may a gradient be one by rows?
    takes_closure = False  # does a step evaluate the loss several times?

    def __init__(self, params: Parameters, maximize: bool = False, **defaults: Any):
        self.maximize = checks.flag(f"{self._name}: maximize", maximize)
        self.defaults = defaults
        self.param_groups: list[Group] = []
        self.states: list[ParameterState] = []
        groups = _as_list(params)
        if not groups or not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Adds parameters with options of their own."""
        self._outside_of_steps("add_param_group")
        if not isinstance(group, dict) or "params" not in group:
            raise ConfigError(f"{self._name}: expected a group with 'params', got {type(group).__name__}")
        params = _as_list(group["params"])
        options = self.defaults | group | {"params": tuple(params)}
        self._check_options(options)
        self._check_parameters(params)
        self.param_groups.append(Group(self, options))
        self.states += [ParameterState(param, self.param_groups[-1], len(self.state_names)) for param in params]

    def numbers(self, group: Mapping[str, Any], step: int) -> tuple[float, ...]:
        """What the kernel takes after the arrays; `step` counts the parameter's updates from 1."""
        raise NotImplementedError

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients of all parameters, or with set_to_none=False fills those that are there with 0."""
        for state in self.states:
            state.param.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates, in place, every parameter that has a gradient.

        Of a table with a RowGradient (sparse=True) only the rows that occur are updated, by the same rule: in all other
        rows nothing changes, neither by momentum nor by weight decay, and no average goes on. Steps are counted for the
        table as a whole.

        closure: is called first; it computes the gradients, and returns the loss, which is returned here.
        Raises ShapeError or DtypeError if a gradient does not fit its parameter; then nothing was updated.
        """
        loss = None
        if closure is not None:
            with recording(True):
                loss = checks.function(f"{self._name}: step", closure)()
        given = [(state, grad) for state in self.states if (grad := state.param.grad) is not None]
        gradients = [self._gradient(state, grad) for state, grad in given]
        states = [state for state, _ in given]
        known: dict[Any, tuple[ParameterState, np.ndarray]] = {}  # one array for states of one group and step count
        shared = [known.setdefault((id(s.group), s.step), (s, np.empty(self.n_numbers))) for s in states]
        rows = [grad.rows if isinstance(grad, RowGradient) else None for _, grad in given]
        self.advance(states, shared)
        for state, gradient, chosen, (_, numbers) in zip(states, gradients, rows, shared, strict=True):
            param, arrays = state.param, state.arrays
            kernel = getattr(param._kernels, self.kernel)
            if chosen is None:
                kernel(param._data, gradient, *arrays, param._data, *arrays, numbers)
            else:
                old = [param._data, *arrays]
                update_rows(kernel, chosen, gradient, old, old, numbers)
            param._updated()
        self._repeats(lambda: self.advance(states, shared), tuple([numbers for _, numbers in shared]))
        return loss

    def advance(
        self, states: Sequence[ParameterState], shared: Sequence[tuple[ParameterState, np.ndarray]]
    ) -> Callable[[], None]:
        """Counts one more step of each state, before the kernels run; returns what takes it back.

        shared: for each state, the first one of its group and step count, and the array, float64 (n_numbers,), that the
        kernel takes for all of these; it is filled in here. Raises ConfigError, and counts nothing, if a state and its
        first one have other counts by now.
        """
        for state, (first, numbers) in zip(states, shared, strict=True):
            if state is first:
                numbers[:] = self.numbers(self._options(state.group), state.step + 1)
            elif state.step != first.step:
                raise ConfigError(
                    f"{self._name}: expected the counts of steps to go on together, as when it was recorded"
                )
        for state in states:
            state.step += 1
            state.param._owner._version += 1

        def take_back():
            for state in states:
                state.step -= 1

        return take_back

    def _options(self, group: Group) -> dict[str, Any]:
        """The options of a group as the kernel takes them: with -lr and -weight_decay the rules climb."""
        options = dict(group)
        if self.maximize:
            options |= {name: -options[name] for name in ("lr", "weight_decay") if name in options}
        return options

    def _gradient(self, state: ParameterState, grad: Any) -> np.ndarray:
        """The gradient, or the rows of it that there are, as a contiguous array, checked against the state."""
        param, gradient = state.param, grad._data
        if isinstance(grad, RowGradient) and not self.takes_rows:
            raise GradientError(f"{self._name}: expected dense gradients, got one by rows; use sparse=False")
        if grad.shape != state.shape:
            raise ShapeError(f"{self._name}: expected a gradient of shape {state.shape}, got {grad.shape}")
        if gradient.dtype != state.dtype or param._data.dtype != state.dtype:
            raise DtypeError(
                f"{self._name}: expected parameter and gradient {state.dtype}, got {param.dtype} and {gradient.dtype}"
            )
        return gradient if gradient.flags.c_contiguous else contiguous(param._kernels, gradient)

    # --- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """{"state": [{"step": n, name: array, ...} for each parameter], "param_groups": [options]}, all copies.

        In the groups, "params" holds the parameters' numbers. "maximize" is there if it is True.
        """
        self._outside_of_steps("state_dict")
        saved: list[dict[str, Any]] = []
        for state in self.states:
            arrays = [state.param._device.to_host(array).copy() for array in state.arrays]
            saved.append({"step": state.step, **dict(zip(self.state_names, arrays, strict=True))})
        groups = [
            group | {"params": [i for i, state in enumerate(self.states) if state.group is group]}
            for group in self.param_groups
        ]
        return {"state": saved, "param_groups": groups} | ({"maximize": True} if self.maximize else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state; everything is checked before anything is written.

        Raises CheckpointError if the groups, the options, or the shapes and dtypes of the arrays are not as here.
        """
        self._outside_of_steps("load_state_dict")
        try:
            expected, found = _layout(self.state_dict()), _layout(state)
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
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
        for own, new in zip(self.states, state["state"], strict=True):
            own.step = new["step"]
            for array, name in zip(own.arrays, self.state_names, strict=True):
                own.param._device.write(array, new[name])

    # --- checks and printing --------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _refusal(self, name: str) -> str | None:
        if name in ("maximize", "amsgrad"):
            return f"a new {self._name} with another {name}, got an attribute"
        if name in self.defaults and name not in self.__dict__:
            return f"an option of a group, got an attribute; set optimizer.param_groups[0][{name!r}]"
        return super()._refusal(name)

    def _check_options(self, group: Mapping[str, Any]) -> None:
        if unknown := group.keys() - self.defaults.keys() - {"params"}:
            known = ", ".join(self.defaults)
            raise ConfigError(f"{self._name}: expected options {known}, got {', '.join(sorted(map(str, unknown)))}")
        for option in [option for option in RANGES if option in group]:
            low, end = RANGES[option]
            values = group[option] if option in PAIRS else [group[option]]
            if not _all_in(values, low, end, n=1 + (option in PAIRS)):
                kind = "two numbers" if option in PAIRS else "a number"
                checks.refuse(self._name, f"{option} to be {kind} in [{low:g}, {end:g})", group[option])

    def _check_parameters(self, params: list[Tensor]) -> None:
        if not params:
            raise ConfigError(f"{self._name}: expected at least one parameter, got none")
        seen = {id(state.param) for state in self.states}
        for param in params:
            if not isinstance(param, Tensor):
                raise ConfigError(f"{self._name}: expected tensors, got {type(param).__name__}")
            if param.dtype in HALVES:
                raise DtypeError(
                    f"{self._name}: expected float32 or float64 parameters, got {param.dtype}, in which small "
                    "updates are lost; keep them float32, and compute in sn.precision or Trainer(precision=...)"
                )
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
            lines.append(
                f"{self._name}({len(group['params'])} parameters, {options}{', maximize=True' * self.maximize})"
            )
        return "\n".join(lines)


def _as_list(params: Any) -> list[Any]:
    return [params] if isinstance(params, Tensor | dict) else checks.items("optimizer", params, "parameters")


def _all_in(values: Any, low: float, end: float, n: int) -> bool:
    try:
        numbers = [checks.number("", value) for value in values]
    except (TypeError, ConfigError):
        return False
    return len(numbers) == n and all(low <= number < end for number in numbers)


def _layout(state: Mapping[str, Any]) -> dict[str, str]:
    """All that must be alike for one state dict to be loaded over another, by name."""
    layout = {"maximize": str(state.get("maximize", False))}
    for i, group in enumerate(state["param_groups"]):
        layout[f"options of group {i}"] = ", ".join(sorted(group))
        layout[f"parameters of group {i}"] = str(list(group["params"]))
    for i, values in enumerate(state["state"]):
        for name, value in values.items():
            if type(value) is int:
                what = "a count" if 0 <= value <= MOST_STEPS else "an integer that is below 0 or above 2**53"
            else:
                what = f"{value.dtype} {value.shape}"
            layout[f"{name} of parameter {i}"] = what
    return layout
