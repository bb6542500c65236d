"""The backward pass of a stage: from several outputs, to its parameters and its inputs.

It adds up what one process adds up, in the same order. A tensor that several stages read gets its gradient from the
last of them first: that sum is what the stage begins with, and its own terms come after it, as they would in one pass.

For a pipeline without bubbles it comes in two halves. `backward_inputs` visits what lies between outputs and inputs,
and leaves aside what only parameters need: at a product y = x W, say, it computes g W^T, and `backward_weights` x^T g.
A gradient gets all its terms in one of the halves, in the order of one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ...autograd import Node, backpropagate
from ...tensor import Tensor

Term = tuple[Tensor, Any]  # a tensor and its gradient so far


class Rest(NamedTuple):
    """What the first half leaves to the second: where it begins, and the nodes that are done."""

    roots: list[Term]
    path: set[int]

    def leads_to_inputs(self, t: Tensor) -> bool:
        return id(t._node) in self.path


def backward(roots: Sequence[Term], targets: Sequence[Tensor]) -> list[Any]:
    """The gradient of each target, or None where it got none. The graph is freed.

    roots: outputs of the stage, and inputs with the gradients that later stages give them.
    """
    return _of(backpropagate(roots, targets), targets)


def backward_inputs(roots: Sequence[Term], inputs: Sequence[Tensor]) -> tuple[list[Any], Rest]:
    """The gradient of each input, and what is left."""
    rest, visited = Rest([], _path(roots, inputs)), list[tuple[Node, Tensor]]()
    begin = [root for root in roots if rest.leads_to_inputs(root[0])]
    found = backpropagate(begin, inputs, True, among=rest.leads_to_inputs, visited=visited) if inputs else {}
    rest.roots.extend(root for root in roots if not rest.leads_to_inputs(root[0]))
    for node, g in visited:
        if any(t._requires_grad and not rest.leads_to_inputs(t) for t in node.inputs or ()):
            node.hooks = ()  # they ran
            rest.roots.append((node.output, g))
    return _of(found, inputs), rest


def backward_weights(rest: Rest, parameters: Sequence[Tensor]) -> list[Any]:
    """The gradient of each parameter. The graph is freed."""
    among = lambda t: not rest.leads_to_inputs(t)  # noqa: E731
    return _of(backpropagate(rest.roots, parameters, among=among) if parameters else {}, parameters)


def _of(found: dict[int, Term], targets: Sequence[Tensor]) -> list[Any]:
    return [found[key][1] if (key := id(t._node or t)) in found else None for t in targets]


def _path(roots: Sequence[Term], inputs: Sequence[Tensor]) -> set[int]:
    """The nodes of the inputs, and those between them and the roots that depend on one."""
    oldest = min((t._node.order for t in inputs if t._node), default=0)
    nodes, stack = dict[int, Node](), [t._node for t, _ in roots]
    while stack:
        node = stack.pop()
        if node is not None and node.order >= oldest and id(node) not in nodes:
            nodes[id(node)] = node
            stack.extend(t._node for t in node.inputs or ())
    path = {id(t._node) for t in inputs}
    for key, node in sorted(nodes.items(), key=lambda item: item[1].order):
        if any(id(t._node) in path for t in node.inputs or () if t._node):
            path.add(key)
    return path
