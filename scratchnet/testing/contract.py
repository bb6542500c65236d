"""A kernel against a reference: the values within a bound that is derived, and everything else that a kernel promises.

The bound is the one of numerical analysis, not a tolerance that was tuned until the tests passed.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import checks
from ..errors import ContractError
from .strategies import CONTIGUOUS, LAYOUTS

_WIDER: dict[np.dtype, np.dtype] = {
    np.dtype(np.float32): np.dtype(np.float64),
    np.dtype(np.float64): np.dtype(np.longdouble),
}
_MARGIN = 16  # elements on both sides of an output that nobody may touch


def assert_matches_reference(
    kernel: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: Sequence[np.ndarray],
    *,
    terms: int = 1,
    roundings: int = 8,
    magnitude: Callable[..., Any] | None = None,
    layouts: Sequence[str] = CONTIGUOUS,
    **params: Any,
) -> None:
    """Checks that a kernel computes what a reference computes, and does nothing else.

    kernel: fills arrays, `kernel(*inputs, out, **params)`, or returns one (or a tuple of them). It is taken to fill
        if it has a parameter called `out`, or some called `new_...`.
    reference: `reference(*inputs, **params)` returns the result (or a tuple). It is given float32 inputs as float64
        and float64 ones as np.longdouble, if it takes those.
    terms: how many numbers of either sign one element of the result adds up: the length of a reduction.
    roundings: how many more roundings an element sees on its way; 2 make one ulp. 0 asks for equality.
    magnitude: `magnitude(*inputs, **params)`, the size of what is added up: the kernel's formula with every term
        replaced by its absolute value. If left out, `reference(*|inputs|)` where terms > 1, else
        `|reference(*inputs)|`.
    layouts: names in LAYOUTS; the kernel is run on inputs of each.

    With n = terms - 1 + roundings and u = eps / 2, every element must lie within

        n u / (1 - n u) * magnitude + n * (smallest normal number)

    of the reference: Higham, Accuracy and Stability of Numerical Algorithms (2002), sections 3.1 and 4.2, true for
    every order of summation. u is doubled where the reference has no more digits than the kernel. NaN and infinities
    must be the same; where the terms pass the largest number of the type, so may the result. The kernel must also
    keep the dtype, write every element of its outputs and none beside them, give the same bits twice, leave its inputs
    as they were, and return no memory of theirs.

    Raises ContractError: one line with the element, what was expected, what came, and the bound.
    """
    checks.function("assert_matches_reference: kernel", kernel)
    checks.function("assert_matches_reference: reference", reference)
    inputs = checks.items("assert_matches_reference: inputs", inputs, "a list of arrays")
    inputs = [checks.array("assert_matches_reference: an input", x, "biufc") for x in inputs]
    terms = checks.integer("assert_matches_reference: terms", terms, 0)
    roundings = checks.integer("assert_matches_reference: roundings", roundings, 0)
    if magnitude is not None:
        checks.function("assert_matches_reference: magnitude", magnitude)
    for layout in (layouts := checks.items("assert_matches_reference: layouts", layouts, "a list of names")):
        checks.one_of("assert_matches_reference: a layout", layout, LAYOUTS)
    name = getattr(kernel, "__name__", type(kernel).__name__)
    fills = _fills(kernel)
    n = max(terms, 1) - 1 + roundings
    for layout in layouts:
        given = [LAYOUTS[layout](np.asarray(x)) for x in inputs]
        where = f"{name}, layout {layout!r}, shapes {', '.join(str(x.shape) for x in given) or 'none'}"
        expected = _evaluate(reference, given, params)
        if magnitude is not None:
            sizes = _evaluate(magnitude, given, params)
        elif terms > 1:
            sizes = _evaluate(reference, [np.abs(x) for x in given], params)
        else:
            sizes = expected
        results = _run(kernel, fills, given, expected, params, where)
        for i, (got, wanted, size) in enumerate(zip(results, expected, sizes, strict=True)):
            _compare(got, wanted, np.abs(size), n, where if len(results) == 1 else f"{where}, output {i}")


def _evaluate(function: Callable[..., Any], inputs: Sequence[np.ndarray], params: Mapping) -> list[np.ndarray]:
    """The results of a reference, in a type with more digits if it can."""
    with np.errstate(all="ignore"):
        try:
            result = function(*[x.astype(_WIDER.get(x.dtype, x.dtype)) for x in inputs], **params)
        except TypeError:  # no long double: SciPy and compiled functions stop at float64
            result = function(*[x.astype(np.float64) if x.dtype.kind == "f" else x for x in inputs], **params)
    return [np.asarray(y) for y in (result if isinstance(result, tuple) else (result,))]


def _run(
    kernel, fills: bool, inputs: list[np.ndarray], expected: list[np.ndarray], params: Mapping, where: str
) -> list[np.ndarray]:
    """The kernel's results, after two runs into memory with other rubbish in it, and all checks but that of values."""
    floats = [x.dtype for x in inputs if x.dtype.kind == "f"] or [np.dtype(np.float64)]
    dtypes = [floats[0] if y.dtype.kind == "f" else y.dtype for y in expected]
    shapes = [y.shape for y in expected]
    before = [x.tobytes() for x in inputs]
    runs = []
    for rubbish in (False, True):
        if fills:
            runs.append(_filled(kernel, inputs, shapes, dtypes, rubbish, params, where))
        else:
            result = kernel(*inputs, **params)
            runs.append([np.asarray(y) for y in (result if isinstance(result, tuple) else (result,))])
    for i, (x, content) in enumerate(zip(inputs, before, strict=True)):
        if x.tobytes() != content:
            raise ContractError(f"{where}: expected the inputs as they were, but input {i} was changed")
    if len(runs[0]) != len(expected):
        raise ContractError(f"{where}: expected {len(expected)} results, got {len(runs[0])}")
    for first, second, dtype, shape in zip(*runs, dtypes, shapes, strict=True):
        if first.dtype != dtype or first.shape != shape:
            raise ContractError(f"{where}: expected {dtype} of shape {shape}, got {first.dtype} of {first.shape}")
        if any(np.may_share_memory(x, first) for x in inputs):
            raise ContractError(f"{where}: expected a result with memory of its own, got an input's")
        if first.tobytes() != second.tobytes():
            raise ContractError(f"{where}: {_unstable(first, second)}")
    return runs[0]


