"""The public face by table: a valid call of everything public, and the things people hand over by mistake.

tests/test_errors.py replaces each argument of each call by each of the mistakes. What is public is found out here, so
that a new name without a valid call is noticed.
"""

import datetime
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import scratchnet as sn
import scratchnet.random
from scratchnet.data.large import stored

nn, F, init, optim, data = sn.nn, sn.nn.functional, sn.nn.init, sn.optim, sn.data
schedules, parallel, testing = optim.lr_scheduler, sn.parallel, sn.testing

SPACES = {
    "sn": sn,
    "nn": nn,
    "F": F,
    "init": init,
    "utils": nn.utils,
    "optim": optim,
    "lr_scheduler": schedules,
    "data": data,
    "metrics": sn.metrics,
    "networks": sn.networks,
    "random": scratchnet.random,
    "parallel": parallel,
    "testing": testing,
    "cuda": sn.cuda,
    "callbacks": sn.callbacks,
    "report": sn.report,
    "onnx": sn.onnx,
    "caffe": sn.caffe,
    "pytorch": sn.pytorch,
}


# --- valid arguments, made anew for each call ------------------------------------------------------------------------


def x() -> sn.Tensor:
    return sn.Tensor(np.linspace(0.1, 0.9, 6, dtype=np.float32).reshape(2, 3))


def square() -> sn.Tensor:
    return sn.Tensor(np.linspace(0.1, 0.9, 9, dtype=np.float32).reshape(3, 3))


def row(value: float = 1.0) -> sn.Tensor:
    return sn.Tensor(np.full(3, value, np.float32))


def images() -> sn.Tensor:
    return sn.Tensor(np.linspace(0.1, 0.9, 50, dtype=np.float32).reshape(1, 2, 5, 5))


def sequences() -> sn.Tensor:
    return sn.Tensor(np.linspace(0.1, 0.9, 12, dtype=np.float32).reshape(1, 2, 6))


def states() -> sn.Tensor:
    return sn.Tensor(np.full((1, 2, 3), 0.5, np.float32))


LAYERS_OF_STEPS = {
    "input_size": 2, "hidden_size": 3, "num_layers": 2, "bias": False, "batch_first": True, "dropout": 0.5,
    "bidirectional": True,
}  # fmt: skip


def filters(*shape: int) -> sn.Tensor:
    return sn.Tensor(np.full(shape, 0.5, np.float32))


CONVOLUTION = {"in_channels": 2, "out_channels": 4, "kernel_size": 2, "stride": 2, "padding": 1, "dilation": 1}
POOLING = {"kernel_size": 2, "stride": 2, "padding": 1, "ceil_mode": True}


def logits() -> np.ndarray:
    return np.arange(6, dtype=np.float32).reshape(2, 3)


def labels() -> np.ndarray:
    return np.array([0, 2])


def timeline() -> str:
    span = {"ph": "X", "name": "compute", "tid": 1, "ts": 5.0, "dur": 2.0, "args": {"step": 0}}
    return path("t.json", lambda name: Path(name).write_text(json.dumps({"traceEvents": [span]})))


def costs() -> sn.report.Costs:
    return sn.report.Costs(2, {"ring": {8: 1e-5}}, 1e-6, 1e9)


def tested_finder() -> Any:
    finder = sn.callbacks.LearningRateFinder()
    finder.rates, finder.losses, finder.suggestion = [0.1, 0.2, 0.4], [3.0, 2.0, 1.0], 0.2
    return finder


def parameter() -> nn.Parameter:
    return nn.Parameter(np.ones((2, 2), np.float32))


def sgd(**options: Any) -> optim.SGD:
    return optim.SGD([parameter()], lr=0.1, momentum=0.5)


def samples() -> data.TensorDataset:
    return data.TensorDataset(np.ones((4, 2), np.float32), np.array([0, 1, 0, 1]))


def loader() -> data.DataLoader:
    return data.DataLoader(samples(), batch_size=2)


def table() -> str:
    def write(name: str) -> None:
        with open(name, "w") as file:
            file.write("a,b,y\n1,x,0\n2,y,1\n")

    return path("csv", write)


def pictures() -> str:
    def write(name: str) -> None:
        from PIL import Image

        for folder in "ab":
            os.makedirs(f"{name}/{folder}")
            Image.fromarray(np.zeros((2, 2), np.uint8)).save(f"{name}/{folder}/1.png")

    return path("pictures", write)


def sounds() -> str:
    def write(name: str) -> None:
        import wave

        for folder in "ab":
            os.makedirs(f"{name}/{folder}")
            with wave.open(f"{name}/{folder}/1.wav", "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", ""))
                file.writeframes(np.arange(800, dtype="<i2").tobytes())

    return path("sounds", write)


def table_data() -> data.TensorDataset:
    return data.from_csv(table(), "y", features=["a"])


def stored_rows() -> str:
    def write(name: str) -> None:
        folder = Path(name)
        with stored.filling(folder):
            files = stored.begin(folder)
            with stored.Writer(files, ["a", "b"], None) as writer:
                writer.write([np.arange(3.0), np.ones(3)], np.arange(3.0))
            stored.finish(files, 3, ["a", "b"], None, None)

    return path("stored", write)


def saved_model(dataset: Any = None) -> str:
    model = nn.Linear(2, 3) if dataset is None else nn.Linear(1, 2)
    return path(f"model{dataset is None}", lambda name: sn.save_model(name, model, dataset))


def caffe_net() -> tuple[str, str]:
    text = 'input: "x" input_shape { dim: 1 dim: 2 } layer { name: "a" type: "InnerProduct" bottom: "x" top: "y" %s}'

    def write(name: str, inside: str, binary: bool) -> None:
        from google.protobuf import text_format

        from scratchnet.formats.caffe.messages import net_parameter

        net = text_format.Parse(text % inside, net_parameter()())
        with open(name, "wb") as file:
            file.write(net.SerializeToString() if binary else (text % inside).encode())

    options = "inner_product_param { num_output: 1 bias_term: false }"
    blobs = "blobs { shape { dim: 1 dim: 2 } data: 1 data: 2 }"
    return path("net.prototxt", lambda n: write(n, options, False)), path(
        "net.caffemodel", lambda n: write(n, blobs, True)
    )


def onnx_file() -> str:
    return path("model.onnx", lambda name: sn.onnx.export(nn.Linear(2, 3), name, rows()))


def rows() -> np.ndarray:
    return np.ones((3, 2), np.float32)


def predictor() -> sn.Predictor:
    return sn.load_model(saved_model())


def trainer() -> sn.Trainer:
    model = nn.Linear(2, 2)
    return sn.Trainer(model, optim.SGD(model.parameters(), lr=0.1), F.cross_entropy, progress=False, jit=False)


def closure_of(p: sn.Tensor) -> Callable[[], sn.Tensor]:
    def closure() -> sn.Tensor:
        loss = (p * p).sum()
        loss.backward()
        return loss

    return closure


def loss_of(t: sn.Tensor) -> sn.Tensor:
    return (t * t).sum()


def kernel(x, out):
    out[...] = x


UNARY_METHODS = """detach numpy float double half bfloat16 long int short byte bool cpu dim ndimension tolist
is_contiguous stride is_floating_point abs_ ceil_ cos_ exp_ floor_ log_ neg_ reciprocal_ relu_
round_ rsqrt_ sigmoid_ sin_ sqrt_ square_ tanh_ clamp_ clip_"""
UNARY = """exp log sqrt abs sign tanh sigmoid relu erf gelu softplus silu neg log1p log2 log10 expm1 sin cos tan floor
    ceil square reciprocal rsqrt isnan isinf isfinite logical_not clone contiguous
    ravel numel nonzero is_tensor diagonal diag t"""
BINARY = """maximum minimum add sub mul div pow lt le gt ge eq ne logical_and logical_or logical_xor view_as reshape_as
    expand_as equal"""
# What the constructors take beside their own.
MADE = {"dtype": "float32", "device": "cpu", "requires_grad": True}
DRAWN = {**MADE, "generator": scratchnet.random.Generator(1)}


def numbers() -> sn.Tensor:
    return sn.Tensor([[0, 1, 1], [1, 0, 0]])


def vector() -> sn.Tensor:
    return sn.Tensor([0.5, 1.5, 2.5])


