"""Layers of images: values from SciPy and from PyTorch's documentation, options, names, what they refuse."""

import numpy as np
import pytest
import scipy.signal
from messages import error_line, refused

import scratchnet as sn
from scratchnet import nn
from scratchnet.native import loops
from scratchnet.nn import functional as F

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 4, 9, 8)).astype(np.float32)
LINE = RNG.standard_normal((3, 4, 9)).astype(np.float32)

# layer, how it prints, its input, the shape of its output
LAYERS = [
    (lambda: nn.Conv2d(4, 6, 3), "Conv2d(4, 6, kernel_size=(3, 3))", X, (3, 6, 7, 6)),
    (
        lambda: nn.Conv2d(4, 6, (3, 2), stride=2, padding=(1, 0), dilation=2, groups=2, bias=False),
        "Conv2d(4, 6, kernel_size=(3, 2), stride=(2, 2), padding=(1, 0), dilation=(2, 2), groups=2, bias=False)",
        X,
        (3, 6, 4, 3),
    ),
    (lambda: nn.Conv2d(4, 4, 4, padding="same"), "Conv2d(4, 4, kernel_size=(4, 4), padding=same)", X, (3, 4, 9, 8)),
    (lambda: nn.Conv1d(4, 2, 3, 2), "Conv1d(4, 2, kernel_size=(3,), stride=(2,))", LINE, (3, 2, 4)),
    (
        lambda: nn.ConvTranspose2d(4, 2, 3, 2, 1, 1),
        "ConvTranspose2d(4, 2, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), output_padding=(1, 1))",
        X,
        (3, 2, 18, 16),
    ),
    (lambda: nn.MaxPool2d(2), "MaxPool2d(kernel_size=(2, 2), stride=(2, 2), padding=(0, 0))", X, (3, 4, 4, 4)),
    (lambda: nn.MaxPool1d(2, 1), "MaxPool1d(kernel_size=(2,), stride=(1,), padding=(0,))", LINE, (3, 4, 8)),
    (
        lambda: nn.AvgPool2d(2, ceil_mode=True),
        "AvgPool2d(kernel_size=(2, 2), stride=(2, 2), padding=(0, 0), ceil_mode=True)",
        X,
        (3, 4, 5, 4),
    ),
    (lambda: nn.AvgPool1d(3, 2, 1), "AvgPool1d(kernel_size=(3,), stride=(2,), padding=(1,))", LINE, (3, 4, 5)),
    (lambda: nn.AdaptiveAvgPool2d((2, None)), "AdaptiveAvgPool2d(output_size=(2, None))", X, (3, 4, 2, 8)),
    (lambda: nn.ZeroPad2d(1), "ZeroPad2d((1, 1, 1, 1))", X, (3, 4, 11, 10)),
    (lambda: nn.ReflectionPad2d((1, 2, 3, 4)), "ReflectionPad2d((1, 2, 3, 4))", X, (3, 4, 16, 11)),
    (lambda: nn.ReplicationPad2d((9, 0, 0, 9)), "ReplicationPad2d((9, 0, 0, 9))", X, (3, 4, 18, 17)),
    (lambda: nn.Dropout2d(0.3), "Dropout2d(p=0.3)", X, X.shape),
    (lambda: nn.Dropout1d(0.3), "Dropout1d(p=0.3)", LINE, LINE.shape),
    (lambda: nn.BatchNorm2d(4), "BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True)", X, (3, 4, 9, 8)),
]


def test_options_at_their_usual_values_are_not_printed():
    assert repr(nn.ConvTranspose2d(4, 2, 3)) == "ConvTranspose2d(4, 2, kernel_size=(3, 3))"


@pytest.mark.parametrize(("make", "text", "x", "shape"), LAYERS, ids=[text for _, text, _, _ in LAYERS])
def test_each_layer_prints_itself_gives_its_shape_and_gets_gradients(make, text, x, shape, device):
    layer = make()
    assert repr(layer) == text
    for given in (x, x[:0]):
        if len(given) or not isinstance(layer, nn.BatchNorm2d):
            y = layer(sn.Tensor(given, requires_grad=True))
            assert y.shape == (len(given), *shape[1:]) and y.dtype == np.float32 and y.device == device
    y = layer(x)
    (y * RNG.standard_normal(shape).astype(y.dtype)).sum().backward() if y.requires_grad else None
    assert all(p.grad is not None and np.abs(p.grad.numpy()).sum() > 0 for p in layer.parameters())


