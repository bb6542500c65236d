"""Where the time of a recorded step goes: every nanosecond belongs to one line."""

from types import SimpleNamespace

import numpy as np
import pytest

import scratchnet as sn
from scratchnet.jit import explain
from scratchnet.native.compile import JIT_ENABLED as JIT


class Executable:
    """Two threads, of which the second came too late for the first stage."""

    def run(self):
        raise AssertionError("a step that is watched runs watched")

    def run_watched(self):
        return np.array([[112, 130, 140], [0, 0, 148]])


def test_every_nanosecond_of_a_step_belongs_to_one_line_and_effects_are_taken_back():
    executable, done = Executable(), []
    program = SimpleNamespace(
        sources=[np.zeros(3), 1.0],
        rearrange=lambda: done.append("rearrange"),
        take=lambda given: done.append("take"),
        begin=lambda undo, holds: undo.append(lambda: done.append("take back")),
        parts=[executable.run, lambda: done.append("by Python")],
        executables=[executable],
        stop=np.zeros(1, np.int64),
    )
    recorded = SimpleNamespace(
        program=program,
        aliases=SimpleNamespace(found=lambda given: done.append("found")),
        holds=lambda: done.append("holds"),
        results=SimpleNamespace(of=lambda given: done.append("results")),
        gradients=[SimpleNamespace(left=np.zeros(2)), SimpleNamespace(left=None)],
    )
    ticks = iter([100, 101, 103, 106, 110, 150, 157, 165])
    ends = explain.timed_step(recorded, lambda: next(ticks), watched=True)
    lines = explain.lines_of(ends)
    assert lines == {
        explain.ARGUMENTS: 1,
        explain.VALUES: 2,
        explain.INPUTS: 3,
        explain.EFFECTS: 4,
        explain.START: 2,  # the first thread begins at 112
        (executable, 0): 18,
        (executable, 1): 18,  # until the last thread has ended its last block, at 148
        explain.END: 2,
        explain.CALLS: 7,
        explain.RESULTS: 8,
    }
    assert sum(lines.values()) == ends[-1][1] - ends[0][1] == 65
    assert done == ["found", "holds", "rearrange", "take", "by Python", "results", "take back"]


@pytest.mark.threads
@pytest.mark.skipif(not JIT, reason="nothing is compiled")
def test_a_watched_run_marks_the_ends_of_stages_in_order():
    from scratchnet.native.atomics import nanoseconds

    @sn.jit
    def normalised(x):  # a sum over all rows, which the second stage needs
        return (x - x.mean()).exp()

    x = sn.Tensor(np.ones((64, 1000), np.float32))
    for _ in range(2):
        normalised(x)
    (executable,) = normalised.programs[0].executables
    before = nanoseconds()
    marks = executable.run_watched()
    after = nanoseconds()
    assert marks.shape == (executable.threads, 1 + len(executable.stages)) and len(executable.stages) > 1
    ends = [marks[:, 0][marks[:, 0] > 0].min(), *marks[:, 1:].max(axis=0)]
    assert before < ends[0] and ends == sorted(ends) and ends[-1] < after
    assert executable.run_watched()[:, 1:].max(axis=0).min() > after  # each time anew


def test_what_a_timed_step_reports_is_all_in_its_text():
    layer = sn.nn.Linear(8, 8)

    @sn.jit
    def step(x):
        return layer(x).sum()

    for _ in range(2):
        step(sn.Tensor(np.ones((4, 8), np.float32)))
    text = step.explain()
    assert all(line in text for line in explain.BY_PYTHON)
    assert (explain.START in text) == (explain.END in text) == JIT
