"""A program as a text to read: the kernel calls that were recorded, and the stages that are run in their place."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from .program import Program
from .trace import Call, Guard, memory_of

ROUNDS = 20  # runs of a stage; the best counts


def explain(program: Program) -> str:
    """Before: each kernel call with its arrays, arithmetic and bytes. After: stages of fused loops, with their times.

    The stages are run to be timed; what they write that outlives the step is put back.
    """
    recorded = [entry for entry in program.trace.calls if isinstance(entry, Call)]
    lines = [f"recorded: {len(recorded)} kernel calls"]
    lines += [_row(_of_call(call), flops(call), _bytes(_arrays(call.arguments))) for call in recorded]
    python = [entry for entry, tasks in program.steps if not tasks]
    stages = [(executable, stage) for executable in program.executables for stage in range(len(executable.stages))]
    calls = f"{len(program.executables)} compiled calls, {len(python)} calls by Python"
    lines += ["", f"run: {len(stages)} stages in {calls}"]
    by_loop = {id(task): entry for entry, tasks in program.steps for task in tasks}
    with _Restored(program):
        for number, (executable, stage) in enumerate(stages, 1):
            lines.append(f"stage {number}  {_seconds(executable, stage) * 1e6:.1f} us")
            first, end = executable.stages[stage]
            for begin, stop, rows, block, _ in executable.groups[first:end]:
                tasks = executable.kept[begin:stop]
                entries = list({id(by_loop[id(task)]): by_loop[id(task)] for task in tasks}.values())
                arithmetic = sum(flops(entry) for entry in entries if isinstance(entry, Call))
                text = f"{rows} rows by {block}: " + " > ".join(
                    entry.kind if isinstance(entry, Guard) else entry.kernel for entry in entries
                )
                lines.append(_row(text, arithmetic, _bytes(x for task in tasks for x, _, _ in task.arrays())))
    lines += [f"by Python: {_of_call(entry) if isinstance(entry, Call) else entry.kind}" for entry in python]
    return "\n".join(lines)


def flops(call: Call) -> int:
    """Additions and multiplications of a call: of a product 2 m k n, of anything else one for each element."""
    arrays = _arrays(call.arguments)
    if call.kernel in ("matmul", "linear", "matmul_sgd"):
        out = arrays[-1]
        update = out.size if call.kernel == "matmul_sgd" else 0
        return 2 * arrays[0].size // (out.shape[0] or 1) * out.size + update
    return 0 if call.kernel in ("copy", "fill", "take_rows") else max((x.size for x in arrays), default=0)


def _row(text: str, arithmetic: int, size: int) -> str:
    return f"  {text:<86} {arithmetic / 1e6:>9.3f} MFLOP {size / 1e3:>9.1f} kB"


def _of_call(call: Call) -> str:
    shapes = ", ".join("x".join(map(str, x.shape)) or "()" for x in _arrays(call.arguments))
    return f"{call.kernel}({shapes})"


def _arrays(arguments: tuple) -> list[np.ndarray]:
    return [x for x in arguments if isinstance(x, np.ndarray)]


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
