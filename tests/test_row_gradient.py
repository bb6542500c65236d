"""Gradients by rows have the bits of dense ones, and optimizers update the rows that occur alone."""

import copy

import numpy as np
import pytest
from sizes import SIMULATED

import scratchnet as sn
from scratchnet import nn
from scratchnet.nn import functional as F
from scratchnet.row_gradient import RowGradient

pytestmark = pytest.mark.skipif(SIMULATED, reason="of tables on the host")

N, DIM = 9, 3
RNG = np.random.default_rng(0)
TABLE = RNG.standard_normal((N, DIM)).astype(np.float32)
WORDS, BAGS = np.array([[7, 2, 0], [2, 2, 5]]), np.array([[0, 3, 0], [3, 3, 8]])
OCCUR = [0, 2, 3, 5, 7, 8]
OPTIMIZERS = {
    "SGD": lambda p: sn.optim.SGD(p, 0.1),
    "momentum": lambda p: sn.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adagrad": lambda p: sn.optim.Adagrad(p, 0.1),
    "Adam": lambda p: sn.optim.Adam(p, 0.1),
    "amsgrad": lambda p: sn.optim.Adam(p, 0.1, amsgrad=True, weight_decay=0.1, maximize=True),
    "AdamW": lambda p: sn.optim.AdamW(p, 0.1, weight_decay=0.1),
    "RMSprop": lambda p: sn.optim.RMSprop(p, 0.1, momentum=0.9),
    "Adadelta": lambda p: sn.optim.Adadelta(p, 0.1),
}


def parameter():
    return nn.Parameter(TABLE.copy())


def backward(table, sparse, words=WORDS, bags=BAGS, padding=None):
    """Rows by number and by bags, each with weights of its own, so that no two rows get the same."""
    rows = F.embedding(words, table, padding, sparse)
    folded = F.embedding_bag(bags, table, padding_idx=padding, sparse=sparse)
    weights = np.random.default_rng(1)
    loss = (rows * weights.standard_normal(rows.shape).astype(np.float32)).sum()
    (loss + (folded * weights.standard_normal(folded.shape).astype(np.float32)).tanh().sum()).backward()
    return table.grad


@pytest.mark.parametrize("padding", [None, 2, -9])
def test_a_gradient_by_rows_has_the_bits_of_the_dense_one_in_the_rows_that_occur(padding):
    by_rows, dense = (backward(parameter(), sparse, padding=padding) for sparse in (True, False))
    assert by_rows.rows.tolist() == [i for i in OCCUR if padding is None or i != padding % N]
    assert by_rows.values.shape == (len(by_rows.rows), DIM)
    assert (by_rows.shape, by_rows.dtype) == (dense.shape, dense.dtype)
    assert by_rows.numpy().tobytes() == by_rows.to_dense().numpy().tobytes() == dense.numpy().tobytes()


def test_gradients_by_rows_are_added_up_and_with_a_dense_one_they_are_dense():
    by_rows, dense = parameter(), parameter()
    for words in (WORDS, WORDS + 1):
        backward(by_rows, True, words)
        backward(dense, False, words)
    assert by_rows.grad.rows.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert by_rows.grad.numpy().tobytes() == dense.grad.numpy().tobytes()
    for table in (by_rows, dense):
        (table**2).sum().backward()
    assert isinstance(by_rows.grad, sn.Tensor)
    assert by_rows.grad.numpy().tobytes() == dense.grad.numpy().tobytes()
    tied = parameter()
    (F.embedding(WORDS, tied, sparse=True).sum() + (tied * 2.0).sum()).backward()
    assert tied.grad.numpy()[:, 0].tolist() == [3, 2, 5, 2, 2, 3, 2, 3, 2]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_where_all_rows_occur_an_optimizer_gives_the_bits_of_dense_gradients(name):
    def trained(sparse):
        table = parameter()
        optimizer = OPTIMIZERS[name]([table])
        for step in range(3):
            optimizer.zero_grad()
            backward(table, sparse, np.roll(np.arange(N), step))
            optimizer.step()
        return [table.detach().numpy().tobytes(), *(x.tobytes() for x in optimizer.states[0].arrays)]

    assert trained(True) == trained(False)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_that_do_not_occur_keep_every_bit_of_parameter_and_state(name):
    table = parameter()
    optimizer = OPTIMIZERS[name]([table])
    backward(table, True, np.arange(N)[::-1].copy())
    optimizer.step()
    before = [x.copy() for x in (table.detach().numpy(), *optimizer.states[0].arrays)]
    for padding in (None, 2):
        optimizer.zero_grad()
        backward(table, True, padding=padding)
        optimizer.step()
    for old, new in zip(before, (table.detach().numpy(), *optimizer.states[0].arrays), strict=True):
        changed = (old != new).any(1)
        assert changed.nonzero()[0].tolist() == OCCUR
    assert optimizer.states[0].step == 3


