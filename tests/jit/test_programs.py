"""Random programs, plain against recorded: values, effects and errors are the same, or the step is refused.

tests/helpers/random_steps.py draws them. PROGRAMS says how many; `make thorough` runs 5,000, other ones each time.
"""

import random

import pytest
import random_steps
from random_steps import Call, Function, Program
from sizes import JIT, THOROUGH

PROGRAMS = 5000 if THOROUGH else 120 if JIT else 20
GROUPS = 10  # tests among which they are dealt out
FIRST = random.randrange(2**32) if THOROUGH else 0
USUAL = tuple([Call()] * 3)
ONE_AFTER_ANOTHER = [  # pieces that tell some arguments from others, with programs of the first ones
    (("sign of a number",), "zeros", "negative zeros"),
    (("number",), "not a number c", "number"),
    (("type of a number",), "boolean", "integer"),
    (("type of a number",), "integer", "usual"),
    (("type of a number",), "usual", "numpy number"),
    (("flag's text",), "flag", "flag 1"),
    (("argument's flags",), "usual", "read only"),
    (("argument", "argument in place"), "same array", "usual"),
    (("argument", "argument in place"), "usual", "same array"),
    (("argument", "argument in place"), "usual", "overlapping"),
    (("argument", "argument in place"), "usual", "read only"),
    (("argument", "argument in place"), "usual", "the weights"),
    (("argument",), "usual", "big-endian"),
    (("argument's largest",), "usual", "float64 a"),
]


def check(program):
    """Runs it in both worlds; on a difference, shows the smallest program that has one."""
    outcome = random_steps.compare(program)
    if outcome.difference is not None:
        smallest = random_steps.smallest(program)
        pytest.fail(f"{random_steps.compare(smallest).difference}\n{smallest}")
    return outcome


@pytest.mark.parametrize("group", range(GROUPS))
def test_random_programs_are_what_they_are_without_jit(group):
    outcomes = [check(random_steps.drawn(FIRST + seed)) for seed in range(group, PROGRAMS, GROUPS)]
    assert sum(outcome.replays > 0 for outcome in outcomes) >= len(outcomes) // 4


@pytest.mark.parametrize("part", range(4))
def test_pieces_that_can_be_replayed_are(part):
    for name in random_steps.GOOD[part::4]:
        outcome = check(Program((Function("function", (name, "layer"), "mean", "plain", "both"),), USUAL))
        assert outcome.refused is None and outcome.replays, f"{name}: {outcome.refused}"


@pytest.mark.parametrize(("pieces", "first", "then"), ONE_AFTER_ANOTHER)
def test_arguments_of_one_kind_after_those_of_another(pieces, first, then):
    kinds = first, first, first, then, then, first, then
    check(Program((Function("function", pieces, None, None, "both"),), tuple([Call(0, kind) for kind in kinds])))


@pytest.mark.parametrize("update", random_steps.UPDATE)
def test_updates_that_can_be_replayed_are(update):
    outcome = check(Program((Function("function", ("network",), "cross entropy", update, "loss"),), USUAL))
    assert (outcome.refused is None and outcome.replays) or update in ("rate set", "every second")


@pytest.mark.parametrize("result", random_steps.RESULT)
def test_results_that_can_be_replayed_are(result):
    outcome = check(Program((Function("function", ("network",), "squares", None, result),), USUAL))
    assert (outcome.refused is None and outcome.replays) or result in ("object", "looks", "numpy")


@pytest.mark.parametrize("shape", random_steps.SHAPES)
def test_functions_of_all_shapes_are_replayed(shape):
    outcome = check(Program((Function(shape, ("network", "global"), None, None, "both"),), USUAL))
    assert outcome.refused is None and outcome.replays
