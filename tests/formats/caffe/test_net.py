"""Nets of Caffe: what OpenCV's importer computes of the same files, what Caffe's formulas say, and files that lie."""

import math

import numpy as np
import pytest

import scratchnet as sn
from scratchnet.errors import CheckpointError, CheckpointNotFoundError, ScratchnetError

pytest.importorskip("google.protobuf", reason="pip install protobuf")
from google.protobuf import text_format

from scratchnet.formats.caffe.messages import net_parameter

rng = np.random.default_rng(0)
X = rng.normal(size=(2, 3, 13, 12)).astype(np.float32)


def layer(kind, bottom, top, options="", name=None):
    bottoms = "".join(f'bottom: "{b}" ' for b in bottom.split())
    tops = "".join(f'top: "{t}" ' for t in top.split())
    return f'layer {{ name: "{name or top.split()[0]}" type: "{kind}" {bottoms}{tops}{options} }}\n'


def conv(bottom, top, options):
    return layer("Convolution", bottom, top, f"convolution_param {{ {options} }}")


def pool(bottom, top, options):
    return layer("Pooling", bottom, top, f"pooling_param {{ {options} }}")


HEAD = 'name: "net" input: "data" input_shape { dim: 2 dim: 3 dim: 13 dim: 12 }\n'

# Like AlexNet: groups, local response, pooling that rounds up, dropout, in place.
ALEXNET = (
    HEAD
    + conv("data", "conv1", "num_output: 4 kernel_size: 3 stride: 2 pad: 1 weight_filler { type: 'xavier' }")
    + layer("ReLU", "conv1", "conv1", name="relu1")
    + layer("LRN", "conv1", "norm1", "lrn_param { local_size: 3 alpha: 0.1 beta: 0.75 }")
    + pool("norm1", "pool1", "pool: MAX kernel_size: 2 stride: 2")
    + conv("pool1", "conv2", "num_output: 6 kernel_h: 1 kernel_w: 3 pad_h: 0 pad_w: 1 group: 2 bias_term: false")
    + layer("ReLU", "conv2", "conv2", "relu_param { negative_slope: 0.1 }", name="relu2")
    + pool("conv2", "pool2", "pool: AVE kernel_size: 3 stride: 2")
    + layer("InnerProduct", "pool2", "fc", "inner_product_param { num_output: 5 }")
    + layer("Dropout", "fc", "fc", name="drop")
    + layer("TanH", "fc", "t")
    + layer("InnerProduct", "t", "fc2", "inner_product_param { num_output: 3 }")
    + layer("Softmax", "fc2", "prob")
)

# Branches, normalization, arithmetic.
BRANCHES = (
    HEAD
    + conv("data", "a", "num_output: 4 kernel_size: 3 pad: 1 dilation: 1")
    + layer("BatchNorm", "a", "bn", "batch_norm_param { eps: 0.001 }")
    + layer("Scale", "bn", "bn", "scale_param { bias_term: true }", name="scale")
    + layer("Sigmoid", "bn", "s")
    + conv("data", "b", "num_output: 4 kernel_size: 1")
    + layer("ELU", "b", "e", "elu_param { alpha: 0.5 }")
    + layer("Eltwise", "s e", "sum", "eltwise_param { operation: SUM coeff: 0.5 coeff: 2 }")
    + layer("Concat", "sum a", "cat")
    + layer("PReLU", "cat", "p")
    + layer("Slice", "p", "first second", "slice_param { slice_point: 3 }")
    + layer("Power", "first", "power", "power_param { power: 2 scale: 0.5 shift: 1 }")
    + layer("Flatten", "power", "flat")
    + pool("second", "mean", "pool: AVE global_pooling: true")
    + layer("Flatten", "mean", "flat2")
    + layer("Concat", "flat flat2", "out")
)

# As caffemodels were in 2014: kinds are words, and blobs have four lengths.
LENET = """
input: "data" input_dim: 2 input_dim: 3 input_dim: 13 input_dim: 12
layers { name: "conv1" type: CONVOLUTION bottom: "data" top: "conv1"
  convolution_param { num_output: 4 kernel_size: 3 } }
layers { name: "pool1" type: POOLING bottom: "conv1" top: "pool1"
  pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layers { name: "ip1" type: INNER_PRODUCT bottom: "pool1" top: "ip1" inner_product_param { num_output: 5 } }
layers { name: "relu1" type: RELU bottom: "ip1" top: "ip1" }
layers { name: "prob" type: SOFTMAX bottom: "ip1" top: "prob" }
"""

