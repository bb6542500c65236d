"""Collectives of real processes against NumPy: every kind, op, dtype, layout, algorithm and number of ranks."""

import numpy as np
import pytest
from cases import ORDERED, call, calls, data, fold, laid_out, of_all
from hypothesis import given
from hypothesis import strategies as st

import scratchnet as sn
from scratchnet.parallel.comm import arena
from scratchnet.parallel.comm import arena_kernels as kernels
from scratchnet.parallel.comm.collectives import ALGORITHMS

JIT = arena.JIT_ENABLED
DTYPES = ("float32", "float64", "int32", "int64")
LAYOUTS = ("C", "F", "strided", "unaligned", "heap", "part of heap", "heap on some ranks")
SHAPES = st.one_of(
    st.sampled_from([(0,), (), (1,), (15,), (16,), (17,), (3, 5), (0, 4), (33, 31), (127,), (8192 + 3,)]),
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
)
# These float32 arrays pass through the staging buffers in one, two and three chunks.
LARGE = [(arena.STAGING // 8,), (arena.STAGING // 4 + 5,), (5 * arena.STAGING // 8 + 17,)] if JIT else [(3000,)]


def ops_of(dtype):
    return ("sum", "max", "min") if dtype.startswith("int") else ("sum", "mean", "max", "min")


@st.composite
def all_reduces(draw):
    dtype = draw(st.sampled_from(DTYPES))
    kwargs = {"op": draw(st.sampled_from(ops_of(dtype)))}
    kwargs["algorithm"] = draw(st.sampled_from(("auto", *ALGORITHMS)))
    return draw(st.integers(0, 99)), draw(SHAPES), dtype, draw(st.sampled_from(LAYOUTS)), kwargs


def check_all_reduces(group, cases):
    """cases: of (seed, shape, dtype, layout, arguments)."""
    answers = group.ask(calls, [("all_reduce", *case) for case in cases])
    for (seed, shape, dtype, _, kwargs), results in zip(cases, zip(*answers, strict=True), strict=True):
        arrays = of_all(group.size, seed, shape, dtype)
        expected = fold(arrays, kwargs["op"])
        assert len({result.tobytes() for result in results}) == 1
        assert results[0].dtype == expected.dtype and results[0].shape == expected.shape
        if kwargs["algorithm"] in ORDERED or dtype.startswith("int") or kwargs["op"] in ("max", "min"):
            np.testing.assert_array_equal(results[0], expected)
        else:  # another order of additions
            bound = 2 * group.size * np.finfo(dtype).eps * np.sum(np.abs(arrays), axis=0)
            assert (np.abs(results[0] - expected) <= bound).all()


@given(all_reduces())
def test_all_reduce_is_numpys_with_the_same_bits_on_all_ranks(group, case):
    check_all_reduces(group, [case])


@pytest.mark.parametrize("shape", LARGE)
@pytest.mark.parametrize("layout", ["C", "heap", "heap on some ranks"])
def test_large_arrays_pass_in_chunks(group, shape, layout):
    for op, algorithm in (("sum", "auto"), ("mean", "arena"), ("max", "rabenseifner"), ("sum", "ring")):
        check_all_reduces(group, [(1, shape, "float32", layout, {"op": op, "algorithm": algorithm})])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_takes_every_dtype_and_op(group, algorithm):
    ways = [(dtype, {"op": op, "algorithm": algorithm}) for dtype in DTYPES for op in ops_of(dtype)]
    check_all_reduces(group, [(2, (257,), dtype, "C", way) for dtype, way in ways])


@given(st.integers(0, 99), SHAPES, st.sampled_from(DTYPES), st.sampled_from(LAYOUTS), st.integers(0, 6))
def test_broadcast_gives_all_ranks_the_roots_array(group, seed, shape, dtype, layout, root):
    root %= group.size
    results = group.ask(call, "broadcast", seed, shape, dtype, layout, {"root": root})
    for result in results:
        np.testing.assert_array_equal(result, of_all(group.size, seed, shape, dtype)[root])


def parts_of(n, size):
    comm = sn.parallel.SerialCommunicator()
    comm.size = size
    return [comm.part(n, rank) for rank in range(size)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", [0, 1, 40, 1000, LARGE[-1][0]])
def test_reduce_scatter_gives_each_rank_its_part(group, n, layout):
    results = group.ask(call, "reduce_scatter", 3, (n,), "float32", layout, {"op": "mean"})
    expected = fold(of_all(group.size, 3, (n,), "float32"), "mean")
    for result, part in zip(results, parts_of(n, group.size), strict=True):
        np.testing.assert_array_equal(result, expected[part])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", [0, 1, 40, 1000, LARGE[-1][0]])
def test_all_gather_joins_the_parts_of_all_ranks(group, n, layout):
    parts = parts_of(n, group.size)
    arrays = of_all(group.size, 4, (n,), "int64")
    expected = np.concatenate([array[part] for array, part in zip(arrays, parts, strict=True)])
    for result in group.ask(call, "all_gather", 4, (n,), "int64", layout, {}):
        np.testing.assert_array_equal(result, expected)


def test_parts_are_contiguous_and_cover_the_array():
    for n in (0, 1, 16, 100, 1001):
        for size in (1, 2, 3, 7):
            parts = parts_of(n, size)
            assert [i for part in parts for i in range(n)[part]] == list(range(n))


def nan_and_zeros(comm, op):
    x = np.array([np.nan, 1, -0.0, np.inf, -np.inf][comm.rank % 5 :] + [0.0] * (comm.rank % 5), np.float32)
    return {a: comm.all_reduce(x.copy(), op, a) for a in ("arena", "one_shot", "tree")}, x


@pytest.mark.parametrize("op", ["sum", "max", "min"])
def test_nan_and_infinity_go_through_as_in_numpy(group, op):
    answers = group.ask(nan_and_zeros, op)
    with np.errstate(invalid="ignore"):
        expected = fold([x for _, x in answers], op)
    for results, _ in answers:
        for result in results.values():
            np.testing.assert_array_equal(result, expected)


def same_twice(comm):
    digests = []
    for _ in range(2):
        x = data(5, comm.rank, (5000,), "float32")
        digests.append([comm.all_reduce(x.copy(), algorithm=a).tobytes() for a in ("auto", *ALGORITHMS)])
    return digests


def test_a_second_run_gives_the_same_bits(group):
    answers = group.ask(same_twice)
    assert all(first == second == answers[0][0] for first, second in answers)


def many_in_a_row(comm):
    """Calls of all kinds in quick succession: what one leaves behind must not disturb the next."""
    rng, sums = np.random.default_rng(0), []
    heap = comm.empty(3000)
    for step in range(60):
        n = int(rng.integers(0, 3000))
        kind = rng.integers(0, 5)
        x = heap[:n] if kind == 0 else np.empty(n, np.float32)
        x[:] = comm.rank + step
        if kind == 4:
            comm.barrier()
        comm.all_reduce(x, algorithm=("arena", "one_shot", "ring", "auto", "arena")[kind])
        sums.append(bool((x == sum(r + step for r in range(comm.size))).all()))
    return all(sums)


def test_calls_in_a_row_do_not_disturb_each_other(group):
    assert group.ask(many_in_a_row) == [True] * group.size


def count_barriers(comm, n, algorithm):
    x = np.ones(n, np.float32)
    comm.all_reduce(x, algorithm=algorithm)
    before = int(comm._state[kernels.BARRIERS])
    comm.all_reduce(x, algorithm=algorithm)
    return int(comm._state[kernels.BARRIERS]) - before


@pytest.mark.parametrize("algorithm", ["one_shot", "arena"])
def test_arena_algorithms_have_as_many_barriers_as_the_cost_model_says(group, algorithm):
    if group.size > 1:
        found = set(group.ask(count_barriers, 1000, algorithm))
        assert found == {ALGORITHMS[algorithm].cost(group.size, 4000).steps}


BAD = {
    "a list": (lambda comm: comm.all_reduce([1.0]), "DtypeError", "got list"),
    "a mask": (lambda comm: comm.all_reduce(np.ma.array([1.0, 2.0], mask=[0, 1])), "DtypeError", "with a mask"),
    "a mask, later": (lambda comm: masked_later(comm), "DtypeError", "got one with a mask; reduce .filled(0)"),
    "another byte order": (lambda comm: comm.all_reduce(np.zeros(3, ">f4")), "DtypeError", "got >f4"),
    "a mean of integers": (lambda comm: comm.all_reduce(np.zeros(3, int), "mean"), "DtypeError", "take the sum"),
    "an op": (lambda comm: comm.all_reduce(np.zeros(3), "product"), "ConfigError", "got 'product'"),
    "an algorithm": (lambda comm: comm.all_reduce(np.zeros(3), "sum", "star"), "ConfigError", "got 'star'"),
    "a root": (lambda comm: comm.broadcast(np.zeros(3), comm.size), "ConfigError", "expected a root from 0 to"),
    "an op of reduce_scatter": (lambda comm: comm.reduce_scatter(np.zeros(3), ["sum"]), "ConfigError", "op"),
    "a read-only array": (lambda comm: comm.all_reduce(np.broadcast_to(np.zeros(1), 3)), "DtypeError", "read-only"),
    **{
        f"{dtype} in {method}": (
            lambda comm, method=method, dtype=dtype: getattr(comm, method)(np.zeros(3, dtype)),
            "DtypeError", f"got {dtype}; send .{remedy}",
        )
        for dtype, remedy in (
            ("float16", "astype('float32')"), ("bool", "astype('int32')"), ("uint8", "astype('int64')"),
            ("int16", "astype('int32')"), ("complex128", "view('float64')"),
        )
        for method in ("all_reduce", "reduce_scatter", "all_gather", "broadcast")
    },
}  # fmt: skip


def masked_later(comm):
    """The action for arrays of this shape and dtype is known by then."""
    comm.all_reduce(np.zeros(2))
    comm.all_reduce(np.ma.array([1.0, 2.0], mask=[0, 1]))


def matrices(comm):
    x = np.matrix(np.arange(40.0).reshape(2, 20))
    whole, part = comm.all_reduce(x.copy()), comm.reduce_scatter(x.copy())
    return type(whole) is np.matrix, np.asarray(whole).tolist(), part.tolist()


def test_subclasses_of_arrays_are_reduced_as_arrays(group):
    answers, flat = group.ask(matrices), np.arange(40.0) * group.size
    assert all(kept and whole == flat.reshape(2, 20).tolist() for kept, whole, _ in answers)
    assert [x for *_, part in answers for x in part] == flat.tolist()


def attempt(comm, what):
    try:
        BAD[what][0](comm)
    except sn.ScratchnetError as error:
        return type(error).__name__, str(error)
    return None


@pytest.mark.parametrize("what", BAD)
def test_bad_arguments_are_named_in_one_line_and_disturb_nobody(group, what):
    _, kind, message = BAD[what]
    for found in [*group.ask(attempt, what), attempt(sn.parallel.SerialCommunicator(), what)]:
        assert found and found[0] == kind and message in found[1] and "\n" not in found[1]
    check_all_reduces(group, [(0, (5,), "float32", "C", {"op": "sum", "algorithm": "auto"})])


def test_one_process_alone_is_a_communicator_too():
    comm, x = sn.parallel.SerialCommunicator(), np.arange(5.0)
    for result in (comm.all_reduce(x, "mean"), comm.reduce_scatter(x), comm.all_gather(x), comm.broadcast(x)):
        np.testing.assert_array_equal(result, np.arange(5.0))
    comm.barrier()
    assert comm.empty((2, 3)).shape == (2, 3) and laid_out(comm, x, "heap").dtype == np.float64
