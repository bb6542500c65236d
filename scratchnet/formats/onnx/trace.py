"""What a model computes, as a list: the rows of the op table that ran, and layers that ONNX has as they are.

The list comes from running the model, so whatever Python a `forward` holds, the list says what was computed. But it
holds the lengths of one example. So the model is traced with two batch sizes, and what differs between the two lists
depends on the batch: a length n becomes Size(a, b), which is a * batch + b.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ...errors import ConfigError
from ...kernels import Device
from ...nn import Module
from ...tensor import Tensor
from ...tracing import Tracing


class Size(NamedTuple):
    """A length that depends on the batch size: per_batch * batch + fixed."""

    per_batch: int
    fixed: int


class Ref(NamedTuple):
    """Where an array comes from. kind: "input", "weight" or "made", with its number or name; else "constant".

    A constant that counts the batch, 0, s, 2 s, ..., is a "count" with its step s as the name.
    """

    kind: str
    name: Any
    array: np.ndarray
    shape: tuple[Any, ...]


class Entry(NamedTuple):
    """One op or layer that ran. what: the row's name, or the layer. path: the module in which it ran."""

    what: Any
    path: str
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]
    params: Any

    @property
    def name(self) -> str:
        return self.what if isinstance(self.what, str) else type(self.what).__name__


class Recorder(Tracing):
    """Hangs in tracing.py while a model runs, and notes what it computes.

    layers: the classes whose calls are noted as a whole, and not by their ops, if a function of the arguments says so.
    """

    def __init__(self, model: Module, inputs: list[Tensor], layers: Mapping[type, Callable[[dict[str, Any]], bool]]):
        self.entries: list[Entry] = []
        self.layers = layers
        self.known: dict[int, Ref] = {}  # by the id of an array, which the entry keeps alive
        self.paths = {id(module): name for name, module in model.named_modules()}
        self.path: list[str] = [""]
        self.within = False  # of a layer that is noted as a whole
        for name, t in (*model.named_parameters(), *model.named_buffers()):
            self.known[id(t._data)] = Ref("weight", name, t._data, t.shape)
        for i, t in enumerate(inputs):
            self.known[id(t._data)] = Ref("input", i, t._data, t.shape)

    def ref(self, t: Tensor) -> Ref:
        """Where the numbers of a tensor come from."""
        found = self.known.get(id(t._data))
        return Ref("constant", None, t._data, t.shape) if found is None else found

    def run(self, op: Any, device: Device, inputs: tuple[Any, ...], params: dict[str, Any]) -> np.ndarray:
        out = op.forward(device, *[t._data for t in inputs], **params)
        if not self.within:
            self._note(op.name, tuple(map(self.ref, inputs)), [out], params)
        return out

    def forward(self, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.path.append(self.paths.get(id(module), self.path[-1]))
        try:
            if self.within or type(module) not in self.layers or "forward" in vars(module):
                return module.forward(*args, **kwargs)
            bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            if not self.layers[type(module)](bound):
                return module.forward(*args, **kwargs)
            self.within = True
            try:
                y = module.forward(*args, **kwargs)
            finally:
                self.within = False
            given = tuple(self.ref(x) for x in tensors_in(bound))
            if isinstance(y, Tensor) and id(y._data) in self.known:  # x itself, which is not the layer's output
                y = Tensor._wrap(y._data.view(), y._device)
            self._note(module, given, [t._data for t in tensors_in(y)], [k for k in bound if bound[k] is not None])
            return y
        finally:
            self.path.pop()

    def _note(self, what: Any, inputs: tuple[Ref, ...], outputs: list[np.ndarray], params: Any) -> None:
        n = len(self.entries)
        refs = tuple(Ref("made", (n, i), out, out.shape) for i, out in enumerate(outputs))
        self.known.update({id(ref.array): self.known.get(id(ref.array), ref) for ref in refs})
        self.entries.append(Entry(what, self.path[-1], inputs, refs, params))

    def refuse(self, what: str) -> None:
        raise ConfigError(
            f"onnx.export: {self.path[-1] or 'the model'}: expected a forward that computes with tensors alone, as the "
            f"file has no Python, got {what}; do that outside of the model"
        )


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in tuples, lists and dictionaries, in order."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [t for item in items for t in tensors_in(item)]


# --- two traces become one --------------------------------------------------------------------------------------------


class Differs(Exception):
    """The two traces are not of one list."""


def unified(traces: list[list[Entry]], sizes: tuple[int, int]) -> list[Entry]:
    """One list of two, whose lengths are Sizes where they depend on the batch. Raises ConfigError."""
    (first, second), at = traces, "the model"
    try:
        if len(first) != len(second):
            raise Differs("other ops")
        entries = []
        for a, b in zip(first, second, strict=True):
            at = f"{a.path or 'the model'} ({a.name})"
            if a.what != b.what or len(a.inputs) != len(b.inputs):
                raise Differs("other ops")
            given, made = (
                tuple(joined(x, y, sizes) for x, y in zip(mine, its, strict=True))
                for mine, its in ((a.inputs, b.inputs), (a.outputs, b.outputs))
            )
            entries.append(Entry(a.what, a.path, given, made, _joined(a.params, b.params, sizes)))
        return entries
    except Differs as error:
        raise ConfigError(
            f"onnx.export: {at}: expected the same ops for any batch, got {error} in another one; batch=None "
            "fixes the batch size, and what Python or NumPy computes of an input belongs outside of the model"
        ) from None


def joined(a: Ref, b: Ref, sizes: tuple[int, int]) -> Ref:
    """One value of both traces."""
    if (a.kind, a.name) != (b.kind, b.name) or a.array.dtype != b.array.dtype:
        raise Differs("an op of other values")
    shape = _joined(tuple(a.shape), tuple(b.shape), sizes)
    if a.kind == "constant":
        one = a.array.ravel()[:1]
        is_even = a.array.size and (a.array == one).all() and b.array.size and (b.array == one).all()
        if not is_even and not (a.shape == b.shape and np.array_equal(a.array, b.array, equal_nan=True)):
            step = b.array.ravel()[1:2]
            if any(
                not np.array_equal(x.array.ravel(), np.arange(n) * step.sum())
                for x, n in ((a, sizes[0]), (b, sizes[1]))
            ):
                raise Differs("other numbers, which no op made,")
            return Ref("count", step.item(), a.array, shape)
    return Ref(a.kind, a.name, a.array, shape)


def _joined(a: Any, b: Any, sizes: tuple[int, int]) -> Any:
    """Two values as one: equal ones, or integers that depend on the batch."""
    if isinstance(a, Tensor):
        raise Differs("a tensor as an option")
    if type(a) is type(b) and isinstance(a, tuple | list) and len(a) == len(b):
        return type(a)([_joined(x, y, sizes) for x, y in zip(a, b, strict=True)])
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return {key: _joined(a[key], b[key], sizes) for key in a}
    if isinstance(a, slice) and isinstance(b, slice):
        return slice(*[_joined(getattr(a, k), getattr(b, k), sizes) for k in ("start", "stop", "step")])
    if (
        all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in (a, b))
        and a != b
        and sizes[0] != sizes[1]
    ):
        per_batch = (b - a) // (sizes[1] - sizes[0])
        return Size(int(per_batch), int(a - per_batch * sizes[0]))
    if type(a) is not type(b) or not (a is b or a == b):
        raise Differs("another option")
    return a
