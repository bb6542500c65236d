"""The `cpu` device: the kernels of reference.py compiled by Numba, on all cores where the work is large enough.

`KERNELS` is the table. Each file holds the kernels of one family. Their front door (dispatch.py) brings inputs of
another layout into shape; calls with other dtypes, or with outputs of another layout, go to the reference.
"""

from typing import Any

import numpy as np

from ...native import ahead
from ...native.compile import JIT_ENABLED
from ...native.loops import Plan, planning
from ..dispatch import REFERENCE, entry
from ..signatures import SIGNATURES, accepted, arrays_of
from . import (
    batch_norm,
    cells,
    conv,
    elementwise,
    first_run,
    gemm,
    gemm_bfloat16,
    gemm_tuning,
    guards,
    movement,
    norm,
    optim,
    pool,
    random,
    reduce,
    softmax,
)


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


def _guarded(name, kernel):
    """`kernel` behind the front door."""
    (inputs, count), known, reference = arrays_of(name), accepted(name, "cpu"), REFERENCE[name]

    def otherwise(*arguments):
        arrays, numbers = arguments[:count], arguments[count:]
        if tuple(x.dtype for x in arrays) in known and all(x.flags.carray for x in arrays[inputs:]):
            kernel(*map(_behaved, arrays[:inputs]), *arrays[inputs:], *numbers)
        else:
            reference(*arguments)

    door = entry(name, "cpu", kernel, FITS, otherwise)
    return door if JIT_ENABLED else np.errstate(all="ignore")(door)


FITS = "{x}.flags.carray"  # C-contiguous, aligned and writable
ANY_LAYOUT = ("copy", "fill")  # kernels that are NumPy's own, but for copies in a plan


def plan_call(name: str, arguments: tuple, tasks: Plan) -> bool:
    """Adds the loops that a kernel would run on these arguments to a plan, if that is all that it would do.

    False, and nothing is added: the arrays are such that the kernel copies or converts, or leaves them to NumPy.
    """
    if not JIT_ENABLED or name not in SIGNATURES or name == "fill":
        return False
    arrays = arguments[: arrays_of(name)[1]]
    is_compiled = tuple(x.dtype for x in arrays) in accepted(name, "cpu") and all(x.flags.carray for x in arrays)
    if not is_compiled and name != "copy":
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


def plan_guard(kind: str, arguments: tuple, tasks: Plan) -> bool:
    """Adds the loop of a guard to a plan; False where there is no compiled one."""
    if not JIT_ENABLED or not arguments[0].flags.carray:
        return False
    with planning(tasks):
        guards.GUARDS[kind](*arguments)  # type: ignore[operator]
    return True


def _linear(x, weight, bias, out):
    gemm.matmul(x, weight, out, bias=bias)


_COMPILED: dict[str, Any] = {
    **elementwise.KERNELS,
    **reduce.KERNELS,
    **movement.KERNELS,
    **softmax.KERNELS,
    **norm.KERNELS,
    **random.KERNELS,
    **optim.KERNELS,
    **batch_norm.KERNELS,
    **cells.KERNELS,
    **conv.KERNELS,
    **pool.KERNELS,
    "matmul": gemm.matmul,
    "batched_matmul": gemm.batched_matmul,
    "linear": _linear,
    "matmul_bfloat16": gemm_bfloat16.matmul_bfloat16,
    # No precisions of this device: the GPU's are compared with them.
    **{name: REFERENCE[name] for name in ("matmul_float16", "matmul_tf32", "matmul_tf32x3")},
    **{f"{name}_rounded": REFERENCE[f"{name}_rounded"] for name in conv.KERNELS},
}

KERNELS = {name: kernel if name in ANY_LAYOUT else _guarded(name, kernel) for name, kernel in _COMPILED.items()}
gemm_tuning.prepare()
if JIT_ENABLED:
    KERNELS["matmul"] = gemm.at_once(KERNELS["matmul"])
    KERNELS["linear"] = gemm.linear_at_once(KERNELS["linear"])

ahead.offer(__name__, first_run.FIRST_RUN)