def test_adam_moves_a_row_as_its_own_averages_and_the_steps_of_the_table_say():
    """PyTorch's SparseAdam, but that eps is added to the corrected average, as Adam does."""
    table, expected = parameter(), TABLE.astype(np.float64)
    optimizer, m, v = sn.optim.Adam([table], 0.1, (0.9, 0.99), 1e-3), np.zeros((N, DIM)), np.zeros((N, DIM))
    for step, words in enumerate(([1, 4, 1], [4], [1, 8]), 1):
        optimizer.zero_grad()
        (F.embedding(np.array(words), table, sparse=True) ** 2).sum().backward()
        optimizer.step()
        for row in set(words):
            g = 2 * words.count(row) * expected[row]
            m[row], v[row] = 0.9 * m[row] + 0.1 * g, 0.99 * v[row] + 0.01 * g * g
            expected[row] -= 0.1 * m[row] / (1 - 0.9**step) / (np.sqrt(v[row] / (1 - 0.99**step)) + 1e-3)
    np.testing.assert_allclose(table.detach().numpy(), expected, rtol=1e-5)


def test_norms_and_limits_are_those_of_the_dense_gradient():
    for clip in (
        lambda p: nn.utils.clip_grad_norm_(p, 0.5).item(),
        lambda p: nn.utils.clip_grad_norm_(p, 0.5, np.inf).item(),
        lambda p: nn.utils.clip_grad_value_(p, 0.5),
    ):
        by_rows, dense = parameter(), parameter()
        backward(by_rows, True)
        backward(dense, False)
        np.testing.assert_allclose(clip([by_rows]) or 0, clip([dense]) or 0, rtol=1e-12)
        assert by_rows.grad.rows.tolist() == OCCUR
        np.testing.assert_allclose(by_rows.grad.numpy(), dense.grad.numpy(), rtol=1e-6)


def test_no_rows_are_a_gradient_that_changes_nothing_but_the_count():
    table = parameter()
    optimizer = sn.optim.Adam([table], 0.1)
    backward(table, True)
    optimizer.zero_grad(set_to_none=False)
    assert table.grad.rows.tolist() == [] and not table.grad.numpy().any()
    optimizer.step()
    assert table.detach().numpy().tobytes() == TABLE.tobytes() and optimizer.states[0].step == 1
    table.grad = None
    F.embedding_bag(np.zeros((2, 0), int), table, sparse=True).sum().backward()
    assert table.grad.rows.tolist() == []


def test_where_the_pass_is_recorded_or_a_function_is_asked_for_the_gradient_is_dense():
    def both(table, sparse):
        rows, bags = F.embedding(WORDS, table, 2, sparse), F.embedding_bag(BAGS, table, sparse=sparse)
        return rows.tanh().sum() + bags.exp().sum()

    found = []
    for sparse in (True, False):
        table = parameter()
        both(table, sparse).backward(create_graph=True)
        gradient, table.grad = table.grad, None
        (gradient**2).sum().backward(create_graph=True)
        found.append((gradient.tolist(), table.grad.tolist()))
    assert found[0] == found[1]
    assert sn.grad(both)(TABLE, True).tolist() == sn.grad(both)(TABLE, False).tolist()


def test_a_model_keeps_its_gradient_by_rows_when_it_is_copied_or_converted():
    model = nn.Sequential(nn.Embedding(N, DIM, sparse=True))
    model(WORDS).sum().backward()
    gradient = model[0].weight.grad
    assert copy.deepcopy(model)[0].weight.grad.rows.tolist() == gradient.rows.tolist()
    model.double()
    assert model[0].weight.grad.dtype == np.float64 and model[0].weight.grad.rows.tolist() == [0, 2, 5, 7]
    assert repr(model[0]) == "Embedding(9, 3, sparse=True)"
    assert repr(gradient) == "RowGradient(4 rows of shape (9, 3))"


def tanh_of_the_table():
    F.embedding(WORDS, parameter().tanh(), sparse=True)


def hooked():
    table = parameter()
    table.register_hook(lambda g: g)
    backward(table, True)


def by_lbfgs():
    table = parameter()
    optimizer = sn.optim.LBFGS([table])
    optimizer.step(lambda: (optimizer.zero_grad(), F.embedding(WORDS, table, sparse=True).sum())[1].backward() or 1.0)


