"""The `cpu` device: the kernels of reference.py compiled by Numba, on all cores where the work is large enough.

`KERNELS` is the table. Each file holds the kernels of one family; `_guarded` gives all of them the same front door.
"""

import inspect

import numpy as np

from .. import device
from . import elementwise, gemm, movement, optim, random, reduce, softmax
from .compile import JIT_ENABLED

# The dtypes for which a kernel is compiled, inputs -> outputs, in NumPy's letters: ? bool, l int64, and f float32 or
# float64, the same for all f of one call.
SIGNATURES = {
    **dict.fromkeys(elementwise.UNARY, "f->f"),
    **dict.fromkeys(elementwise.BINARY, "ff->f"),
    **dict.fromkeys(("lt", "le", "gt", "ge", "eq", "ne"), "ff->?"),
    "clip": "f->f",
    "where": "?ff->f",
    **dict.fromkeys(("sum", "max", "min"), "f->f"),
    "argmax": "f->l",
    **dict.fromkeys(("take_rows", "scatter_rows"), "fl->f"),
    "matmul": "ff->f",
    "linear": "fff->f",
    **dict.fromkeys(("softmax", "logsumexp", "log_softmax"), "f->f"),
    "softmax_grad": "ff->f",
    "cross_entropy": "fl->f",
    "cross_entropy_grad": "ffl->f",
    "dropout": "f->f",
    "sgd": "fff->ff",
    "adam": "ffff->fff",
    "rmsprop": "ffff->fff",
}
_DTYPES = {"?": np.dtype(np.bool_), "l": np.dtype(np.int64)}
_FLOATS = np.dtype(np.float32), np.dtype(np.float64)

_ENTRY = """
def {name}({parameters}):
    if ({dtypes}) in accepted and {behaved}:
        kernel({arguments})
    else:
        general({arguments})
"""


class _Writable:
    """The memory of a read-only array as a writable one, for kernels, which never write to inputs.

    Numba would compile everything once more for read-only arrays: to it they are another type.
    """

    def __init__(self, x):
        self.__array_interface__ = {**x.__array_interface__, "data": (x.__array_interface__["data"][0], False)}
        self.owner = x


def _behaved(x):
    """x as an aligned, C-contiguous array that Numba takes for writable."""
    x = np.require(x, requirements=("C", "A"))
    return x if x.flags.writeable else np.asarray(_Writable(x))


def _guarded(name, kernel, signature, reference):
    """`kernel` behind a function of the reference's signature that hands it only arrays for which it is compiled.

    Inputs in another layout are brought into shape; other dtypes, and outputs in another layout, go to the reference.
    The function is written out as source, as dataclasses do it, because loops over arguments cost 0.5-1 us a call.
    """
    inputs, outputs = signature.split("->")
    count = len(inputs + outputs)
    accepted = {tuple(_DTYPES.get(letter, f) for letter in inputs + outputs) for f in _FLOATS}

    def general(*arguments):
        arrays, numbers = arguments[:count], arguments[count:]
        dtypes = tuple(x.dtype for x in arrays)
        if dtypes in accepted and all(x.flags.carray for x in arrays[len(inputs) :]):
            kernel(*map(_behaved, arrays[: len(inputs)]), *arrays[len(inputs) :], *numbers)
        else:
            reference(*arguments)

    parameters = inspect.signature(reference).parameters
    arrays = list(parameters)[:count]
    source = _ENTRY.format(
        name=name,
        parameters=", ".join(map(str, parameters.values())),
        dtypes=", ".join(f"{x}.dtype" for x in arrays),
        behaved=" and ".join(f"{x}.flags.carray" for x in arrays),  # carray: C-contiguous, aligned and writable
        arguments=", ".join(parameters),
    )
    scope = {"accepted": accepted, "kernel": kernel, "general": general}
    exec(source, scope)
    entry = scope[name]
    entry.__doc__, entry.__module__ = reference.__doc__, __name__
    return entry if JIT_ENABLED else np.errstate(all="ignore")(entry)


def _linear(x, weight, bias, out):
    gemm.matmul(x, weight, out, bias=bias)


_REFERENCE = device("numpy").kernels

_COMPILED = {
    **elementwise.KERNELS,
    **reduce.KERNELS,
    **movement.KERNELS,
    **softmax.KERNELS,
    **random.KERNELS,
    **optim.KERNELS,
    "matmul": gemm.matmul,
    "linear": _linear,
}

KERNELS = {
    name: _guarded(name, kernel, SIGNATURES[name], _REFERENCE[name]) if name in SIGNATURES else kernel
    for name, kernel in _COMPILED.items()
}
