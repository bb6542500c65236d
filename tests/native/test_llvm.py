"""Functions in LLVM's language: kernels find them, and nobody waits for those that are not called."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scratchnet.native.compile import JIT_ENABLED

PROGRAM = Path(__file__).parents[1] / "programs" / "modules_loaded.py"


@pytest.mark.skipif(not JIT_ENABLED, reason="nothing is compiled")
@pytest.mark.parametrize("run", ["that may compile", "that finds all in the cache"])
def test_a_module_is_loaded_before_the_first_call_of_its_functions_and_not_earlier(run):
    assert json.loads(subprocess.check_output([sys.executable, PROGRAM])) == [0, 2, 4, 4]
