"""Correct kernels, drawn at random, each with its reference and bound: none of them may be rejected."""

import numpy as np

from scratchnet.testing import ULPS, blocked, drawn, pairwise, roundings_of


def chain(x, axis=-1):
    """One after the other, in the type of x."""
    total = np.zeros(x.shape[:-1], x.dtype)
    for i in range(x.shape[-1]):
        total = (total + x[..., i]).astype(x.dtype)
    return total


def halves(x, block):
    n = x.shape[-1]
    return chain(x) if n <= block else halves(x[..., : n // 2], block) + halves(x[..., n // 2 :], block)


def in_blocks(x, block):
    n = x.shape[-1]
    return chain(np.stack([chain(x[..., i : i + block]) for i in range(0, n, block)], axis=-1)) if n else chain(x)


# name -> (the sum of n numbers, its terms)
ORDERS = {
    "chain": (lambda x: chain(x), lambda n: n),
    "backward": (lambda x: chain(x[..., ::-1]), lambda n: n),
    "pairwise": (lambda x: halves(x, 1), lambda n: pairwise(n)),
    "pairwise from blocks of 8": (lambda x: halves(x, 8), lambda n: pairwise(n, 8)),
    "blocks of 16": (lambda x: in_blocks(x, 16), lambda n: blocked(n, 16)),
    "of NumPy": (lambda x: np.sum(x, axis=-1), lambda n: pairwise(n, 128)),
}
# name -> (terms from two arrays, their exact sum, roundings of a term)
TERMS = {
    "sum": (lambda a, b: a, lambda a, b: a.sum(axis=-1), 0),
    "dot product": (lambda a, b: a * b, lambda a, b: (a * b).sum(axis=-1), 1),
    "product of three": (lambda a, b: a * b * a, lambda a, b: (a * b * a).sum(axis=-1), 2),
}
DTYPES = (np.float16, np.float32, np.float64, np.complex64, np.complex128)
MORE_FOR_COMPLEX = 3  # roundings of a complex product for one of a real one


def draw_sum(order, rng):
    """A kernel that adds up in this order: the arguments of `assert_matches_reference`, and its options."""
    add, terms = ORDERS[order]
    product, reference, roundings = TERMS[rng.choice([*TERMS])]
    dtype, n = DTYPES[rng.integers(len(DTYPES))], rng.integers(0, 130)
    kind = rng.choice(["integers", "normal", "wide"])
    a, b = (drawn(kind, rng.integers(2**16), (3, n), dtype) for _ in range(2))
    if dtype is np.float16 and kind == "wide":
        b = np.sign(b)  # a b a would pass 65504
    more = MORE_FOR_COMPLEX if np.dtype(dtype).kind == "c" else 1
    options = {"terms": terms(n), "roundings": roundings * more}
    return (lambda a, b: add(product(a, b)), reference, [a, b]), options


_POSITIVE, _UNIT, _ABOVE = (lambda x: np.abs(x) + 1e-3), (lambda x: x / (1 + np.abs(x))), (lambda x: 1 + np.abs(x))
DOMAINS = {
    **dict.fromkeys(["sqrt", "rsqrt", "log", "log2", "log10", "power"], _POSITIVE),
    **dict.fromkeys(["arcsin", "arccos", "arctanh", "log1p"], _UNIT),
    "arccosh": _ABOVE,
}
SYMBOLS = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}


def function_of(name):
    """What a name in ULPS stands for, in NumPy or SciPy."""
    if name == "rsqrt":
        return lambda x: 1 / np.sqrt(x)
    if name in ("erf", "erfc"):
        import scipy.special

        return lambda x: getattr(scipy.special, name)(x).astype(x.dtype)  # of float16 it makes float64
    return getattr(np, SYMBOLS.get(name, name))


def draw_function(name, rng, n=100):
    """NumPy's or SciPy's function as a kernel, beside the same in higher precision."""
    function, dtype = function_of(name), DTYPES[rng.integers(3)]
    x, y = (drawn(rng.choice(["normal", "wide"]), rng.integers(2**16), (n,), dtype) for _ in range(2))
    x = DOMAINS.get(name, lambda x: x)(x).astype(dtype)
    inputs = [x, y] if name in (*SYMBOLS, "hypot", "power", "arctan2") else [x]
    return (function, function, inputs), {"roundings": roundings_of(name), "fills": False}


def draw(number, rng):
    """Kernel `number` of any count, of all kinds in turn."""
    kinds = [*ORDERS, *ULPS]
    kind = kinds[number % len(kinds)]
    return draw_sum(kind, rng) if kind in ORDERS else draw_function(kind, rng)
