"""Kernels compiled without a GPU: registers, memory, instructions are as they should be.

Each float32 kernel; of other dtypes, and of loops that do the same to other strides, one of each loop. `make thorough`
compiles every signature, and the hot ones for every architecture.
"""

from collections import Counter

import pytest
from sizes import THOROUGH

NEEDS = "compiled"

HOT = {"unary", "binary", "folding_strips", "exponential_rows", "product", "product_in_warps"}
HOT |= {"standardizing", "folding_rows", "dropping", "updating", "convolving"}
BY_STRIDES = {"broadcasting", "strided_copying", "transposing"}  # what "binary" and "copying" do to rows of memory
ROUNDED = {("conv2d_rounded", "bfloat16"), ("conv2d_weight_rounded", "tf32x3")}  # with a bias, and the most registers
STATIC_SHARED = 48 * 1024  # bytes of shared memory that a block may have on every GPU


OF_A_LOOP, ON_OTHERS = (10**6, 10**6) if THOROUGH else (1, 1)  # kernels of other dtypes; hot ones on other GPUs


def first_of_each(key, launches, count):
    """(number, launch) of the first `count` launches of each key."""
    seen = Counter()
    for i, launch in launches:
        seen[key(launch)] += 1
        if seen[key(launch)] <= count:
            yield i, launch


def is_repeating(launch):
    """Is it a convolution in a precision that does what those of ROUNDED do, or a product of which one factor is
    transposed? Both, and neither, are what a factor may be.
    """
    if launch.factory.startswith("product"):
        return not THOROUGH and len(set(launch.numbers)) == 2
    return not THOROUGH and launch.name.endswith("_rounded") and (launch.name, launch.precision) not in ROUNDED


@pytest.fixture(scope="module")
def known():
    """Every kernel of the table with one launch for each signature; nothing is compiled yet."""
    from gpu_facts import launches

    return launches()


@pytest.fixture(scope="module")
def compiled(known):
    """(launch, architecture, facts), for sm_80, and of hot float32 kernels for the others."""
    from gpu_facts import ARCHITECTURES, facts_of_all

    is_needed = [x.is_float32 and x.factory not in BY_STRIDES and not is_repeating(x) for x in known]
    hot = {(x.name, x.factory, x.threads): i for i, x in enumerate(known) if x.is_float32 and x.factory in HOT}
    others = [(i, x) for i, x in enumerate(known) if not is_needed[i] and not is_repeating(x)]
    wanted = [(i, "sm_80") for i in range(len(known)) if is_needed[i]]
    wanted += [(i, "sm_80") for i, _ in first_of_each(lambda x: x.factory, others, OF_A_LOOP)]
    for arch in ARCHITECTURES:
        if arch != "sm_80":
            there = [(i, known[i]) for i in hot.values() if known[i].is_for(arch)]
            chosen = first_of_each(lambda x: x.factory, there, ON_OTHERS)
            wanted += [(i, arch) for i, _ in chosen]
    return [(known[i], arch, f) for (i, arch), f in zip(wanted, facts_of_all(wanted), strict=True)]


def test_every_signature_has_a_launch_and_every_loop_is_compiled(known, compiled):
    from scratchnet.kernels.signatures import SIGNATURES, accepted

    # A kernel is compiled for the first call that needs it: copies, sums and fills serve several.
    wanted = {(name, dtypes) for name in SIGNATURES for dtypes in accepted(name, "cuda")}
    called = {(launch.name, tuple(x.dtype for x in launch.arrays)) for launch in known}
    assert {name for name, _ in wanted - called} <= {"take_rows", "fill", "sum", "copy"}
    assert {launch.factory for launch, arch, _ in compiled if arch == "sm_90"} == HOT
    assert {launch.factory for launch, _, _ in compiled} == {launch.factory for launch in known}


# The GPU's library reduces large angles with digits of 2/pi in local memory, and one float64 multiplication.
LIBRARY = "sin", "cos"


def test_no_kernel_spills_or_uses_local_memory(compiled):
    bad = [(launch.name, launch.dtypes, arch) for launch, arch, f in compiled if f["spills"] + f["stack"] + f["local"]]
    assert not [entry for entry in bad if entry[0] not in LIBRARY]


def test_float32_kernels_have_no_float64_instruction(compiled):
    bad = [(launch.name, arch) for launch, arch, f in compiled if launch.is_float32 and f["f64"]]
    assert not [entry for entry in bad if entry[0] not in LIBRARY]
    assert any(f["f64"] for launch, _, f in compiled if "d" in launch.dtypes)  # they would be seen


def test_registers_and_shared_memory_leave_room_for_several_blocks(compiled):
    from gpu_roofline import occupancy

    for launch, _, f in compiled:
        assert f["registers"] * launch.kernel.bounds[0] * launch.kernel.bounds[1] <= 65536, launch.name
        assert f["shared"] <= STATIC_SHARED, launch.name
        blocks, part = occupancy(launch, f)
        assert blocks >= 2 and part >= 0.12, (launch.name, launch.factory, launch.dtypes, part)


def test_kernels_with_more_than_a_warp_and_shared_memory_have_barriers(compiled):
    for launch, _, f in compiled:
        assert (f["barriers"] > 0) == (f["shared"] > 0), (launch.name, launch.factory)