# fmt: off
EXAMPLES: dict[str, Callable[[], dict[str, Any]]] = {
    "pytorch.state_dict": lambda: {"model": nn.Linear(2, 3)},
    "pytorch.load_state_dict": lambda: {
        "model": nn.Linear(2, 3), "source": sn.pytorch.state_dict(nn.Linear(2, 3)), "strict": True,
    },
    "caffe.load": lambda: {"prototxt": caffe_net()[0], "caffemodel": caffe_net()[1]},
    "onnx.export": lambda: {"model": nn.Linear(2, 3), "path": "a.onnx", "example": rows(), "batch": "n"},
    "onnx.load": lambda: {"path": onnx_file()},
    **{f"sn.{name}": lambda: {"x": x()} for name in UNARY.split()},
    **{
        f"F.{name}": lambda: {"x": x()}
        for name in ("relu", "tanh", "sigmoid", "silu", "logsigmoid", "softsign", "mish", "relu6", "selu")
    },
    "F.gelu": lambda: {"x": x(), "approximate": "tanh"},
    "F.softplus": lambda: {"x": x(), "beta": 2.0},
    "F.leaky_relu": lambda: {"x": x(), "negative_slope": 0.1},
    "F.elu": lambda: {"x": x(), "alpha": 0.5},
    "F.hardtanh": lambda: {"x": x(), "min_val": -0.5, "max_val": 0.5},
    "F.one_hot": lambda: {"x": numbers(), "num_classes": 2},
    "F.prelu": lambda: {"x": x(), "weight": row()},
    **{f"sn.{name}": lambda: {"x": x(), "other": x()} for name in BINARY.split()},
    **{
        f"sn.{name}": lambda: {"x": x(), "axis": 1, "keepdims": True}
        for name in ["sum", "mean", "max", "min", "amax", "amin", "argmax", "argmin", "any", "all", "prod", "logsumexp"]
    },
    **{f"sn.{name}": lambda: {"x": x(), "axis": 1} for name in ("cumsum", "cumprod", "unbind")},
    "sn.norm": lambda: {"x": x(), "p": 3.0, "axis": 1, "keepdims": True},
    "sn.sort": lambda: {"x": x(), "dim": 1, "descending": True},
    "sn.argsort": lambda: {"x": x(), "axis": 1, "descending": True},
    "sn.topk": lambda: {"x": x(), "k": 2, "axis": 1, "largest": True},
    "sn.round": lambda: {"x": x(), "decimals": 2},
    "sn.clamp": lambda: {"x": x(), "min": 0.2, "max": 0.8},
    **{
        f"sn.{name}": lambda: {"x": x(), "other": x(), "rtol": 0.1, "atol": 0.1, "equal_nan": True}
        for name in ("isclose", "allclose")
    },
    **{f"sn.{name}": lambda: {"x": x(), "shape": (3, 2)} for name in ("view",)},
    "sn.flatten": lambda: {"x": x(), "start_dim": 0, "end_dim": 1},
    "sn.unflatten": lambda: {"x": x(), "axis": 1, "sizes": (3, 1)},
    "sn.expand": lambda: {"x": x(), "sizes": (2, 2, -1)},
    **{f"sn.{name}": lambda: {"x": x(), "sizes": (2, 1)} for name in ("repeat", "tile")},
    "sn.repeat_interleave": lambda: {"x": x(), "repeats": 2, "axis": 1},
    "sn.swapaxes": lambda: {"x": x(), "a": 0, "b": 1},
    "sn.movedim": lambda: {"x": x(), "source": 0, "destination": 1},
    "sn.flip": lambda: {"x": x(), "dims": 0, "more": (1,)},
    "sn.roll": lambda: {"x": x(), "shifts": 1, "dims": 0},
    "sn.split": lambda: {"x": x(), "sizes": 2, "axis": 1},
    "sn.chunk": lambda: {"x": x(), "chunks": 2, "axis": 1},
    **{f"sn.{name}": lambda: {"x": x(), "diagonal": 1} for name in ("tril", "triu")},
    "sn.index_select": lambda: {"x": x(), "axis": 1, "index": [0, 2]},
    "sn.gather": lambda: {"x": x(), "axis": 1, "index": numbers()},
    "sn.masked_fill": lambda: {"x": x(), "mask": numbers() > 0, "value": 1.5},
    "sn.masked_select": lambda: {"x": x(), "mask": numbers() > 0},
    "sn.one_hot": lambda: {"x": numbers(), "num_classes": 2},
    "sn.unique": lambda: {"x": numbers(), "return_counts": True},
    "sn.bincount": lambda: {"x": labels(), "minlength": 2},
    **{f"sn.{name}": lambda: {"x": vector(), "other": vector()} for name in ("dot", "outer")},
    "sn.mm": lambda: {"x": x(), "other": square()},
    "sn.mv": lambda: {"x": x(), "other": vector()},
    "sn.bmm": lambda: {"x": x().unsqueeze(0), "other": square().unsqueeze(0)},
    "sn.trace": lambda: {"x": square()},
    "sn.einsum": lambda: {"equation": "ij,jk->ik", "operands": (x(), square())},
    "sn.meshgrid": lambda: {"tensors": (vector(), vector()), "indexing": "xy"},
    **{f"sn.{name}": lambda: {"tensors": [x(), x()]} for name in ("hstack", "vstack")},
    **{f"sn.{name}": lambda: {"tensors": [x(), x()], "axis": 1} for name in ("concat", "concatenate")},
    # --- constructors ---
    **{f"sn.{name}": lambda: {"size": (2, 3), **MADE} for name in ("zeros", "ones", "empty")},
    **{f"sn.{name}": lambda: {"size": (2, 3), **DRAWN} for name in ("rand", "randn")},
    **{f"sn.{name}_like": lambda: {"x": x(), **MADE} for name in ("zeros", "ones", "empty", "rand", "randn")},
    "sn.full": lambda: {"size": (2, 3), "fill_value": 1.5, **MADE},
    "sn.full_like": lambda: {"x": x(), "fill_value": 1.5, **MADE},
    "sn.arange": lambda: {"start": 1.0, "end": 5.0, "step": 2.0, **MADE},
    "sn.linspace": lambda: {"start": 0.0, "end": 1.0, "steps": 3, **MADE},
    "sn.eye": lambda: {"n": 2, "m": 3, **MADE},
    "sn.as_tensor": lambda: {"data": [1.0], "dtype": "float32", "device": "cpu"},
    "sn.from_numpy": lambda: {"array": logits()},
    "sn.normal": lambda: {"mean": 0.5, "std": 2.0, "size": (2,), **DRAWN},
    "sn.randint": lambda: {"low": 0, "high": 5, "size": (2,), **DRAWN},
    "sn.randint_like": lambda: {"x": x(), "low": 0, "high": 5, "dtype": "int64", "device": "cpu"},
    "sn.randperm": lambda: {"n": 5, "dtype": "int64", "device": "cpu", "generator": scratchnet.random.Generator(1)},
    "sn.bernoulli": lambda: {"p": x(), "generator": scratchnet.random.Generator(1)},
    "sn.multinomial": lambda: {
        "probabilities": x(), "num_samples": 2, "replacement": True, "generator": scratchnet.random.Generator(1),
    },
    "sn.device": lambda: {"name": "cpu"},
    "sn.op": lambda: {
        "forward": np.exp, "vjps": (lambda g, y, x: g * y,), "name": "e", "kernels": {"cpu": np.exp},
    },
    "sn.Generator": lambda: {"seed": 1, "stream": 2},
    **{f"sn.{name}": lambda: {"x": x(), "axis": 1, "keepdims": True, "ddof": 1} for name in ("var", "std")},
    **{
        f"{space}.{name}": lambda: {"x": x(), "axis": 1} for space in ("sn", "F") for name in ("softmax", "log_softmax")
    },
    "sn.clip": lambda: {"x": x(), "low": 0.2, "high": 0.8},
    "sn.where": lambda: {"condition": np.ones((2, 3), bool), "a": x(), "b": x()},
    "sn.reshape": lambda: {"x": x(), "shape": (3, 2)},
    "sn.broadcast_to": lambda: {"x": x(), "shape": (2, 3)},
    "sn.permute": lambda: {"x": x(), "axes": (1, 0)},
    "sn.transpose": lambda: {"x": x(), "a": 0, "b": 1},
    "sn.squeeze": lambda: {"x": x(), "axis": 0},
    "sn.unsqueeze": lambda: {"x": x(), "axis": 0},
    "sn.pad": lambda: {"x": x(), "widths": 2, "value": 1.0},
    "sn.matmul": lambda: {"x": x(), "other": square()},
    "sn.cat": lambda: {"tensors": [x(), x()], "axis": 1},
    "sn.stack": lambda: {"tensors": [x(), x()], "axis": 1},
    "sn.grad": lambda: {"f": loss_of, "argnums": 0},
    "sn.value_and_grad": lambda: {"f": loss_of, "argnums": 0},
    "sn.jit": lambda: {"step": loss_of},
    "sn.no_grad": lambda: {"function": loss_of},
    "sn.precision": lambda: {"name": "bfloat16"},
    "sn.default_device": lambda: {"name": "cpu"},
    "sn.get_num_threads": dict,
    "sn.set_num_threads": lambda: {"n": 1},
    "sn.manual_seed": lambda: {"seed": 3},
    "sn.load": lambda: {"path": path("saved", sn.save)},
    "sn.save": lambda: {"path": path("new"), "state": {"step": 3}},
    "sn.tensor": lambda: {"data": [1.0, 2.0], "requires_grad": True, "dtype": "float32", "device": "cpu"},
    "sn.Tensor": lambda: {"data": [1.0, 2.0], "requires_grad": True, "dtype": "float32", "device": "cpu"},
    "sn.Tensor.astype": lambda: {"self": x(), "dtype": "float64"},
    "sn.Tensor.backward": lambda: {
        "y": nn.Parameter([1.0]) * 2,
        "gradient": np.ones(1, np.float32),
        "retain_graph": False,
        "create_graph": False,
    },
    "sn.Tensor.to": lambda: {"self": x(), "targets": ("numpy",), "device": "numpy", "dtype": "float64"},
    "sn.Tensor.type": lambda: {"self": x(), "dtype": "float64"},
    **{
        f"sn.Tensor.{name}": lambda: {"self": row()}
        for name in UNARY_METHODS.split()
    },
    "sn.Tensor.masked_fill_": lambda: {"self": row(), "args": (row() > 0, 2.5)},
    **{f"sn.Tensor.{name}": lambda: {"self": row(), "a": 0.5, "b": 2.5} for name in ("normal_", "uniform_")},
    "sn.Tensor.zero_grad": lambda: {"self": with_gradient()[0], "set_to_none": False},
    "sn.Tensor.register_hook": lambda: {"self": parameter(), "hook": lambda g: None},
    "sn.Tensor.retain_grad": lambda: {"self": parameter()},
    **{f"sn.Tensor.{op}_": lambda: {"self": row(), "other": row()} for op in ("add", "sub", "mul", "div", "pow")},
    "sn.Tensor.copy_": lambda: {"self": row(), "source": row()},
    "sn.Tensor.fill_": lambda: {"self": row(), "value": 1.5},
    "sn.Tensor.zero_": lambda: {"self": row()},
    "sn.Tensor.requires_grad_": lambda: {"self": row(), "requires_grad": True},
    "sn.Tensor.item": lambda: {"self": sn.Tensor([1.0])},
    "sn.save_model": lambda: {"path": path("new"), "model": nn.Linear(2, 3), "data": samples(), "outputs": "logits"},
    "sn.load_model": lambda: {
        "path": saved_model(), "model": nn.Linear(2, 3), "data": samples(), "functions": [], "device": "cpu",
    },
    **{
        f"sn.Predictor.{name}": lambda: {"self": predictor(), "x": rows(), "prepared": True, "batch_size": 8}
        for name in ("outputs", "predict_proba", "predict")
    },
    "sn.Predictor.features": lambda: {"self": predictor(), "x": rows()},
    "sn.Predictor.read": lambda: {"self": sn.load_model(saved_model(table_data())), "path": table()},
    "sn.History": lambda: {"records": [{"epoch": 1}], "workers": ()},
    "sn.History.lines_of_workers": lambda: {"self": sn.History([])},
    "sn.Trainer": lambda: (
        lambda model: {
            "model": model,
            "optimizer": optim.SGD(model.parameters(), lr=0.1),
            "loss": F.cross_entropy,
            "scheduler": None,
            "workers": 1,
            "shards": 1,
            "strategy": "all_reduce",
            "devices": None,
            "seed": 0,
            "accumulate": 1,
            "clip_norm": 1.0,
            "nonfinite": "raise",
            "folder": None,
            "save_every": 1,
            "config": {},
            "jit": False,
            "progress": False,
            "timeline": None,
            "memory": None,
        }
    )(nn.Linear(2, 2)),
    "sn.Trainer.fit": lambda: {
        "self": trainer(),
        "train_loader": loader(),
        "val_loader": loader(),
        "epochs": 1,
        "resume": None,
    },
    "sn.Trainer.evaluate": lambda: {"self": trainer(), "loader": loader()},
    "sn.Trainer.predict": lambda: {"self": trainer(), "x": np.ones((2, 2), np.float32), "batch_size": 8},
    "sn.Trainer.resize": lambda: {"self": trainer(), "workers": 2},
    # --- nn ---
    **{f"nn.{name}": dict for name in ("Tanh", "Sigmoid", "LogSigmoid", "Softsign", "Module", "Identity")},
    **{f"nn.{name}": lambda: {"inplace": True} for name in ("ReLU", "ReLU6", "SiLU", "SELU", "Mish")},
    "nn.GELU": lambda: {"approximate": "tanh"},
    "nn.LeakyReLU": lambda: {"negative_slope": 0.1, "inplace": True},
    "nn.ELU": lambda: {"alpha": 0.5, "inplace": True},
    "nn.Softplus": lambda: {"beta": 2.0},
    "nn.Hardtanh": lambda: {"min_val": -0.5, "max_val": 0.5, "inplace": True},
    **{f"nn.{name}": lambda: {"dim": 1} for name in ("Softmax", "LogSoftmax")},
    "nn.PReLU": lambda: {"num_parameters": 3, "init": 0.1},
    "nn.PReLU.forward": lambda: {"self": nn.PReLU(), "x": x()},
    "nn.Identity.forward": lambda: {"self": nn.Identity(), "x": x()},
    "nn.ModuleList": lambda: {"modules": [nn.ReLU()]},
    "nn.ParameterList": lambda: {"values": [parameter()]},
    "nn.ModuleDict": lambda: {"modules": {"a": nn.ReLU()}},
    **{f"nn.ModuleDict.{name}": lambda: {"self": nn.ModuleDict()} for name in ("items", "keys", "values")},
    "nn.ModuleDict.pop": lambda: {"self": nn.ModuleDict({"a": nn.ReLU()}), "name": "a"},
    "nn.ModuleDict.update": lambda: {"self": nn.ModuleDict(), "modules": {"a": nn.ReLU()}},
    "nn.MLP": lambda: {"sizes": (4, 3, 2), "activation": "tanh", "dropout": 0.1},
    **{f"{space}.summary": lambda: {"model": nn.Linear(2, 2)} for space in ("nn", "utils")},
    "nn.Linear": lambda: {"in_features": 2, "out_features": 3, "bias": True},
    "nn.Dropout": lambda: {"p": 0.5},
    "nn.LayerNorm": lambda: {"normalized_shape": 3, "eps": 1e-5, "elementwise_affine": True},
    "nn.BatchNorm1d": lambda: {"num_features": 3, "eps": 1e-5, "momentum": 0.1, "affine": True},
    "nn.Embedding": lambda: {"num_embeddings": 3, "embedding_dim": 2, "padding_idx": 0, "sparse": False},
    "nn.EmbeddingBag": lambda: {
        "num_embeddings": 3,
        "embedding_dim": 2,
        "mode": "sum",
        "include_last_offset": False,
        "padding_idx": 0,
        "sparse": False,
    },
    "nn.Flatten": lambda: {"start_dim": 1, "end_dim": -1},
    "nn.Sequential": lambda: {"modules": (nn.ReLU(), nn.Tanh())},
    "nn.Buffer": lambda: {"data": [1.0], "dtype": "float32", "device": "cpu"},
    "nn.Parameter": lambda: {"data": [1.0], "requires_grad": True, "dtype": "float32", "device": "cpu"},
    "nn.CrossEntropyLoss": lambda: {
        "weight": row(),
        "ignore_index": -100,
        "reduction": "sum",
        "label_smoothing": 0.1,
    },
    "nn.NLLLoss": lambda: {"weight": row(), "ignore_index": -100, "reduction": "sum"},
    **{f"nn.{name}": lambda: {"reduction": "sum"} for name in ("MSELoss", "L1Loss")},
    "nn.HuberLoss": lambda: {"reduction": "sum", "delta": 0.5},
    "nn.SmoothL1Loss": lambda: {"reduction": "sum", "beta": 0.5},
    "nn.BCEWithLogitsLoss": lambda: {"weight": row(), "reduction": "sum", "pos_weight": row()},
    "nn.BCELoss": lambda: {"weight": row(), "reduction": "sum"},
    "nn.KLDivLoss": lambda: {"reduction": "batchmean", "log_target": True},
    "nn.BatchNorm1d.forward": lambda: {"self": nn.BatchNorm1d(3), "x": x()},
    "nn.Dropout.forward": lambda: {"self": nn.Dropout(), "x": x()},
    "nn.Embedding.forward": lambda: {"self": nn.Embedding(3, 2), "indices": labels()},
    "nn.Embedding.reset_parameters": lambda: {"self": nn.Embedding(3, 2)},
    "nn.EmbeddingBag.forward": lambda: {
        "self": nn.EmbeddingBag(3, 2, "sum"),
        "indices": labels(),
        "offsets": np.array([0, 1]),
        "per_sample_weights": np.ones(len(labels()), np.float32),
    },
    "nn.Flatten.forward": lambda: {"self": nn.Flatten(), "x": x()},
    "nn.LayerNorm.forward": lambda: {"self": nn.LayerNorm(3), "x": x()},
    "nn.Linear.forward": lambda: {"self": nn.Linear(3, 2), "x": x()},
    "nn.Linear.reset_parameters": lambda: {"self": nn.Linear(3, 2)},
    "nn.Sequential.forward": lambda: {"self": nn.Sequential(nn.ReLU()), "x": x()},
    **{
        f"nn.Module.{name}": lambda: {"self": nn.Linear(2, 2)}
        for name in (
            "buffers",
            "children",
            "eval",
            "extra_repr",
            "modules",
            "cpu",
            "double",
            "float",
            "named_buffers",
            "named_children",
            "named_modules",
            "named_parameters",
            "parameters",
            "state_dict",
        )
    },
    "nn.Module.zero_grad": lambda: {"self": nn.Linear(2, 2), "set_to_none": False},
    "nn.Module.get_submodule": lambda: {"self": nn.Sequential(nn.ReLU()), "target": "0"},
    "nn.Module.get_parameter": lambda: {"self": nn.Linear(2, 2), "target": "weight"},
    "nn.Module.get_buffer": lambda: {"self": nn.BatchNorm1d(2), "target": "running_mean"},
    "nn.Module.register_parameter": lambda: {"self": nn.Linear(2, 2), "name": "more", "param": parameter()},
    **{
        f"nn.Module.{name}": lambda: {"self": nn.Linear(2, 2), "name": "more", "module": nn.ReLU()}
        for name in ("add_module", "register_module")
    },
    **{
        f"nn.Module.register_{name}_hook": lambda: {"self": nn.Linear(2, 2), "hook": lambda *given: None}
        for name in ("forward_pre", "forward", "full_backward")
    },
    "nn.Module.apply": lambda: {"self": nn.Linear(2, 2), "fn": lambda module: None},
    "nn.Module.load_state_dict": lambda: {
        "self": nn.Linear(2, 2),
        "state": nn.Linear(2, 2).state_dict(),
        "strict": True,
    },
    "nn.Module.register_buffer": lambda: {"self": nn.Linear(2, 2), "name": "count", "data": [1.0]},
    "nn.Module.requires_grad_": lambda: {"self": nn.Linear(2, 2), "requires_grad": False},
    "nn.Module.to": lambda: {"self": nn.Linear(2, 2), "device": "numpy", "dtype": "float64"},
    "nn.Module.train": lambda: {"self": nn.Linear(2, 2), "mode": True},
    **{f"nn.{name}": lambda: CONVOLUTION | {"groups": 2, "bias": True} for name in ("Conv1d", "Conv2d")},
    "nn.ConvTranspose2d": lambda: CONVOLUTION | {"groups": 2, "bias": True, "output_padding": 1},
    **{f"nn.MaxPool{n}d": lambda: POOLING | {"dilation": 1} for n in (1, 2)},
    **{f"nn.AvgPool{n}d": lambda: POOLING | {"count_include_pad": False} for n in (1, 2)},
    "nn.AdaptiveAvgPool2d": lambda: {"output_size": 2},
    **{f"nn.{name}Pad2d": lambda: {"padding": (1, 0, 1, 1)} for name in ("Zero", "Reflection", "Replication")},
    "nn.ZeroPad2d.forward": lambda: {"self": nn.ZeroPad2d(1), "x": images()},
    **{f"nn.Dropout{n}d": lambda: {"p": 0.5} for n in (1, 2)},
    **{
        f"F.dropout{n}d": lambda make=make: {"x": make(), "p": 0.5, "training": True}
        for n, make in ((1, sequences), (2, images))
    },
    "F.pad": lambda: {"x": images(), "pad": (1, 0), "mode": "constant", "value": 2.0},
    "nn.BatchNorm2d": lambda: {"num_features": 3, "eps": 1e-5, "momentum": 0.1, "affine": True},
    "nn.BatchNorm2d.forward": lambda: {"self": nn.BatchNorm2d(2), "x": images()},
    "nn.AdaptiveAvgPool2d.forward": lambda: {"self": nn.AdaptiveAvgPool2d(2), "x": images()},
    "nn.Conv2d.forward": lambda: {"self": nn.Conv2d(2, 3, 2), "x": images()},
    "nn.ConvTranspose2d.forward": lambda: {"self": nn.ConvTranspose2d(2, 3, 2), "x": images()},
    "nn.MaxPool2d.forward": lambda: {"self": nn.MaxPool2d(2), "x": images()},
    "nn.AvgPool2d.forward": lambda: {"self": nn.AvgPool2d(2), "x": images()},
    **{f"nn.{name}": lambda: LAYERS_OF_STEPS for name in ("GRU", "LSTM")},
    "nn.RNN": lambda: LAYERS_OF_STEPS | {"nonlinearity": "relu"},
    **{f"nn.{name}Cell": lambda: {"input_size": 2, "hidden_size": 3, "bias": False} for name in ("GRU", "LSTM")},
    "nn.RNNCell": lambda: {"input_size": 2, "hidden_size": 3, "bias": False, "nonlinearity": "relu"},
    "nn.GRU.forward": lambda: {"self": nn.GRU(6, 3), "x": sequences(), "hx": states(), "lengths": [1, 0]},
    "nn.RNN.forward": lambda: {"self": nn.RNN(6, 3), "x": sequences(), "hx": states(), "lengths": [1, 0]},
    "nn.LSTM.forward": lambda: {"self": nn.LSTM(6, 3), "x": sequences(), "hx": (states(), states()), "lengths": [1, 0]},
    "nn.GRUCell.forward": lambda: {"self": nn.GRUCell(3, 3), "x": x(), "hx": states()[0]},
    "nn.RNNCell.forward": lambda: {"self": nn.RNNCell(3, 3), "x": x(), "hx": states()[0]},
    "nn.LSTMCell.forward": lambda: {"self": nn.LSTMCell(3, 3), "x": x(), "hx": (states()[0], states()[0])},
    "nn.MultiheadAttention": lambda: {
        "embed_dim": 6, "num_heads": 2, "dropout": 0.5, "bias": False, "batch_first": True,
    },
    "nn.MultiheadAttention.forward": lambda: {
        "self": nn.MultiheadAttention(6, 2), "query": sequences(), "key": sequences(), "value": sequences(),
        "key_padding_mask": np.zeros((2, 1), bool), "need_weights": False, "attn_mask": np.zeros((1, 1), bool),
        "average_attn_weights": False, "is_causal": True,
    },
    "nn.MultiheadAttention.reset_parameters": lambda: {"self": nn.MultiheadAttention(6, 2)},
    "nn.PositionalEncoding": lambda: {"d_model": 6, "dropout": 0.5, "batch_first": True},
    "nn.PositionalEncoding.forward": lambda: {"self": nn.PositionalEncoding(6), "x": sequences()},
    "nn.TransformerEncoderLayer": lambda: {
        "d_model": 6, "nhead": 2, "dim_feedforward": 4, "dropout": 0.5, "activation": "gelu", "layer_norm_eps": 1e-4,
        "batch_first": True, "norm_first": True,
    },
    "nn.TransformerEncoderLayer.forward": lambda: {
        "self": nn.TransformerEncoderLayer(6, 2, 4), "src": sequences(), "src_mask": np.zeros((1, 1), bool),
        "src_key_padding_mask": np.zeros((2, 1), bool), "is_causal": True,
    },
    "nn.TransformerEncoder": lambda: {
        "encoder_layer": nn.TransformerEncoderLayer(6, 2, 4), "num_layers": 2, "norm": nn.LayerNorm(6),
    },
    "nn.TransformerEncoder.forward": lambda: {
        "self": nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 4), 2), "src": sequences(),
        "mask": np.zeros((1, 1), bool), "src_key_padding_mask": np.zeros((2, 1), bool), "is_causal": True,
    },
    "nn.generate_square_subsequent_mask": lambda: {"sz": 3},
    "F.scaled_dot_product_attention": lambda: {
        "query": sequences(), "key": sequences(), "value": sequences(), "attn_mask": np.ones((2, 2), bool),
        "dropout_p": 0.5, "is_causal": False, "scale": 0.5,
    },
    "F.conv1d": lambda: {
        "x": sequences(), "weight": filters(4, 1, 2), "bias": filters(4), "stride": 2, "padding": 1, "dilation": 2,
        "groups": 2,
    },
    "F.conv2d": lambda: {
        "x": images(), "weight": filters(4, 1, 2, 2), "bias": filters(4), "stride": 2, "padding": 1, "dilation": 2,
        "groups": 2,
    },
    "F.conv_transpose2d": lambda: {
        "x": images(), "weight": filters(2, 2, 2, 2), "bias": filters(4), "stride": 2, "padding": 1,
        "output_padding": 1, "groups": 2, "dilation": 2,
    },
    **{
        f"F.{kind}_pool{n}d": lambda make=make, last=last: {"x": make()} | POOLING | last
        for n, make in ((1, sequences), (2, images))
        for kind, last in (("max", {"dilation": 1}), ("avg", {"count_include_pad": False}))
    },
    "F.adaptive_avg_pool2d": lambda: {"x": images(), "output_size": (2, None)},
    "F.batch_norm": lambda: {
        "x": x(),
        "running_mean": row(0),
        "running_var": row(),
        "weight": row(),
        "bias": row(),
        "training": False,
        "momentum": 0.1,
        "eps": 1e-5,
    },
    "F.binary_cross_entropy_with_logits": lambda: {
        "logits": x(),
        "target": x(),
        "weight": row(),
        "reduction": "mean",
        "pos_weight": row(),
    },
    "F.binary_cross_entropy": lambda: {"p": x(), "target": x(), "weight": row(), "reduction": "mean"},
    "F.cross_entropy": lambda: {
        "logits": logits(),
        "target": labels(),
        "weight": row(),
        "ignore_index": -100,
        "reduction": "mean",
        "label_smoothing": 0.1,
    },
    "F.nll_loss": lambda: {
        "x": logits(),
        "target": labels(),
        "weight": row(),
        "ignore_index": -100,
        "reduction": "mean",
    },
    **{f"F.{name}": lambda: {"x": x(), "target": x(), "reduction": "mean"} for name in ("mse_loss", "l1_loss")},
    "F.huber_loss": lambda: {"x": x(), "target": x(), "reduction": "mean", "delta": 0.5},
    "F.smooth_l1_loss": lambda: {"x": x(), "target": x(), "reduction": "mean", "beta": 0.5},
    "F.kl_div": lambda: {"x": x(), "target": x(), "reduction": "batchmean", "log_target": True},
    "F.dropout": lambda: {"x": x(), "p": 0.5, "training": True},
    "F.embedding": lambda: {"indices": labels(), "weight": square(), "padding_idx": 0, "sparse": False},
    "F.embedding_bag": lambda: {
        "indices": labels(),
        "weight": square(),
        "offsets": np.array([0, 1]),
        "mode": "sum",
        "per_sample_weights": np.ones(len(labels()), np.float32),
        "include_last_offset": False,
        "padding_idx": 0,
        "sparse": False,
    },
    "F.layer_norm": lambda: {"x": x(), "normalized_shape": (3,), "weight": row(), "bias": row(), "eps": 1e-5},
    "F.linear": lambda: {"x": x(), "weight": square(), "bias": row()},
    "init.calculate_gain": lambda: {"nonlinearity": "leaky_relu", "param": 0.1},
    "init.uniform_": lambda: {"tensor": parameter(), "a": 0.0, "b": 1.0},
    "init.normal_": lambda: {"tensor": parameter(), "mean": 0.0, "std": 1.0},
    "init.constant_": lambda: {"tensor": parameter(), "value": 1.0},
    **{f"init.{name}": lambda: {"tensor": parameter()} for name in ("zeros_", "ones_", "eye_")},
    "init.orthogonal_": lambda: {"tensor": parameter(), "gain": 1.0},
    "init.trunc_normal_": lambda: {"tensor": parameter(), "mean": 0.0, "std": 1.0, "a": -2.0, "b": 2.0},
    **{f"init.xavier_{name}_": lambda: {"tensor": parameter(), "gain": 1.0} for name in ("uniform", "normal")},
    **{
        f"init.kaiming_{name}_": lambda: {
            "tensor": parameter(),
            "a": 0.1,
            "mode": "fan_in",
            "nonlinearity": "leaky_relu",
        }
        for name in ("uniform", "normal")
    },
    "utils.clip_grad_value_": lambda: {"parameters": with_gradient(), "clip_value": 1.0},
    "utils.parameters_to_vector": lambda: {"parameters": [parameter()]},
    "utils.vector_to_parameters": lambda: {"vec": sn.Tensor(np.ones(4, np.float32)), "parameters": [parameter()]},
    "utils.clip_grad_norm_": lambda: {
        "parameters": with_gradient(),
        "max_norm": 1.0,
        "norm_type": 2.0,
        "error_if_nonfinite": True,
    },
    # --- optim ---
    "optim.SGD": lambda: {
        "params": [parameter()],
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 0.1,
        "maximize": True,
    },
    **{
        f"optim.{name}": lambda: {
            "params": [parameter()],
            "lr": 0.1,
            "betas": (0.9, 0.99),
            "eps": 1e-8,
            "weight_decay": 0.1,
            "amsgrad": True,
            "maximize": True,
        }
        for name in ("Adam", "AdamW")
    },
    "optim.RMSprop": lambda: {
        "params": [parameter()],
        "lr": 0.1,
        "alpha": 0.9,
        "eps": 1e-8,
        "weight_decay": 0.1,
        "momentum": 0.9,
        "maximize": True,
    },
    "optim.Adagrad": lambda: {
        "params": [parameter()],
        "lr": 0.1,
        "lr_decay": 0.1,
        "weight_decay": 0.1,
        "initial_accumulator_value": 0.1,
        "eps": 1e-8,
        "maximize": True,
    },
    "optim.LBFGS.add_param_group": lambda: {
        "self": with_no_groups(),
        "group": {"params": [parameter()]},
    },
    "optim.Adagrad.add_param_group": lambda: {
        "self": optim.Adagrad([parameter()]),
        "group": {"params": [parameter()]},
    },
    "optim.Adadelta": lambda: {
        "params": [parameter()],
        "lr": 0.1,
        "rho": 0.9,
        "eps": 1e-8,
        "weight_decay": 0.1,
        "maximize": True,
    },
    "optim.LBFGS": lambda: {
        "params": [parameter()],
        "lr": 0.1,
        "max_iter": 3,
        "max_eval": 4,
        "tolerance_grad": 1e-7,
        "tolerance_change": 1e-9,
        "history_size": 3,
        "line_search_fn": "strong_wolfe",
    },
    "optim.LBFGS.step": lambda: (lambda p: {"self": optim.LBFGS([p]), "closure": closure_of(p)})(parameter()),
    "optim.LBFGS.load_state_dict": lambda: {
        "self": optim.LBFGS([parameter()]),
        "state": optim.LBFGS([parameter()]).state_dict(),
    },
    "optim.LBFGS.state_dict": lambda: {"self": optim.LBFGS([parameter()])},
    "optim.Optimizer.add_param_group": lambda: {"self": sgd(), "group": {"params": [parameter()]}},
    "optim.Optimizer.load_state_dict": lambda: {"self": sgd(), "state": sgd().state_dict()},
    "optim.Optimizer.state_dict": lambda: {"self": sgd()},
    "optim.Optimizer.step": lambda: {"self": sgd(), "closure": lambda: None},
    "optim.Optimizer.zero_grad": lambda: {"self": sgd(), "set_to_none": False},
    "lr_scheduler.StepLR": lambda: {"optimizer": sgd(), "step_size": 2, "gamma": 0.1, "by": "epoch"},
    "lr_scheduler.CosineAnnealingLR": lambda: {"optimizer": sgd(), "T_max": 2, "eta_min": 0.01, "by": "epoch"},
    "lr_scheduler.LinearLR": lambda: {
        "optimizer": sgd(),
        "start_factor": 0.1,
        "end_factor": 1.0,
        "total_iters": 3,
        "by": "epoch",
    },
    "lr_scheduler.ConstantLR": lambda: {"optimizer": sgd(), "factor": 0.1, "total_iters": 3, "by": "epoch"},
    "lr_scheduler.PolynomialLR": lambda: {"optimizer": sgd(), "total_iters": 3, "power": 2.0, "by": "epoch"},
    "lr_scheduler.ExponentialLR": lambda: {"optimizer": sgd(), "gamma": 0.1, "by": "epoch"},
    "lr_scheduler.MultiStepLR": lambda: {"optimizer": sgd(), "milestones": [2, 3], "gamma": 0.1, "by": "epoch"},
    "lr_scheduler.CosineAnnealingWarmRestarts": lambda: {
        "optimizer": sgd(),
        "T_0": 2,
        "T_mult": 2,
        "eta_min": 0.01,
        "by": "epoch",
    },
    "lr_scheduler.LambdaLR": lambda: {"optimizer": sgd(), "lr_lambda": lambda step: 1.0, "by": "epoch"},
    "lr_scheduler.LambdaLR.state_dict": lambda: {"self": schedules.LambdaLR(sgd(), lambda step: 1.0)},
    "lr_scheduler.LambdaLR.load_state_dict": lambda: {
        "self": schedules.LambdaLR(sgd(), lambda step: 1.0),
        "state": schedules.LambdaLR(sgd(), lambda step: 1.0).state_dict(),
    },
    "lr_scheduler.SequentialLR": lambda: (
        lambda o: {
            "optimizer": o,
            "schedulers": [schedules.StepLR(o, 2), schedules.StepLR(o, 3)],
            "milestones": [2],
            "by": "epoch",
        }
    )(sgd()),
    "lr_scheduler.ReduceLROnPlateau": lambda: {
        "optimizer": sgd(),
        "mode": "min",
        "factor": 0.1,
        "patience": 3,
        "threshold": 1e-4,
        "threshold_mode": "rel",
        "cooldown": 0,
        "min_lr": 0.0,
        "eps": 1e-8,
        "monitor": "train_loss",
    },
    "lr_scheduler.ReduceLROnPlateau.step": lambda: {"self": schedules.ReduceLROnPlateau(sgd()), "metric": 1.0},
    "lr_scheduler.ReduceLROnPlateau.state_dict": lambda: {"self": schedules.ReduceLROnPlateau(sgd())},
    "lr_scheduler.ReduceLROnPlateau.load_state_dict": lambda: {
        "self": schedules.ReduceLROnPlateau(sgd()),
        "state": schedules.ReduceLROnPlateau(sgd()).state_dict(),
    },
    "lr_scheduler.OneCycleLR": lambda: {
        "optimizer": sgd(),
        "max_lr": 0.1,
        "total_steps": 9,
        "pct_start": 0.3,
        "anneal_strategy": "cos",
        "cycle_momentum": True,
        "base_momentum": 0.8,
        "max_momentum": 0.9,
        "div_factor": 10.0,
        "final_div_factor": 10.0,
        "by": "epoch",
    },
    "lr_scheduler.LRScheduler.load_state_dict": lambda: {
        "self": schedules.StepLR(sgd(), 2),
        "state": schedules.StepLR(sgd(), 2).state_dict(),
    },
    **{
        f"lr_scheduler.LRScheduler.{name}": lambda: {"self": schedules.StepLR(sgd(), 2)}
        for name in ("get_last_lr", "state_dict", "step")
    },
    # --- data ---
    "data.DataLoader": lambda: {
        "dataset": samples(), "batch_size": 2, "shuffle": True, "drop_last": False, "seed": 1,
        "sampler": None, "collate_fn": None, "num_workers": 1, "dtype": "float32",
    },
    "data.DataLoader.typed": lambda: {"self": loader(), "dtype": "float64", "say": None},
    "data.Dataset.transform": lambda: {"self": samples(), "function": lambda row: row},
    "data.Augmented": lambda: {"dataset": samples(), "functions": [lambda x, u: x], "seed": 1},
    "data.Augmented.gather": lambda: {"self": data.Augmented(samples(), []), "positions": [0, 1]},
    "data.RandomCrop": lambda: {"size": 3, "padding": 1},
    "data.RandomHorizontalFlip": lambda: {"p": 0.5},
    "data.ConcatDataset": lambda: {"datasets": [samples(), samples()]},
    "data.ConcatDataset.gather": lambda: {"self": data.ConcatDataset([samples()]), "positions": [0, 1]},
    "data.default_collate": lambda: {"samples": [(1.0, 2), (2.0, 3)]},
    "data.pad_sequence": lambda: {"sequences": [labels(), labels()], "batch_first": True, "padding_value": 0.0},
    "data.SequentialSampler": lambda: {"data_source": samples()},
    "data.RandomSampler": lambda: {"data_source": samples(), "replacement": True, "num_samples": 2, "seed": 1},
    "data.SubsetRandomSampler": lambda: {"indices": [0, 2], "seed": 1},
    "data.WeightedRandomSampler": lambda: {"weights": [1, 2], "num_samples": 1, "replacement": False, "seed": 1},
    "data.BucketSampler": lambda: {"lengths": [2, 1, 3], "batch_size": 2, "seed": 1},
    **{
        f"data.{name}.indices": lambda make=make: {"self": make(), "epoch": 1}
        for name, make in {
            "SequentialSampler": lambda: data.SequentialSampler(samples()),
            "RandomSampler": lambda: data.RandomSampler(samples()),
            "SubsetRandomSampler": lambda: data.SubsetRandomSampler([0, 2]),
            "WeightedRandomSampler": lambda: data.WeightedRandomSampler([1, 2], 1),
            "BucketSampler": lambda: data.BucketSampler([2, 1, 3], 2),
        }.items()
    },
    "data.DataLoader.batch_indices": lambda: {"self": loader(), "epoch": 0, "start": 0},
    "data.DataLoader.batches": lambda: {"self": loader(), "epoch": 0, "start": 0},
    "data.DataLoader.indices": lambda: {"self": loader(), "epoch": 0},
    "data.DataLoader.set_epoch": lambda: {"self": loader(), "epoch": 0},
    "data.Dataset.gather": lambda: {"self": samples(), "positions": [0, 1]},
    "data.Dataset.map": lambda: {"self": samples(), "function": lambda batch: batch},
    "data.Mapped": lambda: {"dataset": samples(), "function": lambda batch: batch},
    "data.Subset": lambda: {"dataset": samples(), "positions": [0, 1]},
    **{
        f"data.{name}.{method}": lambda make=make, positions=positions: {"self": make(), "positions": positions}
        for name, make in {
            "TensorDataset": samples,
            "Subset": lambda: data.Subset(samples(), [0, 1]),
            "Mapped": lambda: data.Mapped(samples(), lambda batch: batch),
        }.items()
        for method, positions in {"gather": [0, 1]}.items()
    },
    "data.TensorDataset": lambda: {"arrays": (logits(), labels()), "scale": 2.0},
    "data.StoredRows": lambda: {"folder": stored_rows()},
    "data.Standardize": lambda: {"mean": 0.0, "std": 1.0},
    "data.Standardize.fit": lambda: {"data": logits(), "per_feature": True, "comm": None},
    "data.Standardize.load_state_dict": lambda: {"self": data.Standardize(), "state": data.Standardize().state_dict()},
    "data.Standardize.state_dict": lambda: {"self": data.Standardize()},
    "data.PiecewiseLinear": lambda: {"column": [0], "low": [0.0], "high": [1.0]},
    "data.PiecewiseLinear.fit": lambda: {"data": logits(), "bins": 2},
    "data.PiecewiseLinear.load_state_dict": lambda: {
        "self": data.PiecewiseLinear([0], [0.0], [1.0]),
        "state": data.PiecewiseLinear([0], [0.0], [1.0]).state_dict(),
    },
    "data.PiecewiseLinear.state_dict": lambda: {"self": data.PiecewiseLinear([0], [0.0], [1.0])},
    "data.clean": lambda: {"arrays": (logits(), labels())},
    "data.gather": lambda: {"dataset": samples(), "positions": [0, 1]},
    "data.load": lambda: {"name_or_folder": "fashion-mnist-mini", "progress": None, "flat": True, "split": None},
    "data.from_csv": lambda: {
        "path": table(), "target": "y", "features": ["a"], "categories": [], "classes": None, "missing": "drop",
        "like": None, "delimiter": ",", "encoding": "utf-8", "names": None,
    },
    "data.ratings_csv": lambda: {
        "path": table(), "user": "b", "item": "a", "rating": "y", "like": None, "delimiter": ",", "encoding": "utf-8",
        "names": None,
    },
    "data.from_ts": lambda: {"path": data.data_files("vowels")[1], "length": 3, "like": None},
    "data.audio_folder": lambda: {"path": sounds(), "mels": 4, "length": 3, "like": None},
    "data.SeriesInputs": lambda: {"channels": 2, "length": 3, "mels": None, "rate": None},
    "data.SeriesInputs.read": lambda: {"self": data.SeriesInputs(8, 3), "path": data.data_files("vowels")[1]},
    "data.SeriesInputs.state_dict": lambda: {"self": data.SeriesInputs(8, 3)},
    "data.data_files": lambda: {"name": table()},
    "data.from_npz": lambda: {
        "path": path("npz", lambda name: np.savez(open(name, "wb"), x=logits(), y=labels())),  # noqa: SIM115
        "features": "x", "target": "y", "scale": 1.0, "max_bytes": 10**6,
    },
    "data.text_csv": lambda: {
        "path": table(), "text": "b", "label": "y", "length": 3, "max_words": 5, "min_count": 1, "missing": "drop",
        "like": None,
        "delimiter": ",", "encoding": "utf-8",
    },
    "data.image_folder": lambda: {
        "path": pictures(), "size": 3, "channels": 1, "transform": None, "in_memory": True,
    },
    "data.read_image": lambda: {"path": f"{pictures()}/a/1.png", "channels": 1, "size": 3},
    "data.TableInputs": lambda: {
        "columns": ["a"], "categories": {}, "delimiter": ",", "encoding": "utf-8", "fills": {"a": 0.5},
        "flagged": ["a"], "one_hot": True,
    },
    "data.ImageInputs": lambda: {"size": (2, 2), "channels": 1, "flat": True, "resizes": True},
    "data.TextInputs": lambda: {"vocabulary": ["a"], "length": 2},
    **{
        f"data.{name}.{method}": lambda make=make: {"self": make()}
        for name, make in {
            "TableInputs": lambda: data.TableInputs(["a"], {}),
            "ImageInputs": lambda: data.ImageInputs((2, 2), 1),
            "TextInputs": lambda: data.TextInputs(["a"], 2),
        }.items()
        for method in ("state_dict",)
    },
    "data.TableInputs.read": lambda: {"self": data.TableInputs(["a"], {}), "path": table()},
    "data.ImageInputs.read": lambda: {"self": data.ImageInputs((2, 2), 1), "path": f"{pictures()}/a/1.png"},
    "data.ImageInputs.pixels": lambda: {"self": data.ImageInputs((2, 2), 1), "path": f"{pictures()}/a/1.png"},
    "data.TextInputs.read": lambda: {"self": data.TextInputs(["a"], 2), "path": table()},
    "data.random_split": lambda: {"dataset": samples(), "lengths": [0.5, 0.5], "seed": 0},
    "data.read_idx": lambda: {
        "path": path("idx", lambda name: data.write_idx(name, logits())),
        "max_bytes": 100,
        "mapped": True,
    },
    "data.write_idx": lambda: {"path": path("new-idx"), "array": logits()},
    "sn.draw": lambda: {"y": parameter() * 2, "model": nn.Linear(2, 2)},
    # --- metrics, networks, random ---
    "networks.Recommender.forward": lambda: {
        "self": sn.networks.Recommender(3, 3, 2), "pairs": np.array([[0, 1], [2, 0]]),
    },
    "networks.TextTransformer": lambda: {
        "words": 5, "classes": 2, "width": 4, "heads": 2, "layers": 1, "dropout": 0.1,
    },
    "networks.TextTransformer.forward": lambda: {
        "self": sn.networks.TextTransformer(5, 2, 4, 2, 1), "words": np.array([[0, 1], [2, 0]]),
    },
    "networks.Recommender": lambda: {
        "users": 3, "items": 2, "factors": 2, "hidden": (4,), "mean": 3.5, "penalty": 0.1,
    },
    **{
        f"metrics.{name}": lambda: {"logits": logits(), "labels": labels()}
        for name in ("accuracy", "confusion_matrix", "precision_recall_f1")
    },
    "metrics.top_k_accuracy": lambda: {"logits": logits(), "labels": labels(), "k": 2},
    **{
        f"metrics.{name}": lambda: {"scores": logits(), "relevant": logits() > 0.2, "k": 2}
        for name in ("recall_at_k", "ndcg_at_k")
    },
    "metrics.Mean": dict,
    "metrics.Mean.update": lambda: {"self": sn.metrics.Mean(), "value": 1.0, "n": 2},
    "random.Generator": lambda: {"seed": 1, "stream": 2},
    "random.Generator.load_state_dict": lambda: {
        "self": scratchnet.random.Generator(0),
        "state": {"seed": 1, "stream": 2},
    },
    **{
        f"random.Generator.{name}": lambda: {"self": scratchnet.random.Generator(0)}
        for name in ("key", "next_stream", "numpy", "state_dict")
    },
    "random.current": dict,
    "random.using": lambda: {"generator": scratchnet.random.Generator(0)},
    "random.manual_seed": lambda: {"seed": 3},
    # --- parallel ---
    "parallel.all_reduce_cost": lambda: {"algorithm": "ring", "ranks": 4, "nbytes": 100},
    "parallel.simulate_all_reduce": lambda: {
        "algorithm": "ring", "arrays": [np.ones(4), np.ones(4)], "op": "sum", "patience": 0.2,
    },
    "parallel.AllReduce": lambda: {"compression": None, "order": "exact"},
    "parallel.ParameterServer": lambda: {"staleness": 0, "compression": None},
    "parallel.LocalSGD": lambda: {"every": 2, "warmup": 1},
    "parallel.TensorParallel": lambda: {"parts": 2, "plan": {"0": "columns"}},
    "parallel.Pipeline": lambda: (
        {"stages": 2, "cut": "auto", "schedule": "1f1b", "recompute": False, "parts": 1, "plan": None}
    ),
    "parallel.PowerSGD": lambda: {"rank": 2},
    "parallel.TopK": lambda: {"ratio": 0.1},
    "parallel.BFloat16": dict,
    **{f"parallel.{name}": dict for name in ("Float16", "Hogwild", "SerialCommunicator", "is_first_rank", "world")},
    **{
        f"parallel.Communicator.{name}": lambda more=more: {
            "self": parallel.SerialCommunicator(),
            "array": logits(),
            **more,
        }
        for name, more in {
            "all_reduce": {"op": "mean", "algorithm": "auto"},
            "reduce_scatter": {"op": "mean"},
            "all_gather": {},
            "broadcast": {"root": 0},
        }.items()
    },
    "parallel.Communicator.part": lambda: {"self": parallel.SerialCommunicator(), "n": 3, "rank": 0},
    "parallel.SerialCommunicator.barrier": lambda: {"self": parallel.SerialCommunicator()},
    "parallel.SerialCommunicator.empty": lambda: {
        "self": parallel.SerialCommunicator(),
        "shape": (2, 3),
        "dtype": "float32",
    },
    # --- report ---
    "report.plot_curves": lambda: {"history": sn.History([{"epoch": 1, "train_loss": 1.0}]), "path": path("a.svg")},
    "report.plot_confusion": lambda: {"counts": [[1, 2], [0, 3]], "path": path("b.svg"), "classes": ["a", "b"]},
    "report.plot_timeline": lambda: {"timeline": timeline(), "path": path("c.svg"), "steps": 2},
    "report.plot_speedup": lambda: {"seconds": {"threads": {1: 1.0, 2: 0.6}}, "path": path("d.svg"), "xlabel": "n"},
    "report.plot_costs": lambda: {"costs": costs(), "path": path("e.svg")},
    "report.Costs.predict": lambda: {"self": costs(), "algorithm": "ring", "nbytes": 8},
    # --- callbacks ---
    "callbacks.EarlyStopping": lambda: {"monitor": "val_loss", "patience": 2, "mode": "min", "min_delta": 0.0},
    "callbacks.BestCheckpoint": lambda: {
        "monitor": "val_loss", "mode": "min", "min_delta": 0.0, "path": path("best"),
    },
    "callbacks.LearningRateFinder": lambda: {"smallest": 1e-4, "largest": 1.0, "steps": 5},
    "callbacks.LearningRateFinder.plot": lambda: {"self": tested_finder(), "path": path("rates.png")},
    "callbacks.TensorBoard": lambda: {
        "folder": path("events"), "every": 2, "histograms": True, "images": lambda run: {},
    },
    "callbacks.Database": lambda: {"url": "sqlite:///runs.db", "name": None, "every": 2, "patience": 1.0},
    # --- testing, cuda ---
    "testing.arrays": lambda: {
        "shapes": "mn",
        "dtypes": ("float32",),
        "domain": "real",
        "special": (0.0,),
        "layouts": ("C",),
        "sizes": (1, 2),
        "max_elements": 4,
        "integers": (0, 3),
    },
    "testing.kernel_cases": lambda: {"name": "exp", "dtypes": ("float32",), "sizes": (1, 2), "max_elements": 4},
    "testing.assert_matches_reference": lambda: {
        "kernel": kernel,
        "reference": lambda x: x,
        "inputs": [logits()],
        "terms": 1,
        "roundings": 8,
        "magnitude": np.abs,
        "accumulate": "float32",
        "rtol": 0.0,
        "atol": 0.0,
        "layouts": ("C",),
        "threads": (1,),
        "aliased": True,
        "inplace": (),
        "out": "float32",
    },
    "testing.gradcheck": lambda: {
        "f": loss_of,
        "inputs": [row()],
        "order": 1,
        "eps": 1e-4,
        "rtol": 1e-6,
        "kinks": "skip",
        "max_elements": 4,
        "seed": 0,
    },
    "cuda.is_available": dict,
}

