"""The record of a step that is being made a program: which kernels ran on which memory, and what Python did beside.

`jit` opens a Trace and runs the step once. Meanwhile tensors call kernels through `on(device)`, which runs and notes
them. What changes between steps without a kernel (counters of optimizers, streams of random numbers) says so with
`effect`, what must be checked again in every step with `guard`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors import JitError
from .kernels import Device
from .native.aligned import aligned

_current: ContextVar[Trace | None] = ContextVar("trace", default=None)
_PACKAGE = str(Path(__file__).parent)

Undo = Callable[[], None]


class Call(NamedTuple):
    """One kernel call."""

    kernel: str
    device: Device
    arguments: tuple

    def run(self) -> None:
        self.device.kernels[self.kernel](*self.arguments)

    def parts(self) -> list[Callable[[], None]]:
        """What a program calls one after the other: on a GPU launches, with the memory between them."""
        return [self.run] if self.device.is_host else self.device.launches(self.kernel, self.arguments)


class Guard(NamedTuple):
    """A condition on the values of an array; `check` raises what is to be said where it does not hold.

    kind, numbers: the kernel that looks, "in_range" with (low, high), or "finite" without any.
    """

    kind: str
    array: np.ndarray
    numbers: tuple[int, ...]
    check: Callable[[], Any]

    def run(self) -> None:
        self.check()

    def parts(self) -> list[Callable[[], None]]:
        return [self.run]


class Trace:
    """What a step did, in order. inputs: the arrays whose content is another one in each call."""

    def __init__(self, inputs: list[np.ndarray], generator: Any = None):
        self.generator = generator  # of random numbers, when the step began
        self.calls: list[Call | Guard] = []
        self.effects: list[Callable[[], Undo | None]] = []
        self.watched: dict[tuple[int, str], tuple[Any, Any]] = {}  # (object, value of the attribute) to rely on
        self.zeroed: dict[int, Any] = {}  # leaves whose gradient the step forgot before it looked at it
        self.touched: dict[int, tuple[Any, Any]] = {}  # leaves that got a gradient, and the one they had before
        self.consumed: set[int] = set()  # leaves that an optimizer updated
        self.owned: dict[int, np.ndarray] = {}  # memory that the step made, by id
        self.varying = {id(memory_of(x)): x for x in inputs}

    def on(self, device: Device) -> Device:
        """The device whose kernels are run and noted."""
        return _Recorder(device, self)  # type: ignore[return-value]

    def varies(self, array: np.ndarray) -> bool:
        """Is the content of `array` another one in each call?"""
        memory = id(memory_of(array))
        return memory in self.varying or memory in self.owned

    def watch(self, thing: Any, attribute: str) -> None:
        """The program holds only as long as `thing.attribute` is the object that it is now."""
        self.watched[id(thing), attribute] = thing, getattr(thing, attribute)


class _Recorder:
    """Stands in for a device: its kernels, run and noted; memory that it gives belongs to the trace."""

    def __init__(self, device: Device, trace: Trace):
        self._device, self._trace = device, trace
        self.name = device.name

    def empty(self, shape: Any, dtype: Any) -> np.ndarray:
        array = aligned(shape, dtype) if self.name == "cpu" else self._device.empty(shape, dtype)
        self._trace.owned[id(array)] = array
        return array

    def __getattr__(self, name: str) -> Callable[..., None]:
        kernel, trace, device = getattr(self._device, name), self._trace, self._device

        def record(*arguments: Any, **numbers: Any) -> None:
            kernel(*arguments, **numbers)
            trace.calls.append(Call(name, device, (*arguments, *numbers.values())))

        return record


def memory_of(array: np.ndarray) -> np.ndarray:
    """The array that owns the memory of a view."""
    while isinstance(array.base, np.ndarray) or type(array.base) is type(array):  # views on a GPU have bases too
        array = array.base
    return array


# --- what the rest of the package says to the trace, if there is one --------------------------------------------------


def current() -> Trace | None:
    """The trace that is being written in this thread."""
    return _current.get()


@contextlib.contextmanager
def writing(trace: Trace | None) -> Iterator[None]:
    """Inside, in this thread, what happens is noted in `trace`; with None, nothing is."""
    token = _current.set(trace)
    try:
        yield
    finally:
        _current.reset(token)


def active(device: Device) -> Device:
    """`device` itself, or what notes the calls of its kernels."""
    trace = _current.get()
    return device if trace is None else trace.on(device)


def watch(thing: Any, attribute: str) -> None:
    """The step relies on `thing.attribute`: with another value it is recorded again."""
    trace = _current.get()
    if trace is not None:
        trace.watch(thing, attribute)


def effect(action: Callable[[], Undo | None]) -> None:
    """Each call of the program runs `action` first; what it returns, if anything, undoes it where a guard fails."""
    trace = _current.get()
    if trace is not None:
        trace.effects.append(action)


def touch(leaf: Any) -> None:
    """The step looks at the gradient of `leaf`. One that was there before is an input: it is read from a copy."""
    trace = _current.get()
    if trace is None or id(leaf) in trace.touched:
        return
    if leaf.grad is not None and not trace.varies(leaf.grad._data):
        leaf.grad = leaf.grad.__deepcopy__({})
        trace.varying[id(leaf.grad._data)] = leaf.grad._data
        trace.touched[id(leaf)] = leaf, leaf.grad
    else:
        trace.touched[id(leaf)] = leaf, None


def updated(leaves: list[Any], count: Callable[[], Undo]) -> None:
    """An optimizer changed these leaves; `count` is what Python does beside in each step."""
    trace = _current.get()
    if trace is not None:
        trace.effects.append(count)
        for leaf in leaves:
            trace.consumed.add(id(leaf))
            trace.watch(leaf, "_data")


def zeroed(leaf: Any) -> None:
    """The gradient of `leaf` is forgotten."""
    trace = _current.get()
    if trace is not None and id(leaf) not in trace.touched:
        trace.zeroed[id(leaf)] = leaf


def guard(kind: str, array: np.ndarray, numbers: tuple[int, ...], check: Callable[[], Any]) -> None:
    """Each call of the program makes sure of this before it changes anything that outlives it."""
    trace = _current.get()
    if trace is not None and trace.varies(array):
        trace.calls.append(Guard(kind, array, numbers, check))


def refuse(what: str, array: np.ndarray, requires_grad: bool = False) -> None:
    """Raises JitError where a step that is recorded looks at a value that changes from call to call."""
    trace = _current.get()
    if trace is not None and (requires_grad or trace.varies(array)):
        raise JitError(
            f"{user_line()}: {what}: expected a step that does not look at the values of its tensors, because it is "
            "recorded once and replayed; return the tensor and look at it outside of the step"
        )


def user_line() -> str:
    """file:line of the innermost caller outside of this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_PACKAGE, "<")):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
