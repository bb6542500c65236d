"""Hooks: functions of the user's that are called with a gradient when the backward pass has it.

A hook is Python that may do anything, so a step that calls one is not recorded: `sn.jit` refuses it in one line, and
Trainer runs it plainly. Hooks of modules stand in nn/module_hooks.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import checks, tracing
from .errors import GradientError, ShapeError
from .ops.operands import TensorBase
from .row_gradient import RowGradient
from .stateful import count_change

Hook = Callable[[Any], Any]


class RemovableHandle:
    """What registering a hook returns: `remove()` takes it back, as does the end of a `with` block."""

    def __init__(self, holder: Any, attribute: str, entry: Any):
        self._holder, self._attribute, self._entry = holder, attribute, entry
        self._set((*getattr(holder, attribute), entry))

    def _set(self, entries: tuple[Any, ...]) -> None:
        setattr(self._holder, self._attribute, entries)
        count_change()

    def remove(self) -> None:
        """Takes the hook back; a second call does nothing."""
        self._set(tuple([entry for entry in getattr(self._holder, self._attribute) if entry is not self._entry]))

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.remove()


RETAINED = "retained gradient"


class Entry:
    """A hook that was registered; the same function may be twice."""

    def __init__(self, function: Hook, kind: str = "gradient"):
        self.function, self.kind = function, kind


def run(entries: tuple[Entry, ...], g: Any) -> Any:
    """The gradient after the hooks of a tensor, which may replace it."""
    if not entries:
        return g
    if isinstance(g, RowGradient):
        raise GradientError("register_hook: expected a dense gradient, got one by rows; use sparse=False, or no hook")
    for entry in sorted(entries, key=lambda entry: entry.kind == RETAINED):  # which sees what the others made of it
        tracing.current().refuse("a hook on a gradient")
        result = entry.function(g)
        if result is None:
            continue
        if not isinstance(result, TensorBase):
            checks.refuse("register_hook", "a hook that returns a Tensor or None", result, GradientError)
        if (result._data.shape, result._data.dtype) != (g.shape, g.dtype):
            was, came = f"{g.dtype} {g.shape}", f"{result._data.dtype} {result._data.shape}"
            raise ShapeError(f"register_hook: expected a gradient of {was} from the hook, got {came}")
        g = result
    return g


def register_hook(self: Any, hook: Hook) -> RemovableHandle:
    """Calls hook(gradient) whenever a backward pass has the gradient of this tensor, before it is passed on.

    What the hook returns, if not None, takes the gradient's place. Raises GradientError for a tensor without gradient.
    """
    checks.function("register_hook", hook)
    if not self.requires_grad:
        raise GradientError("register_hook: expected a tensor that requires grad, got one that does not")
    return _registered(self, Entry(hook))


def _registered(tensor: Any, entry: Entry) -> RemovableHandle:
    tracing.current().refuse("register_hook")
    holder = (tensor, "_hooks") if tensor._node is None else (tensor._node, "hooks")
    return RemovableHandle(*holder, entry)


def retain_grad(self: Any) -> None:
    """Lets backward passes fill `.grad` of this result of an op, too, after all its hooks; a leaf has it anyway."""
    if not self.requires_grad:
        raise GradientError("retain_grad: expected a tensor that requires grad, got one that does not")
    if self._node is None:
        return

    def keep(g: Any) -> None:
        self.grad = g if self.grad is None else self.grad + g

    if all(entry.kind != RETAINED for entry in self._node.hooks):
        _registered(self, Entry(keep, RETAINED))
