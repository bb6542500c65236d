"""The package as a whole: its example runs, and what it needs."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

import scratchnet as sn
from scratchnet import testing

PROGRAMS = Path(__file__).parents[1] / "programs"


def test_the_ten_lines_of_the_module_do_what_they_say():
    code = inspect.cleandoc(testing.__doc__.split("::")[1].split("To write a kernel")[0])
    assert len(code.splitlines()) == 10
    space: dict = {}
    exec(code, space)
    settings(max_examples=5)(space["test_row_sums"])()
    exec(code.replace("x[i].sum()", "x[i][:8].sum()"), space)
    with pytest.raises(sn.ContractError):
        space["test_row_sums"]()


def test_gradcheck_and_the_reference_check_need_neither_hypothesis_nor_scipy():
    subprocess.run([sys.executable, PROGRAMS / "without_test_libraries.py"], check=True)
