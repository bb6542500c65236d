"""A program as a text to read: the kernel calls that were recorded, and the stages that are run in their place."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from .program import Program
from .trace import Call, Guard, memory_of

CONVOLUTIONS = {"conv2d": (-1, 1), "conv2d_input": (0, 1), "conv2d_weight": (0, 2)}  # of the outputs, of the weight
ROUNDS = 20  # runs of a stage; the best counts


def explain(program: Program) -> str:
    """Before: each kernel call with its arrays, arithmetic and bytes. After: stages of fused loops, with their times.

    The stages are run to be timed; what they write that outlives the step is put back.
    """
    recorded = [call for call in program.trace.calls if isinstance(call, Call)]
    lines = [f"recorded: {len(recorded)} kernel calls"]
    lines += [_row(_of_call(call), flops(call), _bytes(call.arrays)) for call in recorded]
    python = [instruction.call for instruction in program.instructions if not instruction.loops]
    stages = [(executable, stage) for executable in program.executables for stage in range(len(executable.stages))]
    lines += ["", f"run: {len(stages)} stages in {len(program.executables)} compiled calls"]
    lines[-1] += f", {len(python)} calls by Python"
    call_of = {id(loop): instruction.call for instruction in program.instructions for loop in instruction.loops}
    with _Restored(program):
        for number, (executable, stage) in enumerate(stages, 1):
            lines.append(f"stage {number}  {_seconds(executable, stage) * 1e6:.1f} us")
            first, end = executable.stages[stage]
            for begin, stop, rows, block, _ in executable.groups[first:end]:
                tasks = executable.kept[begin:stop]
                calls = list({id(call_of[id(task)]): call_of[id(task)] for task in tasks}.values())
                arithmetic = sum(flops(call) for call in calls if isinstance(call, Call))
                names = [call.kind if isinstance(call, Guard) else call.kernel for call in calls]
                text = f"{rows} rows by {block}: {' > '.join(names)}"
                lines.append(_row(text, arithmetic, _bytes(x for task in tasks for x, _, _ in task.arrays())))
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
    if call.kernel in ("matmul", "batched_matmul", "matmul_bfloat16", "matmul_float16", "linear", "matmul_sgd"):
        out = arrays[-1]
        update = out.size if call.kernel == "matmul_sgd" else 0
        return 2 * arrays[0].size // (math.prod(out.shape[:-1]) or 1) * out.size + update
    return 0 if call.kernel in ("copy", "fill", "take_rows") else max((x.size for x in arrays), default=0)


def _row(text: str, arithmetic: int, size: int) -> str:
    return f"  {text:<86} {arithmetic / 1e6:>9.3f} MFLOP {size / 1e3:>9.1f} kB"


def _of_call(call: Call) -> str:
    shapes = ", ".join("x".join(map(str, x.shape)) or "()" for x in call.arrays)
    return f"{call.kernel}({shapes})"


def _bytes(arrays: Any) -> int:
    """Of memory that is touched, each piece counted once."""
    return sum({x.__array_interface__["data"][0]: x.nbytes for x in arrays}.values())


def _seconds(executable: Any, stage: int) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        executable.run(stage)
        best = min(best, time.perf_counter() - start)
    return best


class _Restored:
    """A context after which the memory that a program writes, but does not own, is as it was."""

    def __init__(self, program: Program):
        tasks = [task for executable in program.executables for task in executable.kept]
        written = {id(memory_of(x)): memory_of(x) for task in tasks for x, is_written, _ in task.arrays() if is_written}
        self.arrays = [x for key, x in written.items() if key not in program.trace.owned]

    def __enter__(self) -> None:
        self.before = [x.copy() for x in self.arrays]

    def __exit__(self, *exc_info: Any) -> None:
        for x, old in zip(self.arrays, self.before, strict=True):
            np.copyto(x, old)
