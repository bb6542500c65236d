"""Hooks of modules: functions of the user's that are called before or after `forward`, or with gradients."""

from __future__ import annotations

from typing import Any

from .. import checks, hooks
from ..errors import ConfigError
from ..grad_mode import is_recording
from ..tensor import Tensor


def call(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """module.forward with the module's hooks around it."""
    module._outside_of_steps(f"a hook of {type(module).__name__}")
    of = {kind: [e.function for e in module._hooks if e.kind == kind] for kind in ("before", "after", "backward")}
    for hook in of["before"]:
        if (changed := hook(module, args)) is not None:
            args = changed if isinstance(changed, tuple) else (changed,)
    watch = _Gradients(module, of["backward"]) if of["backward"] and is_recording() else None
    output = module._forward(args if watch is None else watch.inputs(args), kwargs)
    for hook in of["after"]:
        if (changed := hook(module, args, output)) is not None:
            output = changed
    return output if watch is None else watch.output(output)


class _Gradients:
    """One call of a module: catches the gradients of its output and of its input for the hooks."""

    def __init__(self, module: Any, functions: list[Any]):
        self.module, self.functions = module, functions
        self.given: tuple[Any, ...] = ()
        self.wanted: list[int] = []  # positions of the inputs that want a gradient
        self.of_output: Any = None

    def inputs(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments, the one that wants a gradient as a tensor of its own, for this call's part of it alone."""
        self.given = args
        self.wanted = [i for i, x in enumerate(args) if isinstance(x, Tensor) and x.requires_grad]
        if len(self.wanted) > 1:
            raise ConfigError(
                f"register_full_backward_hook: expected a {type(self.module).__name__} of one tensor that requires "
                f"grad, got {len(self.wanted)}; use Tensor.register_hook"
            )
        own = list(args)
        for i in self.wanted:
            own[i] = args[i].reshape(args[i].shape)
            own[i].register_hook(self._of_input)
        return tuple(own)

    def output(self, y: Any) -> Any:
        """The output, watched."""
        if not isinstance(y, Tensor):
            what = f"a {type(self.module).__name__} that returns one tensor, got {type(y).__name__}"
            raise ConfigError(f"register_full_backward_hook: expected {what}; use Tensor.register_hook")
        if y.requires_grad:
            y = y.reshape(y.shape)
            y.register_hook(self._of_output)
        return y

    def _of_output(self, g: Tensor) -> None:
        self.of_output = g
        if not self.wanted:
            self._call(None)

    def _of_input(self, g: Tensor) -> Tensor:
        return self._call(g)

    def _call(self, g: Tensor | None) -> Any:
        for function in self.functions:
            gradients = tuple([g if i in self.wanted else None for i in range(len(self.given))])
            changed = function(self.module, gradients, (self.of_output,))
            if changed is not None:
                g = changed[self.wanted[0]] if isinstance(changed, tuple) and self.wanted else changed
        return g


def registered(module: Any, name: str, kind: str, hook: Any) -> hooks.RemovableHandle:
    """Adds a hook to a module."""
    checks.function(name, hook)
    module._outside_of_steps(name)
    return hooks.RemovableHandle(module, "_hooks", hooks.Entry(hook, kind))
