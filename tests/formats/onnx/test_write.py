"""`onnx.export`: every layer and op, by a table; names, batch sizes, and what cannot be written."""

from functools import partial

import numpy as np
import pytest
import train
import train_images

import scratchnet as sn
from scratchnet import nn
from scratchnet.errors import CheckpointError, ConfigError, DtypeError
from scratchnet.formats.onnx import layers, ops
from scratchnet.formats.onnx.trace import tensors_in
from scratchnet.nn import functional as F

onnx = pytest.importorskip("onnx", reason="pip install onnx")

rng = np.random.default_rng(0)
X, S, I = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 6), (4, 6, 9), (4, 6, 9, 9)))
IDS = rng.integers(0, 11, (4, 5))
IDS[1] = 4  # in some layers the padding

# name: (layer, input, the ops of ONNX that say it)
LAYERS = {
    "Linear": (lambda: nn.Linear(6, 3), X, "Gemm"),
    "Linear without bias, of sequences": (lambda: nn.Linear(9, 3, bias=False), S, "MatMul"),
    "Linear of sequences": (lambda: nn.Linear(9, 3), S, "MatMul Add"),
    "MLP": (lambda: nn.MLP(6, 8, 3, dropout=0.2), X, "Gemm Relu Dropout Gemm"),
    "Embedding": (lambda: nn.Embedding(11, 3), IDS, "Gather"),
    "Embedding with padding": (lambda: nn.Embedding(11, 3, padding_idx=0), IDS, "Gather Equal Reshape Where"),
    **{
        f"EmbeddingBag, {mode}, {pad}": (partial(nn.EmbeddingBag, 11, 3, mode, padding_idx=pad), IDS, None)
        for mode in ("sum", "mean", "max")
        for pad in (None, 4)
    },
    "LayerNorm": (lambda: nn.LayerNorm((9, 9)), I, "LayerNormalization"),
    "LayerNorm, plain": (lambda: nn.LayerNorm(6, elementwise_affine=False), X, "LayerNormalization"),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(6), X, "BatchNormalization"),
    "BatchNorm1d, plain, of sequences": (lambda: nn.BatchNorm1d(6, affine=False), S, "BatchNormalization"),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(6), I, "BatchNormalization"),
    **{
        f"{kind.__name__} {options}": (partial(kind, 9, 4, **options), S, None)
        for kind in (nn.GRU, nn.LSTM, nn.RNN)
        for options in ({}, {"num_layers": 2, "bidirectional": True}, {"bias": False})
    },
    **{
        f"{kind.__name__} {options}": (partial(kind, 6, 4, **options), X, None)
        for kind, options in ((nn.GRUCell, {}), (nn.LSTMCell, {"bias": False}), (nn.RNNCell, {"nonlinearity": "relu"}))
    },
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(9, 3, 16, batch_first=True), S, None),
    "RNN, relu": (lambda: nn.RNN(9, 4, nonlinearity="relu"), S, None),
    "Conv1d": (lambda: nn.Conv1d(6, 4, 3, stride=2, padding=1), S, "Conv"),
    "Conv1d, same": (lambda: nn.Conv1d(6, 4, 4, padding="same", bias=False), S, "Conv"),
    "Conv2d": (lambda: nn.Conv2d(6, 4, 3, stride=2, padding=1, groups=2), I, "Conv"),
    "Conv2d, same": (lambda: nn.Conv2d(6, 4, 4, padding="same", dilation=2), I, "Conv"),
    "ConvTranspose2d": (
        lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1), I, "ConvTranspose Reshape Add"
    ),
    "MaxPool1d": (lambda: nn.MaxPool1d(2), S, "Reshape MaxPool Reshape"),
    "MaxPool2d": (lambda: nn.MaxPool2d(3, 2, 1), I, "MaxPool"),
    "MaxPool2d, rounded up": (lambda: nn.MaxPool2d(2, ceil_mode=True), I, "MaxPool"),
    "AvgPool1d": (lambda: nn.AvgPool1d(2), S, "Reshape AveragePool Reshape"),
    "AvgPool2d": (lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), I, "AveragePool"),
    "AvgPool2d, rounded up": (lambda: nn.AvgPool2d(2, ceil_mode=True), I, "Pad AveragePool Mul"),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d(3), I, "AveragePool"),
    "AdaptiveAvgPool2d, uneven": (lambda: nn.AdaptiveAvgPool2d(4), I, None),
    "Flatten": (lambda: nn.Flatten(), I, "Reshape"),
    "PReLU a channel": (lambda: nn.PReLU(6), I, "Reshape PRelu"),
    "Softmax": (lambda: nn.Softmax(1), I, "Softmax"),
    "LogSoftmax": (lambda: nn.LogSoftmax(), X, "LogSoftmax"),
    "GELU, tanh": (lambda: nn.GELU("tanh"), X, None),
    **{f"activation {name}": (kind, 3 * X, None) for name, kind in nn.ACTIVATIONS.items()},
}  # fmt: skip

