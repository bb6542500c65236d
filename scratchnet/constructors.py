"""Tensors out of nothing, by the words of PyTorch: constants, ranges, random numbers.

    zeros(2, 3)   zeros((2, 3))   zeros_like(x)   arange(10)   randn(64, 784, device="cuda")

Each takes dtype, device and requires_grad. Random numbers come from one stream of the current generator a call, drawn
on the host, so they are the same on all devices. In a step of `sn.jit` memory is made anew in each call, and random
numbers are drawn anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import checks, random, tracing
from .errors import ConfigError, DtypeError, ShapeError
from .kernels import Device
from .kernels import device as find_device
from .kernels.signatures import FLOATS, HALVES
from .ops.elementwise import where
from .ops.movement import element
from .ops.operands import ArrayLike, checked_dtype, copied, fitted
from .random import Generator
from .tensor import Tensor, current_device

__all__ = [
    "arange", "as_tensor", "bernoulli", "empty", "empty_like", "eye", "from_numpy", "full", "full_like", "linspace",
    "multinomial", "normal", "ones", "ones_like", "rand", "rand_like", "randint", "randint_like", "randn", "randn_like",
    "randperm", "zeros", "zeros_like",
]  # fmt: skip


def _lengths(name: str, size: tuple[Any, ...]) -> tuple[int, ...]:
    """A shape given as numbers or as one tuple."""
    if len(size) == 1 and isinstance(size[0], tuple | list):
        size = tuple(size[0])
    return checks.lengths(name, size)


def _dtype(name: str, dtype: Any, default: Any = np.float32) -> np.dtype:
    return checked_dtype(name, default if dtype is None else dtype)


def _device(device: Any) -> Device:
    return find_device(current_device() if device is None else device)


def _finished(data: Any, device: Device, requires_grad: bool) -> Tensor:
    t = Tensor._wrap(data, device)
    if requires_grad is not False:
        t.requires_grad = requires_grad
    return t


def _filled(name: str, size: tuple, value: float, dtype: Any, device: Any, requires_grad: bool) -> Tensor:
    shape, found = _lengths(name, size), _device(device)
    kernels = tracing.active(found)
    out = kernels.empty(shape, _dtype(name, dtype))
    kernels.fill(out, value)
    return _finished(out, found, requires_grad)


def _of_host(array: np.ndarray, device: Any, requires_grad: bool) -> Tensor:
    """A tensor with memory of its own, also in each call of a recorded step."""
    found = _device(device)
    return _finished(copied(found.from_host(array), array.dtype, found), found, requires_grad)


def _like(x: ArrayLike, dtype: Any, device: Any) -> dict[str, Any]:
    """The shape, dtype and device of another tensor, where they are not given."""
    t = x if isinstance(x, Tensor) else Tensor(x)
    own = {"dtype": t.dtype if dtype is None else dtype, "device": t.device if device is None else device}
    return {"size": t.shape, **own}


# --- constants -------------------------------------------------------------------------------------------------------


def zeros(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """0 everywhere; size: lengths, or one tuple of them. float32 unless another dtype is given."""
    return _filled("zeros", size, 0, dtype, device, requires_grad)


def ones(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """1 everywhere; size: lengths, or one tuple of them. float32 unless another dtype is given."""
    return _filled("ones", size, 1, dtype, device, requires_grad)


def empty(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Memory to be written to. It holds zeros, not what was there before, so that a program repeats its numbers."""
    return _filled("empty", size, 0, dtype, device, requires_grad)


