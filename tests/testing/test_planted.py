"""Every planted bug of the table in docs/testing.md is found, and by what the table says."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from messages import one_line
from planted import PLANTED
from sizes import JIT, THOROUGH

import scratchnet as sn
from scratchnet.testing import arrays, assert_matches_reference

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"


def search(planted, examples=200):
    """Draws until the bug is found: the same words for every kernel."""

    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=[*HealthCheck],
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
        derandomize=False,
    )
    @seed(0)
    @given(arrays(planted.words, **{"dtypes": ("float32", "float64"), "max_elements": 2**11, **planted.options}))
    def test(inputs):
        check(planted, inputs)

    test()


def check(planted, inputs):
    terms = {} if planted.terms is None else {"terms": max(inputs[0].shape[planted.terms], 1)}
    assert_matches_reference(planted.ready, planted.reference, inputs, **{**terms, **planted.check})


def compiles(planted):
    return planted.compiled is not None and not (JIT and THOROUGH)


def smallest_example(error):
    """The arrays of a failure as the line to paste has them, a cell of the table."""
    note = next(note for note in error.__notes__ if note.startswith("to reproduce"))
    return re.search(r"\[(np\..*?\))\]", note)[1].replace("np.", "")


@pytest.mark.parametrize("kind", PLANTED)
def test_every_planted_bug_is_found(kind):
    if compiles(PLANTED[kind]):
        pytest.skip("`make thorough` compiles these; test_calls.py has one with threads")
    with pytest.raises(sn.ContractError, match=re.escape(PLANTED[kind].found)) as error:
        search(PLANTED[kind])
    one_line(error)


def rows_of_the_page():
    """{planted bug: (what the message has, the smallest example)}"""
    rows = re.findall(r"^\| ([^|]+?) +\| `([^|]+?)` +\| `([^|]+?)` +\|", PAGE.read_text(), re.M)
    return {kind: (found, example) for kind, found, example in rows}


def test_the_page_has_a_row_for_each():
    rows = rows_of_the_page()
    assert [(kind, found) for kind, (found, _) in rows.items()] == [(kind, p.found) for kind, p in PLANTED.items()]


@pytest.mark.parametrize("kind", PLANTED)
def test_the_smallest_example_of_the_page_shows_the_bug(kind):
    planted = PLANTED[kind]
    if compiles(planted):
        pytest.skip("`make thorough` compiles these")
    inputs = eval(f"[{rows_of_the_page()[kind][1]}]", vars(np))
    with pytest.raises(sn.ContractError, match=re.escape(planted.found)) as error:
        check(planted, inputs)
    assert smallest_example(error.value) == rows_of_the_page()[kind][1]
