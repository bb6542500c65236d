"""Convolution and its two gradients: matrix products whose other factor is never in memory as a whole.

    out (filters, outputs)        = weight (filters, k) @ patches (k, outputs)
    weight gradient.T (k, filters) = patches (k, outputs) @ g.T (outputs, filters)

k runs over the elements (c, r, s) of a filter. A thread packs a panel of patches (conv_patches.py), multiplies it by
the tiles of the matrix product (gemm_blocks.py) while it is in L2, and overwrites it with the next. The gradient
towards x is a convolution itself, of g with the filters turned around; where that would gather many numbers from few,
as of a strided one, the products weight.T @ g are added to x instead. Each image is an item, so bits depend neither on
the batch nor on threads; the images of a weight's gradient are added up in at most CHUNKS chunks, folded in order.
"""

import numpy as np

from ...native.compile import jit
from ...native.llvm import Operand
from ...native.loops import constant, ranged, scratch, workspace
from .conv_in_place import correlate_in_place, memory, reads_in_place, weight_chunks_in_place
from .conv_patches import PANEL_COLUMNS, PANEL_ROWS, Block, Geometry, add_patches, pack_patches
from .conv_planes import correlate_planes, is_by_planes, is_finite, mend_gradients, plane_gradients
from .gemm import ZEROS, own_scratch
from .gemm_blocks import Left, Right, multiply_block
from .gemm_cuts import ADD, PACKED_AS_READ, START, Region, Sums, even
from .gemm_pack import transpose_block

MOST_FILTERS = 256  # that take a panel at a time, where their sums, or the gradients of their outputs, are copied
FEW_OUTPUTS = 112  # images of fewer outputs share panels, so that the last tile of each is not nearly empty
CHUNKS = 8  # of a batch, whose weight gradients are folded
_PANEL = PANEL_ROWS * PANEL_COLUMNS
_NO_BIAS = {dtype: constant(np.zeros(1, dtype)) for dtype in ZEROS}
_SCRATCH = PACKED_AS_READ + _PANEL + MOST_FILTERS * PANEL_COLUMNS  # elements: packed by tiles, a panel, sums of a panel


