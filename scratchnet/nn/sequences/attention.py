"""Attention under PyTorch's names, and what tells it the order of steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import checks, ops
from ...errors import ConfigError, DtypeError, ShapeError
from ...tensor import FLOATS, ArrayLike, Tensor, as_tensor
from .. import functional as F
from .. import init
from ..layers import LARGEST, Linear
from ..module import Module, Parameter
from .functions import attention_weights


class MultiheadAttention(Module):
    """Attention of num_heads heads side by side, each of embed_dim / num_heads features (Vaswani et al. 2017).

    Parameters as in PyTorch: in_proj_weight (3 * embed_dim, embed_dim), whose rows make query, key and value, and
    in_proj_bias; out_proj is a Linear, whose weight is (in, out). The first starts as Xavier's uniform, biases as 0.

    layer(query, key, value, key_padding_mask=None, need_weights=True, attn_mask=None, average_attn_weights=True,
    is_causal=False) -> (result, weights or None). query (steps, n, embed_dim), key and value (keys, n, embed_dim); with
    batch_first (n, steps, embed_dim) and (n, keys, embed_dim). Masks as in PyTorch: True means NOT to be seen, floats
    are added to the scores. key_padding_mask (n, keys); attn_mask (steps, keys), or (n * num_heads, steps, keys).
    is_causal: step i sees the keys 0 to i, also beside other masks. weights (n, steps, keys) are means over the heads,
    or (n, num_heads, steps, keys). A step that sees no key has weights of 0.
    Raises ShapeError, DtypeError, ConfigError.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, dropout: float = 0.0, bias: bool = True, batch_first: bool = False
    ):
        self.embed_dim = checks.integer("MultiheadAttention: embed_dim", embed_dim, 1, LARGEST)
        self.num_heads = checks.integer("MultiheadAttention: num_heads", num_heads, 1, LARGEST)
        if self.embed_dim % self.num_heads:
            raise ConfigError(
                f"MultiheadAttention: expected embed_dim that {num_heads} heads divide, got {self.embed_dim}"
            )
        self.dropout = checks.number("MultiheadAttention: dropout", dropout, "[0, 1]")
        self.batch_first = checks.flag("MultiheadAttention: batch_first", batch_first)
        has_bias = checks.flag("MultiheadAttention: bias", bias)
        self.in_proj_weight = Parameter(np.empty((3 * self.embed_dim, self.embed_dim), np.float32))
        self.in_proj_bias = Parameter(np.zeros(3 * self.embed_dim, np.float32)) if has_bias else None
        self.out_proj = Linear(self.embed_dim, self.embed_dim, has_bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        init.xavier_uniform_(self.in_proj_weight)
        self.out_proj.reset_parameters()
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                init.zeros_(bias)

    def forward(
        self,
        query: ArrayLike,
        key: ArrayLike,
        value: ArrayLike,
        key_padding_mask: ArrayLike | None = None,
        need_weights: bool = True,
        attn_mask: ArrayLike | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        name = "MultiheadAttention"
        flags = {"need_weights": need_weights, "average_attn_weights": average_attn_weights, "is_causal": is_causal}
        need_weights, average, is_causal = (checks.flag(f"{name}: {what}", flag) for what, flag in flags.items())
        given = [as_tensor(x, self.in_proj_weight) for x in (query, key, value)]
        for what, x in zip(("query", "key", "value"), given, strict=True):
            if x.ndim != 3 or x.shape[2] != self.embed_dim:
                axes = "n, steps" if self.batch_first else "steps, n"
                raise ShapeError(f"{name}: expected {what} ({axes}, {self.embed_dim}), got {x.shape}")
        if not self.batch_first:
            given = [x.transpose(0, 1) for x in given]
        n, steps, _ = given[0].shape
        keys = given[1].shape[1]
        if given[1].shape[:2] != (n, keys) or given[2].shape[:2] != (n, keys):
            got = " and ".join(str(x.shape) for x in given)
            raise ShapeError(f"{name}: expected one batch, and as many values as keys, got {got}")
        like = given[0]
        attn_mask = None if attn_mask is None else as_tensor(attn_mask, like)
        shapes: tuple[tuple[int, ...], tuple[int, ...]] = (steps, keys), (1, 1, steps, keys)
        if attn_mask is not None and attn_mask.ndim == 3:
            shapes = (n * self.num_heads, steps, keys), (n, self.num_heads, steps, keys)
        mask = _merged(
            self._mask("key_padding_mask", key_padding_mask, (n, keys), (n, 1, 1, keys), like),
            self._mask("attn_mask", attn_mask, *shapes, like),
        )
        y, weights = self._attend(given, mask, is_causal, need_weights)
        y = y if self.batch_first else y.transpose(0, 1)
        return y, weights.mean(1) if weights is not None and average else weights

    def _attend(
        self, given: list[Tensor], mask: Tensor | None, is_causal: bool, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Of query, key and value: (n, steps, embed_dim), and the weights (n, num_heads, steps, keys) or None."""
        query, key, value = (self._heads(x, i, 0, self.num_heads) for i, x in enumerate(given))
        weights = attention_weights("MultiheadAttention", query, key, mask, is_causal)
        weights = F.dropout(weights, self.dropout, self.training)
        return self.out_proj(self._side_by_side(weights @ value)), weights if need_weights else None

    def _heads(self, x: Tensor, i: int, first: int, end: int) -> Tensor:
        """(n, steps, embed_dim) -> (n, heads, steps, width): query, key or value (i) of heads first to end."""
        width = self.embed_dim // self.num_heads
        rows = slice(i * self.embed_dim + first * width, i * self.embed_dim + end * width)
        bias = None if self.in_proj_bias is None else self.in_proj_bias[rows]
        y = F.linear(x, self.in_proj_weight[rows].T, bias)
        return y.reshape(*x.shape[:2], end - first, width).transpose(1, 2).contiguous()

    @staticmethod
    def _side_by_side(heads: Tensor) -> Tensor:
        """(n, heads, steps, width) -> (n, steps, heads * width)."""
        n, count, steps, width = heads.shape
        return heads.transpose(1, 2).reshape(n, steps, count * width)

    def _mask(self, what: str, mask: Any, shape: tuple[int, ...], as_shape: tuple[int, ...], like: Tensor) -> Any:
        """A mask of booleans or floats, as it broadcasts to the scores."""
        if mask is None:
            return None
        mask = as_tensor(mask, like)
        if mask.shape != shape:
            raise ShapeError(f"MultiheadAttention: {what}: expected shape {shape}, got {mask.shape}")
        if mask.dtype not in (np.bool_, like.dtype):
            raise DtypeError(f"MultiheadAttention: {what}: expected booleans or {like.dtype}, got {mask.dtype}")
        return mask.reshape(as_shape)

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, {self.num_heads}, dropout={self.dropout}, batch_first={self.batch_first}"


def _merged(*masks: Tensor | None) -> Tensor | None:
    """One mask for attention, where True means to be seen, of masks in which it means the opposite."""
    given = [mask for mask in masks if mask is not None]
    floats = [mask for mask in given if mask.dtype != np.bool_]
    if not given:
        return None
    if not floats:
        seen = [mask.logical_not() for mask in given]
        return seen[0] if len(seen) == 1 else seen[0] * seen[1]
    zero = as_tensor(np.zeros((), floats[0].dtype), floats[0])
    added = [mask if mask.dtype != np.bool_ else ops.where(mask, float("-inf"), zero) for mask in given]
    return added[0] if len(added) == 1 else added[0] + added[1]


class PositionalEncoding(Module):
    """x + the encoding of each step, then dropout: x (steps, n, d_model), or (n, steps, d_model) with batch_first.

    Feature 2 i of step t is sin(t / 10000 ** (2 i / d_model)), feature 2 i + 1 the cosine (Vaswani et al. 2017,
    section 3.5). Nothing of it is trained or saved. Learned positions are an Embedding of the steps' numbers.
    """

    def __init__(self, d_model: int, dropout: float = 0.0, batch_first: bool = False):
        self.d_model = checks.integer("PositionalEncoding: d_model", d_model, 1, LARGEST)
        self.dropout = checks.number("PositionalEncoding: dropout", dropout, "[0, 1]")
        self.batch_first = checks.flag("PositionalEncoding: batch_first", batch_first)

    def forward(self, x: ArrayLike) -> Tensor:
        x = as_tensor(x)
        if x.ndim != 3 or x.shape[2] != self.d_model:
            axes = "n, steps" if self.batch_first else "steps, n"
            raise ShapeError(f"PositionalEncoding: expected x ({axes}, {self.d_model}), got {x.shape}")
        x = x if x.dtype in FLOATS else x.astype(np.float32)
        steps = x.shape[1 if self.batch_first else 0]
        feature = np.arange(self.d_model)
        angle = np.arange(steps)[:, None] / 10000.0 ** (feature // 2 * 2 / self.d_model)
        table = np.where(feature % 2, np.cos(angle), np.sin(angle)).astype(x.dtype)
        table = table if self.batch_first else table[:, None]
        return F.dropout(x + as_tensor(table, x), self.dropout, self.training)

    def extra_repr(self) -> str:
        return f"{self.d_model}, dropout={self.dropout}, batch_first={self.batch_first}"
