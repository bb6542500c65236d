"""Patches: the elements of x that windows cover, copied a panel at a time into the matrix that tiles read.

Row k of a panel belongs to one element (c, r, s) of a filter, column j to one output: panel[k, j] is what that element
meets there, or 0 outside of x. A panel has at most PANEL_ROWS rows and PANEL_COLUMNS columns, however large image and
batch are; it is made, used by all filters while it is in L2, and overwritten.
"""

from typing import NamedTuple

from ...native.compile import jit
from ...native.llvm import Operand
from ...native.loops import uncounted
from ...native.simd import TILE, copy_rows

PANEL_ROWS, PANEL_COLUMNS = 384, 224  # 344 KiB of float32: it stays in L2 beside the filters and the sums


class Geometry(NamedTuple):
    """A correlation of each of `groups` parts of x (channels, height, width) with `filters` filters (channels, kh, kw).

    Output (y, x) meets element (r, s) of a filter at row y * stride_h + r * dilation_h - top of x, and a column alike.
    """

    groups: int
    channels: int
    height: int
    width: int
    filters: int
    rows: int
    columns: int
    kh: int
    kw: int
    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int
    top: int
    left: int


class Block(NamedTuple):
    """Some outputs of one image: `rows` rows from y on, `columns` columns from x on."""

    y: int
    rows: int
    x: int
    columns: int


@jit
def inside(first, count, offset, stride, size):
    """Of the outputs from `first` on, `count` of them: the range for which 0 <= output * stride + offset < size."""
    if stride == 1:  # a division takes as long as a row of a panel
        low = max(first, -offset)
        return low, max(low, min(first + count, size - offset))
    low = max(first, -(offset // stride))
    return low, max(low, min(first + count, (size - 1 - offset) // stride + 1))


@jit
def pack_patches(source, at, shape, block, k0, depth, target, to, row):
    """Rows k0 to k0 + depth of the panel of a block: source[at:] is the image's group, target[to:] the first column.

    source, target: flat. row: elements between the rows of `target`.
    """
    source, target = uncounted(source), uncounted(target)  # else each row of a panel counts its references to both
    channel, r, s = k0 // (shape.kh * shape.kw), k0 // shape.kw % shape.kh, k0 % shape.kw
    plane = at + channel * shape.height * shape.width
    for _ in range(depth):
        down, right = r * shape.dilation_h - shape.top, s * shape.dilation_w - shape.left
        if shape.stride_w == 1:
            _pack_rows(source, plane, shape, block, down, right, target, to)
        else:
            _pack_elements(source, plane, shape, block, down, right, target, to)
        to += row
        s += 1
        if s == shape.kw:
            r, s = r + 1, 0
        if r == shape.kh:
            plane, r = plane + shape.height * shape.width, 0


@jit(inline=True)
def _pack_rows(source, plane, shape, block, down, right, target, to):
    """Whole rows: what lies inside of x, in vectors, with zeros around it."""
    y0, y1 = inside(block.y, block.rows, down, shape.stride_h, shape.height)
    x0, x1 = inside(block.x, block.columns, right, 1, shape.width)
    columns = block.columns
    end = to + block.rows * columns
    if y1 <= y0 or x1 <= x0:
        for i in range(to, end):
            target[i] = 0
        return
    first = to + (y0 - block.y) * columns
    last = to + (y1 - block.y) * columns
    for i in range(to, first):
        target[i] = 0
    for i in range(last, end):
        target[i] = 0
    before = x0 - block.x
    for i in range(first, first + before):
        for line in range(i, last, columns):
            target[line] = 0
    for i in range(first + x1 - block.x, first + columns):
        for line in range(i, last, columns):
            target[line] = 0
    line = plane + (y0 * shape.stride_h + down) * shape.width + x0 + right
    count, row, width = y1 - y0, shape.stride_h * shape.width, x1 - x0
    if row == width and columns == width:  # rows follow each other in both
        count, width = 1, count * width
    lanes = TILE.vector_bytes // target.itemsize
    done = 0
    while done < width:
        rest = min(width - done, 4 * lanes)
        vectors = (rest >= lanes) + (rest > lanes) + (rest > 2 * lanes) + (rest > 3 * lanes)
        from_, into = Operand(source, line + done, row, 0), Operand(target, first + before + done, columns, 0)
        copy_rows(from_, into, count, vectors, rest - lanes if vectors else rest, False)
        done += rest


@jit
def add_patches(panel, to, row, shape, block, k0, depth, out, at):
    """The transpose of pack_patches: each row of the panel is added to where its elements lie in out[at:]."""
    panel, out = uncounted(panel), uncounted(out)
    channel, r, s = k0 // (shape.kh * shape.kw), k0 // shape.kw % shape.kh, k0 % shape.kw
    plane = at + channel * shape.height * shape.width
    for _ in range(depth):
        down, right = r * shape.dilation_h - shape.top, s * shape.dilation_w - shape.left
        y0, y1 = inside(block.y, block.rows, down, shape.stride_h, shape.height)
        x0, x1 = inside(block.x, block.columns, right, shape.stride_w, shape.width)
        for y in range(y0, y1):
            begin = to + (y - block.y) * block.columns + x0 - block.x
            first = plane + (y * shape.stride_h + down) * shape.width + x0 * shape.stride_w + right
            line = panel[begin : begin + x1 - x0]
            if shape.stride_w == 1:
                target = out[first : first + x1 - x0]
                for i in range(line.size):
                    target[i] += line[i]
            else:
                for i in range(line.size):
                    out[first + i * shape.stride_w] += line[i]
        to += row
        s += 1
        if s == shape.kw:
            r, s = r + 1, 0
        if r == shape.kh:
            plane, r = plane + shape.height * shape.width, 0


@jit
def _pack_elements(source, plane, shape, block, down, right, target, to):
    """Element by element, where neighbours of the panel are not neighbours in x."""
    x0, x1 = inside(block.x, block.columns, right, shape.stride_w, shape.width)
    for y in range(block.y, block.y + block.rows):
        line = target[to : to + block.columns]
        line[:] = 0
        at = y * shape.stride_h + down
        if 0 <= at < shape.height:
            first = plane + at * shape.width + x0 * shape.stride_w + right
            for i in range(x1 - x0):
                line[x0 - block.x + i] = source[first + i * shape.stride_w]
        to += block.columns
