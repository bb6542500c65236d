"""The ops: every differentiable function of scratchnet, as rows of one table (see table.py).

OPS: all rows. METHODS: what tensors have as methods and the package as functions. Below are the few that others call
by themselves.
"""

from .elementwise import add, bounded_log, cast, dropout, where
from .movement import cat, checked_index, index, permute_op, reshape_op, stack, take_rows
from .products import cross_entropy, linear, matmul
from .reductions import standardize, sum
from .table import METHODS, OPS, Op

__all__ = [
    "METHODS",
    "OPS",
    "Op",
    "add",
    "bounded_log",
    "cast",
    "cat",
    "checked_index",
    "cross_entropy",
    "dropout",
    "index",
    "linear",
    "matmul",
    "permute_op",
    "reshape_op",
    "stack",
    "standardize",
    "sum",
    "take_rows",
    "where",
]
