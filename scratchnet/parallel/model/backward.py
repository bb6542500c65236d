"""The backward pass of a stage: from several outputs, to its parameters and its inputs.

It adds up what one process adds up, in the same order. A tensor that several stages read gets its gradient from the
last of them first: that sum is what the stage begins with, and its own terms come after it, as they would in one pass.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

from ... import hooks
from ...autograd import Node, vjps
from ...grad_mode import recording
from ...row_gradient import total
from ...tensor import Tensor

Term = tuple[Tensor, Any]  # a tensor and its gradient so far


def backward(roots: Sequence[Term], targets: Sequence[Tensor]) -> list[Any]:
    """The gradient of each target, or None where it got none. The graph is freed.

    roots: outputs of the stage, and inputs with the gradients that later stages give them.
    """
    wanted = {id(t._node or t): t for t in targets}
    gradients: dict[int, Any] = {}
    heap: list[tuple[int, Node]] = []

    def send(t: Tensor, g: Any) -> None:
        node = t._node
        key = id(node or t)
        known = gradients.get(key)
        gradients[key] = g if known is None else total(known, g)
        if known is None and key not in wanted and node is not None:
            heapq.heappush(heap, (-node.order, node))

    with recording(False):
        for t, g in roots:
            send(t, g)
        while heap:
            _, node = heapq.heappop(heap)
            g = hooks.run(node.hooks, gradients.pop(id(node)))
            for t, term in vjps(node, g):
                send(t, term)
            node.inputs = node.out = None  # type: ignore[assignment]
        return [
            hooks.run(t._hooks if t._node is None else t._node.hooks, gradients[key]) if key in gradients else None
            for key, t in ((id(t._node or t), t) for t in targets)
        ]
