"""Convolution of stride 1 that reads patches where they lie: x is copied once, with its zeros, and never by patches.

A row of the copy is `pitch` elements long: x, and as many zeros as the wider side needs, since the zeros after a row
are those before the next. So output (y, x) is number y * pitch + x, and element (c, r, s) of a filter meets it at that
number plus a place of its own: the elements that a row of the patch matrix holds are neighbours, and a tile reads them
as they are. What falls between two rows of outputs is computed in vain, which is why images have to be wide.
"""

import functools

import numpy as np

from ...native.compile import jit
from ...native.llvm import Operand
from ...native.loops import scratch, uncounted
from ...native.simd import TILE, Sums, copy_rows, tile_in_place
from .conv_patches import PANEL_COLUMNS, PANEL_ROWS
from .conv_planes import correlate_planes, is_finite
from .gemm import own_scratch
from .gemm_cuts import ROWS, VECTORS, even, next_panel, tile_rows
from .gemm_pack import transpose_block

MOST_FILTERS = 256  # whose sums, or the gradients of whose outputs, are in L2 beside the image
IMAGE = 1 << 18  # elements of a group of an image with its zeros, at most: 1 MiB of float32 stays in L2
LEAST_COLUMNS = 12  # of a row of outputs: of shorter ones, too much is computed in vain
MOST_PLACES = 1 << 14  # elements of a filter
INT64 = np.dtype(np.int64)
SCRATCH = IMAGE + MOST_FILTERS * PANEL_COLUMNS  # elements


def sides_of(shape):
    """(rows before x, columns before it, rows and columns after it, pitch)."""
    bottom = shape.rows + shape.dilation_h * (shape.kh - 1) - shape.height - shape.top
    right = shape.columns + shape.dilation_w * (shape.kw - 1) - shape.width - shape.left
    return shape.top, shape.left, bottom, right, shape.width + max(shape.left, right)


def plane_of(shape):
    """Elements of a channel with its zeros."""
    right = shape.columns + shape.dilation_w * (shape.kw - 1) - shape.width - shape.left
    return (shape.rows + shape.dilation_h * (shape.kh - 1)) * (shape.width + max(shape.left, right))


_sides, _plane = jit(sides_of), jit(plane_of)


