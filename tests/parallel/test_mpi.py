"""Ranks that mpirun started: the contract of a communicator against NumPy, calls that differ, and the end of a job."""

import ast
import inspect
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import test_arena
import workers
from cases import data, fold
from servants import NO_MPI, MpiGroup, mpirun

import scratchnet as sn
from scratchnet.parallel import job, mpi
from scratchnet.parallel.collectives import ALGORITHMS

pytestmark = pytest.mark.skipif(NO_MPI is not None, reason=str(NO_MPI))

SIZES = (1, 2, 3, 4)
DTYPES = ("float32", "float64", "int32", "int64")
SHAPES = [(0,), (), (1,), (16,), (17,), (3, 5), (0, 4), (8192 + 3,), (40_001,)]


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: f"{size}-ranks")
def group(request, tmp_path_factory):
    group = MpiGroup(request.param, tmp_path_factory.mktemp("group"))
    yield group
    group.end()


def python(ranks, code, **environment):
    """Runs a program under mpirun; its exit status and what it printed."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment}
    command = mpirun(ranks, sys.executable, "-c", textwrap.dedent(code))
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


# --- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
def test_all_reduce_is_numpys_with_the_same_bits_on_all_ranks(group, dtype, algorithm):
    for seed, shape in enumerate(SHAPES):
        for op in test_arena.ops_of(dtype):
            layout = ("C", "F", "strided", "unaligned")[seed % 4]
            test_arena.check_all_reduce(group, seed, shape, dtype, layout, {"op": op, "algorithm": algorithm})


@pytest.mark.parametrize("layout", ["C", "F", "strided", "unaligned"])
@pytest.mark.parametrize("n", [0, 1, 40, 1000, 100_000])
def test_the_other_collectives(group, layout, n):
    test_arena.test_reduce_scatter_gives_each_rank_its_part(group, n, layout)
    test_arena.test_all_gather_joins_the_parts_of_all_ranks(group, n, layout)
    for root in range(group.size):
        results = group.ask(test_arena.call, "broadcast", n, (n,), "float64", layout, {"root": root})
        for result in results:
            np.testing.assert_array_equal(result, data(n, root, (n,), "float64"))


@pytest.mark.parametrize("op", ["sum", "max", "min"])
def test_nan_and_infinity_go_through_as_in_numpy(group, op):
    test_arena.test_nan_and_infinity_go_through_as_in_numpy(group, op)


def test_calls_in_a_row_do_not_disturb_each_other(group):
    test_arena.test_calls_in_a_row_do_not_disturb_each_other(group)


@pytest.mark.parametrize("what", test_arena.BAD)
def test_bad_arguments_are_named_in_one_line_and_disturb_nobody(group, what):
    test_arena.test_bad_arguments_are_named_in_one_line_and_disturb_nobody(group, what)


def in_fast_order(comm, op, shape, scatter):
    fast = mpi.MpiCommunicator(order="fast")
    x = data(6, comm.rank, shape, "float32")
    result = np.array(fast.reduce_scatter(x, op) if scatter else fast.all_reduce(x, op))
    fast.close()
    return result


@pytest.mark.parametrize("op", ["sum", "mean", "max"])
def test_fast_order_is_right_within_the_rounding_of_sums(group, op):
    n = 5000
    arrays = [data(6, rank, (n,), "float32") for rank in range(group.size)]
    expected = fold([array.astype(np.float64) for array in arrays], op)
    bound = 2 * group.size * np.finfo(np.float32).eps * np.sum(np.abs(arrays), axis=0)
    for result in group.ask(in_fast_order, op, (n,), False):
        assert (np.abs(result - expected) <= bound).all()
    joined = np.concatenate(group.ask(in_fast_order, op, (n,), True))
    assert (np.abs(joined - expected) <= bound).all()


# --- calls that differ ------------------------------------------------------------------------------------------------


def call_twice(comm, name):
    other = mpi.MpiCommunicator()
    call = name if comm.rank == 1 else "all_reduce"
    told = [workers.what_is_said(other, call) for _ in range(2)] if call != "return" else []
    other.close()
    return told


@pytest.mark.parametrize("name", [name for name in workers.CALLS if name not in ("all_reduce", "large")])
def test_unequal_calls_are_named_on_all_ranks(group, name):
    """Rank 1 calls something else: all ranks that wait are told who called what, and stay told."""
    if group.size < 2:
        pytest.skip("one rank has nobody to differ from")
    told = group.ask(call_twice, name)
    others = "ranks 0, 2" if group.size == 3 else "ranks 0, 2, 3" if group.size == 4 else "rank 0"
    first = told[0][0]
    assert f"{others} called all_reduce(float32 (4,), sum, auto); rank 1 " in first and "\n" not in first
    assert all(said == [first, first] for rank, said in enumerate(told) if rank != 1 or name != "return")
    if name == "return":
        assert "rank 1 had returned from its function" in first


# --- nothing is pickled -----------------------------------------------------------------------------------------------


def pickled(comm):
    try:
        comm.group.allgather(None)
    except AssertionError as error:
        return str(error)
    return None


def test_the_ranks_of_these_tests_could_not_have_pickled(group):
    assert group.ask(pickled) == ["an object was pickled for MPI"] * group.size


def test_the_source_calls_no_method_that_pickles(monkeypatch):
    monkeypatch.setattr("mpi4py.rc.initialize", False)  # its names are enough; this process is no rank
    from mpi4py import MPI

    capital = {name.lower() for name in dir(MPI.Intracomm) if name[0].isupper()}
    pickling = {name for name in dir(MPI.Intracomm) if name[0].islower() and name in capital}
    assert {"send", "recv", "bcast", "allreduce", "alltoall", "isend"} <= pickling
    for module in (mpi, sn.parallel.mpi_watch):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Attribute) and node.attr in pickling:
                assert isinstance(node.value, ast.Name) and node.value.id == "self", ast.unparse(node)


# --- run --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", SIZES)
def test_run_under_mpirun_runs_the_function_once_on_each_rank(ranks):
    status, text = python(
        ranks,
        """
        import numpy as np, scratchnet as sn
        def fn(comm, offset):
            return comm.rank + offset, comm.size, type(comm).__name__, int(comm.all_reduce(np.ones(3))[0])
        print(sn.parallel.run(fn, 10, workers=7), flush=True)
        """,
    )
    assert status == 0, text
    expected = {f"[({rank + 10}, {ranks}, 'MpiCommunicator', {ranks})]" for rank in range(ranks)}
    assert set(text.split("\n")) - {""} == expected


def test_an_exception_of_a_rank_ends_the_job_and_is_told():
    status, text = python(
        3,
        """
        import scratchnet as sn
        def fn(comm):
            if comm.rank == 1:
                raise ValueError("no such luck")
            comm.barrier()
        sn.parallel.run(fn)
        """,
    )
    assert status != 0 and "scratchnet: rank 1 raised ValueError: no such luck" in text


def test_a_wait_ends_at_the_time_limit_and_names_who_is_late():
    status, text = python(
        3,
        """
        import time, scratchnet as sn
        def fn(comm):
            if comm.rank == 2:
                time.sleep(60)
            comm.barrier()
        sn.parallel.run(fn, timeout=0.5)
        """,
    )
    assert status != 0 and "barrier(): rank 0 waited 0.5 s for rank 2" in text


def test_a_rank_that_ends_before_the_others_is_named():
    status, text = python(
        3,
        """
        import scratchnet as sn
        def fn(comm):
            if comm.rank != 2:
                comm.barrier()
        sn.parallel.run(fn)
        """,
    )
    assert status != 0 and "ranks 0, 1 called barrier(); rank 2 had returned from its function" in text


def test_without_mpi4py_one_line_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    mpi.library.cache_clear()
    with pytest.raises(sn.ConfigError, match=r"^MPI: expected mpi4py \(pip install 'scratchnet\[mpi\]'\).*$"):
        mpi.library()


@pytest.mark.parametrize("environment, found", {
    (): None,
    (("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "3")): (3, 4),
    (("PMI_SIZE", "2"), ("PMI_RANK", "0")): (0, 2),
    (("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_PROCID", "1")): (1, 2),
    (("SLURM_STEP_NUM_TASKS", "1"), ("SLURM_PROCID", "0")): None,
    (("OMPI_COMM_WORLD_SIZE", "1"), ("OMPI_COMM_WORLD_RANK", "0")): (0, 1),
    (("PMI_SIZE", "many"), ("PMI_RANK", "0")): None,
}.items())  # fmt: skip
def test_the_environment_tells_who_started_a_process(monkeypatch, environment, found):
    for name in (name for pair in job.STARTERS for name in pair):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment:
        monkeypatch.setenv(name, value)
    assert job.started_as() == found
