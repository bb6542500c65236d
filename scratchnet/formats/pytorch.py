"""Weights of PyTorch models: names and layouts of theirs, converted by a table, from safetensors or arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors

from .. import checks, nn
from ..dtypes import bfloat16 as BFLOAT16
from ..errors import CheckpointError
from ..nn import Buffer, Module, Parameter
from ..nn.module import IncompatibleKeys
from ..tensor import Tensor
from . import files
from .checkpoint import DTYPES, PREFIX

# Where our layout differs from PyTorch's. Each is its own inverse.
LAYOUTS: dict[tuple[type, str], Callable[[np.ndarray], np.ndarray]] = {
    (nn.Linear, "weight"): np.transpose,  # (in, out) here, (out, in) there
}
COUNTED = nn.BatchNorm1d, nn.BatchNorm2d  # they count their batches there; nothing reads it, as momentum is a number
COUNTER = "num_batches_tracked"
WIDENED = {"bfloat16", "float16"}


class Named(NamedTuple):
    """A parameter or buffer under one of its names."""

    name: str
    tensor: Tensor
    layout: Callable[[np.ndarray], np.ndarray] | None


def _named(module: Module, path: str = "", above: tuple[int, ...] = ()) -> Iterator[Named]:
    """All parameters and buffers under all their names, as PyTorch lists those that are tied; and the counters."""
    for name, value in vars(module).items():
        full = f"{path}.{name}" if path else name
        if isinstance(value, Parameter | Buffer):
            kinds = [layout for (kind, own), layout in LAYOUTS.items() if own == name and isinstance(module, kind)]
            yield Named(full, value, kinds[0] if kinds else None)
        elif isinstance(value, Module) and id(value) not in above:
            yield from _named(value, full, (*above, id(module)))


def _counters(model: Module) -> list[str]:
    """The names of the numbers of batches that PyTorch's batch norms keep."""
    return [f"{name}.{COUNTER}".lstrip(".") for name, module in model.named_modules() if isinstance(module, COUNTED)]


def state_dict(model: Module) -> dict[str, np.ndarray]:
    """The weights of a model under PyTorch's names, in its layout: `Linear.weight` is (out, in).

    `torch_model.load_state_dict({name: torch.from_numpy(x) for name, x in state_dict(model).items()})` takes them. Tied
    weights are there under each of their names, and batch norms have counted 0 batches. bfloat16 becomes float32,
    since PyTorch takes no such arrays of NumPy; its own parameters may be bfloat16.
    """
    checks.instance("pytorch.state_dict", model, Module, "a model")
    found = {}
    for name, t, layout in _named(model):
        array = t.detach().to("cpu").numpy()
        array = array.astype(np.float32) if array.dtype == BFLOAT16 else array
        found[name] = np.array(array if layout is None else layout(array), order="C")
    return found | {name: np.array(0, np.int64) for name in _counters(model)}


def load_state_dict(model: Module, source: Any, strict: bool = True) -> IncompatibleKeys:
    """Write the weights of a PyTorch model into one with the same names; all is checked before anything is written.

    source: the path of a safetensors file; or a dict of arrays or of PyTorch's tensors, `torch_model.state_dict()`.
    strict: names must match one to one; without it, what is missing or unexpected is passed over and returned.
    `Linear.weight` is transposed, halves become float32 where the model is not of that half. Tied weights may come
    under one name or several.

    Raises CheckpointError, which names what is missing, unexpected, of another shape, or different where it is tied;
    for a pickled .pt, which would run what is in it, the line says how to convert it.
    """
    checks.instance("pytorch.load_state_dict", model, Module, "a model")
    strict = checks.flag("pytorch.load_state_dict: strict", strict)
    if isinstance(source, Mapping):
        return _loaded(model, source, strict)
    blob = files.read("pytorch.load_state_dict", source, largest=2**40)
    with files.named(source):
        return _loaded(model, _safetensors(blob, os.fsdecode(source)), strict)


def _safetensors(blob: bytes, name: str) -> dict[str, np.ndarray]:
    if blob.startswith(files.PICKLES):
        raise CheckpointError(
            "expected a safetensors file, found a pickle, which could run anything; where you trust it, "
            f"safetensors.torch.save_file(torch.load({name!r}, weights_only=True), 'model.safetensors') converts it"
        )
    if blob[8 : 8 + len(PREFIX)] == PREFIX:
        raise CheckpointError("expected weights of PyTorch, found a checkpoint of scratchnet; sn.load_model reads it")
    try:
        tensors = safetensors.deserialize(blob)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"expected a safetensors file: {error!s:.100}") from None
    found = {}
    for key, tensor in tensors:
        dtype, data = tensor["dtype"], tensor["data"]
        if dtype not in DTYPES:
            raise CheckpointError(f"{key}: expected floats or integers, found {dtype}; convert it by .float()")
        found[key] = np.frombuffer(data, DTYPES[dtype]).reshape(tensor["shape"])
    return found


def _array(name: str, value: Any, own: np.dtype) -> np.ndarray:
    """An array of a tensor or array of anybody; halves as float32, unless the model's own dtype is that half."""
    source = str(getattr(value, "dtype", "")).removeprefix("torch.")
    if type(value).__module__.partition(".")[0] == "torch":
        value = value.detach().cpu()
        if source in WIDENED:  # NumPy has no bfloat16
            value = value.float()
        value = value.resolve_conj().numpy()
    elif isinstance(value, Tensor):
        value = value.detach().to("cpu").numpy()
    if source in WIDENED:
        value = np.asarray(value).astype(own if source == str(own) else np.float32)
    return checks.array(f"state dict: {name}", value)


def _loaded(model: Module, state: Mapping[str, Any], strict: bool) -> IncompatibleKeys:
    own = [*_named(model)]
    names: dict[int, list[str]] = {}
    for entry in own:
        names.setdefault(id(entry.tensor), []).append(entry.name)
    expected = {entry.name for entry in own} | {*_counters(model)}
    missing = [all_[0] for all_ in names.values() if not any(name in state for name in all_)]
    unexpected = [str(key) for key in state if key not in expected]
    problems = []
    if strict and missing:
        problems.append(f"missing {_listed(missing)}")
    if strict and unexpected:
        problems.append(f"unexpected {_listed(unexpected)}{_prefix(unexpected, expected)}")
    converted: dict[str, np.ndarray] = {}
    for name, t, layout in own:
        if name not in state:
            continue
        array = _array(name, state[name], t.dtype)
        array = array if layout is None or array.ndim != 2 else layout(array)
        first = next(iter(names[id(t)]))
        if first in converted and not np.array_equal(converted[first], array, equal_nan=True):
            problems.append(f"{name} and {first}: expected one value, as the model ties them, got two")
        converted[first] = array
    if problems:
        raise CheckpointError(f"{type(model).__name__}: weights do not fit: {'; '.join(problems)}")
    model.load_state_dict(converted, strict=False)
    return IncompatibleKeys(missing, unexpected)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _prefix(unexpected: list[str], expected: set[str]) -> str:
    """What to do if all names begin alike, as those of a DataParallel or of a compiled model."""
    start = unexpected[0].partition(".")[0] + "."
    if any(name.removeprefix(start) in expected for name in unexpected):
        return f"; {{name.removeprefix({start!r}): x for name, x in state.items()}} has names without {start!r}"
    return ""
