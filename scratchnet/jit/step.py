"""The decorator: which program serves a call, and how arguments and results pass through it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import random, tracing
from ..errors import JitError
from ..grad_mode import is_recording
from ..tensor import Tensor
from .explain import explain
from .program import Outputs, Program, give_back
from .trace import Trace


class Step:
    """A function that is recorded once for each kind of arguments, and then replayed. Made by `jit`.

    outputs: see `Outputs`.
    """

    def __init__(self, function: Callable[..., Any], outputs: Outputs | None = None):
        functools.update_wrapper(self, function)
        self.function, self.outputs = function, outputs
        self._programs: dict[Any, list[_Recorded]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(tracing.current(), Trace):  # a step within a step is a part of it
            return self.function(*args, **kwargs)
        arrays: list[np.ndarray] = []
        key = (*[_key(value, arrays) for value in args], _key(kwargs, arrays) if kwargs else None, is_recording())
        for recorded in self._programs.get(key, ()):
            if recorded.holds():
                return recorded.replay(arrays)
        recorded, result = _record(self.function, args, kwargs, arrays, self.outputs)
        self._programs.setdefault(key, []).append(recorded)
        return result

    @property
    def programs(self) -> list[Program]:
        """Every program recorded so far."""
        return [recorded.program for found in self._programs.values() for recorded in found]

    def explain(self) -> str:
        """The newest program as text: what was recorded, what is run, how long each stage takes."""
        if not self._programs:
            raise JitError("explain: expected a step that was called at least once, got one without a program")
        return explain(self.programs[-1])


def jit(step: Callable[..., Any]) -> Step:
    """Records a training step in its first call, and replays it as one compiled program in all later ones.

        @sn.jit
        def step(x, y):
            optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

    Arguments: tensors and arrays may have other values in each call; with other shapes or dtypes, or another value of
    any other argument, the step is recorded again, and so it is if a module went from train to eval mode. All else
    that Python does in the step (conditions, attributes, numbers) stays as it was in the first call, but for the
    counters of optimizers and schedules and for random numbers, which go on. Results are tensors of their own, without
    a record. `.grad` of a parameter whose gradient is forgotten at the start and used by the optimizer is None
    afterwards; other gradients are as always. Bits are those of the step without jit.

    Raises JitError, which names the line, where the step looks at a value of a tensor; then it is not recorded.
    """
    return Step(step)


class _Recorded:
    """A program, the results of the step, and what becomes of gradients."""

    def __init__(self, program: Program, result: Any, gradients: list[_Gradient]):
        self.program, self.result, self.gradients = program, result, gradients
        self.looked_at = [gradient for gradient in gradients if not gradient.zeroed]

    def holds(self) -> bool:
        return self.program.holds() and all(gradient.holds() for gradient in self.looked_at)

    def replay(self, arrays: list[np.ndarray]) -> Any:
        for gradient in self.looked_at:
            gradient.before()
        self.program.run(arrays)
        for gradient in self.gradients:
            gradient.after()
        return _copied(self.result)


class _Gradient:
    """The gradient of one leaf before and after the step: arrays of the trace, or None.

    read: the step added to the gradient that was there. dropped: nobody needs the one that it leaves.
    """

    def __init__(self, leaf: Tensor, old: Tensor | None, zeroed: bool, dropped: bool):
        self.leaf, self.zeroed = leaf, zeroed
        self.read = None if zeroed or old is None else old._data
        self.left = None if dropped or leaf.grad is None else leaf.grad._data
        if dropped:
            leaf.grad = None

    def holds(self) -> bool:
        grad = self.leaf.grad
        return (grad is None) if self.read is None else (grad is not None and grad.shape == self.read.shape)

    def before(self) -> None:
        if self.read is not None and self.leaf.grad is not None:
            self.leaf._device.copy(self.leaf.grad._data, self.read)

    def after(self) -> None:
        self.leaf.grad = None if self.left is None else Tensor._wrap(self.left.copy(), self.leaf._device)


def _record(
    function: Callable[..., Any], args: tuple, kwargs: dict, arrays: list[np.ndarray], outputs: Outputs | None
) -> tuple[_Recorded, Any]:
    """Runs the step and makes a program of it; also the result."""
    inputs = [x.copy() for x in arrays]
    copies = iter(inputs)

    def replaced(x: Any) -> Any:
        return Tensor._wrap(next(copies), x._device) if isinstance(x, Tensor) else next(copies)

    args, kwargs = _mapped(args, replaced), _mapped(kwargs, replaced)
    trace = Trace(inputs, random.current())
    with tracing.into(trace):
        result = function(*args, **kwargs)
    give_back(arrays, inputs)
    gradients = []
    for key, (leaf, old) in trace.touched.items():
        zeroed = key in trace.forgotten
        gradients.append(_Gradient(leaf, old, zeroed, dropped=zeroed and key in trace.consumed))
    for leaf in trace.forgotten.values():
        if id(leaf) not in trace.touched:
            gradients.append(_Gradient(leaf, None, True, dropped=False))
    kept = [g.left for g in gradients if g.left is not None]
    _mapped(result, lambda x: kept.append(x._data) if isinstance(x, Tensor) else None)
    program = Program(trace, inputs, kept, outputs)
    recorded = _Recorded(program, result, gradients)
    result = _copied(result)
    for gradient in gradients:
        gradient.after()
    return recorded, result


# --- arguments and results: tensors, arrays, and tuples, lists and dictionaries of them -------------------------------


def _key(value: Any, arrays: list[np.ndarray]) -> Any:
    """What a program depends on beside the content of arrays; those are added to `arrays`."""
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise JitError("jit: expected arguments that do not require grad: no gradient comes out of a recorded step")
        arrays.append(value._data)
        return value._data.shape, value._data.dtype, value._device
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return np.ndarray, value.shape, value.dtype
    if isinstance(value, tuple | list):
        return type(value), tuple([_key(item, arrays) for item in value])
    if isinstance(value, dict):
        return dict, tuple([(name, _key(item, arrays)) for name, item in value.items()])
    try:
        hash(value)
    except TypeError:
        raise JitError(f"jit: expected tensors, arrays or hashable values, got {type(value).__name__}") from None
    return type(value), value


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same with other tensors and arrays in it."""
    if isinstance(value, Tensor | np.ndarray):
        return change(value)
    if isinstance(value, tuple | list):
        return type(value)([_mapped(item, change) for item in value])
    if isinstance(value, dict):
        return {name: _mapped(item, change) for name, item in value.items()}
    return value


def _copied(result: Any) -> Any:
    """The result with tensors of their own, without a record."""
    return _mapped(result, lambda x: Tensor._wrap(x._data.copy(), x._device) if isinstance(x, Tensor) else x)