def recorded():
    table = parameter()
    sn.jit(lambda words: F.embedding(words, table, sparse=True).sum().backward())(sn.Tensor(WORDS))


def updated_in_a_recorded_step():
    table = parameter()
    optimizer = sn.optim.SGD([table], 0.1)
    backward(table, True)
    sn.jit(lambda x: optimizer.step())(sn.Tensor(1.0))


def added_to_in_a_recorded_step():
    table = parameter()
    backward(table, True)
    sn.jit(lambda x: (table * x).sum().backward())(sn.Tensor(1.0))


def clipped_in_a_recorded_step():
    table = parameter()
    backward(table, True)
    sn.jit(lambda x: nn.utils.clip_grad_norm_([table], 1.0))(sn.Tensor(1.0))


def of_another_shape():
    table, other = parameter(), nn.Parameter(TABLE[:4])
    backward(table, True)
    other.grad = table.grad
    sn.optim.SGD([other], 0.1).step()


def made(rows):
    return RowGradient(np.array(rows), sn.Tensor(np.ones((2, DIM), np.float32)), N)


def test_a_recorded_step_that_is_refused_for_a_gradient_by_rows_updates_nothing():
    table, other = parameter(), nn.Parameter(TABLE)
    backward(table, True)
    backward(other, False)
    optimizer = sn.optim.SGD([other, table], 0.1)
    with pytest.raises(sn.JitError, match="sparse=True"):
        sn.jit(lambda x: optimizer.step())(sn.Tensor(1.0))
    np.testing.assert_array_equal(other.detach().numpy(), TABLE)
    assert [state.step for state in optimizer.states] == [0, 0]


def test_a_gradient_by_rows_never_changes_and_is_an_array_of_the_whole_shape():
    gradient = backward(parameter(), True)
    with pytest.raises(ValueError, match="read-only"):
        gradient.rows[0] = 1
    with pytest.raises(AttributeError):
        gradient.values = None
    assert (np.asarray(gradient) == gradient.numpy()).all() and np.asarray(gradient).shape == (N, DIM)


REFUSED = {
    tanh_of_the_table: (sn.GradientError, "embedding: expected a leaf as weight with sparse=True"),
    hooked: (sn.GradientError, "register_hook: expected a dense gradient, got one by rows"),
    by_lbfgs: (sn.GradientError, "LBFGS: expected dense gradients, got one by rows"),
    recorded: (sn.JitError, "a gradient by rows (sparse=True): expected a step"),
    updated_in_a_recorded_step: (sn.JitError, "a gradient by rows (sparse=True): expected a step"),
    added_to_in_a_recorded_step: (sn.JitError, "a gradient by rows (sparse=True): expected a step"),
    clipped_in_a_recorded_step: (sn.JitError, "a gradient by rows (sparse=True): expected a step"),
    of_another_shape: (sn.ShapeError, "SGD: expected a gradient of shape (4, 3), got (9, 3)"),
    lambda: backward(parameter(), True).norm(): (sn.UnknownAttributeError, "grad: expected rows, values"),
    lambda: F.embedding_bag(BAGS, TABLE, mode="max", sparse=True): (sn.ConfigError, "mode 'sum' or 'mean' with sparse"),
    lambda: nn.EmbeddingBag(N, DIM, "max", sparse=True): (sn.ConfigError, "mode 'sum' or 'mean' with sparse"),
    lambda: nn.Embedding(N, DIM, sparse=1): (sn.ConfigError, "Embedding: sparse"),
    lambda: made([3, 3]): (sn.IndexOutOfRangeError, "ascend in [0, 9), each once, got 2 from 3 to 3"),
    lambda: made([*range(90), 0]): (sn.IndexOutOfRangeError, "got 91 from 0 to 89"),
    lambda: made([5, 3]): (sn.IndexOutOfRangeError, "RowGradient: expected rows that ascend in [0, 9)"),
    lambda: made([-1, 3]): (sn.IndexOutOfRangeError, "RowGradient: expected rows that ascend in [0, 9)"),
    lambda: made([3, 9]): (sn.IndexOutOfRangeError, "RowGradient: expected rows that ascend in [0, 9)"),
    lambda: made([1, 2, 3]): (sn.ShapeError, "RowGradient: expected (3,) rows of values, got (2,)"),
}


@pytest.mark.parametrize("call", REFUSED)
def test_what_a_gradient_by_rows_cannot_do_is_refused_in_one_line(call):
    error, message = REFUSED[call]
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value) and "\n" not in str(caught.value)
