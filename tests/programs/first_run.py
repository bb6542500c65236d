"""Prints the kernels that scripts/train.py calls, for native/ahead.py.

    python tests/programs/first_run.py FOLDER [FLAG ...]

Kernels that only other kernels call are left out: they are compiled with their callers.
"""

import contextlib
import io
import runpy
import sys
from pathlib import Path

from scratchnet.native import compile as native
from scratchnet.native.ahead import write_types

called: list[str] = []
depth = 0


def noting(compile):
    def compile_and_note(self, arguments):
        global depth
        function = self.py_func
        if depth == 0:
            called.append(f"{function.__module__}.{function.__qualname__}: {write_types(arguments)}")
        depth += 1
        try:
            return compile(self, arguments)
        finally:
            depth -= 1

    return compile_and_note


native._Kernel.compile = noting(native._Kernel.compile)
train = Path(__file__).parents[2] / "scripts" / "train.py"
sys.argv = [str(train), "--epochs", "1", "--folder", *sys.argv[1:]]
sys.path.insert(0, str(train.parent))
with contextlib.redirect_stdout(io.StringIO()):
    runpy.run_path(str(train), run_name="__main__")
# Products first, which the job compiles for half of the time; the helper goes through the list from its end.
print("\n".join(sorted(called, key=lambda line: "gemm" not in line and "matmul" not in line)))
