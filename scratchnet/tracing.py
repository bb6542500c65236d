"""The hook under `jit`: what lower layers say while a step runs, so that somebody may make a program of it.

jit hangs a recorder in (jit/trace.py) and runs the step once. Meanwhile ops call kernels through `on`, which runs and
notes them; what a step reads and changes beside its kernels is said with the other verbs. Without a recorder, which is
the usual case, a Tracing hangs here that lets all of it pass. The export of models has a recorder, too
(formats/onnx/trace.py): it needs the rows of the op table that ran, and no kernels.
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

    def run(self, op: Any, device: Device, inputs: tuple[Any, ...], params: dict[str, Any]) -> np.ndarray:
        """The forward of a row of the op table."""
        return op.forward(device, *[t._data for t in inputs], **params)

    def forward(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a module computes."""
        return module.forward(*args, **kwargs)

    def given(self, x: Any) -> Any:
        """The array behind an argument of the step; any other x as it is."""
        return x

    def varies(self, array: Any) -> bool:
        """Is the content of `array` another one in each call of the step?"""
        return False

    def watch(self, thing: Any, *attributes: str) -> None:
        """The step relies on these attributes: with another object in one of them it is recorded again."""

    def watch_item(self, holder: dict, key: Any) -> None:
        """The step relies on an item of a dictionary, too."""

    def unwatch(self, thing: Any, attribute: str) -> None:
        """It does not rely on it after all."""

    def makes(self, thing: Any) -> None:
        """`thing` is new; it does not outlive the step, unless something that does is set to it."""

    def writes(self, thing: Any, attribute: str) -> None:
        """The step is about to set `thing.attribute`, which outlives it; a replay does not."""

    def effect(self, action: Callable[[], Undo | None], fills: tuple[np.ndarray, ...] = ()) -> None:
        """Each replay runs `action` first; what it returns, if anything, undoes it where a guard fails.

        fills: arrays that it writes for kernels to read.
        """

    def touch(self, leaf: Any) -> None:
        """The step looks at the gradient of `leaf`."""

    def updated(self, leaf: Any) -> None:
        """An optimizer wrote over `leaf`, and its gradient is used up."""

    def zeroed(self, leaf: Any) -> None:
        """The gradient of `leaf` is forgotten."""

    def guard(self, kind: str, array: np.ndarray, numbers: tuple[int, ...], check: Callable[[], Any]) -> None:
        """Each replay makes sure of a condition on `array` before it changes anything that outlives it; see Guard."""

    def fails(self, what: str) -> None:
        """An error follows, because of the values of an argument. A step that catches it looks at them."""

    def refuse(self, what: str) -> None:
        """The step does what a replay could not: it looks at a value, or changes one. Raises JitError."""


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
