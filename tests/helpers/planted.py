"""Kernels with one planted bug each, and what `scratchnet.testing` says about them; docs/testing.md shows the table."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np

from scratchnet.testing import SPECIAL


@dataclass(frozen=True)
class Planted:
    """words, options: of `arrays`. check: of `assert_matches_reference`. terms: the axis that they lie along."""

    kernel: Callable[..., Any]
    reference: Callable[..., Any]
    found: str  # a part of the message
    words: str = "mn"
    options: dict[str, Any] = field(default_factory=dict)
    check: dict[str, Any] = field(default_factory=dict)
    terms: int | None = None
    compiled: dict[str, Any] | None = None  # options of numba.njit; such rows take seconds

    @functools.cached_property
    def ready(self) -> Callable[..., Any]:
        return self.kernel if self.compiled is None else numba.njit(**self.compiled)(self.kernel)


calls = itertools.count()


def double(x):
    return x * 2


def sum_rows(x):
    return x.sum(axis=-1)


def copy_to(function):
    def kernel(x, out):
        out[...] = function(x)

    return kernel


def groups_of_eight(x, out):
    n = x.shape[1] // 8 * 8
    out[:, :n] = 2 * x[:, :n]


def last_row(x, out):
    out[:-1] = 2 * x[:-1]


def tile_edge(x, out):
    for i in range(0, x.shape[0] - 1, 32):
        out[i : i + 32] = 2 * x[i : i + 32]


def before(x, out):
    out[...] = 2 * x
    np.lib.stride_tricks.as_strided(out.ravel()[:1], (2,), (-out.itemsize,))[-1:] = 0


def behind(x, out):
    out[...] = 2 * x
    np.lib.stride_tricks.as_strided(out.ravel()[-1:], (2,))[1] = 5


def changes_input(x, out):
    out[...] = 2 * x
    x[...] = 0


def scratch_input(x, out):
    x *= 2
    out[...] = x
    x /= 2.0001


def adds(x, out):
    out += 2 * x


def only_positive(x, out):
    np.multiply(x, 2, out=out, where=x > 0)


def ignores_strides(x, out):
    out[...] = 2 * x.ravel(order="K").reshape(x.shape)


def one_element(x, out):
    out[...] = 2 * x
    if x.shape[1] > 4:
        out[:, 4] *= x.dtype.type(1 + 3e-6)


def later_call(x, out):
    out[...] = 2 * x
    out += x.dtype.type(next(calls) % 2) * x


def naive_variance(x, out):
    out[...] = (x * x).mean(axis=1) - x.mean(axis=1) ** 2


def forgets_nan(x, out):
    out[...] = np.fmax.reduce(x, axis=1)


def last_of_equals(x, out):
    out[...] = x.shape[1] - 1 - x[:, ::-1].argmax(axis=1)


def unshifted(x, out):
    with np.errstate(all="ignore"):
        e = np.exp(x)
        out[...] = e / e.sum(axis=1, keepdims=True)


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def softmax_size(x):
    return softmax(x) * (1 + 2 * np.abs(x - x.max(axis=1, keepdims=True)).max(axis=1, keepdims=True))


def naive_hypot(x, y, out):
    with np.errstate(all="ignore"):
        out[...] = np.sqrt(x * x + y * y)


def rest_of_k(a, b, out):
    k = a.shape[1] // 4 * 4
    out[...] = a[:, :k] @ b[:k]


def square_only(a, b, out):
    out[...] = 0
    n = min(out.shape)
    out[:n, :n] = (a @ b)[:n, :n]


def not_same(x, y, out):
    if x is not y:
        np.subtract(x, y, out=out)


def shifts(x, out):
    for i in range(1, len(x)):
        out[i] = x[i] + x[i - 1]
    out[:1] = x[:1]


def shifted(x):
    return x + np.concatenate([x[:1] * 0, x[:-1]])


def narrow_sum(x, out):
    out[...] = x.astype(np.int8).sum(axis=1, dtype=np.int8)


def towards_zero(x, y, out):
    out[...] = np.trunc(x / y).astype(x.dtype)


def clamped_index(x, index, out):
    out[...] = x[np.minimum(index, max(len(x) - 2, 0))]


def no_conjugate(x, y, out):
    out[...] = x * y


def not_for_empty(x, out):
    largest = x.max()  # NumPy's of an empty array raises
    out[...] = np.minimum(2 * x, 2 * largest)


def by_threads(x, out):
    n = numba.get_num_threads()
    parts = np.zeros(n, x.dtype)
    for t in numba.prange(n):
        s = x.dtype.type(0)
        for i in range(t * x.size // n, (t + 1) * x.size // n):
            s += x[i]
        parts[t] = s
    s = x.dtype.type(0)
    for t in range(n):
        s += parts[t]
    out[()] = s


def past_the_end(x, out):
    for i in range(x.shape[0]):
        for j in range(x.shape[1] + (i == x.shape[0] - 1)):
            out[i, j] = 2 * x[i, j]


F = np.float32
PLANTED = {
    # a part of the result
    "forgets the rest of groups of eight": Planted(groups_of_eight, double, "expected to be written"),
    "forgets the last row": Planted(last_row, double, "expected to be written"),
    "forgets a tile of one row": Planted(tile_edge, double, "expected to be written"),
    "leaves out elements on a condition": Planted(only_positive, double, "expected to be written"),
    "adds to what was in out": Planted(adds, double, "expected to be written"),
    "forgets the rest of k": Planted(rest_of_k, np.matmul, "element (0, 0)", "MK,KN", terms=-1, check={"roundings": 1}),
    "is right for square matrices": Planted(
        square_only, np.matmul, "element", "mk,kn", terms=-1, check={"roundings": 1}
    ),
    "fails for empty arrays": Planted(not_for_empty, double, "ValueError"),
    # memory
    "writes before out": Planted(before, double, "nothing written beside", "MN"),
    "writes behind out": Planted(behind, double, "nothing written beside", "MN"),
    "writes behind out, in Numba": Planted(past_the_end, double, "nothing written beside", "MN", compiled={}),
    "clears its input": Planted(changes_input, double, "inputs as they were"),
    "uses its input as scratch": Planted(scratch_input, double, "inputs as they were"),
    "returns its input": Planted(lambda x: x, lambda x: x, "memory of its own"),
    "returns a view": Planted(lambda x: x.T, lambda x: x.T, "memory of its own"),
    "assumes C order": Planted(ignores_strides, double, "layout 'Fortran'", check={"layouts": ("C", "Fortran")}),
    "is wrong as f(x, x)": Planted(not_same, np.subtract, "one array for inputs 0 and 1", "n,n"),
    "is wrong in place": Planted(shifts, shifted, "in place", "n", check={"inplace": 0, "terms": 2}),
    # types
    "returns float64 for float32": Planted(lambda x: 2 * x.astype(float), double, "expected float32"),
    "returns another shape": Planted(lambda x: (2 * x).ravel(), double, "of shape"),
    "adds up in half precision": Planted(copy_to(lambda x: x.astype("e").sum(axis=1)), sum_rows, "element", terms=-1),
    "adds up float64 in float32": Planted(copy_to(lambda x: x.sum(axis=1, dtype=F)), sum_rows, "(float64", terms=-1),
    "adds up integers in int8": Planted(
        narrow_sum, sum_rows, "element", options={"dtypes": ["int64"], "integers": (-99, 99)}
    ),
    "divides integers towards zero": Planted(
        towards_zero, np.floor_divide, "element", "n,n",
        {"dtypes": ["int64"], "domain": ("real", lambda y: np.where(y == 0, 1, y))},
    ),
    "forgets the conjugate": Planted(
        no_conjugate, lambda x, y: x * np.conj(y), "element", "n,n", {"dtypes": ["complex64"]}
    ),
    # values
    "is off by 0.1 %": Planted(copy_to(lambda x: x * x.dtype.type(2.002)), double, "wrong"),
    "is off by 3e-6 in one column": Planted(one_element, double, "element (0, 4)"),
    "cancels (variance as a difference)": Planted(
        naive_variance, lambda x: x.var(axis=1), "wrong", "mN", {"domain": lambda x: x + 100},
        {"magnitude": lambda x: 4 * x.var(axis=1) + x.mean(axis=1) ** 2 * 1e-6, "roundings": 8}, terms=-1,
    ),
    "overflows (exp of large numbers)": Planted(
        unshifted, softmax, "got nan", "mN", {"domain": lambda x: 20 * x}, {"magnitude": softmax_size, "roundings": 16},
        terms=-1,
    ),
    "overflows (square root of squares)": Planted(naive_hypot, np.hypot, "got inf", "n,n", {"special": (3e38, 1.0)}),
    "swallows NaN": Planted(forgets_nan, lambda x: x.max(axis=1), "expected nan", "mN", {"special": SPECIAL}),
    "takes the last of equals": Planted(
        last_of_equals, lambda x: x.argmax(axis=1), "int64", "mN",
    ),
    "never takes the last index": Planted(
        clamped_index, lambda x, i: x[i], "element", "Kn,m<K", check={"roundings": 0}
    ),
    # time
    "gives other bits the second time": Planted(later_call, double, "the same twice"),
    "depends on the number of threads": Planted(
        by_threads, lambda x: x.sum(), "number of threads", "n", terms=-1, compiled={"parallel": True},
        options={"dtypes": ["float32"]}, check={"layouts": ("C",)},
    ),
}  # fmt: skip
