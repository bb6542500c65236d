"""The networks of the jobs in scripts/ that are no plain sequence of layers; a saved model names them."""

from __future__ import annotations

from collections.abc import Sequence

from . import checks, nn
from .errors import ShapeError
from .functions import cat, where
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


class TextTransformer(nn.Module):
    """Numbers of words (b, steps) -> logits (b, classes): the mean over words of what an encoder makes of them.

    Vectors of words, with sines for their positions, pass through `layers` encoder layers that normalise first (Vaswani
    et al. 2017, "Attention is all you need"). The number 0 is no word: nothing looks at it, and no mean counts it.
    words: how many numbers there are. width: of a word's vector, divisible by `heads`.
    """

    def __init__(
        self,
        words: int,
        classes: int,
        width: int = 64,
        heads: int = 4,
        layers: int = 2,
        dropout: float = 0.1,
    ):
        given = {"words": words, "classes": classes, "width": width, "heads": heads, "layers": layers}
        most = {"layers": 1000}
        sizes = {n: checks.integer(f"TextTransformer: {n}", v, 1, most.get(n)) for n, v in given.items()}
        dropout = checks.number("TextTransformer: dropout", dropout, "[0, 1]")
        self.embedding = nn.Embedding(sizes["words"], width, padding_idx=0)
        self.positions = nn.PositionalEncoding(width, batch_first=True)
        self.layers = nn.ModuleList(
            [
                nn.TransformerEncoderLayer(width, heads, 2 * width, dropout, batch_first=True, norm_first=True)
                for _ in range(sizes["layers"])
            ]
        )
        self.norm, self.dropout, self.head = nn.LayerNorm(width), nn.Dropout(dropout), nn.Linear(width, classes)

    def forward(self, words: ArrayLike) -> Tensor:
        numbers = as_tensor(words)
        if numbers.ndim != 2:
            raise ShapeError(f"TextTransformer: expected numbers of words (b, steps), got {numbers.shape}")
        x, nothing = self.positions(self.embedding(numbers)), numbers == 0
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=nothing)
        counts = where(nothing, 0.0, 1.0).unsqueeze(-1)  # (b, steps, 1)
        mean = (self.norm(x) * counts).sum(axis=1) / counts.sum(axis=1).maximum(1.0)
        return self.head(self.dropout(mean))
