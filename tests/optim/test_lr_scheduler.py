"""Schedules against their closed forms, written out here as PyTorch's documentation gives them."""

import copy
import json
import math
import pickle

import numpy as np
import pytest
from messages import error_line

import scratchnet as sn
from scratchnet.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)  # fmt: skip

BASE = 0.05


def sgd(lr=BASE, **options):
    return sn.optim.SGD([sn.nn.Parameter(np.zeros(2))], lr, **options)


def run(schedule, steps):
    """The learning rate (of the first group) for each of the optimizer's steps."""
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        schedule.step()
    return rates


def one_cycle(low, peak, end, total, pct, anneal):
    """The values of OneCycleLR's two phases: from low to peak at step pct * total - 1, to `end` at total - 1."""
    top = pct * total - 1
    return [
        anneal(low, peak, t / top) if t <= top else anneal(peak, end, (t - top) / (total - 1 - top))
        for t in range(total)
    ]


def cosine(a, b, fraction):
    return (a + b) / 2 + (a - b) / 2 * math.cos(math.pi * fraction)


def line(a, b, fraction):
    return a * (1 - fraction) + b * fraction


# --- values ----------------------------------------------------------------------------------------------------------


def test_step_lr_decays_every_step_size_steps():
    expected = [0.05] * 3 + [0.005] * 3 + [0.0005] * 2
    np.testing.assert_allclose(run(StepLR(sgd(), 3), 8), expected, rtol=1e-12)
    np.testing.assert_allclose(run(StepLR(sgd(), 1, gamma=0.5), 4), [BASE / 2**t for t in range(4)], rtol=1e-12)


def test_cosine_annealing_follows_half_a_cosine():
    expected = [0.01 + (BASE - 0.01) * (1 + math.cos(math.pi * t / 10)) / 2 for t in range(25)]  # it comes back up
    rates = run(CosineAnnealingLR(sgd(), T_max=10, eta_min=0.01), 25)
    np.testing.assert_allclose(rates, expected, rtol=1e-12)
    assert (rates[0], rates[10]) == (BASE, 0.01)


def test_linear_lr_rises_on_a_line_and_stays():
    expected = [0.025, 0.03125, 0.0375, 0.04375, 0.05, 0.05, 0.05]  # the example of PyTorch's documentation
    np.testing.assert_allclose(run(LinearLR(sgd(), start_factor=0.5, total_iters=4), 7), expected, rtol=1e-12)
    down = run(LinearLR(sgd(), start_factor=1.0, end_factor=0.2, total_iters=2), 4)
    np.testing.assert_allclose(down, [BASE, 0.6 * BASE, 0.2 * BASE, 0.2 * BASE], rtol=1e-12)


def test_linear_lr_starts_at_a_third():
    assert LinearLR(sgd()).get_last_lr() == [BASE / 3]


def restarts(t, first, times):
    """(steps since the last restart, length of its period)."""
    while t >= first:
        t, first = t - first, first * times
    return t, first


def warm_then_fall(o):
    return SequentialLR(
        o, [LinearLR(o, 0.1, total_iters=3), ConstantLR(o, 0.5, 2), CosineAnnealingLR(o, 8, 0.01)], [3, 6]
    )


def warmed(t):
    if t < 6:
        return BASE * (line(0.1, 1, t / 3) if t < 3 else 0.5 if t < 5 else 1.0)
    return cosine(BASE, 0.01, (t - 6) / 8)


FORMS = {  # a schedule, and its rate at step t
    "constant": (lambda o: ConstantLR(o, 0.25, 4), lambda t: BASE * (0.25 if t < 4 else 1)),
    "polynomial": (lambda o: PolynomialLR(o, 6, 2.0), lambda t: BASE * (1 - min(t, 6) / 6) ** 2),
    "exponential": (lambda o: ExponentialLR(o, 0.9), lambda t: BASE * 0.9**t),
    "multi step": (lambda o: MultiStepLR(o, [2, 5, 5], 0.1), lambda t: BASE * (1 if t < 2 else 0.1 if t < 5 else 1e-3)),
    "warm restarts": (
        lambda o: CosineAnnealingWarmRestarts(o, 4, eta_min=0.01), lambda t: cosine(BASE, 0.01, (t % 4) / 4)
    ),
    "longer restarts": (
        lambda o: CosineAnnealingWarmRestarts(o, 2, 3),
        lambda t: cosine(BASE, 0, restarts(t, 2, 3)[0] / restarts(t, 2, 3)[1]),
    ),
    "lambda": (lambda o: LambdaLR(o, lambda t: 1 / (1 + t)), lambda t: BASE / (1 + t)),
    "sequential": (warm_then_fall, warmed),
}  # fmt: skip


