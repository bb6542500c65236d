"""A series does what its calls do one by one: values, effects, errors, and what is left where it ends early."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import JIT

import scratchnet as sn
from scratchnet.jit import series as module
from scratchnet.jit.step import Step
from scratchnet.random import Generator, using

pytestmark = pytest.mark.skipif(not JIT, reason="nothing is compiled")
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((400, 24)).astype(np.float32), RNG.integers(0, 10, 400)
ROWS = [RNG.integers(0, 400, 32) for _ in range(70)]
OPTIMIZERS = {
    "SGD": lambda p: sn.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "Adam": lambda p: sn.optim.Adam(p, 0.01),
    "AdamW": lambda p: sn.optim.AdamW(p, 0.01),
    "RMSprop": lambda p: sn.optim.RMSprop(p, 0.01),
}


class Training:
    """A step that gathers its rows, as a Trainer's does; it has random numbers, a schedule, and two results."""

    def __init__(self, optimizer="Adam", dropout=0.3, width=64, labels=Y):
        sn.manual_seed(1)
        dropout = [sn.nn.Dropout(dropout)] if dropout else []
        self.model = sn.nn.Sequential(sn.nn.Linear(24, width), sn.nn.ReLU(), *dropout, sn.nn.Linear(width, 10))
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.schedule = sn.optim.lr_scheduler.StepLR(self.optimizer, 3)
        self.data, self.random = sn.data.TensorDataset(X, labels), Generator(7)
        self.step = Step(self.ordinary_step, relies_on=(self.model, self.optimizer))
        self.begun = []

    def ordinary_step(self, rows):
        self.optimizer.zero_grad()
        x, y = self.data._select(rows)
        losses = sn.nn.functional.cross_entropy(self.model(x), y, reduction="none")
        losses.mean().backward()
        self.optimizer.step()
        self.schedule.step()
        return losses.mean(), {"each": losses}

    def one_by_one(self, calls):
        with using(self.random):
            return [self.step(*call) for call in calls]

    def together(self, calls):
        with using(self.random):
            return list(self.step.series(calls, self.begun.append))

    def state(self):
        arrays = [*self.model.state_dict().values(), *(x for s in self.optimizer.states for x in s.arrays)]
        numbers = [s.step for s in self.optimizer.states], self.schedule.last_step, self.random.stream
        return [x.tobytes() for x in arrays], numbers, self.optimizer.param_groups[0]["lr"]


def calls_of(rows):
    return [(sn.Tensor(numbers),) for numbers in rows]


def numbers_in(results):
    return [(loss.item(), found["each"].numpy().tobytes()) for loss, found in results]


@pytest.fixture
def turns(monkeypatch):
    """How many turns each compiled call of a series did."""
    done, run = [], module.Series.run

    def counted(self, *args):
        done.append(run(self, *args))
        return done[-1]

    monkeypatch.setattr(module.Series, "run", counted)
    return done


@settings(max_examples=25, deadline=None)
@given(
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    dropout=st.sampled_from([0.0, 0.3]),
    width=st.sampled_from([5, 40, 64]),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    threads=st.sampled_from([1, sn.get_num_threads()]),
)
def test_a_series_has_the_bits_of_its_calls(lengths, threads, **options):
    alone, together, before = Training(**options), Training(**options), sn.get_num_threads()
    try:
        for i, length in enumerate(lengths):
            sn.set_num_threads(threads if i % 2 else before)  # a program is arranged anew
            calls = calls_of((ROWS * 3)[sum(lengths[:i]) :][:length])
            assert numbers_in(together.together(calls)) == numbers_in(alone.one_by_one(calls))
            assert together.state() == alone.state()
    finally:
        sn.set_num_threads(before)


def test_most_steps_are_done_in_one_compiled_call(turns):
    training = Training()
    training.together(calls_of(ROWS))
    assert turns == [32, 32, 4]  # after two that were recorded
    assert training.begun == list(range(70))
    training.together(calls_of(ROWS[:1]))  # as the last batch of an epoch, which is shorter than the others
    assert turns[3:] == [1] and training.begun[70:] == [0]


