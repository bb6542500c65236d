"""The backward pass of a stage: from several outputs, to its parameters and its inputs.

It adds up what one process adds up, in the same order. A tensor that several stages read gets its gradient from the
last of them first: that sum is what the stage begins with, and its own terms come after it, as they would in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...autograd import backpropagate
from ...tensor import Tensor

Term = tuple[Tensor, Any]  # a tensor and its gradient so far


def backward(roots: Sequence[Term], targets: Sequence[Tensor]) -> list[Any]:
    """The gradient of each target, or None where it got none. The graph is freed.

    roots: outputs of the stage, and inputs with the gradients that later stages give them.
    """
    found = backpropagate(roots, targets)
    return [found[key][1] if (key := id(t._node or t)) in found else None for t in targets]
