"""What every kernel of the device tables must compute: one row a kernel, with an oracle from outside of scratchnet.

A row says how to draw inputs, what NumPy, SciPy or the formula on paper makes of them in higher precision, and how
large the error may be. The reference device is tested against these oracles, all devices against both.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..tensor import FLOATS
from .contract import assert_matches_reference
from .strategies import CONTIGUOUS, EDGES, SPECIAL, Content, choice, draw_arrays, draw_lengths, optional

Params = Mapping[str, Sequence[Any]]  # name -> the values to draw from


@dataclass(frozen=True)
class Row:
    """How one kernel is tested.

    shapes: of the inputs, as in `arrays`; a function of the parameters where those decide.
    oracle: `oracle(*inputs, **params)` -> the result, or a tuple of them, in the precision of its inputs.
    terms: the letter of the length that is summed over. roundings, magnitude: as in `assert_matches_reference`.
    domain, special: as in `arrays`. integers: the kernel takes int64 too.
    lengths: letters that `oracle` is given beside the inputs, as they are not to be read off from those.
    """

    shapes: str | Callable[..., str]
    oracle: Callable[..., Any]
    terms: str = ""
    roundings: int = 0
    magnitude: Callable[..., Any] | None = None
    domain: str | Sequence[str] = "real"
    special: Sequence[float] = SPECIAL
    integers: bool = False
    lengths: str = ""
    params: Params = field(default_factory=dict)


@dataclass(frozen=True)
class KernelCase:
    """One call of a kernel: `kernel(*inputs, out, **params)`, and what must come out of it."""

    name: str
    inputs: tuple[np.ndarray, ...]
    params: dict[str, Any]
    oracle: Callable[..., Any]
    terms: int
    roundings: int
    magnitude: Callable[..., Any] | None

    def check(self, kernel: Callable, reference: Callable | None = None, layouts: Sequence[str] = CONTIGUOUS) -> None:
        """Checks a kernel against the oracle, or against another kernel that is taken for the truth.

        Raises ContractError as `assert_matches_reference` does, which also explains the bound.
        """
        assert_matches_reference(
            kernel,
            self.oracle if reference is None else _returning(reference, self.oracle),
            self.inputs,
            terms=self.terms,
            roundings=self.roundings,
            magnitude=self.magnitude,
            layouts=layouts,
            **self.params,
        )

    def __repr__(self) -> str:
        arrays = ", ".join(f"{x.dtype}{list(x.shape)}" for x in self.inputs)
        return f"KernelCase({self.name!r}, [{arrays}], {self.params})"


def kernel_cases(
    name: str,
    *,
    dtypes: Sequence[Any] = FLOATS,
    sizes: Sequence[int] = EDGES,
    max_elements: int = 2**14,
) -> Any:
    """A Hypothesis strategy for calls of the kernel called `name`, as `KernelCase`.

    dtypes: of the inputs; rows with `integers` take np.int64 as well. sizes, max_elements: as in `arrays`.
    Raises ConfigError for a name that is not in KERNEL_ROWS.
    """
    if name not in KERNEL_ROWS:
        raise ConfigError(f"kernel_cases: expected the name of a kernel, got {name!r}")
    st = optional("hypothesis.strategies")
    row = KERNEL_ROWS[name]

    @st.composite
    def cases(draw):
        params = {key: values[draw(choice(*range(len(values))))] for key, values in row.params.items()}
        shapes = row.shapes if isinstance(row.shapes, str) else row.shapes(**params)
        content = Content(dtypes, row.domain, row.special, sizes=sizes, max_elements=max_elements)
        lengths = draw_lengths(draw, f"{shapes} {row.lengths}", content)
        inputs = draw_arrays(draw, shapes, lengths, content)
        asked = {letter: lengths[letter] for letter in row.lengths}
        oracle = functools.partial(row.oracle, **asked) if asked else row.oracle
        terms = lengths[row.terms] if row.terms else 1
        magnitude = row.magnitude or (_of_absolutes(oracle) if row.terms else None)
        return KernelCase(name, inputs, params, oracle, terms, row.roundings, magnitude)

    return cases()


def _of_absolutes(oracle: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *inputs, **params: oracle(*[np.abs(x) for x in inputs], **params)


def _returning(kernel: Callable, oracle: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel that fills arrays as a function that returns them; the oracle knows their shapes."""

    def function(*inputs, **params):
        like = oracle(*inputs, **params)
        results = tuple(np.empty_like(y) for y in (like if isinstance(like, tuple) else (like,)))
        kernel(*inputs, *results, **params)
        return results

    return function


