"""Kernels that a second process compiles while a job runs: what it makes, and that it never stands in the way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kernel_scripts import Scripts
from numba.core import types
from residue import alive

from scratchnet.kernels.cpu.first_run import FIRST_RUN
from scratchnet.native import ahead
from scratchnet.native.compile import JIT_ENABLED, MAX_THREADS

pytestmark = pytest.mark.skipif(not JIT_ENABLED or MAX_THREADS < 2, reason="nothing is compiled, or on one core")

PROGRAMS = Path(__file__).parents[1] / "programs"
FLOATS, WORDS = types.Array(types.float32, 2, "C"), types.Array(types.int64, 1, "C")


@pytest.fixture
def scripts(tmp_path):
    return Scripts(tmp_path, "ahead_kernels", "lock_holder")


def run(scripts, function, **environment):
    code = f"import ahead_kernels; ahead_kernels.{function}()"
    return scripts.finish(scripts.start(None, code=code, **{"SCRATCHNET_COMPILERS": "2", **environment}))


def test_the_list_has_what_a_first_run_calls(tmp_path):
    command = [sys.executable, str(PROGRAMS / "first_run.py")]
    subprocess.check_output([*command, tmp_path / "1"])  # now all is compiled: kernels come without those they call
    called = subprocess.check_output([*command, tmp_path / "2"], text=True).splitlines()
    assert sorted(called) == sorted(FIRST_RUN), f"now: {' '.join(command)} FOLDER"


@pytest.mark.parametrize(
    "arguments",
    [(), (types.int64,), (FLOATS, types.boolean, WORDS), (types.int64, types.Tuple((FLOATS, types.float64, WORDS)))],
)
def test_argument_types_are_read_as_they_were_written(arguments):
    assert ahead.read_types(ahead.write_types(arguments)) == arguments


def test_the_job_finds_what_the_helper_made(scripts):
    job = run(scripts, "main")
    assert job["results"] == [2, [2.5]]
    assert job["stats"][:2] == [1, 1] and len(job["helpers"]) == 1


def test_a_helper_that_dies_costs_only_its_work(scripts):
    job = run(scripts, "with_a_dead_helper", HELPER="stuck")
    assert job["results"] == [2, [2.5]] and job["stats"][:2] == [2, 0] and len(job["helpers"]) == 1


@pytest.mark.parametrize("end", ["exit", signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_helper_ends_with_the_job(scripts, end):
    code = "import ahead_kernels; ahead_kernels.with_a_stuck_helper()"
    job = scripts.start(None, str(end), code=code, SCRATCHNET_COMPILERS="2", HELPER="stuck")
    (helper,) = scripts.said(job)["helpers"]
    if end != "exit":
        os.killpg(job.pid, end)
    job.communicate()
    while alive(helper):
        time.sleep(0.01)


def test_no_helper_starts_where_it_could_keep_nothing(scripts):
    job = run(scripts, "main", SCRATCHNET_CACHE_DIR=os.path.join(os.devnull, "none"))
    assert job["results"] == [2, [2.5]] and job["helpers"] == []


def test_no_helper_starts_where_all_is_compiled(scripts):
    run(scripts, "main")
    assert run(scripts, "main")["helpers"] == []


@pytest.mark.parametrize("environment", [{"SCRATCHNET_COMPILERS": "1"}, {"NUMBA_NUM_THREADS": "1"}], ids=str)
def test_no_helper_starts_where_there_shall_be_one_process(scripts, environment):
    job = run(scripts, "main", **environment)
    assert job["results"] == [2, [2.5]] and job["helpers"] == [] and job["stats"][:2] == [2, 0]


def test_the_helper_leaves_out_what_another_process_compiles(scripts):
    holder = scripts.start("lock_holder")
    assert holder.stdout.readline() == "held\n"
    code = "import os, ahead_kernels; ahead_kernels.ahead.work(os.getppid()); ahead_kernels.report()"
    helper = scripts.finish(scripts.start(None, code=code))
    holder.kill()
    holder.communicate()
    assert helper["stats"][:2] == [0, 0] and scripts.files() == []
