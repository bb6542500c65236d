"""Arguments that share memory, and what a step writes to them."""

import numpy as np
import pytest

import scratchnet as sn


def fresh():
    return np.arange(12, dtype=np.float32).reshape(4, 3)


def add_to_the_first(x, y):
    x += 1.0
    return x * y


def recorded():
    step = sn.jit(add_to_the_first)
    for _ in range(3):
        step(sn.Tensor(fresh()[:3]), sn.Tensor(fresh()[1:]))
    assert step.programs
    return step


def test_what_a_step_writes_to_an_argument_arrives():
    step, x = recorded(), fresh()
    step(sn.Tensor(x[:3]), sn.Tensor(fresh()[1:]))
    np.testing.assert_array_equal(x[:3], fresh()[:3] + 1.0)
    step(sn.Tensor(x[:3][:, ::-1]), sn.Tensor(fresh()[1:]))
    np.testing.assert_array_equal(x[:3], fresh()[:3] + 2.0)


def test_a_replay_with_arguments_that_overlap_is_the_plain_call():
    step, a, b = recorded(), fresh(), fresh()
    found = step(sn.Tensor(a[:3]), sn.Tensor(a[1:])).numpy()
    expected = add_to_the_first(sn.Tensor(b[:3]), sn.Tensor(b[1:])).numpy()
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(a, b)


def test_arguments_that_overlap_and_are_written_are_not_recorded():
    a = fresh()
    with pytest.raises(sn.JitError, match=r"memory of their own.*shares memory with another one"):
        sn.jit(add_to_the_first)(sn.Tensor(a[:3]), sn.Tensor(a[1:]))
    np.testing.assert_array_equal(a, fresh())


def test_arguments_that_overlap_and_are_only_read_are_recorded():
    step, a = sn.jit(lambda x, y: x * y), fresh()
    for _ in range(3):
        np.testing.assert_array_equal(step(sn.Tensor(a[:3]), sn.Tensor(a[1:])).numpy(), a[:3] * a[1:])
    assert step.programs


@pytest.mark.parametrize("readonly", [np.broadcast_to(np.float32(1), (3, 3)), fresh()[:3]])
def test_writing_to_memory_that_cannot_be_written_is_the_error_of_the_plain_call(readonly):
    readonly.flags.writeable = False
    with pytest.raises(sn.JitError, match="cannot be written"):
        sn.jit(add_to_the_first)(sn.Tensor(readonly), sn.Tensor(fresh()[1:]))
    with pytest.raises(sn.ConfigError, match="changed in place"):
        recorded()(sn.Tensor(readonly), sn.Tensor(fresh()[1:]))


def training(jit):
    sn.manual_seed(0)
    model = sn.nn.Linear(3, 3)
    optimizer = sn.optim.SGD(model.parameters(), 0.1)

    def step(x):
        optimizer.zero_grad()
        (model(x) ** 2).mean().backward()
        optimizer.step()
        return x * 2.0

    return model, (sn.jit(step) if jit else step)


def test_a_parameter_that_is_an_argument_too():
    results = []
    for jit in (False, True):
        model, step = training(jit)
        for _ in range(3):
            step(sn.Tensor(fresh()[:3]))
        results.append([step(model.weight.detach()).numpy().tobytes() for _ in range(3)])
    assert results[0] == results[1]
    model, step = training(True)
    with pytest.raises(sn.JitError, match="shares memory with a tensor that the step uses"):
        step(model.weight.detach())


def test_an_argument_that_python_wrote_to_by_name_is_not_written_back():
    weights = np.ones(3, np.float32)

    def step(x):
        weights[0] += 1
        return x * 2.0

    with pytest.raises(sn.JitError, match="shares memory"):
        sn.jit(step)(weights)
    assert weights[0] == 2.0
