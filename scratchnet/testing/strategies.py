"""Hypothesis strategies for arrays: shapes around tile edges, values of every domain, every layout in memory.

Hypothesis chooses (and shrinks) shape, kind and layout; NumPy fills the array from a drawn seed, so a large array is
as cheap as a small one.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import checks
from ..tensor import FLOATS

EDGES = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
"""Lengths on both sides of every tile edge: a kernel that forgets a remainder fails on one of them."""

SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 1e-38, 3e38, -3e38)
"""What a float can be besides a number of ordinary size. 1e-45 is subnormal and 3e38 nearly the largest in float32."""


def hypothesis_strategies() -> Any:
    """hypothesis.strategies, which only those need who draw. Raises ImportError with the command that installs it."""
    try:
        import hypothesis.strategies
    except ImportError:
        raise ImportError("scratchnet.testing: expected hypothesis; pip install hypothesis") from None
    return hypothesis.strategies


# Strategies are kept, as building one takes longer than drawing from it; `typed` tells (0, 1) from (False, True).


@functools.lru_cache(maxsize=None, typed=True)
def choice(*values: Any) -> Any:
    """The strategy that draws one of `values`, the first of which is the simplest."""
    return hypothesis_strategies().sampled_from(values)


@functools.cache
def _integers(low: int, high: int) -> Any:
    return hypothesis_strategies().integers(low, high)


# --- layouts: a copy of x whose elements lie in memory in another way ------------------------------------------------


def _in_buffer(x: np.ndarray, start: int) -> np.ndarray:
    y = np.empty(x.nbytes + start, np.uint8)[start:].view(x.dtype).reshape(x.shape)
    y[...] = x
    return y


def _readonly(x: np.ndarray) -> np.ndarray:
    y = np.array(x, order="C")
    y.flags.writeable = False
    return y


def _strided(x: np.ndarray) -> np.ndarray:
    y = np.empty([2 * n for n in x.shape], x.dtype)[(slice(None, None, 2),) * x.ndim + (...,)]
    y[...] = x
    return y


def _reversed(x: np.ndarray) -> np.ndarray:
    key = (slice(None, None, -1),) * x.ndim + (...,)
    return np.array(x[key], order="C")[key]


def _broadcast(x: np.ndarray) -> np.ndarray:
    return np.broadcast_to(_reversed(x[:1]), x.shape) if x.ndim and len(x) else np.array(x, order="C")


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "C": lambda x: np.array(x, order="C"),
    "offset": lambda x: _in_buffer(x, x.itemsize),  # C order, one element away from the start of its memory
    "readonly": _readonly,  # C order, not writeable
    "Fortran": lambda x: np.array(x, order="F"),
    "strided": _strided,  # every second element of every axis
    "reversed": _reversed,  # negative strides
    "broadcast": _broadcast,  # the first entry of axis 0 with stride 0, the rest reversed: the one that changes values
    "unaligned": lambda x: _in_buffer(x, 1),  # one byte away from a whole element
}
"""name -> a function that copies an array into that layout."""

CONTIGUOUS = ("C", "offset", "readonly")
"""The layouts that a kernel of the device tables must take; ops take all."""

# --- values ----------------------------------------------------------------------------------------------------------

DOMAINS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "real": lambda x: x,
    "positive": lambda x: np.abs(x) + x.dtype.type(2**-10),
    "nonnegative": np.abs,
    "nonzero": lambda x: np.copysign(np.abs(x) + x.dtype.type(0.25), x),  # also away from a kink at 0
    "unit": lambda x: np.abs(x) / (1 + np.abs(x)),  # [0, 1)
    "bool": lambda x: x > 0,
}
"""name -> a function that moves any floats into the domain of a function under test."""

_KINDS: dict[str, Callable[..., np.ndarray]] = {
    "integers": lambda rng, shape: rng.integers(-3, 4, shape).astype(float),  # zeros and ties
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "wide": lambda rng, shape: rng.choice([-1.0, 1.0], shape) * 10.0 ** rng.uniform(-6, 6, shape),
}


@dataclass(frozen=True)
class Content:
    """What to draw: the arguments of `arrays` that say which values, in what memory and how many."""

    dtypes: Sequence[Any] = FLOATS
    domain: str | Sequence[str] = "real"
    special: Sequence[float] = ()
    layouts: Sequence[str] = ("C",)
    sizes: Sequence[int] = EDGES
    max_elements: int = 2**14

    def __post_init__(self):
        for dtype in checks.items("arrays: dtypes", self.dtypes, "a list of dtypes"):
            checks.dtype("arrays: a dtype", dtype)
        for domain in [self.domain] if isinstance(self.domain, str) else checks.items("arrays", self.domain, "domains"):
            checks.one_of("arrays: a domain", domain, DOMAINS)
        for value in checks.items("arrays: special", self.special, "a list of numbers"):
            checks.instance("arrays: a special value", value, int | float | np.number, "a number")
        for layout in checks.items("arrays: layouts", self.layouts, "a list of names"):
            checks.one_of("arrays: a layout", layout, LAYOUTS)
        checks.lengths("arrays: sizes", self.sizes)
        checks.integer("arrays: max_elements", self.max_elements, 1)


def arrays(
    shapes: str,
    *,
    dtypes: Sequence[Any] = FLOATS,
    domain: str | Sequence[str] = "real",
    special: Sequence[float] = (),
    layouts: Sequence[str] = ("C",),
    sizes: Sequence[int] = EDGES,
    max_elements: int = 2**14,
) -> Any:
    """A Hypothesis strategy for a tuple of arrays whose shapes fit together, all floats among them of one dtype.

    shapes: one word an array. A letter is a length, the same in all words: "mk kn" draws the operands of a matrix
        product. A capital is never 0. "m<n" draws m integers (int64) in [0, n). "*" is any shape of up to 3
        dimensions, and all stars broadcast together.
    dtypes: of which one is drawn. Integer types give small integers of both signs.
    domain: a name in DOMAINS for all words, or a sequence of one a word.
    special: values to scatter among the others, such as SPECIAL.
    layouts: names in LAYOUTS.
    sizes, max_elements: the lengths to draw from, in rising order, and the limit of an array.
    """
    checks.instance("arrays: shapes", shapes, str, "words such as 'mk kn'")
    st = hypothesis_strategies()
    content = Content(dtypes, domain, special, layouts, sizes, max_elements)

    @st.composite
    def operands(draw):
        return draw_arrays(draw, shapes, draw_lengths(draw, shapes, content), content)

    return operands()


def draw_lengths(draw, words: str, content: Content) -> dict[str, Any]:
    """A length for every letter, and for "*" the shape that all stars broadcast to."""
    positive = [n for n in content.sizes if n]
    letters = sorted({letter for letter in words if letter.isalpha()})
    lengths: dict[str, Any] = {a: draw(choice(*(positive if a.isupper() else content.sizes))) for a in letters}
    for word in words.split():
        _shrink(lengths, list(filter(str.isalpha, word)), content)
    for word in words.split():
        index, _, below = word.partition("<")
        if below and not lengths[below]:
            lengths.update(dict.fromkeys(index, 0))  # nothing to choose from
    if "*" in words:
        axes = {i: draw(choice(*content.sizes)) for i in range(draw(_integers(0, 3)))}
        _shrink(axes, list(axes), content)
        lengths["*"] = tuple(axes.values())
    return lengths


def _shrink(lengths: dict, keys: list, content: Content) -> None:
    """Lowers the largest of some lengths to the size before it, until their product is small enough."""
    while math.prod(lengths[k] for k in keys) > content.max_elements:
        largest = max(keys, key=lambda k: lengths[k])
        smaller = [n for n in content.sizes if 0 < n < lengths[largest]]
        lengths[largest] = max(smaller, default=1)


def draw_arrays(draw, words: str, lengths: Mapping[str, Any], content: Content) -> tuple[np.ndarray, ...]:
    """One array a word."""
    dtype = np.dtype(draw(choice(*content.dtypes)))
    shapes = words.split()
    domains = [content.domain] * len(shapes) if isinstance(content.domain, str) else content.domain
    drawn = []
    for word, domain in zip(shapes, domains, strict=True):
        rng = np.random.default_rng(draw(_integers(0, 2**16)))
        letters, _, below = word.partition("<")
        if below:
            x = rng.integers(0, max(lengths[below], 1), [lengths[a] for a in letters])
        else:
            shape = _broadcastable(draw, lengths["*"], shapes) if word == "*" else tuple(lengths[a] for a in letters)
            x = np.asarray(_KINDS[draw(choice(*_KINDS))](rng, shape))
            if content.special and dtype.kind == "f" and draw(choice(False, True)):
                x = np.where(rng.random(shape) < 0.1, rng.choice(content.special, shape), x)
            x = DOMAINS[domain](x.astype(dtype))
        drawn.append(LAYOUTS[draw(choice(*content.layouts))](np.asarray(x)))
    return tuple(drawn)


def _broadcastable(draw, shape: tuple[int, ...], words: list[str]) -> tuple[int, ...]:
    """`shape`, or, if another array may complete it, a shape with lengths 1 in it or without its first axes."""
    if words.count("*") == 1:
        return shape
    seldom = choice(False, False, False, True)
    shape = tuple(1 if draw(seldom) else n for n in shape)
    return shape[draw(_integers(0, len(shape))) :] if draw(seldom) else shape
