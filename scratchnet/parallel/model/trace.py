"""What a forward pass does, op by op, and how a stage of it runs alone.

`Trace` notes each op of one forward pass: the shape of its output, what it reads, where modules begin. A *stage* is a
range of op numbers. Its inputs are the outputs of earlier ops that it reads, from whatever module: a skip connection
needs no rule of its own.

A stage runs as the whole forward in Python, in which only its own ops are computed (`StageRun`). In place of an
earlier op's output stands the array that its stage sent, or one of the same shape that nobody may read; at the first op
of the next stage an exception leaves. So all that Python does meanwhile, such as drawing streams of random numbers, is
what one process does at that point.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...errors import ConfigError
from ...tensor import Tensor
from ...tracing import Tracing
from .parts_layers import Part

WHO = "Pipeline"
_BASIC = (slice, int, type(...))  # keys of views


class Made(NamedTuple):
    """What an op gives: its name, and of its output the shape, the type and the order of the axes in memory."""

    op: str
    shape: tuple[int, ...]
    dtype: np.dtype
    axes: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def of(self, memory: np.ndarray) -> np.ndarray:
        """The output in memory of bytes, with its axes in the order that the op gave them: kernels may tell."""
        inner = [self.shape[axis] for axis in self.axes]
        return memory[: self.nbytes].view(self.dtype).reshape(inner).transpose(np.argsort(self.axes))

    def stand_in(self) -> np.ndarray:
        """An array like the output that nobody may read; it takes no memory, as nobody has written there."""
        if self.nbytes > _UNREAD[-1].nbytes:
            _UNREAD.append(np.zeros(2 * self.nbytes, np.uint8))
        return self.of(_UNREAD[-1])


_UNREAD = [np.zeros(1 << 16, np.uint8)]  # what stand-ins are views of: 0 passes where Python checks an index


def stands_in(array: Any) -> bool:
    """Is it a `stand_in`, or a view of one?"""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return any(array is memory for memory in _UNREAD)


class Trace(Tracing):
    """The ops of a forward pass.

    parameters, buffers: of the model, in order. fields: the tensors of the batch.
    reads: of each op the numbers of earlier ops; "parameters", "buffers" and "fields" that it reads, by position.
    blocks: of each op that reads a part of a parameter, (position of the parameter, key).
    calls: (module, number of the op with which its call begins). parts: (which, range of ops) of parts of layers.
    seconds: that each op took.
    """

    def __init__(self, parameters: Sequence[Tensor], buffers: Sequence[Tensor], fields: Sequence[Tensor]):
        self.made: list[Made] = []
        self.reads: list[set[int]] = []
        self.uses: list[dict[str, set[int]]] = []
        self.blocks: dict[int, tuple[int, Any]] = {}
        self.calls: list[tuple[Any, int]] = []
        self.parts: list[tuple[int, range]] = []
        self.seconds: list[float] = []
        self._of = {"parameters": parameters, "buffers": buffers, "fields": fields}
        self._known = {id(t): (kind, i) for kind, tensors in self._of.items() for i, t in enumerate(tensors)}
        self._outputs: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no id is used twice
        self.tensors: list[Tensor] = []
        self._inside = False

    def run(self, op, device, inputs, params):
        if self._inside:
            return super().run(op, device, inputs, params)
        reads: set[int] = set()
        uses: dict[str, set[int]] = {kind: set() for kind in self._of}
        for t in inputs:
            self.tensors.append(t)
            if id(t) in self._known:
                kind, i = self._known[id(t)]
                uses[kind].add(i)
            elif id(t._data) in self._outputs:
                reads.add(self._outputs[id(t._data)])
        self._inside, began = True, time.perf_counter()
        try:
            out = own_array(super().run(op, device, inputs, params), inputs)
        finally:
            self._inside = False
        self.seconds.append(time.perf_counter() - began)
        if op.name == "getitem" and uses["parameters"] and all(isinstance(k, _BASIC) for k in params["key"]):
            self.blocks[len(self.made)] = *uses["parameters"], params["key"]
        self._outputs[id(out)] = len(self.made)
        self._kept.append(out)
        axes = tuple(sorted(range(out.ndim), key=lambda axis: -abs(out.strides[axis])))
        self.made.append(Made(op.name, out.shape, out.dtype, axes))
        self.reads.append(reads)
        self.uses.append(uses)
        return out

    def forward(self, module, args, kwargs):
        begin = len(self.made)
        self.calls.append((module, begin))
        result = super().forward(module, args, kwargs)
        if isinstance(module, Part):
            self.parts.append((args[0], range(begin, len(self.made))))
        return result

    def shape_of(self, parameter: int) -> tuple[int, ...]:
        return self._of["parameters"][parameter].shape

    def refuse(self, what):
        _refuse(what)

    def check_no_change(self) -> None:
        """Raises ConfigError if the output of an op was changed in place."""
        for t in self.tensors:
            if t._version > 0 and id(t) not in self._known and id(t._data) in self._outputs:
                made = self.made[self._outputs[id(t._data)]]
                raise ConfigError(
                    f"{WHO}: expected a forward that changes no activation in place, got one that changes what "
                    f"{made.op!r} gave; write x = x + y for x += y"
                )


class Left(BaseException):
    """A stage is done: the rest of the forward is left out. Nobody else may catch it as an Exception."""


class StageRun(Tracing):
    """Hangs in tracing.py while a forward runs of which only the ops in [lo, hi) are computed.

    sent: what earlier stages sent, by the number of the op. leaving: ops whose outputs later stages read.
    Afterwards, `inputs`, `outputs`: the tensors of both, by the number of the op.
    """

    def __init__(self, made: Sequence[Made], ops: range, sent: Mapping[int, np.ndarray], leaving: Sequence[int]):
        self.made, self.ops, self.sent = made, ops, sent
        self.inputs: dict[int, Tensor] = {}
        self.outputs: dict[int, Tensor] = {}
        self._waiting = set(leaving)
        self._arrays: dict[int, tuple[int, np.ndarray]] = {}  # what was sent and what leaves, by id of the array
        self._count, self._inside = 0, False

    def run(self, op, device, inputs, params):
        if self._inside:
            return super().run(op, device, inputs, params)
        number, self._count = self._count, self._count + 1
        if number >= len(self.made) or self.made[number].op != op.name:
            raise _unsteady(f"op {number}", op.name, self.made[number].op if number < len(self.made) else "none")
        for t in inputs:
            self._notice(t)
        if number >= self.ops.stop and not self._waiting:
            raise Left
        if number not in self.ops:
            out = self.sent.get(number)
            out = self.made[number].stand_in() if out is None else out.view()
            self._note(number, out, number in self.sent)
            return out
        for t in inputs:
            if stands_in(t._data):
                raise ConfigError(
                    f"{WHO}: expected tensors that ops made of each other, got one that {op.name!r} reads and that "
                    "Python made of another stage's numbers; keep what makes it in one stage, with cut=[...]"
                )
        self._inside = True
        try:
            out = own_array(super().run(op, device, inputs, params), inputs)
        finally:
            self._inside = False
        made = self.made[number]
        if out.shape != made.shape or out.dtype != made.dtype:
            raise _unsteady(f"output of {op.name!r}", f"{out.dtype} {out.shape}", f"{made.dtype} {made.shape}")
        self._note(number, out, number in self._waiting)
        return out

    def _note(self, number: int, out: np.ndarray, is_wanted: bool) -> None:
        if is_wanted:
            self._arrays[id(out)] = number, out

    def _notice(self, t: Tensor) -> None:
        """The tensor of an array that was sent, or that leaves, when an op reads it."""
        if (found := self._arrays.get(id(t._data))) is None:
            return
        number = found[0]
        if number in self._waiting:
            self.outputs[number] = t
            self._waiting.discard(number)
        elif number in self.sent and (number not in self.inputs or t._node is not None):
            self.inputs[number] = t

    def refuse(self, what):
        _refuse(what)


def own_array(out: np.ndarray, inputs: Sequence[Tensor]) -> np.ndarray:
    """`out`, as an object of its own: an array stands for the op that gave it."""
    return out.view() if any(out is t._data for t in inputs) else out


def _refuse(what: str) -> None:
    raise ConfigError(
        f"{WHO}: expected a forward that looks at no values, as another stage may have them, got {what}; sn.where "
        "chooses without a look"
    )


def _unsteady(what: str, got: str, before: str) -> ConfigError:
    return ConfigError(
        f"{WHO}: expected the same ops for each shard of as many samples, got {got} as {what}, and {before} before; "
        "stages cannot be cut where the ops depend on values"
    )
