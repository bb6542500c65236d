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

The terms of a sum are added up in the order of k, in parts that depend on the shapes alone, as in gemm.py.
"""

from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from math import gcd
from typing import Any, NamedTuple

import numba
import numpy as np

from . import gemm, memory, reduce, tuning
from .compile import ALIGNED, Kernel, cuda, device, kernel, launch
from .gemm_tiles import multiplying
from .movement import fill
from .tuning import Tile, Tuning

FAR = -(1 << 60)  # a row that no window reaches


class Walk(NamedTuple):
    """A sum out[i, j] for each group, in numbers. digits: (of the second, of the third); steps: of each digit.

    columns: digits of j, its steps and start in b, (step of the second digit, start) of the row in the plane, the same
    of the column, steps and start in out. terms: digits of k, its steps and start in a, its steps in b, and of the
    second and third digit in the plane. groups: their number, and how far they are apart in a, b and out. sizes: of i,
    j and k, then how far rows are apart in a and in out, then of the plane.
    """

    columns: tuple[int, ...]
    terms: tuple[int, ...]
    groups: tuple[int, int, int, int]
    sizes: tuple[int, ...]


# --- where things lie -------------------------------------------------------------------------------------------------


@device
def column_of(j, n, columns):
    """(in out, in b, the row and the column of the plane) of column j; FAR from the plane beyond the last one."""
    digits_1, digits_2, b_0, b_1, b_2, b_start, y_1, y_start, x_2, x_start, to_0, to_1, to_2, to_start = columns
    upper, second, third = j // digits_2 // digits_1, j // digits_2 % digits_1, j % digits_2
    to = upper * to_0 + second * to_1 + third * to_2 + to_start
    row = second * y_1 + y_start if j < n else FAR
    return to, upper * b_0 + second * b_1 + third * b_2 + b_start, row, third * x_2 + x_start


@cache
def _moving(depth: int, threads: int) -> tuple[Callable, Callable]:
    """set_moves(moves, term, k, terms, thread): the moves of `depth` terms; move_on(..., steps): from those before.

    moves: (in a, or -1 beyond the last term; in b; the rows and the columns by which it moves in the plane), and the
    three digits, each for all terms. steps: the digits of `depth`, which spare a division.
    """
    DEPTH, THREADS = depth, threads

    @device
    def put(moves, t, term, k, digits, terms):
        upper, second, third = digits
        _, _, a_0, a_1, a_2, a_start, b_0, b_1, b_2, y_1, x_2 = terms
        is_there = term + t < k
        moves[t] = upper * a_0 + second * a_1 + third * a_2 + a_start if is_there else -1
        moves[DEPTH + t] = upper * b_0 + second * b_1 + third * b_2
        moves[2 * DEPTH + t] = second * y_1 if is_there else FAR
        moves[3 * DEPTH + t] = third * x_2
        moves[4 * DEPTH + t], moves[5 * DEPTH + t], moves[6 * DEPTH + t] = upper, second, third

    @device
    def set_moves(moves, term, k, terms, thread):
        for t in range(thread, DEPTH, THREADS):
            rest = (term + t) // terms[1]
            put(moves, t, term, k, (rest // terms[0], rest % terms[0], (term + t) % terms[1]), terms)

    @device
    def move_on(moves, term, k, terms, thread, steps):
        for t in range(thread, DEPTH, THREADS):
            upper, second, third = moves[4 * DEPTH + t], moves[5 * DEPTH + t], moves[6 * DEPTH + t] + steps[2]
            second += steps[1]
            if third >= terms[1]:
                third, second = third - terms[1], second + 1
            upper += steps[0]
            if second >= terms[0]:
                second, upper = second - terms[0], upper + 1
            put(moves, t, term, k, (upper, second, third), terms)

    return set_moves, move_on


@cache
def _places(edge: int, depth: int) -> tuple[Callable, Callable]:
    """in_rows, in_windows(i, t, starts, moves, size): where element i of the tile's edge lies with term t; -1: nowhere.

    starts, moves: what column_of and set_moves say, each number for the whole tile.
    """
    ROWS, COLUMNS, B, DOWN, RIGHT = 2 * edge, 3 * edge, depth, 2 * depth, 3 * depth

    @device
    def in_rows(i, t, starts, moves, size):
        first, step, count = size
        return first + i * step + moves[t] if i < count and moves[t] >= 0 else -1

    @device
    def in_windows(i, t, starts, moves, size):
        row, column = starts[ROWS + i] + moves[DOWN + t], starts[COLUMNS + i] + moves[RIGHT + t]
        is_inside = 0 <= row < size[0] and 0 <= column < size[1]
        return starts[edge + i] + moves[B + t] if is_inside else -1

    return in_rows, in_windows


class _Factor(NamedTuple):
    """How a block brings the tiles of one factor to shared memory. words: of one tile; stride: of one term in it.

    load(x, starts, moves, size, thread, own), put(own, tile, thread): see gemm_tiles.py. each: numbers of a thread.
    """

    words: int
    stride: int
    each: int
    load: Callable
    put: Callable


@cache
def factor(dtype: np.dtype, edge: int, depth: int, threads: int, across: bool, place: Callable) -> _Factor:
    """place: where an element lies, see above. across: are neighbours in memory terms? Else they are along the edge."""
    ZERO, WIDTH, TOTAL = dtype.type(0), 16 // dtype.itemsize, edge * depth
    STRIDE = edge + WIDTH if across else edge  # see gemm_tiles.py
    LINE = depth if across else edge
    ROW = max(threads // LINE, 1)  # lines that the threads bring at a time, or parts of one
    PIECE = min(threads, LINE)
    PIECES, EACH = LINE // PIECE, TOTAL // threads

    @device
    def load(x, starts, moves, size, thread, own):
        for e in range(EACH):
            along, line = thread % PIECE + e % PIECES * PIECE, thread // PIECE + e // PIECES * ROW
            i, t = (line, along) if across else (along, line)
            at = place(i, t, starts, moves, size)
            own[e] = ZERO
            if at >= 0:
                own[e] = x[at]

    @device
    def put(own, tile, thread):
        for e in range(EACH):
            along, line = thread % PIECE + e % PIECES * PIECE, thread // PIECE + e // PIECES * ROW
            i, t = (line, along) if across else (along, line)
            tile[t * STRIDE + i] = own[e]

    return _Factor(STRIDE * depth, STRIDE, EACH, load, put)


# --- the kernel -------------------------------------------------------------------------------------------------------


@cache
def convolving(dtype: np.dtype, tile: Tile, across: bool, has_bias: bool) -> Kernel:
    """The kernel (a, b, bias, out, columns, terms, steps, groups, sizes, (span, total)); the tuples are a Walk's.

    steps: the digits of the tile's depth, as terms are counted. span: how many terms of the sum a block adds up, in one
    chain; with less than k, `out` is (parts, total), to be folded.
    across: are neighbours of b in memory terms? bias: (filters,) or (1,), read only if has_bias.

    Outside of its plane b is 0, and takes no part in a sum. But 0 times what is not finite is NaN, so an element that
    is NaN is added up once more, without what is outside.
    """
    kind, ZERO, WIDTH, INDEX = numba.from_dtype(dtype), dtype.type(0), 16 // dtype.itemsize, numba.int64
    ROWS, COLUMNS, DEPTH, OWN_ROWS, OWN_COLUMNS = tile.rows, tile.columns, tile.depth, tile.own_rows, tile.own_columns
    ACROSS, DOWN, THREADS, OWN = COLUMNS // OWN_COLUMNS, ROWS // OWN_ROWS, tile.threads, OWN_ROWS * OWN_COLUMNS
    in_rows, in_windows = _places(COLUMNS, DEPTH)
    A_WORDS, A_STRIDE, A_EACH, load_a, put_a = factor(dtype, ROWS, DEPTH, THREADS, True, in_rows)
    B_WORDS, B_STRIDE, B_EACH, load_b, put_b = factor(dtype, COLUMNS, DEPTH, THREADS, across, in_windows)
    add_products = multiplying(dtype, tile, A_STRIDE, B_STRIDE)
    STARTS, MOVES = 4 * COLUMNS, 7 * DEPTH
    RESIDENT = max(2, 2048 // dtype.itemsize // THREADS)  # with 128 registers for each thread in float32
    set_moves, move_on = _moving(DEPTH, THREADS)

    @device
    def again(a, a_at, b, starts, column, terms, plane, part):
        """An element by the definition. a_at: where its row begins."""
        digits_1, digits_2, a_0, a_1, a_2, a_start, b_0, b_1, b_2, y_1, x_2 = terms
        value, upper = ZERO, part[0] // (digits_1 * digits_2)
        term = upper * (digits_1 * digits_2)
        while term < part[1]:
            for second in range(digits_1):
                row = starts[2 * COLUMNS + column] + second * y_1
                for third in range(digits_2):
                    there = starts[3 * COLUMNS + column] + third * x_2
                    if part[0] <= term < part[1] and 0 <= row < plane[0] and 0 <= there < plane[1]:
                        factor = b[starts[COLUMNS + column] + upper * b_0 + second * b_1 + third * b_2]
                        value += a[a_at + a_start + upper * a_0 + second * a_1 + third * a_2] * factor
                    term += 1
            upper += 1
        return value

    @kernel(THREADS, RESIDENT)
    def convolve(a, b, bias, out, columns, terms, steps, groups, sizes, cut):
        a_tile = cuda.shared.array(A_WORDS, kind, ALIGNED)
        b_tile = cuda.shared.array(B_WORDS, kind, ALIGNED)
        starts = cuda.shared.array(STARTS, INDEX, ALIGNED)
        moves = cuda.shared.array(MOVES, INDEX, ALIGNED)
        sums = cuda.local.array(OWN, kind)
        a_staged = cuda.local.array(A_EACH, kind)
        b_staged = cuda.local.array(B_EACH, kind)
        left = cuda.local.array(OWN_ROWS, kind)
        right = cuda.local.array(OWN_COLUMNS, kind)
        m, n, k, a_step, out_step, height, width = sizes
        span, total = cut
        bias_step = 1 if bias.size > 1 else 0
        thread = cuda.threadIdx.x
        x, y = thread % ACROSS, thread // ACROSS
        bands, strips = (m + ROWS - 1) // ROWS, (n + COLUMNS - 1) // COLUMNS
        band, first_column = cuda.blockIdx.x // strips, cuda.blockIdx.x % strips * COLUMNS
        item, first_row = band // bands, band % bands * ROWS
        part, group = item // groups[0], item % groups[0]
        start, end = part * span, min(part * span + span, k)
        rows, plane = (group * groups[1] + first_row * a_step, a_step, m - first_row), (height, width)
        for i in range(OWN):
            sums[i] = ZERO
        for j in range(thread, COLUMNS, THREADS):
            to, at, starts[2 * COLUMNS + j], starts[3 * COLUMNS + j] = column_of(first_column + j, n, columns)
            starts[j], starts[COLUMNS + j] = to + group * groups[3], at + group * groups[2]
        set_moves(moves, start, k, terms, thread)
        cuda.syncthreads()

        load_a(a, starts, moves, rows, thread, a_staged)
        load_b(b, starts, moves, plane, thread, b_staged)
        for term in range(start, end, DEPTH):
            cuda.syncthreads()
            put_a(a_staged, a_tile, thread)
            put_b(b_staged, b_tile, thread)
            move_on(moves, term + DEPTH, k, terms, thread, steps)
            cuda.syncthreads()
            if term + DEPTH < end:
                load_a(a, starts, moves, rows, thread, a_staged)
                load_b(b, starts, moves, plane, thread, b_staged)
            add_products(a_tile, 0, b_tile, 0, left, right, sums, x, y)

        is_lost = False
        for j in range(OWN_COLUMNS):
            column = (j // WIDTH * ACROSS + x) * WIDTH + j % WIDTH
            for i in range(OWN_ROWS):
                row = (i // WIDTH * DOWN + y) * WIDTH + i % WIDTH
                if first_column + column < n and row < rows[2]:
                    value = sums[i * OWN_COLUMNS + j]
                    is_lost = is_lost or value != value
                    if has_bias and part == 0:
                        value += bias[(group * m + first_row + row) * bias_step]
                    out[part * total + starts[column] + (first_row + row) * out_step] = value
        if is_lost:
            for own in range(OWN):
                column = (own % OWN_COLUMNS // WIDTH * ACROSS + x) * WIDTH + own % WIDTH
                row = (own // OWN_COLUMNS // WIDTH * DOWN + y) * WIDTH + own // OWN_COLUMNS % WIDTH
                to = part * total + starts[column] + (first_row + row) * out_step
                if first_column + column < n and row < rows[2] and out[to] != out[to]:
                    value = again(a, rows[0] + row * a_step, b, starts, column, terms, plane, (start, end))
                    if has_bias and part == 0:
                        value += bias[(group * m + first_row + row) * bias_step]
                    out[to] = value

    return convolve


# --- the numbers ------------------------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """Of a call: of a group of x, of the images, of the filters, and how windows move."""

    images: int
    groups: int
    channels: int
    h: int
    w: int
    filters: int
    oh: int
    ow: int
    kh: int
    kw: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


Walks = Callable[[Shape], Iterator[Walk]]


def forward(s: Shape) -> Iterator[Walk]:
    (sh, sw), (ph, pw), (dh, dw) = s.stride, s.padding, s.dilation
    window, x, out = s.kh * s.kw, s.channels * s.h * s.w, s.filters * s.oh * s.ow
    yield Walk(
        (s.oh, s.ow, s.groups * x, sh * s.w, sw, -ph * s.w - pw, sh, -ph, sw, -pw, s.groups * out, s.ow, 1, 0),
        (s.kh, s.kw, window, s.kw, 1, 0, s.h * s.w, dh * s.w, dw, dh, dw),
        (s.groups, s.filters * s.channels * window, x, out),
        (s.filters, s.images * s.oh * s.ow, s.channels * window, s.channels * window, s.oh * s.ow, s.h, s.w),
    )


def of_weight(s: Shape) -> Iterator[Walk]:
    """What are the columns of `forward` are terms here, and the other way round."""
    (sh, sw), (ph, pw), (dh, dw) = s.stride, s.padding, s.dilation
    window, x, g = s.kh * s.kw, s.channels * s.h * s.w, s.filters * s.oh * s.ow
    yield Walk(
        (s.kh, s.kw, s.h * s.w, dh * s.w, dw, -ph * s.w - pw, dh, -ph, dw, -pw, window, s.kw, 1, 0),
        (s.oh, s.ow, s.groups * g, s.ow, 1, 0, s.groups * x, sh * s.w, sw, sh, sw),
        (s.groups, g, x, s.filters * s.channels * window),
        (s.filters, s.channels * window, s.images * s.oh * s.ow, s.oh * s.ow, s.channels * window, s.h, s.w),
    )


def of_input(s: Shape) -> Iterator[Walk]:
    """One for each part of x whose rows, and columns, are the same modulo the stride."""
    (sh, sw), window = s.stride, s.kh * s.kw
    x, g = s.channels * s.h * s.w, s.filters * s.oh * s.ow
    for p in range(min(sh, s.h)):
        first_r, step_r, kh, y, back_y = _met(p + s.padding[0], s.kh, sh, s.dilation[0])
        for q in range(min(sw, s.w)):
            first_s, step_s, kw, at, back_x = _met(q + s.padding[1], s.kw, sw, s.dilation[1])
            h, w = -(-(s.h - p) // sh), -(-(s.w - q) // sw)
            start, first, in_g = y * s.ow + at, first_r * s.kw + first_s, (s.oh * s.ow, -back_y * s.ow, -back_x)
            yield Walk(
                (h, w, s.groups * g, s.ow, 1, start, 1, y, 1, at, s.groups * x, sh * s.w, sw, p * s.w + q),
                (max(kh, 1), max(kw, 1), s.channels * window, step_r * s.kw, step_s, first, *in_g, -back_y, -back_x),
                (s.groups, s.filters * s.channels * window, g, x),
                (s.channels, s.images * h * w, s.filters * kh * kw, window, s.h * s.w, s.oh, s.ow),
            )


def _met(place: int, window: int, stride: int, dilation: int) -> tuple[int, int, int, int, int]:
    """Which elements r of a window land on `place`, with the padding: those whose place - r * dilation is an output's.

    (the first r, how far they are apart, how many there are, the output of the first, how far back each next one is).
    """
    apart = stride // gcd(stride, dilation)
    for r in range(min(apart, window)):
        if (place - r * dilation) % stride == 0:
            return r, apart, -(-(window - r) // apart), (place - r * dilation) // stride, apart * dilation // stride
    return 0, 1, 0, 0, 0


@lru_cache(1024)
def planned(walks: Walks, shape: Shape, itemsize: int, numbers: Tuning) -> tuple[Tile, int, int, list[Walk]]:
    """(tile, span, parts of the sum, launches)."""
    found = list(walks(shape))
    m, n, k = (max(walk.sizes[i] for walk in found) for i in range(3))
    tiles = numbers.windows if itemsize == 4 else numbers.windows[1:]
    tile = next((tile for tile in tiles if tile.rows < 2 * m), tiles[-1])
    _, span = gemm.span_of(numbers, (tile,), shape.groups * len(found), m, n, k)
    return tile, span, max(-(-k // span), 1), found


def _convolve(walks, a, b, bias, out, shape: Shape) -> None:
    if not out.size:
        return
    if bias is None and not (a.size and b.size):
        fill(out, 0)
        return
    a, b = (x if x.size else out for x in (a, b))  # k = 0: no element is read
    tile, span, parts, found = planned(walks, shape, out.itemsize, tuning.current())
    target = out if parts == 1 else memory.empty((1, parts, out.size), out.dtype)
    loop = convolving(out.dtype, tile, walks is of_weight, bias is not None)
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


def conv2d(x, weight, bias, out, stride, padding, dilation, groups):
    _convolve(forward, weight, x, bias, out, _shape(x, weight, out, stride, padding, dilation, groups))


def conv2d_input(g, weight, out, stride, padding, dilation, groups):
    _convolve(of_input, weight, g, None, out, _shape(out, weight, g, stride, padding, dilation, groups))


def conv2d_weight(g, x, out, stride, padding, dilation, groups):
    _convolve(of_weight, g, x, None, out, _shape(x, out, g, stride, padding, dilation, groups))


KERNELS = {"conv2d": conv2d, "conv2d_input": conv2d_input, "conv2d_weight": conv2d_weight}
