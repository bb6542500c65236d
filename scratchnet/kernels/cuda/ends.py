"""What becomes of an element before it is written: itself, an activation of it, or the update of a weight by it.

A program hands an end to the kernel that computes the element (fusion.py), and saves a launch and a way to memory and
back. The arithmetic is that of the kernels on their own, and so are the bits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ..scalars import kernels_of
from .compile import device
from .optim import updates
from .scalars import scalars


class End(NamedTuple):
    """name: of an elementwise kernel or of an optimizer; None: elements are written as they are.

    more: the other arrays that it reads or writes. numbers: the constants of an update. beside: the arrays of the same
    update for a bias, whose gradient is the sum over the rows of the second factor.
    """

    name: str | None = None
    more: tuple = ()
    numbers: Any = None
    beside: tuple = ()

    def arguments(self, out: Any) -> tuple:
        """(more, numbers) as a kernel takes them, whatever it reads of them."""
        return self.more or (out,), (out.dtype.type(0),) if self.numbers is None else self.numbers


PLAIN = End()


@cache
def ending(name: str | None, dtype: np.dtype) -> Callable:
    """end(value, at, out, more, numbers): does with element `at`, which is `value`, what there is to do."""
    if name is None:

        @device
        def store(value, at, out, more, numbers):
            out[at] = value

        return store
    if name in updates(dtype):
        update = updates(dtype)[name]

        @device
        def advance(value, at, out, more, numbers):
            update(at, value, more, numbers)

        return advance
    function = scalars(dtype)[name]
    if name in kernels_of(1):

        @device
        def activate(value, at, out, more, numbers):
            out[at] = function(value)

        return activate

    @device
    def combine(value, at, out, more, numbers):
        out[at] = function(value, more[0][at])

    return combine
