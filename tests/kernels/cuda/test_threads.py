"""Kernels thread by thread: no races in any of them, in any order of the threads; and every planted fault is found."""

import dataclasses
import inspect

import numpy as np
import pytest
from sizes import SIMULATED

from scratchnet.errors import ContractError
from scratchnet.testing import barriers_of, host_kernel, interpreted

NEEDS = "simulated"
if SIMULATED:
    import numba

    import scratchnet.kernels.cuda as table
    from scratchnet.kernels.cuda import compile, ends, memory, tuning
    from scratchnet.kernels.cuda.compile import ALIGNED, cuda, launch, load_wide

RNG = np.random.default_rng(0)
ORDERS = ("ascending", "descending", "shuffled")


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def numbers(below, n):
    return RNG.integers(0, below, n)


SHORT_ROWS = [  # a warp takes several of them, and exchanges values without a barrier where it has shuffles
    ("softmax", (floats(29, 3),), (29, 3), "f", ()),
    ("softmax_grad", (floats(29, 4), floats(29, 4)), (29, 4), "f", ()),
]
WINDOWS = (1, 1), (0, 0), (1, 1), 1
# Calls whose kernels have barriers: name, inputs, shape and dtype of the result, numbers.
CALLS = [
    ("sum", (floats(2, 40, 1),), (2, 1), "f", ()),
    ("sum", (floats(2, 40, 5),), (2, 5), "f", ()),
    ("max", (floats(2, 40, 1),), (2, 1), "f", ()),
    ("argmax", (floats(3, 20, 2),), (3, 2), "l", ()),
    ("argmax", (floats(1, 300, 1),), (1, 1), "l", ()),
    ("standardize", (floats(9, 17, 1),), (9, 17, 1), "f", (1e-5,)),
    ("standardize", (floats(2, 17, 7),), (2, 17, 7), "f", (1e-5,)),
    ("standardize_grad", (floats(9, 17, 1), floats(9, 17, 1)), (9, 17, 1), "f", (1e-5,)),
    ("standardize_grad", (floats(2, 17, 7), floats(2, 17, 7)), (2, 17, 7), "f", (1e-5,)),
    ("transposed copy", (floats(9, 13),), (13, 9), "f", ()),
    ("softmax", (floats(9, 17),), (9, 17), "f", ()),
    ("softmax_grad", (floats(9, 17), floats(9, 17)), (9, 17), "f", ()),
    *SHORT_ROWS,
    ("logsumexp", (floats(9, 17),), (9,), "f", ()),
    ("log_softmax", (floats(9, 17),), (9, 17), "f", ()),
    ("cross_entropy", (floats(9, 17), numbers(17, 9)), (9,), "f", ()),
    ("cross_entropy_grad", (floats(9), floats(9, 17), numbers(17, 9)), (9, 17), "f", ()),
    ("matmul", (floats(17, 13), floats(13, 18)), (17, 18), "f", (False, False)),
    ("matmul", (floats(13, 17), floats(18, 13)), (17, 18), "f", (True, True)),
    ("matmul", (floats(5, 9), floats(9, 6)), (5, 6), "f", (False, False)),
    ("update of a layer", (floats(9, 5), floats(9, 6)), (5, 6), "f", ()),
    ("linear", (floats(17, 13), floats(13, 18), floats(18)), (17, 18), "f", ()),
    ("batched_matmul", (floats(2, 17, 13), floats(2, 13, 18)), (2, 17, 18), "f", (False, False)),
    ("batched_matmul", (floats(3, 13, 17), floats(3, 18, 13)), (3, 17, 18), "f", (True, True)),
    ("batched_matmul", (floats(2, 3, 9), floats(2, 9, 2)), (2, 3, 2), "f", (False, False)),
    ("conv2d", (floats(1, 4, 4, 3), floats(10, 2, 3, 2), floats(10)), (1, 10, 4, 2), "f", ((1, 1), (1, 0), (1, 1), 2)),
    ("conv2d_input", (floats(1, 9, 2, 2), floats(9, 3, 2, 2)), (1, 3, 3, 4), "f", ((2, 2), (1, 1), (1, 1), 1)),
    ("conv2d_weight", (floats(2, 5, 3, 4), floats(2, 2, 4, 5)), (5, 2, 2, 2), "f", ((1, 1), (0, 0), (1, 1), 1)),
    ("conv2d_rounded", (floats(1, 3, 4, 3), floats(17, 3, 2, 2), floats(17)), (1, 17, 3, 2), "f", (*WINDOWS, "tf32x3")),
    ("conv2d_weight_rounded", (floats(1, 3, 6, 3), floats(1, 2, 6, 3)), (3, 2, 1, 1), "f", (*WINDOWS, "bfloat16")),
    ("matmul_bfloat16", (floats(2, 17, 35), floats(2, 35, 9)), (2, 17, 9), "f", (False, False)),
    ("matmul_tf32x3", (floats(1, 5, 35), floats(1, 35, 4)), (1, 5, 4), "f", (False, False)),
    ("matmul_tf32", (floats(1, 35, 17), floats(1, 9, 35)), (1, 17, 9), "f", (True, True)),
]
# With shuffles, and where threads of a kernel exchange values, with their twin in shared memory.
WITHOUT_EXCHANGE = "matmul", "batched_matmul", "linear", "conv2d", "transposed"
TUNINGS = [(c, s) for c in CALLS for s in (True, False) if SIMULATED and (s or not c[0].startswith(WITHOUT_EXCHANGE))]


