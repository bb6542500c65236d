"""Hypothesis strategies for arrays: shapes around tile edges, values of every domain, every layout in memory.

Hypothesis chooses (and shrinks) shape, kind and layout; NumPy fills the array from a drawn seed, so a large array is
as cheap as a small one.
"""

import functools
import math
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import checks
from ..kernels.signatures import FLOATS

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

_KINDS = ("integers", "normal", "wide")


def drawn(
    kind: str,
    seed: int,
    shape: Sequence[int],
    dtype: Any,
    *,
    domain: str | Callable[[np.ndarray], np.ndarray] = "real",
    special: Sequence[float] = (),
    integers: tuple[int, int] = (-9, 9),
) -> np.ndarray:
    """One of the arrays that `arrays` draws, again: messages print this call for arrays that are too long to print.

    kind: "integers" in [-3, 3], with zeros and ties; "normal"; "wide", of magnitudes from 1e-6 to 1e6 (float16: from
        0.06 to 16, so that sums and products of some hundred stay finite). Integer dtypes lie in `integers` instead.
    """
    dtype, rng = np.dtype(dtype), np.random.default_rng(seed)
    if dtype.kind in "iu":
        low, high = integers
        x: np.ndarray = rng.integers(max(low, 0) if dtype.kind == "u" else low, high + 1, shape)
    else:
        x = _numbers(rng, kind, shape, dtype)
        if dtype.kind == "c":
            x = x + 1j * _numbers(rng, kind, shape, dtype)
        if len(special) and dtype.kind == "f":
            with np.errstate(over="ignore"):
                x = np.where(rng.random(shape) < 0.1, rng.choice(special, shape), x)
    with np.errstate(over="ignore"):
        x = np.asarray(x).astype(dtype)
    y = np.asarray((domain if callable(domain) else DOMAINS[domain])(x))
    if y.shape != x.shape:
        checks.refuse("arrays: a domain", f"a function that keeps the shape {x.shape}", y)
    return y if domain == "bool" else y.astype(dtype, copy=False)


