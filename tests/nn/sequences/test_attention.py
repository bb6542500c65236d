"""Attention against loops in NumPy over batch and heads; masks, and rows that see nothing; the positions of steps."""

import numpy as np
import pytest
import scipy.special
from messages import error_line

import scratchnet as sn
from scratchnet import nn
from scratchnet.nn import functional as F
from scratchnet.testing import gradcheck

RNG = np.random.default_rng(0)
Q, K, V = (RNG.standard_normal((2, 3, n, width)) for n, width in ((5, 4), (6, 4), (6, 7)))
SEEN = RNG.random((5, 6)) > 0.4
SEEN[2] = False
ADDED = RNG.standard_normal((3, 5, 6))
ADDED[:, 1, 2], ADDED[2, 4] = -np.inf, -np.inf


def attention_of(q, k, v, seen, added, scale):
    """One query after the other, of matrices."""
    rows = []
    for i in range(len(q)):
        keys = np.flatnonzero(seen[i] & (added[i] > -np.inf))
        weights = scipy.special.softmax(k[keys] @ q[i] * scale + added[i, keys]) if len(keys) else np.zeros(0)
        rows.append(weights @ v[keys])
    return np.stack(rows)


MASKS = {
    "none": ({}, True, 0.0),
    "booleans": ({"attn_mask": SEEN}, SEEN, 0.0),
    "floats": ({"attn_mask": ADDED}, True, ADDED),
    "causal": ({"is_causal": True, "scale": 0.3}, np.arange(6) <= np.arange(5)[:, None], 0.0),
}


@pytest.mark.parametrize(("options", "seen", "added"), MASKS.values(), ids=MASKS)
def test_attention_is_a_mean_of_the_values_that_each_step_sees(options, seen, added, device):
    y = F.scaled_dot_product_attention(Q, K, V, **options).numpy()
    seen, added = np.broadcast_to(seen, (2, 3, 5, 6)), np.broadcast_to(added, (2, 3, 5, 6))
    for at in np.ndindex(2, 3):
        expected = attention_of(Q[at], K[at], V[at], seen[at], added[at], options.get("scale", 0.5))
        np.testing.assert_allclose(y[at], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("options", "seen", "added"), MASKS.values(), ids=MASKS)
def test_gradients_of_attention_match_differences(options, seen, added):
    gradcheck(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options),
        [Q[:1], K[:1], V[:1]],
        order=2,
        max_elements=4,
    )


def test_a_learned_mask_gets_a_gradient_and_what_is_not_seen_none():
    mask = sn.Tensor(ADDED, requires_grad=True)
    F.scaled_dot_product_attention(Q, K, V, mask)[0, :, :, 0].sum().backward()
    g = mask.grad.numpy()
    assert np.isfinite(g).all() and not g[np.isneginf(ADDED)].any() and np.count_nonzero(g) > 50


def test_a_mask_of_nan_is_seen_in_the_result():
    x = np.ones((3, 4), np.float32)
    mask = np.float32([[0, np.nan, 0], [0, 0, 0], [-np.inf] * 3])
    y = F.scaled_dot_product_attention(x, x, x, attn_mask=mask).numpy()
    np.testing.assert_allclose(y, np.float32([[np.nan] * 4, [1] * 4, [0] * 4]))


def test_what_no_step_sees_may_be_nan_in_its_key_alone():
    key = K.copy()
    key[:, :, 3] = np.nan
    seen = np.arange(6) != 3
    plain, beside = (F.scaled_dot_product_attention(Q, k, V, np.tile(seen, (5, 1))).numpy() for k in (K, key))
    np.testing.assert_array_equal(plain, beside)


def test_dropout_drops_weights():
    sn.manual_seed(0)
    ones = np.ones((1, 100, 1), np.float32)
    y = F.scaled_dot_product_attention(ones, ones, ones, dropout_p=0.5).numpy()
    assert abs(y.mean() - 1) < 0.05 and 0.08 < y.std() < 0.12  # of 100 weights each: 1 / sqrt(100)
    assert not F.scaled_dot_product_attention(ones, ones, ones, dropout_p=1.0).numpy().any()


