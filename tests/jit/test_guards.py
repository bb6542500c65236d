"""A recorded step meets what it was not recorded with: it has the values, effects and errors of the plain call."""

import numpy as np
import pytest
from sizes import JIT

import scratchnet as sn

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((96, 40)).astype(np.float32), RNG.integers(0, 10, 96)


def state_of(model, optimizer):
    arrays = [*model.state_dict().values(), *(x for s in optimizer.states for x in s.arrays)]
    return [x.tobytes() for x in arrays], [s.step for s in optimizer.states]


def network(seed=0, norm=False):
    """Large enough that a step has several stages, and with a state of the optimizer."""
    sn.manual_seed(seed)
    layers = [sn.nn.Linear(40, 64), *[sn.nn.BatchNorm1d(64)] * norm, sn.nn.ReLU(), sn.nn.Linear(64, 10)]
    model = sn.nn.Sequential(*layers)
    return model, sn.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def training_step(model, optimizer):
    def step(x, y):
        loss = sn.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def test_a_bad_label_in_a_step_of_several_stages_changes_nothing():
    model, optimizer = network()
    step = sn.jit(training_step(model, optimizer))
    for _ in range(3):
        step(sn.Tensor(X), sn.Tensor(Y))
    before, labels = state_of(model, optimizer), Y.copy()
    labels[-1] = 10
    with pytest.raises(sn.IndexOutOfRangeError):
        step(sn.Tensor(X), sn.Tensor(labels))
    assert state_of(model, optimizer) == before
    step(sn.Tensor(X), sn.Tensor(Y))
    assert state_of(model, optimizer) != before


def test_an_index_far_outside_stops_a_recorded_step_before_it_is_used():
    """The rows of a guard and those of its readers are one block, of which the rest is not run."""
    table = sn.nn.Embedding(50, 8)

    @sn.jit
    def looked_up(index):
        return table(index) * 2.0

    index = RNG.integers(0, 50, 64)
    for _ in range(3):
        looked_up(sn.Tensor(index))
    if JIT:
        (executable,) = looked_up.programs[0].executables
        assert [task.loop.name for task in executable.kept][:2] == ["in_range", "take_rows"]
        assert len(executable.stages) == 1
    with pytest.raises(sn.IndexOutOfRangeError):
        looked_up(sn.Tensor(np.where(np.arange(64) == 40, 2**48, index)))  # to read there ends the process


def slow_loss(outputs, labels):
    """Its value takes more stages than its gradient, so nothing but the guard itself holds updates back."""
    slow = outputs.detach()
    for _ in range(3):
        slow = slow @ (slow.T @ slow) * 0.01
    return sn.nn.functional.cross_entropy(outputs, labels) + slow.mean()


@pytest.mark.threads
@pytest.mark.parametrize("loss", [sn.nn.CrossEntropyLoss(), slow_loss])
def test_a_loss_that_is_not_finite_in_a_step_of_several_stages_changes_nothing(loss):
    """Of a recorded run, the third batch is bad: what is left is what two batches gave."""
    x, y = np.concatenate([X, X, X]), np.concatenate([Y, Y, Y])
    x[2 * 96 + 50] = 3e38  # products of it overflow
    results = []
    for rows in (2 * 96, 3 * 96):
        model, optimizer = network()
        loader = sn.data.DataLoader(sn.data.TensorDataset(x[:rows], y[:rows]), 96)
        trainer = sn.Trainer(model, optimizer, loss, progress=False)
        if rows == 2 * 96:
            trainer.fit(loader)
        else:
            with pytest.raises(sn.NonFiniteError, match="step 2"):
                trainer.fit(loader)
        results.append(state_of(model, optimizer))
    assert results[0] == results[1]


def test_a_step_recorded_with_gradients_refuses_to_run_without():
    plain, recorded = network(), network()
    steps = training_step(*plain), sn.jit(training_step(*recorded))
    for step in steps:
        for _ in range(3):
            step(sn.Tensor(X), sn.Tensor(Y))
        with sn.no_grad(), pytest.raises(sn.GradientError):
            step(sn.Tensor(X), sn.Tensor(Y))
    for step in steps:
        step(sn.Tensor(X), sn.Tensor(Y))
    assert state_of(*plain) == state_of(*recorded)


def load_another(model):
    model.load_state_dict({name: x + np.float32(0.5) for name, x in model.state_dict().items()})


def replace_buffers(model):
    for module in model.modules():
        if isinstance(module, sn.nn.BatchNorm1d):
            module.running_mean = sn.nn.Buffer(np.full(64, 2, np.float32))


