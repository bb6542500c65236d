"""The operators that `onnx.load` knows, each against onnxruntime, or ONNX's own reference evaluator."""

import numpy as np
import pytest
import scipy.special

import scratchnet as sn
from scratchnet.errors import CheckpointError
from scratchnet.formats.onnx.operators import OPERATORS
from scratchnet.formats.onnx.operators_recurrent import CELLS
from scratchnet.formats.onnx.read import graph_of

onnx = pytest.importorskip("onnx", reason="pip install onnx")
from onnx import helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

rng = np.random.default_rng(0)
X, Y = (rng.normal(size=(3, 4)).astype(np.float32) for _ in "xy")
P = np.abs(X) + 0.5
S, I = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 4, 9), (2, 4, 7, 8)))
B = X > 0
N = np.array([[1, -2, 3], [-4, 5, 6]])
W, WI = (rng.normal(size=shape).astype(np.float32) for shape in ((6, 2, 3), (6, 2, 3, 2)))
C4 = [rng.uniform(0.5, 2, 4).astype(np.float32) for _ in range(4)]
f32 = np.float32


def ints(*values):
    return np.array(values, np.int64)


UNARY = """Abs Neg Exp Sin Cos Tan Tanh Sigmoid Relu Erf Floor Ceil Round Sign Softplus Softsign Mish Identity IsNaN
    HardSwish LeakyRelu Elu Selu Celu HardSigmoid Gelu Flatten Shape Size ArgMax ArgMin Softmax LogSoftmax Transpose
    Squeeze ReduceL1 ReduceL2 ReduceSumSquare ReduceProd ReduceLogSumExp EyeLike"""
BINARY = "Add Sub Mul Div Less LessOrEqual Greater GreaterOrEqual Min Max Sum Mean PRelu"

