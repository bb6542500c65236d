"""The `cpu` device: the kernels of reference.py compiled by Numba, on all cores where the work is large enough.

`KERNELS` is the table. Each file holds the kernels of one family; `_guarded` gives all of them the same front door.
"""

import inspect

import numpy as np

from ...native import ahead
from ...native.compile import JIT_ENABLED
from ...native.loops import Plan, planning
from .. import device
from . import elementwise, first_run, gemm, guards, movement, norm, optim, random, reduce, softmax

# The dtypes for which a kernel is compiled, inputs -> outputs, in NumPy's letters: ? bool, B uint8, l int64, and f
# float32 or float64, the same for all f of one call.
SIGNATURES = {
    **dict.fromkeys(elementwise.UNARY, "f->f"),
    **dict.fromkeys(elementwise.BINARY, "ff->f"),
    **dict.fromkeys(("lt", "le", "gt", "ge", "eq", "ne"), "ff->?"),
    "clip": "f->f",
    "where": "?ff->f",
    **dict.fromkeys(("sum", "max", "min"), "f->f"),
    "argmax": "f->l",
    "standardize": "f->f",
    "standardize_grad": "ff->f",
    "take_rows": "fl->f ll->l Bl->B",
    "scatter_rows": "fl->f",
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
_DTYPES = {letter: np.dtype(letter) for letter in "?Bl"}
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
    inputs = signature.split("->")[0]
    count, accepted = _accepted(signature)

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


def _accepted(signature):
    """How many arrays a signature has, and the dtypes for which a kernel is compiled."""
    cases = signature.replace("->", "").split()
    return len(cases[0]), {tuple(_DTYPES.get(letter, f) for letter in letters) for letters in cases for f in _FLOATS}


def plan_call(name: str, arguments: tuple, tasks: Plan) -> bool:
    """Adds the loops that a kernel would run on these arguments to a plan, if that is all that it would do.

    False, and nothing is added: the arrays are such that the kernel copies or converts, or leaves them to NumPy.
    """
    if not JIT_ENABLED or name not in SIGNATURES | {"copy": ""}:
        return False
    count, accepted = _accepted(SIGNATURES[name]) if name in SIGNATURES else (2, None)
    arrays = arguments[:count]
    dtypes = tuple(x.dtype for x in arrays)
    if accepted and (dtypes not in accepted or not all(x.flags.carray for x in arrays)):
        return False
    added = Plan()
    added.scratch = tasks.scratch
    with planning(added):
        _COMPILED[name](*arguments)
    known = [x for x in arguments if isinstance(x, np.ndarray)]
    for task in added:
        data = list(task.arrays())
        reads = [x for x, is_written, _ in data if not is_written]
        if not all(any(np.may_share_memory(x, y) for y in known) for x in reads):
            return False  # a copy that the kernel made now, which would be stale in the next run
        known += [x for x, is_written, _ in data if is_written]
    tasks.extend(added)
    return bool(added)


def _linear(x, weight, bias, out):
    gemm.matmul(x, weight, out, bias=bias)


def plan_guard(kind: str, arguments: tuple, tasks: Plan) -> bool:
    """Adds the loop of a guard to a plan; False where there is no compiled one."""
    if not JIT_ENABLED or not arguments[0].flags.carray:
        return False
    with planning(tasks):
        guards.GUARDS[kind](*arguments)  # type: ignore[operator]
    return True


_REFERENCE = device("numpy").kernels

_COMPILED = {
    **elementwise.KERNELS,
    **reduce.KERNELS,
    **movement.KERNELS,
    **softmax.KERNELS,
    **norm.KERNELS,
    **random.KERNELS,
    **optim.KERNELS,
    "matmul": gemm.matmul,
    "linear": _linear,
}

KERNELS = {
    name: _guarded(name, kernel, SIGNATURES[name], _REFERENCE[name]) if name in SIGNATURES else kernel
    for name, kernel in _COMPILED.items()
}
if JIT_ENABLED:
    KERNELS["matmul"] = gemm.at_once(KERNELS["matmul"])

ahead.offer(__name__, first_run.FIRST_RUN)
