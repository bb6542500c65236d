"""The hook under `jit`: what lower layers say while a step runs, so that somebody may make a program of it.

jit hangs a recorder in (jit/trace.py, the only one) and runs the step once. Meanwhile ops call kernels through `on`,
which runs and notes them; what a step reads and changes beside its kernels is said with the other verbs. Without a
recorder, which is the usual case, a Tracing hangs here that lets all of it pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np

from .kernels import Device

Undo = Callable[[], None]


class Tracing:
    """The verbs. This one, which is there when no step is recorded, does nothing."""

    generator: Any = None  # of random numbers, when the step began

    def on(self, device: Device, inputs: tuple[Any, ...] = ()) -> Device:
        """The device to call kernels of. inputs: the tensors whose memory they read."""
        return device

    def watch(self, thing: Any, attribute: str) -> None:
        """The step relies on `thing.attribute`: with another object there it is recorded again."""

    def unwatch(self, thing: Any, attribute: str) -> None:
        """It does not rely on it after all."""

    def effect(self, action: Callable[[], Undo | None]) -> None:
        """Each replay runs `action` first; what it returns, if anything, undoes it where a guard fails."""

    def touch(self, leaf: Any) -> None:
        """The step looks at the gradient of `leaf`."""

    def updated(self, leaf: Any) -> None:
        """An optimizer wrote over `leaf`, and its gradient is used up."""

    def zeroed(self, leaf: Any) -> None:
        """The gradient of `leaf` is forgotten."""

    def guard(self, kind: str, array: np.ndarray, numbers: tuple[int, ...], check: Callable[[], Any]) -> None:
        """Each replay makes sure of a condition on `array` before it changes anything that outlives it; see Guard."""

    def refuse(self, what: str, array: np.ndarray, requires_grad: bool = False) -> None:
        """A step looks at a value. Raises JitError if it changes from call to call."""


_NOTHING = Tracing()
_current: ContextVar[Tracing] = ContextVar("tracing", default=_NOTHING)
current = _current.get  # the recorder of this thread; a plain Tracing if there is none


def active(device: Device) -> Device:
    """The device to call kernels of."""
    return current().on(device)


@contextlib.contextmanager
def into(recorder: Tracing) -> Iterator[None]:
    """Inside, in this thread, `recorder` hears what happens."""
    token = _current.set(recorder)
    try:
        yield
    finally:
        _current.reset(token)
