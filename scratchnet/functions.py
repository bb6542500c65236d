"""The functions of the public face: `sn.exp(x)` is `x.exp()` for anything that can become a Tensor."""

from collections.abc import Callable, Sequence
from functools import wraps

from . import ops
from .errors import ShapeError
from .tensor import ArrayLike, Tensor, as_tensor, where

METHODS = ["exp", "log", "sqrt", "abs", "sign", "tanh", "sigmoid", "relu", "gelu", "erf", "clip", "maximum", "minimum", "sum", "mean", "max", "min", "var", "std", "argmax", "reshape", "transpose", "permute", "squeeze", "unsqueeze", "broadcast_to", "pad", "matmul", "softmax", "log_softmax", "logsumexp"]


def _function(name: str) -> Callable[..., Tensor]:
    method = getattr(Tensor, name)

    @wraps(method)
    def function(x: ArrayLike, *args, **kwargs) -> Tensor:
        like = next((a for a in args if isinstance(a, Tensor)), None)
        return method(as_tensor(x, like), *args, **kwargs)

    return function


globals().update({name: _function(name) for name in METHODS})


def _tensors(name: str, tensors: Sequence[ArrayLike]) -> list[Tensor]:
    like = next((t for t in tensors if isinstance(t, Tensor)), None)
    if not len(tensors):
        raise ShapeError(f"{name}: expected at least one tensor, got none")
    return [as_tensor(t, like) for t in tensors]


def cat(tensors: Sequence[ArrayLike], axis: int = 0) -> Tensor:
    """Joins tensors along an axis that they have; all other lengths must agree."""
    return ops.cat(_tensors("cat", tensors), axis)


def stack(tensors: Sequence[ArrayLike], axis: int = 0) -> Tensor:
    """Joins tensors of one shape along a new axis."""
    return ops.stack(_tensors("stack", tensors), axis)


__all__ = [*METHODS, "cat", "stack", "where"]
