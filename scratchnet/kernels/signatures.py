"""The dtypes for which every kernel is compiled: inputs -> outputs, a letter an array.

f is float32 or float64, the same for all f of one call; s is float32; h is bfloat16 or float16, which are moved and
converted alone (see half.py); ? is bool, B uint8, l int64 as in NumPy; * is any of DTYPES. What stands behind the
bar is compiled for cuda alone: the cpu device leaves it to the reference, which is NumPy.
"""

import itertools
from collections.abc import Sequence
from functools import cache

import ml_dtypes
import numpy as np

from .scalars import SCALARS

FLOATS: tuple[np.dtype, ...] = np.dtype(np.float32), np.dtype(np.float64)
HALVES: tuple[np.dtype, ...] = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)  # NumPy has no bfloat16
DTYPES: tuple[np.dtype, ...] = (*FLOATS, *HALVES, *map(np.dtype, (np.int64, np.int32, np.uint8, np.bool_)))


def bits_of(x: np.ndarray) -> np.ndarray:
    """An array as kernels see it: Numba has no halves, so they are their bits."""
    return x.view(np.uint16) if x.dtype in HALVES else x


SIGNATURES: dict[str, str] = {
    **{name: scalar.dtypes for name, scalar in SCALARS.items() if scalar.dtypes},
    "where": "?ff->f | ?ll->l ???->?",
    "sum": "f->f | l->l ?->l",
    **dict.fromkeys(("max", "min"), "f->f | l->l"),
    "argmax": "f->l | l->l",
    "argsort": "f->l | l->l",
    "standardize": "f->f",
    "standardize_grad": "ff->f",
    "fill": "->*",
    "copy": "*->*",
    "take_rows": "fl->f ll->l Bl->B | hl->h ?l->?",
    "scatter_rows": "fl->f | ll->l",
    "add_rows": "fllf->f",
    "argmax_rows": "fll->l",
    **dict.fromkeys(("matmul", "batched_matmul"), "ff->f | ll->l"),
    "linear": "fff->f | lll->l",
    **dict.fromkeys(("matmul_bfloat16", "matmul_float16", "matmul_tf32", "matmul_tf32x3"), "ss->s"),
    "conv2d": "fff->f",
    **dict.fromkeys(("conv2d_input", "conv2d_weight"), "ff->f"),
    "conv2d_rounded": "sss->s",
    **dict.fromkeys(("conv2d_input_rounded", "conv2d_weight_rounded"), "ss->s"),
    "channel_moments": "f->f",
    "batch_norm": "ffff->f",
    "batch_norm_sums": "fff->f",
    "batch_norm_grad": "fffff->f",
    "max_pool2d": "f->l",
    **dict.fromkeys(("avg_pool2d", "avg_pool2d_grad"), "f->f"),
    **dict.fromkeys(("take_in_rows", "scatter_in_rows"), "fl->f"),
    **dict.fromkeys(("rnn_cell", "gru_cell", "lstm_cell"), "fff?->f"),
    **dict.fromkeys(("rnn_cell_grad", "lstm_cell_grad"), "ffff?->ff"),
    "gru_cell_grad": "ffff?->fff",
    **dict.fromkeys(("softmax", "logsumexp", "log_softmax"), "f->f"),
    "softmax_grad": "ff->f",
    "cross_entropy": "fl->f",
    "cross_entropy_grad": "ffl->f",
    "dropout": "f->f",
    "sgd": "fff->ff",
    "adam": "ffff->fff",
    **dict.fromkeys(("rmsprop", "adadelta"), "ffff->fff"),
    "amsgrad": "fffff->ffff",
    "adagrad": "fff->ff",
}


@cache
def arrays_of(name: str) -> tuple[int, int]:
    """How many arrays the kernel reads, and how many it is given in all."""
    inputs, outputs = SIGNATURES[name].split()[0].split("->")
    return len(inputs), len(inputs + outputs)


@cache
def accepted(name: str, device: str) -> dict[tuple[np.dtype, ...], None]:
    """The dtypes of all arrays of a call for which `device` has the kernel, in order (a dictionary without values)."""
    on_all, _, on_cuda = SIGNATURES[name].partition("|")
    found: dict[tuple[np.dtype, ...], None] = {}
    for case in on_all.split() + (on_cuda.split() if device == "cuda" else []):
        for f, h in zip(FLOATS, HALVES, strict=True):
            meaning: dict[str, Sequence[np.dtype]] = {"f": (f,), "s": FLOATS[:1], "h": (h,), "*": DTYPES}
            choices = [meaning.get(letter) or [np.dtype(letter)] for letter in case.replace("->", "")]
            found |= dict.fromkeys(itertools.product(*choices))
    return found
