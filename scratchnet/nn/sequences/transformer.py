"""The encoder of a transformer, under PyTorch's names."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from ... import checks
from ...functions import relu
from ...tensor import ArrayLike, Tensor, as_tensor
from ..activations import gelu
from ..containers import ModuleList
from ..layers import LARGEST, Dropout, LayerNorm, Linear
from ..module import Module
from .attention import MultiheadAttention

FEED_FORWARD: dict[str, Callable[..., Tensor]] = {"relu": relu, "gelu": gelu}


class TransformerEncoderLayer(Module):
    """Self-attention and two linear layers, each added to its input and normalised (Vaswani et al. 2017).

    x = norm1(x + attention(x)), x = norm2(x + linear2(activation(linear1(x)))); with norm_first
    x = x + attention(norm1(x)), x = x + linear2(activation(linear1(norm2(x)))). Dropout follows the attention, the
    activation and the second linear layer, and acts on the attention's weights.

    dim_feedforward: the width between the linear layers. activation: "relu" or "gelu".
    layer(src, src_mask=None, src_key_padding_mask=None, is_causal=False): src (steps, n, d_model), or
    (n, steps, d_model) with batch_first; masks as those of MultiheadAttention, the second one (n, steps).
    """

    _fixed = ("d_model", "nhead", "dim_feedforward", "layer_norm_eps", "batch_first")

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
    ):
        name = "TransformerEncoderLayer"
        d_model = checks.integer(f"{name}: d_model", d_model, 1, LARGEST)
        width = checks.integer(f"{name}: dim_feedforward", dim_feedforward, 1, LARGEST)
        nhead = checks.integer(f"{name}: nhead", nhead, 1, LARGEST)
        dropout = checks.number(f"{name}: dropout", dropout, "[0, 1]")
        eps = checks.number(f"{name}: layer_norm_eps", layer_norm_eps, "[0, inf)")
        self.activation = checks.one_of(f"{name}: activation", activation, FEED_FORWARD)
        self.norm_first = checks.flag(f"{name}: norm_first", norm_first)
        self.self_attn = MultiheadAttention(
            d_model, nhead, dropout, batch_first=checks.flag(f"{name}: batch_first", batch_first)
        )
        self.linear1 = Linear(d_model, width)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(width, d_model)
        self.norm1, self.norm2 = LayerNorm(d_model, eps), LayerNorm(d_model, eps)
        self.dropout1, self.dropout2 = Dropout(dropout), Dropout(dropout)

    def forward(
        self,
        src: ArrayLike,
        src_mask: ArrayLike | None = None,
        src_key_padding_mask: ArrayLike | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        x = as_tensor(src, self.linear1.weight)
        masks: dict[str, Any] = {
            "attn_mask": src_mask,
            "key_padding_mask": src_key_padding_mask,
            "is_causal": is_causal,
            "need_weights": False,
        }

        def attention(x: Tensor) -> Tensor:
            return self.dropout1(self.self_attn(x, x, x, **masks)[0])

        def feed_forward(x: Tensor) -> Tensor:
            return self.dropout2(self.linear2(self.dropout(FEED_FORWARD[self.activation](self.linear1(x)))))

        if self.norm_first:
            x = x + attention(self.norm1(x))
            return x + feed_forward(self.norm2(x))
        x = self.norm1(x + attention(x))
        return self.norm2(x + feed_forward(x))


class TransformerEncoder(Module):
    """num_layers copies of an encoder layer, one after the other, then `norm`, if one is given.

    As in PyTorch the copies start with equal parameters; `for layer in encoder.layers: layer.apply(...)` draws others.
    encoder(src, mask=None, src_key_padding_mask=None, is_causal=False): the arguments of each layer.
    """

    def __init__(self, encoder_layer: Module, num_layers: int, norm: Module | None = None):
        name = "TransformerEncoder"
        checks.instance(f"{name}: encoder_layer", encoder_layer, TransformerEncoderLayer, "a TransformerEncoderLayer")
        if norm is not None:
            checks.instance(f"{name}: norm", norm, Module, "a module or None")
        count = checks.integer(f"{name}: num_layers", num_layers, 1, LARGEST)
        self.layers = ModuleList([copy.deepcopy(encoder_layer) for _ in range(count)])
        self.norm = norm

    def forward(
        self,
        src: ArrayLike,
        mask: ArrayLike | None = None,
        src_key_padding_mask: ArrayLike | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        x: Any = src
        for layer in self.layers:
            x = layer(x, mask, src_key_padding_mask, is_causal)
        return x if self.norm is None else self.norm(x)
