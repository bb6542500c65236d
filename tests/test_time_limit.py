"""A test that hangs is ended, with the stacks of all its processes, and so are they."""

import os
import subprocess
import sys
import time
from pathlib import Path

from residue import alive

HANGING = Path(__file__).parent / "programs" / "hanging.py"


def test_a_hang_prints_the_stacks_of_all_processes_and_ends_them():
    command = [sys.executable, "-m", "pytest", "-n", "0", "-rA", "-p", "no:cacheprovider", str(HANGING)]
    environment = {**os.environ, "SCRATCHNET_TEST_SECONDS": "3"}
    job = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert job.returncode == 1
    for function in ("test_waits_for_processes", "waits_for_a_grandchild", "turns_in_circles", "test_turns_in_circles"):
        assert f" in {function}" in job.stderr, job.stderr
    # The first test failed though nothing in it did, the second ran, the third had to be ended with its process.
    assert job.stdout.replace("\n", "").startswith("F."), job.stdout
    assert "test_turns_in_circles: ends process" in job.stderr
    killed = [int(line.split()[1].rstrip(",")) for line in job.stderr.splitlines() if line.startswith("process ")]
    while any(map(alive, killed)):
        time.sleep(0.01)
    assert len(killed) == 2