def _unstable(first: np.ndarray, second: np.ndarray) -> str:
    same = (first == second) | ((first != first) & (second != second))
    at = tuple(int(i) for i in np.argwhere(~same)[0]) if not same.all() else "?"
    a, b = (first[at], second[at]) if not same.all() else ("nan", "another nan")
    return f"element {at}: expected to be written, and the same twice, got {a!s} and then {b!s}"


def _fills(kernel: Callable) -> bool:
    try:
        names = inspect.signature(kernel).parameters
    except ValueError:  # a built-in function without a signature
        return False
    return any(name == "out" or name.startswith("new_") for name in names)


def _filled(kernel, inputs, shapes, dtypes, rubbish: bool, params: Mapping, where: str) -> list[np.ndarray]:
    """Runs a kernel that fills arrays. Each lies in the middle of a buffer full of NaN, or of ones."""
    buffers = []
    for shape, dtype in zip(shapes, dtypes, strict=True):
        value = np.nan if dtype.kind == "f" and not rubbish else rubbish
        buffers.append(np.full(math.prod(shape) + 2 * _MARGIN, value, dtype))
    results = [b[_MARGIN : b.size - _MARGIN].reshape(shape) for b, shape in zip(buffers, shapes, strict=True)]
    margins = [b[:_MARGIN].tobytes() for b in buffers]
    kernel(*inputs, *results, **params)
    for b, margin in zip(buffers, margins, strict=True):
        if b[:_MARGIN].tobytes() != margin or b[-_MARGIN:].tobytes() != margin:
            raise ContractError(f"{where}: expected nothing written beside the result, got a change there")
    return results


def _compare(got: np.ndarray, expected: np.ndarray, magnitude: np.ndarray, n: int, where: str) -> None:
    """Raises ContractError for the worst element of `got` that is not within the bound of `expected`."""
    if got.dtype.kind != "f":
        wrong, bound, error = got != expected, np.zeros(got.shape), np.ones(got.shape)
    else:
        info = np.finfo(got.dtype)
        u = info.eps / 2 if np.finfo(expected.dtype).eps < info.eps else info.eps
        with np.errstate(all="ignore"):
            magnitude = np.broadcast_to(np.where(np.isnan(magnitude), 0, magnitude), got.shape)
            bound = n * u / (1 - n * u) * magnitude + n * info.smallest_normal
            error = np.abs(got - expected)
            same = (got == expected) | (np.isnan(got) & np.isnan(expected))
            near = np.isfinite(got) & np.isfinite(expected) & (error <= bound)
            cancels = np.abs(expected) + bound < magnitude  # an overflow of either sign, or both, on the way
            overflow = np.isfinite(expected) & (magnitude + bound > info.max) & ~np.isfinite(got)
            wrong = ~(same | near | overflow & (cancels | (got == np.copysign(np.inf, expected))))
    if not wrong.any():
        return
    with np.errstate(all="ignore"):
        excess = np.where(wrong, np.nan_to_num(error / np.maximum(bound, np.finfo(float).tiny), nan=np.inf), -1)
    at = tuple(int(i) for i in np.unravel_index(np.argmax(excess), got.shape))
    raise ContractError(
        f"{where}: element {at}: expected {expected[at]!s} within {float(bound[at]):.3g}, got {got[at]!s}"
        f" ({got.dtype}, {np.count_nonzero(wrong)} of {got.size} wrong)"
    )