def correlated(x, weight, bias):
    """Full images, by SciPy: the sum over channels of each plane correlated with its part of a filter."""
    return np.array(
        [
            [sum(scipy.signal.correlate(p, q, "valid") for p, q in zip(image, f, strict=True)) + b]
            for image in x
            for f, b in zip(weight, bias, strict=True)
        ]
    ).reshape(len(x), len(weight), x.shape[2] - weight.shape[2] + 1, -1)


# Sizes around tiles (12 rows, 16 lanes), panels (384 x 224), images that share a panel, rows longer than a panel
SIZES = [
    (1, 1, 6, 28, 28, 5, 5),
    (3, 17, 13, 9, 9, 3, 3),
    (5, 45, 33, 7, 6, 3, 3),
    (2, 3, 257, 5, 5, 2, 2),
    (2, 2, 3, 3, 460, 1, 7),
    (2, 64, 1, 18, 15, 3, 3),
]


@pytest.mark.threads
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_convolution_is_scipys_correlation_at_all_sizes(size, dtype):
    n, c, o, h, w, kh, kw = size
    x, weight, bias = (RNG.standard_normal(s) for s in ((n, c, h, w), (o, c, kh, kw), (o,)))
    leaves = [sn.Tensor(a.astype(dtype), requires_grad=True) for a in (x, weight, bias)]
    y = F.conv2d(*leaves)
    expected, terms = correlated(x, weight, bias), c * kh * kw
    bound = 4 * terms * np.finfo(dtype).eps
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=0, atol=bound * np.abs(expected).max())

    g = RNG.standard_normal(y.shape)
    y.backward(sn.Tensor(g.astype(dtype)))
    # d<g, y>/dx correlates g with the filters turned around; d<g, y>/dweight correlates x with g
    full = np.pad(g, [(0, 0), (0, 0), (kh - 1, kh - 1), (kw - 1, kw - 1)])
    back = correlated(full, weight.swapaxes(0, 1)[:, :, ::-1, ::-1], np.zeros(c))
    toward_weight = correlated(x.swapaxes(0, 1), g.swapaxes(0, 1), np.zeros(o)).swapaxes(0, 1)
    for leaf, wanted, count in zip(
        leaves, (back, toward_weight, g.sum((0, 2, 3))), (o * kh * kw, g.size, g.size), strict=True
    ):
        bound = 4 * count**0.5 * np.finfo(dtype).eps * max(1, np.abs(wanted).max()) * 4
        np.testing.assert_allclose(leaf.grad.numpy(), wanted, rtol=0, atol=bound)


@pytest.mark.parametrize("pairs", [((1, 2), (3, 0)), ((0, 0), (4, 4)), ((2, 0),)], ids=str)
@pytest.mark.parametrize(("mode", "numpys"), [("reflect", "reflect"), ("replicate", "edge"), ("circular", "wrap")])
def test_padding_is_numpys_with_the_last_axis_first(mode, numpys, pairs, device):
    x, given = RNG.standard_normal((2, 5, 6)), [n for pair in pairs for n in pair]
    widths = [(0, 0)] * (x.ndim - len(pairs)) + list(pairs)[::-1]
    np.testing.assert_array_equal(F.pad(x, given, mode).numpy(), np.pad(x, widths, numpys))
    np.testing.assert_array_equal(F.pad(x, given, value=2.5).numpy(), np.pad(x, widths, constant_values=2.5))
    sn.testing.gradcheck(lambda t: F.pad(t, given, mode) ** 2, [sn.Tensor(x, requires_grad=True)])


@pytest.mark.parametrize(
    ("pad", "options"),
    [
        ((1, 2, 3), {}),
        ((1, 1) * 5, {}),
        ((-1, 1), {}),
        ((8, 0), {"mode": "reflect"}),
        ((0, 9), {"mode": "circular"}),
        ((1, 1), {"mode": "reflect", "value": 1.0}),
        ((1, 1), {"mode": "mirror"}),
        (3, {}),
    ],
    ids=str,
)
def test_padding_that_has_no_meaning_is_refused(pad, options):
    refused(sn.ScratchnetError, lambda: F.pad(X, pad, **options))