# (op, inputs, attributes); arrays after the first are constants of the file, unless they are floats
CASES = [
    *[(op, [X], {}) for op in UNARY.split()],
    *[(op, [P], {}) for op in ("Log", "Sqrt", "Reciprocal", "ReduceLogSum")],
    *[(op, [X, Y], {}) for op in BINARY.split()],
    *[(op, [B, Y > 0], {}) for op in ("And", "Or", "Xor", "Equal")],
    ("Not", [B], {}),
    ("Where", [B, X, Y], {}),
    ("Pow", [P, Y], {}),
    ("Pow", [X, f32(2)], {}),
    *[("Pow", [np.abs(N), power], {}) for power in (f32(2), f32(0.5), f32([0.5, 2, -1]), ints(3), ints(1, 2, 3))],
    ("Equal", [N, N.copy()], {}),
    ("Div", [N, ints(2, 3, -2)], {}),
    ("Mod", [N, ints(3, 3, 4)], {}),
    ("Mod", [X, P], {"fmod": 1}),
    ("Mod", [N, ints(3, 3, 4)], {"fmod": 1}),
    *[("Mod", [ints(2**60 + 1, -(2**60) - 1, 7), ints(3, 7, -3)], {"fmod": k}) for k in (0, 1)],
    *[("Mod", [np.uint8([200, 7]), np.uint8([7, 3])], {"fmod": k}) for k in (0, 1)],
    ("Mod", [f32([6, -6, 1e10, 5.3]), f32([0.1, 0.1, 3, -2])], {"fmod": 1}),
    ("ThresholdedRelu", [X], {"alpha": 0.5}),
    ("LeakyRelu", [X], {"alpha": 0.3}),
    ("Elu", [X], {"alpha": 0.3}),
    ("Celu", [X], {"alpha": 0.3}),
    ("Selu", [X], {"alpha": 1.2, "gamma": 1.1}),
    ("HardSigmoid", [X], {"alpha": 0.3, "beta": 0.4}),
    ("Gelu", [X], {"approximate": "tanh"}),
    ("Clip", [X, f32(-0.5), f32(0.5)], {}),
    ("Clip", [X, "", f32(0.5)], {}),
    ("Cast", [X], {"to": 7}),
    ("Cast", [B], {"to": 1}),
    ("CastLike", [N, f32(1)], {}),
    ("Gemm", [X, Y.T.copy()], {}),
    ("Gemm", [X, Y, C4[0][:3]], {"transB": 1}),
    ("Gemm", [X, Y, f32([2])], {"transB": 1}),
    ("Gemm", [X, Y, np.ones((3, 1), f32)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", [X, Y], {"transA": 1}),
    ("MatMul", [X, Y.T.copy()], {}),
    ("MatMul", [S, rng.normal(size=(9, 2)).astype(f32)], {}),
    ("MatMul", [X, C4[0]], {}),
    ("Einsum", [X, Y], {"equation": "ij,kj->ik"}),
    *[
        (op, [S, ints(1, -1)], {"keepdims": k})
        for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin")
        for k in (0, 1)
    ],
    ("ReduceSum", [S], {}),
    ("ReduceSum", [X, ints()], {"noop_with_empty_axes": 1}),
    ("ReduceMax", [N, ints(0)], {}),
    *[(f"Reduce{op}", [np.abs(N).astype(np.int32), ints(1)], {}) for op in ("Sum", "Prod", "L1")],
    ("ArgMax", [S], {"axis": -1, "keepdims": 0}),
    ("ArgMin", [S], {"axis": 1}),
    ("Softmax", [S], {"axis": 1}),
    ("LogSoftmax", [S], {"axis": 0}),
    ("CumSum", [X, np.int64(1)], {}),
    ("TopK", [X, ints(2)], {}),
    ("TopK", [S, ints(2)], {"axis": 1, "largest": 0}),
    ("Flatten", [I], {"axis": 2}),
    ("Flatten", [I], {"axis": 0}),
    ("Dropout", [X], {}),
    ("Dropout", [X, f32(0.3)], {}),
    ("Shape", [I], {"start": 1, "end": -1}),
    ("Reshape", [X, ints(2, -1)], {}),
    ("Reshape", [X, ints(0, 2, -1)], {}),
    ("Transpose", [I], {"perm": [0, 2, 3, 1]}),
    ("Squeeze", [X[:, :1], ints(1)], {}),
    ("Unsqueeze", [X, ints(0, -1)], {}),
    ("Concat", [X, Y], {"axis": -1}),
    ("Split", [S, ints(1, 3)], {"axis": 1}),
    ("Slice", [S, ints(1, -3), ints(3, 99), ints(1, 2)], {}),
    ("Slice", [S, ints(-1), ints(-99), ints(2), ints(-2)], {}),
    ("Slice", [S, ints(20), ints(-20), ints(2), ints(-1)], {}),
    ("Slice", [S, ints(0), ints(1)], {}),
    ("Slice", [S, ints(5), ints(2), ints(2)], {}),
    ("Gather", [X, ints(2, 0, -1)], {}),
    ("Gather", [X, np.int64(1)], {"axis": 1}),
    ("Gather", [S, np.array([[0, 1], [2, -1]])], {"axis": 1}),
    ("GatherElements", [X, np.array([[0, 1, -1, 0]])], {}),
    ("Expand", [X[:, None], ints(3, 2, 4)], {}),
    ("Expand", [X, ints(1, 1)], {}),
    ("Tile", [X, ints(2, 3)], {}),
    ("Pad", [X, ints(0, 1, 2, 0), f32(3)], {}),
    ("Pad", [S, ints(1, 2), f32(0), ints(-1)], {}),
    ("Trilu", [S], {}),
    ("Trilu", [S, np.int64(1)], {"upper": 0}),
    ("EyeLike", [X], {"k": 1, "dtype": 7}),
    ("Conv", [S, W], {"group": 2}),
    ("Conv", [S, W, np.ones(6, f32)], {"group": 2, "pads": [2, 1], "strides": [2]}),
    ("Conv", [I, WI], {"group": 2, "pads": [1, 0, 2, 1], "dilations": [2, 1]}),
    ("Conv", [I, WI], {"group": 2, "auto_pad": "SAME_UPPER", "strides": [2, 1]}),
    ("Conv", [I, WI], {"group": 2, "auto_pad": "SAME_LOWER"}),
    ("Conv", [I, WI], {"group": 2, "auto_pad": "VALID"}),
    (
        "ConvTranspose",
        [S, rng.normal(size=(4, 2, 3)).astype(f32)],
        {"strides": [2], "pads": [1, 1], "output_padding": [1]},
    ),
    ("MaxPool", [S], {"kernel_shape": [3], "strides": [2]}),
    ("MaxPool", [I], {"kernel_shape": [2, 2], "strides": [2, 3], "ceil_mode": 1}),
    ("MaxPool", [I], {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("AveragePool", [S], {"kernel_shape": [3], "strides": [2]}),
    ("AveragePool", [I], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1]}),
    ("AveragePool", [I], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "count_include_pad": 1}),
    ("AveragePool", [I], {"kernel_shape": [2, 2], "strides": [2, 3], "ceil_mode": 1}),
    ("GlobalAveragePool", [I], {}),
    ("GlobalMaxPool", [I], {}),
    ("BatchNormalization", [I, *C4], {}),
    ("BatchNormalization", [X, *C4], {"epsilon": 0.1}),
    ("LayerNormalization", [I, np.ones(8, f32), np.ones(8, f32)], {}),
    ("LayerNormalization", [X, C4[0]], {"axis": 1}),
    ("LayerNormalization", [S, C4[0][:, None]], {"axis": 1}),
    ("InstanceNormalization", [I, C4[0], C4[1]], {}),
    ("GroupNormalization", [I, C4[0], C4[1]], {"num_groups": 2}),
    ("ArrayFeatureExtractor", [X, ints(2, 0)], {}),
    ("Scaler", [X], {"offset": [0.5, 1.0, 0.0, 2.0], "scale": [2.0, 1.0, 0.5, 3.0]}),
    *[("Normalizer", [x], {"norm": norm}) for norm in ("L1", "L2", "MAX") for x in (P, X * f32([[1], [0], [-1]]))],
    ("LinearRegressor", [X], {"coefficients": [*map(float, range(8))], "intercepts": [0.5, 1.0], "targets": 2}),
    *[
        (
            "LinearClassifier",
            [X],
            {
                "coefficients": [0.1 * (k % 5 - 2) for k in range(12)],
                "intercepts": [0.5, 1.0, 0.2],
                "classlabels_ints": [7, 3, 5],
                "multi_class": 1,
                "post_transform": t,
            },
        )
        for t in ("NONE", "LOGISTIC", "SOFTMAX")
    ],
]

# What older versions wrote as attributes: (op, inputs, attributes, opset)
OLDER = [
    ("ReduceSum", [S], {"axes": [1]}, 11),
    ("ReduceMean", [S], {"axes": [0, 2], "keepdims": 0}, 13),
    ("Squeeze", [X[:, :1]], {"axes": [1]}, 11),
    ("Unsqueeze", [X], {"axes": [0, 3]}, 11),
    ("Clip", [X], {"min": -0.5, "max": 0.5}, 9),
    ("Dropout", [X], {"ratio": 0.3}, 10),
    ("Split", [S], {"axis": 1, "split": [1, 3]}, 11),
    ("Slice", [S], {"starts": [1], "ends": [3], "axes": [1]}, 9),
    ("Pad", [X], {"pads": [0, 1, 2, 0], "value": 3.0}, 10),
    ("TopK", [X, ints(2)], {}, 10),
]

# Where ONNX's reference evaluator 1.23 raises or is wrong: older softmax, uneven pads, LRN at the last channels, ...
BEYOND_REFERENCE = [
    ("Pad", [X, ints(-1, 1, 0, -1)], {}, 21),
    ("OneHot", [ints(1, 0, 2), ints(3), f32([2, 5])], {}, 21),
    ("OneHot", [N % 3, ints(3), f32([0, 1])], {"axis": 1}, 21),
    *[(f"Reduce{op}", [np.abs(N), ints(1)], {}, 18) for op in ("Mean", "LogSumExp", "L2", "LogSum")],
    ("ReduceSumSquare", [N.astype(np.int32), ints(1)], {}, 18),
    *[("Slice", [S, ints(-20), ints(end), ints(2), ints(-1)], {}, 21) for end in (3, -30)],
    (
        "ConvTranspose",
        [I, rng.normal(size=(4, 2, 3, 2)).astype(f32), np.ones(4, f32)],
        {"group": 2, "dilations": [2, 1]},
        21,
    ),
    ("MaxPool", [I], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1]}, 21),
    ("LRN", [I], {"size": 3, "alpha": 0.1, "bias": 2.0}, 21),
    ("Softmax", [S], {"axis": 1}, 11),
    ("LogSoftmax", [S], {}, 11),
    ("BatchNormalization", [I, *C4], {}, 9),
]