SHAPES = {  # of the blobs of each layer with weights
    "conv1": [(4, 3, 3, 3), (4,)], "conv2": [(6, 2, 1, 3)], "fc": [(5, 6 * 2 * 1), (5,)], "fc2": [(3, 5), (3,)],
    "a": [(4, 3, 3, 3), (4,)], "b": [(4, 3, 1, 1), (4,)], "bn": [(4,), (4,), (1,)], "scale": [(4,), (4,)], "p": [(8,)],
    "ip1": [(1, 1, 5, 4 * 5 * 5), (1, 1, 1, 5)],
}  # fmt: skip


def files(folder, text, shapes=SHAPES, change=lambda net: None):
    """Writes a prototxt, and a caffemodel with random weights for it."""
    net = text_format.Parse(text, net_parameter()(), allow_unknown_field=True)
    for one in [*net.layer, *net.layers]:
        for shape in shapes.get(one.name, ()):
            blob = one.blobs.add()
            old = not one.DESCRIPTOR.name.startswith("Layer")
            if old:
                blob.num, blob.channels, blob.height, blob.width = (1, 1, 1, 1)[len(shape) :] + shape
            else:
                blob.shape.dim.extend(shape)
            blob.data.extend(rng.uniform(0.2, 1, math.prod(shape)) - 0.4 * (one.name != "bn"))
    change(net)
    (folder / "net.prototxt").write_text(text)
    (folder / "net.caffemodel").write_bytes(net.SerializeToString())
    return folder / "net.prototxt", folder / "net.caffemodel"


@pytest.mark.parametrize("text", [ALEXNET, BRANCHES, LENET], ids=["alexnet", "branches", "lenet"])
def test_a_net_computes_what_opencv_does(text, tmp_path):
    cv2 = pytest.importorskip("cv2", reason="pip install 'opencv-python-headless<5'")
    prototxt, caffemodel = files(tmp_path, text)
    net = cv2.dnn.readNetFromCaffe(str(prototxt), str(caffemodel))
    net.setInput(X)
    expected = net.forward()
    found = sn.caffe.load(prototxt, caffemodel)(X).detach().numpy()
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", [ALEXNET, BRANCHES, LENET], ids=["alexnet", "branches", "lenet"])
def test_a_net_trains(text, tmp_path):
    model = sn.caffe.load(*files(tmp_path, text)).train()
    before = model.state_dict()
    optimizer = sn.optim.SGD(model.parameters(), lr=0.01)
    (model(X) ** 2).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    optimizer.step()
    changed = {name for name, array in model.state_dict().items() if not (array == before[name]).all()}
    assert changed == {name for name, _ in model.named_parameters()}


def pooled(x, kind, k, step, pad):
    """Caffe's pooling, in its own words: sizes are rounded up, zeros of the padding count in means."""
    sizes = [math.ceil((n + 2 * pad - k) / step) + 1 for n in x.shape[2:]]
    sizes = [m - 1 if pad and (m - 1) * step >= n + pad else m for m, n in zip(sizes, x.shape[2:], strict=True)]
    out = np.empty((*x.shape[:2], *sizes), np.float32)
    for i, j in np.ndindex(*sizes):
        low, high = (i * step - pad, j * step - pad), []
        high = [min(a + k, n + pad) for a, n in zip(low, x.shape[2:], strict=True)]
        area = math.prod(b - a for a, b in zip(low, high, strict=True))
        part = x[:, :, max(low[0], 0) : min(high[0], x.shape[2]), max(low[1], 0) : min(high[1], x.shape[3])]
        out[:, :, i, j] = part.max((2, 3)) if kind == "MAX" else part.sum((2, 3)) / area
    return out


@pytest.mark.parametrize("kind", ["MAX", "AVE"])
@pytest.mark.parametrize(("k", "step", "pad"), [(2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 3, 1), (3, 1, 1), (4, 3, 2)])
def test_pooling_rounds_up(kind, k, step, pad, tmp_path):
    text = HEAD + pool("data", "y", f"pool: {kind} kernel_size: {k} stride: {step} pad: {pad}")
    found = sn.caffe.load(*files(tmp_path, text))(X).numpy()
    np.testing.assert_allclose(found, pooled(X, kind, k, step, pad), rtol=1e-5, atol=1e-6)


