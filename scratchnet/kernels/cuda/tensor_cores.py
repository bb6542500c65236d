"""Tensor cores: products of 16 x 8 elements that a warp of 32 threads computes by one instruction, `mma.sync`.

A *word* is 32 bits of shared memory: two operands in bfloat16 or float16, of neighbouring terms of the sum, or one in
TF32, rounded to the nearest, ties to even. An instruction adds up eight words of each row and column. Which thread
holds which word is the same for all three (PTX ISA, "Matrix fragments for mma.m16n8k16" and "mma.m16n8k8").

Products of two such operands are exact in float32. In which order an instruction adds up its own terms, and how it
rounds, NVIDIA does not say. Where there is no GPU, the same words are added one after the other, each sum rounded to
the nearest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from .compile import PYTHON, device
from .scalars import scalars

ROWS, COLUMNS, WORDS, LANES = 16, 8, 8, 32  # of an instruction


class Precision(NamedTuple):
    """terms: of a sum in one word. mma: the instruction. pack: another one, which makes a word of two numbers."""

    terms: int
    mma: str
    pack: str = ""


PRECISIONS = {
    "bfloat16": Precision(2, "m16n8k16.row.col.f32.bf16.bf16.f32", "cvt.rn.bf16x2.f32"),
    "float16": Precision(2, "m16n8k16.row.col.f32.f16.f16.f32", "cvt.rn.f16x2.f32"),
    "tf32": Precision(1, "m16n8k8.row.col.f32.tf32.tf32.f32"),
}
PRECISIONS["rest of tf32"] = PRECISIONS["tf32"]  # of what rounding to TF32 leaves of a float32


# --- the bits of a float32 --------------------------------------------------------------------------------------------


def bits_of_float(x: Any) -> Any:
    """As an integer of 32 bits."""
    return np.float32(x).view(np.uint32)


def float_of_bits(x: Any) -> Any:
    return np.uint32(x).view(np.float32)


def _cast(name: str, to_bits: bool) -> Any:
    from numba.cuda import extending, types

    llvm = ir.IntType(32) if to_bits else ir.FloatType()

    def cast(typing_context, x):  # types are looked up here: without numba-cuda, a table is only read for its names
        kinds = types.float32, types.uint32  # type: ignore[attr-defined]
        source, target = kinds if to_bits else kinds[::-1]
        return target(source), lambda context, builder, signature, arguments: builder.bitcast(arguments[0], llvm)

    cast.__name__ = name
    return extending.intrinsic(cast)


if not PYTHON:
    bits_of_float, float_of_bits = _cast("bits_of_float", True), _cast("float_of_bits", False)

# --- words ------------------------------------------------------------------------------------------------------------

MAGNITUDE, INFINITY, QUIET = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000), np.uint32(0x400000)
BELOW_HALF, LAST, KEPT, ONE = np.uint32(0xFFF), np.uint32(13), np.uint32(0xFFFFE000), np.uint32(1)


@device
def word_of_tf32(x, unused):
    """x rounded to 11 significant bits, which stay where a float32 has them."""
    bits = bits_of_float(x)
    if bits & MAGNITUDE > INFINITY:  # NaN
        return np.uint32(bits | QUIET)
    return np.uint32(bits + BELOW_HALF + (bits >> LAST & ONE) & KEPT)


@device
def word_of_rest(x, unused):
    """What word_of_tf32 leaves of x, in TF32; at most 2**-23 of x is lost. Of an infinite x it is NaN."""
    return word_of_tf32(np.float32(x - float_of_bits(word_of_tf32(x, unused))), unused)


@cache
def word(name: str) -> Callable:
    """word(low, high): what a precision makes of two numbers, or of the first one."""
    if "tf32" in name:
        return word_of_tf32 if name == "tf32" else word_of_rest
    if not PYTHON:
        return _packing(PRECISIONS[name].pack)
    to_half = scalars(np.dtype(np.float32))[f"to_{name}"]

    @device
    def word_of_halves(low, high):
        return np.uint32(to_half(bits_of_float(low)) | to_half(bits_of_float(high)) << 16)

    return word_of_halves


def _packing(instruction: str) -> Any:
    from numba.cuda import extending, types

    @extending.intrinsic
    def word_of_halves(typing_context, low, high):
        def generate(context, builder, signature, arguments):
            kind = ir.FunctionType(ir.IntType(32), [x.type for x in arguments])
            return builder.asm(kind, f"{instruction} $0, $2, $1;", "=r,f,f", arguments, False)

        number = types.float32  # type: ignore[attr-defined]
        return types.uint32(number, number), generate  # type: ignore[attr-defined]

    return word_of_halves


# --- an instruction ---------------------------------------------------------------------------------------------------

# Where a thread (lane 0..31) finds the words that it holds, (row or column, word), and the four sums, (row, column).


@device
def a_place(lane, register):
    return lane // 4 + register % 2 * 8, lane % 4 + register // 2 * 4


@device
def b_place(lane, register):
    return lane // 4, lane % 4 + register * 4


@device
def sum_place(lane, i):
    return lane // 4 + i // 2 * 8, lane % 4 * 2 + i % 2


@cache
def multiplying(name: str, a_steps: tuple[int, int], b_steps: tuple[int, int]) -> Callable:
    """multiply_add(a, a_at, b, b_at, lane, sums, first): adds a tile's product to four sums of a thread.

    a, b: words in shared memory, the tile's from a_at and b_at on. steps: how far (the next row or column, the next
    word) is.
    """
    A_EDGE, A_WORD, B_EDGE, B_WORD = *a_steps, *b_steps
    TERMS = PRECISIONS[name].terms

    @device
    def a_word(a, at, lane, register):
        row, word = a_place(lane, register)
        return a[at + row * A_EDGE + word * A_WORD]

    @device
    def b_word(b, at, lane, register):
        column, word = b_place(lane, register)
        return b[at + column * B_EDGE + word * B_WORD]

    if not PYTHON:
        mma: Any = _mma(PRECISIONS[name].mma)

        @device
        def multiply_add(a, a_at, b, b_at, lane, sums, first):
            a0, a1, a2, a3 = (a_word(a, a_at, lane, 0), a_word(a, a_at, lane, 1), a_word(a, a_at, lane, 2),
                              a_word(a, a_at, lane, 3))  # fmt: skip
            words = a0, a1, a2, a3, b_word(b, b_at, lane, 0), b_word(b, b_at, lane, 1)
            before = sums[first], sums[first + 1], sums[first + 2], sums[first + 3]
            sums[first], sums[first + 1], sums[first + 2], sums[first + 3] = mma(words, before)

        return multiply_add

    widened = operand_of(name)

    @device
    def emulated(a, a_at, b, b_at, lane, sums, first):
        for i in range(4):
            row, column = sum_place(lane, i)
            total = sums[first + i]
            for w in range(WORDS):
                left = a_word(a, a_at, row % 8 * 4 + w % 4, row // 8 + w // 4 * 2)  # of the thread that holds it
                right = b_word(b, b_at, column * 4 + w % 4, w // 4)
                for term in range(TERMS):
                    total += widened(left, term) * widened(right, term)
            sums[first + i] = total

    return emulated


@cache
def rounded(name: str) -> Callable:
    """rounded(x): a number as an operand has it."""
    made, widened = word(name), operand_of(name)

    @device
    def of_word(x):
        return widened(made(x, x), 0)

    return of_word


@cache
def operand_of(name: str) -> Callable:
    """operand(word, term): one of a word, as a float32."""
    if "tf32" in name:

        @device
        def whole(word, term):
            return float_of_bits(word)

        return whole
    from_half = scalars(np.dtype(np.float32))[f"from_{name}"]

    @device
    def half(word, term):
        return float_of_bits(np.uint32(from_half(np.int64(word) >> term * 16 & 0xFFFF)))

    return half


def _mma(instruction: str) -> Any:
    """mma(words, c): what a thread has of c + a @ b, four numbers. words: four of a and two of b."""
    from numba.cuda import cgutils, extending, types  # type: ignore[attr-defined]

    code = f"mma.sync.aligned.{instruction} {{$0,$1,$2,$3}}, {{$4,$5,$6,$7}}, {{$8,$9}}, {{$10,$11,$12,$13}};"
    six, four = types.UniTuple(types.uint32, 6), types.UniTuple(types.float32, 4)  # type: ignore[attr-defined]

    @extending.intrinsic
    def mma(typing_context, words, c):
        def generate(context, builder, signature, arguments):
            operands = [x for several in arguments for x in cgutils.unpack_tuple(builder, several)]
            kind = ir.FunctionType(ir.LiteralStructType([ir.FloatType()] * 4), [x.type for x in operands])
            found = builder.asm(kind, code, "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f", operands, False)
            parts = [builder.extract_value(found, i) for i in range(4)]
            return context.make_tuple(builder, signature.return_type, parts)

        return four(six, four), generate

    return mma