# --- oracles ---------------------------------------------------------------------------------------------------------


def _special(name: str) -> Callable[..., Any]:
    """A function of scipy.special, looked up when it is called."""
    return lambda *args, **kwargs: getattr(optional("scipy.special"), name)(*args, **kwargs)


def _phi(x):
    return np.exp(-x * x / 2) / np.sqrt(2 * np.pi)


def _gelu(x):
    return x * _special("ndtr")(x)


def _gelu_grad(g, x):
    return g * (_special("ndtr")(x) + x * _phi(x))


def _pow_size(a, b):
    return np.abs(a**b) * (1 + np.abs(b * np.log(np.abs(a))))  # exp(b log a) rounds b log a


def _top(x):
    """The largest of axis 1, by sorting, which puts NaN last."""
    return np.sort(x, axis=1)[:, -1]


def _bottom(x):
    return np.where((x != x).any(axis=1), x.dtype.type(0) / 0 if x.dtype.kind == "f" else 0, np.sort(x, axis=1)[:, 0])


def _first_top(x):
    """The first index of the largest: the sum of "not yet seen" along axis 1."""
    top = _top(x)[:, None]
    hit = (x == top) | ((x != x) & (top != top))
    return (np.cumsum(hit, axis=1) == 0).sum(axis=1)


def _spread(x, eps):
    """1 / sqrt(variance + eps) of axis 1, and how large the rounding errors of standardized x are."""
    d = x - x.mean(axis=1, keepdims=True)
    r = 1 / np.sqrt((d * d).mean(axis=1, keepdims=True) + eps)
    error = 2 * np.abs(x).max(axis=1, keepdims=True) * r
    return d * r, r, error


def _standardize_size(x, eps):
    y, _, error = _spread(x, eps)
    return np.abs(y) + error * (1 + np.abs(y))


def _standardize_grad(g, x, eps):
    y, r, _ = _spread(x, eps)
    return (g - g.mean(axis=1, keepdims=True) - y * (g * y).mean(axis=1, keepdims=True)) * r


def _standardize_grad_size(g, x, eps):
    y, r, error = _spread(x, eps)
    y, g = np.abs(y) + error * (1 + np.abs(y)), np.abs(g)
    return (g + g.mean(axis=1, keepdims=True) + y * (g * y).mean(axis=1, keepdims=True)) * r * (1 + error)


def _rows(weights, x):
    """out[j] = sum over i of weights[i, j] * x[i]."""
    return np.einsum("mn,mi->ni", weights.astype(x.dtype), x)


def _one_hot(index, n: int):
    return index[:, None] == np.arange(n)


def _product(a, b, transpose_a, transpose_b):
    return np.einsum(f"{'km' if transpose_a else 'mk'},{'nk' if transpose_b else 'kn'}->mn", a, b)


def _product_shapes(transpose_a, transpose_b):
    return f"{'km' if transpose_a else 'mk'} {'nk' if transpose_b else 'kn'}"


# exp(x - max) rounds its argument: the error of a row of softmax grows with the distances z from the maximum.


def _softmax(x):
    return _special("softmax")(x, axis=1)


def _distances(x):
    """|x - max|, and its mean under softmax(x), a row."""
    z = np.abs(x - x.max(axis=1, keepdims=True))
    return z, np.nansum(z * _softmax(x), axis=1, keepdims=True)


def _softmax_size(x):
    z, mean = _distances(x)
    return _softmax(x) * (1 + z + mean)


def _logsumexp(x):
    return _special("logsumexp")(x, axis=1)


def _logsumexp_size(x):
    return 1 + _distances(x)[1][:, 0] + np.abs(x).max(axis=1) + np.abs(_logsumexp(x))


def _log_softmax_size(x):
    z, mean = _distances(x)
    return 1 + 2 * z + mean + np.log(x.shape[1])


def _at_label(x, labels):
    return np.take_along_axis(x, labels[:, None], axis=1)[:, 0]


def _cross_entropy(logits, labels):
    return -_at_label(_special("log_softmax")(logits, axis=1), labels)


