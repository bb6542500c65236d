"""What the P parts of a layer compute, each with a block of its weights.

    columns   part p gives a block of the outputs:  y_p = x @ W[:, p] + b[p]         y = y_0 | y_1 | ...
    rows      part p takes a block of the inputs:   z_p = x_p @ W[p, :]              y = (z_0 + z_1 + ...) + b
    heads     part p has some heads of attention:   z_p = heads_p(x) @ W_out[p, :]   y = (z_0 + z_1 + ...) + b

Sums over parts are folded along the tree of comm/tree.py, and so is the gradient of an x that all parts read. So P is a
part of the arithmetic, and who computes the parts is not (Shoeybi et al., "Megatron-LM", 2019, cut layers in this way).
Of a product no sum crosses a block of columns; the kernels of cpu and cuda give the same bits for it as for the whole.
BLAS, in the reference table, does not promise that: there each block is a product of its own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ... import nn, ops, random
from ...errors import ConfigError
from ...nn import functional as F
from ...nn.activations import ACTIVATIONS
from ...nn.sequences.functions import attention_weights
from ...tensor import Tensor, as_tensor
from ..comm.tree import tree_sum
from ..shards import starts_of

# Layers that change each element, or each channel, by itself: between columns and rows they see a block of their input.
LOCAL = (*ACTIVATIONS.values(), nn.Identity, nn.Dropout)
LOCAL_OF_CHANNELS = (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


class Kind(NamedTuple):
    """A way to cut a layer.

    width: the attribute with the length that is cut. block(layer, x, lo, hi): what the part with lo to hi of it gives;
    None for attention, see PartedAttention.
    axis: of features. takes_block: does a part read its block of x alone? adds: are results added up, or side by side?
    """

    width: str
    block: Callable[[Any, Tensor, int, int], Tensor] | None
    axis: int
    takes_block: bool
    adds: bool


def _columns(layer: Any, x: Tensor, lo: int, hi: int) -> Tensor:
    return F.linear(x, layer.weight[:, lo:hi], None if layer.bias is None else layer.bias[lo:hi])


def _rows(layer: Any, x: Tensor, lo: int, hi: int) -> Tensor:
    return F.linear(x, layer.weight[lo:hi])


def _convolved(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    function = F.conv2d if layer.axes == 2 else F.conv1d
    return function(x, weight, bias, layer.stride, layer.padding, layer.dilation)


def _filters(layer: Any, x: Tensor, lo: int, hi: int) -> Tensor:
    return _convolved(layer, x, layer.weight[lo:hi], None if layer.bias is None else layer.bias[lo:hi])


def _channels(layer: Any, x: Tensor, lo: int, hi: int) -> Tensor:
    return _convolved(layer, x, layer.weight[:, lo:hi], None)


def _looked_up(layer: Any, x: Any, lo: int, hi: int) -> Tensor:
    """The rows that this part has; -0.0, the neutral element of a sum, where another part has the row."""
    weight = layer.weight
    numbers = as_tensor(ops.checked_index("embedding", x, layer.num_embeddings, from_end=False), weight)
    mine = (numbers >= lo) * (numbers < hi)
    padding = layer.padding_idx
    padding = None if padding is None or not lo <= padding < hi else padding - lo
    rows = F.embedding(ops.where(mine, numbers - lo, 0), weight[lo:hi], padding)
    return ops.where(mine.unsqueeze(-1), rows, -0.0)


_CONVOLUTION = {
    "columns": Kind("out_channels", _filters, 1, takes_block=False, adds=False),
    "rows": Kind("in_channels", _channels, 1, takes_block=True, adds=True),
}
KINDS: dict[type, dict[str, Kind]] = {
    nn.Linear: {
        "columns": Kind("out_features", _columns, -1, takes_block=False, adds=False),
        "rows": Kind("in_features", _rows, -1, takes_block=True, adds=True),
    },
    nn.Conv1d: _CONVOLUTION,
    nn.Conv2d: _CONVOLUTION,
    nn.Embedding: {"rows": Kind("num_embeddings", _looked_up, -1, takes_block=False, adds=True)},
    nn.MultiheadAttention: {"heads": Kind("num_heads", None, -1, takes_block=False, adds=True)},
}


# --- x and its parts --------------------------------------------------------------------------------------------------


def copies(x: Tensor, parts: int) -> list[Tensor]:
    """x for each part. Its gradient is the sum of theirs, along the tree: at each fork two gradients meet."""
    if not x.requires_grad:
        return [x] * parts

    def forked(x: Tensor, count: int) -> list[Tensor]:
        if count == 1:
            return [x]
        left = 1 << (count - 1).bit_length() - 1
        return forked(_same(x), left) + forked(_same(x), count - left)

    return forked(_same(x), parts)


def _same(x: Tensor) -> Tensor:
    """x, as the result of an op of its own."""
    return ops.reshape_op(x, shape=x.shape)


def folded(found: Sequence[Tensor]) -> Tensor:
    """The sum of what the parts gave, along the tree."""
    return tree_sum(range(len(found)), found.__getitem__, operator.add)


def block_of(x: Tensor, axis: int, lo: int, hi: int) -> Tensor:
    return x[(slice(None),) * (axis % x.ndim) + (slice(lo, hi),)]


class Mask(NamedTuple):
    """Dropout of a whole array, of which each part takes its block: the stream of random numbers is the layer's."""

    p: float
    key: np.ndarray | None  # None: all is dropped

    @classmethod
    def of(cls, p: float, training: bool) -> Mask | None:
        """Of a layer with this probability, for one call; None where it drops nothing."""
        return cls(p, None if p == 1 else random.current().key()) if training and p else None

    def on(self, x: Tensor, axis: int, width: int, lo: int, hi: int) -> Tensor:
        """The block x, dropped; width: of the whole along the axis. Each part draws the whole, and needs no other."""
        if self.key is None:
            return F.dropout(x, 1.0)
        axis %= x.ndim
        ones = np.ones((*x.shape[:axis], width, *x.shape[axis + 1 :]), x.dtype)
        mask = block_of(ops.dropout(as_tensor(ones, x), p=self.p, key=self.key), axis, lo, hi)
        return ops.where(mask > 0, x * mask, 0.0)  # 0 also where x is infinite