@pytest.mark.parametrize(("function", "x"), [(F.dropout2d, X), (F.dropout1d, LINE)])
def test_channels_are_dropped_as_a_whole_also_infinite_ones(function, x, device):
    sn.manual_seed(0)
    x = np.where(RNG.random(x.shape) < 0.1, np.inf, x) + 0.0
    leaf = sn.Tensor(np.concatenate([x] * 8), requires_grad=True)
    y = function(leaf, 0.25)
    y.backward(np.ones(y.shape, y.dtype))
    kept = leaf.grad.numpy()
    channels = kept.reshape(*kept.shape[:2], -1)
    assert (channels == channels[..., :1]).all() and set(np.unique(kept)) == {0.0, kept.dtype.type(1 / 0.75)}
    np.testing.assert_array_equal(y.detach().numpy(), np.where(kept > 0, leaf.detach().numpy() * kept, 0))
    assert 0.6 < (kept > 0).mean() < 0.9
    assert function(leaf, 0.5, training=False) is leaf and not function(x, 1.0).numpy().any()


def test_a_recorded_step_drops_other_channels_each_time_as_the_plain_one():
    def step(x):
        return F.dropout2d(x, 0.5)

    seen = []
    for function in (step, sn.jit(step)):
        sn.manual_seed(0)
        seen.append(np.stack([function(sn.Tensor(X)).numpy() for _ in range(4)]))
    np.testing.assert_array_equal(*seen)
    assert len({part.tobytes() for part in seen[1]}) == 4


@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (3, 4, 7), (1, 4, 1, 1)], ids=str)
def test_batch_norm_in_evaluation_uses_the_running_moments(shape, device):
    x, (mean, variance, weight, bias) = RNG.standard_normal(shape), RNG.random((4, 4)) + 0.5
    column = (4,) + (1,) * (len(shape) - 2)
    expected = (x - mean.reshape(column)) / np.sqrt(variance.reshape(column) + 1e-3) * weight.reshape(column)

    layer = nn.BatchNorm1d(4, eps=1e-3) if len(shape) < 4 else nn.BatchNorm2d(4, eps=1e-3)
    values = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}
    layer.double().eval().load_state_dict(values)
    leaf = sn.Tensor(x, requires_grad=True)
    y = layer(leaf)
    np.testing.assert_allclose(y.detach().numpy(), expected + bias.reshape(column), rtol=1e-12, atol=1e-12)
    y.sum().backward()
    slope = (weight / np.sqrt(variance + 1e-3)).reshape(column)
    np.testing.assert_allclose(leaf.grad.numpy(), np.broadcast_to(slope, shape), rtol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: F.conv2d(X, np.ones((1, 4, 3, 3), np.float32), padding=2**30),
        lambda: F.conv_transpose2d(X, np.ones((4, 1, 3, 3), np.float32), stride=2**28),
        lambda: F.adaptive_avg_pool2d(X, 2**31 - 1),
        lambda: F.pad(X, [2**30] * 4),
        lambda: F.pad(X, [2**30] * 4, "replicate"),
        lambda: sn.zeros(2**31, 2**31),
        lambda: nn.Linear(2**31 - 1, 2**31 - 1),
        lambda: nn.Conv2d(2**31 - 1, 2**31 - 1, 3),
    ],
)
def test_a_result_that_has_too_many_elements_to_count_is_refused(make):
    assert f"at most {2**48} elements" in refused(sn.ShapeError, make)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_same_padding_is_scipys_and_puts_an_odd_zero_last(size):
    x, weight = RNG.standard_normal((1, 1, 6, 7)), RNG.standard_normal((1, 1, size, size))
    before = (size - 1) // 2
    padded = np.pad(x[0, 0], (before, size - 1 - before))
    y = F.conv2d(sn.Tensor(x), sn.Tensor(weight), padding="same").numpy()
    np.testing.assert_allclose(y[0, 0], scipy.signal.correlate(padded, weight[0, 0], "valid"), atol=1e-12)


def test_max_pooling_sends_its_gradient_to_the_first_largest_and_nan_is_the_largest():
    x = sn.Tensor([[[[1.0, 3.0, 3.0, 2.0], [3.0, 0.0, np.nan, 9.0]]]], requires_grad=True)
    y = F.max_pool2d(x, 2)
    np.testing.assert_array_equal(y.detach().numpy(), [[[[3.0, np.nan]]]])
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [[[[0, 1, 0, 0], [0, 0, 1, 0]]]])


