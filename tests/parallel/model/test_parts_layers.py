"""Layers by parts: values against the whole layer in float64, bits against NumPy that folds P partial products."""

import functools
import itertools
import operator

import numpy as np
import pytest

import scratchnet as sn
from scratchnet import nn
from scratchnet.parallel.model.parts import network
from scratchnet.random import Generator, using

RNG = np.random.default_rng(0)


def tree(parts):
    """The sum of these arrays as comm/tree.py defines it: of the largest power of two below, and of the rest."""
    if len(parts) == 1:
        return parts[0]
    half = 1 << (len(parts) - 1).bit_length() - 1
    return tree(parts[:half]) + tree(parts[half:])


def blocks(n, parts):
    ends = [p * n // parts for p in range(parts + 1)]
    return [slice(lo, hi) for lo, hi in itertools.pairwise(ends)]


def results(model, *inputs):
    """Of a model in training: outputs, and the gradients of inputs and parameters of sum(y * c), c fixed."""
    tensors = [sn.Tensor(x, requires_grad=x.dtype.kind == "f") for x in inputs]
    model.zero_grad()
    with using(Generator(7, 100)) as generator:
        y = model(*tensors)
        y = y[0] if isinstance(y, tuple) else y
    c = sn.Tensor(np.random.default_rng(1).integers(-3, 4, y.shape).astype(y.dtype))
    (y * c).sum().backward()
    grads = [t.grad.numpy() for t in (*tensors, *model.parameters()) if t.requires_grad]
    return generator.stream, [y.detach().numpy(), *grads]


class Attention(nn.Module):
    def __init__(self, mask=None, **options):
        self.attention, self.mask = nn.MultiheadAttention(6, 3, **options), mask

    def forward(self, x):
        y, weights = self.attention(x, x, x, attn_mask=self.mask, average_attn_weights=False)
        of_steps = (weights * np.array([[[1.0]], [[2.0]], [[3.0]]]) ** 2)[..., 0].sum(1)  # heads are not alike
        return y + (of_steps if self.attention.batch_first else of_steps.transpose(0, 1)).unsqueeze(2)


X, IMAGES, ROWS = RNG.normal(size=(5, 7)), RNG.normal(size=(3, 5, 6, 6)), RNG.integers(0, 9, (4, 3))
STEPS = RNG.normal(size=(4, 2, 6))
PAIR = {"0": "columns", "2": "rows"}
CASES = {
    "columns": (lambda: nn.Sequential(nn.Linear(7, 5)), {"0": "columns"}, X),
    "rows": (lambda: nn.Sequential(nn.Linear(7, 5)), {"0": "rows"}, X),
    "rows without bias": (lambda: nn.Sequential(nn.Linear(7, 5, bias=False)), {"0": "rows"}, X),
    "a pair": (lambda: nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3)), PAIR, X),
    "axes before": (lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), PAIR, STEPS),
    "dropout": (
        lambda: nn.Sequential(nn.Linear(7, 5), nn.Dropout(0.5), nn.GELU(), nn.Linear(5, 8), nn.Dropout(0.5)),
        {"0": "columns", "3": "rows"},
        X,
    ),
    "all dropped": (lambda: nn.Sequential(nn.Linear(7, 5), nn.Dropout(1.0), nn.Linear(5, 3)), PAIR, X),
    "nested": (lambda: nn.Sequential(nn.Sequential(nn.Linear(7, 5), nn.ReLU()), nn.Tanh()), {"0.0": "columns"}, X),
    "channels": (
        lambda: nn.Sequential(
            nn.Conv2d(5, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5), nn.Conv2d(4, 3, 2)
        ),
        {"0": "columns", "4": "rows"},
        IMAGES,
    ),
    "channels, 1d": (
        lambda: nn.Sequential(nn.Conv1d(5, 4, 3, stride=2), nn.Tanh(), nn.Conv1d(4, 3, 1)), PAIR, IMAGES[:, :, 0]
    ),
    "an embedding": (lambda: nn.Sequential(nn.Embedding(9, 4)), {"0": "rows"}, ROWS),
    "padding": (lambda: nn.Sequential(nn.Embedding(9, 4, padding_idx=4)), {"0": "rows"}, ROWS),
    "heads": (Attention, {"attention": "heads"}, STEPS),
    "heads, batch first": (
        lambda: Attention(RNG.normal(size=(12, 2, 2)), batch_first=True, dropout=0.5, bias=False),
        {"attention": "heads"},
        STEPS,
    ),
    "a transformer": (
        lambda: nn.TransformerEncoderLayer(6, 3, 5, dropout=0.3),
        {"self_attn": "heads", "linear1": "columns", "linear2": "rows"},
        STEPS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_parts_give_the_values_of_the_whole_layer(case, parts):
    """Also with blocks of uneven sizes; dropout drops what it would in the whole layer, and takes as many streams."""
    make, plan, x = CASES[case]
    sn.manual_seed(0)
    model = make().double()
    stream, whole = results(model, x)
    took, by_parts = results(network(model, parts, plan), x)
    assert took == stream
    for found, expected in zip(by_parts, whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("case", ["columns", "an embedding", "padding"])
def test_where_no_sum_crosses_parts_the_bits_are_those_of_the_whole_layer(case):
    make, plan, x = CASES[case]
    model, x = make(), x.astype(np.float32) if x.dtype.kind == "f" else x
    model[0].load_state_dict({k: np.where(v > 1, np.float32(-0.0), v) for k, v in model[0].state_dict().items()})
    whole, by_parts = (results(m, x)[1] for m in (model, network(model, 3, plan)))
    crossing = {1} if case == "columns" else set()  # the gradient of x
    same = [a.tobytes() == b.tobytes() for a, b in zip(whole, by_parts, strict=True)]
    assert all(is_same for i, is_same in enumerate(same) if i not in crossing)


@pytest.mark.parametrize("k", [1, 7, 33, 129])
@pytest.mark.parametrize("m", [1, 3, 33])
def test_products_give_a_block_the_bits_of_the_whole(m, k):
    """Forward, of the weights, and of the inputs: on the cpu no element depends on how wide the block is."""
    x, w, g = (RNG.normal(size=shape).astype(np.float32) for shape in ((m, k), (k, 67), (m, 67)))
    whole = [sn.Tensor(a) @ sn.Tensor(b) for a, b in ((x, w), (x.T, g), (g, w.T))]
    for parts in (2, 5):
        columns, rows = blocks(67, parts), blocks(k, parts)
        found = [sn.cat([sn.Tensor(x) @ sn.Tensor(w[:, p]) for p in columns], 1)]
        found += [sn.cat([sn.Tensor(x.T) @ sn.Tensor(g[:, p]) for p in columns], 1)]
        found += [sn.cat([sn.Tensor(g) @ sn.Tensor(w[p]).T for p in rows if p.start < p.stop], 1)]
        assert [a.numpy().tobytes() for a in found] == [a.numpy().tobytes() for a in whole]


def drawn(n, m, parts):
    """x (64, n) and w (n, m) of integers: partial products over a block are exact, and sums of them are not."""
    most = int(np.sqrt(2**24 // -(-n // parts)))
    return (RNG.integers(most // 2, most + 1, shape).astype(np.float32) for shape in ((64, n), (n, m)))


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("parts", [2, 3, 5, 6])
def test_rows_fold_partial_products_along_the_tree_then_add_the_bias(parts, device):
    x, w = drawn(13, 4, parts)
    b = RNG.normal(size=4).astype(np.float32)
    with sn.default_device(device):
        layer = nn.Linear(13, 4)
        layer.load_state_dict({"weight": w, "bias": b})
        found = network(layer, parts, {"": "rows"})(sn.Tensor(x)).detach().numpy()
    partial = [x[:, p] @ w[p] for p in blocks(13, parts)]
    assert found.tobytes() == (tree(partial) + b).tobytes()
    if parts > 3:  # then the order is seen
        assert found.tobytes() != (functools.reduce(operator.add, partial) + b).tobytes()


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("parts", [2, 3, 5, 6])
def test_the_gradient_of_what_all_parts_read_is_folded_along_the_tree(parts, device):
    g, w = drawn(13, 4, parts)  # g (64, 13) of the columns; w.T are the weights (4, 13)
    with sn.default_device(device):
        layer = nn.Linear(4, 13, bias=False)
        layer.load_state_dict({"weight": w.T.copy()})
        t = sn.Tensor(np.ones((64, 4), np.float32), requires_grad=True)
        network(layer, parts, {"": "columns"})(t).backward(g)
    partial = [g[:, p] @ w[p] for p in blocks(13, parts)]
    assert t.grad.numpy().tobytes() == tree(partial).tobytes()
    if parts > 3:
        assert t.grad.numpy().tobytes() != functools.reduce(operator.add, partial[::-1]).tobytes()


def test_an_index_that_no_part_has_is_refused():
    table = network(nn.Embedding(5, 2), 2, {"": "rows"})
    with pytest.raises(sn.errors.IndexOutOfRangeError, match=r"embedding: expected .* got"):
        table(np.array([0, 5]))
