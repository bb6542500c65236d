"""The `cuda` device: the kernels of reference.py for GPUs, written in numba.cuda.

`KERNELS` is the table. Each file holds the kernels of one family; `_guarded` gives all of them the same front door.
What of this was proven without a GPU, and how, stands in the README; scripts/gpu/gpu_check.py is the proof with one.
"""

import inspect
from functools import partial

import numpy as np

from ...errors import DeviceError, DtypeError
from .. import device
from . import elementwise, gemm, memory, movement, norm, optim, random, reduce, rows
from .compile import captured
from .memory import DeviceArray

# The dtypes for which there is a kernel, inputs -> outputs, in NumPy's letters: ? bool, B uint8, l int64, and f float32
# or float64, the same for all f of one call. `copy` and `fill` take every dtype. What there is for int64 serves int32
# and uint8, too.
_BOTH, _ALL = "ff->f ll->l", "ff->f ll->l ??->?"
SIGNATURES = {
    **dict.fromkeys(elementwise.UNARY, "f->f"),
    **dict.fromkeys(("neg", "abs", "sign", "clip"), "f->f l->l"),
    **dict.fromkeys(elementwise.GRADIENTS, "ff->f"),
    **dict.fromkeys(("div", "pow"), "ff->f"),
    **dict.fromkeys(("sub", "maximum", "minimum"), _BOTH),
    **dict.fromkeys(("add", "mul"), _ALL),
    **dict.fromkeys(elementwise.COMPARISONS, "ff->? ll->? ??->?"),
    "where": "?ff->f ?ll->l ???->?",
    "sum": "f->f l->l ?->l",
    **dict.fromkeys(("max", "min"), "f->f l->l"),
    "argmax": "f->l l->l",
    "standardize": "f->f",
    "standardize_grad": "ff->f",
    "take_rows": "fl->f ll->l Bl->B ?l->?",
    "scatter_rows": "fl->f ll->l",
    "matmul": _BOTH,
    "linear": "fff->f lll->l",
    **dict.fromkeys(("softmax", "logsumexp", "log_softmax"), "f->f"),
    "softmax_grad": "ff->f",
    "cross_entropy": "fl->f",
    "cross_entropy_grad": "ffl->f",
    "dropout": "f->f",
    "sgd": "fff->ff",
    "adam": "ffff->fff",
    "rmsprop": "ffff->fff",
}
_FLOATS = np.dtype(np.float32), np.dtype(np.float64)


def accepted(signature: str) -> dict[tuple[np.dtype, ...], str]:
    """The dtypes of all arrays of a call for which there is a kernel."""
    cases = signature.replace("->", "").split()
    return {
        tuple(f if letter == "f" else np.dtype(letter) for letter in letters): letters
        for letters in cases
        for f in _FLOATS
    }


def _guarded(name, kernel, reference):
    """`kernel` behind a function of the reference's signature that refuses arrays from elsewhere and other dtypes.

    A NumPy array of one element is a Python number that an op was given: it becomes device memory here.
    """
    signature = inspect.signature(reference)
    parameters = list(signature.parameters)
    known = accepted(SIGNATURES[name]) if name in SIGNATURES else None
    count = len(next(iter(known))) if known else {"fill": 1, "copy": 2}[name]
    inputs = SIGNATURES[name].index("->") if known else 0

    def bound_to(args, kwargs):
        """The call, to be made, with arrays that fit."""
        if kwargs or len(args) < len(parameters):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            args = bound.args
        arrays = [x if type(x) is DeviceArray else _number(name, x) for x in args[:count]]
        dtypes = tuple([x.dtype for x in arrays])
        if known is None or dtypes in known:
            return partial(kernel, *arrays, *args[count:])
        if tuple([INT64 if x in SMALL else x for x in dtypes]) in known:
            return partial(_in_int64, kernel, arrays, inputs, args[count:])
        raise DtypeError(f"{name}: expected dtypes {_words(known)} on 'cuda', got {', '.join(map(str, dtypes))}")

    def entry(*args, **kwargs):
        bound_to(args, kwargs)()

    def launches(args):
        call, out = bound_to(args, {}), args[count - 1]
        is_known = READ.isdisjoint(parameters) and not (name in LIMITED and out.dtype.kind in "iu")
        return captured(call) if is_known else [call]

    entry.launches = launches  # type: ignore[attr-defined]
    entry.__name__ = entry.__qualname__ = name
    entry.__doc__, entry.__module__ = reference.__doc__, __name__
    entry.__signature__ = signature  # type: ignore[attr-defined]
    return entry


def _in_int64(kernel, arrays, inputs, numbers):
    """A call on small integers: with the same bits, as all of them count modulo a power of two."""
    wide = [memory.empty(x.shape, INT64) if x.dtype in SMALL else x for x in arrays]
    for x, copy in zip(arrays[:inputs], wide[:inputs], strict=True):
        if x is not copy:
            movement.copy(x, copy)
    kernel(*wide, *numbers)
    for x, copy in zip(arrays[inputs:], wide[inputs:], strict=True):
        if x is not copy:
            movement.copy(copy, x)


INT64, SMALL = np.dtype(np.int64), {np.dtype(np.int32), np.dtype(np.uint8)}
READ = {"numbers", "key"}  # parameters that kernels read on the host: what they launch is another thing in each step
LIMITED = {"copy", "take_rows"}  # kernels that tell the limits of integers to their result, see DeviceArray.limits


def launches(name, arguments):
    """A call of a kernel, to be made again and again, as functions to call in turn: its launches, with the memory
    that it needs between them, or the kernel itself, where it takes none and has more to do than to launch.
    """
    return KERNELS[name].launches(arguments)


def _words(known) -> str:
    return " or ".join("(" + ", ".join(map(str, dtypes)) + ")" for dtypes in known)


def _number(name: str, x) -> DeviceArray:
    """A number as device memory: filled by a kernel, and kept, as steps use the same few numbers again and again."""
    if not isinstance(x, np.ndarray):
        raise DeviceError(f"{name}: expected arrays on 'cuda', got {type(x).__name__}")
    if x.size != 1:
        raise DeviceError(f"{name}: expected arrays on 'cuda', got a NumPy array of shape {x.shape}; use .to('cuda')")
    key = x.dtype, x.tobytes()
    found = _numbers.get(key)
    if found is None:
        if len(_numbers) >= MOST_NUMBERS:
            _numbers.clear()
        found = _numbers[key] = memory.empty((), x.dtype)
        movement.fill(found, x.item())
    return found.reshape(x.shape)


_numbers: dict[tuple[np.dtype, bytes], DeviceArray] = {}
MOST_NUMBERS = 1024

_COMPILED = {
    **elementwise.KERNELS,
    **reduce.KERNELS,
    **movement.KERNELS,
    **rows.KERNELS,
    **norm.KERNELS,
    **random.KERNELS,
    **optim.KERNELS,
    **gemm.KERNELS,
}
_REFERENCE = device("numpy").kernels

KERNELS = {name: _guarded(name, kernel, _REFERENCE[name]) for name, kernel in _COMPILED.items()}
