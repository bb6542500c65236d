"""Where a NaN came from: the search for the op whose result is not finite although its inputs are."""

import numpy as np

from .autograd import history
from .tensor import FLOATS, Tensor


def first_nonfinite(y: Tensor) -> str | None:
    """The name of the first op in y's record whose result is not finite although its inputs are; "an input" if
    a leaf is not finite already; None if all is finite."""
    nodes = []
    for t, node in history(y):
        if node is not None:
            nodes.append(node)
        elif t.dtype in FLOATS and not np.isfinite(t._device.to_host(t._data)).all():
            return "an input"
    nodes.sort(key=lambda node: node.order)
    return next((node.op.name for node in nodes if not np.isfinite(node.device.to_host(node.out)).all()), None)
