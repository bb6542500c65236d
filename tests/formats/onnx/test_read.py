"""`onnx.load`: models train on, and files that lie, or were damaged, are one line."""

import copy
import os
import pickle

import cloudpickle
import numpy as np
import pytest

import scratchnet as sn
from scratchnet import nn
from scratchnet.errors import CheckpointError, CheckpointNotFoundError, ScratchnetError
from scratchnet.formats.onnx import operators
from scratchnet.formats.onnx.read import graph_of

onnx = pytest.importorskip("onnx", reason="pip install onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

rng = np.random.default_rng(0)
X = rng.normal(size=(4, 6)).astype(np.float32)


def network():
    sn.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 2))


def file_of(nodes, stored=(), inputs=("x",), outputs=("y",), opset=17):
    """A file: nodes are (op, inputs, outputs, attributes), stored are arrays by name."""
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs]
    made = [helper.make_node(op, given, made, **attributes) for op, given, made, attributes in nodes]
    weights = [numpy_helper.from_array(np.asarray(a), name) for name, a in dict(stored).items()]
    outs = [helper.make_empty_tensor_value_info(name) for name in outputs]
    graph = helper.make_graph(made, "g", info, outs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


# --- what a loaded model does -----------------------------------------------------------------------------------------


def trained(model, step=None):
    """The weights after some steps."""
    optimizer = sn.optim.SGD(model.parameters(), lr=0.1)

    def plain(x, y):
        optimizer.zero_grad()
        loss = nn.CrossEntropyLoss()(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    run = plain if step is None else step(plain)
    sn.manual_seed(3)
    for _ in range(4):
        run(sn.Tensor(X), sn.Tensor(np.array([0, 1, 1, 0])))
    return {name: array.tobytes() for name, array in model.state_dict().items()}


@pytest.mark.parametrize("step", [None, sn.jit], ids=["plain", "jit"])
def test_a_loaded_model_trains_as_the_one_that_was_written(step, tmp_path):
    """With the same bits: batch norm follows the batches, dropout drops."""
    model = network()
    sn.onnx.export(model, tmp_path / "model.onnx", X)
    loaded = sn.onnx.load(tmp_path / "model.onnx")
    assert not loaded.training
    assert trained(loaded.train(), step) == trained(model.train())


def test_a_loaded_model_can_be_copied_and_sent_to_workers(tmp_path):
    sn.onnx.export(network(), tmp_path / "model.onnx", X)
    model = sn.onnx.load(tmp_path / "model.onnx")
    for other in (copy.deepcopy(model), pickle.loads(cloudpickle.dumps(model))):
        assert trained(other.train()) == trained(copy.deepcopy(model).train())


def test_a_loaded_model_is_written_again(tmp_path):
    sn.onnx.export(network(), tmp_path / "a.onnx", X)
    once = sn.onnx.load(tmp_path / "a.onnx")
    sn.onnx.export(once, tmp_path / "b.onnx", X)
    twice = sn.onnx.load(tmp_path / "b.onnx")
    assert (once(X).detach().numpy() == twice(X).detach().numpy()).all()
    assert once.state_dict().keys() == twice.state_dict().keys()


def test_arrays_that_a_file_stores_once_are_apart_where_one_follows_the_batches():
    """PyTorch's exporter stores equal arrays once: the running mean of a new batch norm is its bias."""
    ones, zeros = np.ones(6, np.float32), np.zeros(6, np.float32)
    model = graph_of(
        file_of(
            [("BatchNormalization", ["x", "one", "zero", "zero", "one"], ["y"], {})], {"one": ones, "zero": zeros}
        ).SerializeToString()
    )
    assert [name for name, _ in model.named_parameters()] == ["one", "zero"]
    model.train()(X).sum().backward()
    assert len([*model.buffers()]) == 2
    assert (model.state_dict()["one"] == 1).all()
    norm = ("BatchNormalization", ["x", "one", "zero", "mean", "var"], ["y"], {})
    stored = {"one": ones, "zero": zeros, "var": ones}
    model = graph_of(file_of([("Identity", ["zero"], ["mean"], {}), norm], stored).SerializeToString())
    model.train()(X).sum().backward()
    assert len([*model.buffers()]) == 2 and (model.state_dict()["zero"] == 0).all()


@pytest.mark.parametrize("name", ["forward", "a..b", "training", ".a", "_steps.x", "state_dict", "a b", "x::y/z"])
def test_any_name_of_a_weight_leaves_the_module_what_it_is(name):
    weights = {name: np.ones(6, np.float32), f"{name}.inner": np.ones(6, np.float32)}
    nodes = [("Add", ["x", name], ["h"], {}), ("Add", ["h", f"{name}.inner"], ["y"], {})]
    model = graph_of(file_of(nodes, weights).SerializeToString())
    np.testing.assert_allclose(model(X).detach().numpy(), X + 2, rtol=1e-6)
    assert len(model.state_dict()) == 2


def test_shapes_are_computed_from_shapes():
    """What exporters write for x.reshape(x.shape[0], -1) and zeros(len(x), 2)."""
    i = lambda *n: np.array(n, np.int64)  # noqa: E731
    nodes = [
        ("Shape", ["x"], ["s"], {}),
        ("Gather", ["s", "zero"], ["n"], {"axis": 0}),
        ("Unsqueeze", ["n", "first"], ["n1"], {}),
        ("Concat", ["n1", "minus"], ["to"], {"axis": 0}),
        ("Reshape", ["x", "to"], ["rows"], {}),
        ("Concat", ["n1", "two"], ["of"], {"axis": 0}),
        ("ConstantOfShape", ["of"], ["zeros"], {"value": numpy_helper.from_array(np.zeros(1, np.float32))}),
        ("Concat", ["rows", "zeros"], ["both"], {"axis": 1}),
        ("Range", ["zero", "n", "one"], ["counts"], {}),
        ("Cast", ["counts"], ["c"], {"to": 1}),
        ("Unsqueeze", ["c", "last"], ["column"], {}),
        ("Constant", [], ["half"], {"value_float": 0.5}),
        ("Mul", ["column", "half"], ["h"], {}),
        ("Add", ["both", "h"], ["y"], {}),
    ]
    stored = {"zero": np.int64(0), "one": np.int64(1), "first": i(0), "last": i(-1), "minus": i(-1), "two": i(2)}
    model = graph_of(file_of(nodes, stored).SerializeToString())
    x = rng.normal(size=(3, 2, 2)).astype(np.float32)
    expected = np.concatenate([x.reshape(3, 4), np.zeros((3, 2), np.float32)], 1) + np.arange(3)[:, None] * 0.5
    np.testing.assert_allclose(model(x).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(("half", "number"), [(sn.float16, 10), (sn.bfloat16, 16)], ids=str)
def test_halves_are_read_and_computed_in(half, number):
    weight = rng.normal(size=6).astype(half)
    nodes = [("Cast", ["x"], ["h"], {"to": number}), ("Mul", ["h", "w"], ["p"], {}), ("Cast", ["p"], ["y"], {"to": 1})]
    model = graph_of(file_of(nodes, {"w": weight}).SerializeToString())
    assert model.state_dict()["w"].dtype == half and model.state_dict()["w"].tobytes() == weight.tobytes()
    np.testing.assert_array_equal(model(X).detach().numpy(), (X.astype(half) * weight).astype(np.float32))


def test_inputs_that_do_not_fit(tmp_path):
    sn.onnx.export(nn.Linear(6, 2), tmp_path / "model.onnx", X)
    model = sn.onnx.load(tmp_path / "model.onnx")
    for inputs, message in (
        ((np.ones((4, 6), np.int64),), "expected x of float32, got int64"),
        ((X[:, :5],), r"expected x of shape \(None, 6\), got \(4, 5\)"),
        ((X, X), r"expected 1 inputs \(x\), got 2"),
    ):
        with pytest.raises(ScratchnetError, match=message):
            model(*inputs)


# --- files that lie ---------------------------------------------------------------------------------------------------


def relu():
    return file_of([("Relu", ["x"], ["y"], {})])


def one(op, *inputs, **attributes):
    """The bytes of a file of one node."""
    return file_of([(op, inputs or ("x",), ["y"], attributes)]).SerializeToString()


def changed(change):
    """The bytes of a file of one Gemm after a change of its message."""
    model = file_of([("Gemm", ["x", "w"], ["y"], {})], {"w": np.ones((6, 2), np.float32)})
    change(model)
    return model.SerializeToString()


def nested(levels):
    """A graph in an attribute of a node of a graph ...: messages in messages, as bytes."""
    model = relu()
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    fields = [6, 5, 1] * levels + [7]  # AttributeProto.g, NodeProto.attribute, GraphProto.node; ModelProto.graph
    for field in fields:
        size, length = len(graph), b""
        while size > 127:
            size, length = size >> 7, length + bytes([size & 127 | 128])
        graph = bytes([field << 3 | 2]) + length + bytes([size]) + graph
    return model.SerializeToString() + graph


def lengths(*dims):
    def change(model):
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)

    return change


LIES = {
    "nothing": (lambda: b"", "found 0 nodes of None"),
    "a pickle": (lambda: b"\x80\x04\x95crm -rf", "found a pickle or a zip; torch.onnx.export"),
    "a .pt": (lambda: b"PK\x03\x04....", "found a pickle or a zip"),
    "text": (lambda: b"hello, world", "found bytes that are none"),
    "cut short": (lambda: relu().SerializeToString()[:-9], "found bytes that are none"),
    "an older opset": (lambda: file_of([("Relu", ["x"], ["y"], {})], opset=6).SerializeToString(), "opset 9 to 25"),
    "a future opset": (lambda: file_of([("Relu", ["x"], ["y"], {})], opset=99).SerializeToString(), "opset 9 to 25"),
    "an unknown op": (lambda: one("Rm"), r"node 0 \(Rm\): expected one of"),
    "ZipMap": (lambda: one("ZipMap"), "options=.'zipmap': False"),
    "an unknown attribute": (
        lambda: one("Relu", secret=1), r"found \['secret'\]"
    ),
    "an attribute of ours": (lambda: one("Dropout", training=1), "training"),
    "a missing input": (lambda: one("Relu", "z"), r"found \['z'\]"),
    "a cycle": (
        lambda: file_of([("Add", ["x", "b"], ["y"], {}), ("Relu", ["y"], ["b"], {})]).SerializeToString(), "'b'"
    ),
    "a value twice": (
        lambda: file_of([("Relu", ["x"], ["y"], {}), ("Relu", ["x"], ["y"], {})]).SerializeToString(), "'y'"
    ),
    "no output": (lambda: file_of([("Relu", ["x"], ["z"], {})]).SerializeToString(), "expected outputs that a node"),
    "too many inputs": (lambda: one("Relu", "x", "x"), "expected the inputs"),
    "graphs in graphs": (lambda: nested(3), "expected one of"),
    "many graphs in graphs": (lambda: nested(10_000), "found bytes that are none"),
    "lengths of terabytes": (lambda: changed(lengths(10**6, 10**6)), "expected 4000000000000 bytes"),
    "lengths below 0": (lambda: changed(lengths(-6, -2)), "lengths of at least 0"),
    "lengths that overflow": (lambda: changed(lengths(2**62, 2**62)), "expected .* bytes for"),
    "too few numbers": (lambda: changed(lengths(7, 2)), "expected 56 bytes for .*, found 48"),
    "many lengths": (lambda: changed(lengths(*[1] * 99)), "at most 32 lengths"),
    "complex64": (lambda: changed(lambda m: setattr(m.graph.initializer[0], "data_type", 14)), "found type 14"),
    "strings": (lambda: changed(lambda m: setattr(m.graph.initializer[0], "data_type", 8)), "found strings"),
    "an unknown dtype": (lambda: changed(lambda m: setattr(m.graph.initializer[0], "data_type", 77)), "found type 77"),
    "a name twice": (
        lambda: changed(lambda m: m.graph.initializer.append(m.graph.initializer[0])), "expected a new name"
    ),
    "functions": (lambda: changed(lambda m: m.functions.add(name="f")), "inline_local_functions"),
    "training": (lambda: changed(lambda m: m.training_info.add()), "without training graphs"),
    "sparse": (lambda: changed(lambda m: m.graph.sparse_initializer.add()), "without sparse"),
    "external data without a folder": (
        lambda: changed(lambda m: setattr(m.graph.initializer[0], "data_location", 1)), "expected external data"
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_one_line(lie, tmp_path):
    make, message = LIES[lie]
    (tmp_path / "model.onnx").write_bytes(make())
    with pytest.raises(CheckpointError, match=message) as error:
        sn.onnx.load(tmp_path / "model.onnx")
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="found no such file"):
        sn.onnx.load(tmp_path / "nothing.onnx")
    with pytest.raises(CheckpointError, match=r"regular file|readable file"):
        sn.onnx.load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="found a pipe"):
        sn.onnx.load(tmp_path / "pipe")


# Each doubles its input, or squares it: 60 of them would need exabytes.
BOMBS = {
    "Concat": [("Concat", ["v", "v"], {"axis": 0})],
    "an outer product": [("Reshape", ["v", "column"], {}), ("Mul", ["v0", "v"], {}), ("Reshape", ["v1", "flat"], {})],
    "MatMul": [
        ("Reshape", ["v", "column"], {}), ("Reshape", ["v", "row"], {}), ("MatMul", ["v0", "v1"], {}),
        ("Reshape", ["v2", "flat"], {}),
    ],
    "Tile": [("Tile", ["v", "thousand"], {})],
    "Pad": [("Pad", ["v", "much"], {})],
    "Gather": [("Expand", ["zero", "grid"], {}), ("Gather", ["v", "v0"], {})],
    "Einsum": [("Einsum", ["v", "v"], {"equation": "i,j->ij"}), ("Reshape", ["v0", "flat"], {})],
    "OneHot": [("Cast", ["v"], {"to": 7}), ("OneHot", ["v0", "depth", "values"], {}), ("Reshape", ["v1", "flat"], {})],
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_of_huge_values_is_refused_before_they_are_made(bomb, monkeypatch):
    monkeypatch.setattr(operators, "LARGEST", 10**5)
    i = lambda *n: np.array(n, np.int64)  # noqa: E731
    stored = {
        "column": i(-1, 1),
        "row": i(1, -1),
        "flat": i(-1),
        "thousand": i(1000),
        "much": i(0, 10**4),
        "zero": i(0),
    }
    stored |= {"grid": i(1000, 1000), "depth": i(1000), "values": np.float32([0, 1])}
    nodes, value = [], "x"
    for repeat in range(60):
        for k, (op, inputs, attributes) in enumerate(BOMBS[bomb]):
            names = {"v": value} | {f"v{j}": f"n{repeat}_{j}" for j in range(k)}
            nodes.append((op, [names.get(name, name) for name in inputs], [f"n{repeat}_{k}"], attributes))
        value = nodes[-1][2][0]
    model = graph_of(file_of(nodes, stored, outputs=(value,)).SerializeToString())
    with pytest.raises(ScratchnetError, match="at most 100000 elements"):
        model(np.ones(4, np.float32))


# --- external data ----------------------------------------------------------------------------------------------------


def external(folder, **changes):
    """A file whose weight lies beside it, with another location, offset or length."""
    folder.mkdir(exist_ok=True)
    model = file_of([("MatMul", ["x", "w"], ["y"], {})], {"w": np.arange(12, dtype=np.float32).reshape(6, 2)})
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    tensor = model.graph.initializer[0]
    if changes:
        del tensor.external_data[:]
        for key, value in ({"location": "w.bin", "offset": 0, "length": 48} | changes).items():
            tensor.external_data.add(key=key, value=str(value))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def test_external_data_beside_the_file(tmp_path):
    model = sn.onnx.load(external(tmp_path / "a"))
    np.testing.assert_allclose(model(X).detach().numpy(), X @ np.arange(12, dtype=np.float32).reshape(6, 2), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"location": "../secret"}, "below the file's folder"),
        ({"location": "/etc/passwd"}, "below the file's folder"),
        ({"location": "link"}, "below the file's folder"),
        ({"location": "pipe"}, "in a regular file"),
        ({"location": "nothing"}, "in a regular file"),
        ({"location": "."}, "in a regular file"),
        ({"offset": 4}, "expected 48 bytes at 4 of w.bin, found fewer"),
        ({"offset": -4}, "found fewer"),
        ({"length": 1 << 60}, "found fewer"),
        ({"length": -1}, "found fewer"),
    ],
)
def test_external_data_elsewhere_is_refused(changes, message, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(48))
    file = external(tmp_path / "a", **changes)
    (tmp_path / "a" / "link").symlink_to("../secret")
    os.mkfifo(tmp_path / "a" / "pipe")
    with pytest.raises(CheckpointError, match=message) as error:
        sn.onnx.load(file)
    assert "\n" not in str(error.value)


