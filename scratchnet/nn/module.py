"""Module: a function with parameters. Parameters are the attributes of type Parameter, of the module and those in it.

There is no registry beside the attributes: what `parameters`, `state_dict` and the others find, they find by
walking `vars(module)`, in the order of assignment.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np

from .. import checks
from ..errors import CheckpointError, ConfigError, DtypeError, MissingMethodError, UnknownAttributeError
from ..hooks import RemovableHandle
from ..kernels import Device
from ..kernels.signatures import FLOATS as WIDE
from ..ops.operands import kept, overwrite
from ..row_gradient import RowGradient
from ..stateful import Stateful
from ..tensor import FLOATS, ArrayLike, Tensor
from . import module_hooks
from .table import table_of

T = TypeVar("T")


class Parameter(Tensor):
    """A tensor that training changes: a leaf that requires grad, in C-contiguous memory of its own.

    Arguments as for Tensor; the data are copied, because optimizers write into them.
    """

    __slots__ = ()

    def __init__(self, data: ArrayLike, requires_grad: bool = True, dtype: Any = None, device: str | None = None):
        super().__init__(data, requires_grad, dtype, device)
        self._data = kept(self._data, self._device)

    def __repr__(self) -> str:
        return "Parameter containing:\n" + super().__repr__()


class Buffer(Tensor):
    """A tensor of a module's state that is not trained, such as running statistics; the data are copied too."""

    __slots__ = ()

    def __init__(self, data: ArrayLike, dtype: Any = None, device: str | None = None):
        super().__init__(data, False, dtype, device)
        self._data = kept(self._data, self._device)


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict(strict=False)` passed over."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module(Stateful):
    """Base of all layers and models: assign Parameters and Modules to attributes, and write `forward`.

    >>> class Affine(Module):
    ...     def __init__(self, n):
    ...         self.scale, self.shift = Parameter(np.ones(n, np.float32)), Parameter(np.zeros(n, np.float32))
    ...     def forward(self, x):
    ...         return x * self.scale + self.shift

    Modules in a list or dict are not found; put them in a ModuleList or ModuleDict. A parameter or module that is
    reachable by two names counts once, under the first.
    """

    training: bool = True
    _hooks: tuple[Any, ...] = ()  # see module_hooks.py
    _arguments: Any = None  # those it was made with, if they are plain values: a saved model keeps them
    _fixed: tuple[str, ...] = ()  # arguments of the constructor that nothing reads afterwards: setting them is refused

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        module = super().__new__(cls)
        if all(map(_is_plain, (*args, *kwargs.values()))):
            vars(module)["_arguments"] = args, kwargs
        module._is_made()
        return module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes; each subclass writes its own."""
        raise MissingMethodError(f"{type(self).__name__}: expected a method forward, got none")

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        self._relies_on("training", "_hooks")
        if self._hooks:
            return module_hooks.call(self, args, kwargs)
        try:
            return self._forward(args, kwargs)
        except DtypeError:
            if (cast := _cast_for(self, args, kwargs)) is None:
                raise
        return self._forward(*cast)

    # --- attributes ---------------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        """Guards what is registered: `self.weight = self.weight * 2` would silently stop training it."""
        if name in self._fixed and not isinstance(value, Module):
            layer = type(self).__name__
            raise UnknownAttributeError(
                f"{layer}.{name}: expected a new {layer}, as its parts are made, got {value!r:.80}"
            )
        old = self.__dict__.get(name)
        if isinstance(old, Buffer) and type(value) is Tensor:
            value = Buffer(value, device=value.device)
        for kind in (Parameter, Buffer, Module):
            if isinstance(old, kind) and not (value is None or isinstance(value, kind)):
                raise ConfigError(
                    f"{type(self).__name__}.{name}: expected a {kind.__name__} or None, got {type(value).__name__}"
                )
        if type(value) is Tensor and value.requires_grad and value.is_leaf:  # it would not be trained
            remedy = "nn.Parameter(...) is trained, .detach() is not meant to be"
            checks.refuse(f"{type(self).__name__}.{name}", "a Parameter", value, remedy=remedy)
        self._sets(name)
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        self._sets(name)
        object.__delattr__(self, name)

    def register_buffer(self, name: str, data: ArrayLike | None) -> None:
        """Adds state that is saved and moved with the module but not trained; None keeps the name free for it."""
        self._register("register_buffer", name, None if data is None else Buffer(data))

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Adds a parameter, as setting the attribute does; None keeps the name free for one."""
        if param is not None:
            checks.instance("register_parameter", param, Parameter, "a Parameter or None", "write nn.Parameter(...)")
        self._register("register_parameter", name, param)

    def add_module(self, name: str, module: Module | None) -> None:
        """Adds a module inside, as setting the attribute does; None keeps the name free for one."""
        if module is not None:
            checks.instance("add_module", module, Module, "a module or None")
        self._register("add_module", name, module)

    register_module = add_module

    def _register(self, what: str, name: str, value: Any) -> None:
        if not isinstance(name, str) or not name.isidentifier() or hasattr(type(self), name):
            checks.refuse(what, "a new name that is a Python identifier", name)
        setattr(self, name, value)

    # --- what is inside -----------------------------------------------------------------------------------------

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """This module (named "") and all inside it, outer before inner, by dotted name."""
        seen: set[int] = set()

        def walk(name: str, module: Module) -> Iterator[tuple[str, Module]]:
            if id(module) in seen:
                return
            seen.add(id(module))
            yield name, module
            for key, value in vars(module).items():
                if isinstance(value, Module):
                    yield from walk(f"{name}.{key}" if name else key, value)

        return walk("", self)

    def _named(self, *kinds: type[T]) -> Iterator[tuple[str, T]]:
        """Attributes of some kinds, in this module and those inside, by dotted name; each object once."""
        seen: set[int] = set()
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, kinds) and id(value) not in seen:
                    seen.add(id(value))
                    yield (f"{path}.{name}" if path else name), value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter, by dotted name."""
        return self._named(Parameter)

    def named_buffers(self) -> Iterator[tuple[str, Buffer]]:
        """Every buffer, by dotted name."""
        return self._named(Buffer)

    def modules(self) -> Iterator[Module]:
        """This module and all inside it."""
        return (module for _, module in self.named_modules())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules one level below, by name; each once."""
        found: dict[int, tuple[str, Module]] = {}
        for name, value in vars(self).items():
            if isinstance(value, Module):
                found.setdefault(id(value), (name, value))
        return iter(found.values())

    def children(self) -> Iterator[Module]:
        """The modules one level below."""
        return (module for _, module in self.named_children())

    def get_submodule(self, target: str) -> Module:
        """The module with a dotted name, as `named_modules` gives it; "" is this one."""
        return self._at("get_submodule", target, Module)

    def get_parameter(self, target: str) -> Parameter:
        """The parameter with a dotted name, as `named_parameters` gives it."""
        return self._at("get_parameter", target, Parameter)

    def get_buffer(self, target: str) -> Buffer:
        """The buffer with a dotted name, as `named_buffers` gives it."""
        return self._at("get_buffer", target, Buffer)

    def _at(self, what: str, target: str, kind: type[T]) -> T:
        if not isinstance(target, str):
            checks.refuse(what, "a dotted name", target)
        found: Any = self
        for name in target.split(".") if target else ():
            found = vars(found).get(name) if isinstance(found, Module) else None
        if not isinstance(found, kind):
            raise UnknownAttributeError(
                f"{what}: expected the name of a {kind.__name__} in {type(self).__name__}, got {checks.shown(target)}"
            )
        return found

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter: what an optimizer wants."""
        return (parameter for _, parameter in self.named_parameters())

    def buffers(self) -> Iterator[Buffer]:
        """Every buffer."""
        return (buffer for _, buffer in self.named_buffers())

    # --- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters and buffers as NumPy arrays, by dotted name."""
        self._outside_of_steps("state_dict")
        return {name: t._device.to_host(t._data).copy() for name, t in self._named(Parameter, Buffer)}

    def load_state_dict(self, state: Mapping[str, ArrayLike], strict: bool = True) -> IncompatibleKeys:
        """Writes saved arrays into the parameters and buffers; everything is checked before anything is written.

        strict: names must match one to one; without it, what is missing or unexpected is passed over and returned.

        Raises CheckpointError naming what is missing, unexpected, or of another shape or dtype.
        """
        self._outside_of_steps("load_state_dict")
        strict = checks.flag("load_state_dict: strict", strict)
        if not isinstance(state, Mapping):
            raise CheckpointError(f"{type(self).__name__}: expected a state dict, got {checks.shown(state)}")
        if any(type(value).__module__.partition(".")[0] == "torch" for value in state.values()):
            raise CheckpointError(
                f"{type(self).__name__}: expected arrays, a weight of Linear as (in, out), got PyTorch tensors, where "
                "it is (out, in); scratchnet.pytorch.load_state_dict(model, state) converts them"
            )
        own: dict[str, Tensor] = dict(self._named(Parameter, Buffer))
        new = {}
        for k in [k for k in own if k in state]:
            value = state[k]
            new[k] = value.detach().numpy() if isinstance(value, Tensor) else checks.array(f"state dict: {k}", value)
        missing, unexpected = [k for k in own if k not in state], [k for k in state if k not in own]
        problems = []
        if strict and missing:
            problems.append(f"missing {', '.join(missing)}")
        if strict and unexpected:
            problems.append(f"unexpected {', '.join(map(str, unexpected))}")
        for k, value in new.items():
            if (value.shape, value.dtype) != (own[k].shape, own[k].dtype):
                problems.append(f"{k}: expected {own[k].dtype} {own[k].shape}, got {value.dtype} {value.shape}")
        if problems:
            raise CheckpointError(f"{type(self).__name__}: state dict does not fit: {'; '.join(problems)}")
        for k, value in new.items():
            overwrite(own[k], value)
        return IncompatibleKeys(missing, unexpected)

    # --- modes --------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Sets `training` here and inside: dropout drops, batch norm uses the batch's statistics."""
        mode = checks.flag("train: mode", mode)
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Evaluation mode: `train(False)`."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freezes parameters, or lets them train again."""
        wanted = checks.flag("requires_grad_", requires_grad)
        for parameter in self.parameters():
            parameter.requires_grad = wanted
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients of all parameters, or with set_to_none=False fills those that are there with 0."""
        for parameter in self.parameters():
            parameter.zero_grad(set_to_none)

    def to(self, device: str | None = None, dtype: Any = None) -> Self:
        """Moves parameters and buffers to a device, or float ones to a float dtype, with their gradients.

        Do it before the optimizer is made: its state stays where it was.
        Raises DeviceError, or ConfigError for a dtype that is no float.
        """
        self._outside_of_steps("to")
        if dtype is not None and checks.dtype("to", dtype) not in FLOATS:
            raise ConfigError(f"to: expected {', '.join(map(str, FLOATS))}, got {np.dtype(dtype)}")
        for _, t in self._named(Parameter, Buffer):
            self._sets("_data")
            t._data, t._device = _converted(t, device, dtype)
            if isinstance(t._grad, Tensor):
                t._grad = Tensor._wrap(*_converted(t._grad, device, dtype))
            elif isinstance(t._grad, RowGradient):
                t._grad = t._grad.map(lambda values: Tensor._wrap(*_converted(values, device, dtype)))
            t._version += 1
        return self

    def float(self) -> Self:
        """Parameters and buffers of floats as float32."""
        return self.to(dtype=np.float32)

    def double(self) -> Self:
        """Parameters and buffers of floats as float64."""
        return self.to(dtype=np.float64)

    def cpu(self) -> Self:
        """Moved to the device "cpu"."""
        return self.to("cpu")

    def cuda(self) -> Self:
        """Moved to the device "cuda"."""
        return self.to("cuda")

    def apply(self, fn: Callable[[Module], Any]) -> Self:
        """Calls fn on every module inside, inner before outer, and on this one."""
        checks.function("apply", fn)
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    # --- hooks --------------------------------------------------------------------------------------------------

    def register_forward_pre_hook(self, hook: Callable[[Module, tuple], Any]) -> RemovableHandle:
        """Calls hook(module, args) before `forward`; what it returns, if not None, takes the place of the arguments."""
        return module_hooks.registered(self, "register_forward_pre_hook", "before", hook)

    def register_forward_hook(self, hook: Callable[[Module, tuple, Any], Any]) -> RemovableHandle:
        """Calls hook(module, args, output) after `forward`; what it returns, if not None, takes the output's place."""
        return module_hooks.registered(self, "register_forward_hook", "after", hook)

    def register_full_backward_hook(self, hook: Callable[[Module, tuple, tuple], Any]) -> RemovableHandle:
        """Calls hook(module, grad_input, grad_output) when a backward pass has both.

        The gradients are tuples: one a positional argument, None for those that want none; and that of the output.
        What the hook returns, if not None, takes the place of grad_input. The module takes one tensor that requires
        grad, and returns one tensor. Raises ConfigError, when it is called, for others.
        """
        return module_hooks.registered(self, "register_full_backward_hook", "backward", hook)

    # --- printing -----------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """What stands in the brackets when the module is printed."""
        return ""

    def __repr__(self) -> str:
        lines = [f"({name}): {value!r}" for name, value in vars(self).items() if isinstance(value, Module)]
        if not lines:
            return f"{type(self).__name__}({self.extra_repr()})"
        inside = "\n".join([self.extra_repr()] * bool(self.extra_repr()) + lines)
        return f"{type(self).__name__}(\n  " + inside.replace("\n", "\n  ") + "\n)"

    def _repr_html_(self) -> str:
        return table_of(self)


def _cast_for(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
    """The arguments with floats in the type of the module's own parameters; None if they have it. A warning says so.

    Data come as float64 from NumPy and pandas. Ops refuse two float types; a layer knows which one is meant,
    but for halves.
    """
    own = {value.dtype for value in vars(module).values() if isinstance(value, Parameter)}
    others = {x.dtype for x in (*args, *kwargs.values()) if isinstance(x, Tensor | np.ndarray) and x.dtype in WIDE}
    if len(own) != 1 or not others - own or not own <= {*WIDE}:
        return None
    (dtype,), (other, *_) = own, sorted(others - own, key=str)

    def cast(x: Any) -> Any:
        return x.astype(dtype) if isinstance(x, Tensor | np.ndarray) and x.dtype in WIDE else x

    warnings.warn(
        f"{type(module).__name__}: its input is {other} and its parameters are {dtype}, so the input is cast to "
        f"{dtype}; x.astype('{dtype}') says that this is meant",
        stacklevel=3,
    )
    return tuple(map(cast, args)), {name: cast(x) for name, x in kwargs.items()}


def _is_plain(value: Any) -> bool:
    """Is it a value that a file can hold?"""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | np.integer | np.floating)


class FunctionModule(Module):
    """Base of activations and losses: calls a function that a subclass names in its head.

    The arguments of the function that have a default are attributes here.
    """

    _function: Callable[..., Tensor]
    _options: dict[str, Any]

    def __init_subclass__(cls, function: Callable[..., Tensor] | None = None, **others: Any):
        super().__init_subclass__(**others)
        if function is not None:
            cls._function = staticmethod(function)
            parameters = inspect.signature(function).parameters.values()
            cls._options = {p.name: p.default for p in parameters if p.default is not p.empty}

    def forward(self, *inputs: ArrayLike) -> Tensor:
        return self._function(*inputs, **{name: getattr(self, name) for name in self._options})

    def extra_repr(self) -> str:
        """The options that are not the function's defaults."""
        changed = []
        for name, default in self._options.items():
            value = getattr(self, name)
            if isinstance(value, Tensor) or value != default:
                changed.append(f"{name}={list(value.shape) if isinstance(value, Tensor) else value!r}")
        return ", ".join(changed)


def _converted(t: Tensor, device: str | None, dtype: Any) -> tuple[np.ndarray, Device]:
    t = t.detach().to(t.device if device is None else device)
    if dtype is not None and t.dtype in FLOATS:
        t = t.astype(dtype)
    return t._data, t._device