def file_of(op, inputs, attributes, opset=21):
    """A model of one node: its first input, and floats beside it, are inputs of the graph."""
    names = [f"i{i}" if isinstance(x, np.ndarray | np.generic) else "" for i, x in enumerate(inputs)]
    stored = [numpy_helper.from_array(np.asarray(x), n) for n, x in list(zip(names, inputs, strict=True))[1:] if n]
    domain = "" if ("", op) in OPERATORS else "ai.onnx.ml"
    count = 2 if op in ("TopK", "Split", "LinearClassifier") else 1
    node = helper.make_node(op, names, [f"o{i}" for i in range(count)], domain=domain, **attributes)
    first = helper.make_tensor_value_info("i0", helper.np_dtype_to_tensor_dtype(inputs[0].dtype), None)
    outputs = [helper.make_empty_tensor_value_info(o) for o in node.output]
    graph = helper.make_graph([node], "one", [first], outputs, stored)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def truth(model, x):
    """What onnxruntime computes, or ONNX's reference evaluator where that has no kernel or is not installed."""
    try:
        import onnxruntime
        from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel
    except ImportError:
        return ReferenceEvaluator(model).run(None, {"i0": x})
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except NoKernel:
        return ReferenceEvaluator(model).run(None, {"i0": x})
    return session.run(None, {"i0": x})


