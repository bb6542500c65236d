"""Scripts of kernels in fresh processes that share one cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAMS = Path(__file__).parents[1] / "programs"
RIGHT = [[0, 1, 4, 9], [0, 2, 4, 6]]  # what programs/two_kernels.py computes


class Scripts:
    """Runs copies of programs of tests/programs, which may be edited, on a cache of their own."""

    def __init__(self, folder, *programs):
        self.folder, self.cache = folder, folder / "cache"
        for program in programs:
            self.write(program)

    def write(self, program, *edits):
        """Copy a program, replacing the first of each pair by the second, once."""
        source = (PROGRAMS / f"{program}.py").read_text()
        for old, new in edits:
            assert old in source
            source = source.replace(old, new, 1)
        (self.folder / f"{program}.py").write_text(source)

    def start(self, program, *arguments, code=None, **environment):
        """A process that calls a program's `main`, or runs `code` with its folder on the path."""
        path = os.pathsep.join([str(self.folder), *sys.path])
        ours = {"PYTHONPATH": path, "SCRATCHNET_CACHE_DIR": str(self.cache), "SCRATCHNET_QUIET": "0"}
        command = ["-c", code or f"import {program}; {program}.main()", *arguments]
        return subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **ours, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, program, **options):
        return self.finish(self.start(program, **options))

    @staticmethod
    def finish(process):
        """What the process printed as JSON in its last line, and as "stderr" what else it said."""
        out, err = process.communicate()
        assert process.returncode == 0, err
        return {**json.loads(out.splitlines()[-1]), "stderr": err}

    @staticmethod
    def said(process):
        """What a running process prints as JSON in its next line."""
        return json.loads(process.stdout.readline())

    def files(self):
        return sorted(self.cache.glob("*/*.kernel"))
