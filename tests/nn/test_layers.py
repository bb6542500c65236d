"""Layers: shapes, options, starting values, what training mode changes, and what they refuse."""

import numpy as np
import pytest
from messages import error_line

import scratchnet as sn
from scratchnet import nn

RNG = np.random.default_rng(0)
X = RNG.standard_normal((6, 4)).astype(np.float32)

# layer, how it prints, its input, the shape of its output
LAYERS = [
    (lambda: nn.Linear(4, 3), "Linear(in_features=4, out_features=3, bias=True)", X, (6, 3)),
    (lambda: nn.Linear(4, 3, bias=False), "Linear(in_features=4, out_features=3, bias=False)", X, (6, 3)),
    (nn.ReLU, "ReLU()", X, (6, 4)),
    (nn.Tanh, "Tanh()", X, (6, 4)),
    (nn.Sigmoid, "Sigmoid()", X, (6, 4)),
    (nn.GELU, "GELU()", X, (6, 4)),
    (lambda: nn.Dropout(0.3), "Dropout(p=0.3)", X, (6, 4)),
    (lambda: nn.LayerNorm(4), "LayerNorm((4,), eps=1e-05, elementwise_affine=True)", X, (6, 4)),
    (lambda: nn.LayerNorm((6, 4), 0.1, False), "LayerNorm((6, 4), eps=0.1, elementwise_affine=False)", X, (6, 4)),
    (lambda: nn.BatchNorm1d(4), "BatchNorm1d(4, eps=1e-05, momentum=0.1, affine=True)", X, (6, 4)),
    (lambda: nn.BatchNorm1d(4, affine=False), "BatchNorm1d(4, eps=1e-05, momentum=0.1, affine=False)", X, (6, 4)),
    (lambda: nn.Embedding(9, 2), "Embedding(9, 2)", [[1, 8, 0]], (1, 3, 2)),
    (lambda: nn.Embedding(9, 2, padding_idx=-1), "Embedding(9, 2, padding_idx=8)", [[1, 8, 0]], (1, 3, 2)),
    (lambda: nn.EmbeddingBag(9, 2), "EmbeddingBag(9, 2, mode='mean')", [[1, 8, 0]], (1, 2)),
    (
        lambda: nn.EmbeddingBag(9, 2, "max", True, padding_idx=-1),
        "EmbeddingBag(9, 2, mode='max', include_last_offset=True, padding_idx=8)",
        [[1, 8, 0], [8, 8, 8]],
        (2, 2),
    ),
    (nn.Flatten, "Flatten(start_dim=1, end_dim=-1)", np.zeros((6, 2, 3, 4)), (6, 24)),
    (lambda: nn.Flatten(0, 1), "Flatten(start_dim=0, end_dim=1)", np.zeros((6, 2, 3, 4)), (12, 3, 4)),
]


@pytest.mark.parametrize(("make", "text", "x", "shape"), LAYERS, ids=[text for _, text, _, _ in LAYERS])
def test_each_layer_prints_itself_and_gives_its_shape(make, text, x, shape, device):
    layer = make()
    assert repr(layer) == text
    for argument in (x, sn.Tensor(x)):
        y = layer(argument)
        assert isinstance(y, sn.Tensor) and y.shape == shape and y.device == device
    assert all(p.dtype == np.float32 for p in layer.parameters())


@pytest.mark.parametrize(("make", "text", "x", "shape"), LAYERS, ids=[text for _, text, _, _ in LAYERS])
def test_each_parameter_of_a_layer_gets_a_gradient(make, text, x, shape):
    layer = make()
    y = layer(x)
    (y * RNG.standard_normal(shape).astype(y.dtype)).sum().backward() if y.requires_grad else None
    assert all(p.grad is not None and np.abs(p.grad.numpy()).sum() > 0 for p in layer.parameters())


# --- linear ----------------------------------------------------------------------------------------------------------


