"""Every planted bug of the table in docs/testing.md is found, and by what the table says."""

import re
from pathlib import Path

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
        phases=[Phase.generate, Phase.shrink] if THOROUGH else [Phase.generate],
        report_multiple_bugs=False,
        derandomize=False,
    )
    @seed(0)
    @given(arrays(planted.words, **{"dtypes": ("float32", "float64"), "max_elements": 2**11, **planted.options}))
    def test(inputs):
        terms = {} if planted.terms is None else {"terms": max(inputs[0].shape[planted.terms], 1)}
        assert_matches_reference(planted.ready, planted.reference, inputs, **{**terms, **planted.check})

    test()


@pytest.mark.parametrize("kind", PLANTED)
def test_every_planted_bug_is_found(kind):
    if PLANTED[kind].compiled is not None and not (JIT and THOROUGH):
        pytest.skip("`make thorough` compiles these; test_calls.py has one with threads")
    with pytest.raises(sn.ContractError, match=re.escape(PLANTED[kind].found)) as error:
        search(PLANTED[kind])
    one_line(error)


def test_the_page_has_a_row_for_each():
    rows = re.findall(r"^\| ([^|]+?) +\| `([^|]+?)` +\|", PAGE.read_text(), re.M)
    assert rows == [(kind, planted.found) for kind, planted in PLANTED.items()]