class Part(nn.Module):
    """A part's work in one call, as a module of its own: so trace.py sees where the ops of a part begin and end."""

    def __init__(self, compute: Callable[..., Any]):
        self.compute = compute

    def forward(self, p: int, *inputs: Any) -> Any:
        return self.compute(p, *inputs)


# --- a run of layers --------------------------------------------------------------------------------------------------


class Unit:
    """Layers that a part computes without exchange: a cut one, or one by columns, local ones, and one by rows.

    layers: (layer, its kind, or None for a local one).
    """

    def __init__(self, layers: Sequence[tuple[nn.Module, Kind | None]], parts: int):
        self.layers, self.parts = tuple(layers), parts
        self.first, self.last = (kind for _, kind in (layers[0], layers[-1]) if kind is not None)
        self.width = getattr(layers[0][0], self.first.width)
        self.starts = starts_of(self.width, parts)

    def masks(self) -> list[Mask | None]:
        """Of each layer, for one call."""
        return [Mask.of(layer.p, layer.training) if type(layer) is nn.Dropout else None for layer, _ in self.layers]

    def part(self, p: int, x: Tensor, masks: Sequence[Mask | None]) -> Tensor:
        """What part p gives, of x or its block of x."""
        lo, hi = self.starts[p : p + 2]
        for (layer, kind), mask in zip(self.layers, masks, strict=True):
            if kind is not None and kind.block is not None:
                x = kind.block(layer, x, lo, hi)
            elif mask is not None:
                x = mask.on(x, self.first.axis, self.width, lo, hi)
            elif type(layer) is not nn.Dropout:
                x = layer(x)
        return x

    def merged(self, found: Sequence[Tensor]) -> Tensor:
        """The result, from those of the parts."""
        if not self.last.adds:
            return ops.cat(found, self.last.axis % found[0].ndim)
        y, bias = folded(found), getattr(self.layers[-1][0], "bias", None)
        return y if bias is None else y + (bias if self.last.axis < 0 else bias.reshape(-1, *[1] * (y.ndim - 2)))

    def __call__(self, x: Any) -> Tensor:
        x, masks = as_tensor(x), self.masks()
        if self.first.takes_block:
            own = [block_of(x, self.first.axis, *self.starts[p : p + 2]) for p in range(self.parts)]
        else:
            own = copies(x, self.parts)
        part = Part(self.part)
        return self.merged([part(p, own[p], masks) for p in range(self.parts)])


class Parted(nn.Module):
    """Stands for a layer, and for those after it that belong to its unit; it has the layer's attributes.

    _around: of several layers, the calls of their Sequential that run now: nobody else may call the first for them all.
    """

    _unit: Unit
    _around: list[Any] | None = None

    def forward(self, x: Any) -> Tensor:
        if self._around is not None and not self._around:
            count = len(self._unit.layers)
            raise ConfigError(
                f"parts: expected a Sequential to be called as a whole, as {count} of its layers are one, "
                f"got a call of the first of them, {type(self._unit.layers[0][0]).__name__}; leave them out of plan="
            )
        return self._unit(x)


class PartedSequential(nn.Sequential):
    """Stands for a Sequential some of whose layers are computed by parts. _called: names of those that are called."""

    _called: tuple[str, ...]
    _around: list[Any]

    def forward(self, x: Any) -> Tensor:
        items = vars(self)
        for name in self._called:
            self._around.append(name)
            try:
                x = items[name](x)
            finally:
                self._around.pop()
        return as_tensor(x)


class PartedAttention(nn.MultiheadAttention):
    """Stands for attention whose heads are shared out among the parts."""

    _parts: int

    def _attend(
        self, given: list[Tensor], mask: Tensor | None, is_causal: bool, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        starts, width = starts_of(self.num_heads, self._parts), self.embed_dim // self.num_heads
        dropped = Mask.of(self.dropout, self.training)
        own = {id(x): copies(x, self._parts) for x in given}

        def part(p: int) -> tuple[Tensor, Tensor]:
            lo, hi = starts[p : p + 2]
            query, key, value = (self._heads(own[id(x)][p], i, lo, hi) for i, x in enumerate(given))
            seen = mask if mask is None or mask.shape[1] == 1 else mask[:, lo:hi]
            weights = attention_weights("MultiheadAttention", query, key, seen, is_causal)
            if dropped is not None:
                weights = dropped.on(weights, 1, self.num_heads, lo, hi)
            y = F.linear(self._side_by_side(weights @ value), self.out_proj.weight[lo * width : hi * width])
            return y, weights

        results, weights = zip(*map(Part(part), range(self._parts)), strict=True)
        y, bias = folded(results), self.out_proj.bias
        return y if bias is None else y + bias, ops.cat(weights, 1) if need_weights else None
