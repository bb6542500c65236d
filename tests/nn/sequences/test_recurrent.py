"""Recurrent layers against loops in NumPy over each sequence alone; lengths, directions, layers, refusals."""

import warnings

import numpy as np
import pytest
from messages import error_line
from scipy.special import expit

import scratchnet as sn
from scratchnet import nn
from scratchnet.testing import gradcheck

RNG = np.random.default_rng(0)
KINDS = ("RNN", "GRU", "LSTM")
X = RNG.standard_normal((5, 3, 4))  # steps, sequences, features


def next_state(kind, weights, x, state):
    """(h, c) after a step of one sequence, as the papers have it."""
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    h, c = state
    a, b = weight_ih @ x + bias_ih, weight_hh @ h + bias_hh
    if kind == "RNN":
        return np.tanh(a + b), c
    if kind == "GRU":
        (a_r, a_z, a_n), (b_r, b_z, b_n) = np.split(a, 3), np.split(b, 3)
        r, z = expit(a_r + b_r), expit(a_z + b_z)
        return (1 - z) * np.tanh(a_n + r * b_n) + z * h, c
    i, f, g, o = np.split(a + b, 4)
    c = expit(f) * c + expit(i) * np.tanh(g)
    return expit(o) * np.tanh(c), c


def by_hand(kind, layer, x, state, lengths):
    """outputs (steps, n, directions * width), last h and c (layers * directions, n, width)."""
    parameters = layer.state_dict()
    directions = 1 + layer.bidirectional
    last_h, last_c = np.array(state[0]), np.array(state[1])
    for number in range(layer.num_layers):
        outputs = np.zeros((*x.shape[:2], directions * layer.hidden_size))
        for way in range(directions):
            suffix = f"_l{number}" + "_reverse" * way
            rows = layer.weight_hh_l0.shape[0]
            weights = [parameters[part + suffix] for part in ("weight_ih", "weight_hh")]
            weights += [parameters.get(part + suffix, np.zeros(rows)) for part in ("bias_ih", "bias_hh")]
            entry, columns = number * directions + way, slice(way * layer.hidden_size, (way + 1) * layer.hidden_size)
            for i, length in enumerate(lengths):
                known = state[0][entry, i], state[1][entry, i]
                for t in range(length - 1, -1, -1) if way else range(length):
                    known = next_state(kind, weights, x[t, i], known)
                    outputs[t, i, columns] = known[0]
                last_h[entry, i], last_c[entry, i] = known
        x = outputs
    return outputs, last_h, last_c


def layer_of(kind, *sizes, **options):
    sn.manual_seed(1)
    return getattr(nn, kind)(*sizes, **options).double()


def given(kind, h, c):
    return (h, c) if kind == "LSTM" else h


