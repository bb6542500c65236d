"""`sn.draw`: the graph that autograd recorded, or the program that `sn.jit` made of a step, as a picture."""

from __future__ import annotations

from typing import Any

from . import checks
from .autograd import history
from .drawing import Drawing, Vertex
from .errors import ConfigError, GradientError
from .jit import graph
from .jit.step import Step
from .nn import Module
from .tensor import Tensor


def draw(y: Any, model: Module | None = None) -> Drawing:
    """A picture of how y was computed; a notebook shows it, `.save("graph.svg")` writes it, `.dot` is for Graphviz.

    y: a tensor with a record: boxes are tensors that nothing computed, orange ones want a gradient; round ones are ops,
        with the shape of what they give. Or a step that `sn.jit` recorded (called at least twice): its newest program,
        round ones are kernel calls, with the number of the compiled stage that runs them.
    model: names the parameters.

    Raises GradientError for a tensor without a record, or whose record `backward` freed; JitError for a step without a
    program; ConfigError for anything else, and for more than 1,000 vertices.
    """
    if model is not None:
        checks.instance("draw: model", model, Module, "a Module or None")
    parameters = [] if model is None else model.named_parameters()
    if isinstance(y, Step):
        return graph.draw(y, {id(p._data): name for name, p in parameters})
    if not isinstance(y, Tensor):
        checks.refuse("draw", "a tensor with a record, or a step of sn.jit", y, ConfigError)
    return _of_record(y, {id(p): name for name, p in parameters})


def _of_record(y: Tensor, names: dict[int, str]) -> Drawing:
    if y._node is None:
        raise GradientError("draw: expected a tensor made from one that requires grad, got one with no record")
    numbers: dict[int, int] = {}  # of vertices, by the id of a node, or of a tensor that nothing computed
    vertices: list[Vertex] = []
    found = list(history(y))[::-1]
    for t, node in found:
        if numbers.setdefault(id(node or t), len(vertices)) == len(vertices):
            kind = "result" if node is y._node else "op" if node else "parameter" if t.requires_grad else "input"
            vertices.append(Vertex((node.op.name if node else names.get(id(t), kind), graph.shape_of(t)), kind))
    made = [(node, x) for _, node in found if node for x in node.inputs or ()]
    if not made or any(id(x._node or x) not in numbers for _, x in made):
        raise GradientError("draw: expected a live record, but backward freed it; draw before, or keep it")
    edges = [(numbers[id(x._node or x)], numbers[id(node)]) for node, x in made]
    return Drawing(f"draw: the record of a tensor of shape {tuple(y.shape)}", vertices, edges)
