"""`load`: the bytes of an ONNX file become a graph of checked nodes; nothing that the file says is believed.

Memory stays within a small multiple of the file: lengths are compared with the bytes that are there, external data lie
below the file's folder, and graphs within nodes and functions, which could nest or call each other, are refused.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from ...errors import CheckpointError
from ...kernels.signatures import HALVES
from .. import files
from . import operators_learn, operators_recurrent, operators_shapes, operators_windows  # noqa: F401 - they add to OPERATORS
from .graph import Graph, Step, checked
from .operators import OPERATORS, dtype_of

OPSETS = range(9, 26)  # versions of the operators that this table was written for
DOMAINS = {"": "", "ai.onnx": "", "ai.onnx.ml": "ai.onnx.ml"}

# AttributeProto's types, and the field that has the value
FIELDS = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints", 8: "strings"}
EXTERNAL = {"location", "offset", "length", "checksum"}


def load(path: str | os.PathLike) -> Graph:
    """The model in an ONNX file, as a module that trains: call it with the inputs of the graph, in their order.

    Floats with axes that the file stores (its initializers) are parameters, under their names; mean and variance of a
    batch norm are buffers; other constants stay as they are. Dropout and batch norm follow `train()` and `eval()`; the
    module begins in evaluation mode.
    Raises CheckpointError, which names the node, for what is damaged or has no op here; CheckpointNotFoundError.
    """
    blob = files.read("onnx.load", path)
    with files.named(path):
        return graph_of(blob, os.path.dirname(os.path.realpath(os.fsdecode(path))))


def graph_of(blob: bytes, folder: str | None = None) -> Graph:
    """The module of a file's bytes. folder: below which external data may lie."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise files.missing("onnx", "onnx") from None
    if blob.startswith(files.PICKLES):
        raise CheckpointError("expected an ONNX file, found a pickle or a zip; torch.onnx.export(...) writes ONNX")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(blob)
    except DecodeError:
        raise CheckpointError("expected an ONNX file, found bytes that are none: damaged or cut short") from None
    graph = model.graph
    opsets = {DOMAINS.get(entry.domain, entry.domain): entry.version for entry in model.opset_import}
    if not graph.node or opsets.get("") not in OPSETS:
        raise CheckpointError(
            f"expected a graph of opset {OPSETS[0]} to {OPSETS[-1]}, found {len(graph.node)} nodes of {opsets.get('')}"
        )
    for what, found, remedy in (
        ("functions", model.functions, "onnx.inliner.inline_local_functions(model) removes them"),
        ("training graphs", model.training_info, "export the model for inference"),
        ("sparse initializers", graph.sparse_initializer, "store dense ones"),
        ("quantized values", graph.quantization_annotation, "export the model in floats"),
    ):
        if found:
            raise CheckpointError(f"expected a graph without {what}, found {len(found)}; {remedy}")

    external = _External(folder)
    stored = {}
    for tensor in graph.initializer:
        if not tensor.name or tensor.name in stored:
            raise CheckpointError(f"expected a new name for each initializer, found {tensor.name!r:.60} again")
        stored[tensor.name] = _array(tensor, external)
    inputs = {i.name: _declared(i) for i in graph.input if i.name not in stored}
    steps = [_step(node, i, opsets, external) for i, node in enumerate(graph.node)]
    return checked(Graph(inputs, [o.name for o in graph.output], steps, stored, opsets[""]))


def _declared(info: Any) -> tuple[np.dtype, tuple[int | None, ...] | None]:
    """The dtype and the lengths that an input must have; None is any."""
    tensor = info.type.tensor_type
    if info.type.WhichOneof("value") != "tensor_type":
        raise CheckpointError(f"expected tensors as inputs, found {info.name!r:.60} of another type")
    if not tensor.HasField("shape"):
        return dtype_of(tensor.elem_type), None
    return dtype_of(tensor.elem_type), tuple(
        int(d.dim_value) if d.WhichOneof("value") == "dim_value" and d.dim_value > 0 else None for d in tensor.shape.dim
    )


