"""Stateful: the base of what belongs to a step beside its tensors: modules, optimizers, schedules, random generators.

A step reads Python values of such an object (the mode of a module) and changes some (the count of an optimizer). A step
that is replayed without Python must know both. The base class passes them on, so that `nn` and `optim` import neither
jit nor its hook; tensors do the same for memory and gradients (`_kernels`, `grad` and `_updated`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import tracing
from .tracing import Undo


class Stateful:
    """An object whose Python values a step reads and changes."""

    def _relies_on(self, *attributes: str) -> None:
        """This step holds only as long as each attribute is the object that it is now."""
        tracing.current().watch(self, *attributes)

    def _relies_on_item(self, holder: dict, key: Any) -> None:
        """The same of an item of a dictionary."""
        tracing.current().watch_item(holder, key)

    def _repeats(self, action: Callable[[], Undo | None], fills: tuple[np.ndarray, ...] = ()) -> None:
        """Each replay of this step runs `action` first; what it returns, if anything, undoes it.

        fills: arrays that it writes, for kernels to read.
        """
        tracing.current().effect(action, fills)

    def _forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The object's method `forward`; who records what models compute may take the call as one."""
        return tracing.current().forward(self, args, kwargs)

    def _is_made(self) -> None:
        """The object is new; a step that makes one may do with it what it likes."""
        tracing.current().makes(self)

    def _sets(self, attribute: str) -> None:
        """The attribute is about to be set, to a value that some step may rely on."""
        count_change()
        tracing.current().writes(self, attribute)

    def _outside_of_steps(self, what: str) -> None:
        """`what` is not for a step that is replayed. Raises JitError in one."""
        tracing.current().refuse(what)


_changes = [0]


def count_change() -> None:
    """Something was set that a step may rely on."""
    _changes[0] += 1


def changes() -> int:
    """How often an attribute was set, of any object that says so."""
    return _changes[0]