def transposed(x, out):
    there = memory.empty(out.shape, out.dtype)
    table.movement.copy(memory.from_host(x).T, there)
    out[...] = memory.to_host(there)


def update_of_a_layer(x, g, out):
    """SGD of a weight by x.T @ g, and of the bias by the sum of the rows of g."""
    x, g = memory.from_host(x), memory.from_host(g)
    weight, bias = ([memory.from_host(np.ones(shape, np.float32)) for _ in range(2)] for shape in ((5, 6), (6,)))
    numbers = tuple(np.array([0.1, 0.9, 0, 0], np.float32))
    end = ends.End("sgd", (*weight, *weight), numbers, (*bias, *bias))
    table.gemm.multiply(x, g, None, weight[0], True, False, end)
    out[...] = memory.to_host(weight[0]) + memory.to_host(bias[0])


SPECIAL = {"transposed copy": transposed, "update of a layer": update_of_a_layer}


def run(call, order="ascending", without=None):
    """The result, and the kernels that were launched."""
    name, inputs, shape, letter, params = call
    out, kernels = np.empty(shape, letter), []
    with interpreted(order, without) as interpreter:
        compile.launcher.set(lambda kernel, *launch: (kernels.append(kernel.function), interpreter(kernel, *launch)))
        (SPECIAL.get(name) or host_kernel("cuda", name))(*inputs, out, *params)
    return out, kernels


def with_shuffles(shuffles):
    return tuning.use(dataclasses.replace(tuning.TINY, shuffles=shuffles))


@pytest.mark.parametrize(("call", "shuffles"), TUNINGS, ids=lambda x: x[0] if isinstance(x, tuple) else str(x))
def test_bits_do_not_depend_on_the_order_of_threads(call, shuffles):
    with with_shuffles(shuffles):
        results = {run(call, order)[0].tobytes() for order in ORDERS}
    assert len(results) == 1


@pytest.mark.parametrize(("call", "shuffles"), TUNINGS, ids=lambda x: x[0] if isinstance(x, tuple) else str(x))
def test_every_barrier_is_missed_when_it_is_taken_out(call, shuffles):
    with with_shuffles(shuffles):
        found = {barrier for function in run(call)[1] for barrier in barriers_of(function)}
        if call[0] == "update of a layer":  # whose folds use shared memory once; "sum" takes out their barriers
            found = {barrier for barrier in found if barrier[0] == "multiply_few"}
        assert bool(found) != (shuffles and any(call is short for short in SHORT_ROWS))
        for barrier in found:
            for order in ORDERS:
                with pytest.raises(ContractError, match=r"without a barrier|before it is written"):
                    run(call, order, without=barrier)