def _step(node: Any, i: int, opsets: dict[str, int], external: _External) -> Step:
    where = f"node {node.name or i!r:.60} ({node.op_type:.40})"
    domain = DOMAINS.get(node.domain)
    if domain is None or (domain, node.op_type) not in OPERATORS:
        remedy = "; convert with options={'zipmap': False}" if node.op_type == "ZipMap" else ""
        raise CheckpointError(
            f"{where}: expected one of the {len(OPERATORS)} ops of docs/models.md, found none{remedy}"
        )
    attributes = {}
    for a in node.attribute:
        if a.type not in FIELDS or a.ref_attr_name:
            raise CheckpointError(f"{where}: expected numbers, strings or tensors as attributes, found {a.name!r:.60}")
        value = getattr(a, FIELDS[a.type])
        if a.type == 1:
            value = float(str(np.float32(value)))  # 0.1, of which the file has the nearest float32
        elif a.type == 4:
            value = _array(value, external)
        elif a.type == 3:
            value = value.decode()
        elif a.type > 4:
            value = [v.decode() if a.type == 8 else v for v in value]
        attributes[a.name] = value
    return Step(where, (domain, node.op_type), tuple(node.input), tuple(node.output), attributes)


# --- arrays -----------------------------------------------------------------------------------------------------------

# TensorProto's fields of numbers, for files without raw bytes
TYPED = {1: "float_data", 11: "double_data", 7: "int64_data", 12: "uint64_data", 13: "uint64_data"}


class _External:
    """The files beside the model, of which no byte is read more often than it is there."""

    def __init__(self, folder: str | None):
        self.folder = folder
        self.left: dict[str, int] = {}

    def read(self, entries: Any, size: int) -> bytes:
        given = {entry.key: entry.value for entry in entries}
        if self.folder is None or not given.keys() <= EXTERNAL or "location" not in given:
            raise CheckpointError(f"expected external data by location, offset and length, found {[*given]!r:.80}")
        path = os.path.realpath(os.path.join(self.folder, given["location"]))
        if os.path.commonpath([self.folder, path]) != self.folder or os.path.isabs(given["location"]):
            raise CheckpointError(f"expected external data below the file's folder, found {given['location']!r:.80}")
        offset, length = int(given.get("offset", 0)), int(given.get("length", size))
        if path not in self.left:
            if not os.path.isfile(path):
                raise CheckpointError(f"expected external data in a regular file, found no {given['location']!r:.80}")
            self.left[path] = os.path.getsize(path)
        self.left[path] -= length
        if length != size or not 0 <= offset <= offset + length <= os.path.getsize(path) or self.left[path] < 0:
            raise CheckpointError(f"expected {size} bytes at {offset} of {os.path.basename(path)}, found fewer")
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(length)


def _array(tensor: Any, external: _External) -> np.ndarray:
    """The numbers of a stored tensor, as many as its lengths say."""
    where = f"tensor {tensor.name!r:.60}"
    dtype, shape = dtype_of(tensor.data_type), tuple(tensor.dims)
    if min(shape, default=0) < 0 or len(shape) > 32 or tensor.HasField("segment"):
        raise CheckpointError(f"{where}: expected at most 32 lengths of at least 0, found {shape!r:.80}")
    count = math.prod(shape)
    if tensor.data_location == 1:
        raw = external.read(tensor.external_data, count * dtype.itemsize)
    elif tensor.HasField("raw_data"):
        raw = tensor.raw_data
    else:
        values = getattr(tensor, TYPED.get(tensor.data_type, "int32_data"))
        if len(values) != count:
            raise CheckpointError(f"{where}: expected {count} numbers for {shape!r:.80}, found {len(values)}")
        numbers = np.array(values, dtype if tensor.data_type in TYPED else np.int32)  # of halves the bits
        return (numbers.astype(np.uint16).view(dtype) if dtype in HALVES else numbers.astype(dtype)).reshape(shape)
    if len(raw) != count * dtype.itemsize:
        raise CheckpointError(f"{where}: expected {count * dtype.itemsize} bytes for {shape!r:.80}, found {len(raw)}")
    return np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype).reshape(shape)
