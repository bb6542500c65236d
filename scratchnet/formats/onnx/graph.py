"""A loaded model: a module whose `forward` calls one operator after the other."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import numpy as np

from ... import tracing
from ...errors import CheckpointError, DtypeError, ScratchnetError, ShapeError
from ...grad_mode import no_grad
from ...nn import Buffer, Module, Parameter
from ...tensor import FLOATS, Tensor, as_tensor, default_device
from .operators import OPERATORS

STATISTICS = {"BatchNormalization": (3, 4)}  # inputs that are no parameters: they follow the batches
GIVEN = {"name", "opset", "training", "outputs"}  # what an operator may want beside inputs and attributes
RAISED = (ArithmeticError, LookupError, TypeError, ValueError, AttributeError)


class Step(NamedTuple):
    """One node. where: how messages call it; an empty input or output is one that is left out."""

    where: str
    key: tuple[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


class Graph(Module):
    """The model of an ONNX file; `scratchnet.onnx.load` makes it.

    Call it with one tensor or array for each input of the graph; it returns the output, or a tuple of several.
    """

    def __init__(self, inputs: dict, outputs: list[str], steps: list[Step], stored: dict[str, np.ndarray], opset: int):
        self._inputs, self._outputs, self._steps, self._opset = inputs, outputs, steps, opset
        self._numbers: dict[str, np.ndarray] = {}  # integers, and floats without axes
        self._places: dict[str, tuple[Module, str]] = {}  # where parameters and buffers are attributes
        follows = self._own_statistics(stored)
        for name, array in stored.items():
            if array.dtype in FLOATS and array.ndim:
                kind = Buffer if name in follows else Parameter
                self._places[name] = self._place(name, kind(array))
            else:
                self._numbers[name] = array
        self.training = False

    def _own_statistics(self, stored: dict[str, np.ndarray]) -> set[str]:
        """The names of running statistics. One that is stored once with an equal array gets memory of its own."""
        uses = [name for step in self._steps for name in step.inputs]
        same = {s.outputs[0]: s.inputs[0] for s in self._steps if s.key[1] == "Identity" and s.inputs and s.outputs}
        found = set()
        for n, step in enumerate(self._steps):
            for i in STATISTICS.get(step.key[1], ()):
                given = name = step.inputs[i] if i < len(step.inputs) else ""
                for _ in same:
                    name = same.get(name, name)
                if name in stored and (uses.count(name) > 1 or name != given):
                    own = f"{name}.statistics{n}_{i}"
                    stored[own] = stored[name]
                    step = step._replace(inputs=(*step.inputs[:i], own, *step.inputs[i + 1 :]))
                    name = own
                found.add(name)
            self._steps[n] = step
        return found

    def _place(self, name: str, value: Tensor) -> tuple[Module, str]:
        """Makes a tensor the attribute with its dotted name, if that is free, in modules that are made for it."""
        *parts, last = name.split(".")
        module: Module = self
        for part in parts:
            found = vars(module).get(part)
            if found is None and part and not hasattr(module, part):
                setattr(module, part, found := Module())
            if type(found) is not Module:
                break
            module = found
        else:
            if last and not hasattr(module, last):
                setattr(module, last, value)
                return module, last
        flat = name.replace(".", "_") + "_"
        while hasattr(self, flat):
            flat += "_"
        setattr(self, flat, value)
        return self, flat

    def forward(self, *inputs: Any) -> Any:
        if len(inputs) != len(self._inputs):
            raise ShapeError(
                f"Graph: expected {len(self._inputs)} inputs ({', '.join(self._inputs)}), got {len(inputs)}"
            )
        like = next(self.parameters(), None)
        values: dict[str, Any] = dict(self._numbers)
        values |= {name: getattr(module, attribute) for name, (module, attribute) in self._places.items()}
        for (name, (dtype, shape)), x in zip(self._inputs.items(), inputs, strict=True):
            values[name] = t = as_tensor(x, like)
            if t.dtype != dtype:
                raise DtypeError(f"Graph: expected {name} of {dtype}, got {t.dtype}; x.astype('{dtype}') makes it")
            fits = shape is None or (
                t.ndim == len(shape) and all(m in (None, n) for m, n in zip(shape, t.shape, strict=True))
            )
            if not fits:
                raise ShapeError(f"Graph: expected {name} of shape {shape}, got {t.shape}")
        for step, last in zip(self._steps, self._last_uses(), strict=True):
            values.update(zip(step.outputs, self._run(step, values), strict=False))
            for name in last:
                values.pop(name, None)
        found = tuple(as_tensor(values[name], like) for name in self._outputs)
        return found[0] if len(found) == 1 else found

    def _last_uses(self) -> list[list[str]]:
        """The values that nobody needs after each step."""
        kept, last = set(self._outputs), []
        for step in reversed(self._steps):
            names = {*step.inputs, *step.outputs} - kept
            last.append([*names])
            kept |= names
        return last[::-1]

    def _run(self, step: Step, values: dict[str, Any]) -> tuple[Any, ...]:
        given = [values[name] if name else None for name in step.inputs]
        beside = {"name": step.key[1], "opset": self._opset, "training": self.training}
        try:
            y = _called(step, given, beside)
        except ScratchnetError as error:
            raise type(error)(f"{step.where}: {error}") from error
        except RAISED as error:
            raise CheckpointError(f"{step.where}: expected inputs that fit, found {error!s:.120}") from error
        y = y if isinstance(y, tuple) else (y,)
        if any(step.outputs[len(y) :]):
            raise CheckpointError(f"{step.where}: expected at most {len(y)} outputs, found {len(step.outputs)}")
        return y


def _called(step: Step, given: list[Any], beside: dict[str, Any]) -> Any:
    """An operator's result. What follows from constants and shapes alone is computed at once, as arrays."""
    function = OPERATORS[step.key]
    wanted = {p.name: p for p in inspect.signature(function).parameters.values()}
    options = {name: value for name, value in beside.items() if name in wanted}
    if "outputs" in wanted:
        options["outputs"] = sum(map(bool, step.outputs))
    for name, value in step.attributes.items():
        is_input = name in wanted and wanted[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        options[name] = np.asarray(value) if is_input else value
    if any(isinstance(x, Tensor) for x in given):
        return function(*given, **options)
    with tracing.into(tracing.Tracing()), no_grad(), default_device("numpy"):
        y = function(*given, **options)
        numbers = [t.numpy() if isinstance(t, Tensor) else t for t in (y if isinstance(y, tuple) else (y,))]
    return tuple(numbers)


def checked(graph: Graph) -> Graph:
    """The graph, if each node has what it needs: known inputs and attributes, new outputs. Raises CheckpointError."""
    known = {"", *graph._inputs, *graph._numbers, *graph._places}
    for step in graph._steps:
        signature = inspect.signature(OPERATORS[step.key])
        missing = [name for name in step.inputs if name not in known]
        again = [name for name in step.outputs if name and name in known]
        if missing or again or not any(step.outputs):
            raise CheckpointError(
                f"{step.where}: expected nodes in order, each value once, found {[*missing, *again]!r:.80}"
            )
        known |= {*step.outputs}
        attributes = dict.fromkeys(step.attributes)
        checks_itself = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        unknown = [name for name in attributes if name not in signature.parameters or name in GIVEN]
        if unknown and not checks_itself:
            raise CheckpointError(f"{step.where}: expected attributes that this version knows, found {unknown!r:.80}")
        try:
            signature.bind(*step.inputs, **attributes, **{n: None for n in GIVEN if n in signature.parameters})
        except TypeError as error:
            raise CheckpointError(f"{step.where}: expected the inputs of the op, found others ({error})") from None
    missing = [name for name in graph._outputs if name not in known or not name]
    if missing or not graph._outputs:
        raise CheckpointError(f"expected outputs that a node makes, found {missing!r:.80}")
    return graph
