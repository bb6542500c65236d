"""Each pass of jit on a trace of a few kernel calls."""

import numpy as np
import pytest
from sizes import JIT

from scratchnet import tracing
from scratchnet.jit import passes
from scratchnet.jit.trace import Trace
from scratchnet.kernels import device

pytestmark = pytest.mark.skipif(not JIT, reason="nothing is compiled")


def array(*shape):
    return np.ones(shape, np.float32)


class Recorded:
    """A trace that is being written: `kernels` of the cpu device, and `new` memory of the step's own."""

    def __init__(self, *inputs):
        self.trace = Trace(list(inputs))
        self.kernels = self.trace.on(device("cpu"))

    def new(self, *shape):
        return self.kernels.empty(shape, np.float32)

    def lowered(self):
        return passes.lower(self.trace, np.zeros(1, np.int64))

    def scope(self, *kept):
        return passes.Scope(self.trace, {id(x) for x in kept})


def names(instructions):
    return [instruction.call.kernel for instruction in instructions]


def test_what_nobody_reads_is_dropped():
    x = array(4)
    step = Recorded(x)
    kept, dead, between = step.new(4), step.new(4), step.new(4)
    step.kernels.exp(x, between)
    step.kernels.neg(between, dead)
    step.kernels.abs(between, kept)
    assert names(passes.drop_dead(step.lowered(), step.scope(kept))) == ["exp", "abs"]
    assert names(passes.drop_dead(step.lowered(), step.scope())) == []


def test_what_outlives_the_step_is_live():
    x, outside = array(4), array(4)
    step = Recorded(x)
    step.kernels.exp(x, outside)
    assert names(passes.drop_dead(step.lowered(), step.scope())) == ["exp"]


def test_a_loop_writes_to_where_its_result_would_be_copied():
    x, target = array(4), array(4)
    step = Recorded(x)
    between = step.new(4)
    step.kernels.exp(x, between)
    step.kernels.copy(between, target)
    (instruction,) = passes.copies_in_place(step.lowered(), step.scope())
    assert instruction.call.kernel == "exp" and instruction.writes_to([target])
    assert not instruction.writes_to([between])


def test_a_copy_stays_if_its_source_is_kept_or_its_target_is_in_use():
    x, target = array(4), array(4)
    step = Recorded(x)
    between = step.new(4)
    step.kernels.exp(x, between)
    step.kernels.copy(between, target)
    assert names(passes.copies_in_place(step.lowered(), step.scope(between))) == ["exp", "copy"]
    step = Recorded(x)
    between, other = step.new(4), step.new(4)
    step.kernels.exp(x, between)
    step.kernels.neg(target, other)
    step.kernels.copy(between, target)
    assert names(passes.copies_in_place(step.lowered(), step.scope())) == ["exp", "neg", "copy"]


def test_an_update_that_keeps_the_old_state_stays_apart():
    x, g, weight, m, v = (array(64, 40) if i < 2 else array(40, 40) for i in range(5))
    step = Recorded(x, g)
    gradient, numbers, new = step.new(40, 40), np.array([0.1, 0.9, 0.999, 1e-8, 0.0, 0.0, 1.0]), array(40, 40)
    step.kernels.matmul(x, g, gradient, True, False)
    step.kernels.adam(weight, gradient, m, v, weight, m, new, numbers)
    assert names(passes.updates_in_products(step.lowered(), step.scope())) == ["matmul", "adam"]


@pytest.mark.parametrize("kept", [False, True])
def test_an_update_becomes_a_part_of_the_product_that_only_it_reads(kept):
    x, g, weight, velocity = array(64, 40), array(64, 40), array(40, 40), array(40, 40)
    step = Recorded(x, g)
    gradient, numbers = step.new(40, 40), np.array([0.1, 0.9, 0.0, 0.0])
    step.kernels.matmul(x, g, gradient, True, False)
    step.kernels.sgd(weight, gradient, velocity, weight, velocity, numbers)
    scope = step.scope(gradient) if kept else step.scope()
    found = names(passes.updates_in_products(step.lowered(), scope))
    assert found == (["matmul", "sgd"] if kept else ["matmul_sgd"])


def test_guards_of_arguments_come_first():
    x, labels, out = array(4), np.zeros(4, np.int64), array(4)
    step = Recorded(x, labels)
    step.kernels.exp(x, out)
    step.trace.guard("in_range", labels, (0, 3), lambda: None)
    first, second = passes.guards_first(step.lowered(), [x, labels])
    assert first.call.array is labels and second.call.kernel == "exp"


def test_an_output_comes_after_what_it_depends_on_and_nothing_else():
    x, first, second = array(4), array(4), array(4)
    step = Recorded(x)
    a, b = step.new(4), step.new(4)
    step.kernels.exp(x, a)
    step.kernels.abs(x, b)
    step.kernels.neg(b, second)
    step.kernels.neg(a, first)
    ordered = passes.outputs_early(step.lowered(), [first, second])
    assert names(ordered) == ["abs", "neg", "exp", "neg"]
    assert passes.final_after(ordered, [first, second]) == {}  # so few bytes are not worth a call of their own


def test_without_a_recorder_all_verbs_let_everything_pass():
    quiet, cpu = tracing.current(), device("cpu")
    assert type(quiet) is tracing.Tracing and quiet.on(cpu) is cpu and quiet.generator is None
    quiet.refuse("item")
    with tracing.into(trace := Trace([])):
        assert tracing.current() is trace
    assert tracing.current() is quiet