def test_ceil_mode_and_padding_count_as_in_pytorch():
    x = np.arange(1.0, 6.0, dtype=np.float32).reshape(1, 1, 5)
    # torch.nn.functional.avg_pool1d(x, 2, 2, 1, ceil_mode=True, count_include_pad=...)
    for counts, expected in ((True, [0.5, 2.5, 4.5]), (False, [1.0, 2.5, 4.5])):
        y = F.avg_pool1d(x, 2, 2, 1, True, counts).numpy()
        np.testing.assert_array_equal(y[0, 0], expected)
    np.testing.assert_array_equal(F.max_pool1d(x, 2, 2, 0, 1, True).numpy()[0, 0], [2, 4, 5])
    np.testing.assert_array_equal(F.max_pool1d(x, 2, 2).numpy()[0, 0], [2, 4])


def test_adaptive_pooling_takes_overlapping_windows_where_sizes_do_not_divide():
    x = np.arange(5.0).reshape(1, 1, 1, 5)  # outputs 0 and 1 of 3 see elements 0-1 and 1-3
    np.testing.assert_allclose(F.adaptive_avg_pool2d(x, (1, 3)).numpy()[0, 0, 0], [0.5, 2, 3.5])


def test_an_infinity_or_nan_reaches_only_the_adaptive_windows_that_hold_it():
    x = sn.tensor([[[[np.inf, 1.0, 2.0, 3.0, np.nan]]]], requires_grad=True)
    y = F.adaptive_avg_pool2d(x, (1, 3))
    np.testing.assert_array_equal(y.detach().numpy()[0, 0, 0], [np.inf, 2, np.nan])
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy()[0, 0, 0], [1 / 2, 5 / 6, 1 / 3, 5 / 6, 1 / 2], rtol=1e-6)


@pytest.mark.threads
def test_a_wide_window_is_checked_at_once():
    x = np.array([[[1.0, 5.0, 3.0]]], np.float32)
    assert F.max_pool1d(x, 100_000, 1, 50_000).tolist() == [[[5.0] * 4]]


def test_with_ceil_mode_a_window_may_be_larger_than_x():
    x = np.array([[[1.0, 5.0, 3.0]]], np.float32)
    assert F.max_pool1d(x, 4, ceil_mode=True).tolist() == [[[5.0]]]
    assert F.avg_pool1d(x, 4, ceil_mode=True).tolist() == [[[3.0]]]  # of what there is, as in PyTorch
    with pytest.raises(sn.ShapeError, match="to hold a window"):
        F.max_pool1d(x, 4, 1, ceil_mode=True)


@pytest.mark.threads
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_bits_depend_neither_on_threads_nor_on_the_rest_of_the_batch(groups, monkeypatch):
    monkeypatch.setattr(loops, "PARALLEL_FROM", 1)
    x = np.repeat(X, 6, axis=0)
    layer = nn.Conv2d(4, 8, 3, padding=1, groups=groups)
    results = []
    threads = sn.get_num_threads()
    try:
        for n in (1, threads):
            sn.set_num_threads(n)
            layer.zero_grad()
            t = sn.Tensor(x, requires_grad=True)
            y = layer(t)
            (y * y).sum().backward()
            results.append([a.numpy().tobytes() for a in (y.detach(), t.grad, layer.weight.grad, layer.bias.grad)])
    finally:
        sn.set_num_threads(threads)
    assert results[0] == results[1]
    assert layer(x[4:5]).detach().numpy().tobytes() == y.detach().numpy()[4:5].tobytes()


def test_depthwise_convolution_is_that_of_each_plane():
    layer = nn.Conv2d(4, 4, 3, groups=4)
    y = layer(X).detach().numpy()
    for c in range(4):
        plane = F.conv2d(X[:, c : c + 1], layer.weight[c : c + 1], layer.bias[c : c + 1]).detach().numpy()
        np.testing.assert_allclose(y[:, c : c + 1], plane, atol=1e-5)


def test_state_has_pytorchs_names_and_shapes():
    assert {k: v.shape for k, v in nn.Conv2d(4, 6, (3, 2), groups=2).state_dict().items()} == {
        "weight": (6, 2, 3, 2),
        "bias": (6,),
    }
    assert nn.ConvTranspose2d(4, 6, 3, groups=2).weight.shape == (4, 3, 3, 3)
    assert nn.Conv1d(4, 6, 3).weight.shape == (6, 4, 3)


def test_convolutions_start_uniform_within_one_over_the_root_of_a_filter():
    sn.manual_seed(0)
    layer = nn.Conv2d(16, 300, 5)
    for p in layer.parameters():
        assert np.abs(p.detach().numpy()).max() <= 0.05
    np.testing.assert_allclose(layer.weight.detach().numpy().std(), 0.05 / np.sqrt(3), rtol=0.02)