def move(model):
    """To other memory, with the same numbers: whoever writes to the old memory writes to nobody's."""
    model.double().float()


@pytest.mark.threads
@pytest.mark.parametrize("change", [load_another, replace_buffers, move])
def test_buffers_that_are_loaded_or_replaced_are_followed(change):
    plain, recorded = network(norm=True), network(norm=True)
    for (model, _), step in ((plain, training_step(*plain)), (recorded, sn.jit(training_step(*recorded)))):
        for _ in range(3):
            step(sn.Tensor(X), sn.Tensor(Y))
        change(model)
        for _ in range(3):
            step(sn.Tensor(X), sn.Tensor(Y))
    assert state_of(*plain) == state_of(*recorded)


def test_parameters_that_no_longer_share_a_count_of_steps_have_their_own():
    def trained(jit):
        sn.manual_seed(0)
        layer = sn.nn.Linear(4, 2)
        optimizer = sn.optim.Adam(layer.parameters(), 0.1)

        def plain(x):
            optimizer.zero_grad()
            (layer(x) ** 2.0).mean().backward()
            optimizer.step()

        step = sn.jit(plain) if jit else plain
        for i in range(9):
            step(sn.Tensor(X[:8, :4]))
            if i == 3:
                state = optimizer.state_dict()
                state["state"][1]["step"] = 1  # as if the bias had been frozen
                optimizer.load_state_dict(state)
        assert [s.step for s in optimizer.states] == [9, 6]
        return state_of(layer, optimizer)

    assert trained(True) == trained(False)


def through(step, jit, indices):
    """What calls of the step give, or raise."""
    step, found = sn.jit(step) if jit else step, []
    for index in indices:
        try:
            found.append(step(sn.Tensor(np.array(index))).numpy().tolist())
        except sn.IndexOutOfRangeError as error:
            found.append(str(error))
    return found


def test_what_a_step_changes_before_it_checks_its_own_values_is_changed_once():
    def of(jit):
        labels, table = sn.Tensor(np.array([0, 1, 2, 9])), sn.Tensor(np.arange(5, dtype=np.float32))
        weight, model = sn.Tensor(np.zeros(3, np.float32)), sn.nn.BatchNorm1d(3)

        def step(index):
            weight.add_(1.0)
            model(weight.reshape(1, 3) * [[1.0], [3.0]])
            return table[labels[index]].sum()

        found = through(step, jit, [[0, 1]] * 4 + [[0, 3]] + [[0, 2]] * 2)
        return found, weight.numpy().tolist(), [x.numpy().tolist() for _, x in model.named_buffers()]

    assert of(True) == of(False)
    assert of(True)[1] == [7.0] * 3


def test_what_may_wait_for_all_checks_is_not_copied_for_them():
    labels, table, model = sn.Tensor(np.arange(4)), sn.Tensor(np.ones(5, np.float32)), sn.nn.BatchNorm1d(4)
    step = sn.jit(lambda x, index: model(x).sum() + table[labels[index]].sum())
    for _ in range(3):
        step(sn.Tensor(X[:8, :4]), sn.Tensor(np.array([0, 1])))
    ((recorded,),) = step._recorded.values()
    assert not recorded.program.early


def test_a_check_of_what_the_step_has_changed_sees_the_change_and_takes_it_back():
    def of(jit):
        table, rows = sn.Tensor(np.arange(50, dtype=np.float32)), sn.Tensor(np.zeros(2, np.int64))

        def step(more):
            rows.add_(more)
            return table[rows].sum()

        return through(step, jit, [[1, 1]] * 4 + [[60, 1], [-60, 1], [1, 1]]), rows.numpy().tolist()

    assert of(True) == of(False)


def test_statistics_of_a_trainer_have_a_bad_batch_once_with_jit_and_without():
    def of(jit):
        sn.manual_seed(0)
        x, y = X[:, :4], np.where(np.arange(96) == 85, 5, Y % 5)
        model = sn.nn.Sequential(sn.nn.BatchNorm1d(4, momentum=0.5), sn.nn.Linear(4, 5))
        optimizer = sn.optim.SGD(model.parameters(), 0.1)
        trainer = sn.Trainer(model, optimizer, sn.nn.CrossEntropyLoss(), jit=jit, progress=False)
        with pytest.raises(sn.IndexOutOfRangeError):
            trainer.fit(sn.data.DataLoader(sn.data.TensorDataset(x, y), 8), epochs=1)
        return state_of(model, optimizer)

    assert of(True) == of(False)
