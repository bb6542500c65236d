"""Products by tensor cores, without any: words, which thread holds which, and sums of rounded operands, as NumPy's."""

import itertools
from unittest import mock

import numpy as np
import pytest
from gpu_arrays import RNG, ROUNDED
from sizes import SIMULATED

import scratchnet as sn
from scratchnet.testing import host_kernel, interpreted

NEEDS = "simulated"
if SIMULATED:
    from scratchnet.kernels.cuda import compile, gemm_tensor, memory, tensor_cores, tuning


NAMES = list(ROUNDED)
EPS = np.finfo(np.float32).eps
TRANSPOSED = list(itertools.product((False, True), repeat=2))


# --- element i of a thread, by the tables of the PTX ISA: group is lane / 4, own is lane % 4 --------------------------


def a_of_16_terms(group, own, i):
    return group + 8 * (i // 2 % 2), own * 2 + i % 2 + 8 * (i >= 4)


def b_of_16_terms(group, own, i):
    return group, own * 2 + i % 2 + 8 * (i >= 2)


def a_of_8_terms(group, own, i):
    return group + 8 * (i in (1, 3)), own + 4 * (i >= 2)


def b_of_8_terms(group, own, i):
    return group, own + 4 * i


def sums(group, own, i):
    return group + 8 * (i >= 2), own * 2 + i % 2


TABLES = {2: (a_of_16_terms, b_of_16_terms), 1: (a_of_8_terms, b_of_8_terms)}


@pytest.mark.parametrize("name", NAMES)
def test_threads_hold_what_the_instruction_expects(name):
    terms = tensor_cores.PRECISIONS[name].terms
    a_table, b_table = TABLES[terms]
    for lane in range(32):
        for place, table, registers in ((tensor_cores.a_place, a_table, 4), (tensor_cores.b_place, b_table, 2)):
            for register, half in itertools.product(range(registers), range(terms)):
                edge, word = place(lane, register)
                assert (edge, word * terms + half) == table(lane // 4, lane % 4, register * terms + half)
        for i in range(4):
            assert tensor_cores.sum_place(lane, i) == sums(lane // 4, lane % 4, i)


TIES = [1 + odd * 2.0**-bits + more for bits in (8, 11) for odd in (1, 3) for more in (0, 2.0**-23, -(2.0**-23))]
VALUES = [*TIES, 0.0, -0.0, 1.0, 65504, 65520, 1e-7, 6e-8, 2e-8, 3.4e38]
VALUES = np.float32([*VALUES, *RNG.standard_normal(50), np.inf, np.nan, 1e-40, 2**-149])
VALUES = np.concatenate([VALUES, -VALUES])


@pytest.mark.parametrize("name", NAMES)
def test_words_are_rounded_operands(name):
    word, widened = tensor_cores.word(name), tensor_cores.operand_of(name)
    other = VALUES[::-1]
    words = [np.uint32(word(*pair)) for pair in zip(VALUES, other, strict=True)]
    for term, values in enumerate([VALUES, other][: tensor_cores.PRECISIONS[name].terms]):
        found = np.array([widened(w, term) for w in words], np.float32)
        np.testing.assert_array_equal(found, ROUNDED[name](values))
        signed = values == values
        np.testing.assert_array_equal(np.signbit(found)[signed], np.signbit(values)[signed])


def product(name, a, b, transposed):
    """Of two matrices each, in float64, and the error that sums in float32 may have."""
    a, b = (ROUNDED[name](x).astype(np.float64) for x in (a, b))
    a, b = (x.swapaxes(1, 2) if t else x for x, t in zip((a, b), transposed, strict=True))
    return a @ b, (a.shape[2] + 1) * EPS * (np.abs(a) @ np.abs(b))


def operands(count, m, k, n, transposed):
    shapes = (k, m) if transposed[0] else (m, k), (n, k) if transposed[1] else (k, n)
    return [RNG.standard_normal((count, *shape)).astype(np.float32) for shape in shapes]


WAYS = [*itertools.product(("bfloat16", "tf32"), TRANSPOSED), ("float16", (False, False))]  # float16 lies as bfloat16
SHAPES = [(1, 1, 1, 1), (1, 16, 16, 8), (2, 17, 33, 9), (3, 33, 15, 17), (1, 5, 70, 7), (2, 4, 0, 5)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "transposed"), WAYS, ids=str)
def test_products_are_numpys_of_rounded_operands(name, shape, transposed):
    count, m, _, n = shape
    a, b = operands(*shape, transposed)
    out = np.full((count, m, n), np.nan, np.float32)
    with interpreted(), tuning.use(tuning.TINY):
        host_kernel("cuda", f"matmul_{name}")(a, b, out, *transposed)
    expected, error = product(name, a, b, transposed)
    assert (np.abs(out - expected) <= error).all()


@pytest.mark.parametrize("name", NAMES)
def test_memory_that_is_not_aligned_and_a_sum_in_parts(name):
    a, b = operands(1, 9, 300, 12, (False, False))
    there = [memory.from_host(np.resize(x, x.size + 1))[1:] for x in (a, b)]
    a, b = (memory.to_host(x).reshape(y.shape) for x, y in zip(there, (a, b), strict=True))
    out = memory.empty((1, 9, 12), np.float32)
    launched = []
    with interpreted() as run, tuning.use(tuning.TINY):
        compile.launcher.set(lambda kernel, *launch: (launched.append(kernel), run(kernel, *launch)))
        gemm_tensor.multiply(name, there[0].reshape(a.shape), there[1].reshape(b.shape), out, False, False)
    assert len(launched) > 1  # the parts are folded by another kernel
    expected, error = product(name, a, b, (False, False))
    assert (np.abs(memory.to_host(out) - expected) <= error).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_without_them_rounds_first_and_multiplies_as_float32(name):
    from scratchnet.kernels import order_of

    a, b = operands(2, 5, 9, 6, (False, True))
    out = {}
    for there in (True, False):
        out[there] = np.empty((2, 5, 6), np.float32)
        with mock.patch.object(compile.machine, "has_tensor_cores", lambda there=there: there):
            assert order_of(name, ("cuda",)) == ("tensor cores" if there else None)
            host_kernel("cuda", f"matmul_{name}")(a, b, out[there], False, True)
    expected = np.empty((2, 5, 6), np.float32)
    host_kernel("cuda", "batched_matmul")(ROUNDED[name](a), ROUNDED[name](b), expected, False, True)
    assert out[False].tobytes() == expected.tobytes()
    exact, error = product(name, a, b, (False, True))
    assert (np.abs(out[True] - exact) <= error).all()


@pytest.mark.parametrize("transposed", [(False, False), (True, True)], ids=str)
def test_three_products_in_tf32_have_float32s_error_and_one_has_not(transposed):
    shape = count, m, k, n = 1, 17, 33, 9
    a, b = operands(*shape, transposed)
    out = {name: np.empty((count, m, n), np.float32) for name in ("tf32x3", "tf32")}
    with interpreted(), tuning.use(tuning.TINY):
        for name, y in out.items():
            host_kernel("cuda", f"matmul_{name}")(a, b, y, *transposed)
    a, b = (
        x.astype(np.float64).swapaxes(1, 2) if t else x.astype(np.float64)
        for x, t in zip((a, b), transposed, strict=True)
    )
    bound = k * EPS / 2 * (np.abs(a) @ np.abs(b))  # of k products and k - 1 additions, each rounded to the nearest
    assert (np.abs(out["tf32x3"] - a @ b) <= bound).all()
    assert (np.abs(out["tf32"] - a @ b) > bound).mean() > 0.5


def test_what_tf32_leaves_of_a_number_is_its_rest():
    values = VALUES[np.isfinite(VALUES) & (np.abs(VALUES) < 3e38)]
    for x in values:
        both = [tensor_cores.float_of_bits(f(x, x)) for f in (tensor_cores.word_of_tf32, tensor_cores.word_of_rest)]
        assert abs(np.float64(both[0]) + np.float64(both[1]) - np.float64(x)) <= max(
            abs(np.float64(x)) * 2**-23, 2**-137
        )
        assert both[1] == ROUNDED["tf32"](both[1])


def test_a_product_in_tf32_is_one_call_with_its_gradients():
    a, b = operands(1, 5, 9, 6, (False, False))
    x, y = (sn.Tensor(t[0], device="cuda", requires_grad=True) for t in (a, b))
    with sn.precision("tf32"):
        z = x @ y
    (z * z).sum().backward()
    g = 2 * z.detach().numpy()[None]
    for found, (left, right, transposed) in (
        (z.detach(), (a, b, (False, False))),
        (x.grad, (g, b, (False, True))),
        (y.grad, (a, g, (True, False))),
    ):
        expected, error = product("tf32", left, right, transposed)
        assert (np.abs(found.numpy() - expected[0]) <= error[0]).all()
    assert np.abs(z.detach().numpy() - a[0] @ b[0]).max() > 1e-4  # it can be told from float32


@pytest.mark.parametrize("name", NAMES)
def test_opencl_gets_the_same_source(name):
    from scratchnet.kernels.opencl.source import translated

    loop = gemm_tensor.product_in_warps(name, tuning.PRODUCTION.tensor_tiles[0], False, True)
    text = translated(loop.function, ("[f", "[f", "[f", ("q",) * 5, ("?",) * 2))
    assert "as_uint(" in text and "as_float(" in text and "__local uint" in text


def test_a_run_in_tf32_says_what_multiplies_and_keeps_it(tmp_path, capsys):
    x = RNG.standard_normal((8, 4)).astype(np.float32)
    data = sn.data.TensorDataset(x, np.arange(8) % 2)

    def run(device, **options):
        model = sn.nn.Linear(4, 2).to(device)
        trainer = sn.Trainer(
            model, sn.optim.SGD(model.parameters(), 0.1), sn.nn.CrossEntropyLoss(), shards=1, folder=tmp_path, **options
        )
        trainer.fit(sn.data.DataLoader(data, 4), epochs=1, resume="auto")

    run("cuda", precision="tf32")
    expected = "tf32 products, added up in float32: rounded as they are read, and multiplied by tensor cores; a GPU"
    assert expected in capsys.readouterr().out
    with (
        mock.patch.object(compile.machine, "has_tensor_cores", lambda: False),
        pytest.raises(sn.ScratchnetError, match="expected order=tensor cores, as saved, got None"),
    ):
        run("cuda", precision="tf32")
    with pytest.raises(sn.ScratchnetError, match="precision"):
        run("cuda", precision="float32")
    with pytest.raises(sn.ConfigError, match="Trainer: expected tensors on 'cuda' in precision 'tf32', got 'cpu'"):
        run("cpu", precision="tf32")
