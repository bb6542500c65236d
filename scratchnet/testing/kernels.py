"""What every kernel of the device tables must compute: one row a kernel, with an oracle from outside of scratchnet.

A row says how to draw inputs, which oracle computes the result in higher precision, and how large the error may be. The
reference device is tested against these oracles, all devices against both.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..kernels.signatures import FLOATS
from . import oracles
from .bounds import roundings_of
from .oracles import cells, half
from .strategies import SPECIAL

Params = Mapping[str, Sequence[Any]]  # name -> the values to draw from


@dataclass(frozen=True)
class Row:
    """How one kernel is tested.

    shapes: of the inputs, as in `arrays`; a function of the parameters where those decide.
    oracle: `oracle(*inputs, **params)` -> the result, or a tuple of them, in the precision of its inputs.
    terms: the letters of the lengths that are summed over, or a function of the parameters. roundings, magnitude: as in
        `assert_matches_reference`.
    domain, special: as in `arrays`. dtypes: floats that the kernel takes. integers: it takes int64 too.
    lengths: letters that `oracle` is given beside the inputs, as they are not to be read off from those.
    """

    shapes: str | Callable[..., str]
    oracle: Callable[..., Any]
    terms: str | Callable[..., str] = ""
    roundings: int = 0
    magnitude: Callable[..., Any] | None = None
    domain: str | Sequence[str] = "real"
    special: Sequence[float] = SPECIAL
    integers: bool = False
    dtypes: Sequence[Any] = FLOATS
    lengths: str = ""
    params: Params = field(default_factory=dict)


_ULP = 2  # roundings in one unit in the last place
_NAN = (np.nan, 0.0)
_NO_HUGE = (np.nan, np.inf, -np.inf, -0.0, 1e-45)  # two that are huge may overflow in one order and not in another
_NO_INF = (np.nan, -np.inf, 0.0, -0.0)  # +inf - inf: every library has its own answer
_LR = (0.1, 1e-3)


_GRAD: dict[str, Any] = {"roundings": 4, "special": _NAN}
_STANDARDIZE: dict[str, Any] = {"terms": "N", "special": (), "params": {"eps": (1e-5, 0.5)}}
_PRODUCT: dict[str, Any] = {"terms": "k", "special": (), "integers": True}
_CONV: dict[str, Any] = {
    "special": (),
    "params": {
        "stride": ((1, 1), (2, 3)),
        "padding": ((0, 0), (1, 2)),
        "dilation": ((1, 1), (2, 1)),
        "groups": (1, 2, 4),
    },
}
_CONV_ROUNDED: dict[str, Sequence[Any]] = {
    "stride": ((2, 1),),
    "padding": ((0, 0),),  # an infinite weight adds nothing there, but in the oracle
    "dilation": ((1, 2),),
    "groups": (2,),
    "precision": ("bfloat16", "float16", "tf32", "tf32x3"),
}
_CONVOLUTIONS: dict[str, tuple[str, Callable[..., Any], str]] = {  # shapes, oracle, terms
    "conv2d": ("nci odk o", oracles.conv2d, "dk"),
    "conv2d_input": ("noy odk", oracles.conv2d_input, "fk"),
    "conv2d_weight": ("noy nci", oracles.conv2d_weight, "ny"),
}
_POOL: dict[str, Sequence[Any]] = {
    "window": ((2, 2), (3, 2)),
    "stride": ((2, 2), (1, 2)),
    "padding": ((0, 0), (1, 1)),
}
_MEAN: dict[str, Any] = {
    "roundings": 2,
    "special": (),
    "terms": lambda window, **_: "".join(map(str, window)),
    "params": {**_POOL, "counts_padding": (True, False)},
}
_BATCH: dict[str, Any] = {"special": (), "params": {"eps": (1e-5, 0.5)}}
_ALIVE = "real", "real", "real", "real", "bool"  # domains of a cell's inputs, of which the last is alive
_RELU: dict[str, Any] = {"special": (), "params": {"relu": (False, True)}}
_ROWWISE: dict[str, Any] = {"terms": "N", "roundings": 6 * _ULP}


def _grid(*choices: Sequence[Any], dtype: Any = np.float64) -> tuple[np.ndarray, ...]:
    """Every combination of the choices, as arrays."""
    return tuple(np.array(numbers, dtype) for numbers in itertools.product(*choices))


def _sums_of_rows(x, source, target, scale, n):
    """The product of a matrix (n, k) and x: it has scale[i] at (target[i], source[i]), the sum of equal places."""
    return np.einsum("mn,m,mi->ni", oracles.one_hot(target, n).astype(x.dtype), scale, x[source])


def _largest_of_rows(x, source, target, n):
    """The first source[i] of target[i] == t whose row is a NaN, or the maximum, at j."""
    out = np.full((n, x.shape[1]), -1)
    for t, j in np.ndindex(*out.shape):
        if len(found := source[target == t]):
            out[t, j] = found[np.argmax(x[found, j])]
    return out


KERNEL_ROWS: dict[str, Row] = {
    # elementwise, one input
    "neg": Row("*", lambda x: 0 - x, integers=True),
    "exp": Row("*", np.exp, roundings=roundings_of("exp")),
    "log": Row("*", np.log, roundings=roundings_of("log"), domain="positive"),
    "log1p": Row("*", np.log1p, roundings=roundings_of("log1p")),
    "log2": Row("*", np.log2, roundings=roundings_of("log2"), domain="positive"),
    "log10": Row("*", np.log10, roundings=roundings_of("log10"), domain="positive"),
    "expm1": Row("*", np.expm1, roundings=roundings_of("expm1")),
    "sin": Row("*", np.sin, roundings=roundings_of("sin")),
    "cos": Row("*", np.cos, roundings=roundings_of("cos")),
    "floor": Row("*", np.floor),
    "ceil": Row("*", np.ceil),
    "round": Row("*", np.round),
    "sqrt": Row("*", np.sqrt, roundings=roundings_of("sqrt"), domain="nonnegative"),
    "abs": Row("*", lambda x: np.where(x < 0, -x, x), integers=True),
    "sign": Row("*", lambda x: np.where(x != x, x, (x > 0).astype(x.dtype) - (x < 0)), integers=True),
    "tanh": Row("*", np.tanh, roundings=roundings_of("tanh")),
    "sigmoid": Row("*", oracles.special("expit"), roundings=roundings_of("exp", "+", "/")),
    "relu": Row("*", lambda x: np.where(x < 0, 0, x)),
    "erf": Row("*", oracles.special("erf"), roundings=roundings_of("erf")),
    "gelu": Row("*", oracles.gelu, roundings=4 * _ULP, magnitude=np.abs),
    "softplus": Row("*", lambda x: np.logaddexp(0, x), roundings=4 * _ULP),
    "silu": Row("*", lambda x: x * oracles.special("expit")(x), roundings=6 * _ULP),
    "clip": Row("*", oracles.clip, integers=True, params={"low": (-1, -8), "high": (2, 0)}),
    # gradients of activations
    "tanh_grad": Row("* *", oracles.tanh_grad, **_GRAD, magnitude=oracles.tanh_grad_size),
    "sigmoid_grad": Row(
        "* *", oracles.sigmoid_grad, **_GRAD, magnitude=oracles.sigmoid_grad_size, domain=("real", "unit")
    ),
    "relu_grad": Row("* *", lambda g, y: np.where(y > 0, g, 0), domain=("real", "nonnegative")),
    "gelu_grad": Row("* *", oracles.gelu_grad, roundings=6 * _ULP, special=_NAN, magnitude=oracles.gelu_grad_size),
    # elementwise, two inputs and more
    "add": Row("* *", lambda a, b: a + b, roundings=1, integers=True),
    "sub": Row("* *", lambda a, b: a - b, roundings=1, integers=True),
    "mul": Row("* *", lambda a, b: a * b, roundings=1, integers=True),
    "div": Row("* *", lambda a, b: a / b, roundings=1),
    "pow": Row("* *", lambda a, b: a**b, roundings=roundings_of("power"), magnitude=oracles.pow_size),
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
    "max": Row("oNi", oracles.largest, integers=True),
    "min": Row("oNi", oracles.smallest, integers=True),
    "argmax": Row("oNi", oracles.first_largest, integers=True),
    "argsort": Row("rN", oracles.argsort, integers=True),
    "standardize": Row("oNi", oracles.standardize, roundings=8, magnitude=oracles.standardize_size, **_STANDARDIZE),
    "standardize_grad": Row(
        "oNi oNi", oracles.standardize_grad, roundings=12, magnitude=oracles.standardize_grad_size, **_STANDARDIZE
    ),
    # movement
    "fill": Row("", lambda value, m, n: np.full((m, n), value), lengths="mn", params={"value": (0.0, -2.5, np.nan)}),
    "copy": Row("*", lambda x: x, integers=True),
    "take_rows": Row("ni m<n", oracles.take_rows, integers=True),
    "scatter_rows": Row("mi m<n", oracles.scatter_rows, terms="m", special=(), lengths="n", integers=True),
    "add_rows": Row("ki m<k m<n m", _sums_of_rows, terms="m", roundings=1, special=(), lengths="n"),
    "argmax_rows": Row("ki m<k m<n", _largest_of_rows, lengths="n"),
    # products
    "matmul": Row(
        oracles.product_shapes,
        oracles.product,
        roundings=1,
        params={"transpose_a": (False, True), "transpose_b": (False, True)},
        **_PRODUCT,
    ),
    "batched_matmul": Row(
        lambda **flags: " ".join(f"b{word}" for word in oracles.product_shapes(**flags).split()),
        half.products,
        roundings=1,
        params={"transpose_a": (False, True), "transpose_b": (False, True)},
        **_PRODUCT,
    ),
    **{
        f"matmul_{name}": Row(
            lambda **flags: " ".join(f"b{word}" for word in oracles.product_shapes(**flags).split()),
            oracle,
            roundings=10 if name == "tf32x3" else 1,
            params={"transpose_a": (False, True), "transpose_b": (False, True)},
            dtypes=FLOATS[:1],
            **_PRODUCT | {"integers": False},
        )
        for name, oracle in half.PRODUCTS.items()
    },
    "linear": Row("mk kn n", oracles.linear, roundings=2, **_PRODUCT),
    # windows
    **{
        name: Row(oracles.conv2d_shapes(words), oracle, oracles.conv2d_shapes(terms), 2, **_CONV)
        for name, (words, oracle, terms) in _CONVOLUTIONS.items()
    },
    **{
        f"{name}_rounded": Row(
            oracles.conv2d_shapes(words.replace("n", "1")),  # one image: tensor cores are slow where there are none
            half.convolution(oracle),
            oracles.conv2d_shapes(terms.replace("n", "1")),
            roundings=10,
            dtypes=FLOATS[:1],
            special=(),
            params=_CONV_ROUNDED,
        )
        for name, (words, oracle, terms) in _CONVOLUTIONS.items()
    },
    "channel_moments": Row("NCL", oracles.channel_moments, "NL", 8, magnitude=oracles.channel_moments_size, special=()),
    "batch_norm": Row(
        "ncl 2c c c",
        oracles.batch_norm,
        "",
        10,
        oracles.all_added(oracles.batch_norm),
        ("real", "nonnegative", "real", "real"),
        **_BATCH,
    ),
    "batch_norm_sums": Row(
        "ncl ncl 2c",
        oracles.batch_norm_sums,
        "nl",
        8,
        oracles.all_added(oracles.batch_norm_sums),
        ("real", "real", "nonnegative"),
        **_BATCH,
    ),
    "batch_norm_grad": Row(
        "ncl ncl 2c c 2c",
        oracles.batch_norm_grad,
        "",
        16,
        oracles.all_added(oracles.batch_norm_grad),
        ("real", "real", "nonnegative", "real", "real"),
        **_BATCH,
    ),
    "max_pool2d": Row("p86", oracles.max_pool2d, params={**_POOL, "dilation": ((1, 1), (2, 1))}),
    "avg_pool2d": Row("p86", oracles.avg_pool2d, **_MEAN),
    "avg_pool2d_grad": Row(
        lambda counts_padding, **window: f"p{oracles.outputs_of(**window)}", oracles.avg_pool2d_grad, **_MEAN
    ),
    "take_in_rows": Row("rn rm<n", oracles.take_in_rows),
    "scatter_in_rows": Row("rm rm<n", oracles.scatter_in_rows, terms="m", special=(), lengths="n"),
    # recurrent cells
    "rnn_cell": Row("n1h n1h 1nh n", cells.rnn_cell, roundings=8, domain=_ALIVE[1:], **_RELU),
    "gru_cell": Row("n3h n3h 5nh n", cells.gru_cell, "", 32, cells.gru_cell_size, _ALIVE[1:], ()),
    "lstm_cell": Row("n4h n4h 6nh n", cells.lstm_cell, "", 32, cells.lstm_cell_size, _ALIVE[1:], ()),
    "rnn_cell_grad": Row(
        "1nh 1nh nh 21nh n", cells.rnn_cell_grad, "", 8, cells.all_added(cells.rnn_cell_grad), _ALIVE, **_RELU
    ),
    "gru_cell_grad": Row(
        "1nh 1nh nh 25nh n", cells.gru_cell_grad, "", 16, cells.all_added(cells.gru_cell_grad), _ALIVE, ()
    ),
    "lstm_cell_grad": Row(
        "2nh 2nh nh 26nh n", cells.lstm_cell_grad, "", 32, cells.all_added(cells.lstm_cell_grad), _ALIVE, ()
    ),
    # rows
    "softmax": Row("rN", oracles.softmax, **_ROWWISE, magnitude=oracles.softmax_size),
    "softmax_grad": Row("rN rN", oracles.softmax_grad, terms="N", **_GRAD, magnitude=oracles.softmax_grad_size),
    "logsumexp": Row("rN", oracles.logsumexp, **_ROWWISE, magnitude=oracles.logsumexp_size),
    "log_softmax": Row("rN", oracles.log_softmax, **_ROWWISE, magnitude=oracles.log_softmax_size, special=_NO_INF),
    "cross_entropy": Row(
        "rN r<N", oracles.cross_entropy, **_ROWWISE, magnitude=oracles.cross_entropy_size, special=_NO_INF
    ),
    "cross_entropy_grad": Row(
        "r rN r<N", oracles.cross_entropy_grad, **_ROWWISE, magnitude=oracles.cross_entropy_grad_size, special=_NAN
    ),
    # random numbers
    "dropout": Row(
        "*",
        oracles.dropout,
        roundings=3,
        special=(),
        params={"p": (0.0, 0.1, 0.5), "key": _grid((0, 7, 2**32 + 1, 2**64 - 1), (0, 3, 2**32 + 5), dtype=np.uint64)},
    ),
    # optimizers
    "sgd": Row(
        "n n n",
        oracles.sgd,
        roundings=8,
        special=(),
        magnitude=oracles.sgd_size,
        params={"numbers": _grid(_LR, (0.0, 0.9), (False, True), (0.0, 0.01))},
    ),
    "adam": Row(
        "n n n n",
        oracles.adam,
        roundings=20,
        special=(),
        domain=("real", "real", "real", "nonnegative"),
        magnitude=oracles.adam_size,
        params={"numbers": _grid(_LR, (0.0, 0.9), (0.999,), (1e-8, 1e-3), (0.0, 0.01), (False, True), (1, 2, 1000))},
    ),
    "rmsprop": Row(
        "n n n n",
        oracles.rmsprop,
        roundings=16,
        special=(),
        domain=("real", "real", "nonnegative", "real"),
        magnitude=oracles.rmsprop_size,
        params={"numbers": _grid(_LR, (0.9, 0.99), (1e-8,), (0.0, 0.9), (0.0, 0.01))},
    ),
    "amsgrad": Row(
        "n n n n n",
        oracles.amsgrad,
        roundings=20,
        special=(),
        domain=("real", "real", "real", "nonnegative", "nonnegative"),
        magnitude=oracles.amsgrad_size,
        params={"numbers": _grid(_LR, (0.0, 0.9), (0.999,), (1e-8, 1e-3), (0.0, 0.01), (False, True), (1, 2, 1000))},
    ),
    "adagrad": Row(
        "n n n",
        oracles.adagrad,
        roundings=12,
        special=(),
        domain=("real", "real", "nonnegative"),
        magnitude=oracles.adagrad_size,
        params={"numbers": _grid(_LR, (1e-10, 1e-3), (0.0, 0.01))},
    ),
    "adadelta": Row(
        "n n n n",
        oracles.adadelta,
        roundings=32,
        special=(),
        domain=("real", "real", "nonnegative", "nonnegative"),
        magnitude=oracles.adadelta_size,
        params={"numbers": _grid(_LR, (0.9, 0.95), (1e-6,), (0.0, 0.01))},
    ),
}
