"""A program as a text to read: the kernel calls that were recorded, and the stages that are run in their place."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..kernels import device, get_num_threads, order_of_bfloat16
from ..native.updates import UPDATES
from .program import Program, take_back
from .trace import Call, Guard, memory_of
from .values import key_of

CONVOLUTIONS = {"conv2d": (-1, 1), "conv2d_input": (0, 1), "conv2d_weight": (0, 2)}  # of the outputs, of the weight
CONVOLUTIONS |= {f"{name}_rounded": places for name, places in CONVOLUTIONS.items()}
UPDATING = {f"matmul_{update}" for update in UPDATES}
PRODUCTS = {"matmul", "batched_matmul", "linear", *UPDATING}
PRODUCTS |= {f"matmul_{name}" for name in ("bfloat16", "float16", "tf32", "tf32x3")}
PACKING = {"pack", "pack_bfloat16"}
ROUNDS, SECONDS = 50, 1.0  # steps that are timed: so many, or as many as take so long, but three


def explain(recorded: Any) -> str:
    """Before: each kernel call with its arrays, arithmetic, bytes and floor. After: stages of fused loops, timed.

    A floor is the time of the arithmetic alone, at the peak of the threads in use, which is measured here and now.

    The step is run to be timed; what it changes that outlives it is put back. Each stage is timed as the step runs, by
    the threads that run it, and so is what Python does around them: all lines add up to the step. Times are medians.
    recorded: what Step keeps of the call that it recorded, with a program.
    """
    program: Program = recorded.program
    program.rearrange()
    kernels = [call for call in program.trace.calls if isinstance(call, Call)]
    from ..kernels.cpu.peak import peak  # here, not above: it loads Numba's kernels

    threads = get_num_threads()
    speed = peak(threads) if program.executables else math.inf  # without compiled stages nothing is compared with it
    lines = [f"recorded: {len(kernels)} kernel calls"]
    lines += [_row(_of_call(call), flops(call), _bytes(call.touched()), _floor(call, speed)) for call in kernels]
    if any(call.kernel == "matmul_bfloat16" and call.device.name == "cpu" for call in kernels):
        lines += [f"matmul_bfloat16 takes the way {order_of_bfloat16()!r}"]
    python = [instruction.call for instruction in program.instructions if instruction.by == "Python"]
    stages = [(executable, stage) for executable in program.executables for stage in range(len(executable.stages))]
    lines += ["", f"run: {len(stages)} stages in {len(program.executables)} compiled calls"]
    lines[-1] += f", {len(python)} calls by Python"
    graphs = _graphs(program)
    launched = [(graph, i) for graph in graphs for i in range(len(graph.stages))]
    lines[-1] += f", {sum(len(x.launches) for x in graphs)} launches in {len(graphs)} graphs" if graphs else ""
    with _Restored(program):
        step, times = _times(recorded)
    of_stages = sum(times[x] for x in stages + launched)
    rest = sum(s for x, s in times.items() if x not in stages + launched)
    lines += [f"a step takes {step * 1e6:.1f} us: {of_stages * 1e6:.1f} us the stages, {rest * 1e6:.1f} us the rest"]
    if graphs:
        lines[-1] += "; stages of a GPU are started and waited for one by one here, as a graph by a step"
    if stages:
        least, where = sum(_floor(call, speed) for call in kernels), f"{speed / 1e9:.0f} GFLOP/s on {threads} threads"
        lines += [f"floor {least * 1e6:.1f} us, {least / step:.0%} of the step, by the peak in float32: {where}"]
    call_of = {id(loop): instruction.call for instruction in program.instructions for loop in instruction.loops}
    lines += [_of_line(line, times) for line in (*BY_PYTHON[:-1], START) if line in times]
    for number, (executable, stage) in enumerate(stages, 1):
        rows_of_stage, total, least = [], 0, 0.0
        first, end = executable.stages[stage]
        for begin, stop, rows, block, _ in executable.groups[first:end]:
            tasks = executable.kept[begin:stop]
            packs = {id(task) for task in tasks if task.loop.name in PACKING}  # of a later product: no arithmetic
            calls = list({id(call_of[id(task)]): call_of[id(task)] for task in tasks if id(task) not in packs}.values())
            fused = [call for call in calls if isinstance(call, Call)]
            arithmetic, floor = sum(map(flops, fused)), sum(_floor(call, speed) for call in fused)
            names = ["pack"] * bool(packs) + [call.kind if isinstance(call, Guard) else call.kernel for call in calls]
            text = f"{rows} rows by {block}: {' > '.join(names)}"
            size = _bytes(x for task in tasks for x, _, _ in task.arrays())
            rows_of_stage.append(_row(text, arithmetic, size, floor))
            total, least = total + arithmetic, least + floor
        seconds = max(times[executable, stage], 1e-9)
        rates = f"{total / seconds / 1e9:.1f} GFLOP/s, {least / seconds:.0%} of peak, floor {least * 1e6:.1f} us"
        lines += [f"stage {number}  {seconds * 1e6:.1f} us  {rates}"]
        lines += rows_of_stage
    for number, (graph, i) in enumerate(launched, len(stages) + 1):
        names, texts = graph.stages[i]
        lines += [f"stage {number}  {times[graph, i] * 1e6:.1f} us  {' > '.join(names)}", *(f"  {x}" for x in texts)]
    lines += [_of_line(line, times) for line in (END, CALLS) if line in times]
    lines += [f"  {_of_call(call) if isinstance(call, Call) else call.kind}" for call in python]
    lines += [_of_line(line, times) for line in (WAITING, RESULTS) if line in times]
    return "\n".join(lines)


def _graphs(program: Program) -> list[Any]:
    """The parts that are launches on a GPU."""
    return [part for part in program.parts if hasattr(part, "run_watched")]


def flops(call: Call) -> int:
    """Additions and multiplications: of a product 2 m k n, of a convolution 2 for each output and element of a filter.

    Of anything else one for each element.
    """
    arrays = call.touched()
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
    return flops(call) / speed * (2 if call.touched() and call.touched()[0].dtype == np.float64 else 1)


def _row(text: str, arithmetic: int, size: int, floor: float) -> str:
    return f"  {text:<86} {arithmetic / 1e6:>9.3f} MFLOP {size / 1e3:>9.1f} kB {floor * 1e6:>8.1f} us"


def _of_line(line: str, times: dict[Line, float]) -> str:
    return f"{line}  {times[line] * 1e6:.1f} us, no arithmetic"


def _of_call(call: Call) -> str:
    shapes = ", ".join("x".join(map(str, x.shape)) or "()" for x in call.touched())
    return f"{call.kernel}({shapes})"


def _bytes(arrays: Any) -> int:
    """Of memory that is touched, each piece counted once."""
    return sum({getattr(x, "layout", x).__array_interface__["data"][0]: x.nbytes for x in arrays}.values())


# --- the step as it runs ----------------------------------------------------------------------------------------------

ARGUMENTS, VALUES, INPUTS, EFFECTS, RESULTS = BY_PYTHON = (
    "the arguments: shapes, types, memory that they share",
    "Python values that the step relies on: are they the same?",
    "addresses of the arguments, for the stages",
    "effects: numbers of the optimizer, keys of random numbers",
    "results and gradients, copied for the caller",
)
CALLS, START, END = "calls by Python", "threads start", "threads end"
WAITING = "waiting for the GPU"
Line = str | tuple[Any, int]  # what a time is of: one of the names above, or a stage of an executable


End = tuple[Any, int, Any]  # a line or an executable, when it ended, and of an executable what its threads noted


def timed_step(recorded: Any, clock: Callable[[], int], watched: bool) -> list[End]:
    """Runs the program of a recorded call as a replay does, with other arrays, and takes its effects back.

    Returns when it began and when each part of it ended. clock: that of the threads, native.atomics.nanoseconds.
    watched: are stages parts of their own?
    """
    program = recorded.program
    given = [x.view() if isinstance(x, np.ndarray) else x for x in program.sources]
    undo: list[Any] = []
    graphs = _graphs(program)
    ends: list[End] = [(ARGUMENTS, clock(), None)]
    try:
        keys: list[Any] = []
        for x in given:
            key_of(x, keys) if isinstance(x, np.ndarray) else None
        recorded.aliases.found(given)
        ends.append((ARGUMENTS, clock(), None))
        recorded.holds()
        ends.append((VALUES, clock(), None))
        program.rearrange()
        program.take(given)
        ends.append((INPUTS, clock(), None))
        program.begin(undo, recorded.holds)
        ends.append((EFFECTS, clock(), None))
        for part in program.parts:
            executable: Any = getattr(part, "__self__", None)
            if watched and executable in program.executables:
                marks = executable.run_watched()
                ends.append((executable, clock(), marks))
            elif watched and part in graphs:
                ends += [((part, i), end, None) for i, end in enumerate(part.run_watched(clock))]
            else:
                part()
                ends.append((CALLS, clock(), None))
        for graph in graphs[:1]:  # of which a run only starts the launches
            graph.synchronize()
            ends.append((WAITING, clock(), None))
        recorded.results.of(given)
        for gradient in recorded.gradients:
            gradient.left is not None and gradient.left.copy()
        ends.append((RESULTS, clock(), None))
    finally:
        program.stop[0] = 0
        take_back(undo)
    return ends


def lines_of(ends: Sequence[End]) -> dict[Line, int]:
    """Nanoseconds of each line: from the end of the one before to its own. So they add up to all of the step."""
    lines: dict[Line, int] = {}
    last = ends[0][1]

    def add(line: Line, now: int) -> None:
        nonlocal last
        lines[line] = lines.get(line, 0) + now - last
        last = now

    for line, now, marks in ends[1:]:
        if marks is None:
            add(line, now)
            continue
        add(START, int(min(x for x in marks[:, 0] if x)))  # a thread that came too late has no mark
        for stage, end in enumerate(marks[:, 1:].max(axis=0)):
            add((line, stage), max(int(end), last))
        add(END, now)
    return lines


def _times(recorded: Any) -> tuple[float, dict[Line, float]]:
    """Seconds of a step that nobody watches, and of each line of one: medians of many steps of both kinds, in turns."""
    from ..native.atomics import nanoseconds  # here, not above: it loads Numba

    plain: list[list[End]] = []
    watched: list[list[End]] = []
    begin = time.perf_counter()
    while len(plain) < 3 or (len(plain) < ROUNDS and time.perf_counter() - begin < SECONDS):
        plain.append(timed_step(recorded, nanoseconds, watched=False))  # one soon after the other, as steps come:
        watched.append(timed_step(recorded, nanoseconds, watched=True))  # after a pause, threads would have to wake up
    lines = [lines_of(ends) for ends in watched]
    step = np.median([ends[-1][1] - ends[0][1] for ends in plain])
    return float(step) * 1e-9, {x: float(np.median([t[x] for t in lines])) * 1e-9 for x in lines[0]}


class _Restored:
    """A context after which the memory that a program writes, but does not own, is as it was."""

    def __init__(self, program: Program):
        tasks = [task for executable in program.executables for task in executable.kept]
        arrays = [x for task in tasks for x, is_written, _ in task.arrays() if is_written]
        by_python = [x.call for x in program.instructions if not x.loops and isinstance(x.call, Call)]
        arrays += [x for call in by_python for x in call.written()]
        written = {id(memory_of(x)): memory_of(x) for x in arrays}
        self.arrays = [x for key, x in written.items() if key not in program.trace.owned]

    def __enter__(self) -> None:
        self.before = [x.copy() for x in self.arrays]

    def __exit__(self, *exc_info: Any) -> None:
        for x, old in zip(self.arrays, self.before, strict=True):
            np.copyto(x, old) if isinstance(x, np.ndarray) else device("cuda").write(x, old)
