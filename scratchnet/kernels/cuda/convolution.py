"""Convolution and its two gradients: products by tiles in shared memory, whose factors are read where they lie.

For each group all three are out[i, j] = sum over k of a[i, k] * b[k, j], and the patches under a window, which are b,
are never in memory as a whole:

    kernel         a       b   i        j                        k
    conv2d         weight  x   filter   (image, row, column)     (channel, row, column of the filter)
    conv2d_input   weight  g   channel  (image, row, column)     (filter, row, column of the filter)
    conv2d_weight  g       x   filter   (channel, row, column)   (image, row, column)

j and k are numbers of three digits, and each digit moves a place in b by a step. The last two digits of both move a
window over a plane, and outside of it b is 0. So a block computes once for each column of its tile, and for each term
of the next one, where it lies: the loop adds two places and asks whether they are inside. Along i the places in a are
evenly apart. What differs between the three kernels are numbers, which the host computes.

A strided gradient towards x would mostly meet windows that miss it. But the elements of x whose rows, and columns, are
the same modulo the stride meet the same elements of the filter: each such part of x is a launch with its own digits.

The terms of a sum are added up in the order of k, in parts that depend on the shapes alone, as in gemm.py. What a block
does with a pair of tiles is an `Arithmetic`: that of gemm_tiles.py, or in a precision that of tensor cores.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import numba
import numpy as np

from ...errors import ShapeError
from . import gemm_tensor, memory, reduce, tuning
from .compile import ALIGNED, Kernel, cuda, device, kernel, launch, machine
from .gemm_tiles import multiplying
from .movement import fill
from .tensor_cores import PRECISIONS, float_of_bits, rounded, word
from .tuning import Tile
from .walks import Shape, Walks, forward, of_input, of_weight, planned

# Rows and columns of a plane are numbers of 32 bits without a sign: so one comparison says whether they are inside.
# What is beyond the last column, or term, has a row that is none, whatever is added to it.
MASK, BEYOND_COLUMNS, BEYOND_TERMS = 0xFFFFFFFF, 1 << 31, 1 << 30
LARGEST = 1 << 29, 1 << 31  # rows and columns, with their padding


# --- where things lie -------------------------------------------------------------------------------------------------


@device
def column_of(j, n, columns):
    """(in out, in b, the row and the column of the plane) of column j."""
    digits_1, digits_2, b_0, b_1, b_2, b_start, y_1, y_start, x_2, x_start, to_0, to_1, to_2, to_start = columns
    upper, second, third = j // digits_2 // digits_1, j // digits_2 % digits_1, j % digits_2
    to = upper * to_0 + second * to_1 + third * to_2 + to_start
    row = second * y_1 + y_start if j < n else BEYOND_COLUMNS
    return to, upper * b_0 + second * b_1 + third * b_2 + b_start, row, third * x_2 + x_start


@cache
def _moving(depth: int, threads: int) -> tuple[Callable, Callable]:
    """set_moves(moves, plane_moves, term, k, terms, thread): the moves of `depth` terms; move_on(..., steps): from
    those before.

    moves: (in a, or -1 beyond the last term; in b), and the three digits, each for all terms; plane_moves: the rows and
    the columns by which it moves in the plane. steps: the digits of `depth`, which spare a division.
    """
    DEPTH, THREADS, ROUNDS = depth, threads, -(-depth // threads)

    @device
    def put(moves, plane_moves, t, term, k, digits, terms):
        upper, second, third = digits
        _, _, a_0, a_1, a_2, a_start, b_0, b_1, b_2, y_1, x_2 = terms
        is_there = term + t < k
        moves[t] = upper * a_0 + second * a_1 + third * a_2 + a_start if is_there else -1
        moves[DEPTH + t] = upper * b_0 + second * b_1 + third * b_2
        moves[2 * DEPTH + t], moves[3 * DEPTH + t], moves[4 * DEPTH + t] = upper, second, third
        plane_moves[t] = np.uint32((second * y_1 if is_there else BEYOND_TERMS) & MASK)
        plane_moves[DEPTH + t] = np.uint32(third * x_2 & MASK)

    @device
    def set_moves(moves, plane_moves, term, k, terms, thread):
        for t in range(thread, DEPTH, THREADS):
            rest = (term + t) // terms[1]
            put(moves, plane_moves, t, term, k, (rest // terms[0], rest % terms[0], (term + t) % terms[1]), terms)

    @device
    def move_on(moves, plane_moves, term, k, terms, thread, steps):
        for e in range(ROUNDS):
            t = thread + e * THREADS
            if t < DEPTH:
                upper, second, third = moves[2 * DEPTH + t], moves[3 * DEPTH + t], moves[4 * DEPTH + t] + steps[2]
                second += steps[1]
                if third >= terms[1]:
                    third, second = third - terms[1], second + 1
                upper += steps[0]
                if second >= terms[0]:
                    second, upper = second - terms[0], upper + 1
                put(moves, plane_moves, t, term, k, (upper, second, third), terms)

    return set_moves, move_on


@cache
def _places(edge: int, depth: int) -> tuple[Callable, Callable]:
    """in_rows, in_windows(i, t, places, size): (where element i of the tile's edge lies with term t; is it there?).

    places: (starts, plane_starts, moves, plane_moves), as column_of and set_moves say, each for the whole tile.
    """
    EDGE, DEPTH = edge, depth

    @device
    def in_rows(i, t, places, size):
        first, step, count = size
        move = places[2][t]
        return first + i * step + move, (i < count) & (move >= 0)

    @device
    def in_windows(i, t, places, size):
        starts, plane_starts, moves, plane_moves = places
        row = np.uint32(plane_starts[i] + plane_moves[t])
        column = np.uint32(plane_starts[EDGE + i] + plane_moves[DEPTH + t])
        return starts[EDGE + i] + moves[DEPTH + t], (row < size[0]) & (column < size[1])

    return in_rows, in_windows


# --- what a block does with its tiles ---------------------------------------------------------------------------------


class Arithmetic(NamedTuple):
    """kind: of a word, which has `terms` terms of the sum. For both tiles: steps, how far the next (row or column,
    word) is; words, in shared memory; put(tile, at, first, last), which makes a word of its terms.

    sums: numbers of a thread, of which the first `elements` are elements of the result. add_products(a_tile, b_tile,
    left, right, sums, thread): left, right: for numbers of the thread. place(thread, own), finish(sums): see
    gemm_tensor.Warps. times(x, y): the product of two elements.
    """

    kind: Any
    terms: int
    steps: tuple[tuple[int, int], tuple[int, int]]
    words: tuple[int, int]
    put: tuple[Callable, Callable]
    sums: int
    elements: int
    add_products: Callable
    place: Callable
    finish: Callable
    times: Callable


@cache
def by_threads(dtype: np.dtype, tile: Tile, across: bool) -> Arithmetic:
    """Each thread multiplies numbers: see gemm_tiles.py."""
    WIDTH, OWN_ROWS, OWN_COLUMNS = 16 // dtype.itemsize, tile.own_rows, tile.own_columns
    ACROSS, DOWN = tile.columns // OWN_COLUMNS, tile.rows // OWN_ROWS
    strides = tile.rows + WIDTH, tile.columns + WIDTH if across else tile.columns
    multiply_add = multiplying(dtype, tile, *strides)

    @device
    def put(tile, at, first, last):
        tile[at] = first

    @device
    def add_products(a_tile, b_tile, left, right, sums, thread):
        multiply_add(a_tile, 0, b_tile, 0, left, right, sums, thread % ACROSS, thread // ACROSS)

    @device
    def place(thread, own):
        i, j = own // OWN_COLUMNS, own % OWN_COLUMNS
        row = (i // WIDTH * DOWN + thread // ACROSS) * WIDTH + i % WIDTH
        return row, (j // WIDTH * ACROSS + thread % ACROSS) * WIDTH + j % WIDTH

    @device
    def finish(sums):
        """They are the elements."""

    @device
    def times(x, y):
        return x * y

    words, elements = (tile.depth * strides[0], tile.depth * strides[1]), OWN_ROWS * OWN_COLUMNS
    steps = (1, strides[0]), (1, strides[1])
    kind = numba.from_dtype(dtype)
    return Arithmetic(kind, 1, steps, words, (put, put), elements, elements, add_products, place, finish, times)


@cache
def by_warps(name: str, tile: Tile, across: bool) -> Arithmetic:
    """Tensor cores multiply words in a precision."""
    once = gemm_tensor.once(name)
    a_steps, a_words = gemm_tensor.layout(once, tile.rows, tile.depth, True)
    b_steps, b_words = gemm_tensor.layout(once, tile.columns, tile.depth, across)
    warps = gemm_tensor.warps(name, tile, a_steps, b_steps, (a_words, b_words))
    has_rests, made, rest, whole = warps.words > 1, word(once), word("rest of tf32"), rounded(once)

    def putting(behind: int) -> Callable:
        REST = behind

        @device
        def put(tile, at, first, last):
            tile[at] = made(first, last)
            if has_rests:
                tile[REST + at] = rest(first, last)

        return put

    @device
    def add_products(a_tile, b_tile, left, right, sums, thread):
        warps_add(a_tile, 0, b_tile, 0, thread, sums)

    @device
    def times(x, y):
        product = whole(x) * whole(y)
        if has_rests:
            product += whole(x) * float_of_bits(rest(y, y)) + float_of_bits(rest(x, x)) * whole(y)
        return product

    warps_add = warps.add_products
    shared, put = (a_words * warps.words, b_words * warps.words), (putting(a_words), putting(b_words))
    return Arithmetic(
        numba.uint32, PRECISIONS[once].terms, (a_steps, b_steps), shared, put, warps.sums, warps.elements, add_products,
        warps.place, warps.finish, times,
    )  # fmt: skip


class _Factor(NamedTuple):
    """How a block brings the tiles of one factor to shared memory. each: numbers of a thread.

    load(x, places, size, thread, own), put(own, tile, thread): see gemm_tiles.py.
    """

    each: int
    load: Callable
    put: Callable


def factor(
    dtype: np.dtype, tile: Tile, edge: int, terms: int, steps: tuple[int, int], across: bool, place: Callable,
    put_word: Callable, at_once: bool,
) -> _Factor:  # fmt: skip
    """place: where an element lies, see above. across: are neighbours in memory terms? Else they are along the edge.

    A thread brings the `terms` of a word. at_once: it asks for all of its numbers before it waits for one, if it has
    the registers.
    """
    ZERO, TERMS, WORDS, (EDGE, WORD) = dtype.type(0), terms, tile.depth // terms, steps
    AT_ONCE = at_once
    LINE = WORDS if across else edge
    ROW = max(tile.threads // LINE, 1)  # lines that the threads bring at a time, or parts of one
    PIECE = min(tile.threads, LINE)
    PIECES, EACH = LINE // PIECE, edge * WORDS // tile.threads

    @device
    def where(e, thread):
        along, line = thread % PIECE + e % PIECES * PIECE, thread // PIECE + e // PIECES * ROW
        return (line, along) if across else (along, line)

    @device
    def load(x, places, size, thread, own):
        for e in range(EACH):
            i, w = where(e, thread)
            for v in range(TERMS):
                at, is_there = place(i, w * TERMS + v, places, size)
                if AT_ONCE:
                    value = x[at if is_there else 0]  # without a branch, which would wait for what was asked for before
                    own[e * TERMS + v] = value if is_there else ZERO
                else:
                    own[e * TERMS + v] = ZERO
                    if is_there:
                        own[e * TERMS + v] = x[at]

    @device
    def put(own, tile, thread):
        for e in range(EACH):
            i, w = where(e, thread)
            put_word(tile, i * EDGE + w * WORD, own[e * TERMS], own[e * TERMS + TERMS - 1])

    return _Factor(EACH * TERMS, load, put)


# --- the kernel -------------------------------------------------------------------------------------------------------


@cache
def convolving(dtype: np.dtype, tile: Tile, across: bool, has_bias: bool, precision: str | None = None) -> Kernel:
    """The kernel (a, b, bias, out, columns, terms, steps, groups, sizes, (span, total)); the tuples are a Walk's.

    steps: the digits of the tile's depth, as terms are counted. span: how many terms of the sum a block adds up, in one
    chain; with less than k, `out` is (parts, total), to be folded.
    across: are neighbours of b in memory terms? bias: (filters,) or (1,), read only if has_bias. a and b have elements.

    Outside of its plane b is 0, and takes no part in a sum. But 0 times what is not finite is NaN, so an element that
    is NaN is added up once more, without what is outside.
    """
    kind, ZERO, INDEX, PLACE = numba.from_dtype(dtype), dtype.type(0), numba.int64, numba.uint32
    ROWS, COLUMNS, DEPTH, THREADS = tile.rows, tile.columns, tile.depth, tile.threads
    OWN_ROWS, OWN_COLUMNS = tile.own_rows, tile.own_columns
    arithmetic = by_warps(precision, tile, across) if precision else by_threads(dtype, tile, across)
    WORD, TERMS, places, (A_WORDS, B_WORDS), puts, SUMS, ELEMENTS, add_products, place, finish, times = arithmetic
    (in_rows, in_windows), at_once = _places(COLUMNS, DEPTH), precision is not None
    A_EACH, load_a, put_a = factor(dtype, tile, ROWS, TERMS, places[0], True, in_rows, puts[0], at_once)
    B_EACH, load_b, put_b = factor(dtype, tile, COLUMNS, TERMS, places[1], across, in_windows, puts[1], at_once)
    TWO_COLUMNS, MOVES, TWO_MOVES = 2 * COLUMNS, 5 * DEPTH, 2 * DEPTH
    RESIDENT = 256 // THREADS if precision else max(2, 2048 // dtype.itemsize // THREADS)  # 256 registers a thread, 128
    set_moves, move_on = _moving(DEPTH, THREADS)

    @device
    def again(a, a_at, b, b_at, column, terms, plane, part):
        """An element by the definition. a_at, b_at: where its row and column begin; column: see column_of."""
        digits_1, digits_2, a_0, a_1, a_2, a_start, b_0, b_1, b_2, y_1, x_2 = terms
        value, upper = ZERO, part[0] // (digits_1 * digits_2)
        term = upper * (digits_1 * digits_2)
        while term < part[1]:
            for second in range(digits_1):
                row = column[2] + second * y_1
                for third in range(digits_2):
                    there = column[3] + third * x_2
                    if part[0] <= term < part[1] and 0 <= row < plane[0] and 0 <= there < plane[1]:
                        factor = b[b_at + column[1] + upper * b_0 + second * b_1 + third * b_2]
                        value += times(a[a_at + a_start + upper * a_0 + second * a_1 + third * a_2], factor)
                    term += 1
            upper += 1
        return value

    @kernel(THREADS, RESIDENT)
    def convolve(a, b, bias, out, columns, terms, steps, groups, sizes, cut):
        a_tile = cuda.shared.array(A_WORDS, WORD, ALIGNED)
        b_tile = cuda.shared.array(B_WORDS, WORD, ALIGNED)
        starts = cuda.shared.array(TWO_COLUMNS, INDEX, ALIGNED)
        plane_starts = cuda.shared.array(TWO_COLUMNS, PLACE, ALIGNED)
        moves = cuda.shared.array(MOVES, INDEX, ALIGNED)
        plane_moves = cuda.shared.array(TWO_MOVES, PLACE, ALIGNED)
        sums = cuda.local.array(SUMS, kind)
        a_staged = cuda.local.array(A_EACH, kind)
        b_staged = cuda.local.array(B_EACH, kind)
        left = cuda.local.array(OWN_ROWS, kind)
        right = cuda.local.array(OWN_COLUMNS, kind)
        m, n, k, a_step, out_step, height, width = sizes
        span, total = cut
        bias_step = 1 if bias.size > 1 else 0
        thread = cuda.threadIdx.x
        bands, strips = (m + ROWS - 1) // ROWS, (n + COLUMNS - 1) // COLUMNS
        band, first_column = cuda.blockIdx.x // strips, cuda.blockIdx.x % strips * COLUMNS
        item, first_row = band // bands, band % bands * ROWS
        part, group = item // groups[0], item % groups[0]
        start, end = part * span, min(part * span + span, k)
        rows, plane = (group * groups[1] + first_row * a_step, a_step, m - first_row), (height, width)
        places, inside = (starts, plane_starts, moves, plane_moves), (np.uint32(height), np.uint32(width))
        for i in range(SUMS):
            sums[i] = ZERO
        for j in range(thread, COLUMNS, THREADS):
            to, at, row, there = column_of(first_column + j, n, columns)
            starts[j], starts[COLUMNS + j] = to + group * groups[3], at + group * groups[2]
            plane_starts[j], plane_starts[COLUMNS + j] = np.uint32(row & MASK), np.uint32(there & MASK)
        set_moves(moves, plane_moves, start, k, terms, thread)
        cuda.syncthreads()

        load_a(a, places, rows, thread, a_staged)
        load_b(b, places, inside, thread, b_staged)
        for term in range(start, end, DEPTH):
            cuda.syncthreads()
            put_a(a_staged, a_tile, thread)
            put_b(b_staged, b_tile, thread)
            move_on(moves, plane_moves, term + DEPTH, k, terms, thread, steps)
            cuda.syncthreads()
            if term + DEPTH < end:
                load_a(a, places, rows, thread, a_staged)
                load_b(b, places, inside, thread, b_staged)
            add_products(a_tile, b_tile, left, right, sums, thread)

        finish(sums)
        out_at, bias_at, is_lost = part * total + first_row * out_step, (group * m + first_row) * bias_step, False
        for own in range(ELEMENTS):
            is_lost |= sums[own] != sums[own]
        if has_bias and part == 0:
            for own in range(ELEMENTS):
                row = place(thread, own)[0]
                sums[own] += bias[bias_at + row * bias_step] if row < rows[2] else ZERO
        for own in range(ELEMENTS):
            row, column = place(thread, own)
            if column < n - first_column and row < rows[2]:
                out[out_at + starts[column] + row * out_step] = sums[own]
        if is_lost:
            for own in range(ELEMENTS):
                row, column = place(thread, own)
                to = out_at + starts[column] + row * out_step
                if column < n - first_column and row < rows[2] and out[to] != out[to]:
                    there = column_of(first_column + column, n, columns)
                    value = again(a, rows[0] + row * a_step, b, group * groups[2], there, terms, plane, (start, end))
                    if has_bias and part == 0:
                        value += bias[bias_at + row * bias_step]
                    out[to] = value

    return convolve


def _convolve(walks: Walks, a, b, bias, out, shape: Shape, precision: str | None = None) -> None:
    if not out.size:
        return
    if bias is None and not (a.size and b.size):
        fill(out, 0)
        return
    for n, m, zeros, most in zip((shape.h, shape.w), (shape.oh, shape.ow), shape.padding, LARGEST, strict=True):
        if max(n + 2 * zeros, m) >= most:
            raise ShapeError(f"conv2d: expected fewer than {most} rows or columns, got x of {shape.h} x {shape.w}")
    a, b = (x if x.size else bias for x in (a, b))  # k = 0: what is read counts as zero
    if precision and not machine.has_tensor_cores():
        a, b, precision = gemm_tensor.rounded(precision, a), gemm_tensor.rounded(precision, b), None
    tile, span, parts, found = planned(walks, shape, out.itemsize, precision is not None, tuning.current())
    target = out if parts == 1 else memory.empty((1, parts, out.size), out.dtype)
    loop = convolving(out.dtype, tile, walks is of_weight, bias is not None, precision)
    for columns, terms, groups, sizes in found:
        blocks = -(-sizes[0] // tile.rows) * -(-sizes[1] // tile.columns) * groups[0] * parts
        given = out if bias is None else bias
        rest = tile.depth // terms[1]
        steps = rest // terms[0], rest % terms[0], tile.depth % terms[1]
        launch(loop, blocks, tile.threads, a, b, given, target, columns, terms, steps, groups, sizes, (span, out.size))
    if parts > 1:
        reduce.KERNELS["sum"](target, out.reshape(1, out.size))


def _shape(x, weight, y, stride, padding, dilation, groups) -> Shape:
    (images, c, h, w), (o, _, kh, kw), (_, _, oh, ow) = x.shape, weight.shape, y.shape
    pairs: Any = [tuple(map(int, pair)) for pair in (stride, padding, dilation)]
    return Shape(images, groups, c // groups, h, w, o // groups, oh, ow, kh, kw, *pairs)


def conv2d_rounded(x, weight, bias, out, stride, padding, dilation, groups, precision):
    _convolve(forward, weight, x, bias, out, _shape(x, weight, out, stride, padding, dilation, groups), precision)


def conv2d_input_rounded(g, weight, out, stride, padding, dilation, groups, precision):
    _convolve(of_input, weight, g, None, out, _shape(out, weight, g, stride, padding, dilation, groups), precision)


def conv2d_weight_rounded(g, x, out, stride, padding, dilation, groups, precision):
    _convolve(of_weight, g, x, None, out, _shape(x, out, g, stride, padding, dilation, groups), precision)


ROUNDED = {f.__name__: f for f in (conv2d_rounded, conv2d_input_rounded, conv2d_weight_rounded)}
KERNELS = ROUNDED | {name.removesuffix("_rounded"): partial(run, precision=None) for name, run in ROUNDED.items()}
