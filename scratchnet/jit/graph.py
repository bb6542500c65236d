"""A program as a graph to draw: kernel calls, and the memory through which each hands its result to later ones."""

from __future__ import annotations

from typing import Any

from ..drawing import Drawing, Vertex
from ..errors import JitError
from .program import Program
from .trace import Call, Guard, memory_of


def draw(step: Any, names: dict[int, str]) -> Drawing:
    """The newest program of a step. names: of parameters, by the id of their memory."""
    if not step.programs:
        raise JitError("draw: expected a step that was called at least twice, got one without a program")
    program: Program = step.programs[-1]
    stages, inputs = _stages(program), {id(memory_of(x)) for x in program.inputs}
    vertices: list[Vertex] = []
    edges: list[tuple[int, int]] = []
    last: dict[int, int] = {}  # the vertex that wrote a piece of memory last, or stands for it
    for instruction in program.instructions:
        call = instruction.call
        touched = call.touched() if isinstance(call, Call) else [call.array]
        written = _written(instruction)
        for x in touched:
            key = id(memory_of(x))
            if key not in last and not any(x is y for y in written):
                kind = "parameter" if key in names else "input"
                name = names.get(key, "input" if key in inputs else "memory")
                last[key] = len(vertices)
                vertices.append(Vertex((name, shape_of(x)), kind))
        edges += [(last[key], len(vertices)) for x in touched if (key := id(memory_of(x))) in last]
        last |= {id(memory_of(x)): len(vertices) for x in written}
        stage = f"stage {stages[id(call)]}" if id(call) in stages else "by Python"
        name = f"check {call.kind}" if isinstance(call, Guard) else call.kernel
        vertices.append(Vertex((name, *[shape_of(x) for x in written[:1]], stage), "op"))
    return Drawing(f"draw: the program of {getattr(step, '__qualname__', 'a step')}", vertices, edges)


def _written(instruction: Any) -> list[Any]:
    """The arrays that hold what a call computes. Its loops know it; else it is what the kernel's signature says."""
    call = instruction.call
    if isinstance(call, Guard):
        return []
    if not instruction.loops:
        return call.written() or call.touched()[-1:]
    memory = {id(memory_of(x)) for x in instruction.writes}
    return [x for x in call.touched() if id(memory_of(x)) in memory]


def shape_of(x: Any) -> str:
    """A shape as "64 x 10"; of one number "number"."""
    return " x ".join(map(str, x.shape)) or "number"


def _stages(program: Program) -> dict[int, int]:
    """The number of the compiled stage that runs a call, by the id of the call; see explain.py."""
    call_of = {id(loop): instruction.call for instruction in program.instructions for loop in instruction.loops}
    found: dict[int, int] = {}
    number = 0
    for executable in program.executables:
        for first, end in executable.stages:
            number += 1
            for begin, stop, *_ in executable.groups[first:end]:
                found |= {id(call_of[id(task)]): number for task in executable.kept[begin:stop]}
    return found
