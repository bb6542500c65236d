"""The trace of a step: which kernels ran on which memory, and what Python did beside. It hangs in tracing.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import JitError
from ..kernels import Device
from ..native.aligned import aligned
from ..tensor import Tensor
from ..tracing import Tracing, Undo

_PACKAGE = str(Path(__file__).parent.parent)


class Call(NamedTuple):
    """One kernel call."""

    kernel: str
    device: Device
    arguments: tuple

    @property
    def arrays(self) -> list[np.ndarray]:
        return [x for x in self.arguments if isinstance(x, np.ndarray)]

    def run(self) -> None:
        self.device.kernels[self.kernel](*self.arguments)

    def parts(self) -> list[Callable[[], None]]:
        """What a program calls one after the other: on a GPU launches, with the memory between them."""
        return [self.run] if self.device.is_host else self.device.launches(self.kernel, self.arguments)


class Guard(NamedTuple):
    """A condition on the values of an array; `check` raises the error to report where it does not hold.

    kind, numbers: the compiled check, "in_range" with (low, high), or "finite" without any.
    """

    kind: str
    array: np.ndarray
    numbers: tuple[int, ...]
    check: Callable[[], Any]

    @property
    def arrays(self) -> list[np.ndarray]:
        return [self.array]

    def parts(self) -> list[Callable[[], None]]:
        return [self.check]


class Trace(Tracing):
    """What a step did, in order. inputs: the arrays whose content is another one in each call."""

    def __init__(self, inputs: list[np.ndarray], generator: Any = None):
        self.generator = generator
        self.calls: list[Call | Guard] = []
        self.effects: list[Callable[[], Undo | None]] = []
        self.watched: dict[tuple[int, str], tuple[Any, Any]] = {}  # (object, value of the attribute) to rely on
        self.forgotten: dict[int, Any] = {}  # leaves whose gradient the step forgot before it looked at it
        self.touched: dict[int, tuple[Any, Any]] = {}  # leaves that got a gradient, and the one they had before
        self.consumed: set[int] = set()  # leaves that an optimizer updated
        self.owned: dict[int, np.ndarray] = {}  # memory that the step made, by id
        self.varying = {id(memory_of(x)): x for x in inputs}

    def owns(self, array: np.ndarray) -> bool:
        """Did the step make the memory of `array`?"""
        return id(memory_of(array)) in self.owned

    def varies(self, array: np.ndarray) -> bool:
        """Is the content of `array` another one in each call?"""
        return id(memory_of(array)) in self.varying or self.owns(array)

    # --- the verbs --------------------------------------------------------------------------------------------------

    def on(self, device: Device, inputs: tuple[Any, ...] = ()) -> Device:
        """The device whose kernels are run and noted. Parameters and buffers are read where they lie now."""
        for t in inputs:
            if t._node is None and (t.requires_grad or type(t) is not Tensor):
                self.watch(t, "_data")
        return _Recorder(device, self)  # type: ignore[return-value]

    def watch(self, thing: Any, attribute: str) -> None:
        self.watched[id(thing), attribute] = thing, getattr(thing, attribute)

    def unwatch(self, thing: Any, attribute: str) -> None:
        self.watched.pop((id(thing), attribute), None)

    def effect(self, action: Callable[[], Undo | None]) -> None:
        self.effects.append(action)

    def touch(self, leaf: Any) -> None:
        """A gradient that was there before the step is an input: it is read from a copy."""
        if id(leaf) in self.touched:
            return
        before = None
        if leaf.grad is not None and not self.varies(leaf.grad._data):
            before = leaf.grad = leaf.grad.__deepcopy__({})
            self.varying[id(before._data)] = before._data
        self.touched[id(leaf)] = leaf, before

    def updated(self, leaf: Any) -> None:
        self.consumed.add(id(leaf))
        self.watch(leaf, "_data")

    def zeroed(self, leaf: Any) -> None:
        if id(leaf) not in self.touched:
            self.forgotten[id(leaf)] = leaf

    def guard(self, kind: str, array: np.ndarray, numbers: tuple[int, ...], check: Callable[[], Any]) -> None:
        if self.varies(array):
            self.calls.append(Guard(kind, array, numbers, check))

    def refuse(self, what: str, array: np.ndarray, requires_grad: bool = False) -> None:
        if requires_grad or self.varies(array):
            raise JitError(
                f"{_user_line()}: {what}: expected a step that does not look at the values of its tensors, because it "
                "is recorded once and replayed; return the tensor and look at it outside of the step"
            )


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


def _user_line() -> str:
    """file:line of the innermost caller outside of this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_PACKAGE, "<")):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
