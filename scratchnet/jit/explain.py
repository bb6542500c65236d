"""A program as a text to read: the kernel calls that were recorded, and the stages that are run in their place."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..kernels import get_num_threads, order_of_bfloat16
from ..native.updates import UPDATES
from .program import Program
from .trace import Call, Guard, memory_of
from .values import key_of

CONVOLUTIONS = {"conv2d": (-1, 1), "conv2d_input": (0, 1), "conv2d_weight": (0, 2)}  # of the outputs, of the weight
UPDATING = {f"matmul_{update}" for update in UPDATES}
PRODUCTS = {"matmul", "batched_matmul", "matmul_bfloat16", "matmul_float16", "linear", *UPDATING}
PACKING = {"pack", "pack_bfloat16"}
ROUNDS, SECONDS = 50, 1.0  # steps that are timed: so many, or as many as take so long, but three


def explain(program: Program, holds: Callable[[], bool]) -> str:
    """Before: each kernel call with its arrays, arithmetic, bytes and floor. After: stages of fused loops, timed.

    A floor is the time of the arithmetic alone, at the peak of the threads in use, which is measured here and now.

    The step is run to be timed, one stage after the other; what it changes that outlives it is put back. Times are
    medians, and those of the stages add up to what all of them take in one go. holds: may the program be replayed?
    """
    program.rearrange()
    recorded = [call for call in program.trace.calls if isinstance(call, Call)]
    from ..kernels.cpu.peak import peak  # here, not above: it loads Numba's kernels

    threads = get_num_threads()
    speed = peak(threads) if program.executables else math.inf  # without compiled stages nothing is compared with it
    lines = [f"recorded: {len(recorded)} kernel calls"]
    lines += [_row(_of_call(call), flops(call), _bytes(call.arrays), _floor(call, speed)) for call in recorded]
    if any(call.kernel == "matmul_bfloat16" and call.device.name == "cpu" for call in recorded):
        lines += [f"matmul_bfloat16 takes the way {order_of_bfloat16()!r}"]
    python = [instruction.call for instruction in program.instructions if not instruction.loops]
    stages = [(executable, stage) for executable in program.executables for stage in range(len(executable.stages))]
    lines += ["", f"run: {len(stages)} stages in {len(program.executables)} compiled calls"]
    lines[-1] += f", {len(python)} calls by Python"
    with _Restored(program):
        step, times = _times(program, holds, stages)
    lines += [f"a step takes {step * 1e6:.1f} us: {sum(times) * 1e6:.1f} us the stages, the rest Python around them"]
    if stages:
        least, where = sum(_floor(call, speed) for call in recorded), f"{speed / 1e9:.0f} GFLOP/s on {threads} threads"
        lines += [f"floor {least * 1e6:.1f} us, {least / step:.0%} of the step, by the peak in float32: {where}"]
    call_of = {id(loop): instruction.call for instruction in program.instructions for loop in instruction.loops}
    for number, (executable, stage) in enumerate(stages, 1):
        rows_of_stage, total, least = [], 0, 0.0
        first, end = executable.stages[stage]
        for begin, stop, rows, block, _ in executable.groups[first:end]:
            tasks = executable.kept[begin:stop]
            packs = {id(task) for task in tasks if task.loop.name in PACKING}  # of a later product: no arithmetic
            calls = list({id(call_of[id(task)]): call_of[id(task)] for task in tasks if id(task) not in packs}.values())
            kernels = [call for call in calls if isinstance(call, Call)]
            arithmetic, floor = sum(map(flops, kernels)), sum(_floor(call, speed) for call in kernels)
            names = ["pack"] * bool(packs) + [call.kind if isinstance(call, Guard) else call.kernel for call in calls]
            text = f"{rows} rows by {block}: {' > '.join(names)}"
            size = _bytes(x for task in tasks for x, _, _ in task.arrays())
            rows_of_stage.append(_row(text, arithmetic, size, floor))
            total, least = total + arithmetic, least + floor
        seconds = max(times[number - 1], 1e-9)
        rates = f"{total / seconds / 1e9:.1f} GFLOP/s, {least / seconds:.0%} of peak, floor {least * 1e6:.1f} us"
        lines += [f"stage {number}  {seconds * 1e6:.1f} us  {rates}"]
        lines += rows_of_stage
    lines += [f"by Python: {_of_call(call) if isinstance(call, Call) else call.kind}" for call in python]
    return "\n".join(lines)


def flops(call: Call) -> int:
    """Additions and multiplications: of a product 2 m k n, of a convolution 2 for each output and element of a filter.

    Of anything else one for each element.
    """
    arrays = call.arrays
    if call.kernel in CONVOLUTIONS:
        outputs, weight = (arrays[i] for i in CONVOLUTIONS[call.kernel])
        return 2 * outputs.size * (weight.size // (len(weight) or 1))
    if call.kernel in PRODUCTS:
        out = arrays[-1]
        update = out.size if call.kernel in UPDATING else 0
        return 2 * arrays[0].size // (math.prod(out.shape[:-1]) or 1) * out.size + update
    return 0 if call.kernel in ("copy", "fill", "take_rows") else max((x.size for x in arrays), default=0)


def _floor(call: Call, speed: float) -> float:
    """Seconds of its arithmetic at this speed in float32; float64 has half of it."""
    return flops(call) / speed * (2 if call.arrays and call.arrays[0].dtype == np.float64 else 1)


def _row(text: str, arithmetic: int, size: int, floor: float) -> str:
    return f"  {text:<86} {arithmetic / 1e6:>9.3f} MFLOP {size / 1e3:>9.1f} kB {floor * 1e6:>8.1f} us"


def _of_call(call: Call) -> str:
    shapes = ", ".join("x".join(map(str, x.shape)) or "()" for x in call.arrays)
    return f"{call.kernel}({shapes})"


def _bytes(arrays: Any) -> int:
    """Of memory that is touched, each piece counted once."""
    return sum({x.__array_interface__["data"][0]: x.nbytes for x in arrays}.values())


class _End(Exception):
    """Ends a step that is only timed; then its effects are taken back."""


def _times(program: Program, holds: Callable[[], bool], stages: list[tuple[Any, int]]) -> tuple[float, list[float]]:
    """Seconds of a step, and of each stage in it. Stages that run one by one take longer to start: that is left out."""
    steps: list[float] = []
    wholes: list[list[float]] = []
    ones: list[list[float]] = []
    begin = time.perf_counter()
    while len(steps) < 3 or (len(steps) < ROUNDS and time.perf_counter() - begin < SECONDS):
        steps.append(_seconds(lambda: _step(program, holds)))
        wholes.append([_seconds(executable.run) for executable in program.executables])
        ones.append([_seconds(functools.partial(executable.run, stage)) for executable, stage in stages])
    one, whole = np.median(ones, axis=0), float(np.sum(np.median(wholes, axis=0)))
    one = np.maximum(one - max(0.0, one.sum() - whole) / max(one.size, 1), 0)
    return max(float(np.median(steps)), whole), list(one * (whole / (one.sum() or 1)))


def _step(program: Program, holds: Callable[[], bool]) -> None:
    """The program as a call of the step runs it, with other arrays than before."""

    def end() -> None:
        raise _End

    inputs = [x.view() if isinstance(x, np.ndarray) else x for x in program.sources]
    keys: list[Any] = []
    for x in inputs:
        if isinstance(x, np.ndarray):
            key_of(x, keys)
    holds()
    program.parts.append(end)
    try:
        program.run(inputs)
    except _End:
        pass
    finally:
        program.parts.pop()


def _seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


class _Restored:
    """A context after which the memory that a program writes, but does not own, is as it was."""

    def __init__(self, program: Program):
        tasks = [task for executable in program.executables for task in executable.kept]
        arrays = [x for task in tasks for x, is_written, _ in task.arrays() if is_written]
        by_python = [x.call for x in program.instructions if not x.loops and isinstance(x.call, Call)]
        arrays += [x for call in by_python for x in call.written() if isinstance(x, np.ndarray)]
        written = {id(memory_of(x)): memory_of(x) for x in arrays}
        self.arrays = [x for key, x in written.items() if key not in program.trace.owned]

    def __enter__(self) -> None:
        self.before = [x.copy() for x in self.arrays]

    def __exit__(self, *exc_info: Any) -> None:
        for x, old in zip(self.arrays, self.before, strict=True):
            np.copyto(x, old)