def _cross_entropy_grad(g, logits, labels):
    return g[:, None] * (_softmax(logits) - _one_hot(labels, logits.shape[1]))


def _cross_entropy_grad_size(g, logits, labels):
    return np.abs(g)[:, None] * (_softmax_size(logits) + _one_hot(labels, logits.shape[1]))


_MASK = 0xFFFFFFFF


def _philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox 4x32-10 on Python integers, as printed in Salmon et al., Parallel random numbers (2011), section 4.3."""
    (a, b, c, d), (k0, k1) = counter, key
    for _ in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = right >> 32 ^ b ^ k0, right & _MASK, left >> 32 ^ d ^ k1, left & _MASK
        k0, k1 = k0 + 0x9E3779B9 & _MASK, k1 + 0xBB67AE85 & _MASK
    return [a, b, c, d]


def _dropout(x, p, key):
    seed, stream = map(int, key)
    words = [seed & _MASK, seed >> 32]
    blocks = [_philox([i & _MASK, i >> 32, stream & _MASK, stream >> 32], words) for i in range((x.size + 3) // 4)]
    uniform = np.array([(word >> 8) / 2**24 for block in blocks for word in block])[: x.size].reshape(x.shape)
    return np.where(uniform < p, 0, x / (1 - x.dtype.type(p)))


# Optimizers: the rule on paper, and the same rule with every term replaced by its absolute value.


def _sgd(param, grad, velocity, numbers):
    lr, momentum, nesterov, weight_decay = numbers
    g = grad + weight_decay * param
    v = momentum * velocity + g
    return param - lr * (g + momentum * v if nesterov else v), v


def _sgd_size(param, grad, velocity, numbers):
    return _sgd(np.abs(param), np.abs(grad), np.abs(velocity), (-numbers[0], *numbers[1:]))


def _adam_parts(param, grad, m, v, beta1, beta2, weight_decay, decoupled):
    g = grad if decoupled else grad + weight_decay * param
    return beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2


def _adam(param, grad, m, v, numbers):
    lr, beta1, beta2, eps, weight_decay, decoupled, step = numbers
    m, v = _adam_parts(param, grad, m, v, beta1, beta2, weight_decay, decoupled)
    unbiased_m, unbiased_v = m / (1 - beta1**step), v / (1 - beta2**step)
    decayed = param * (1 - lr * weight_decay) if decoupled else param
    return decayed - lr * unbiased_m / (np.sqrt(unbiased_v) + eps), m, v


def _ratio(size, value):
    """How much larger the rounding error of `value` is, relative to it, than one rounding."""
    return np.where(size > 0, size / value, 1)


def _adam_size(param, grad, m, v, numbers):
    lr, beta1, beta2, eps, weight_decay, decoupled, step = numbers
    rule = (beta1, beta2, weight_decay, decoupled)
    size_m, size_v = _adam_parts(np.abs(param), np.abs(grad), np.abs(m), v, *rule)
    true_v = _adam_parts(param, grad, m, v, *rule)[1]
    update = lr * size_m / (1 - beta1**step) / (np.sqrt(true_v / (1 - beta2**step)) + eps)
    return np.abs(param) * (1 + lr * weight_decay) + update * (1 + _ratio(size_v, true_v)), size_m, size_v


def _rmsprop(param, grad, v, velocity, numbers):
    lr, alpha, eps, momentum, weight_decay = numbers
    g = grad + weight_decay * param
    v = alpha * v + (1 - alpha) * g**2
    u = momentum * velocity + g / (np.sqrt(v) + eps)
    return param - lr * u, v, u


def _rmsprop_size(param, grad, v, velocity, numbers):
    lr, alpha, eps, momentum, weight_decay = numbers
    size_g = np.abs(grad) + weight_decay * np.abs(param)
    size_v = alpha * v + (1 - alpha) * size_g**2
    true_v = _rmsprop(param, grad, v, velocity, numbers)[1]
    size_u = momentum * np.abs(velocity) + size_g / (np.sqrt(true_v) + eps) * (1 + _ratio(size_v, true_v))
    return np.abs(param) + lr * size_u, size_v, size_u


# --- the table -------------------------------------------------------------------------------------------------------

_ULP = 2  # roundings in one unit in the last place
_NAN = (np.nan, 0.0)
_NO_HUGE = (np.nan, np.inf, -np.inf, -0.0, 1e-45)  # two that are huge may overflow in one order and not in another
_NO_INF = (np.nan, -np.inf, 0.0, -0.0)  # +inf - inf: every library has its own answer
_LR = (0.1, 1e-3)


def _grid(*choices: Sequence[Any], dtype: Any = np.float64) -> tuple[np.ndarray, ...]:
    """Every combination of the choices, as arrays."""
    return tuple(np.array(numbers, dtype) for numbers in itertools.product(*choices))


KERNEL_ROWS: dict[str, Row] = {
    # elementwise, one input
    "neg": Row("*", lambda x: 0 - x, integers=True),
    "exp": Row("*", np.exp, roundings=4 * _ULP),
    "log": Row("*", np.log, roundings=4 * _ULP, domain="positive"),
    "sqrt": Row("*", np.sqrt, roundings=1, domain="nonnegative"),
    "abs": Row("*", lambda x: np.where(x < 0, -x, x), integers=True),
    "sign": Row("*", lambda x: np.where(x != x, x, (x > 0).astype(x.dtype) - (x < 0)), integers=True),
    "tanh": Row("*", np.tanh, roundings=4 * _ULP),
    "sigmoid": Row("*", _special("expit"), roundings=4 * _ULP),
    "relu": Row("*", lambda x: np.where(x < 0, 0, x)),
    "erf": Row("*", _special("erf"), roundings=4 * _ULP),
    "gelu": Row("*", _gelu, roundings=4 * _ULP, magnitude=np.abs),
    "softplus": Row("*", lambda x: np.logaddexp(0, x), roundings=4 * _ULP),
    "clip": Row(
        "*",
        lambda x, low, high: np.where(x < low, low, np.where(x > high, high, x)).astype(x.dtype),
        integers=True,
        params={"low": (-1, -8), "high": (2, 0)},
    ),
    # gradients of activations
    "tanh_grad": Row(
        "* *", lambda g, y: g * (1 - y**2), roundings=4, special=_NAN, magnitude=lambda g, y: np.abs(g) * (1 + y**2)
    ),
    "sigmoid_grad": Row(
        "* *",
        lambda g, y: g * (y - y**2),
        roundings=4,
        special=_NAN,
        domain=("real", "unit"),
        magnitude=lambda g, y: np.abs(g) * (np.abs(y) + y**2),
    ),
    "relu_grad": Row("* *", lambda g, y: np.where(y > 0, g, 0), domain=("real", "nonnegative")),
    "gelu_grad": Row(
        "* *",
        _gelu_grad,
        roundings=6 * _ULP,
        special=_NAN,
        magnitude=lambda g, x: np.abs(g) * (1 + np.abs(x) * _phi(x) * (1 + x**2)),
    ),
    # elementwise, two inputs and more
    "add": Row("* *", lambda a, b: a + b, roundings=1, integers=True),
    "sub": Row("* *", lambda a, b: a - b, roundings=1, integers=True),
    "mul": Row("* *", lambda a, b: a * b, roundings=1, integers=True),
    "div": Row("* *", lambda a, b: a / b, roundings=1),
    "pow": Row("* *", lambda a, b: a**b, roundings=4 * _ULP, magnitude=_pow_size),
    "maximum": Row("* *", lambda a, b: np.where((a > b) | (a != a), a, b), integers=True),
    "minimum": Row("* *", lambda a, b: np.where((a < b) | (a != a), a, b), integers=True),
    "lt": Row("* *", lambda a, b: a < b, integers=True),
    "le": Row("* *", lambda a, b: a <= b, integers=True),
    "gt": Row("* *", lambda a, b: a > b, integers=True),
    "ge": Row("* *", lambda a, b: a >= b, integers=True),
    "eq": Row("* *", lambda a, b: a == b, integers=True),
    "ne": Row("* *", lambda a, b: a != b, integers=True),
    "where": Row("* * *", lambda c, a, b: np.choose(c, (b, a)), domain=("bool", "real", "real"), integers=True),
    # reductions of the middle axis
    "sum": Row("oni", lambda x: np.einsum("oni->oi", x), terms="n", special=_NO_HUGE, integers=True),
    "max": Row("oNi", _top, integers=True),
    "min": Row("oNi", _bottom, integers=True),
    "argmax": Row("oNi", _first_top, integers=True),
    "standardize": Row(
        "oNi",
        lambda x, eps: _spread(x, eps)[0],
        terms="N",
        roundings=8,
        special=(),
        magnitude=_standardize_size,
        params={"eps": (1e-5, 0.5)},
    ),
    "standardize_grad": Row(
        "oNi oNi",
        _standardize_grad,
        terms="N",
        roundings=12,
        special=(),
        magnitude=_standardize_grad_size,
        params={"eps": (1e-5, 0.5)},
    ),
    # movement
    "fill": Row("", lambda value, m, n: np.full((m, n), value), lengths="mn", params={"value": (0.0, -2.5, np.nan)}),
    "copy": Row("*", lambda x: x, integers=True),
    "take_rows": Row(
        "ni m<n",
        lambda x, index: np.array([x[i] for i in index], x.dtype).reshape(len(index), *x.shape[1:]),
        integers=True,
    ),
    "scatter_rows": Row(
        "mi m<n", lambda g, index, n: _rows(_one_hot(index, n), g), terms="m", special=(), lengths="n", integers=True
    ),
    # products
    "matmul": Row(
        _product_shapes,
        _product,
        terms="k",
        roundings=1,
        special=(),
        integers=True,
        params={"transpose_a": (False, True), "transpose_b": (False, True)},
    ),
    "linear": Row(
        "mk kn n",
        lambda x, w, b: np.einsum("mk,kn->mn", x, w) + b,
        terms="k",
        roundings=2,
        special=(),
        integers=True,
    ),
    # rows
    "softmax": Row("rN", _softmax, terms="N", roundings=6 * _ULP, magnitude=_softmax_size),
    "softmax_grad": Row(
        "rN rN",
        lambda g, y: y * g - y * np.einsum("rn,rn->r", g, y)[:, None],
        terms="N",
        roundings=4,
        special=_NAN,
        magnitude=lambda g, y: np.abs(y * g) + np.abs(y) * np.einsum("rn,rn->r", np.abs(g), np.abs(y))[:, None],
    ),
    "logsumexp": Row("rN", _logsumexp, terms="N", roundings=6 * _ULP, magnitude=_logsumexp_size),
    "log_softmax": Row(
        "rN",
        lambda x: _special("log_softmax")(x, axis=1),
        terms="N",
        roundings=6 * _ULP,
        special=_NO_INF,
        magnitude=_log_softmax_size,
    ),
    "cross_entropy": Row(
        "rN r<N",
        _cross_entropy,
        terms="N",
        roundings=6 * _ULP,
        special=_NO_INF,
        magnitude=lambda x, labels: _at_label(_log_softmax_size(x), labels),
    ),
    "cross_entropy_grad": Row(
        "r rN r<N",
        _cross_entropy_grad,
        terms="N",
        roundings=6 * _ULP,
        special=_NAN,
        magnitude=_cross_entropy_grad_size,
    ),
    # random numbers
    "dropout": Row(
        "*",
        _dropout,
        roundings=3,
        special=(),
        params={"p": (0.0, 0.1, 0.5), "key": _grid((0, 7, 2**32 + 1, 2**64 - 1), (0, 3, 2**32 + 5), dtype=np.uint64)},
    ),
    # optimizers
    "sgd": Row(
        "n n n",
        _sgd,
        roundings=8,
        special=(),
        magnitude=_sgd_size,
        params={"numbers": _grid(_LR, (0.0, 0.9), (False, True), (0.0, 0.01))},
    ),
    "adam": Row(
        "n n n n",
        _adam,
        roundings=20,
        special=(),
        domain=("real", "real", "real", "nonnegative"),
        magnitude=_adam_size,
        params={"numbers": _grid(_LR, (0.0, 0.9), (0.999,), (1e-8, 1e-3), (0.0, 0.01), (False, True), (1, 2, 1000))},
    ),
    "rmsprop": Row(
        "n n n n",
        _rmsprop,
        roundings=16,
        special=(),
        domain=("real", "real", "nonnegative", "real"),
        magnitude=_rmsprop_size,
        params={"numbers": _grid(_LR, (0.9, 0.99), (1e-8,), (0.0, 0.9), (0.0, 0.01))},
    ),
}
