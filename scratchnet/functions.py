"""The functions of the public face: `sn.exp(x)` is `x.exp()` for anything that can become a Tensor."""

from collections.abc import Callable, Sequence
from functools import wraps

from . import ops
from .errors import ShapeError
from .tensor import ArrayLike, Tensor, as_tensor, where


def _function(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(method)
    def function(x: ArrayLike, *args, **kwargs) -> Tensor:
        like = next((a for a in args if isinstance(a, Tensor)), None)
        return method(as_tensor(x, like), *args, **kwargs)

    return function


exp = _function(Tensor.exp)
log = _function(Tensor.log)
sqrt = _function(Tensor.sqrt)
abs = _function(Tensor.abs)
sign = _function(Tensor.sign)
tanh = _function(Tensor.tanh)
sigmoid = _function(Tensor.sigmoid)
relu = _function(Tensor.relu)
gelu = _function(Tensor.gelu)
erf = _function(Tensor.erf)
softplus = _function(Tensor.softplus)
clip = _function(Tensor.clip)
maximum = _function(Tensor.maximum)
minimum = _function(Tensor.minimum)
sum = _function(Tensor.sum)
mean = _function(Tensor.mean)
max = _function(Tensor.max)
min = _function(Tensor.min)
var = _function(Tensor.var)
std = _function(Tensor.std)
argmax = _function(Tensor.argmax)
reshape = _function(Tensor.reshape)
transpose = _function(Tensor.transpose)
permute = _function(Tensor.permute)
squeeze = _function(Tensor.squeeze)
unsqueeze = _function(Tensor.unsqueeze)
broadcast_to = _function(Tensor.broadcast_to)
pad = _function(Tensor.pad)
matmul = _function(Tensor.matmul)
softmax = _function(Tensor.softmax)
log_softmax = _function(Tensor.log_softmax)
logsumexp = _function(Tensor.logsumexp)


def _tensors(name: str, tensors: Sequence[ArrayLike]) -> list[Tensor]:
    if not len(tensors):
        raise ShapeError(f"{name}: expected at least one tensor, got none")
    like = next((t for t in tensors if isinstance(t, Tensor)), None)
    return [as_tensor(t, like) for t in tensors]


def cat(tensors: Sequence[ArrayLike], axis: int = 0) -> Tensor:
    """Joins tensors along an axis that they have; all other lengths must agree."""
    return ops.cat(_tensors("cat", tensors), axis)


def stack(tensors: Sequence[ArrayLike], axis: int = 0) -> Tensor:
    """Joins tensors of one shape along a new axis."""
    return ops.stack(_tensors("stack", tensors), axis)


__all__ = [
    "abs",
    "argmax",
    "broadcast_to",
    "cat",
    "clip",
    "erf",
    "exp",
    "gelu",
    "log",
    "log_softmax",
    "logsumexp",
    "matmul",
    "max",
    "maximum",
    "mean",
    "min",
    "minimum",
    "pad",
    "permute",
    "relu",
    "reshape",
    "sigmoid",
    "sign",
    "softmax",
    "softplus",
    "sqrt",
    "squeeze",
    "stack",
    "std",
    "sum",
    "tanh",
    "transpose",
    "unsqueeze",
    "var",
    "where",
]