# fmt: on
FOLDER = ""  # the folder of the test that runs


def path(name, write=None):
    p = os.path.join(FOLDER, name)
    if write and not os.path.exists(p):
        write(p)
    return p


def with_no_groups():
    optimizer = optim.LBFGS([parameter()])
    optimizer.param_groups.clear()
    return optimizer


def with_gradient():
    p = parameter()
    (p * p).sum().backward()
    return [p]


# --- mistakes ---------------------------------------------------------------------------------------------------------


class Frame:
    """As pandas: __array__ gives float64."""

    def __array__(self, dtype=None, copy=None):
        return np.ones((2, 3))


class Thing:
    pass


MISTAKES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "a string": lambda: "text",
    "a list of strings": lambda: ["a", "b"],
    "an object": Thing,
    "a function": lambda: loss_of,
    "a class": lambda: nn.ReLU,
    "a module": nn.ReLU,
    "a dict": lambda: {"a": 1},
    "NaN": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-1": lambda: -1,
    "0": lambda: 0,
    "10**30": lambda: 10**30,
    "2.5": lambda: 2.5,
    "True": lambda: True,
    "1j": lambda: 1j,
    "an empty array": lambda: np.empty(0, np.float32),
    "five axes": lambda: np.ones((1, 1, 1, 1, 1), np.float32),
    "float64": lambda: np.ones((2, 3)),
    "float16": lambda: np.ones((2, 3), np.float16),
    "integers": lambda: np.ones((2, 3), np.int64),
    "booleans": lambda: np.ones((2, 3), bool),
    "complex": lambda: np.ones((2, 3), complex),
    "objects": lambda: np.array([[None, Thing()], [1, "a"]]),
    "strings": lambda: np.array([["a", "b"]]),
    "dates": lambda: np.array(["2020-01-01"], "datetime64[D]"),
    "0-d": lambda: np.array(1.0),
    "a number of NumPy": lambda: np.float64(0.5),
    "ragged": lambda: [[1.0], [1.0, 2.0]],
    "a frame": Frame,
    "a generator": lambda: (i for i in (1, 2)),
    "a set": lambda: {1, 2},
    "a tensor": x,
    "a tensor with a record": lambda: parameter() * 2,
    "bytes": lambda: b"abc",
    "a date": lambda: datetime.date(2020, 1, 1),
}