def test_external_bytes_are_read_once(tmp_path):
    """Else a file of few bytes could fill the memory with one that lies beside it."""
    file = external(tmp_path / "a")
    model = onnx.load(file, load_external_data=False)
    copied = copy.deepcopy(model.graph.initializer[0])
    copied.name = "w2"
    model.graph.initializer.append(copied)
    file.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="found fewer"):
        sn.onnx.load(file)


# --- damaged at random ------------------------------------------------------------------------------------------------


def mutated(blob, draw):
    """The bytes with some flipped, cut out, doubled, or set to what is often special."""
    blob = bytearray(blob)
    for _ in range(draw.integers(1, 6)):
        at = int(draw.integers(len(blob)))
        match int(draw.integers(4)):
            case 0:
                blob[at] ^= 1 << int(draw.integers(8))
            case 1:
                del blob[at : at + int(draw.integers(1, 9))]
            case 2:
                blob[at:at] = blob[at : at + int(draw.integers(1, 33))]
            case _:
                blob[at] = int(draw.choice([0, 1, 127, 128, 255]))
        if not blob:
            return b""
    return bytes(blob)


def test_damage_is_one_line_or_another_model(tmp_path, count=300):
    """`make thorough` tries more of them: SCRATCHNET_MUTATIONS says how many."""
    sn.onnx.export(network(), tmp_path / "model.onnx", X)
    blob, draw = (tmp_path / "model.onnx").read_bytes(), np.random.default_rng(0)
    for _ in range(int(os.environ.get("SCRATCHNET_MUTATIONS", count))):
        (tmp_path / "damaged.onnx").write_bytes(mutated(blob, draw))
        try:
            sn.onnx.load(tmp_path / "damaged.onnx")(X)
        except ScratchnetError as error:
            assert "\n" not in str(error), str(error)
