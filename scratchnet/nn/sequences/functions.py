"""What the layers of sequences compute, as functions of tensors; functional.py hands on what is public."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from ... import checks, ops
from ...errors import DtypeError, ShapeError
from ...tensor import ArrayLike, Tensor, as_tensor


def recurrence(
    cell: str, x: Tensor, state: Tensor, weights: tuple[Tensor | None, ...], alive: Tensor, reverse: bool = False
) -> Tensor:
    """One recurrent layer in one direction: the states after each step (steps, states, n, width).

    x (steps, n, in), state (states, n, width), alive (steps, n) of booleans. weights: weight_ih (gates * width, in),
    weight_hh (gates * width, width), and the biases (gates * width,) of both, or None.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    assert weight_ih is not None and weight_hh is not None
    steps, n, _ = x.shape
    width = weight_hh.shape[1]
    gates = ops.linear(x, weight_ih.T, bias_ih).reshape(steps, n, len(weight_hh) // width, width)
    if bias_hh is None:
        bias_hh = as_tensor(np.zeros(len(weight_hh), gates.dtype), x)
    return ops.recurrent(gates, weight_hh, bias_hh, state, alive, cell=cell, reverse=reverse)


def reached(name: str, lengths: ArrayLike | None, steps: int, like: Tensor, n: int) -> Tensor:
    """(steps, n) of booleans: has a sequence a step of this number? Without lengths all have.

    Raises ShapeError, DtypeError, or IndexOutOfRangeError for a length outside [0, steps].
    """
    if lengths is None:
        return as_tensor(np.ones((steps, n), bool), like)
    if not isinstance(lengths, Tensor):
        lengths = Tensor(lengths, device=like.device)
    if lengths.shape != (n,):
        raise ShapeError(f"{name}: lengths: expected shape {(n,)}, one number a sequence, got {lengths.shape}")
    numbers = ops.checked_index(f"{name}: lengths", lengths, steps + 1, from_end=False)
    return as_tensor(np.arange(steps)[:, None], like) < as_tensor(numbers, like)


# --- attention: query (..., steps, width), key (..., keys, width) ----------------------------------------------------


def attention_weights(
    name: str,
    query: Tensor,
    key: Tensor,
    mask: ArrayLike | None,
    is_causal: bool,
    scale: float | None = None,
) -> Tensor:
    """How much of each value a step takes (..., steps, keys): see functional.scaled_dot_product_attention."""
    if min(query.ndim, key.ndim) < 2 or query.shape[-1] != key.shape[-1]:
        raise ShapeError(
            f"{name}: expected query (..., steps, width) and key (..., keys, width), got {query.shape} and {key.shape}"
        )
    if not query.shape[-1] or not key.shape[-2]:
        raise ShapeError(f"{name}: expected at least one key and a width, got key {key.shape}")
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-1, -2)
    seen = None
    if mask is not None:
        mask = as_tensor(mask, query)
        try:
            fits = np.broadcast_shapes(mask.shape, scores.shape) == scores.shape
        except ValueError:
            fits = False
        if not fits:
            raise ShapeError(f"{name}: expected a mask that broadcasts to {scores.shape}, got {mask.shape}")
        if mask.dtype not in (np.bool_, scores.dtype):
            raise DtypeError(f"{name}: expected a mask of booleans or of {scores.dtype}, got {mask.dtype}")
        seen = mask
        if mask.dtype != np.bool_:
            scores, seen = scores + mask, mask != -np.inf  # NaN counts, and is seen in the result
    if is_causal:
        causal = as_tensor(np.tril(np.ones(scores.shape[-2:], bool)), query)
        seen = causal if seen is None else seen * causal
    if seen is not None:
        scores = ops.where(seen, scores, float(ml_dtypes.finfo(scores.dtype).min))  # whose exp is 0 beside any other
    weights = scores.softmax(-1)
    if mask is not None:
        weights = ops.where(seen, weights, 0.0)  # where no key is seen
    return weights


def generate_square_subsequent_mask(sz: int) -> Tensor:
    """(sz, sz) of 0 on and below the diagonal and -inf above, to be added to scores: step i sees the steps 0 to i."""
    size = checks.integer("generate_square_subsequent_mask: sz", sz, 0, 2**31 - 1)
    return Tensor(np.triu(np.full((size, size), -np.inf, np.float32), 1))
