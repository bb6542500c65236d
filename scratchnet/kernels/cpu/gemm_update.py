"""Products that are the gradient of a parameter and update it: a step of an optimizer in the tiles of the gradient.

The gradient is never written to memory, and the parameter and the optimizer's states are fetched while the product
runs. Bits are those of the product and then the step (optim.py). Only a program (jit) has such a product.
"""

from collections.abc import Callable
from typing import Any

from ...native.compile import get_num_threads, jit, stamp
from ...native.loops import Task, is_constant, ranged, uncounted
from ...native.simd import TILE, tile_updating
from .gemm import WEIGHT, by_rows_transposed, own_scratch, packed_by_rows_transposed, pieces_of, shares_columns
from .gemm_blocks import in_blocks_with
from .gemm_cuts import FEW_COLUMNS, NUMBERS, SHARED, SPAN, Factors, Region, Sums
from .optim import PREPARE

# ruff: noqa: F821 - bound by each stamp
multiply: Callable
prepare: Callable
update: Callable


@jit
def _update(a, b, parameter, first, second, packed, numbers, work, region):
    scratch = own_scratch(work)
    numbers_at = scratch.at + work.shape[1] - NUMBERS
    flat, constants = work.ravel(), prepare(numbers)
    for i in range(len(constants)):
        flat[numbers_at + i] = constants[i]
    factors = Factors(a, b, True, False, packed > 0, 0, packed > 1)
    sums = Sums(parameter, parameter, first, second, numbers_at, 0, parameter.shape[1])
    multiply(uncounted(factors), uncounted(sums), region, uncounted(scratch), max(1, a.shape[0]))


@jit
def _by_rows(lo, hi, a, b, parameter, first, second, packed, numbers, work):
    """A step for rows lo to hi of a parameter whose gradient is a.T @ b, with no more than SPAN terms.

    packed: is b as it is stored (0), or in panels (1), which are rounded to bfloat16 (2)?
    """
    update(a, b, parameter, first, second, packed, numbers, work, Region(lo, hi, 0, parameter.shape[1]))


@jit
def _by_columns(lo, hi, a, b, parameter, first, second, packed, numbers, work):
    """The same for pieces lo to hi of its columns."""
    columns = SHARED * (TILE.vector_bytes // parameter.itemsize)
    region = Region(0, parameter.shape[0], lo * columns, min(hi * columns, parameter.shape[1]))
    update(a, b, parameter, first, second, packed, numbers, work, region)


def _loops(name):
    """The two loops for an optimizer."""
    multiply = in_blocks_with(tile_updating[name], name)
    bindings: dict[str, Any] = {
        "update": stamp(_update, f"update_{name}", prepare=PREPARE[name], multiply=multiply),
        "writes": (2, 3, 4),
        "private": (7,),
        "weight": WEIGHT,
    }
    rows = ranged(_by_rows, f"matmul_{name}", whole=(0, 1, 6), **bindings)
    return rows, ranged(_by_columns, f"matmul_{name}_columns", whole=(0, 1, 2, 3, 4, 6), **bindings)


LOOPS = {name: _loops(name) for name in tile_updating}  # by the kernel of the optimizer


def with_update(task, kernel, parameter, states, numbers):
    """The task of a product that is the gradient of `parameter`, as one that also does what the kernel does in place.

    None where the sums are cut, so that no tile ever holds the gradient.
    """
    if task.loop is by_rows_transposed:
        a, b, start, out, _, _, rounds, work = task.arguments
        columns = 0, out.shape[1]
    elif task.loop is packed_by_rows_transposed:
        a, b, start, out, _, first, rounds, work = task.arguments
        columns = first, first + b.shape[1]
    else:
        return None
    packed = (1 + rounds) * (task.loop is packed_by_rows_transposed)
    one_block = a.shape[0] <= SPAN
    whole = tuple(columns) == (0, out.shape[1]) and is_constant(start) and one_block
    if not whole or out.shape != parameter.shape or out.shape[1] <= FEW_COLUMNS:
        return None
    rows, by_columns = LOOPS[kernel]
    arguments = a, b, parameter, states[0], states[-1], packed, numbers, work
    (m, k), n = a.shape, out.shape[1]
    if not packed and shares_columns(m, k, n, get_num_threads(), out.itemsize):
        return Task(by_columns, pieces_of(n, SHARED, out.dtype), task.work, None, arguments)
    return task._replace(loop=rows, arguments=arguments)