def test_streams_of_elements_are_read_sixteen_bytes_at_a_time(compiled):
    flat = {"unary", "binary", "clipping", "copying", "product"}
    found = [(launch, f) for launch, _, f in compiled if launch.factory in flat and launch.arrays[0].itemsize > 1]
    assert found
    for launch, f in found:
        assert f["wide_loads"] and f["wide_stores"], (launch.name, launch.dtypes)


def test_the_loop_of_a_product_multiplies_much_more_than_it_reads(compiled):
    products = [(x, f["loop"]) for x, _, f in compiled if x.factory == "product" and "l" not in x.dtypes]
    assert len(products) >= 14
    for launch, loop in products:
        assert loop["shared_narrow"] == 0, launch.dtypes  # all 16 bytes at a time
        if launch.is_float32 and launch.threads == 256 and loop["fma"] == 64:
            assert loop["fma"] / loop["shared_wide"] == 16 and loop["other"] <= 20
        assert loop["fma"] >= 2 * loop["shared_wide"], launch.dtypes
    assert sum(loop["fma"] == 64 for launch, loop in products if launch.is_float32) >= 3


def test_convolutions_multiply_as_often_as_products_of_the_same_tile(compiled):
    found = [(x, f["loop"]) for x, _, f in compiled if x.factory == "convolving" and not x.precision]
    assert {x.name for x, _ in found} == {"conv2d", "conv2d_input", "conv2d_weight"}
    for launch, loop in found:
        assert loop["shared_narrow"] == 0 and loop["fma"] >= (8 if launch.is_float32 else 4) * loop["shared_wide"] > 0


def test_products_in_halves_and_tf32_are_made_by_tensor_cores(compiled):
    """One instruction is 16 x 8 elements: a warp has 64 x 32 of a tile, and reads each word once for each step."""
    products = [(x, arch, f) for x, arch, f in compiled if x.factory == "product_in_warps"]
    each = {"matmul_bfloat16": 16, "matmul_float16": 16, "matmul_tf32": 16, "matmul_tf32x3": 24}  # of 32 x 32, thrice
    assert {x.name for x, _, _ in products} == set(each)
    assert {arch for _, arch, _ in products} == {"sm_80", "sm_90"} and len(products) >= 6
    for launch, arch, f in products:
        assert f["mma"] == f["hmma"] == each[launch.name], (launch.name, arch)
        assert f["wide_loads"] and f["fma"] == 0
    others = [(x.name, f["mma"], f["hmma"]) for x, _, f in compiled if not x.is_in_warps]
    assert not [other for other in others if any(other[1:])]


def test_convolutions_in_a_precision_are_made_by_tensor_cores(compiled):
    """A block asks for the numbers of its next tiles, 16 of a thread, before it waits for one."""
    found = [(x, f) for x, _, f in compiled if x.factory == "convolving" and x.precision]
    each = {
        "bfloat16": 8,
        "float16": 8,
        "tf32": 16,
        "tf32x3": 24,
    }  # of 32 x 32 elements and 16 terms; thrice of 32 x 16
    assert {(x.name, x.precision) for x, _ in found} >= ROUNDED
    for launch, f in found:
        assert f["mma"] == f["hmma"] == each[launch.precision] and f["under_way"] >= 64, (launch.name, launch.precision)


def test_a_spill_would_be_seen():
    """Facts of a kernel that must spill: so many sums do not fit in the registers that its blocks leave it."""
    import numpy as np
    from gpu_facts import Launch, facts, memory, on_paper

    from scratchnet.kernels.cuda.compile import Kernel
    from scratchnet.kernels.cuda.gemm import product
    from scratchnet.kernels.cuda.tuning import Tile

    with on_paper() as noted:
        x = memory.empty((64, 64), np.float32)
        loop = product(np.dtype(np.float32), Tile(128, 128, 8, 8, 8), False, False, False, False)
        arguments = (x, x, x, x, (64, 64, 64, 64), (True, True, True))
        crowded = Kernel(loop.function, 1024)  # 64 registers a thread at most
        f = facts(Launch("matmul", [x] * 3, (), crowded, (1, 1), 1024, arguments), "sm_80")
    assert f["spills"] > 0 and not noted


@pytest.mark.parametrize("shards", [2, 9, 64])
def test_a_fold_along_the_tree_adds_in_registers(shards):
    """64 shards are the most that device_memory.py gives it, whose addresses fill the arguments of a launch."""
    import numpy as np
    from gpu_facts import Launch, facts, memory, on_paper

    from scratchnet.kernels.cuda import driver, folds, machine_code
    from scratchnet.parallel.comm.tree import tree_sum
    from scratchnet.parallel.pool.device_memory import MOST_SHARDS

    assert shards <= MOST_SHARDS
    with on_paper() as noted:
        x = memory.empty(1000, np.float32)
        folds.fold_tree(tree_sum(range(shards), int, lambda left, right: (left, right)), [x] * shards, x)
        ((kernel, blocks, threads, arguments),) = noted
        launch = Launch("fold", [x], (), kernel, blocks, threads, arguments)
        f = facts(launch, "sm_80")
    assert f["spills"] + f["stack"] + f["local"] + f["f64"] + f["fma"] == 0
    assert f["registers"] * kernel.bounds[0] <= 65536
    assert len(machine_code.layout(launch.codes)) * 8 <= driver.MOST_BYTES