REFUSED = [
    (lambda: F.conv2d(X, np.zeros((6, 3, 3, 3), np.float32)), "of 1 groups, got (3, 4, 9, 8) and (6, 3, 3, 3)"),
    (lambda: F.conv2d(X[0], np.zeros((6, 4, 3, 3), np.float32)), "of a single one take x.unsqueeze(0)"),
    (lambda: F.conv2d(X, np.zeros((6, 4, 10, 3), np.float32)), "to hold a window of (10, 3), got (3, 4, 9, 8)"),
    (lambda: F.conv2d(X, np.zeros((6, 4, 3, 3), np.float32), np.zeros(5, np.float32)), "expected bias (6,), got (5,)"),
    (lambda: F.conv2d(X, np.zeros((6, 4, 3, 3), np.float32), stride=2, padding="same"), "expected stride 1"),
    (lambda: nn.Conv2d(3, 6, 3, groups=2), "expected in_channels that 2 groups divide, got 3"),
    (lambda: nn.Conv2d(3, 6, (3, 3, 3)), "kernel_size: expected an integer, or 2 of them, got (3, 3, 3)"),
    (lambda: nn.Conv2d(3, 6, 3, padding="full"), "padding: expected one of same, valid, got 'full'"),
    (lambda: nn.MaxPool2d(2, padding=2), "padding: expected at most half of kernel_size (2, 2), got 2"),
    (lambda: F.max_pool2d(X, 10), "to hold a window of (10, 10), got (3, 4, 9, 8)"),
    (lambda: F.max_pool2d(X[:, :, :1, :1], 2, 1, 1, 2), "expected an element of x in each window"),
    (lambda: nn.BatchNorm2d(4)(LINE), "BatchNorm2d: expected x (N, C, H, W), got (3, 4, 9)"),
    (lambda: nn.ConvTranspose2d(4, 2, 3, output_padding=1), "less than stride or dilation, got 1"),
    (lambda: F.conv_transpose2d(X[:, :, :1, :1], np.zeros((4, 2, 1, 1), np.float32), padding=1), "less padding"),
    (lambda: nn.Conv2d(4, 2, 3, 2, padding="same"), "expected stride 1 with padding 'same', got stride (2, 2)"),
    (lambda: F.conv2d(X[:, :0], np.zeros((6, 0, 3, 3), np.float32)), "at least one channel and element"),
    (
        lambda: F.conv_transpose2d(X, np.zeros((3, 2, 3, 3), np.float32)),
        "of 1 groups, got (3, 4, 9, 8) and (3, 2, 3, 3)",
    ),
    (
        lambda: F.conv_transpose2d(X, np.zeros((4, 2, 3, 3), np.float32), stride=2, output_padding=2),
        "output_padding below stride or dilation, got (2, 2)",
    ),
    (lambda: F.max_pool2d(X[0], 2), "with elements, got (4, 9, 8); of a single one take x.unsqueeze(0)"),
    (lambda: F.max_pool2d(X[:, :, :0], 2), "expected x (n, c, h, w) with elements, got (3, 4, 0, 8)"),
    (lambda: nn.AdaptiveAvgPool2d((1, 2, 3)), "output_size: expected an integer or None, or two of them"),
    (lambda: F.avg_pool2d(X, 3, padding=2), "padding of at most half of kernel_size (3, 3), got (2, 2)"),
]


@pytest.mark.parametrize(("call", "part"), REFUSED, ids=[part for _, part in REFUSED])
def test_mistakes_are_refused_in_one_line(call, part):
    with pytest.raises(sn.ScratchnetError) as error:
        call()
    assert part in error_line(error)


@pytest.mark.parametrize("x", [X, RNG.standard_normal((3, 4, 14, 16)).astype(np.float32)], ids=["packed", "in place"])
def test_a_recorded_step_has_the_bits_of_the_plain_one_and_a_convolution_runs_with_its_moments(x):
    results = []
    for record in (lambda step: step, sn.jit):
        sn.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3, 2),
            nn.ReLU(), nn.AvgPool2d(1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        optimizer = sn.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        @record
        def step(x, labels, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), labels)
            loss.backward()
            optimizer.step()
            return loss

        losses = [step(x, np.array([0, 1, 3])).item() for _ in range(3)]
        results.append((losses, [np.asarray(v).tobytes() for v in model.state_dict().values()]))
    assert results[0] == results[1]
    explained = step.explain()
    assert ", 0 calls by Python" in explained and "conv2d > channel_moments" in explained