# --- heads ------------------------------------------------------------------------------------------------------------


def heads_of(layer, query, key, value, seen, added):
    """(result, weights (n, heads, steps, keys)) of (n, steps, features), in NumPy."""
    p, e = layer.state_dict(), layer.embed_dim
    width, n = e // layer.num_heads, len(query)
    parts = [
        x @ p["in_proj_weight"][i * e : (i + 1) * e].T + p["in_proj_bias"][i * e : (i + 1) * e]
        for i, x in enumerate((query, key, value))
    ]
    y, weights = np.zeros_like(query), np.zeros((n, layer.num_heads, query.shape[1], key.shape[1]))
    for b, head in np.ndindex(n, layer.num_heads):
        columns = slice(head * width, (head + 1) * width)
        scores = parts[0][b][:, columns] @ parts[1][b][:, columns].T / np.sqrt(width) + added[b, head]
        exps = np.where(seen[b, head], np.exp(scores - scores.max()), 0)
        totals = exps.sum(1, keepdims=True)
        weights[b, head] = exps / np.where(totals == 0, 1, totals)
        y[b][:, columns] = weights[b, head] @ parts[2][b][:, columns]
    return y @ p["out_proj.weight"] + p["out_proj.bias"], weights


X, Y = RNG.standard_normal((3, 5, 8)), RNG.standard_normal((3, 6, 8))
PAD = np.arange(6) >= np.array([6, 4, 0])[:, None]  # the last sequence has no key at all
LATER = np.triu(np.ones((5, 6), bool), 1)
EACH = RNG.random((6, 5, 6)) > 0.5
FLOATS = RNG.standard_normal((5, 6))
NO_PAD, ALL = np.zeros((3, 1, 1, 6), bool), np.zeros((3, 2, 5, 6))
HEADS = {
    "none": ({}, True, ALL),
    "padding": ({"key_padding_mask": PAD}, ~PAD[:, None, None], ALL),
    "steps": ({"attn_mask": LATER, "key_padding_mask": PAD}, ~(PAD[:, None, None] | LATER), ALL),
    "causal": ({"is_causal": True, "key_padding_mask": PAD}, ~(PAD[:, None, None] | LATER), ALL),
    "each": ({"attn_mask": EACH}, ~EACH.reshape(3, 2, 5, 6), ALL),
    "floats": ({"attn_mask": FLOATS}, True, ALL + FLOATS),
    "both": ({"attn_mask": FLOATS, "key_padding_mask": PAD}, ~PAD[:, None, None], ALL + FLOATS),
}


def heads(**options):
    sn.manual_seed(2)
    layer = nn.MultiheadAttention(8, 2, **options).double()
    for p in layer.parameters():
        p.requires_grad = False
        p += sn.Tensor(np.random.default_rng(p.size).normal(size=p.shape))
        p.requires_grad = True
    return layer