def deconvolved(x, w, b, apart=1):
    """Each number of x times the filter, at steps of 2, added up where they overlap; a frame of 1 is cut off."""
    reach = 2 * apart + 1
    out = np.zeros((len(x), w.shape[1], 2 * x.shape[2] - 2 + reach, 2 * x.shape[3] - 2 + reach))
    for i, j in np.ndindex(*x.shape[2:]):
        rows, columns = (slice(2 * k, 2 * k + reach, apart) for k in (i, j))
        out[:, :, rows, columns] += np.einsum("nc,cohw->nohw", x[:, :, i, j], w)
    return out[:, :, 1:-1, 1:-1] + b[:, None, None]


def within_planes(x):
    squares = np.pad(x * x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    mean = sum(squares[:, :, i : i + x.shape[2], j : j + x.shape[3]] for i in range(3) for j in range(3)) / 9
    return x * (1 + 0.5 * mean) ** -0.75


FORMULAS = {  # (kind, options, shapes of weights, what Caffe's documentation says)
    "transposed": ("Deconvolution", "convolution_param { num_output: 2 kernel_size: 3 stride: 2 pad: 1 }",
                   [(3, 2, 3, 3), (2,)], deconvolved),
    "dilated": ("Deconvolution",
                "convolution_param { num_output: 2 kernel_size: 3 stride: 2 pad: 1 dilation: 2 }",
                [(3, 2, 3, 3), (2,)], lambda *arrays: deconvolved(*arrays, apart=2)),
    "planes": ("LRN", "lrn_param { norm_region: WITHIN_CHANNEL local_size: 3 alpha: 0.5 beta: 0.75 }", [],
               within_planes),
    "reshape": ("Reshape", "reshape_param { shape { dim: 0 dim: -1 dim: 4 } }", [], lambda x: x.reshape(2, -1, 4)),
}  # fmt: skip


@pytest.mark.parametrize("case", FORMULAS)
def test_a_layer_computes_what_its_formula_says(case, tmp_path):
    kind, options, shapes, formula = FORMULAS[case]
    model = sn.caffe.load(*files(tmp_path, HEAD + layer(kind, "data", "y", options), {"y": shapes}))
    expected = formula(X, *[p.detach().numpy() for p in model.parameters()])
    np.testing.assert_allclose(model(X).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_scale_may_be_an_input(tmp_path):
    text = HEAD + 'input: "factor" input_shape { dim: 3 }\n' + layer("Scale", "data factor", "y")
    model, factor = sn.caffe.load(*files(tmp_path, text)), np.array([2, -1, 0.5], np.float32)
    np.testing.assert_array_equal(model(X, factor).numpy(), X * factor[:, None, None])
    with pytest.raises(sn.ShapeError, match=r"Net: expected 2 inputs \(data, factor\), got 1"):
        model(X)


REFUSED = {  # (kind, bottoms, options, message); of the first, Caffe would give the smallest number, or 0 / 0
    "no element": ("Pooling", "data", "pooling_param { pool: MAX kernel_size: 2 stride: 3 }", "windows that begin"),
    "stochastic": ("Pooling", "data", "pooling_param { pool: STOCHASTIC kernel_size: 2 }", "expected pool MAX or AVE"),
    "wide": ("Pooling", "data", "pooling_param { kernel_size: 2 pad: 70000 }", "expected pad of at least 0 for height"),
    "even": ("LRN", "data", "lrn_param { local_size: 4 }", "expected an odd local_size, found 4"),
    "dilated": ("Convolution", "data", "convolution_param { kernel_size: 1 dilation: 1 dilation: 2 }", "one dilation"),
    "unweighed": ("Eltwise", "data data", "eltwise_param { operation: SUM coeff: 1 }", "expected 2 coefficients"),
    "some axes": ("Reshape", "data", "reshape_param { axis: 1 shape { dim: 2 } }", "expected a Reshape of all axes"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_layer_that_cannot_be_computed_is_one_line(case, tmp_path):
    kind, bottoms, options, message = REFUSED[case]
    shapes = [(1, 3, 1, 1), (1,)] if kind == "Convolution" else []
    model = sn.caffe.load(*files(tmp_path, HEAD + layer(kind, bottoms, "y", options), {"y": shapes}))
    with pytest.raises(CheckpointError, match=rf"layer 'y' \({kind}\): .*{message}") as error:
        model(X)
    assert "\n" not in str(error.value)


def test_layers_of_training_are_left_out(tmp_path):
    """The net of a training: data of two phases, accuracy, and a loss."""
    data = layer("Data", "", "data label", "include { phase: TRAIN }", name="train")
    data += layer("Data", "", "data label", "include { phase: TEST }", name="test")
    text = data + layer("InnerProduct", "data", "y", "inner_product_param { num_output: 2 }")
    text += layer("Accuracy", "y label", "accuracy", "include { phase: TEST }")
    text += layer("SoftmaxWithLoss", "y label", "loss") + layer("Unknown", "y", "z", "exclude { phase: TEST }")
    model = sn.caffe.load(*files(tmp_path, text, {"y": [(2, 6), (2,)]}))
    assert model(rng.normal(size=(3, 6)).astype(np.float32)).shape == (3, 2)


def test_several_outputs_come_in_the_order_of_the_file(tmp_path):
    text = HEAD + layer("Sigmoid", "data", "s") + layer("TanH", "data", "t")
    s, t = sn.caffe.load(*files(tmp_path, text))(X)
    np.testing.assert_allclose(t.numpy(), np.tanh(X), rtol=1e-5, atol=1e-6)
    assert s.shape == X.shape


INNER = HEAD + layer("InnerProduct", "data", "fc", "inner_product_param { num_output: 5 }")
LIES = {
    "not a prototxt": ("hello {", None, "expected a prototxt"),
    "an unknown kind": (HEAD + layer("Rm", "data", "y"), None, r"layer 'y' \(Rm\): expected one of"),
    "a missing bottom": (HEAD + layer("ReLU", "nothing", "y"), None, "expected bottoms that stand above"),
    "a layer twice": (HEAD + 2 * layer("ReLU", "data", "y"), None, "found one twice"),
    "no layers": (HEAD, None, "expected inputs and layers"),
    "no input": (layer("ReLU", "data", "y"), None, "expected bottoms that stand above"),
    "deep": (HEAD + "layer { a " + "{ a " * 5000, None, "expected a prototxt|RecursionError"),
    "no weights": (INNER, lambda net: net.ClearField("layer"), "fc: expected 2 weights of InnerProduct, found 0"),
    "too many weights": (INNER, lambda net: net.layer[0].blobs.add(), "found 3"),
    "lengths of terabytes": (INNER, lambda net: net.layer[0].blobs[0].shape.dim.append(10**12), "expected 60 numbers"),
    "lengths below 0": (INNER, lambda net: net.layer[0].blobs[0].shape.dim.append(-1), "fc: expected 60 numbers"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_files_that_lie_are_one_line(lie, tmp_path):
    text, change, message = LIES[lie]
    prototxt, caffemodel = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    if change is None:
        prototxt.write_text(text)
        caffemodel.write_bytes(b"")
    else:
        files(tmp_path, text, {"fc": [(5, 12), (5,)]}, change)
    with pytest.raises(CheckpointError, match=message) as error:
        sn.caffe.load(prototxt, caffemodel)
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


def test_files_that_are_none(tmp_path):
    prototxt, caffemodel = files(tmp_path, INNER, {"fc": [(5, 12), (5,)]})
    with pytest.raises(CheckpointNotFoundError):
        sn.caffe.load(tmp_path / "nothing", caffemodel)
    for blob, message in (
        (b"\x80\x04...", "found a pickle"),
        (caffemodel.read_bytes()[:-7], "found bytes that are none"),
    ):
        caffemodel.write_bytes(blob)
        with pytest.raises(CheckpointError, match=message):
            sn.caffe.load(prototxt, caffemodel)


def test_damage_is_one_line_or_another_net(tmp_path):
    text, blob = ALEXNET.encode(), files(tmp_path, ALEXNET)[1].read_bytes()
    for i in range(200):
        damaged = bytearray(text if i % 2 else blob)
        for _ in range(rng.integers(1, 6)):
            at = int(rng.integers(len(damaged)))
            damaged[at : at + int(rng.integers(0, 4))] = bytes([int(rng.integers(256))])
        (tmp_path / "net.prototxt").write_bytes(damaged if i % 2 else text)
        (tmp_path / "net.caffemodel").write_bytes(blob if i % 2 else damaged)
        try:
            sn.caffe.load(tmp_path / "net.prototxt", tmp_path / "net.caffemodel")(X)
        except ScratchnetError as error:
            assert "\n" not in str(error)
