"""Aliases: arguments that share memory with each other, or with what a step uses besides them.

A step that is recorded has copies of its arguments, and a program assumes that they lie apart. That matters only where
something of the shared memory is written: to an argument, or to a parameter whose memory is an argument, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .trace import Call, Trace, memory_of


class Aliases:
    """What arguments must not share; known once a step was recorded. inputs: the copies of its arguments."""

    def __init__(self, trace: Trace, inputs: Sequence[Any]):
        written: dict[int, list[Any]] = {}
        touched: dict[int, list[Any]] = {}
        for call in trace.calls:
            if isinstance(call, Call):
                for x in call.touched():
                    touched.setdefault(id(memory_of(x)), []).append(x)
                for x in call.written():
                    written.setdefault(id(memory_of(x)), []).append(x)
        self.written = [i for i, x in enumerate(inputs) if id(x) in written]
        relevant = touched if self.written else written
        if trace.changed() is not None and trace.by_python is not None:
            relevant = relevant | {key: [entry[0] for entry in entries] for key, entries in trace.named.items()}
        self.outside = {key: arrays for key, arrays in relevant.items() if key in trace.outside or key in trace.named}

    def found(self, arguments: Sequence[Any]) -> str | None:
        """Why these arguments cannot be those of a program; None if they can."""
        for x in arguments if self.outside else ():
            for y in self.outside.get(id(memory_of(x)), ()):
                if _share(x, y):
                    return "an argument shares memory with a tensor that the step uses, and one of the two is written"
        for i in self.written:
            x = arguments[i]
            if isinstance(x, np.ndarray) and not (x.flags.writeable and all(x.strides)):
                return "it writes to an argument whose memory cannot be written"
            if any(j != i and _share(x, y) for j, y in enumerate(arguments)):
                return "it writes to an argument that shares memory with another one"
        return None


def _share(x: Any, y: Any) -> bool:
    both = isinstance(x, np.ndarray) and isinstance(y, np.ndarray)
    return np.may_share_memory(x, y) if both else memory_of(x) is memory_of(y)
