"""Before an op runs: its inputs become tensors of one device and, by NumPy's rules without the surprises, of one dtype.

float32 and float64 do not mix, Python numbers take the dtype of the tensors, integers become the float that is there.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from ..errors import DeviceError, DtypeError, ScratchnetError
from .operands import FLOATS, TensorBase, as_operand
from .table import Op


def prepare(op: Op, inputs: tuple) -> tuple[Any, ...]:
    """The inputs as tensors of one device, those that the op promotes in one dtype."""
    like = inputs[0] if isinstance(inputs[0], TensorBase) else next(x for x in inputs if isinstance(x, TensorBase))
    device, dtype = like._device, like._data.dtype
    if dtype is FLOATS[0] or dtype is FLOATS[1]:  # the usual case: tensors of one dtype, and Python numbers
        weak = False
        for x in inputs:
            if isinstance(x, TensorBase):
                if x._data.dtype is not dtype or x._device is not device:
                    break
            elif type(x) is float or type(x) is int:
                weak = True
            else:
                break
        else:
            if not weak:
                return inputs
            with contextlib.suppress(OverflowError):  # an integer that no float holds is refused below
                return tuple(
                    [x if isinstance(x, TensorBase) else like._wrap(np.array(x, dtype), device) for x in inputs]
                )
    like = next((x for x in inputs if isinstance(x, TensorBase) and x._data.dtype.kind == "f"), like)
    tensors = tuple([as_operand(x, like) for x in inputs])
    for x in tensors:
        if x._device is not device:
            raise DeviceError(f"{op.name}: expected one device, got {device.name!r} and {x.device!r}; use .to(...)")
    return _promoted(op, tensors)


def _promoted(op: Op, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    group = range(len(inputs)) if op.promotes is None else op.promotes
    dtypes = {inputs[i]._data.dtype for i in group}
    floats = [dtype for dtype in dtypes if dtype.kind == "f"]
    if len(floats) > 1:
        raise DtypeError(
            f"{op.name}: expected one float dtype, got float32 and float64; use .astype('float32') on the data, "
            "or model.to(dtype='float64')"
        )
    if len(dtypes) == 1 and (floats or not op.floating):
        return inputs
    if floats:
        target = floats[0]
    elif op.floating:
        target = np.dtype(np.float32)
    else:
        target = np.result_type(*dtypes)
        if target.kind == "f":  # NumPy has no integer type that holds both
            raise DtypeError(f"{op.name}: expected integers of one kind, got {', '.join(sorted(map(str, dtypes)))}")
    return tuple(t.astype(target) if i in group else t for i, t in enumerate(inputs))


def refusal(op: Op, tensors: tuple[Any, ...], error: Exception) -> Exception:
    """What to raise for an error of a forward: DtypeError where NumPy has no such function of integers or booleans."""
    if isinstance(error, ScratchnetError) or any(t._data.dtype.kind == "f" for t in tensors):
        return error
    dtypes = " and ".join(str(t._data.dtype) for t in tensors)
    return DtypeError(f"{op.name}: expected floats, got {dtypes} ({str(error).splitlines()[0]})")