def test_calls_leave_out_no_kernel_with_shared_memory():
    modules = [m for m in vars(table).values() if inspect.ismodule(m) and m.__name__.startswith(table.__name__)]
    factories = [f.__wrapped__ for m in modules for f in vars(m).values() if hasattr(f, "cache_info")]
    expected = {f.__name__ for f in factories if "cuda.shared.array" in inspect.getsource(f)}
    with with_shuffles(True):
        launched = {function.__qualname__.partition(".")[0] for call in CALLS for function in run(call)[1]}
    assert expected <= launched


# --- planted faults ---------------------------------------------------------------------------------------------------


def start(function, blocks=1, threads=4, size=8):
    arrays = [memory.from_host(np.arange(size, dtype=np.float32)) for _ in range(2)]
    with interpreted():
        launch(compile.Kernel(function, 8), blocks, threads, *arrays)


def fault_two_threads_write_one_word(x, out):
    out[0] = x[cuda.threadIdx.x]


def fault_one_reads_what_another_writes(x, out):
    i = cuda.threadIdx.x
    out[i] = x[i]
    if i > 0:
        out[i + 4] = out[i - 1]


def fault_shared_memory_is_read_at_once(x, out):
    shared = cuda.shared.array(8, numba.float32)
    i = cuda.threadIdx.x
    shared[i] = x[i]
    shared[i + 4] = x[i]
    out[i] = shared[4 - i]


def fault_it_reads_beyond_the_end(x, out):
    out[cuda.threadIdx.x] = x[cuda.threadIdx.x + 5]


def fault_it_counts_from_the_end(x, out):
    out[cuda.threadIdx.x] = x[cuda.threadIdx.x - 1]


def fault_it_reads_shared_memory_that_nobody_wrote(x, out):
    shared = cuda.shared.array(8, numba.float32)
    cuda.syncthreads()
    out[cuda.threadIdx.x] = shared[cuda.threadIdx.x]


def fault_it_reads_a_register_that_it_did_not_write(x, out):
    own = cuda.local.array(2, numba.float32)
    out[cuda.threadIdx.x] = own[1]


def fault_half_of_the_threads_come_to_a_barrier(x, out):
    if cuda.threadIdx.x < 2:
        cuda.syncthreads()
    out[cuda.threadIdx.x] = x[cuda.threadIdx.x]


def fault_threads_wait_at_different_barriers(x, out):
    if cuda.threadIdx.x < 2:
        cuda.syncthreads()
    else:
        cuda.syncthreads()


def fault_sixteen_bytes_from_an_odd_place(x, out):
    own = cuda.local.array(4, numba.float32)
    load_wide(x, 1, own, 0)


FAULTS = [f for name, f in list(globals().items()) if name.startswith("fault_")]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_planted_faults_are_found(fault):
    with pytest.raises(ContractError, match=rf"^{fault.__name__}, block 0, thread \d: "):
        start(fault)


def test_two_blocks_that_write_one_word_are_found():
    def both(x, out):
        if cuda.threadIdx.x == 0:
            out[0] = x[0]

    with pytest.raises(ContractError, match=r"block 1, thread 0: a write of word 0 .* that block 0 touches too"):
        start(both, blocks=2)


def test_too_many_threads_are_found():
    def nothing(x, out):
        pass

    with pytest.raises(ContractError, match="9 threads in a block, for which at most 8"):
        start(nothing, threads=9)


def test_a_kernel_without_faults_passes():
    def swaps(x, out):
        shared = cuda.shared.array(8, numba.float32, ALIGNED)
        i = cuda.threadIdx.x
        shared[i] = x[i]
        cuda.syncthreads()
        out[i] = shared[3 - i]

    x, out = (memory.from_host(np.arange(4, dtype=np.float32)) for _ in range(2))
    with interpreted():
        launch(compile.Kernel(swaps, 8), 1, 4, x, out)
    assert memory.to_host(out).tolist() == [3, 2, 1, 0]
