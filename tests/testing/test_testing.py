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


def test_pytest_shows_the_call_in_the_test_and_no_line_of_ours(tmp_path):
    (tmp_path / "test_mine.py").write_text(
        "import numpy as np\nfrom scratchnet.testing import assert_matches_reference\n"
        "def test_mine():\n    assert_matches_reference(lambda x: x + 1, lambda x: x, [np.ones(1)])\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", "/dev/null"]
    done = subprocess.run([*command, "test_mine.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "to reproduce: assert_matches_reference(reference" in done.stdout
    assert "contract.py" not in done.stdout and "test_mine.py:4: ContractError" in done.stdout


def test_importing_the_tools_takes_little_time_and_compiles_nothing():
    """Processor time, the best of three: what it takes where nobody else computes."""
    code = "import sys, time, scratchnet.testing; assert 'numba' not in sys.modules; print(time.process_time())"
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True) for _ in range(3)]
    assert min(float(run.stdout) for run in runs) < 0.4


def test_gradcheck_and_the_reference_check_need_neither_hypothesis_nor_scipy():
    subprocess.run([sys.executable, PROGRAMS / "without_test_libraries.py"], check=True)