# (name, argument): what is handed on to a function of the user's, or may be anything; None is any argument of it.
HANDED_ON = (
    ("sn.save", "state"),
    ("sn.Tensor.backward", "y"),
    ("sn.Predictor.features", "x"),
    ("nn.Module.apply", "fn"),
    ("optim.Optimizer.step", "closure"),
    ("lr_scheduler.LambdaLR", "lr_lambda"),
    ("optim.LBFGS.step", "closure"),
    ("testing.assert_matches_reference", "reference"),
    ("testing.assert_matches_reference", "inputs"),
    ("testing.gradcheck", "inputs"),
)

# What takes for ever, as it was asked to.
ENDLESS = (("sn.Trainer.fit", "epochs", "10**30"), ("testing.gradcheck", "max_elements", "10**30"))

# What a valid argument of this type says about mistakes: these must not pass.
WRONG_FOR = {
    bool: set(MISTAKES) - {"True"},
    int: {"a string", "a list of strings", "a dict", "NaN", "2.5", "True", "1j"},
    float: {"a string", "a list of strings", "a dict", "NaN", "True", "1j"},
}

# Numbers that may be NaN or a boolean.
ANY_NUMBER = (
    "lr_scheduler.ReduceLROnPlateau.step",
    "sn.Tensor.fill_",
    "F.pad",
    "sn.pad",
    "sn.full",
    "sn.full_like",
    "sn.masked_fill",
    "metrics.Mean.update",
    "data.Standardize",
)