@pytest.mark.parametrize(("make", "rate"), FORMS.values(), ids=FORMS)
def test_a_schedule_follows_its_closed_form(make, rate):
    np.testing.assert_allclose(run(make(sgd()), 16), [rate(t) for t in range(16)], rtol=1e-12, atol=1e-18)


def test_a_second_schedule_begins_where_the_first_did_unless_the_rate_was_set():
    optimizer = sgd()
    LinearLR(optimizer, 0.1)
    assert optimizer.param_groups[0]["lr"] == 0.1 * BASE and ExponentialLR(optimizer, 0.9).base_lrs == [BASE]
    optimizer.param_groups[0]["lr"] = 3.0
    assert ExponentialLR(copy.deepcopy(optimizer), 0.9).base_lrs == ExponentialLR(optimizer, 0.9).base_lrs == [3.0]


# --- plateaus --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "metrics", "expected"),
    [
        ({"patience": 1}, [3, 2, 2, 2, 2, 2, 2], [1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        ({"patience": 0, "threshold": 0.5}, [4, 3, 1.9, 1], [1, 0.1, 0.1, 0.01]),  # 1 is not below 1.9 / 2
        ({"patience": 0, "threshold": 0.5, "threshold_mode": "abs"}, [4, 3.4, 3, 2.4], [1, 1, 0.1, 0.1]),
        ({"patience": 0, "mode": "max", "threshold": 0.5}, [1, 1.4, 1.6, 2], [1, 0.1, 0.1, 0.01]),
        ({"patience": 0, "cooldown": 2}, [1, 2, 2, 2, 2], [1, 0.1, 0.1, 0.1, 0.01]),
        ({"patience": 0, "factor": 0.5, "min_lr": 0.3}, [1, 1, 1, 1], [1, 0.5, 0.3, 0.3]),
        ({"patience": 0, "factor": 0.5, "eps": 0.3}, [1, 1, 1, 1], [1, 0.5, 0.5, 0.5]),
        ({"patience": 0}, [float("nan"), 1, float("nan")], [0.1, 0.1, 0.01]),
    ],
)
def test_a_rate_falls_where_a_metric_stays(options, metrics, expected):
    optimizer = sgd(1.0)
    schedule, rates = ReduceLROnPlateau(optimizer, **options), []
    for i, metric in enumerate(metrics):
        schedule.step(sn.Tensor(float(metric)) if i % 2 else metric)
        rates.append(optimizer.param_groups[0]["lr"])
        other = ReduceLROnPlateau(sgd(7.0), **options)
        other.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
        assert other.state_dict() == schedule.state_dict() and other.get_last_lr() == [rates[-1]]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


def test_a_plateau_takes_a_number_and_no_recorded_step():
    schedule = ReduceLROnPlateau(sgd())
    with pytest.raises(sn.ConfigError, match="step: expected a number, got None"):
        schedule.step(None)
    with pytest.raises(sn.JitError, match=r"ReduceLROnPlateau\.step"):
        sn.jit(lambda: schedule.step(1.0))()


@pytest.mark.parametrize(("strategy", "anneal"), [("cos", cosine), ("linear", line)])
@pytest.mark.parametrize(("total", "pct"), [(20, 0.3), (100, 0.25), (7, 0.5)])
def test_one_cycle_rises_to_max_lr_and_falls(strategy, anneal, total, pct):
    schedule = OneCycleLR(
        sgd(), 0.4, total, pct_start=pct, anneal_strategy=strategy, div_factor=10, final_div_factor=50
    )
    expected = one_cycle(0.04, 0.4, 0.04 / 50, total, pct, anneal)
    np.testing.assert_allclose(run(schedule, total), expected, rtol=1e-9)


def test_one_cycle_defaults_are_those_of_pytorch():
    schedule = OneCycleLR(sgd(), 1.0, total_steps=10)
    expected = one_cycle(1 / 25, 1.0, 1 / 25 / 1e4, 10, 0.3, cosine)
    rates = run(schedule, 10)
    np.testing.assert_allclose(rates, expected, rtol=1e-9)
    assert rates[2] == max(rates) == 1.0 and rates[9] == min(rates) == pytest.approx(4e-6, rel=1e-12)


@pytest.mark.parametrize("make", [sgd, lambda: sn.optim.RMSprop([sn.nn.Parameter(np.zeros(2))])])
def test_one_cycle_moves_momentum_the_other_way(make):
    optimizer = make()
    schedule = OneCycleLR(optimizer, 1.0, 20, base_momentum=0.8, max_momentum=0.9)
    momenta = []
    for _ in range(20):
        momenta.append(optimizer.param_groups[0]["momentum"])
        schedule.step()
    np.testing.assert_allclose(momenta, one_cycle(0.9, 0.8, 0.9, 20, 0.3, cosine), rtol=1e-12)


def test_one_cycle_moves_the_first_beta_of_adam():
    optimizer = sn.optim.Adam([sn.nn.Parameter(np.zeros(2))], betas=(0.5, 0.99))
    schedule = OneCycleLR(optimizer, 1.0, 20)
    assert optimizer.param_groups[0]["betas"] == (0.95, 0.99)
    run(schedule, 5)
    assert optimizer.param_groups[0]["betas"] == (pytest.approx(0.85), 0.99)


def test_one_cycle_leaves_momentum_alone_on_request():
    optimizer = sgd(momentum=0.7)
    run(OneCycleLR(optimizer, 1.0, 20, cycle_momentum=False), 5)
    assert optimizer.param_groups[0]["momentum"] == 0.7


@pytest.mark.parametrize("pct", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("total", [1, 2, 10])
def test_one_cycle_with_an_empty_phase_is_finite_and_ends_low_or_at_the_top(total, pct):
    rates = run(OneCycleLR(sgd(), 1.0, total, pct_start=pct), total)
    assert np.isfinite(rates).all()
    assert rates[-1] == pytest.approx(1.0 if pct == 1.0 else 4e-6)


def test_one_cycle_refuses_more_steps_than_it_has():
    optimizer = sgd()
    schedule = OneCycleLR(optimizer, 1.0, total_steps=5)
    for _ in range(5):  # the fifth belongs to the optimizer's last step
        schedule.step()
    before = dict(optimizer.param_groups[0])
    with pytest.raises(sn.ConfigError, match="at most total_steps=5"):
        schedule.step()
    assert optimizer.param_groups[0] == before and schedule.last_step == 5


# --- groups, state, refusals -----------------------------------------------------------------------------------------


def test_each_group_has_its_own_base():
    groups = [{"params": sn.nn.Parameter(np.zeros(1)), "lr": lr} for lr in (1.0, 0.1)]
    schedule = StepLR(sn.optim.SGD(groups, lr=0.5), 1)
    schedule.step()
    np.testing.assert_allclose(schedule.get_last_lr(), [0.1, 0.01])
    schedule = OneCycleLR(sn.optim.SGD(groups, lr=0.5), [1.0, 2.0], 10)
    np.testing.assert_allclose(schedule.get_last_lr(), [1 / 25, 2 / 25])


SCHEDULES = [
    *(make for make, _ in FORMS.values()),
    lambda o: StepLR(o, 2, by="epoch"),
    lambda o: CosineAnnealingLR(o, 10),
    lambda o: LinearLR(o),
    lambda o: OneCycleLR(o, 1.0, 20),
]


@pytest.mark.parametrize("make", SCHEDULES)
def test_a_schedule_goes_on_bit_for_bit_from_its_state(make):
    schedule = make(sgd())
    whole = run(schedule, 12)
    schedule = make(sgd())
    run(schedule, 5)
    state = json.loads(json.dumps(schedule.state_dict()))
    optimizer = sgd(lr=7.0)
    other = make(optimizer)
    other.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == whole[5]
    assert run(other, 7) == whole[5:]


@pytest.mark.parametrize("make", [make for make in SCHEDULES if not isinstance(make(sgd()), LambdaLR)])
def test_a_pickled_schedule_goes_on_with_its_own_optimizer(make):
    schedule = make(sgd(momentum=0.9))
    schedule.step()
    other = pickle.loads(pickle.dumps(schedule))
    rates = [schedule.get_last_lr(), other.get_last_lr()]
    for made in (schedule, other):
        made.step()
        rates.append(made.get_last_lr())
    assert rates[0] == rates[1] and rates[2] == rates[3]
    assert other.optimizer is not schedule.optimizer


@pytest.mark.parametrize("make", SCHEDULES)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(make):
    good = make(sgd()).state_dict()
    bad_ones = [
        None,
        {},
        good | {"more": 1},
        good | {"last_step": -1},
        good | {"last_step": "2"},
        good | {"base_lrs": []},
    ]
    bad_ones += [good | {"base_lrs": ["1"]}, good | {"options": good["options"] | {"gamma": 3}}]
    for state in bad_ones:
        schedule = make(sgd())
        with pytest.raises(sn.CheckpointError) as caught:
            schedule.load_state_dict(copy.deepcopy(state))
        assert "\n" not in str(caught.value)
        assert schedule.state_dict() == good


BAD_OPTIONS = [
    lambda: StepLR(sgd(), 0),
    lambda: StepLR(sgd(), 2.5),
    lambda: StepLR(sgd(), 2, gamma=-1),
    lambda: CosineAnnealingLR(sgd(), 0),
    lambda: CosineAnnealingLR(sgd(), 10, eta_min=-1),
    lambda: LinearLR(sgd(), start_factor=-0.1),
    lambda: LinearLR(sgd(), total_iters=0),
    lambda: OneCycleLR(sgd(), -1.0, 10),
    lambda: OneCycleLR(sgd(), [1.0, 2.0], 10),
    lambda: OneCycleLR(sgd(), 1.0, 0),
    lambda: OneCycleLR(sgd(), 1.0, True),
    lambda: OneCycleLR(sgd(), 1.0, 10, pct_start=1.5),
    lambda: OneCycleLR(sgd(), 1.0, 10, anneal_strategy="steep"),
    lambda: OneCycleLR(sgd(), 1.0, 10, div_factor=0),
    lambda: OneCycleLR(sgd(), 1.0, 10, max_momentum=2),
    lambda: OneCycleLR(sgd(), "1", 10),
    lambda: StepLR("sgd", 2),
    lambda: StepLR(sgd(), 2, by="batch"),
    lambda: StepLR(sgd(), 2, by="metric"),
    lambda: ConstantLR(sgd(), -1),
    lambda: PolynomialLR(sgd(), 0),
    lambda: ExponentialLR(sgd(), "0.9"),
    lambda: MultiStepLR(sgd(), [5, 2]),
    lambda: MultiStepLR(sgd(), 5),
    lambda: CosineAnnealingWarmRestarts(sgd(), 0),
    lambda: CosineAnnealingWarmRestarts(sgd(), 2, 0),
    lambda: LambdaLR(sgd(), 0.9),
    lambda: LambdaLR(sgd(), [abs, abs]),
    lambda: LambdaLR(sgd(), lambda t: -1),
    lambda: LambdaLR(sgd(), lambda t: None),
    lambda: SequentialLR(sgd(), [StepLR(sgd(), 2)], []),
    lambda: (lambda o: SequentialLR(o, [StepLR(o, 2)], [1]))(sgd()),
    lambda: (lambda o: SequentialLR(o, [ReduceLROnPlateau(o)], []))(sgd()),
    lambda: SequentialLR(sgd(), [], []),
    lambda: ReduceLROnPlateau(sgd(), mode="least"),
    lambda: ReduceLROnPlateau(sgd(), factor=1.0),
    lambda: ReduceLROnPlateau(sgd(), patience=-1),
    lambda: ReduceLROnPlateau(sgd(), monitor=3),
    lambda: OneCycleLR(None, 1.0, 10),
    lambda: OneCycleLR(sn.optim.Adagrad([sn.nn.Parameter(np.zeros(1))]), 1.0, 10),
]


@pytest.mark.parametrize("make", BAD_OPTIONS)
def test_an_option_out_of_range_is_refused(make):
    with pytest.raises(sn.ConfigError, match=r"expected .*, got "):
        make()


def test_the_printed_form_names_the_options():
    assert repr(StepLR(sgd(), 3)) == "StepLR(step_size=3, gamma=0.1)"


# --- groups that join later ------------------------------------------------------------------------------------------

JOINING = {  # after three steps with a new group of rate 0.5: its rates in the steps 4 to 7, as PyTorch's chained form
    "step": (lambda o: StepLR(o, 2, 0.5), [0.25, 0.25, 0.125, 0.125]),
    "cosine": (
        lambda o: CosineAnnealingLR(o, 8, 0.1),
        [0.1 + 0.4 * cosine(1, 0, t / 8) / cosine(1, 0, 3 / 8) for t in range(4, 8)],
    ),
    "linear": (
        lambda o: LinearLR(o, 0.5, 1.0, 6),
        [0.5 * line(0.5, 1, t / 6) / line(0.5, 1, 0.5) for t in (4, 5, 6, 6)],
    ),
    "sequential": (warm_then_fall, [0.5 / 0.5 * 0.5, 1.0, 1.0, cosine(1.0, 0.01, 1 / 8)]),
    "one cycle": (lambda o: OneCycleLR(o, 0.1, 20), one_cycle(0.004, 0.1, 4e-7, 20, 0.3, cosine)[4:8]),
}


@pytest.mark.parametrize(("make", "expected"), JOINING.values(), ids=JOINING)
def test_a_group_that_is_added_later_joins_with_its_own_rate(make, expected):
    optimizer = sgd(momentum=0.9)
    schedule, alone = make(optimizer), make(sgd(momentum=0.9))
    for _ in range(3):
        schedule.step(), alone.step()
    optimizer.add_param_group({"params": [sn.nn.Parameter(np.zeros(2))], "lr": 0.5})
    rates = []
    for _ in range(4):
        schedule.step(), alone.step()
        rates.append(schedule.get_last_lr()[1])
        assert schedule.get_last_lr()[0] == alone.get_last_lr()[0]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)
    other = sgd(momentum=0.9)
    again = make(other)
    other.add_param_group({"params": [sn.nn.Parameter(np.zeros(2))], "lr": 0.5})
    again.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
    schedule.step(), again.step()
    assert again.get_last_lr() == schedule.get_last_lr()


def test_one_rate_a_group_leaves_none_for_a_group_that_joins():
    optimizer = sgd(momentum=0.9)
    schedule = OneCycleLR(optimizer, [0.1], 20)
    optimizer.add_param_group({"params": [sn.nn.Parameter(np.zeros(2))]})
    with pytest.raises(sn.ConfigError, match=r"OneCycleLR: expected 1 groups, one a max_lr, got 1 more") as error:
        schedule.step()
    error_line(error)


def test_the_options_of_a_schedule_are_fixed():
    for schedule, name in (
        (StepLR(sgd(), 3), "gamma"),
        (StepLR(sgd(), 3), "last_epoch"),
        (OneCycleLR(sgd(momentum=0.5), 1.0, 9), "max_lr"),
    ):
        with pytest.raises(sn.UnknownAttributeError, match=rf"{name}: expected") as error:
            setattr(schedule, name, 1)
        error_line(error)


def test_functions_are_not_saved_but_others_are_noticed():
    schedule = LambdaLR(sgd(), lambda t: 0.5**t)
    run(schedule, 3)
    state = json.loads(json.dumps(schedule.state_dict()))
    other = LambdaLR(sgd(), lambda t: 0.4**t)
    with pytest.raises(sn.CheckpointError, match="expected the functions that gave the rates") as error:
        other.load_state_dict(state)
    error_line(error)
    assert other.get_last_lr() == [BASE] and other.last_step == 0
    groups = [{"params": sn.nn.Parameter(np.zeros(1)), "lr": lr} for lr in (1.0, 0.1)]
    schedule = LambdaLR(sn.optim.SGD(groups, lr=0.5), [lambda t: 1 + t, lambda t: 2.0])
    schedule.step()
    assert schedule.get_last_lr() == [2.0, 0.2]
    schedule.optimizer.add_param_group({"params": sn.nn.Parameter(np.zeros(1))})
    with pytest.raises(sn.ConfigError, match="2 groups, one a function, got 1 more"):
        schedule.step()


def test_a_recorded_step_moves_every_schedule():
    for make, rate in FORMS.values():
        optimizer = sgd()
        schedule, p = make(optimizer), optimizer.states[0].param

        @sn.jit
        def step(x, optimizer=optimizer, schedule=schedule, p=p):
            optimizer.zero_grad()
            (p * x).sum().backward()
            optimizer.step()
            schedule.step()
            return x

        for _ in range(7):
            step(sn.Tensor(np.ones(2)))
        np.testing.assert_allclose(schedule.get_last_lr(), [rate(7)], rtol=1e-12)
        np.testing.assert_allclose(-p.detach().numpy(), [sum(rate(t) for t in range(7))] * 2, rtol=1e-12)