def test_linear_computes_x_times_weight_plus_bias():
    layer = nn.Linear(4, 3)
    weight, bias = (p.detach().numpy().astype(np.float64) for p in layer.parameters())
    assert weight.shape == (4, 3)  # (in, out)
    np.testing.assert_allclose(layer(X).detach().numpy(), X @ weight + bias, rtol=1e-5, atol=1e-6)


def test_linear_starts_uniform_within_one_over_the_root_of_fan_in():
    sn.manual_seed(0)  # in one stream of 20 none of 3,000 numbers comes that near to the end of the range
    layer = nn.Linear(100, 3000)
    for p in layer.parameters():
        values = p.detach().numpy()
        assert np.abs(values).max() <= 0.1 and np.abs(values).max() > 0.0999
        np.testing.assert_allclose(values.std(), 0.1 / np.sqrt(3), rtol=0.05)
        assert abs(values.mean()) < 0.1 / np.sqrt(3) / np.sqrt(values.size) * 5


# --- normalisation ---------------------------------------------------------------------------------------------------


def test_norms_start_as_plain_standardisation():
    np.testing.assert_allclose(nn.LayerNorm(4)(X).detach().numpy().mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(nn.LayerNorm(4)(X).detach().numpy().std(1), 1, atol=1e-3)
    y = nn.BatchNorm1d(4)(X).detach().numpy()
    np.testing.assert_allclose([y.mean(0), y.std(0)], [[0] * 4, [1] * 4], atol=1e-4)


def test_batch_norm_keeps_running_statistics_and_uses_them_in_evaluation(device):
    layer, batches = nn.BatchNorm1d(4, momentum=0.2), RNG.standard_normal((5, 8, 4)).astype(np.float32)
    mean, var = np.zeros(4), np.ones(4)
    for batch in batches:
        layer(batch)
        mean, var = 0.8 * mean + 0.2 * batch.mean(0), 0.8 * var + 0.2 * batch.var(0, ddof=1)
    np.testing.assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(layer.running_var.numpy(), var, rtol=1e-5)
    y = layer.eval()(X).detach().numpy()
    np.testing.assert_allclose(y, (X - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-5)
    assert set(layer.state_dict()) == {"weight", "bias", "running_mean", "running_var"}


def test_no_graph_hangs_on_the_running_statistics():
    layer = nn.BatchNorm1d(4)
    layer(sn.Tensor(X, requires_grad=True))
    assert layer.running_mean.is_leaf and not layer.running_mean.requires_grad


# --- dropout, embedding, flatten -------------------------------------------------------------------------------------


def test_dropout_drops_in_training_only():
    layer = nn.Dropout(0.5)
    x = np.ones((50, 50), np.float32)
    assert set(np.unique(layer(x).numpy())) == {0.0, 2.0}
    assert not np.array_equal(layer(x).numpy(), layer(x).numpy())
    np.testing.assert_array_equal(layer.eval()(x).numpy(), x)


def test_embedding_rows_start_standard_normal_but_for_the_padding_row():
    layer = nn.Embedding(1000, 50, padding_idx=3)
    rows = layer.weight.detach().numpy()
    np.testing.assert_array_equal(rows[3], 0)
    rest = np.delete(rows, 3, axis=0)
    assert abs(rest.mean()) < 5 / np.sqrt(rest.size) and abs(rest.std() - 1) < 0.02


def test_the_padding_row_stays_where_it_is_when_the_others_train():
    layer = nn.Embedding(4, 2, padding_idx=0)
    optimizer = sn.optim.SGD(layer.parameters(), 0.1)
    before = layer.weight.detach().numpy().copy()
    layer([0, 1, 0, 2]).sum().backward()
    optimizer.step()
    np.testing.assert_allclose(
        layer.weight.detach().numpy() - before, np.array([0, -0.1, -0.1, 0])[:, None] * np.ones(2), atol=1e-6
    )


def test_flatten_takes_batches_of_no_rows():
    assert nn.Flatten()(np.zeros((0, 3, 4))).shape == (0, 12)


# --- containers ------------------------------------------------------------------------------------------------------


def test_sequential_applies_its_modules_in_order():
    first, second = nn.Linear(4, 3), nn.Linear(3, 2)
    model = nn.Sequential(first, nn.Tanh(), second)
    np.testing.assert_array_equal(model(X).detach().numpy(), second(first(X).tanh()).detach().numpy())
    assert len(model) == 3 and model[0] is first and model[-1] is second and list(model)[2] is second
    assert list(model.append(nn.ReLU()).state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert [name for name, _ in model[1:].named_modules()] == ["", "1", "2", "3"]


def test_sequential_runs_a_module_as_often_as_it_is_listed():
    class PlusOne(nn.Module):
        def forward(self, x):
            return x + 1

    layer = PlusOne()
    assert nn.Sequential(layer, layer, layer)(sn.Tensor([0.0])).item() == 3


def test_sequential_takes_names_and_no_modules_at_all():
    model = nn.Sequential({"encode": nn.Linear(4, 2), "decode": nn.Linear(2, 4)})
    assert model.encode is model[0] and "decode.weight" in model.state_dict()
    np.testing.assert_array_equal(nn.Sequential()(X).numpy(), X)


@pytest.mark.parametrize("name", ["", "a.b", "forward", "training", "append"])
def test_sequential_refuses_names_that_mean_something_else(name):
    with pytest.raises(
        sn.ConfigError, match="expected a new name without a dot that Sequential has no attribute of, got"
    ):
        nn.Sequential({name: nn.ReLU()})


def test_mlp_has_readable_names_and_no_activation_at_the_end():
    model = nn.MLP(784, 128, 64, 10, activation="tanh", dropout=0.2)
    names = ["linear1", "tanh1", "dropout1", "linear2", "tanh2", "dropout2", "linear3"]
    assert [name for name, _ in model.named_modules()] == ["", *names]
    assert [p.shape for p in model.parameters()] == [(784, 128), (128,), (128, 64), (64,), (64, 10), (10,)]
    assert [name for name, _ in nn.MLP(2, 3, 1).named_modules()] == ["", "linear1", "relu1", "linear2"]
    assert [name for name, _ in nn.MLP(2, 1).named_modules()] == ["", "linear1"]


def test_mlp_computes_its_layers_in_order():
    model = nn.MLP(4, 5, 2, activation="gelu")
    expected = model.linear2(model.linear1(X).gelu())
    np.testing.assert_array_equal(model(X).detach().numpy(), expected.detach().numpy())


@pytest.mark.parametrize(("name", "kind"), nn.ACTIVATIONS.items())
def test_mlp_takes_every_activation_of_the_table(name, kind):
    assert isinstance(nn.MLP(4, 3, 2, activation=name)[1], kind)


def test_the_seed_decides_the_starting_values():
    def weights(seed):
        sn.manual_seed(seed)
        return np.concatenate([p.detach().numpy().ravel() for p in nn.MLP(4, 5, 3).parameters()])

    np.testing.assert_array_equal(weights(1), weights(1))
    assert not np.array_equal(weights(1), weights(2))


def test_an_mlp_learns_a_function_that_no_linear_model_can(device):
    sn.manual_seed(0)
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    y = np.array([0, 1, 1, 0])
    model, loss = nn.MLP(2, 16, 2), nn.CrossEntropyLoss()
    optimizer = sn.optim.SGD(model.parameters(), 0.5, momentum=0.9)
    for _ in range(100):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    assert sn.metrics.accuracy(model(x), y) == 1.0


# --- refusals --------------------------------------------------------------------------------------------------------

BAD = [
    lambda: nn.Linear(0, 3),
    lambda: nn.Linear(3, -1),
    lambda: nn.Linear(3, 2.0),
    lambda: nn.Linear(True, 2),
    lambda: nn.LayerNorm(0),
    lambda: nn.LayerNorm(()),
    lambda: nn.LayerNorm((4, 0)),
    lambda: nn.BatchNorm1d(0),
    lambda: nn.BatchNorm1d(4, momentum=1.5),
    lambda: nn.Embedding(0, 4),
    lambda: nn.EmbeddingBag(3, 4, "average"),
    lambda: nn.EmbeddingBag(3, 4, "max", sparse=True),
    lambda: nn.Dropout(-0.1),
    lambda: nn.Dropout(float("nan")),
    lambda: nn.MLP(4),
    lambda: nn.MLP(),
    lambda: nn.MLP(4, "8", 2),
    lambda: nn.MLP(4, 2, activation="step"),
    lambda: nn.MLP(4, 3, 2, dropout=2),
    lambda: nn.Sequential(nn.ReLU),
    lambda: nn.Sequential([nn.ReLU()]),
]


@pytest.mark.parametrize("make", BAD)
def test_an_option_out_of_range_is_refused(make):
    with pytest.raises(sn.ConfigError, match=r"^[A-Z].*: expected .*, got .*") as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layer", "x", "error"),
    [
        (nn.Linear(4, 3), X.T, sn.ShapeError),
        (nn.LayerNorm(3), X, sn.ShapeError),
        (nn.BatchNorm1d(3), X, sn.ShapeError),
        (nn.BatchNorm1d(4), X[:1], sn.ShapeError),
        (nn.Embedding(3, 2), [3], sn.IndexOutOfRangeError),
        (nn.Flatten(), np.zeros(3), sn.ShapeError),
        (nn.Flatten(2, 1), np.zeros((2, 2, 2)), sn.ShapeError),
        (nn.Sequential(nn.ReLU()), ["a"], sn.DtypeError),
    ],
)
def test_an_input_that_does_not_fit_is_refused(layer, x, error):
    with pytest.raises(error, match=r"expected .*, got .*"):
        layer(x)


@pytest.mark.parametrize("position", [3, -4])
def test_a_position_outside_a_sequential_is_refused(position):
    with pytest.raises(sn.IndexOutOfRangeError, match=rf"\[-3, 3\), got {position}"):
        nn.MLP(2, 2, 2)[position]


def test_a_padding_row_outside_the_table_is_refused():
    with pytest.raises(sn.IndexOutOfRangeError, match="padding_idx"):
        nn.Embedding(3, 2, padding_idx=3)


@pytest.mark.parametrize(
    ("layer", "name", "value"),
    [
        (lambda: nn.MLP(4, 3, 2), "activation", "tanh"),
        (lambda: nn.MLP(4, 3, 2), "dropout", 0.5),
        (lambda: nn.LayerNorm(4), "elementwise_affine", False),
        (lambda: nn.BatchNorm1d(4), "affine", False),
    ],
)
def test_what_a_layer_was_made_with_and_does_not_read_again_is_fixed(layer, name, value):
    with pytest.raises(sn.UnknownAttributeError, match=rf"\.{name}: expected a new ") as error:
        setattr(layer(), name, value)
    error_line(error)


def test_settings_of_a_layer_that_are_changed_later_take_effect():
    x = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    dropout = nn.Dropout(0.0)
    dropout.p = 1.0
    assert dropout(x).numpy().any() == False  # noqa: E712
    dropout.p = 2.0
    with pytest.raises(sn.ConfigError, match=r"p: expected a number in \[0, 1\]"):
        dropout(x)
    norm = nn.BatchNorm1d(4)
    norm.momentum, norm.eps = 1.0, 1e3
    assert np.abs(norm(x).detach().numpy()).max() < 1
    np.testing.assert_allclose(norm.running_mean.numpy(), x.mean(0), rtol=1e-5)
    embedding = nn.Embedding(3, 2)
    embedding.padding_idx = 1
    embedding([0, 1]).sum().backward()
    assert embedding.weight.grad.numpy().tolist() == [[1, 1], [0, 0], [0, 0]]