@pytest.mark.parametrize("lengths", [None, [5, 0, 2]], ids=["whole", "lengths"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}], ids=["plain", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_does_to_each_sequence_what_a_loop_does_to_it_alone(kind, options, lengths, device):
    layer = layer_of(kind, 4, 6, **options)
    h, c = RNG.standard_normal((2, layer.num_layers * (1 + layer.bidirectional), 3, 6))
    expected, *lasts = by_hand(kind, layer, X, (h, c), lengths or [5, 5, 5])
    outputs, last = layer(X, given(kind, h, c), lengths)
    np.testing.assert_allclose(outputs.detach().numpy(), expected, rtol=1e-12, atol=1e-14)
    for got, wanted in zip(last if kind == "LSTM" else [last], lasts, strict=False):
        np.testing.assert_allclose(got.detach().numpy(), wanted, rtol=1e-12, atol=1e-14)
    if lengths:
        assert not outputs.detach().numpy()[:, 1].any() and not outputs.detach().numpy()[2:, 2].any()


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_behind_a_sequence_changes_nothing_and_gets_no_gradient(kind):
    layer = layer_of(kind, 4, 6, num_layers=2, bidirectional=True)
    rest = X.copy()
    rest[2:, 1] = np.nan
    results = []
    for x in (X, rest):
        x = sn.Tensor(x, requires_grad=True)
        outputs, last = layer(x, lengths=[5, 2, 4])
        layer.zero_grad()
        (outputs.sum() + sum((state * state).sum() for state in (last if kind == "LSTM" else [last]))).backward()
        results.append([outputs.detach().numpy(), *(p.grad.numpy() for p in layer.parameters())])
        assert not x.grad.numpy()[2:, 1].any() and x.grad.numpy()[:2, 1].all()
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_match_differences(kind):
    layer = layer_of(kind, 2, 3, num_layers=2, bidirectional=True)
    states = RNG.standard_normal((2 if kind == "LSTM" else 1, 4, 2, 3))

    def last_and_outputs(x, *hx):
        outputs, last = layer(x, hx if kind == "LSTM" else hx[0], [3, 1])
        return sn.cat([outputs.flatten(), *(state.flatten() for state in (last if kind == "LSTM" else [last]))])

    gradcheck(last_and_outputs, [RNG.standard_normal((3, 2, 2)), *states], order=2, max_elements=4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_in_batch_order_is_the_layer_in_step_order(kind):
    layer, twin = layer_of(kind, 4, 6, bidirectional=True), layer_of(kind, 4, 6, bidirectional=True, batch_first=True)
    outputs, other = layer(X)[0], twin(X.swapaxes(0, 1))[0]
    np.testing.assert_array_equal(other.detach().numpy(), outputs.detach().numpy().swapaxes(0, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_is_one_step_of_a_layer(kind):
    layer, cell = layer_of(kind, 4, 6), layer_of(f"{kind}Cell", 4, 6)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    state = None
    for x in X:
        state = cell(x, state)
    last = layer(X)[1]
    for one, other in zip(state, last, strict=True) if kind == "LSTM" else [(state, last[0])]:
        np.testing.assert_array_equal(one.detach().numpy(), np.squeeze(other.detach().numpy()))


def test_a_relu_keeps_the_sign():
    layer = layer_of("RNN", 4, 6, nonlinearity="relu")
    h = np.zeros((3, 6))
    weight_ih, weight_hh, bias_ih, bias_hh = layer.state_dict().values()
    for x in X:
        h = np.maximum(x @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh, 0)
    np.testing.assert_allclose(layer(X)[1].detach().numpy()[0], h, rtol=1e-12)
    cell = nn.RNNCell(4, 6, nonlinearity="relu")
    assert cell(X[0].astype(np.float32)).detach().numpy().min() == 0


def test_parameters_have_the_names_shapes_and_first_values_of_pytorch():
    sn.manual_seed(0)
    layer = nn.GRU(3, 50, num_layers=2, bidirectional=True)
    one = "weight_ih{0} weight_hh{0} bias_ih{0} bias_hh{0}"
    suffixes = "_l0", "_l0_reverse", "_l1", "_l1_reverse"
    assert list(layer.state_dict()) == " ".join(map(one.format, suffixes)).split()
    assert [layer.weight_ih_l0.shape, layer.weight_ih_l1.shape, layer.bias_hh_l0.shape] == [
        (150, 3),
        (150, 100),
        (150,),
    ]
    assert nn.LSTM(3, 5).weight_hh_l0.shape == (20, 5) and nn.RNN(3, 5).weight_hh_l0.shape == (5, 5)
    values = np.concatenate([p.detach().numpy().ravel() for p in layer.parameters()])
    assert 0.999 < np.abs(values).max() * np.sqrt(50) <= 1 and abs(values.mean()) < 0.001
    assert list(nn.LSTMCell(3, 5, bias=False).state_dict()) == ["weight_ih", "weight_hh"]
    assert repr(layer) == "GRU(3, 50, num_layers=2, bidirectional=True)" and repr(nn.RNNCell(2, 3)) == "RNNCell(2, 3)"


def test_dropout_acts_between_layers_in_training():
    layer, plain = (layer_of("GRU", 4, 6, num_layers=2, dropout=p) for p in (1.0, 0.0))
    zeros = np.zeros((5, 3, 6))
    above = nn.GRU(6, 6).double()
    above.load_state_dict({name.replace("1", "0"): p for name, p in layer.state_dict().items() if "l1" in name})
    np.testing.assert_array_equal(layer(X)[0].detach().numpy(), above(zeros)[0].detach().numpy())
    np.testing.assert_array_equal(layer.eval()(X)[0].detach().numpy(), plain(X)[0].detach().numpy())
    with pytest.warns(UserWarning, match="dropout=0.5 acts between layers, and there is one"):
        nn.GRU(4, 6, dropout=0.5)


def test_a_detached_state_truncates_the_backward_pass():
    """What the second half adds to the gradient does not reach the first half."""
    layer = layer_of("LSTM", 4, 6)

    def gradient(truncated):
        layer.zero_grad()
        x = sn.Tensor(X, requires_grad=True)
        state = layer(x[:2])[1]
        layer(x[2:], tuple(s.detach() for s in state) if truncated else state)[0].sum().backward()
        return x.grad.numpy()

    assert gradient(False)[:2].all() and not gradient(True)[:2].any()
    np.testing.assert_array_equal(gradient(True)[2:], gradient(False)[2:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_recorded_step_reads_the_lengths_of_each_call(kind):
    def losses(wrap):
        sn.manual_seed(3)
        layer = getattr(nn, kind)(4, 6, num_layers=2, bidirectional=True, dropout=0.3)
        optimizer = sn.optim.Adam(layer.parameters(), lr=0.01)

        @wrap
        def step(x, lengths):
            optimizer.zero_grad()
            outputs, last = layer(x, lengths=lengths)
            loss = (outputs * outputs).mean() + (last[0] * 0.1).sum()
            loss.backward()
            optimizer.step()
            return loss

        rng = np.random.default_rng(5)
        calls = [(rng.standard_normal((5, 3, 4)).astype(np.float32), rng.integers(0, 6, 3)) for _ in range(5)]
        found = [step(sn.Tensor(x), sn.Tensor(lengths)).item() for x, lengths in calls]
        if wrap is sn.jit:
            assert len(step.programs) == 1
            with pytest.raises(sn.IndexOutOfRangeError, match=r"lengths: expected integers in \[0, 6\), got 6"):
                step(sn.Tensor(calls[0][0]), sn.Tensor([1, 6, 2]))
        return found, [p.detach().numpy().tobytes() for p in layer.parameters()]

    assert losses(sn.jit) == losses(lambda step: step)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: nn.GRU(4, 6)(X[0]), sn.ShapeError, r"x \(steps, n, 4\) of at least one step, got \(3, 4\)"),
        (lambda: nn.GRU(4, 6, batch_first=True)(X[0]), sn.ShapeError, r"take x\.unsqueeze\(0\)"),
        (lambda: nn.GRU(4, 6)(X[:0]), sn.ShapeError, "at least one step"),
        (lambda: nn.GRU(4, 6)(X, np.zeros((2, 3, 6))), sn.ShapeError, r"hx: expected shape \(1, 3, 6\)"),
        (lambda: nn.LSTM(4, 6)(X, np.zeros((1, 3, 6))), sn.ConfigError, r"hx: expected a pair \(h, c\)"),
        (lambda: nn.GRU(4, 6)(X, lengths=[1, 2]), sn.ShapeError, r"lengths: expected shape \(3,\)"),
        (lambda: nn.GRU(4, 6)(X, lengths=[1.0, 2, 3]), sn.DtypeError, "lengths: expected integers, got float32"),
        (lambda: nn.GRU(4, 6)(X, lengths=[1, -1, 3]), sn.IndexOutOfRangeError, r"integers in \[0, 6\), got -1"),
        (lambda: nn.RNN(4, 6, nonlinearity="gelu"), sn.ConfigError, "one of tanh, relu"),
        (lambda: nn.LSTM(4, 0), sn.ConfigError, "LSTM: hidden_size"),
        (lambda: nn.GRUCell(4, 6)(X), sn.ShapeError, r"GRUCell: expected x \(n, 4\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, words):
    with pytest.raises(error, match=words) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # float64 to float32
        call()
    error_line(caught)