# what a `forward` may hold: each in its own words
FORWARDS = {
    "batch in a shape": (lambda x: x.reshape(x.shape[0], 2, 3, 9).transpose(1, 2).reshape(x.shape[0], 3, 18), S),
    "zeros of the batch": (lambda x: sn.cat([x, sn.zeros(len(x), 2)], 1), X),
    "attention": (lambda x: sn.softmax(x.transpose(1, 2) @ x / 3, -1) @ x.transpose(1, 2), S),
    "causal": (lambda x: (x @ x.transpose(1, 2)).masked_fill(sn.triu(sn.ones(6, 6), 1) > 0, -np.inf).softmax(-1), S),
    "slices": (lambda x: x[:, 1:4, ::2][:, -1, None], S),
    "backwards": (lambda x: x[:, ::-1, 0], S),
    "the last row": (lambda x: x[-1], X),
    "pad": (lambda x: sn.pad(x, [(0, 0), (1, 2)], 3.0), X),
    "reductions": (lambda x: x.mean(axis=1) + x.amax(1) - x.amin(1) + x.sum(1) * x.std(axis=1) + sn.norm(x, 2, 1), X),
    "products": (lambda x: sn.prod(x, 1) + sn.cumsum(x, 1)[:, 2] + sn.logsumexp(x, 1), X),
    "of all": (lambda x: x.mean() + x.argmax() * 1.0, X),
    "places": (lambda x: x.argmax(1) + x.argsort(1)[:, 0] + x.topk(2, 1).indices[:, 1], X),
    "topk": (lambda x: x.topk(2, 1).values, X),
    "small numbers": (lambda x: (sn.log1p(x.abs() * 1e-6) + sn.expm1(x * 1e-6)) * 1e6 + sn.expm1(x), X),
    "where": (lambda x: sn.where(x > 0, x, 0.0) + x.clip(-0.5, None) + sn.maximum(x, 0.1), X),
    "booleans": (lambda x: ((x > 0) | (x < -1)) & ~(x != x), X),
    "elementwise": (lambda x: sn.sign(x) + sn.floor(x) + sn.round(x) + sn.sin(x) * sn.cos(x) + x**2 - sn.exp(-x), X),
    "logarithms": (lambda x: sn.log2(x.abs()) + sn.log10(x.abs()) + sn.erf(x) + sn.softplus(x) + sn.reciprocal(x), X),
    "pools": (lambda x: F.max_pool2d(x, 2) + F.avg_pool2d(x, 2), I),
    "einsum": (lambda x: sn.einsum("bij,bkj->bik", x, x), S),
    "gather": (lambda x: x.gather(1, np.zeros((len(x), 2), int)), X),
    "one hot": (lambda x: F.one_hot(x, 11).astype("float32"), IDS),
    "parts": (lambda x: sn.cat(x.chunk(2, 1)[::-1], 1) + sn.stack([x, x], 1)[:, 1], X),
    "copies": (lambda x: x.repeat(2, 3), X),
    "float64": (lambda x: x.astype("float64") * 2, X),
    "F.batch_norm": (lambda x: F.batch_norm(x, sn.ones(6), sn.ones(6)) + F.layer_norm(x, (9,)), S),
    "several outputs": (lambda x: (x, x * 2), X),
    "named outputs": (lambda x: {"a": x + 1, "b": x * 2}, X),
}


