"""The words that notebooks of PyTorch use, by table: a call, what it must give, and where PyTorch and NumPy differ.

tests/test_vocabulary.py walks the table: values against the oracle, on usual, empty and 0-d inputs, gradients against
differences, replays of a recorded step. docs/differences.md has its columns of differences.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special

import scratchnet as sn

SHAPES = ((3, 4), (), (0, 3))


@dataclass(frozen=True)
class Row:
    """One word: call(*tensors) must give what oracle(*arrays) gives, for inputs of each of the shapes.

    shapes: of each input, a tuple for several; numbers: draws integers. smooth: there is a gradient to compare. looks:
    it looks at numbers, so a recorded step refuses it. torch, numpy: what is different there; empty if nothing is.
    """

    call: Callable[..., Any]
    oracle: Callable[..., Any]
    shapes: Sequence[Any] = SHAPES
    domain: str = "real"
    smooth: bool = True
    looks: bool = False
    torch: str = ""
    numpy: str = ""


def method(name: str, *args: Any, **words: Any) -> Callable[..., Any]:
    """The method of that name with these arguments behind its tensors."""
    return lambda *tensors: getattr(tensors[0], name)(*tensors[1:], *args, **words)


def like(name: str, oracle: Any = None, *args: Any, **options: Any) -> Row:
    """A row whose oracle is NumPy's function of that name, with the same arguments."""
    function = getattr(np, oracle or name)
    return Row(method(name, *args), lambda *arrays: function(*arrays, *args), **options)


PAIRS = (((3, 4), (3, 4)), ((3, 4), (4,)), ((), (2,)), ((0, 3), (1,)))
WHOLE = {"smooth": False}
MATRIX = {"shapes": ((3, 4),)}
MASK = np.array([[True, False, True, False], [False] * 4, [True] * 4])
INDEX = np.array([[0, 2, 3], [1, 1, 0], [3, 0, 0]])


def numpys(name: str, **words: Any) -> Callable[..., Any]:
    """NumPy's function of that name with these words."""
    return lambda x: getattr(np, name)(x, **words)


def _pair(name: str) -> Callable[..., Any]:
    return lambda x: tuple(method(name, 1)(x))


