"""Sums, means, maxima and minima of two arrays, which are given by their addresses, as processes may share them.

They are LLVM vector loops, because the arrays may be the same: a result may replace an operand, or go to two arrays at
once. A loop compiled by Numba would check for overlap, and then run element by element. `which` numbers the loops.
"""

import ctypes
from collections.abc import Callable

import numpy as np
from numba.core import types
from numba.extending import intrinsic

from ...native.compile import JIT_ENABLED
from ...native.llvm import call, provide
from .collectives import DTYPES, UFUNCS

OPS = tuple(UFUNCS)  # mean: (a + b) / count, the last step of a mean of `count` arrays
VECTOR_BYTES = 64  # of each of two vectors an iteration; LLVM splits them into the registers that the CPU has


def which(op: str, dtype: str) -> int:
    """The number of the loop for this op and dtype."""
    return OPS.index(op) * len(DTYPES) + DTYPES.index(dtype)


# --- without the JIT --------------------------------------------------------------------------------------------------


def _memory(address, nbytes):
    return np.ctypeslib.as_array((ctypes.c_uint8 * int(nbytes)).from_address(int(address)))


def _fold(which, count, a, b, out, also, n):
    """out[i] = also[i] = a[i] op b[i] for n elements. a, b, out, also: addresses, of which some may be equal."""
    op, dtype = OPS[which // len(DTYPES)], np.dtype(DTYPES[which % len(DTYPES)])
    a, b, out, also = (_memory(address, n * dtype.itemsize).view(dtype) for address in (a, b, out, also))
    result = UFUNCS[op](a, b)
    out[...] = also[...] = result / dtype.type(count) if op == "mean" else result


def _copy(source, target, nbytes):
    """Copy bytes from the address `source` to the address `target`; the two do not overlap."""
    _memory(target, nbytes)[...] = _memory(source, nbytes)


# --- LLVM -------------------------------------------------------------------------------------------------------------

_TYPES = dict(zip(DTYPES, ("float", "double", "i32", "i64"), strict=True))

_LOOP = """
define internal void @{name}(i64 %count, {t}* %a, {t}* %b, {t}* %out, {t}* %also, i64 %n) {{
entry:
  %divisor = {convert} i64 %count to {t}
  %first = insertelement <{lanes} x {t}> undef, {t} %divisor, i32 0
  %divisors = shufflevector <{lanes} x {t}> %first, <{lanes} x {t}> undef, <{lanes} x i32> zeroinitializer
  %whole = and i64 %n, -{step}
  %any = icmp sgt i64 %whole, 0
  br i1 %any, label %vectors, label %check
vectors:
  %i = phi i64 [0, %entry], [%i2, %vectors]
  %i1 = add i64 %i, {lanes}
  %i2 = add i64 %i, {step}
{first}
{second}
  %more = icmp slt i64 %i2, %whole
  br i1 %more, label %vectors, label %check
check:
  %rest = icmp slt i64 %whole, %n
  br i1 %rest, label %scalars, label %done
scalars:
  %j = phi i64 [%whole, %check], [%j1, %scalars]
  %j1 = add i64 %j, 1
{scalar}
  %again = icmp slt i64 %j1, %n
  br i1 %again, label %scalars, label %done
done:
  ret void
}}
"""
_STEP = """
  %pa{k} = getelementptr {t}, {t}* %a, i64 {at}
  %pb{k} = getelementptr {t}, {t}* %b, i64 {at}
  %po{k} = getelementptr {t}, {t}* %out, i64 {at}
  %pp{k} = getelementptr {t}, {t}* %also, i64 {at}
  %va{k} = bitcast {t}* %pa{k} to {v}*
  %vb{k} = bitcast {t}* %pb{k} to {v}*
  %vo{k} = bitcast {t}* %po{k} to {v}*
  %vp{k} = bitcast {t}* %pp{k} to {v}*
  %x{k} = load {v}, {v}* %va{k}, align {size}
  %y{k} = load {v}, {v}* %vb{k}, align {size}
{compute}
  store {v} %z{k}, {v}* %vo{k}, align {size}
  store {v} %z{k}, {v}* %vp{k}, align {size}
"""
_COMPUTE = (
    {  # op: for floats, for integers; NaN wins in max and min, as in NumPy
        "sum": ("%z{k} = fadd {v} %x{k}, %y{k}", "%z{k} = add {v} %x{k}, %y{k}"),
        "mean": ("%s{k} = fadd {v} %x{k}, %y{k}\n  %z{k} = fdiv {v} %s{k}, {d}", "%z{k} = add {v} %x{k}, %y{k}"),
    }
    | {
        op: (
            "%c{k} = fcmp o" + test + " {v} %x{k}, %y{k}\n  %u{k} = fcmp uno {v} %x{k}, %x{k}\n"
            "  %w{k} = or {b} %c{k}, %u{k}\n  %z{k} = select {b} %w{k}, {v} %x{k}, {v} %y{k}",
            "%w{k} = icmp s" + test + " {v} %x{k}, %y{k}\n  %z{k} = select {b} %w{k}, {v} %x{k}, {v} %y{k}",
        )
        for op, test in (("max", "gt"), ("min", "lt"))
    }
)


# The C library's memcpy takes microcode for some sizes, which is 2 to 4 times slower on lines that other cores share.
_COPY = """
define void @scratchnet_copy(i64 %source, i64 %target, i64 %n) {
entry:
  %a = inttoptr i64 %source to i8*
  %o = inttoptr i64 %target to i8*
  %whole = and i64 %n, -128
  %any = icmp sgt i64 %whole, 0
  br i1 %any, label %vectors, label %check
vectors:
  %i = phi i64 [0, %entry], [%i2, %vectors]
  %i1 = add i64 %i, 64
  %i2 = add i64 %i, 128
  %a0 = getelementptr i8, i8* %a, i64 %i
  %a1 = getelementptr i8, i8* %a, i64 %i1
  %o0 = getelementptr i8, i8* %o, i64 %i
  %o1 = getelementptr i8, i8* %o, i64 %i1
  %va0 = bitcast i8* %a0 to <64 x i8>*
  %va1 = bitcast i8* %a1 to <64 x i8>*
  %vo0 = bitcast i8* %o0 to <64 x i8>*
  %vo1 = bitcast i8* %o1 to <64 x i8>*
  %x0 = load <64 x i8>, <64 x i8>* %va0, align 1
  %x1 = load <64 x i8>, <64 x i8>* %va1, align 1
  store <64 x i8> %x0, <64 x i8>* %vo0, align 1
  store <64 x i8> %x1, <64 x i8>* %vo1, align 1
  %more = icmp slt i64 %i2, %whole
  br i1 %more, label %vectors, label %check
check:
  %rest = icmp slt i64 %whole, %n
  br i1 %rest, label %scalars, label %done
scalars:
  %j = phi i64 [%whole, %check], [%j1, %scalars]
  %j1 = add i64 %j, 1
  %aj = getelementptr i8, i8* %a, i64 %j
  %oj = getelementptr i8, i8* %o, i64 %j
  %x = load i8, i8* %aj
  store i8 %x, i8* %oj
  %again = icmp slt i64 %j1, %n
  br i1 %again, label %scalars, label %done
done:
  ret void
}
"""


def _step(op, dtype, k, at, lanes):
    t = _TYPES[dtype]
    v, b = (f"<{lanes} x {t}>", f"<{lanes} x i1>") if lanes else (t, "i1")
    names = {"t": t, "v": v, "b": b, "d": "%divisors" if lanes else "%divisor", "k": k, "at": at}
    compute = "  " + _COMPUTE[op][dtype.startswith("int")].format(**names)
    return _STEP.format(compute=compute, size=np.dtype(dtype).itemsize, **names)


def llvm_module() -> str:
    """The source of a loop for each op and dtype, and of `scratchnet_fold`, which calls the one that is asked for."""
    loops, cases, blocks = [], [], []
    for op in OPS:
        for dtype in DTYPES:
            t, lanes, number = _TYPES[dtype], VECTOR_BYTES // np.dtype(dtype).itemsize, which(op, dtype)
            parts = [_step(op, dtype, *p) for p in (("0", "%i", lanes), ("1", "%i1", lanes), ("2", "%j", 0))]
            convert = {"float": "sitofp", "double": "sitofp", "i32": "trunc", "i64": "bitcast"}[t]
            loops.append(
                _LOOP.format(
                    name=f"{op}_{dtype}", t=t, lanes=lanes, step=2 * lanes, convert=convert,
                    first=parts[0], second=parts[1], scalar=parts[2],
                )
            )  # fmt: skip
            cases.append(f"i64 {number}, label %case{number}")
            pointers = ["a", "b", "out", "also"]
            casts = "\n".join(f"  %{p}{number} = inttoptr i64 %{p} to {t}*" for p in pointers)
            passed = ", ".join(f"{t}* %{p}{number}" for p in pointers)
            call = f"  tail call void @{op}_{dtype}(i64 %count, {passed}, i64 %n)\n  ret void"
            blocks.append(f"case{number}:\n{casts}\n{call}")
    head = "define void @scratchnet_fold(i64 %which, i64 %count, i64 %a, i64 %b, i64 %out, i64 %also, i64 %n) {"
    switch = f"  switch i64 %which, label %none [{' '.join(cases)}]\nnone:\n  ret void\n"
    return "\n".join(loops) + "\n" + head + "\nentry:\n" + switch + "\n".join(blocks) + "\n}\n" + _COPY


def _typed_fold(typing_context, which, count, a, b, out, also, n):
    def generate(context, builder, signature, values):
        call(builder, "scratchnet_fold", values)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), generate


def _typed_copy(typing_context, source, target, nbytes):
    def generate(context, builder, signature, values):
        call(builder, "scratchnet_copy", values)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate


fold: Callable = _fold
copy: Callable = _copy
if JIT_ENABLED:
    provide("folds", llvm_module, ["scratchnet_fold", "scratchnet_copy"])
    fold, copy = intrinsic(_typed_fold), intrinsic(_typed_copy)
