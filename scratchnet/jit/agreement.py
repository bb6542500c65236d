"""Do two recordings of a step agree? Only then may a program stand for the step.

A step is recorded in its first two calls. What it does without a look at the numbers of its arguments is the same in
both: the same kernels in the same order, on the same memory or on equal numbers. Where Python drew a random number,
counted, or made an array of something else than constants, the two differ, and the step is refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .trace import Call, Trace, is_array, memory_of
from .values import is_same, leaves_of


class Account:
    """What a trace did, without the memory that it made, so that another one can be compared with it."""

    def __init__(self, trace: Trace, inputs: list[Any], result: Any, gradients: list[Any]):
        numbers = {id(memory_of(x)): ("given", i) for i, x in enumerate(inputs)}
        numbers |= dict.fromkeys(trace.varying.keys() - numbers.keys(), ("given", -1))
        numbers |= {key: ("made", i) for i, key in enumerate(trace.owned)}
        numbers |= {key: ("filled", i) for i, key in enumerate(trace.filled)}

        def view_of(x: Any) -> Any:
            memory = memory_of(x)
            where = numbers.get(id(memory)) or ("outside", id(memory))
            return _View(where, trace.outside.get(id(memory)), (_offset(x, memory), x.shape, x.strides, x.dtype))

        def of_argument(x: Any) -> Any:
            return view_of(x) if is_array(x) else x

        self.calls: list[tuple[Any, str]] = []
        for call, line in zip(trace.calls, trace.lines, strict=True):
            if isinstance(call, Call):
                found: Any = (call.kernel, call.device.name, *map(of_argument, call.arguments))
            else:
                found = (call.kind, view_of(call.array), *call.numbers)
            self.calls.append((found, line))
        self.effects = len(trace.effects)
        self.results = [of_argument(getattr(x, "_data", x)) for x in leaves_of(result)]
        self.gradients = [(id(g.leaf), g.read is None, g.left is None) for g in gradients]

    def differs(self, other: Account) -> str | None:
        """Where `other`, a later one, did something else, and what; None if they agree."""
        for (a, _), (b, line) in zip(self.calls, other.calls, strict=False):
            if len(a) != len(b) or not all(map(_agree, a, b)):
                return f"{line}: {b[0]}"
        if len(self.calls) != len(other.calls):
            longer = max(self.calls, other.calls, key=len)
            found, line = longer[min(len(self.calls), len(other.calls))]
            return f"{line}: {found[0]}"
        if self.effects != other.effects or self.gradients != other.gradients:
            return "the gradients and counters that the step leaves"
        if len(self.results) != len(other.results) or not all(map(_agree, self.results, other.results)):
            return "a result that no recorded kernel made"
        return None


class _View:
    """A view of memory: whose it is, and which part."""

    __slots__ = ("outside", "part", "where")

    def __init__(self, where: Any, outside: Any, part: Any):
        self.where, self.outside, self.part = where, outside, part


def _agree(a: Any, b: Any) -> bool:
    if not isinstance(a, _View) or not isinstance(b, _View):
        return is_same(a, b)
    if a.part != b.part:
        return False
    if a.where == b.where:
        return True
    both = a.where[0] == b.where[0] == "outside" and a.outside is not None and b.outside is not None
    return both and a.outside.numbers is not None and a.outside.numbers == b.outside.numbers


def _offset(x: Any, memory: Any) -> int:
    if not isinstance(x, np.ndarray):
        return 0
    return x.__array_interface__["data"][0] - memory.__array_interface__["data"][0]
