"""How a kernel gets its parallel path: every kernel is written once, for a range of its work, and stamped twice.

`ranged` takes a function `body(lo, hi, *arguments)` that does the items lo to hi of some work, each on its own. Small
work is one call for all items; large work is one parallel loop over blocks of items. Which of the two, and where the
blocks end, depends on sizes only, and no item knows its block: so bits depend on neither.
"""

from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numba import prange
from numba.core import cgutils, types
from numba.extending import intrinsic

from .compile import JIT_ENABLED, jit, stamp

# The one table of thresholds. Work is counted in light operations: reading, adding and writing one element, 0.1-0.3 ns.
PARALLEL_FROM = 131072  # 15 us or more: a parallel region costs 2 us under omp or tbb, and more where it wakes threads
BLOCK = 8192  # work of one block of a parallel loop
WEIGHT = {  # of one element, where the operation is not light
    **dict.fromkeys(("log", "pow"), 32),
    **dict.fromkeys(("erf", "gelu", "gelu_grad"), 64),
    **dict.fromkeys(("softmax", "logsumexp", "log_softmax", "cross_entropy", "cross_entropy_grad"), 8),
    **dict.fromkeys(("exp", "tanh", "sigmoid", "argmax"), 8),
    **dict.fromkeys(("sqrt", "div"), 4),
    "dropout": 32,
}


# --- one parallel loop for all kernels: a parallel function takes Numba about a second to compile ---------------------

_RANGE = types.intp, types.intp, types.intp  # lo, hi, the address of the arguments


def _typed_call(typing_context, function, lo, hi, arguments):
    """Call the function at an address that `_call_in_blocks` made."""

    def generate(context, builder, signature, values):
        kind = context.call_conv.get_function_type(types.none, _RANGE)
        pointer = builder.inttoptr(values[0], kind.as_pointer())
        context.call_conv.call_function(builder, pointer, types.none, _RANGE, values[1:])
        return context.get_dummy_value()

    return types.void(types.intp, *_RANGE), generate


_call: Callable = intrinsic(_typed_call)


@jit(parallel=True)
def _over_blocks(size, block, function, arguments):
    for i in prange((size + block - 1) // block):
        lo = np.int64(i) * block  # the index of a prange is unsigned
        _call(function, lo, min(lo + block, size), arguments)


def _typed_call_in_blocks(typing_context, over_blocks, size, block, body, arguments):
    """over_blocks(size, block, address of a function that unpacks the arguments and calls body, their address)."""
    body_signature = typing_context.resolve_function_type(body, (*_RANGE[:2], *arguments.types), {})
    loop_signature = typing_context.resolve_function_type(over_blocks, (types.intp,) * 4, {})

    def linked(context, function, signature):
        implementation = context.get_function(function, signature)
        for library in implementation.libs:
            context.active_code_library.add_linking_library(library)
        return implementation

    def generate(context, builder, signature, values):
        _, size, block, _, packed = values
        kind = context.call_conv.get_function_type(types.none, _RANGE)
        unpacked = ir.Function(builder.module, kind, f"{builder.function.name}.unpacked")
        unpacked.linkage = "internal"
        inner = ir.IRBuilder(unpacked.append_basic_block())
        lo, hi, address = context.call_conv.get_arguments(unpacked)
        each = cgutils.unpack_tuple(inner, inner.load(inner.inttoptr(address, packed.type.as_pointer())))
        linked(context, body, body_signature)(inner, [lo, hi, *each])
        context.call_conv.return_value(inner, context.get_dummy_value())

        stored = cgutils.alloca_once_value(builder, packed)
        addresses = [builder.ptrtoint(pointer, lo.type) for pointer in (unpacked, stored)]
        linked(context, over_blocks, loop_signature)(builder, [size, block, *addresses])
        return context.get_dummy_value()

    return types.void(over_blocks, types.intp, types.intp, body, arguments), generate


def _plain_call_in_blocks(over_blocks, size, block, body, arguments):
    for lo in range(0, size, block):
        body(lo, min(lo + block, size), *arguments)


_call_in_blocks: Callable = intrinsic(_typed_call_in_blocks) if JIT_ENABLED else _plain_call_in_blocks

# ruff: noqa: F821 - bound by each stamp
body: Callable


@jit
def _parallel(size, block, *arguments):
    _call_in_blocks(_over_blocks, size, block, body, arguments)


def ranged(template, name, **bindings):
    """A function run(size, cost, *arguments) that does `size` items, each of `cost` elements, by stamps of `template`.

    run.serial is the stamp for a range, run.parallel the loop over blocks; each compiles when it is first needed.
    """
    serial = stamp(template, name, **bindings)
    parallel = stamp(_parallel, f"{name}_parallel", body=serial)
    weight = WEIGHT.get(name, 1)

    def run(size, cost, *arguments):
        work = size * cost * weight
        if work < PARALLEL_FROM:
            serial(0, size, *arguments)
        else:
            parallel(size, max(1, BLOCK * size // work), *arguments)

    run.serial, run.parallel = serial, parallel
    return run
