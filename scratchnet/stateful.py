"""Stateful: the base of what belongs to a step beside its tensors: modules, optimizers, schedules, random generators.

A step reads Python values of such an object (the mode of a module) and changes some (the count of an optimizer). A step
that is replayed without Python must know both. The base class passes them on, so that `nn` and `optim` import neither
jit nor its hook; tensors do the same for memory and gradients (`_kernels`, `_read_grad` and `_updated`).
"""

from __future__ import annotations

from collections.abc import Callable

from . import tracing
from .tracing import Undo


class Stateful:
    """An object whose Python values a step reads and changes."""

    def _relies_on(self, attribute: str) -> None:
        """This step holds only as long as the attribute is the object that it is now."""
        tracing.current().watch(self, attribute)

    def _repeats(self, action: Callable[[], Undo | None]) -> None:
        """Each replay of this step runs `action` first; what it returns, if anything, undoes it."""
        tracing.current().effect(action)