@functools.lru_cache(maxsize=256)
def reads_in_place(shape) -> bool:
    """Can, and should, this correlation read patches in place?"""
    top, left, bottom, right, pitch = sides_of(shape)
    return (
        shape.stride_h == shape.stride_w == 1 < shape.kh * shape.kw  # one element: a patch is what x is
        and min(top, left, bottom, right) >= 0
        and LEAST_COLUMNS <= shape.columns <= pitch <= min(PANEL_COLUMNS, shape.columns * 9 // 8)
        and shape.channels * plane_of(shape) + pitch <= IMAGE
        and shape.channels * shape.kh * shape.kw <= MOST_PLACES
    )


def memory(dtype):
    """For each thread: the places, and an image with its zeros beside the sums or gradients of a block."""
    return scratch(MOST_PLACES, INT64), scratch(SCRATCH, dtype)


@jit
def _list_places(shape, places, at):
    """places[at:] = where each element of a filter meets the first output."""
    plane, pitch = _plane(shape), _sides(shape)[-1]
    for c in range(shape.channels):
        for r in range(shape.kh):
            for s in range(shape.kw):
                places[at] = c * plane + r * shape.dilation_h * pitch + s * shape.dilation_w
                at += 1


@jit
def _copy_image(x, at, shape, target, to):
    """The rows of a group of an image, x[at:], between the zeros of target[to:]."""
    top, left, _, _, pitch = _sides(shape)
    plane, lanes = _plane(shape), TILE.vector_bytes // target.itemsize
    for c in range(shape.channels):
        done = 0
        while done < shape.width:
            rest = min(shape.width - done, 4 * lanes)
            vectors = (rest >= lanes) + (rest > lanes) + (rest > 2 * lanes) + (rest > 3 * lanes)
            source = Operand(x, at + c * shape.height * shape.width + done, shape.width, 0)
            into = Operand(target, to + c * plane + top * pitch + left + done, pitch, 0)
            copy_rows(source, into, shape.height, vectors, rest - lanes if vectors else rest, False)
            done += rest


@jit
def _image(x, at, shape, flat, own):
    """(array, its element) where a group of an image lies with its zeros; without zeros that is x itself."""
    if shape.channels * _plane(shape) == shape.channels * shape.height * shape.width:
        return x, at
    _copy_image(x, at, shape, flat, own)
    return flat, own


@jit
def correlate_in_place(lo, hi, x, weight, bias, out, shape, places, work):
    """Images lo to hi of out (n, groups * filters, rows, columns), flat; weight (groups * filters, k)."""
    if not is_finite(weight.ravel()):
        correlate_planes(lo, hi, x, weight.ravel(), bias, out, shape)
        return
    own = own_scratch(work).at
    x, weight_flat, out, flat = uncounted(x), uncounted(weight.ravel()), uncounted(out), uncounted(work.ravel())
    k, pitch, lanes = weight.shape[1], _sides(shape)[-1], TILE.vector_bytes // out.itemsize
    places_at, places = own_scratch(places).at, uncounted(places.ravel())
    _list_places(shape, places, places_at)
    flat[own : own + shape.channels * _plane(shape) + pitch] = 0
    sums_at, k_block = own + IMAGE, even(k, PANEL_ROWS, 16)
    size, outputs = shape.channels * shape.height * shape.width, shape.rows * shape.columns
    rows_together = even(shape.rows, max(1, PANEL_COLUMNS // pitch), 1)
    for image in range(lo, hi):
        for group in range(shape.groups):
            source, begin = _image(x, (image * shape.groups + group) * size, shape, flat, own)
            for y in range(0, shape.rows, rows_together):
                rows = min(rows_together, shape.rows - y)
                columns = (rows - 1) * pitch + shape.columns
                for f in range(0, shape.filters, MOST_FILTERS):
                    count = min(MOST_FILTERS, shape.filters - f)
                    filter_0 = group * shape.filters + f
                    for i in range(count):
                        begin_line, value = sums_at + i * columns, bias[(filter_0 + i) % bias.size]
                        line = flat[begin_line : begin_line + columns]
                        for j in range(columns):
                            line[j] = value
                    for k0 in range(0, k, k_block):
                        _add_products(
                            Operand(weight_flat, filter_0 * k + k0, k, 0), Operand(source, begin + y * pitch, 0, 0),
                            Operand(flat, sums_at, columns, 0), Operand(places, places_at + k0, 0, 0),
                            count, columns, min(k_block, k - k0), False, lanes,
                        )  # fmt: skip
                    for i in range(count):
                        first = (image * shape.groups * shape.filters + filter_0 + i) * outputs + y * shape.columns
                        for row in range(rows):
                            at, to = sums_at + i * columns + row * pitch, first + row * shape.columns
                            line, total = out[to : to + shape.columns], flat[at : at + shape.columns]
                            for j in range(shape.columns):
                                line[j] = total[j]


@jit
def _add_products(a, b, out, places, rows, columns, k, lists_rows, lanes):
    """out (rows, columns) += a @ b by tiles, where `places` lists the rows of a or those of b."""
    tiles = (rows + ROWS - 1) // ROWS
    low, high_tiles = tile_rows(rows, tiles)
    most = VECTORS[low + 1 if high_tiles else low]
    j = 0
    while j < columns:
        wide, vectors, last = next_panel(columns - j, most, lanes)
        for part in range(2):  # the high tiles, then the low ones
            first, count, high = (0, high_tiles, low + 1) if part == 0 else (high_tiles, tiles - high_tiles, low)
            i = first * low + min(first, high_tiles)
            row_of_a, row_of_places = (0, i) if lists_rows else (a.row, 0)
            if count:
                tile_in_place(
                    Operand(a.array, a.at + i * row_of_a, a.row, high * row_of_a),
                    Operand(b.array, b.at + j, b.row, 0),
                    Operand(out.array, out.at + i * out.row + j, out.row, high * out.row),
                    Operand(places.array, places.at + row_of_places, 0, 0),
                    Sums(count, k, high, vectors, last, lists_rows),
                )  # fmt: skip
        j += wide


@jit
def weight_chunks_in_place(lo, hi, g, x, partial, shape, images, places, work):
    """Chunks lo to hi of the gradient: partial (chunks * groups * k, filters) is written; `images` of a chunk."""
    own = own_scratch(work).at
    g, x, flat, sums = uncounted(g), uncounted(x), uncounted(work.ravel()), uncounted(partial.ravel())
    k, pitch, lanes = shape.channels * shape.kh * shape.kw, _sides(shape)[-1], TILE.vector_bytes // g.itemsize
    places_at, places = own_scratch(places).at, uncounted(places.ravel())
    _list_places(shape, places, places_at)
    flat[own : own + shape.channels * _plane(shape) + pitch] = 0
    g_at, outputs = own + IMAGE, shape.rows * shape.columns
    size, n = shape.channels * shape.height * shape.width, g.size // (shape.groups * shape.filters * outputs)
    rows_together = even(shape.rows, max(1, PANEL_COLUMNS // pitch), 1)
    for chunk in range(lo, hi):
        first = chunk * shape.groups * k * shape.filters
        sums[first : first + shape.groups * k * shape.filters] = 0
        for image in range(chunk * images, min(n, (chunk + 1) * images)):
            for group in range(shape.groups):
                source, begin = _image(x, (image * shape.groups + group) * size, shape, flat, own)
                for f in range(0, shape.filters, MOST_FILTERS):
                    count = min(MOST_FILTERS, shape.filters - f)
                    if shape.filters > MOST_FILTERS or image == chunk * images:  # zeros between the rows
                        flat[g_at : g_at + count * PANEL_COLUMNS] = 0
                    for y in range(0, shape.rows, rows_together):
                        rows = min(rows_together, shape.rows - y)
                        at = ((image * shape.groups + group) * shape.filters + f) * outputs + y * shape.columns
                        for row in range(rows):
                            transpose_block(
                                Operand(g, at + row * shape.columns, outputs, 0), count, shape.columns,
                                Operand(flat, g_at + row * pitch * count, count, 0),
                            )  # fmt: skip
                        _add_products(
                            Operand(source, begin + y * pitch, 0, 0), Operand(flat, g_at, count, 0),
                            Operand(sums, first + group * k * shape.filters + f, shape.filters, 0),
                            Operand(places, places_at, 0, 0), k, count, (rows - 1) * pitch + shape.columns, True, lanes,
                        )  # fmt: skip