# Public, and called by other tests or by the package alone.
NOT_CALLED = {
    "parallel.run": "it starts processes",
    "report.measure_costs": "it starts processes",
    "report.Costs": "measure_costs makes it",
    "sn.Tensor.cuda": "it needs a GPU",
    "sn.device.type": "an attribute",
    "parallel.MpiCommunicator": "it is made in a job of MPI",
    "data.Dataset": "abstract",
    "data.from_folder": "it needs pyarrow: tests/data/large calls it",
    "data.from_spark": "it needs Spark: tests/data/large calls it",
    "data.ScatteredRows": "from_spark makes it: tests/data/large",
    "data.ScatteredRows.all_gather": "the same",
    "data.Sampler": "abstract",
    "sn.Predictor": "load_model makes it",
    "data.Sampler.indices": "abstract",
    "optim.Optimizer": "abstract",
    "lr_scheduler.LRScheduler": "abstract",
    "parallel.Communicator": "abstract",
    "nn.Module.forward": "abstract",
    "nn.Module.cuda": "it needs a GPU",
    "testing.KernelCase": "kernel_cases makes it",
    **{
        f"testing.{name}": "tests/testing calls it"
        for name in (
            "barriers_of",
            "blocked",
            "drawn",
            "find_races",
            "host_kernel",
            "interpreted",
            "pairwise",
            "roundings_of",
        )
    },
    **{
        f"cuda.{name}": "it needs a GPU"
        for name in (
            "device_count",
            "empty_cache",
            "from_dlpack",
            "memory_allocated",
            "prefetch",
            "synchronize",
        )
    },
}
NOT_CALLED |= {
    f"nn.{name}.extra_repr": "its repr"
    for name in (
        "AdaptiveAvgPool2d",
        "ZeroPad2d",
        "BatchNorm1d",
        "Dropout",
        "Embedding",
        "EmbeddingBag",
        "Flatten",
        "LayerNorm",
        "MultiheadAttention",
        "PositionalEncoding",
        "Linear",
        "PReLU",
    )
}

NOT_CALLED |= {
    "callbacks.Progress": "a run makes it",
    "networks.Recommender.extra_repr": "its repr",
    **{f"callbacks.Database.{name}": "a run calls it" for name in ("state_dict", "load_state_dict")},
}

# Methods by which the package asks its own classes, or an object that only it makes; no user calls them.
INTERNAL = (
    "check_workers",
    "owner",
    "divides",
    "shares_parts",
    "on_fit_start",
    "on_step_end",
    "on_epoch_end",
    "on_fit_end",
    "on_exception",
    "numbers",
    "values",
    "advance",
    "phases",
    "slices",
    "batches",
    "span",
    "trains_locally",
    "compress",
    "pack",
    "unpack",
    "sent_bytes",
    "is_low_rank",
    "slot_bytes",
    "on_members",
)
INTERNAL_OF = (
    "callbacks.Progress.",
    "parallel.MpiCommunicator.",
    "testing.KernelCase.",
    "parallel.Communicator.",
    "random.Generator.",
    "sn.Generator.",
    "sn.device.",
)