@pytest.mark.parametrize(("masks", "seen", "added"), HEADS.values(), ids=HEADS)
def test_each_head_attends_to_its_own_features(masks, seen, added, device):
    layer = heads(batch_first=True)
    expected, by_head = heads_of(layer, X, Y, Y * 2, np.broadcast_to(seen, (3, 2, 5, 6)), added)
    y, weights = layer(X, Y, Y * 2, average_attn_weights=False, **masks)
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(weights.detach().numpy(), by_head, rtol=1e-9, atol=1e-14)
    twin = heads()
    y, weights = twin(*(x.swapaxes(0, 1) for x in (X, Y, Y * 2)), **masks)
    np.testing.assert_allclose(y.detach().numpy().swapaxes(0, 1), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(weights.detach().numpy(), by_head.mean(1), rtol=1e-9, atol=1e-14)
    assert layer(X, Y, Y, need_weights=False)[1] is None


def test_parameters_have_the_names_and_first_values_of_pytorch():
    sn.manual_seed(0)
    layer = nn.MultiheadAttention(64, 4)
    assert {name: p.shape for name, p in layer.named_parameters()} == {
        "in_proj_weight": (192, 64),
        "in_proj_bias": (192,),
        "out_proj.weight": (64, 64),
        "out_proj.bias": (64,),
    }
    p = layer.state_dict()
    assert not p["in_proj_bias"].any() and not p["out_proj.bias"].any()
    assert 0.99 < np.abs(p["in_proj_weight"]).max() / np.sqrt(6 / 256) <= 1
    assert 0.99 < np.abs(p["out_proj.weight"]).max() * 8 <= 1
    assert list(nn.MultiheadAttention(8, 2, bias=False).state_dict()) == ["in_proj_weight", "out_proj.weight"]


# --- positions, and the helper ----------------------------------------------------------------------------------------


def test_positions_are_sines_and_cosines_of_falling_frequency():
    x = RNG.standard_normal((50, 2, 6)).astype(np.float32)
    added = nn.PositionalEncoding(6)(x).numpy() - x
    turns = np.exp(1j * np.arange(50)[:, None] * 10000.0 ** -np.array([0, 1 / 3, 2 / 3]))
    np.testing.assert_allclose(added[:, 0, ::2], turns.imag, atol=1e-6)
    np.testing.assert_allclose(added[:, 1, 1::2], turns.real, atol=1e-6)
    in_batches = nn.PositionalEncoding(6, batch_first=True)(x.swapaxes(0, 1)).numpy()
    np.testing.assert_array_equal(in_batches.swapaxes(0, 1) - x, added)
    assert nn.PositionalEncoding(6).state_dict() == {} and nn.PositionalEncoding(5)(x[..., :5]).shape == (50, 2, 5)
    assert not nn.PositionalEncoding(6, dropout=1.0)(x).numpy().any()


def test_the_mask_of_later_steps_is_minus_infinity_above_the_diagonal():
    np.testing.assert_array_equal(
        nn.generate_square_subsequent_mask(3).numpy(), [[0, -np.inf, -np.inf], [0, 0, -np.inf], [0, 0, 0]]
    )


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: F.scaled_dot_product_attention(Q, K[..., :3], V), sn.ShapeError, r"expected query \(\.\.\., steps"),
        (lambda: F.scaled_dot_product_attention(Q, K, V[:, :, :5]), sn.ShapeError, "keys, features"),
        (lambda: F.scaled_dot_product_attention(Q, K, V, SEEN.T), sn.ShapeError, "mask that broadcasts"),
        (lambda: F.scaled_dot_product_attention(Q, K, V, SEEN.astype(int)), sn.DtypeError, "mask of booleans or"),
        (lambda: F.scaled_dot_product_attention(Q, K, V, SEEN, is_causal=True), sn.ConfigError, "None with is_causal"),
        (lambda: F.scaled_dot_product_attention(Q, K[..., :0, :], V[..., :0, :]), sn.ShapeError, "at least one key"),
        (lambda: nn.MultiheadAttention(8, 3), sn.ConfigError, "that 3 heads divide, got 8"),
        (lambda: heads(batch_first=True)(X, Y, X), sn.ShapeError, "as many values as keys"),
        (lambda: heads()(X[0], X, X), sn.ShapeError, r"query \(steps, n, 8\)"),
        (lambda: heads(batch_first=True)(X, Y, Y, PAD.T), sn.ShapeError, r"key_padding_mask: expected shape \(3, 6\)"),
        (lambda: heads(batch_first=True)(X, Y, Y, attn_mask=PAD), sn.ShapeError, r"attn_mask: expected shape \(5, 6\)"),
        (lambda: heads(batch_first=True)(X, Y, Y, PAD.astype(int)), sn.DtypeError, "expected booleans or float64"),
        (lambda: nn.PositionalEncoding(4)(X), sn.ShapeError, r"x \(steps, n, 4\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call()
    error_line(caught)