@jit
def block_of(shape, number):
    """(block `number` of an image's outputs, the number of blocks): whole rows, or parts of rows that are long."""
    if shape.columns > PANEL_COLUMNS:
        parts = (shape.columns + PANEL_COLUMNS - 1) // PANEL_COLUMNS
        x = number % parts * PANEL_COLUMNS
        return Block(number // parts, 1, x, min(PANEL_COLUMNS, shape.columns - x)), shape.rows * parts
    rows = PANEL_COLUMNS // shape.columns
    y = number * rows
    return Block(y, min(rows, shape.rows - y), 0, shape.columns), (shape.rows + rows - 1) // rows


@jit
def images_together(shape):
    """How many images share a panel."""
    outputs = shape.rows * shape.columns
    return PANEL_COLUMNS // outputs if outputs <= FEW_OUTPUTS and shape.filters <= MOST_FILTERS else 1


@jit
def _pack_images(x, first, last, shape, group, block, k0, depth, panel, at):
    """The panel of a block of each of the images first to last, side by side."""
    size = shape.channels * shape.height * shape.width
    outputs = block.rows * block.columns
    for image in range(first, last):
        pack_patches(
            x, (image * shape.groups + group) * size, shape, block, k0, depth,
            panel, at + (image - first) * outputs, (last - first) * outputs,
        )  # fmt: skip


@jit
def _correlate(lo, hi, x, weight, bias, out, shape, zeros, work):
    """Images lo to hi of out (n, groups * filters, rows, columns), flat; weight (groups * filters, k)."""
    if not is_finite(weight.ravel()):
        correlate_planes(lo, hi, x, weight.ravel(), bias, out, shape)
        return
    own = own_scratch(work)
    flat, k = work.ravel(), weight.shape[1]
    panel_at = own.at + PACKED_AS_READ
    sums_at = panel_at + _PANEL
    outputs, filters = shape.rows * shape.columns, shape.groups * shape.filters
    together, k_block = images_together(shape), even(k, PANEL_ROWS, 16)
    targets = out.reshape((out.size // outputs, outputs))
    for first in range(lo, hi, together):
        last = min(hi, first + together)
        for group in range(shape.groups):
            filter_0, number, blocks = group * shape.filters, 0, 1
            while number < blocks:
                block, blocks = block_of(shape, number)
                number += 1
                wide = block.rows * block.columns
                columns, place = wide * (last - first), block.y * shape.columns + block.x
                if together > 1:
                    start, row = flat, columns
                    sums = Sums(zeros, work, work, work, 0, sums_at - filter_0 * columns, columns)
                    base = sums_at
                else:
                    start, row = out, outputs
                    base = (first * filters + filter_0) * outputs + place
                    sums = Sums(zeros, targets, targets, targets, 0, base - filter_0 * outputs, outputs)
                for f in range(shape.filters):
                    line, value = start[base + f * row : base + f * row + columns], bias[(filter_0 + f) % bias.size]
                    for j in range(columns):
                        line[j] = value
                for k0 in range(0, k, k_block):
                    depth = min(k_block, k - k0)
                    _pack_images(x, first, last, shape, group, block, k0, depth, flat, panel_at)
                    patches = flat[panel_at : panel_at + depth * columns].reshape((depth, columns))
                    multiply_block(
                        Left(weight, 0, False, False), Right(patches, 0, 0, False), sums,
                        Region(filter_0, filter_0 + shape.filters, 0, columns), k0, depth, own, ADD,
                    )  # fmt: skip
                if together > 1:
                    for f in range(shape.filters):
                        for image in range(first, last):
                            begin = (image * filters + filter_0 + f) * outputs + place
                            at = sums_at + f * columns + (image - first) * wide
                            line, total = out[begin : begin + wide], flat[at : at + wide]
                            for j in range(wide):
                                line[j] = total[j]


@jit
def _weight_chunks(lo, hi, g, x, partial, shape, images, zeros, work):
    """Chunks lo to hi of the gradient: partial (chunks * groups * k, filters) is written; `images` of a chunk."""
    own = own_scratch(work)
    flat = work.ravel()
    panel_at = own.at + PACKED_AS_READ
    g_at = panel_at + _PANEL
    outputs = shape.rows * shape.columns
    k, n = shape.channels * shape.kh * shape.kw, g.size // (shape.groups * shape.filters * outputs)
    together, k_block = images_together(shape), even(k, PANEL_ROWS, 16)
    for chunk in range(lo, hi):
        end = min(n, (chunk + 1) * images)
        for line in partial[chunk * shape.groups * k : (chunk + 1) * shape.groups * k]:
            line[:] = 0
        for first in range(chunk * images, end, together):
            last = min(end, first + together)
            for group in range(shape.groups):
                number, blocks = 0, 1
                while number < blocks:
                    block, blocks = block_of(shape, number)
                    number += 1
                    wide = block.rows * block.columns
                    columns, place = wide * (last - first), block.y * shape.columns + block.x
                    for f in range(0, shape.filters, MOST_FILTERS):
                        count = min(MOST_FILTERS, shape.filters - f)
                        for image in range(first, last):
                            begin = ((image * shape.groups + group) * shape.filters + f) * outputs + place
                            into = g_at + (image - first) * wide * count
                            transpose_block(Operand(g, begin, outputs, 0), count, wide, Operand(flat, into, count, 0))
                        g_columns = flat[g_at : g_at + columns * count].reshape((columns, count))
                        for k0 in range(0, k, k_block):
                            depth = min(k_block, k - k0)
                            _pack_images(x, first, last, shape, group, block, k0, depth, flat, panel_at)
                            patches = flat[panel_at : panel_at + depth * columns].reshape((depth, columns))
                            at = ((chunk * shape.groups + group) * k + k0) * shape.filters + f
                            multiply_block(
                                Left(patches, 0, False, False), Right(g_columns, 0, 0, False),
                                Sums(zeros, partial, partial, partial, 0, at, shape.filters),
                                Region(0, depth, 0, count), 0, columns, own, ADD,
                            )  # fmt: skip


@jit
def _fold_chunks(lo, hi, partial, out, groups, chunks):
    """Rows lo to hi of (groups * k, filters), added up over the chunks; out (groups * filters, k)."""
    filters, k = partial.shape[1], out.shape[1]
    for row in range(lo, hi):
        total = partial[row]
        for chunk in range(1, chunks):
            line = partial[chunk * groups * k + row]
            for f in range(filters):
                total[f] += line[f]
        first = row // k * filters
        for f in range(filters):
            out[first + f, row % k] = total[f]


@jit
def _scatter(lo, hi, g, weight, out, shape, zeros, work):
    """Images lo to hi of the gradient towards x: weight.T @ g is a panel of what each patch adds to x.

    `shape` is that of the convolution. weight (groups * filters, k), all others flat.
    """
    own = own_scratch(work)
    flat, k = work.ravel(), weight.shape[1]
    panel_at = own.at + PACKED_AS_READ
    outputs, size = shape.rows * shape.columns, shape.channels * shape.height * shape.width
    planes = g.reshape((g.size // outputs, outputs))
    k_block = even(k, PANEL_ROWS, 16)
    for image in range(lo, hi):
        for group in range(shape.groups):
            filter_0, at = group * shape.filters, (image * shape.groups + group) * size
            out[at : at + size] = 0
            number, blocks = 0, 1
            while number < blocks:
                block, blocks = block_of(shape, number)
                number += 1
                columns = block.rows * block.columns
                first = (image * shape.groups * shape.filters + filter_0) * outputs
                for k0 in range(0, k, k_block):
                    depth = min(k_block, k - k0)
                    for f in range(0, shape.filters, MOST_FILTERS):
                        count = min(MOST_FILTERS, shape.filters - f)
                        multiply_block(
                            Left(weight, 0, True, False),
                            Right(planes, first + f * outputs + block.y * shape.columns + block.x, 0, False),
                            Sums(zeros, work, work, work, 0, panel_at - k0 * columns, columns),
                            Region(k0, k0 + depth, 0, columns), filter_0 + f, count, own, ADD if f else START,
                        )  # fmt: skip
                    add_patches(flat, panel_at, columns, shape, block, k0, depth, out, at)


@jit
def _turn_filters(lo, hi, weight, out, channels, filters, area):
    """out[group, c, o, -i] = weight[group, o, c, i], flat, i over the elements of a filter; channels lo to hi."""
    for item in range(lo, hi):
        group, c = item // channels, item % channels
        for o in range(filters):
            source, target = ((group * filters + o) * channels + c) * area, (item * filters + o) * area
            for i in range(area):
                out[target + i] = weight[source + area - 1 - i]


_run_correlate = ranged(_correlate, "conv2d", writes=(3,), whole=(1, 2), private=(6,), weight=1 / 8)
_run_in_place = ranged(correlate_in_place, "conv2d_in_place", writes=(3,), whole=(1, 2), private=(5, 6), weight=1 / 8)
_run_scatter = ranged(_scatter, "conv2d_scatter", writes=(2,), whole=(1,), private=(5,), weight=1 / 8)
_run_planes = ranged(correlate_planes, "conv2d_planes", writes=(3,), whole=(1, 2))
_run_chunks = ranged(_weight_chunks, "conv2d_weight", writes=(2,), whole=(0, 1), private=(6,), weight=1 / 8)
_run_chunks_in_place = ranged(
    weight_chunks_in_place, "conv2d_weight_in_place", writes=(2,), whole=(0, 1), private=(5, 6), weight=1 / 8
)
_run_plane_gradients = ranged(plane_gradients, "conv2d_weight_planes", writes=(2,), whole=(0, 1))
_run_mend = ranged(mend_gradients, "conv2d_weight_mend", writes=(2,), whole=(0, 1), weight=1 / 8)
_run_fold = ranged(_fold_chunks, "conv2d_fold", writes=(0, 1), whole=(0, 1))
_run_turn = ranged(_turn_filters, "conv2d_turn", writes=(1,), whole=(0,))


def _run(x, weight, bias, out, shape):
    """The correlation of x with weight (groups * filters, k), as `shape` says."""
    n = out.shape[0]
    cost = out.size // n * weight.shape[1]
    if is_by_planes(shape):
        _run_planes(n, cost, x.ravel(), weight.ravel(), bias, out.ravel(), shape)
        return
    if reads_in_place(shape):
        arrays = x.ravel(), weight, bias, out.ravel(), shape
        _run_in_place(n, cost, *arrays, *memory(out.dtype), block=_images(n))
        return
    work = scratch(_SCRATCH, out.dtype)
    _run_correlate(n, cost, x.ravel(), weight, bias, out.ravel(), shape, ZEROS[out.dtype], work, block=_images(n))


def _images(n):
    """Of a block: a few of them a thread, since a thread that is late should have little left to do."""
    return -(-n // 16)


def _geometry(x, weight, out, stride, padding, dilation, groups):
    (_, c, h, w), (o, _, kh, kw), (rows, columns) = x.shape, weight.shape, out.shape[2:]
    return Geometry(groups, c // groups, h, w, o // groups, rows, columns, kh, kw, *stride, *dilation, *padding)


def conv2d(x, weight, bias, out, stride, padding, dilation, groups):
    if out.size:
        shape = _geometry(x, weight, out, stride, padding, dilation, groups)
        _run(x, weight.reshape(len(weight), -1), bias, out, shape)


def conv2d_input(g, weight, out, stride, padding, dilation, groups):
    if not out.size or not g.size:
        out.fill(0)
        return
    forward = _geometry(out, weight, g, stride, padding, dilation, groups)
    area = forward.kh * forward.kw
    patches = forward.channels * forward.rows * forward.columns, forward.filters * forward.height * forward.width
    if max(stride) > 1 or (2 * patches[0] < patches[1] and not is_by_planes(forward)):  # fewer to add than to gather
        n, work, filters = len(g), scratch(_SCRATCH, out.dtype), weight.reshape(len(weight), -1)
        arrays = g.ravel(), filters, out.ravel(), forward, ZEROS[out.dtype], work
        _run_scatter(n, g.size // n * filters.shape[1], *arrays, block=_images(n))
        return
    shape = forward._replace(
        channels=forward.filters, height=forward.rows, width=forward.columns, filters=forward.channels,
        rows=forward.height, columns=forward.width,
        top=dilation[0] * (forward.kh - 1) - padding[0], left=dilation[1] * (forward.kw - 1) - padding[1],
    )  # fmt: skip
    turned = workspace((groups * shape.filters, shape.channels * area), out.dtype)
    _run_turn(len(turned), turned.shape[1], weight.ravel(), turned.ravel(), shape.filters, shape.channels, area)
    _run(g, turned, _NO_BIAS[out.dtype], out, shape)


def conv2d_weight(g, x, out, stride, padding, dilation, groups):
    if not out.size or not g.size:
        out.fill(0)
        return
    shape = _geometry(x, out, g, stride, padding, dilation, groups)
    if is_by_planes(shape):
        cost = g.size // groups * shape.kh * shape.kw * shape.channels
        _run_plane_gradients(groups, cost, g.ravel(), x.ravel(), out.ravel(), shape)
        return
    n, k = len(x), shape.channels * shape.kh * shape.kw
    images = -(-n // CHUNKS)
    chunks = -(-n // images)
    partial, cost = workspace((chunks * groups * k, shape.filters), out.dtype), g.size // chunks * k
    arrays = g.ravel(), x.ravel(), partial, shape, images
    if reads_in_place(shape):
        _run_chunks_in_place(chunks, cost, *arrays, *memory(out.dtype), block=1)
    else:
        _run_chunks(chunks, cost, *arrays, ZEROS[out.dtype], scratch(_SCRATCH, out.dtype), block=1)
    _run_fold(groups * k, shape.filters * chunks, partial, out.reshape(len(out), k), groups, chunks)
    if max(padding) or reads_in_place(shape):  # zeros took part
        _run_mend(groups, out.size // groups, g.ravel(), x.ravel(), out.ravel(), shape)


KERNELS = {"conv2d": conv2d, "conv2d_input": conv2d_input, "conv2d_weight": conv2d_weight}
