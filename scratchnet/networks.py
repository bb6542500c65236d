"""The networks of the jobs in scripts/ that are no plain sequence of layers; a saved model names them."""

from __future__ import annotations

from collections.abc import Sequence

from . import checks, nn
from .errors import ShapeError
from .functions import cat
from .tensor import ArrayLike, Tensor, as_tensor


class Recommender(nn.Module):
    """rating = mean + bias of the user + bias of the item + <p, q>, of factors p of the user and q of the item.

    pairs (b, 2) integers, the numbers of users and items -> (b, 1). In training there is a second column, `penalty`
    times the squares of the factors and biases of the pair, whose mean is what a loss adds: so each rating draws on
    those that it uses. (Koren, Bell and Volinsky 2009, "Matrix factorization techniques for recommender systems")
    users, items: how many there are. factors: the length of p and q. hidden: the widths of two towers, networks through
    which p and q pass; none for matrix factorisation.
    """

    def __init__(
        self,
        users: int,
        items: int,
        factors: int,
        hidden: Sequence[int] = (),
        mean: float = 0.0,
        penalty: float = 0.0,
    ):
        sizes = [checks.integer(f"Recommender: {n}", v, 1) for n, v in {"users": users, "items": items}.items()]
        factors = checks.integer("Recommender: factors", factors, 1)
        widths = checks.lengths(
            "Recommender: hidden", checks.items("Recommender: hidden", hidden, "a list of widths"), 1
        )
        self.mean = checks.number("Recommender: mean", mean)
        self.penalty = checks.number("Recommender: penalty", penalty, "[0, inf)")
        self.biases = nn.ModuleList([nn.Embedding(rows, 1) for rows in sizes])
        self.factors = nn.ModuleList([nn.Embedding(rows, factors) for rows in sizes])
        tower = [nn.MLP(factors, *widths, factors) if widths else nn.Identity() for _ in sizes]
        self.towers = nn.ModuleList(tower)
        for bias, vectors in zip(self.biases, self.factors, strict=True):
            nn.init.zeros_(bias.weight)
            nn.init.normal_(vectors.weight, std=0.05)

    def forward(self, pairs: ArrayLike) -> Tensor:
        numbers = as_tensor(pairs)
        if numbers.ndim != 2 or numbers.shape[1] != 2:
            raise ShapeError(f"Recommender: expected pairs (b, 2), got {numbers.shape}")
        sides = [numbers[:, 0], numbers[:, 1]]
        user_bias, item_bias = (bias(side) for bias, side in zip(self.biases, sides, strict=True))  # (b, 1)
        vectors = [factors(side) for factors, side in zip(self.factors, sides, strict=True)]
        p, q = (tower(x) for tower, x in zip(self.towers, vectors, strict=True))  # (b, factors)
        rating = (p * q).sum(axis=1, keepdims=True) + user_bias + item_bias + self.mean
        if not self.training:
            return rating
        squares = [(x * x).sum(axis=1, keepdims=True) for x in (*vectors, user_bias, item_bias)]
        return cat([rating, sum(squares[1:], squares[0]) * self.penalty], axis=1)

    def extra_repr(self) -> str:
        return f"mean={self.mean}, penalty={self.penalty}"
