"""Products by name: `einsum` as a chain of matrix products, and the products that are its simplest cases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .. import checks
from ..errors import ShapeError
from .movement import permute_op, reshape_op, unsqueeze
from .operands import ArrayLike, as_operand
from .products import matmul
from .reductions import sum
from .shapes import diagonal
from .table import Tensor, method


def _of_shapes(name: str, what: str, x: Tensor, other: ArrayLike, dims: tuple[int, int]) -> Tensor:
    other = as_operand(other, x)
    if (x.ndim, other.ndim) != dims:
        raise ShapeError(f"{name}: expected {what}, got shapes {x.shape} and {other.shape}; use @")
    return other


@method
def mm(x: Tensor, other: ArrayLike) -> Tensor:
    """The product of two matrices."""
    return matmul(x, _of_shapes("mm", "two matrices", x, other, (2, 2)))


@method
def mv(x: Tensor, other: ArrayLike) -> Tensor:
    """The product of a matrix and a vector."""
    return matmul(x, _of_shapes("mv", "a matrix and a vector", x, other, (2, 1)))


@method
def bmm(x: Tensor, other: ArrayLike) -> Tensor:
    """The products of two batches (n, i, j) and (n, j, k) of matrices."""
    other = _of_shapes("bmm", "two batches of matrices", x, other, (3, 3))
    if x.shape[0] != other.shape[0]:
        raise ShapeError(f"bmm: expected batches of one length, got shapes {x.shape} and {other.shape}")
    return matmul(x, other)


@method
def dot(x: Tensor, other: ArrayLike) -> Tensor:
    """The sum of the products of two vectors' elements."""
    return matmul(x, _of_shapes("dot", "two vectors", x, other, (1, 1)))


@method
def outer(x: Tensor, other: ArrayLike) -> Tensor:
    """x[i] * other[j] of two vectors."""
    return unsqueeze(x, 1) * _of_shapes("outer", "two vectors", x, other, (1, 1))


@method
def trace(x: Tensor) -> Tensor:
    """The sum of a matrix' diagonal."""
    if x.ndim != 2:
        raise ShapeError(f"trace: expected a matrix, got shape {x.shape}")
    return sum(diagonal(x))


# --- einsum ----------------------------------------------------------------------------------------------------------

DOTS = "".join(map(chr, range(0xAC00, 0xAC40)))  # of the axes of `...`: letters that no equation may have


def einsum(equation: str, operands: Sequence[Tensor]) -> Tensor:
    """Sums of products by Einstein's notation; see functions.py."""
    terms, result = _parsed(equation, operands)
    lengths: dict[str, int] = {}
    for term, x in zip(terms, operands, strict=True):
        for letter, n in zip(term, x.shape, strict=True):
            known = lengths.setdefault(letter, n)
            if letter in DOTS and known == 1:
                lengths[letter] = n
            elif known != n and not (letter in DOTS and n == 1):
                name = "an axis of ..." if letter in DOTS else repr(letter)
                raise ShapeError(f"einsum: expected one length for {name}, got {known} and {n}")
    parts = [_once(*_long(term, x, lengths)) for term, x in zip(terms, operands, strict=True)]
    while len(parts) > 1:
        (a, x), (b, y), *rest = parts
        later = {*result, *(letter for term, _ in rest for letter in term)}
        parts = [_contracted(_summed(a, x, later | {*b}), _summed(b, y, later | {*a}), later, lengths), *rest]
    term, x = _summed(*parts[0], {*result})
    return permute_op(x, axes=tuple([term.index(letter) for letter in result]))


def _parsed(equation: Any, operands: Sequence[Tensor]) -> tuple[list[str], str]:
    """The letters of each operand's axes and those of the result; `...` becomes letters of DOTS, from the right."""
    checks.instance("einsum", equation, str, "an equation such as 'ij,jk->ik'")
    left, arrow, right = equation.replace(" ", "").partition("->")
    given = left.split(",")
    if len(given) != len(operands):
        raise ShapeError(f"einsum: expected {len(given)} operands for {checks.shown(equation)}, got {len(operands)}")
    terms, most = [], 0
    for term, x in zip(given, operands, strict=True):
        extra = x.ndim - len(term.replace("...", "", 1)) if "..." in term else 0
        most = max(most, extra)
        terms.append(term.replace("...", DOTS[:extra][::-1], 1))
        letters = term.replace("...", "", 1)
        if extra < 0 or len(terms[-1]) != x.ndim or (letters and not (letters.isalpha() and letters.isascii())):
            raise ShapeError(f"einsum: expected a letter for each axis of {x.shape}, got {checks.shown(term)}")
    dots = DOTS[:most][::-1]
    letters = "".join(terms)
    result = (
        right.replace("...", dots, 1)
        if arrow
        else dots + "".join(sorted(letter for letter in {*letters} - {*dots} if letters.count(letter) == 1))
    )
    if len({*result}) != len(result) or not {*result} <= {*letters}:
        raise ShapeError(f"einsum: expected letters of the operands, each once, as a result, got {checks.shown(right)}")
    return terms, result


def _long(term: str, x: Tensor, lengths: dict[str, int]) -> tuple[str, Tensor]:
    """x without the axes of `...` along which it is one element for all of the others'."""
    kept = [(letter, n) for letter, n in zip(term, x.shape, strict=True) if n == lengths[letter]]
    if len(kept) == x.ndim:
        return term, x
    return "".join(letter for letter, _ in kept), reshape_op(x, shape=tuple([n for _, n in kept]))


def _once(term: str, x: Tensor) -> tuple[str, Tensor]:
    """Of a letter that stands twice, the diagonal."""
    for letter in sorted({*term}):
        while term.count(letter) > 1:
            first, second = term.index(letter), term.rindex(letter)
            x = diagonal(x, 0, first, second)
            term = term[:first] + term[first + 1 : second] + term[second + 1 :] + letter
    return term, x


def _summed(term: str, x: Tensor, wanted: set[str]) -> tuple[str, Tensor]:
    """x summed over the axes whose letters nobody wants."""
    gone = tuple([i for i, letter in enumerate(term) if letter not in wanted])
    return "".join(letter for letter in term if letter in wanted), sum(x, gone) if gone else x


def _contracted(
    left: tuple[str, Tensor], right: tuple[str, Tensor], later: set[str], lengths: dict[str, int]
) -> tuple[str, Tensor]:
    """The product of two operands: (batch, own, shared) @ (batch, shared, own)."""
    (a, x), (b, y) = left, right
    batch = [letter for letter in a if letter in b and letter in later]
    shared = [letter for letter in a if letter in b and letter not in later]
    own_a, own_b = ([letter for letter in term if letter not in other] for term, other in ((a, b), (b, a)))

    def arranged(t: Tensor, term: str, *groups: list[str]) -> Tensor:
        axes = tuple([term.index(letter) for group in groups for letter in group])
        return reshape_op(permute_op(t, axes=axes), shape=tuple([length(group) for group in groups]))

    def length(group: list[str]) -> int:
        return math.prod(lengths[letter] for letter in group)

    product = matmul(arranged(x, a, batch, own_a, shared), arranged(y, b, batch, shared, own_b))
    term = [*batch, *own_a, *own_b]
    return "".join(term), reshape_op(product, shape=tuple([lengths[letter] for letter in term]))