def full(size: Any, fill_value: float, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """One number everywhere, in its dtype: float32, int64 or bool, unless another is given."""
    default = {bool: np.bool_, int: np.int64}.get(type(fill_value), np.float32)
    wanted = _dtype("full", dtype, default)
    value = element("full", fill_value, Tensor._wrap(np.empty((), wanted), find_device("numpy")))
    return _filled("full", (size,), value, wanted, device, requires_grad)


def zeros_like(x: ArrayLike, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """0 everywhere, in the shape, dtype and device of another tensor."""
    own = _like(x, dtype, device)
    return zeros(own.pop("size"), **own, requires_grad=requires_grad)


def ones_like(x: ArrayLike, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """1 everywhere, in the shape, dtype and device of another tensor."""
    own = _like(x, dtype, device)
    return ones(own.pop("size"), **own, requires_grad=requires_grad)


def empty_like(x: ArrayLike, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """As `empty`, in the shape, dtype and device of another tensor."""
    return zeros_like(x, dtype, device, requires_grad)


def full_like(
    x: ArrayLike, fill_value: float, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """One number everywhere, in the shape, dtype and device of another tensor."""
    return full(fill_value=fill_value, **_like(x, dtype, device), requires_grad=requires_grad)


# --- ranges ----------------------------------------------------------------------------------------------------------


def arange(
    start: float,
    end: float | None = None,
    step: float = 1,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Numbers from start up to end, which is left out; arange(n) counts from 0. int64, or float32 if one is a float."""
    if end is None:
        start, end = 0, start
    given = [checks.number(f"arange: {name}", x) for name, x in (("start", start), ("end", end), ("step", step))]
    if not given[2]:
        raise ConfigError("arange: expected a step other than 0, got 0")
    integral = all(isinstance(x, int | np.integer) for x in (start, end, step))
    if integral:
        for x in (start, end, step):
            checks.integer("arange", x, -(2**62), 2**62)
    first, last, by = (start, end, step) if integral else given
    n = max(-int((first - last) // by), 0) if integral else max(math.ceil((last - first) / by), 0)
    checks.integer("arange: a length", n, 0, 2**48, error=ShapeError)
    numbers = np.arange(n) * by + first
    wanted = _dtype("arange", dtype, np.int64 if integral else np.float32)
    fitted("arange", numbers[abs(numbers) >= abs(by) / 2], wanted)  # others are 0, up to rounding
    return _of_host(numbers.astype(wanted), device, requires_grad)


def linspace(
    start: float, end: float, steps: int, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """So many numbers at equal distances from start to end, both included; float32 unless another dtype is given."""
    start, end = checks.number("linspace: start", start), checks.number("linspace: end", end)
    n = checks.integer("linspace: steps", steps, 0, 2**48)
    wanted = _dtype("linspace", dtype)
    fitted("linspace", np.array([start, end]), wanted)  # all others lie between
    return _of_host(np.linspace(start, end, n).astype(wanted), device, requires_grad)


def eye(n: int, m: int | None = None, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """1 on the diagonal of an (n, m) matrix, 0 elsewhere; m: n unless given."""
    rows, columns = checks.lengths("eye", (n, n if m is None else m))
    return _of_host(np.eye(rows, columns, dtype=_dtype("eye", dtype)), device, requires_grad)


def as_tensor(data: ArrayLike, dtype: Any = None, device: Any = None) -> Tensor:
    """data itself if it is a tensor so already, else a tensor that shares its memory where it can."""
    if not isinstance(data, Tensor):
        return Tensor(data, dtype=dtype, device=device)
    return data.to(data if device is None else device, dtype=data.dtype if dtype is None else dtype)


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor on the host that shares the memory of a NumPy array, and its dtype."""
    checks.instance("from_numpy", array, np.ndarray, "a NumPy array", "sn.tensor(...) copies anything")
    return Tensor(array, device=current_device() if _device(None).is_host else "cpu")


# --- random numbers --------------------------------------------------------------------------------------------------


def _drawn(
    shape: tuple[int, ...],
    dtype: np.dtype,
    draw: Callable[[np.random.Generator], Any],
    device: Any,
    requires_grad: bool,
    generator: Any,
) -> Tensor:
    """What `draw` makes of NumPy's generator over one stream."""
    if dtype in HALVES:  # rounded, a number below 1 may be 1, and two may be equal
        raise DtypeError(f"random numbers: expected float32 or wider, got {dtype}; .astype('{dtype}') rounds them")
    found = _device(device)
    if not found.is_host:
        tracing.current().refuse("random numbers on a GPU")
    if generator is not None:
        checks.instance("generator", generator, Generator, "a Generator", "sn.manual_seed(n) returns one")
    numbers = (generator or random.current()).filled(np.empty(shape, dtype), draw)
    return _finished(copied(found.from_host(numbers), dtype, found), found, requires_grad)


def _float(name: str, dtype: Any) -> np.dtype:
    found = _dtype(name, dtype)
    if found not in FLOATS:
        raise DtypeError(f"{name}: expected float32 or float64, got {found}")
    return found


def rand(
    *size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False, generator: Generator | None = None
) -> Tensor:
    """Uniform on [0, 1)."""
    shape, found = _lengths("rand", size), _float("rand", dtype)
    return _drawn(shape, found, lambda g: g.random(shape, found), device, requires_grad, generator)


def randn(
    *size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False, generator: Generator | None = None
) -> Tensor:
    """Normal with mean 0 and variance 1."""
    shape, found = _lengths("randn", size), _float("randn", dtype)
    return _drawn(shape, found, lambda g: g.standard_normal(shape, found), device, requires_grad, generator)


def normal(
    mean: float = 0.0,
    std: float = 1.0,
    size: Any = (),
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """Normal with a mean and a standard deviation, drawn in float64 and rounded to the dtype."""
    mean, std = checks.number("normal: mean", mean), checks.number("normal: std", std, "[0, inf)")
    shape, found = _lengths("normal", (size,)), _float("normal", dtype)
    return _drawn(shape, found, lambda g: g.normal(mean, std, shape), device, requires_grad, generator)


def randint(
    low: int,
    high: Any,
    size: Any = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """Integers from low to high - 1; randint(high, size) counts from 0. int64 unless another dtype is given."""
    if size is None:
        low, high, size = 0, low, high
    low = checks.integer("randint: low", low, -(2**63), 2**63 - 1)
    high = checks.integer("randint: high", high, low + 1, 2**63 - 1)
    shape, found = _lengths("randint", (size,)), _dtype("randint", dtype, np.int64)
    if found.kind in "iu" and not np.iinfo(found).min <= low <= high - 1 <= np.iinfo(found).max:
        raise DtypeError(f"randint: expected numbers that fit {found}, got {low} to {high - 1}")
    return _drawn(shape, found, lambda g: g.integers(low, high, shape), device, requires_grad, generator)


def randperm(n: int, dtype: Any = None, device: Any = None, generator: Generator | None = None) -> Tensor:
    """The numbers from 0 to n - 1 in random order; int64 unless another dtype is given."""
    (n,) = checks.lengths("randperm", (n,))
    return _drawn((n,), _dtype("randperm", dtype, np.int64), lambda g: g.permutation(n), device, False, generator)


def rand_like(x: ArrayLike, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """As `rand`, in the shape, dtype and device of another tensor."""
    own = _like(x, dtype, device)
    return rand(own.pop("size"), **own, requires_grad=requires_grad)


def randn_like(x: ArrayLike, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """As `randn`, in the shape, dtype and device of another tensor."""
    own = _like(x, dtype, device)
    return randn(own.pop("size"), **own, requires_grad=requires_grad)


def randint_like(x: ArrayLike, low: int, high: int | None = None, dtype: Any = None, device: Any = None) -> Tensor:
    """As `randint`, in the shape, dtype and device of another tensor."""
    return randint(*((0, low) if high is None else (low, high)), **_like(x, dtype, device))


def bernoulli(p: ArrayLike, generator: Generator | None = None) -> Tensor:
    """1 with probability p[i], else 0, in the shape and dtype of p, floats in [0, 1]; NaN where p is no probability."""
    p = p if isinstance(p, Tensor) else Tensor(p)
    wide = p.detach().float() if p.dtype in HALVES else p.detach()
    _float("bernoulli", wide.dtype)
    drawn = rand(p.shape, dtype=wide.dtype, device=p.device, generator=generator) < wide
    return where((wide >= 0) & (wide <= 1), drawn.astype(wide.dtype), math.nan).astype(p.dtype)


def multinomial(
    probabilities: ArrayLike, num_samples: int, replacement: bool = False, generator: Generator | None = None
) -> Tensor:
    """int64 (..., num_samples): numbers of classes, drawn with these weights (..., classes) >= 0.

    Each row of weights counts by its sum. Without replacement each class is drawn at most once. Looks at the numbers,
    so it is for outside of recorded steps.
    """
    given = probabilities if isinstance(probabilities, Tensor) else Tensor(probabilities)
    weights = np.asarray(given.detach().numpy(), np.float64)
    n = checks.integer("multinomial: num_samples", num_samples, 1, 2**31)
    replacement = checks.flag("multinomial: replacement", replacement)
    if not weights.ndim or not weights.size or not (weights >= 0).all() or not np.isfinite(weights).all():
        checks.refuse("multinomial", "rows of finite weights >= 0", weights, ShapeError)
    if ((weights > 0).sum(-1) < (1 if replacement else n)).any():
        raise ShapeError(f"multinomial: expected {1 if replacement else n} or more weights > 0 in each row, got fewer")
    shape = (*weights.shape[:-1], n)

    def draw(g: np.random.Generator) -> np.ndarray:
        if not replacement:  # the classes whose exponential clocks of these rates ring first
            return np.argsort(g.standard_exponential(weights.shape) / np.where(weights > 0, weights, 1e-300))[..., :n]
        totals = np.cumsum(weights, axis=-1)
        points = g.random(shape) * totals[..., -1:]
        return (points[..., None] >= totals[..., None, :]).sum(-1)

    return _drawn(shape, np.dtype(np.int64), draw, given.device, False, generator)
