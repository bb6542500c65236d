"""Nodes of ONNX, one after the other: what the tables of ops and layers write into."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .trace import Entry, Ref, Size

OPSET, IR_VERSION = 17, 8  # of 2022, the first with LayerNormalization: what runtimes, converters and browsers know


class Writer:
    """A graph that grows. Each method that makes a value returns its name.

    inputs: the names of the graph's inputs, whose first axis may be the batch; one that a parameter has gets a number.
    names: of the parameters and buffers, by the id of their array.
    """

    def __init__(self, onnx: Any, inputs: list[str], names: dict[int, str]):
        self.onnx, self.names, self.used = onnx, names, {*names.values()}
        self.inputs = [self.fresh(name) for name in inputs]
        self.nodes: list[Any] = []
        self.weights: dict[str, np.ndarray] = {}
        self.values: dict[Any, str] = {}  # of what was traced
        self.pooled: dict[str, str] = {}  # where the largest elements of windows are: what they are
        self.reshaped: dict[str, str] = {}  # what has the same elements in another shape
        self.shapes: dict[str, tuple[Any, ...]] = {}  # of some values
        self.constants: dict[Any, str] = {}
        self.renamed: dict[str, str] = {}  # outputs of nodes that are outputs of the graph
        self.path = ""

    # --- names --------------------------------------------------------------------------------------------------------

    def fresh(self, name: str) -> str:
        """`name`, or with a number that makes it new."""
        new, n = name, 1
        while new in self.used:
            new, n = f"{name}_{n}", n + 1
        self.used.add(new)
        return new

    def name(self, ref: Ref) -> str:
        """The name of a value that was traced."""
        if ref.kind == "input":
            return self.inputs[ref.name]
        if ref.kind == "weight":
            return self._initializer(ref.name, ref.array)
        if ref.kind == "made":
            return self.values[ref.name]
        if ref.kind == "count":
            zero, one, step = (self.constant(n, np.int64) for n in (0, 1, int(ref.name)))
            steps = self.node(
                "Mul", self.node("Range", zero, self.node("Squeeze", self._length(Size(1, 0))), one), step
            )
            to = self.onnx.helper.np_dtype_to_tensor_dtype(ref.array.dtype)
            return self.reshape(self.node("Cast", steps, to=to), ref.shape)
        if any(isinstance(n, Size) for n in ref.shape):  # of one number
            return self.node("Expand", self.constant(ref.array.ravel()[:1].reshape(())), self.dims(ref.shape))
        return self.constant(ref.array)

    def weight(self, t: Any) -> str:
        """The name of a parameter or buffer."""
        name = self.names.get(id(t._data))
        return self.constant(t._data) if name is None else self._initializer(name, t._data)

    def _initializer(self, name: str, array: np.ndarray) -> str:
        self.weights.setdefault(name, array)
        return name

    def last(self, name: str, ref: Ref) -> str:
        """Gives a value a name of its own, as an output of the graph."""
        new, value = self.fresh(name), self.name(ref)
        if ref.kind != "made" or value in self.renamed:  # an output must be made by a node
            self.nodes.append(self.onnx.helper.make_node("Identity", [value], [new], f"{new}/Identity"))
        else:
            self.renamed[value] = new
        return new

    # --- nodes --------------------------------------------------------------------------------------------------------

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; returns the name of its output, or a list of them."""
        name = self.fresh(f"{self.path}/{op}" if self.path else op)
        made = [self.fresh(f"{name}_output" if i == 0 else f"{name}_output{i}") for i in range(outputs)]
        given = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(self.onnx.helper.make_node(op, list(inputs), made, name, **given))
        return made[0] if outputs == 1 else made

    def constant(self, value: Any, dtype: Any = None) -> str:
        """An array that is no parameter, in a node of its own."""
        array = np.ascontiguousarray(np.asarray(value, dtype)).reshape(np.shape(value))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            name = self.fresh("Constant")
            tensor = self.onnx.numpy_helper.from_array(array, name)
            self.nodes.append(self.onnx.helper.make_node("Constant", [], [name], name, value=tensor))
            self.constants[key] = name
        return self.constants[key]

    def integers(self, values: Any) -> str:
        """A vector of integers."""
        return self.constant(np.array([*values], np.int64))

    def dims(self, values: Any) -> str:
        """A vector of integers, of which some may depend on the batch."""
        values = [*values]
        if not any(isinstance(n, Size) for n in values):
            return self.integers(values)
        return self.node("Concat", *[self._length(n) for n in values], axis=0)

    def _length(self, n: Any) -> str:
        if not isinstance(n, Size):
            return self.integers([n])
        if (None, n) not in self.constants:
            was, self.path = self.path, ""
            y = self.constants.get((None, Size(1, 0))) or self.node("Shape", self.inputs[0], start=0, end=1)
            self.constants[None, Size(1, 0)] = y
            y = y if n.per_batch == 1 else self.node("Mul", y, self.integers([n.per_batch]))
            self.constants[None, n] = y if n.fixed == 0 else self.node("Add", y, self.integers([n.fixed]))
            self.path = was
        return self.constants[None, n]

    def reshape(self, x: str, shape: Any) -> str:
        """x in another shape; one length that depends on the batch is left to the runtime."""
        x = self.reshaped.get(x, x)
        if self.shapes.get(x) == tuple(shape):
            return x
        source, shape = x, list(shape)
        sizes = [i for i, n in enumerate(shape) if isinstance(n, Size)]
        if len(sizes) == 1 and math.prod(n for n in shape if not isinstance(n, Size)) > 0:
            shape[sizes[0]] = -1
        y: str = self.node("Reshape", x, self.dims(shape))
        self.reshaped[y] = source
        return y

    def number(self, entry: Entry, value: float) -> str:
        """A number in the dtype of the first input."""
        return self.constant(value, entry.inputs[0].array.dtype)