def test_calls_of_other_shapes_are_series_of_their_own(turns):
    rows = [*ROWS[:8], *[numbers[:7] for numbers in ROWS[8:16]], *ROWS[16:24]]
    alone, together = Training(), Training()
    assert numbers_in(together.together(calls_of(rows))) == numbers_in(alone.one_by_one(calls_of(rows)))
    assert turns == [6, 6, 8] and together.state() == alone.state()


def test_a_guard_ends_a_series_and_what_is_left_is_what_the_steps_before_it_left(turns):
    labels = Y.copy()
    labels[ROWS[9][5]] = 10
    first = next(i for i, rows in enumerate(ROWS) if ROWS[9][5] in rows)
    assert first > 3
    alone, together = Training(labels=labels), Training(labels=labels)
    with using(together.random):
        series = together.step.series(calls_of(ROWS), together.begun.append)
        results = [next(series) for _ in range(first)]
        with pytest.raises(sn.IndexOutOfRangeError):
            next(series)
    assert numbers_in(results) == numbers_in(alone.one_by_one(calls_of(ROWS[:first])))
    with pytest.raises(sn.IndexOutOfRangeError):
        alone.one_by_one(calls_of(ROWS[first : first + 1]))
    assert turns[0] == first - 2 and together.state() == alone.state()
    good = calls_of([rows for rows in ROWS if ROWS[9][5] not in rows][:6])
    assert numbers_in(together.together(good)) == numbers_in(alone.one_by_one(good))
    assert together.state() == alone.state()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_before_a_step_leaves_no_step_half_done(error):
    together = Training()
    together.together(calls_of(ROWS[:4]))
    state = together.state()

    def begin(i):
        if i == 3:
            raise error

    with pytest.raises(error), using(together.random):
        list(together.step.series(calls_of(ROWS[4:12]), begin))
    assert together.state()[:2][1][0] == state[1][0] and together.state()[0] == state[0]


def test_an_effect_that_fails_ends_a_series_before_its_step(monkeypatch):
    alone, together = Training(dropout=0), Training(dropout=0)
    numbers = sn.optim.Adam.numbers

    def failing(self, group, step):
        if step == 9:
            raise ValueError("nine")
        return numbers(self, group, step)

    monkeypatch.setattr(sn.optim.Adam, "numbers", failing)
    for training, way in ((alone, alone.one_by_one), (together, together.together)):
        with pytest.raises(ValueError, match="nine"):
            way(calls_of(ROWS[:20]))
        assert {s.step for s in training.optimizer.states} == {8}
    assert together.state()[0] == alone.state()[0]


def test_a_value_that_changed_is_noticed_between_two_series():
    alone, together = Training(), Training()
    for training, way in ((alone, alone.one_by_one), (together, together.together)):
        way(calls_of(ROWS[:10]))
        training.model.eval()
        way(calls_of(ROWS[10:20]))
    assert together.state() == alone.state()


@pytest.mark.parametrize("reads_before", [True, False])
def test_a_schedule_whose_function_sets_what_the_step_reads_ends_a_series(turns, reads_before):
    def made():
        training, scale = Training(dropout=0), [1.0]
        ordinary_step = training.ordinary_step

        def rate(step):
            scale[0] = 1.0 + step // 20
            return 1.0

        def scaled(rows):
            factor = scale[0]
            loss, found = ordinary_step(rows)  # which ends with the schedule
            return loss * (factor if reads_before else scale[0]), found

        training.schedule = sn.optim.lr_scheduler.LambdaLR(training.optimizer, rate)
        training.step = Step(scaled, relies_on=(training.model, training.optimizer))
        return training

    together, alone, plain = made(), made(), made()
    found = numbers_in(together.together(calls_of(ROWS)))
    expected = [plain.step.function(*call) for call in calls_of(ROWS)]
    assert found == [(loss.item(), by_row["each"].detach().numpy().tobytes()) for loss, by_row in expected]
    assert found == numbers_in(alone.one_by_one(calls_of(ROWS)))
    assert together.state()[1:] == alone.state()[1:] == plain.state()[1:]
    assert turns[0] == 17  # after two that were recorded; the schedule of the next one sets it


