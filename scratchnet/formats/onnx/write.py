"""`export`: a model is run, what it computed becomes nodes, and the file is checked and run against the model."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ... import checks, tracing
from ...errors import CheckpointError, ConfigError
from ...grad_mode import evaluating
from ...kernels.signatures import HALVES
from ...nn import Module
from ...tensor import Tensor
from ...version import __version__
from .. import files
from ..atomic import write_atomically
from . import layers, ops
from .read import graph_of
from .trace import Recorder, Size, joined, unified
from .writer import IR_VERSION, OPSET, Writer

SIZES = 2, 3  # the batch sizes of the two traces
TRIED = 5  # and one in which the file is compared with the model
CLOSE = 1e-3  # of the largest output: an op that means something else is wrong by more, an order of sums by less


def export(model: Module, path: str | os.PathLike, example: Any, batch: str | None = "batch") -> None:
    """Write a model to an ONNX file (opset 17, IR version 8), as it computes in evaluation mode.

    example: an input, as an array or a tensor; a tuple of several, or a dict by the names of `forward`.
    batch: the name of the first axis of the inputs, of which the file takes any length; None fixes all lengths.

    The model is run on the example, and its ops become nodes, so any `forward` of tensors can be written. Parameters
    and buffers keep their names. Before the file is written, ONNX's checker must accept it, and it must compute what
    the model does, also for another batch size.
    Raises ConfigError, which names the layer, for what ONNX cannot hold; CheckpointError where nothing can be written.
    """
    name = checks.path("onnx.export", path)
    checks.instance("onnx.export: model", model, Module, "a model")
    if batch is not None and not (isinstance(batch, str) and batch):
        checks.refuse("onnx.export: batch", "a name or None", batch)
    arrays, by_name = _inputs(model, example), isinstance(example, Mapping)
    with evaluating(model, "onnx.export"):
        blob = _exported(model, arrays, by_name, batch)
    try:
        write_atomically(name, blob)
    except OSError as error:
        raise CheckpointError(f"{name}: model not written: {error.strerror}") from error


def _inputs(model: Module, example: Any) -> dict[str, np.ndarray]:
    """The arrays of the example by name; the names are those of the arguments of `forward`."""
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    known = [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind in kinds]
    if isinstance(example, Mapping):
        given = {checks.one_of("onnx.export: an input of the example", key, known): x for key, x in example.items()}
    else:
        values = example if isinstance(example, tuple) else (example,)
        given = {known[i] if i < len(known) else f"input{i}": x for i, x in enumerate(values)}
    arrays = {}
    for name, x in given.items():
        arrays[name] = (x.detach().to("cpu") if isinstance(x, Tensor) else Tensor(x, device="cpu")).numpy()
        if not arrays[name].size:
            checks.refuse(f"onnx.export: the example's {name}", "at least one element", arrays[name])
    if not arrays:
        checks.refuse("onnx.export: example", "at least one input", example)
    return arrays


def _rows(array: np.ndarray, n: int, changed: bool) -> np.ndarray:
    """An example of another batch size. changed: of other numbers too, for what Python would make of them."""
    if array.ndim:
        array = array[np.arange(n) % len(array)]
    if changed and array.ndim:
        array = array * array.dtype.type(0.75) if array.dtype.kind == "f" else array[..., ::-1]
    return np.ascontiguousarray(array)


def _called(model: Module, arrays: Mapping[str, np.ndarray], by_name: bool, recorder: Any = None) -> tuple[Any, Any]:
    """(the recorder, the outputs by name) of one call."""
    inputs = {name: Tensor(x.copy(), device="cpu") for name, x in arrays.items()}
    trace = None if recorder is None else recorder(model, [*inputs.values()], layers.TAKEN)
    with tracing.into(trace or tracing.current()):
        y = model(**inputs) if by_name else model(*inputs.values())
    if isinstance(y, Tensor):
        return trace, {"output": y}
    found = y if isinstance(y, dict) else {f"output{i}": t for i, t in enumerate(_leaves(y))}
    for t in found.values():
        checks.instance("onnx.export: an output of the model", t, Tensor, "a tensor")
    if not found:
        checks.refuse("onnx.export: what the model returns", "a tensor, or a tuple or dict of them", y)
    return trace, found


def _leaves(y: Any) -> list[Any]:
    """What stands in tuples and lists, also in those within others."""
    return (
        [leaf for item in y for leaf in ([item] if isinstance(item, Tensor) else _leaves(item) or [item])]
        if isinstance(y, tuple | list)
        else []
    )


def _exported(model: Module, arrays: dict[str, np.ndarray], by_name: bool, batch: str | None) -> bytes:
    try:
        import onnx
    except ImportError:
        raise files.missing("onnx", "onnx") from None
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        if t.device == "cuda":
            raise ConfigError(f"onnx.export: expected a model of the host, got {name} on 'cuda'; use model.to('cpu')")
    named: list[tuple[str, Any]] = [*model.named_parameters(), *model.named_buffers(), *arrays.items()]
    for name, x in named:
        if x.dtype in HALVES:
            remedy = "model.to(dtype='float32') widens a model"
            raise ConfigError(f"onnx.export: expected float32 or float64, got {name} of {x.dtype}; {remedy}")
    first = next(iter(arrays.values()))
    if batch is not None and any(a.ndim == 0 or len(a) != len(first) for a in arrays.values()):
        shapes = ", ".join(f"{name} {a.shape}" for name, a in arrays.items())
        raise ConfigError(
            f"onnx.export: expected inputs whose first axis is one batch, got {shapes}; batch=None fixes all lengths"
        )
    sizes = SIZES if batch is not None else (len(first) if first.ndim else 1,) * 2
    traces, outputs = zip(
        *[
            _called(model, {name: _rows(a, n, i > 0) for name, a in arrays.items()}, by_name, Recorder)
            for i, n in enumerate(sizes)
        ],
        strict=True,
    )
    ops.check(traces[0].entries)
    entries = unified([trace.entries for trace in traces], sizes)
    given = [{name: trace.ref(t) for name, t in found.items()} for trace, found in zip(traces, outputs, strict=True)]
    refs = {name: joined(given[0][name], given[1][name], sizes) for name in given[0]}

    names = {id(ref.array): ref.name for ref in traces[0].known.values() if ref.kind == "weight"}
    w = Writer(onnx, [*arrays], names)
    for entry in entries:
        w.path = entry.path
        (ops if isinstance(entry.what, str) else layers).write(w, entry)
    w.path = ""
    values = {w.last(name, ref): ref for name, ref in refs.items()}
    inputs = [(a.dtype, (batch, *a.shape[1:]) if batch is not None else a.shape) for a in arrays.values()]
    model_proto = _assembled(w, dict(zip(w.inputs, inputs, strict=True)), values, batch)
    blob: bytes = model_proto.SerializeToString(deterministic=True)
    if len(blob) > files.LARGEST:
        raise ConfigError(f"onnx.export: expected a model of at most {files.LARGEST} bytes, got {len(blob)}")
    onnx.checker.check_model(model_proto, full_check=True)
    _compare(
        model, blob, {name: _rows(a, sizes[0] if batch is None else TRIED, True) for name, a in arrays.items()}, by_name
    )
    return blob


def _assembled(w: Writer, inputs: Mapping[str, Any], outputs: Mapping[str, Any], batch: str | None) -> Any:
    """The whole file, of the nodes that the outputs need."""
    helper = w.onnx.helper
    needed, nodes = {*outputs}, []
    for node in reversed(w.nodes):
        made = [w.renamed.get(name, name) for name in node.output]
        if needed & {*made}:
            while made[-1] not in needed:
                made.pop()
            given = [w.renamed.get(name, name) for name in node.input]
            needed |= {*given}
            node.ClearField("input"), node.ClearField("output")
            node.input.extend(given), node.output.extend(made)
            nodes.append(node)

    def info(name: str, dtype: np.dtype, shape: Any) -> Any:
        lengths = [(batch if n == Size(1, 0) else None) if isinstance(n, Size) else n for n in shape]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), lengths)

    graph = helper.make_graph(
        nodes[::-1],
        "scratchnet",
        [info(name, *found) for name, found in inputs.items()],
        [info(name, ref.array.dtype, ref.shape) for name, ref in outputs.items()],
        [w.onnx.numpy_helper.from_array(array, name) for name, array in w.weights.items() if name in needed],
    )
    opset = [helper.make_opsetid("", OPSET)]
    options = {"producer_name": "scratchnet", "producer_version": __version__}
    return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, **options)


def _compare(model: Module, blob: bytes, arrays: Mapping[str, np.ndarray], by_name: bool) -> None:
    """Raises ConfigError unless the file computes what the model does."""
    _, expected = _called(model, arrays, by_name)
    _, found = _called(graph_of(blob).eval(), arrays, False)
    for (name, y), z in zip(expected.items(), found.values(), strict=True):
        a, b = y.detach().to("cpu").numpy(), z.detach().numpy()
        if a.shape == b.shape and a.dtype == b.dtype:
            largest = np.abs(a[np.isfinite(a)]).max(initial=0) if a.dtype.kind == "f" else 0
            if np.isclose(a, b, rtol=CLOSE, atol=CLOSE * largest, equal_nan=True).mean(dtype=float) > 1 - CLOSE:
                continue
        raise ConfigError(
            f"onnx.export: expected a file that computes what the model does, got another {name} for a batch of "
            f"{len(next(iter(arrays.values())))}; what Python makes of an input's length belongs outside of the model"
        )
