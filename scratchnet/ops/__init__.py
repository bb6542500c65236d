"""The ops: every differentiable function of scratchnet, as rows of one table (see table.py).

OPS: all rows. METHODS: what tensors have as methods and the package as functions. Below are the few that others call
by themselves.
"""

from .. import words
from . import along, logic  # noqa: F401 - they add to METHODS
from .einsum import einsum
from .elementwise import add, bounded_log, cast, dropout, where
from .movement import add_rows, argmax_rows, cat, checked_index, index, permute_op, reshape_op, stack, take_rows
from .products import cross_entropy_op, linear, matmul
from .recurrent import recurrent
from .reductions import standardize, sum
from .table import METHODS, OPS, Op
from .windows import (
    avg_pool2d,
    batch_norm,
    channel_affine,
    channel_moments,
    conv2d,
    conv2d_input,
    max_pool2d,
    take_in_rows,
)

METHODS |= {name: words.in_both(function) for name, function in METHODS.items()}

__all__ = [
    "METHODS",
    "OPS",
    "Op",
    "add",
    "add_rows",
    "argmax_rows",
    "avg_pool2d",
    "batch_norm",
    "bounded_log",
    "cast",
    "cat",
    "channel_affine",
    "channel_moments",
    "checked_index",
    "conv2d",
    "conv2d_input",
    "cross_entropy_op",
    "dropout",
    "einsum",
    "index",
    "linear",
    "matmul",
    "max_pool2d",
    "permute_op",
    "recurrent",
    "reshape_op",
    "stack",
    "standardize",
    "sum",
    "take_in_rows",
    "take_rows",
    "where",
]