class Calls(nn.Module):
    """A module whose `forward` is a function."""

    def __init__(self, function):
        self.function = function

    def forward(self, x):
        return self.function(x)


def outputs(y):
    return [t.detach().numpy() for t in tensors_in(y)]


def runtime(path):
    """The outputs that onnxruntime computes; None if it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return lambda *x: session.run(None, dict(zip(names, x, strict=True)))


def exported(model, x, path, bound=2e-6):
    """Writes a model, and compares it with the loaded one and with onnxruntime, also for another batch."""
    sn.onnx.export(model, path, x)
    loaded, run = sn.onnx.load(path), runtime(path)
    for rows in (x, np.concatenate([x, x[:3]])):
        expected = outputs(model(sn.Tensor(rows)))
        for found in [outputs(loaded(rows))] + ([] if run is None else [run(rows)]):
            for y, z in zip(expected, found, strict=True):
                assert y.shape == z.shape and y.dtype == z.dtype
                np.testing.assert_allclose(z, y, rtol=bound, atol=bound * (1 + np.abs(y).max(initial=0)))
    return loaded


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_the_same_in_a_file(name, tmp_path):
    make, x, nodes = LAYERS[name]
    sn.manual_seed(1)
    model = make()
    for t in model.buffers():  # running statistics that are no zeros and ones
        t._data[...] = rng.uniform(0.5, 2, t.shape)
    loaded = exported(model.eval(), x, str(tmp_path / "model.onnx"))
    assert {k: v.tobytes() for k, v in loaded.state_dict().items()} == {
        k: v.tobytes() for k, v in model.state_dict().items()
    }
    graph = onnx.load(tmp_path / "model.onnx").graph
    if nodes is not None:
        assert " ".join(node.op_type for node in graph.node if node.op_type != "Constant") == nodes
    lengths = [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    assert lengths == ["batch", *x.shape[1:]]


@pytest.mark.parametrize("name", FORWARDS)
def test_a_forward_computes_the_same_in_a_file(name, tmp_path):
    function, x = FORWARDS[name]
    exported(Calls(function).eval(), x, str(tmp_path / "model.onnx"))


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_recurrent_layers_begin_with_a_state_and_know_lengths(kind, tmp_path):
    class Sequences(nn.Module):
        def __init__(self):
            self.layer = kind(9, 4, 2, bidirectional=True, batch_first=True)

        def forward(self, x, h, lengths):
            h = h.transpose(0, 1)
            return self.layer(x, (h, h * 0.5) if kind is nn.LSTM else h, lengths=lengths)

    model, h, lengths = Sequences().eval(), rng.normal(size=(4, 4, 4)).astype(np.float32), np.array([1, 6, 3, 2])
    sn.onnx.export(model, tmp_path / "model.onnx", (S, h, lengths))
    inputs = sn.Tensor(S), sn.Tensor(h), sn.Tensor(lengths)
    expected, found = outputs(model(*inputs)), outputs(sn.onnx.load(tmp_path / "model.onnx")(*inputs))
    run = runtime(str(tmp_path / "model.onnx"))
    for others in [found] + ([] if run is None else [run(S, h, lengths)]):
        for y, z in zip(expected, others, strict=True):
            np.testing.assert_allclose(z, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [nn.GRUCell, nn.LSTMCell])
def test_cells_go_from_state_to_state(kind, tmp_path):
    class Steps(nn.Module):
        def __init__(self):
            self.cell = kind(9, 4)

        def forward(self, x, h):
            state = (h, h * 0.5) if kind is nn.LSTMCell else h
            for step in range(3):
                state = self.cell(x[:, step], state)
            return state

    model, h = Steps().eval(), rng.normal(size=(4, 4)).astype(np.float32)
    sn.onnx.export(model, tmp_path / "model.onnx", (S, h))
    inputs = sn.Tensor(S), sn.Tensor(h)
    expected, found = outputs(model(*inputs)), outputs(sn.onnx.load(tmp_path / "model.onnx")(*inputs))
    run = runtime(str(tmp_path / "model.onnx"))
    for others in [found] + ([] if run is None else [run(S, h)]):
        for y, z in zip(expected, others, strict=True):
            np.testing.assert_allclose(z, y, rtol=1e-5, atol=1e-6)


def test_the_tables_hold_every_op_but_gradients_and_losses():
    """A new op needs a row, or a reason here."""
    training = {
        "dropout", "cross_entropy", "channel_moments", "batch_norm", "batch_norm_sums", "scatter_rows",
        "scatter_in_rows", "conv2d_weight",
        "add_rows", "argmax_rows", "recurrent",  # of EmbeddingBag, GRU, LSTM, RNN, which are layers of the table
    }  # fmt: skip
    asked = {name for name in sn.ops.OPS if not name.endswith("_grad")} - training
    assert asked - ops.OPS.keys() == set()
    assert ops.OPS.keys() - asked == set()


def test_every_layer_is_in_the_table_of_this_test_or_made_of_others():
    tried = {type(m) for make, _, _ in LAYERS.values() for m in make().modules()}
    assert layers.TAKEN.keys() <= tried


def test_files_are_conservative_and_name_their_parts(tmp_path):
    model = nn.Sequential({"first": nn.Linear(6, 3), "norm": nn.LayerNorm(3)})
    sn.onnx.export(model, tmp_path / "model.onnx", X)
    file = onnx.load(tmp_path / "model.onnx")
    assert (file.opset_import[0].version, file.ir_version, file.producer_name) == (17, 8, "scratchnet")
    assert [n.name for n in file.graph.node] == ["first/Gemm", "norm/LayerNormalization"]
    assert {i.name for i in file.graph.initializer} == {"first.weight", "first.bias", "norm.weight", "norm.bias"}
    assert [i.name for i in file.graph.input] == ["x"]
    assert [o.name for o in file.graph.output] == ["output"]


def test_the_same_model_gives_the_same_bytes(tmp_path):
    model = nn.MLP(6, 8, 3)
    for name in ("a", "b"):
        sn.onnx.export(model, tmp_path / name, X)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_export_leaves_modes_and_weights_as_they_were(tmp_path):
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5))
    model[1].eval()
    before = model.state_dict()
    sn.onnx.export(model, tmp_path / "model.onnx", X)
    assert [m.training for m in model.modules()] == [True, True, False]
    assert all((before[k] == v).all() for k, v in model.state_dict().items())


def test_tied_weights_are_stored_once(tmp_path):
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    loaded = exported(model.eval(), X, str(tmp_path / "model.onnx"))
    assert [*loaded.state_dict()] == [*model.state_dict()]
    assert len(onnx.load(tmp_path / "model.onnx").graph.initializer) == 3


def test_a_model_of_several_inputs(tmp_path):
    class Two(nn.Module):
        def forward(self, left, right):
            return left @ right.transpose(1, 2)

    for example in ((S, S), {"left": S, "right": S}):
        sn.onnx.export(Two(), tmp_path / "model.onnx", example)
        loaded = sn.onnx.load(tmp_path / "model.onnx")
        np.testing.assert_allclose(loaded(S, S).numpy(), S @ S.swapaxes(1, 2), rtol=1e-5, atol=1e-5)


def test_a_parameter_with_the_name_of_an_input_keeps_it(tmp_path):
    class Named(nn.Module):
        def __init__(self):
            self.x, self.output, self.Mul = (nn.Parameter(np.full(6, n, np.float32)) for n in (2, 3, 5))

        def forward(self, x):
            return x * self.x * self.output * self.Mul

    sn.onnx.export(Named(), tmp_path / "model.onnx", X)
    loaded = sn.onnx.load(tmp_path / "model.onnx")
    assert {*loaded.state_dict()} == {"x", "output", "Mul"}
    np.testing.assert_allclose(loaded(X).detach().numpy(), X * 30, rtol=1e-6)


def test_a_fixed_batch(tmp_path):
    sn.onnx.export(Calls(lambda x: x * len(x)), tmp_path / "model.onnx", X, batch=None)
    loaded = sn.onnx.load(tmp_path / "model.onnx")
    np.testing.assert_array_equal(loaded(X).numpy(), X * 4)
    with pytest.raises(sn.ShapeError, match="expected x of shape \\(4, 6\\), got \\(3, 6\\)"):
        loaded(X[:3])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x * x.mean().item(), "expected a forward that computes with tensors alone.*got item"),
        (lambda x: x * float(np.asarray(x._data).sum()), "got other numbers, which no op made"),
        (lambda x: x * len(x), "got other numbers.*batch=None fixes"),
        (lambda x: x * (2.0 if len(x) > 3 else 1.0), "got another output for a batch of 5"),
        (lambda x: x + 1 if len(x) > 2 else x, "got other ops in another one"),
        (lambda x: F.dropout(x, 0.5), "got the op dropout; call F.dropout\\(x, p, self.training\\)"),
        (lambda x: F.cross_entropy(x, np.zeros(len(x), int)), "got the op cross_entropy; export the model without"),
        (lambda x: F.batch_norm(sn.stack([x, x], 2), None, None), "got the op channel_moments"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused_in_one_line_and_leaves_no_file(function, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as error:
        sn.onnx.export(nn.Sequential({"part": Calls(function)}), tmp_path / "model.onnx", X)
    assert "\n" not in str(error.value)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("y", [3, (), (sn.tensor([1.0]), 3)])
def test_outputs_are_tensors(y, tmp_path):
    with pytest.raises(ConfigError, match="expected a tensor"):
        sn.onnx.export(Calls(lambda x: y), tmp_path / "model.onnx", X)


def test_a_refusal_names_the_module(tmp_path):
    with pytest.raises(ConfigError, match=r"onnx\.export: part: "):
        sn.onnx.export(nn.Sequential({"part": Calls(lambda x: F.dropout(x))}), tmp_path / "m", X)


def test_a_subclass_is_written_by_what_it_computes(tmp_path):
    class Doubled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    exported(Doubled(6, 3).eval(), X, str(tmp_path / "model.onnx"))


def test_hooks_of_a_layer_are_part_of_what_it_computes(tmp_path):
    model = nn.Sequential(nn.Linear(6, 3))
    model[0].register_forward_hook(lambda module, args, y: y * 2)
    with pytest.raises(ConfigError, match="got a hook of Linear"):
        sn.onnx.export(model, tmp_path / "model.onnx", X)


def test_examples_that_do_not_fit(tmp_path):
    model = nn.Linear(6, 3)
    for example, message in (
        (sn.tensor(3.0), "whose first axis is one batch, got x \\(\\)"),
        (X[:0], "the example's x: expected at least one element"),
        ({"y": X}, "expected one of x, got 'y'"),
        ((), "expected at least one input"),
    ):
        with pytest.raises(ConfigError, match=message):
            sn.onnx.export(model, tmp_path / "model.onnx", example)
    with pytest.raises(DtypeError):
        sn.onnx.export(model, tmp_path / "model.onnx", "text")
    with pytest.raises(CheckpointError, match="model not written"):
        sn.onnx.export(model, tmp_path / "nowhere" / "model.onnx", X)


def test_without_the_package_the_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"expected the package onnx, found none; pip install onnx$"):
        sn.onnx.export(nn.Linear(6, 3), tmp_path / "model.onnx", X)


@pytest.mark.parametrize(("script", "shape"), [(train, (784,)), (train_images, (1, 28, 28))])
def test_the_models_of_the_scripts_are_written(script, shape, tmp_path):
    model = script.Config().model(shape, 10).eval()
    exported(model, rng.random((3, *shape)).astype(np.float32), str(tmp_path / "model.onnx"), bound=1e-5)