def _sorted(x, k=None, largest=False):
    order = np.argsort(-x if largest else x, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(x, order, 1), order


def _log_of_sum(x):
    return scipy.special.logsumexp(x, axis=1)


ROWS: dict[str, Row] = {
    # --- elementwise ---
    **{name: like(name) for name in ["exp", "expm1", "sin", "cos", "tanh", "square"]},
    **{name: like(name, domain="positive") for name in ["log", "log1p", "log2", "log10", "sqrt", "reciprocal"]},
    "rsqrt": Row(method("rsqrt"), lambda x: x**-0.5, domain="positive"),
    "tan": like("tan", domain="unit"),
    "neg": like("neg", "negative"),
    "abs": like("abs", domain="nonzero", torch="gradient at NaN is 0, not NaN"),
    "sign": like("sign", **WHOLE, torch="requires grad, which is 0"),
    **{name: like(name, **WHOLE, torch="requires grad, which is 0") for name in ("floor", "ceil")},
    "round": like("round", None, 1, **WHOLE, torch="requires grad, which is 0"),
    "sigmoid": Row(method("sigmoid"), scipy.special.expit),
    "erf": Row(method("erf"), scipy.special.erf),
    "relu": Row(method("relu"), lambda x: np.maximum(x, 0), domain="nonzero", torch="gradient at NaN is 1, not 0"),
    "gelu": Row(method("gelu"), lambda x: x * scipy.special.ndtr(x), torch="of `F.gelu` alone; `sn.gelu` is it"),
    "silu": Row(method("silu"), lambda x: x * scipy.special.expit(x), torch="`F.silu` alone"),
    "softplus": Row(method("softplus"), lambda x: np.logaddexp(x, 0), torch="`F.softplus` alone, with beta"),
    "clamp": Row(method("clamp", -0.5, 0.75), lambda x: np.clip(x, -0.5, 0.75)),
    "clip": Row(method("clip", -0.5, 0.75), lambda x: np.clip(x, -0.5, 0.75)),
    **{name: like(name, **WHOLE) for name in ["isnan", "isinf", "isfinite", "logical_not"]},
    # --- two inputs ---
    **{n: like(n, f, shapes=PAIRS) for n, f in {"add": "add", "sub": "subtract", "mul": "multiply"}.items()},
    "div": like("div", "divide", shapes=PAIRS, domain="positive", torch="no `rounding_mode`"),
    "pow": like("pow", "power", shapes=PAIRS, domain="positive"),
    **{n: like(n, shapes=PAIRS, torch="gradient at NaN is 1, not 0") for n in ("maximum", "minimum")},
    **{
        n: like(n, f, shapes=PAIRS, **WHOLE)
        for n, f in {
            "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal", "ne": "not_equal",
        }.items()
    },
    **{n: like(n, shapes=PAIRS, **WHOLE) for n in ("logical_and", "logical_or", "logical_xor")},
    "isclose": like("isclose", shapes=PAIRS, **WHOLE),
    "allclose": like("allclose", shapes=PAIRS, **WHOLE, looks=True),
    "equal": like("equal", "array_equal", shapes=PAIRS, **WHOLE, looks=True, numpy="`np.array_equal`"),
    "where": Row(lambda x: sn.where(x > 0, x, 0.5), lambda x: np.where(x > 0, x, 0.5), domain="nonzero"),
    "masked_fill": Row(method("masked_fill", MASK, 1.5), lambda x: np.where(MASK, 1.5, x), **MATRIX),
    "masked_select": Row(method("masked_select", MASK), lambda x: x[MASK], **MATRIX),
    # --- reductions ---
    **{
        name: Row(method(name, dim=1, keepdim=True), numpys(name, axis=1, keepdims=True),
                  shapes=((3, 4), (0, 3)))
        for name in ("sum", "mean", "amax", "amin")
    },
    "prod": Row(method("prod", dim=1), lambda x: np.prod(x, axis=1), shapes=((3, 5), (3, 0), (0, 2))),
    **{
        name: Row(method(name, dim=1), numpys(name, axis=1), shapes=((3, 4), (0, 3)), **WHOLE)
        for name in ("any", "all", "argmax", "argmin")
    },
    **{
        name: Row(_pair(name), lambda x, n=name: (getattr(np, n)(x, 1), getattr(np, f"arg{n}")(x, 1)), **MATRIX,
                  torch="", numpy="values alone, which `axis=` asks for")
        for name in ("max", "min")
    },
    **{
        name: Row(method(name, 1), numpys(name, axis=1, ddof=1), **MATRIX,
                  numpy="divides by n, which `axis=`, `keepdims=` or `ddof=` ask for")
        for name in ("var", "std")
    },
    "norm": Row(method("norm", dim=1), lambda x: np.linalg.norm(x, axis=1), shapes=((3, 4), (0, 3)),
                torch="p > 0 alone; of all elements, also of a matrix", numpy="`np.linalg.norm`"),
    "logsumexp": Row(method("logsumexp", dim=1), _log_of_sum, **MATRIX, numpy="none"),
    "softmax": Row(method("softmax", 1), lambda x: scipy.special.softmax(x, 1) if x.size else x,
                   shapes=((3, 4), (3, 0)), numpy="none"),
    "log_softmax": Row(method("log_softmax", 1), lambda x: scipy.special.log_softmax(x, 1), **MATRIX, numpy="none"),
    **{
        name: Row(method(name, 1), numpys(name, axis=1), shapes=((3, 5), (3, 0), (2, 1)))
        for name in ("cumsum", "cumprod")
    },
    "trace": like("trace", **MATRIX),
    # --- order ---
    "sort": Row(_pair("sort"), lambda x: _sorted(x), shapes=((3, 4), (0, 3)),
                numpy="values alone, which `axis=` asks for"),
    "argsort": Row(method("argsort", 1), lambda x: _sorted(x)[1], shapes=((3, 4), (0, 3)), **WHOLE,
                   torch="always stable"),
    "topk": Row(lambda x: tuple(x.topk(2, dim=1)), lambda x: _sorted(x, 2, True), **MATRIX,
                torch="always sorted, of equals the first", numpy="none"),
    # --- products ---
    "matmul": like("matmul", shapes=(((3, 4), (4, 2)), ((2, 3, 4), (4, 2)), ((4,), (4,)))),
    "mm": like("mm", "matmul", shapes=(((3, 4), (4, 2)),)),
    "mv": like("mv", "matmul", shapes=(((3, 4), (4,)),)),
    "bmm": like("bmm", "matmul", shapes=(((2, 3, 4), (2, 4, 2)),)),
    "dot": like("dot", shapes=(((4,), (4,)), ((0,), (0,))), numpy="also of matrices"),
    "outer": like("outer", shapes=(((3,), (4,)),)),
    # --- shapes ---
    "reshape": Row(method("reshape", 4, -1), lambda x: x.reshape(4, -1), **MATRIX),
    "view": Row(method("view", 2, 6), lambda x: x.reshape(2, 6), **MATRIX, torch="no change of dtype",
                numpy="`reshape`"),
    **{
        n: Row(method(n), lambda x, y: x.reshape(y.shape), shapes=(((3, 4), (2, 6)),), numpy="`reshape`")
        for n in ("view_as", "reshape_as")
    },
    "expand_as": Row(method("expand_as"), lambda x, y: np.broadcast_to(x, y.shape), shapes=(((3, 1), (3, 4)),)),
    "broadcast_to": Row(method("broadcast_to", 2, 4), lambda x: np.broadcast_to(x, (2, 4)), shapes=((4,), (), (2, 1))),
    "expand": Row(method("expand", 2, -1), lambda x: np.broadcast_to(x, (2, 4)), shapes=((4,), (1, 4)), numpy="none"),
    "flatten": Row(method("flatten"), np.ravel, numpy="a copy; `ravel` is the view"),
    "ravel": Row(method("ravel"), np.ravel),
    "unflatten": Row(method("unflatten", 1, (2, -1)), lambda x: x.reshape(3, 2, 2), **MATRIX, numpy="none"),
    "squeeze": Row(method("squeeze"), np.squeeze, shapes=((3, 1, 2), ()), numpy="an axis that is longer is an error"),
    "unsqueeze": Row(method("unsqueeze", 0), lambda x: x[None], numpy="`expand_dims`"),
    "transpose": Row(method("transpose", 0, 1), lambda x: x.T, **MATRIX, numpy="orders all axes: `permute`"),
    "swapaxes": Row(method("swapaxes", 0, 1), lambda x: x.T, **MATRIX),
    "permute": Row(method("permute", 1, 0), lambda x: x.T, **MATRIX, numpy="`transpose`"),
    "movedim": Row(method("movedim", 0, -1), lambda x: np.moveaxis(x, 0, -1), shapes=((2, 3, 4),), numpy="`moveaxis`"),
    "t": Row(method("t"), np.transpose, shapes=((3, 4), (3,), ()), numpy="`.T`"),
    "diagonal": like("diagonal", None, 1, shapes=((3, 4), (4, 2, 3))),
    "diag": like("diag", shapes=((3, 4), (3,))),
    **{n: like(n, None, 1, shapes=((3, 4), (2, 3, 3))) for n in ("tril", "triu")},
    "flip": Row(method("flip", 0), lambda x: np.flip(x, 0), shapes=((3, 4), (0, 3)), numpy="a view"),
    "roll": Row(method("roll", 2, 1), lambda x: np.roll(x, 2, 1), shapes=((3, 4), (3, 0))),
    "repeat": Row(method("repeat", 2, 1, 2), lambda x: np.tile(x, (2, 1, 2)), **MATRIX, numpy="`tile`"),
    "tile": Row(method("tile", 2), lambda x: np.tile(x, 2), shapes=((3, 4), (3,))),
    "repeat_interleave": Row(method("repeat_interleave", 2, 1), lambda x: np.repeat(x, 2, 1), **MATRIX,
                             torch="one count for all elements", numpy="`repeat`"),
    "split": Row(method("split", 3, 1), lambda x: (x[:, :3], x[:, 3:]), **MATRIX, numpy="counts parts: `chunk`"),
    "chunk": Row(method("chunk", 2, 1), lambda x: tuple(np.split(x, 2, 1)), **MATRIX, numpy="`array_split`"),
    "unbind": Row(method("unbind"), tuple, **MATRIX, numpy="iteration"),
    "clone": Row(method("clone"), np.copy, numpy="`copy`"),
    "contiguous": Row(lambda x: x.t().contiguous().t(), np.copy, numpy="`ascontiguousarray`", **MATRIX),
    "pad": Row(method("pad", ((1, 0), (0, 2))), lambda x: np.pad(x, ((1, 0), (0, 2))), **MATRIX,
               torch="`F.pad` counts axes from the last; `sn.pad` is NumPy's"),
    # --- by number ---
    "index_select": Row(method("index_select", 1, [2, 0, 2]), lambda x: x[:, [2, 0, 2]], **MATRIX, numpy="`take`"),
    "gather": Row(method("gather", 1, INDEX), lambda x: np.take_along_axis(x, INDEX, 1), **MATRIX,
                  numpy="`take_along_axis`"),
    "one_hot": Row(lambda x: sn.one_hot(INDEX, 5) + (x.sum() * 0).long(), lambda x: np.eye(5, dtype=int)[INDEX],
                   **MATRIX, **WHOLE, torch="`F.one_hot`", numpy="none"),
    "nonzero": Row(lambda x: (x > 0).nonzero(), lambda x: np.argwhere(x > 0), **WHOLE, looks=True, numpy="`argwhere`"),
    "unique": Row(lambda x: sn.unique(x.round()), lambda x: np.unique(np.round(x)), **WHOLE, looks=True,
                  torch="no inverse; of several NaN one"),
    "bincount": Row(lambda x: (x > 0).ravel().long().bincount(), lambda x: np.bincount((x > 0).ravel().astype(int)),
                    **MATRIX, **WHOLE, looks=True),
    "numel": Row(lambda x: sn.tensor(x.numel()), lambda x: np.array(x.size), **WHOLE, numpy="`size`"),
    # --- of several ---
    **{
        n: Row(lambda x, y, n=n: getattr(sn, n)([x, y], dim=1), lambda x, y: np.concatenate([x, y], 1),
               shapes=(((3, 4), (3, 2)), ((3, 4), (3, 0))))
        for n in ("cat", "concat", "concatenate")
    },
    "stack": Row(lambda x, y: sn.stack([x, y], dim=-1), lambda x, y: np.stack([x, y], -1),
                 shapes=(((3, 4), (3, 4)), ((), ()))),
    **{
        n: Row(lambda *ts, n=n: getattr(sn, n)(ts), lambda *xs, n=n: getattr(np, n)(xs),
               shapes=(((3, 4), (3, 4)), ((3,), (3,)), ((), ())))
        for n in ("hstack", "vstack")
    },
    "meshgrid": Row(lambda x, y: sn.meshgrid(x, y), lambda x, y: tuple(np.meshgrid(x, y, indexing="ij")),
                    shapes=(((3,), (2,)),), numpy='indexing is "xy" unless given'),
    "einsum": Row(lambda x, y: sn.einsum("ij,kj->ik", x, y), lambda x, y: np.einsum("ij,kj->ik", x, y),
                  shapes=(((3, 4), (2, 4)), ((0, 4), (2, 4)))),
}  # fmt: skip

# Without a value to compare by table; tests/test_constructors.py and others have them.
ELSEWHERE: dict[str, tuple[str, str]] = {
    "tensor": ("", "`array`"),
    "Tensor": ("`Tensor(2, 3)` is no shape here; integers stay integers", "`asarray`"),
    "as_tensor": ("", "`asarray`"),
    "from_numpy": ("", "none"),
    "zeros ones full zeros_like ones_like full_like eye linspace arange": ("", "float64 unless a dtype is given"),
    "empty empty_like": ("holds zeros, so that programs repeat their numbers", "holds zeros"),
    "rand randn randint randperm normal bernoulli multinomial rand_like randn_like randint_like": (
        "other numbers for the same seed; drawn on the host, the same on each device", "`np.random`",
    ),
    "manual_seed Generator": ("`Generator.manual_seed` as there; the device is no argument", "`np.random.default_rng`"),
    "is_tensor": ("", "none"),
    "device default_device": ('also "numpy", the reference; one GPU', "none"),
    "float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8": (
        "no complex tensors; halves are computed in float32 and rounded after each op", "",
    ),
    "no_grad inference_mode": ("`inference_mode` is `no_grad`", "none"),
    "precision": ("in place of `torch.autocast`: products alone, with one table of ops", "none"),
    "grad value_and_grad": ("as `torch.func.grad`; arguments may be lists and dictionaries", "none"),
    "op": ("in place of `torch.autograd.Function`", "none"),
}  # fmt: skip