def _numbers(rng: np.random.Generator, kind: str, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    if kind == "integers":
        return np.asarray(rng.integers(-3, 4, shape).astype(float))
    if kind == "normal":
        return np.asarray(rng.standard_normal(shape))
    reach = 6.0 if dtype.kind == "b" else min(6.0, math.log10(np.finfo(dtype).max) / 4)
    return np.asarray(rng.choice([-1.0, 1.0], shape) * 10.0 ** rng.uniform(-reach, reach, shape))


_recipes: dict[int, tuple[Any, str]] = {}  # id of an array that was drawn -> (weak reference, the call that draws it)


def _remember(x: np.ndarray, recipe: str) -> np.ndarray:
    key = id(x)
    _recipes[key] = weakref.ref(x, lambda _: _recipes.pop(key, None)), recipe
    return x


def written(x: Any) -> str:
    """Python for an array: its elements if they are few, else the call that drew it, else its dtype and shape."""
    if not isinstance(x, np.ndarray):
        return repr(x)
    if x.size <= 64 and (x.dtype.kind in "biuf" or (x.dtype.kind == "c" and np.isfinite(x).all())):
        text = "".join(np.array2string(x, separator=",", threshold=65, floatmode="unique").split())
        text = (
            text.replace("nan", "np.nan").replace("inf", "np.inf").replace("True", " True").replace("False", " False")
        )
        made = f"np.array({text.replace(' ', '')}, np.{x.dtype})" if x.size else f"np.empty({x.shape}, np.{x.dtype})"
        return made.replace("np.bool)", "bool)")
    reference, recipe = _recipes.get(id(x), (lambda: None, ""))
    return recipe if reference() is x else f"<{x.dtype} {x.shape}>"


@dataclass(frozen=True)
class Content:
    """What to draw: the arguments of `arrays` that say which values, in what memory and how many."""

    dtypes: Sequence[Any] = FLOATS
    domain: Any = "real"
    special: Sequence[float] = ()
    layouts: Sequence[str] = ("C",)
    sizes: Sequence[int] = EDGES
    max_elements: int = 2**14
    integers: tuple[int, int] = (-9, 9)

    def __post_init__(self):
        for entry in checks.items("arrays: dtypes", self.dtypes, "a list of dtypes"):
            for dtype in entry if isinstance(entry, tuple) else (entry,):
                checks.dtype("arrays: a dtype", dtype)
        for domain in self.domains(1) if self._is_one_domain else checks.items("arrays", self.domain, "domains"):
            if not callable(domain):
                checks.one_of("arrays: a domain", domain, DOMAINS)
        for value in checks.items("arrays: special", self.special, "a list of numbers"):
            checks.instance("arrays: a special value", value, int | float | np.number, "a number")
        for layout in checks.items("arrays: layouts", self.layouts, "a list of names"):
            checks.one_of("arrays: a layout", layout, LAYOUTS)
        checks.lengths("arrays: sizes", self.sizes)
        checks.integer("arrays: max_elements", self.max_elements, 1)
        limits = checks.items("arrays: integers", self.integers, "the smallest and the largest integer")
        if len(limits) != 2:
            checks.refuse("arrays: integers", "the smallest and the largest integer", self.integers)
        checks.integer(
            "arrays: the largest integer", limits[1], checks.integer("arrays: the smallest integer", limits[0])
        )

    @property
    def _is_one_domain(self) -> bool:
        return isinstance(self.domain, str) or callable(self.domain)

    def domains(self, count: int) -> list[Any]:
        """A domain for each of `count` words."""
        return [self.domain] * count if self._is_one_domain else _one_each("domain", self.domain, count)


def _one_each(what: str, given: Sequence[Any], words: int) -> list[Any]:
    if len(given) != words:
        checks.refuse(f"arrays: {what}", f"one for each of {words} arrays", given)
    return list(given)


def arrays(
    shapes: str,
    *,
    dtypes: Sequence[Any] = FLOATS,
    domain: Any = "real",
    special: Sequence[float] = (),
    layouts: Sequence[str] = ("C",),
    sizes: Sequence[int] = EDGES,
    max_elements: int = 2**14,
    integers: tuple[int, int] = (-9, 9),
) -> Any:
    """A Hypothesis strategy for a tuple of arrays whose shapes fit together.

    shapes: one word an array, with spaces or commas between. A letter is a length, the same in all words: "mk,kn" draws
        the operands of a matrix product, "bmk,bkn" of a batch of them. A capital is never 0, and a digit is itself.
        "m<n" draws m integers (int64) in [0, n). "*" is any shape of up to 3 dimensions; all stars broadcast together.
    dtypes: of which one is drawn for all arrays, or a tuple with one a word: [("float16", "float16", "float32")].
    domain: a name in DOMAINS or a function of an array that returns one of its shape, for all words; or one a word.
    special: values to scatter among floats, such as SPECIAL.
    layouts: names in LAYOUTS.
    sizes, max_elements: the lengths to draw from, in rising order, and the limit of an array.
    integers: the smallest and the largest number in arrays of an integer dtype; unsigned ones start at 0.

    Raises ConfigError for words and names that it does not know.
    """
    checks.instance("arrays: shapes", shapes, str, "words such as 'mk,kn'")
    shapes = shapes.replace(",", " ")
    for word in shapes.split():
        if word != "*" and not re.fullmatch(r"[A-Za-z0-9]+(<[A-Za-z0-9])?", word):
            checks.refuse("arrays: a word of shapes", "letters, digits, 'm<n' or '*'", word)
    st = hypothesis_strategies()
    content = Content(dtypes, domain, special, layouts, sizes, max_elements, integers)
    content.domains(len(shapes.split()))
    for entry in dtypes:
        if isinstance(entry, tuple):
            _one_each("dtypes", entry, len(shapes.split()))

    @st.composite
    def operands(draw):
        return draw_arrays(draw, shapes, draw_lengths(draw, shapes, content), content)

    return operands()


def draw_lengths(draw, words: str, content: Content) -> dict[str, Any]:
    """A length for every letter, and for "*" the shape that all stars broadcast to."""
    positive = [n for n in content.sizes if n]
    letters = sorted({letter for letter in words if letter.isalpha()})
    lengths: dict[str, Any] = {digit: int(digit) for digit in words if digit.isdigit()}
    lengths |= {a: draw(choice(*(positive if a.isupper() else content.sizes))) for a in letters}
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
    words_drawn = words.split()
    dtypes = draw(choice(*content.dtypes))
    dtypes = dtypes if isinstance(dtypes, tuple) else [dtypes] * len(words_drawn)
    result = []
    for word, domain, dtype in zip(words_drawn, content.domains(len(words_drawn)), map(np.dtype, dtypes), strict=True):
        seed = draw(_integers(0, 2**16))
        letters, _, below = word.partition("<")
        if below:
            rng, shape = np.random.default_rng(seed), tuple(lengths[a] for a in letters)
            x, recipe = rng.integers(0, max(lengths[below], 1), shape), ""
        else:
            shape = (
                _broadcastable(draw, lengths["*"], words_drawn) if word == "*" else tuple(lengths[a] for a in letters)
            )
            kind = draw(choice(*_KINDS))
            special = (
                content.special if dtype.kind == "f" and len(content.special) and draw(choice(False, True)) else ()
            )
            x = drawn(kind, seed, shape, dtype, domain=domain, special=special, integers=content.integers)
            recipe = _recipe(kind, seed, shape, dtype, domain=domain, special=special, integers=content.integers)
        layout = draw(choice(*content.layouts))
        x = LAYOUTS[layout](np.asarray(x))
        result.append(_remember(x, recipe and (recipe if layout == "C" else f"LAYOUTS[{layout!r}]({recipe})")))
    return tuple(result)


def _recipe(kind: str, seed: int, shape: Sequence[int], dtype: np.dtype, **options: Any) -> str:
    defaults = {"domain": "real", "special": (), "integers": (-9, 9)}
    if dtype.kind not in "iu":
        del options["integers"]
    parts = [repr(kind), str(seed), str(tuple(shape)), repr(str(dtype))]
    changed = {key: value for key, value in options.items() if value != defaults[key]}
    special = SPECIAL if changed.get("special") == SPECIAL else None
    for key, value in changed.items():
        text = "SPECIAL" if value is special else getattr(value, "__name__", repr(value))
        parts.append(f"{key}={text}")
    return f"drawn({', '.join(parts)})"


def _broadcastable(draw, shape: tuple[int, ...], words: list[str]) -> tuple[int, ...]:
    """`shape`, or, if another array may complete it, a shape with lengths 1 in it or without its first axes."""
    if words.count("*") == 1:
        return shape
    seldom = choice(False, False, False, True)
    shape = tuple(1 if draw(seldom) else n for n in shape)
    return shape[draw(_integers(0, len(shape))) :] if draw(seldom) else shape
