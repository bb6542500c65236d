"""The numbers of a convolution and of its two gradients, for convolution.py: how each of them walks through memory."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from math import gcd
from typing import NamedTuple

from . import gemm
from .tuning import Tile, Tuning


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
def planned(
    walks: Walks, shape: Shape, itemsize: int, is_in_warps: bool, numbers: Tuning
) -> tuple[Tile, int, int, list[Walk]]:
    """(tile, span, parts of the sum, launches). is_in_warps: by tensor cores?"""
    found = list(walks(shape))
    m, n, k = (max(walk.sizes[i] for walk in found) for i in range(3))
    tiles = numbers.windows if itemsize == 4 else numbers.windows[1:]
    tiles = numbers.tensor_windows if is_in_warps else tiles
    tile = next((tile for tile in tiles if tile.rows < 2 * m), tiles[-1])
    _, span = gemm.span_of(numbers, (tile,), shape.groups * len(found), m, n, k)
    return tile, span, max(-(-k // span), 1), found