def compared(op, inputs, attributes, opset):
    model = file_of(op, inputs, attributes, opset)
    expected = truth(model, inputs[0])
    found = graph_of(model.SerializeToString())(inputs[0])
    for y, t in zip(expected, found if isinstance(found, tuple) else (found,), strict=True):
        z = t.detach().numpy()
        assert (z.shape, z.dtype) == (np.shape(y), y.dtype)
        np.testing.assert_allclose(z, y, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("op", "inputs", "attributes"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_an_operator_computes_what_the_reference_does(op, inputs, attributes):
    compared(op, inputs, attributes, 21)


@pytest.mark.parametrize(("op", "inputs", "attributes", "opset"), OLDER, ids=[c[0] for c in OLDER])
def test_older_versions_of_an_operator(op, inputs, attributes, opset):
    compared(op, inputs, attributes, opset)


@pytest.mark.parametrize(("op", "inputs", "attributes", "opset"), BEYOND_REFERENCE)
def test_an_operator_computes_what_onnxruntime_does(op, inputs, attributes, opset):
    pytest.importorskip("onnxruntime", reason="ONNX's reference evaluator is wrong here")
    compared(op, inputs, attributes, opset)


def test_positions_that_are_an_input_count_from_the_end_too():
    model = file_of("Gather", [S, ints(-1, 0, -4)], {"axis": 1})
    del model.graph.initializer[:]
    model.graph.input.append(helper.make_tensor_value_info("i1", 7, None))
    found = graph_of(model.SerializeToString())(S, ints(-1, 0, -4))
    np.testing.assert_array_equal(found.numpy(), S.take([-1, 0, -4], axis=1))


@pytest.mark.parametrize("axis", [0, -1])
def test_classes_below_0_count_from_the_end(axis):
    numbers = ints(-1, 0, 3, -4, -3)
    found = graph_of(file_of("OneHot", [numbers, ints(3), f32([2, 5])], {"axis": axis}).SerializeToString())(numbers)
    expected = np.where([[0, 0, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]], 5, 2)
    np.testing.assert_array_equal(found.detach().numpy(), expected if axis else expected.T)


def test_a_slice_that_goes_back_from_before_the_first_element_begins_there():
    """As the specification says, and onnxruntime does: a start is clamped to what is there."""
    for end in (-30, 3):
        model = file_of("Slice", [S, ints(-20), ints(end), ints(2), ints(-1)], {})
        found = graph_of(model.SerializeToString())(S).numpy()
        np.testing.assert_array_equal(found, S[:, :, :1] if end < 0 else S[:, :, :0])


def test_an_older_softmax_is_over_all_axes_from_one_on():
    for op, function in (("Softmax", scipy.special.softmax), ("LogSoftmax", scipy.special.log_softmax)):
        found = graph_of(file_of(op, [S], {"axis": 1}, 11).SerializeToString())(S).numpy()
        np.testing.assert_allclose(found, function(S.reshape(2, -1), axis=1).reshape(S.shape), rtol=1e-5)


def test_every_operator_is_tried():
    """Those of shapes alone are tried in whole models, see test_read.py, the recurrent ones in test_write.py."""
    tried = {op for op, *_ in CASES + BEYOND_REFERENCE}
    assert {name for _, name in OPERATORS} - tried == {"Constant", "ConstantOfShape", "Range", *CELLS}


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "message"),
    [
        ("Conv", [S, W], {"group": 2, "kernel_shape": [5]}, "expected filters of \\[5\\]"),
        ("Conv", [S, W], {"group": 2, "pads": [10**9, 0]}, "expected positive options"),
        ("MaxPool", [S], {"kernel_shape": [2], "pads": [5, 0]}, "expected an element in each window"),
        ("Expand", [X, ints(10**9, 3, 4)], {}, "at most 268435456 elements"),
        ("Tile", [X, ints(10**6, 10**6)], {}, "at most 268435456 elements"),
        ("Pad", [X, ints(0, 0, 10**9, 0)], {}, "at most 268435456 elements"),
        ("Gather", [X, ints(3)], {}, "expected positions"),
        ("Reshape", [X, ints(5, 5)], {}, "expected a shape of 12 elements"),
        ("Squeeze", [X, ints(0)], {}, "expected axes of length 1"),
        ("Unsqueeze", [X, ints(0, 0)], {}, "expected each new axis once"),
        ("Slice", [X, ints(0), ints(1), ints(0), ints(0)], {}, "expected steps other than 0"),
        ("Pad", [X, ints(1)], {}, "expected two widths for each of 2 axes"),
        ("Pad", [X, ints(0, 1, 2, 0)], {"mode": "reflect"}, "expected mode of constant, found 'reflect'"),
        ("Cast", [X], {"to": 14}, "found type 14"),
        ("Cast", [X], {"to": 99}, "found type 99"),
        ("Softmax", [X], {"axis": 5}, "expected an axis of 2, found 5"),
        ("BatchNormalization", [I, *C4], {"training_mode": 1}, "expected training_mode of 0"),
        ("Div", [N, ints(2, 0, -2)], {}, "expected divisors other than 0, found 0"),
        ("CumSum", [X, ints(0, 1)], {}, "as a constant of one element"),
        ("GRU", [S, np.ones((1, 6, 9), f32), np.ones((1, 6, 2), f32)], {}, "expected a GRU with linear_before_reset=1"),
        ("RNN", [S, np.ones((2, 2, 9), f32), np.ones((1, 2, 2), f32)], {}, "expected weights of 1 directions"),
        ("MatMul", [X, Y], {}, "expected"),
    ],
)  # fmt: skip
def test_what_an_operator_cannot_do_is_refused_in_one_line(op, inputs, attributes, message):
    with pytest.raises(sn.ScratchnetError, match=f"node 0 \\({op}\\): .*{message}") as error:
        graph_of(file_of(op, inputs, attributes).SerializeToString())(inputs[0])
    assert "\n" not in str(error.value)


def test_a_shape_that_depends_on_values_is_refused():
    shape = helper.make_tensor_value_info("i1", 7, None)
    model = file_of("Reshape", [X, ints(2, 6)], {})
    del model.graph.initializer[:]
    model.graph.input.append(shape)
    with pytest.raises(CheckpointError, match="lengths that follow from shapes and constants"):
        graph_of(model.SerializeToString())(X, ints(2, 6))