def test_a_gradient_that_is_added_to_keeps_a_step_out_of_a_series(turns):
    layer = sn.nn.Linear(3, 2)
    step = sn.jit(lambda x: layer(x).sum().backward())
    list(step.series([(sn.Tensor(np.ones((2, 3), np.float32)),)] * 5, lambda i: None))
    assert not turns and (layer.weight.grad.numpy() == 10).all()


def test_a_gradient_that_stays_is_that_of_the_last_step(turns):
    layer = sn.nn.Linear(3, 2)

    def step(x):
        layer.zero_grad()
        layer(x).sum().backward()

    list(sn.jit(step).series([(sn.Tensor(np.full((2, 3), i, np.float32)),) for i in range(6)], lambda i: None))
    assert turns == [4] and (layer.weight.grad.numpy() == 10).all()


def test_results_are_tensors_of_their_own_and_arguments_are_themselves():
    step = sn.jit(lambda x: (x, x * 2.0))
    calls = [(sn.Tensor(np.full(3, i, np.float32)),) for i in range(6)]
    results = list(step.series(calls, lambda i: None))
    assert [r.numpy().tolist() for _, r in results] == [[2.0 * i] * 3 for i in range(6)]
    assert [x.numpy().tolist() for x, _ in results] == [[float(i)] * 3 for i in range(6)]


@pytest.mark.threads
@pytest.mark.skipif(sn.get_num_threads() < 2, reason="there is one thread")
def test_a_series_runs_on_the_number_of_threads_that_takes_less_time_and_tries_the_other_again(monkeypatch):
    training = Training(width=640)
    training.one_by_one(calls_of(ROWS[:2]))
    (recorded,) = training.step._recorded.popitem()[1]
    series, now, seen = recorded.series(), [0.0], []
    assert series._seconds == {True: 0.0, False: 0.0}, (sn.get_num_threads(), series._executable.work)
    seconds = {True: 3.0, False: 2.0}

    def run_turns(places, addresses, shared):
        seen.append(shared)
        now[0] += seconds[shared] * len(addresses)

    monkeypatch.setattr(series._executable, "run_turns", run_turns)
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def run_many():
        mosts = []
        for _ in range(2 * module.TRIAL):
            shared, most = series._choice()
            series._run_turns(np.zeros((most, 0), np.int64), shared)
            mosts.append(most)
        return mosts

    mosts = run_many()
    assert seen[:4] == [False, True, False, False] and seen.count(True) == 2 and seen[module.TRIAL]
    assert [i for i, most in enumerate(mosts) if most < module.TURNS] == [0, module.TRIAL]  # a trial is short
    seconds[False] = 4.0  # another program has come to this core
    run_many()
    assert seen[-2]


def test_a_call_after_a_series_reads_the_argument_that_it_had_before(turns):
    step, x = sn.jit(lambda x: x * 2.0), sn.Tensor(np.full(3, 7, np.float32))
    for _ in range(3):
        step(x)
    list(step.series([(sn.Tensor(np.full(3, i, np.float32)),) for i in range(6)], lambda i: None))
    assert turns == [6] and step(x).numpy().tolist() == [14.0] * 3


@pytest.mark.threads
@pytest.mark.skipif(sn.get_num_threads() < 2, reason="there is one thread")
def test_a_trial_is_short_and_the_next_run_goes_on_where_it_ended(turns):
    ours, plain = Training(width=640), Training(width=640)
    assert numbers_in(ours.together(calls_of(ROWS))) == numbers_in(plain.one_by_one(calls_of(ROWS)))
    assert ours.state() == plain.state() and turns == [module.PROBE, module.TURNS, 68 - module.PROBE - module.TURNS]


@pytest.mark.threads
def test_all_threads_run_a_series_of_large_steps(monkeypatch):
    training = Training(width=640)
    training.one_by_one(calls_of(ROWS[:2]))
    (recorded,) = training.step._recorded.popitem()[1]
    monkeypatch.setattr(module, "LIGHT", 0)
    series = module.Series.of(recorded.program, recorded.results.memory)
    assert list(series._seconds) == [series._executable.shared]
