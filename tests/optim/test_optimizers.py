"""Optimizers against their published formulas, written out again here in float64; groups, state and refusals."""

import copy
import json
import pickle

import numpy as np
import pytest

import scratchnet as sn
from scratchnet.formats import checkpoint

SGD, Adam, AdamW, RMSprop = sn.optim.SGD, sn.optim.Adam, sn.optim.AdamW, sn.optim.RMSprop
Adagrad, Adadelta = sn.optim.Adagrad, sn.optim.Adadelta
STEPS = 6

# --- the update rules, as the papers and PyTorch's documentation give them: one step a yield, starting from p --------


def sgd_rule(p, gradients, lr, momentum=0.0, nesterov=False, weight_decay=0.0):
    buffer = None
    for g in gradients:
        g = g + weight_decay * p
        if momentum:
            buffer = g if buffer is None else momentum * buffer + g  # the first step starts the buffer with g itself
            g = g + momentum * buffer if nesterov else buffer
        p = p - lr * g
        yield p


def adam_rule(p, gradients, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled=False, amsgrad=False):
    m = v = largest = np.zeros_like(p)
    for t, g in enumerate(gradients, start=1):
        if decoupled:
            p = p - lr * weight_decay * p
        else:
            g = g + weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        largest = np.maximum(largest, v) if amsgrad else v
        m_hat, v_hat = m / (1 - betas[0] ** t), largest / (1 - betas[1] ** t)
        p = p - lr * m_hat / (np.sqrt(v_hat) + eps)
        yield p


def adamw_rule(p, gradients, weight_decay=0.01, **options):
    return adam_rule(p, gradients, weight_decay=weight_decay, decoupled=True, **options)


def rmsprop_rule(p, gradients, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0):
    v = buffer = np.zeros_like(p)
    for g in gradients:
        g = g + weight_decay * p
        v = alpha * v + (1 - alpha) * g**2
        buffer = momentum * buffer + g / (np.sqrt(v) + eps)
        p = p - lr * buffer
        yield p


def adagrad_rule(p, gradients, lr=1e-2, lr_decay=0.0, weight_decay=0.0, initial_accumulator_value=0.0, eps=1e-10):
    total = np.full_like(p, initial_accumulator_value)
    for t, g in enumerate(gradients, start=1):
        g = g + weight_decay * p
        total = total + g**2
        p = p - lr / (1 + (t - 1) * lr_decay) * g / (np.sqrt(total) + eps)
        yield p


def adadelta_rule(p, gradients, lr=1.0, rho=0.9, eps=1e-6, weight_decay=0.0):
    v = u = np.zeros_like(p)
    for g in gradients:
        g = g + weight_decay * p
        v = rho * v + (1 - rho) * g**2
        delta = np.sqrt(u + eps) / np.sqrt(v + eps) * g
        u = rho * u + (1 - rho) * delta**2
        p = p - lr * delta
        yield p


def climbing(rule):
    """The rule on the negated gradients, as PyTorch's documentation defines maximize."""
    return lambda p, gradients, maximize, **options: rule(p, [-g for g in gradients], **options)


RULES = [
    (SGD, sgd_rule, {"lr": 0.1}),
    (SGD, sgd_rule, {"lr": 0.1, "momentum": 0.9}),
    (SGD, sgd_rule, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (SGD, sgd_rule, {"lr": 0.1, "weight_decay": 0.3}),
    (SGD, sgd_rule, {"lr": 0.1, "momentum": 0.5, "nesterov": True, "weight_decay": 0.3}),
    (Adam, adam_rule, {}),
    (Adam, adam_rule, {"lr": 0.1, "betas": (0.5, 0.8), "eps": 0.01}),
    (Adam, adam_rule, {"lr": 0.1, "weight_decay": 0.3}),
    (AdamW, adamw_rule, {}),
    (AdamW, adamw_rule, {"lr": 0.1, "betas": (0.5, 0.8), "eps": 0.01, "weight_decay": 0.3}),
    (RMSprop, rmsprop_rule, {}),
    (RMSprop, rmsprop_rule, {"lr": 0.1, "alpha": 0.5, "eps": 0.01}),
    (RMSprop, rmsprop_rule, {"lr": 0.1, "weight_decay": 0.3, "momentum": 0.9}),
    (Adam, adam_rule, {"lr": 0.1, "betas": (0.5, 0.3), "weight_decay": 0.3, "amsgrad": True}),
    (AdamW, adamw_rule, {"lr": 0.1, "betas": (0.5, 0.3), "weight_decay": 0.3, "amsgrad": True}),
    (Adagrad, adagrad_rule, {}),
    (
        Adagrad,
        adagrad_rule,
        {"lr": 0.1, "lr_decay": 0.2, "weight_decay": 0.3, "initial_accumulator_value": 0.5, "eps": 0.01},
    ),
    (Adadelta, adadelta_rule, {}),
    (Adadelta, adadelta_rule, {"lr": 0.5, "rho": 0.5, "eps": 1e-3, "weight_decay": 0.3}),
    (SGD, climbing(sgd_rule), {"lr": 0.1, "momentum": 0.5, "nesterov": True, "weight_decay": 0.3, "maximize": True}),
    (Adam, climbing(adam_rule), {"lr": 0.1, "weight_decay": 0.3, "amsgrad": True, "maximize": True}),
    (AdamW, climbing(adamw_rule), {"lr": 0.1, "weight_decay": 0.3, "maximize": True}),
    (RMSprop, climbing(rmsprop_rule), {"lr": 0.1, "weight_decay": 0.3, "momentum": 0.9, "maximize": True}),
    (Adagrad, climbing(adagrad_rule), {"lr": 0.1, "weight_decay": 0.3, "maximize": True}),
    (Adadelta, climbing(adadelta_rule), {"weight_decay": 0.3, "maximize": True}),
]
rules = pytest.mark.parametrize(
    ("optimizer", "rule", "options"), RULES, ids=[f"{o.__name__}-{','.join(k)}" for o, _, k in RULES]
)
every = pytest.mark.parametrize("optimizer", [SGD, Adam, AdamW, RMSprop, Adagrad, Adadelta])


def parameter(shape=(3, 5), dtype=np.float64, seed=0):
    return sn.nn.Parameter(np.random.default_rng(seed).standard_normal(shape).astype(dtype))


def random_gradients(param, steps=STEPS, seed=1):
    return list(np.random.default_rng(seed).standard_normal((steps, *param.shape)).astype(param.dtype))


def take(optimizer, param, gradients):
    """One step a gradient; the parameter's values after each."""
    for g in gradients:
        param.grad = sn.Tensor(g, device=param.device)
        optimizer.step()
        yield param.detach().numpy().copy()


def make(optimizer, params, **options):
    return optimizer(params, **{"lr": 0.1} | options)


# --- the rules -------------------------------------------------------------------------------------------------------


@rules
def test_each_step_follows_the_formula(optimizer, rule, options, device):
    p = parameter()
    gradients = random_gradients(p)
    expected = list(rule(p.detach().numpy().copy(), gradients, **options))
    for got, want in zip(take(optimizer([p], **options), p, gradients), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)


@rules
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (33,), (2, 3, 4)])
def test_float32_parameters_of_any_shape_follow_the_formula(optimizer, rule, options, shape):
    p = parameter(shape, np.float32)
    gradients = random_gradients(p)
    expected = list(rule(p.detach().numpy().astype(np.float64), gradients, **options))
    for got, want in zip(take(optimizer([p], **options), p, gradients), expected, strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)  # 6 steps, a few rounded operations each


def test_defaults_are_those_of_pytorch():
    p = [parameter()]
    assert SGD(p, 0.1).defaults == {"lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    assert Adam(p).defaults == {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    assert AdamW(p).defaults == {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
    assert Adagrad(p).defaults == {"lr": 0.01, "lr_decay": 0.0, "weight_decay": 0.0, "eps": 1e-10}
    assert Adadelta(p).defaults == {"lr": 1.0, "rho": 0.9, "eps": 1e-6, "weight_decay": 0.0}
    assert RMSprop(p).defaults == {"lr": 0.01, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0}


@pytest.mark.parametrize("optimizer", [SGD, Adam, AdamW, RMSprop, Adagrad])  # Adadelta's steps do not get shorter
def test_a_least_squares_problem_is_solved(optimizer):
    rng = np.random.default_rng(0)
    x, solution = rng.standard_normal((64, 4)), rng.standard_normal((4, 1))
    w = sn.nn.Parameter(np.zeros((4, 1)))
    optimizer = optimizer([w], lr={Adagrad: 0.5}.get(optimizer, 0.02))
    for _ in range(600):
        optimizer.zero_grad()
        ((x @ w - x @ solution) ** 2).mean().backward()
        optimizer.step()
    np.testing.assert_allclose(w.detach().numpy(), solution, atol=0.03)


# --- closures, climbing, variants -------------------------------------------------------------------------------------


@every
def test_a_step_calls_its_closure_first_and_returns_what_that_returns(optimizer):
    p, q = parameter(), parameter()
    one, two = make(optimizer, [p]), make(optimizer, [q])

    def closure():
        one.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    with sn.no_grad():  # the closure records all the same
        first = one.step(closure)
    (q * q).sum().backward()
    assert two.step() is None and first.item() == (q.grad.numpy() ** 2).sum() / 4
    np.testing.assert_array_equal(p.detach().numpy(), q.detach().numpy())
    with pytest.raises(sn.ConfigError, match="step: expected a function, got 3"):
        one.step(3)


@rules
def test_a_recorded_step_has_the_bits_of_the_plain_one(optimizer, rule, options):
    x = sn.Tensor(np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32))

    def run(record):
        p = parameter((3, 5), np.float32)
        own = optimizer([p], **options)

        def step(x):
            own.zero_grad()
            loss = ((x @ p) ** 2).mean()
            loss.backward()
            own.step()
            return loss

        step = record(step)
        return [step(x).detach().numpy().tobytes() for _ in range(4)], p.detach().numpy().tobytes()

    assert run(sn.jit) == run(lambda step: step)


def test_zero_grad_may_fill_with_0():
    p = parameter()
    optimizer = SGD([p], 0.1)
    (p * p).sum().backward()
    held = p.grad
    optimizer.zero_grad(set_to_none=False)
    assert p.grad is held and not held.numpy().any()


@pytest.mark.parametrize(("option", "optimizers"), [("maximize", (SGD, Adam, Adagrad)), ("amsgrad", (Adam, AdamW))])
def test_what_an_optimizer_is_made_with_stays(option, optimizers):
    for optimizer in optimizers:
        p = parameter()
        own = make(optimizer, [p], **{option: True})
        assert getattr(own, option) is True
        list(take(own, p, random_gradients(p, 2)))
        with pytest.raises(
            sn.UnknownAttributeError, match=f"expected a new {optimizer.__name__} with another {option}"
        ):
            setattr(own, option, False)
        other = make(optimizer, [parameter()], **{option: True})
        other.load_state_dict(own.state_dict())
        for plain, state in (
            (make(optimizer, [parameter()]), own.state_dict()),
            (own, make(optimizer, [p]).state_dict()),
        ):
            with pytest.raises(sn.CheckpointError, match=r"maximize: expected|v_max"):
                plain.load_state_dict(state)
    assert repr(SGD([p], 0.1, maximize=True)).endswith("weight_decay=0.0, maximize=True)")
    assert "maximize" not in SGD([p], 0.1).state_dict()


# --- what a step touches ---------------------------------------------------------------------------------------------


@every
def test_a_parameter_without_gradient_keeps_value_and_state(optimizer):
    used, unused = parameter(), parameter(seed=2)
    before = unused.detach().numpy().copy()
    optimizer = make(optimizer, [used, unused])
    list(take(optimizer, used, random_gradients(used)))
    np.testing.assert_array_equal(unused.detach().numpy(), before)
    assert [state["step"] for state in optimizer.state_dict()["state"]] == [STEPS, 0]


@rules
def test_a_parameter_that_joins_late_counts_its_own_steps(optimizer, rule, options):
    early, late = parameter(), parameter(seed=2)
    start, gradients = late.detach().numpy().copy(), random_gradients(late)
    optimizer = optimizer([early, late], **options)
    list(take(optimizer, early, random_gradients(early)))
    early.grad = None
    *_, last = take(optimizer, late, gradients)
    *_, expected = rule(start, gradients, **options)
    np.testing.assert_allclose(last, expected, rtol=1e-12)


@rules
@pytest.mark.parametrize("first", [0, 1])
def test_steps_are_counted_for_each_parameter_of_a_group(optimizer, rule, options, first):
    """One of two parameters gets its first gradient two steps later, whichever of them comes first in the group."""
    params = [parameter(), parameter(seed=2)]
    starts, gradients = [p.detach().numpy().copy() for p in params], [random_gradients(p) for p in params]
    optimizer = optimizer(params, **options)
    for step in range(STEPS):
        params[first].grad = sn.Tensor(gradients[first][step])
        params[1 - first].grad = sn.Tensor(gradients[1 - first][step - 2]) if step >= 2 else None
        optimizer.step()
    for i, count in ((first, STEPS), (1 - first, STEPS - 2)):
        *_, expected = rule(starts[i], gradients[i][:count], **options)
        np.testing.assert_allclose(params[i].detach().numpy(), expected, rtol=1e-12)


@every
def test_a_step_works_in_place_and_leaves_the_gradient_alone(optimizer):
    p = parameter()
    memory, g = p.detach().numpy(), random_gradients(p, 1)[0]
    p.grad = sn.Tensor(g.copy())
    make(optimizer, [p]).step()
    assert p.detach().numpy() is memory
    np.testing.assert_array_equal(p.grad.numpy(), g)


def test_backward_through_a_graph_from_before_the_step_raises():
    p = parameter()
    y = (p * p).sum()
    p.grad = sn.Tensor(np.ones(p.shape))
    SGD([p], 0.1).step()
    with pytest.raises(sn.GradientError, match="changed in place"):
        y.backward()


def test_the_owner_of_a_view_counts_as_changed_too():
    t = parameter()
    view = t.detach()
    view.requires_grad = True
    y = (t * t).sum()
    view.grad = sn.Tensor(np.ones(t.shape))
    SGD([view], 0.1).step()
    with pytest.raises(sn.GradientError, match="changed in place"):
        y.backward()


@every
def test_a_strided_gradient_counts_like_a_contiguous_one(optimizer):
    a, b = parameter((4, 6)), parameter((4, 6))
    g = np.random.default_rng(3).standard_normal((6, 4)).T
    *_, first = take(make(optimizer, [a]), a, [g])
    *_, second = take(make(optimizer, [b]), b, [np.ascontiguousarray(g)])
    np.testing.assert_array_equal(first, second)


def test_zero_grad_forgets_all_gradients():
    p, q = parameter(), parameter()
    optimizer = SGD([{"params": [p]}, {"params": q}], 0.1)
    p.grad = q.grad = sn.Tensor(np.ones(p.shape))
    optimizer.zero_grad()
    assert p.grad is None and q.grad is None


@pytest.mark.parametrize(
    ("gradient", "error"), [(np.ones((5, 3)), sn.ShapeError), (np.ones((3, 5), np.float32), sn.DtypeError)]
)
@every
def test_a_gradient_that_does_not_fit_changes_nothing(optimizer, gradient, error):
    p, q = parameter(), parameter()
    before = p.detach().numpy().copy()
    optimizer = make(optimizer, [p, q])
    p.grad, q.grad = sn.Tensor(np.ones(p.shape)), sn.Tensor(gradient)
    with pytest.raises(error, match=rf"^{type(optimizer).__name__}: expected .*gradient"):
        optimizer.step()
    np.testing.assert_array_equal(p.detach().numpy(), before)
    assert [state["step"] for state in optimizer.state_dict()["state"]] == [0, 0]


def test_a_model_whose_dtype_changed_under_the_optimizer_is_refused():
    model = sn.nn.Linear(2, 1)
    optimizer = SGD(model.parameters(), 0.1)
    model.to(dtype=np.float64)
    model(np.ones((1, 2))).sum().backward()
    with pytest.raises(sn.DtypeError, match="float32"):
        optimizer.step()


# --- groups ----------------------------------------------------------------------------------------------------------


def test_a_group_overrides_the_defaults():
    p, q = parameter(), parameter()
    optimizer = SGD([{"params": [p], "lr": 0.5}, {"params": [q], "weight_decay": 1.0}], lr=0.1, momentum=0.9)
    g = np.ones(p.shape)
    expected_p = p.detach().numpy() - 0.5 * g
    expected_q = q.detach().numpy() - 0.1 * (g + q.detach().numpy())
    p.grad, q.grad = sn.Tensor(g), sn.Tensor(g)
    optimizer.step()
    np.testing.assert_allclose(p.detach().numpy(), expected_p)
    np.testing.assert_allclose(q.detach().numpy(), expected_q)
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.9]


def test_options_are_read_anew_at_each_step():
    p = parameter()
    optimizer = SGD([p], 0.1)
    before = p.detach().numpy().copy()
    optimizer.param_groups[0]["lr"] = np.float32(2)
    (after,) = take(optimizer, p, [np.ones(p.shape)])
    np.testing.assert_allclose(after, before - 2)


def test_a_group_can_be_added_later():
    p, q = parameter(), parameter()
    optimizer = SGD([p], 0.1)
    optimizer.add_param_group({"params": q, "lr": 1.0})
    before = q.detach().numpy().copy()
    (after,) = take(optimizer, q, [np.ones(q.shape)])
    np.testing.assert_allclose(after, before - 1)


def test_the_printed_form_names_options_and_counts():
    text = repr(SGD([{"params": [parameter()]}, {"params": parameter(), "lr": 0.5}], 0.1))
    assert text.splitlines() == [
        "SGD(1 parameters, lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0)",
        "SGD(1 parameters, lr=0.5, momentum=0.0, nesterov=False, weight_decay=0.0)",
    ]


# --- state -----------------------------------------------------------------------------------------------------------


def split_state(state):
    """A state dict as (JSON text with arrays left out, the arrays)."""
    arrays = []
    return json.dumps(state, default=lambda x: arrays.append(x) or len(arrays)), arrays


@rules
def test_a_run_goes_on_bit_for_bit_from_a_state_dict(optimizer, rule, options):
    p = parameter()
    gradients = random_gradients(p)
    *_, whole = take(optimizer([p], **options), p, gradients)

    p = parameter()
    first = optimizer([p], **options)
    list(take(first, p, gradients[:3]))
    state = copy.deepcopy(first.state_dict())
    q = sn.nn.Parameter(p)
    second = optimizer([q], **{"lr": 77.0} | {k: v for k, v in options.items() if k != "lr"})
    second.load_state_dict(state)
    *_, parts = take(second, q, gradients[3:])
    assert whole.tobytes() == parts.tobytes()


@every
def test_a_state_dict_is_json_besides_arrays_and_shares_no_memory(optimizer):
    p = parameter()
    optimizer = make(optimizer, [p])
    list(take(optimizer, p, random_gradients(p, 2)))
    text, arrays = split_state(optimizer.state_dict())
    assert json.loads(text)["param_groups"][0]["params"] == [0]
    assert len(arrays) == len(optimizer.state_names)
    before = [a.copy() for a in arrays]
    list(take(optimizer, p, random_gradients(p, 1)))
    for array, kept in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, kept)


@every
def test_a_checkpoint_holds_the_state(optimizer, tmp_path):
    p = parameter()
    optimizer = make(optimizer, [p])
    list(take(optimizer, p, random_gradients(p, 2)))
    checkpoint.save(tmp_path / "c", optimizer=optimizer)
    other = make(type(optimizer), [parameter()])
    other.load_state_dict(checkpoint.load(tmp_path / "c")["optimizer"])
    mine, theirs = split_state(optimizer.state_dict()), split_state(other.state_dict())
    assert mine[0] == theirs[0]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(mine[1], theirs[1], strict=True))
    assert other.param_groups == [
        group | {"params": other.param_groups[0]["params"]} for group in optimizer.param_groups
    ]


@pytest.mark.parametrize("way", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"])
@every
def test_a_copy_of_parameter_and_optimizer_trains_on_its_own(optimizer, way):
    p = parameter()
    optimizer = make(optimizer, [p])
    gradients = random_gradients(p)
    list(take(optimizer, p, gradients[:2]))
    q, other = way((p, optimizer))
    kept = p.detach().numpy().copy()
    *_, theirs = take(other, q, gradients[2:])
    np.testing.assert_array_equal(p.detach().numpy(), kept)
    *_, mine = take(optimizer, p, gradients[2:])
    np.testing.assert_array_equal(mine, theirs)


def damaged(change):
    state = SGD([parameter(), parameter((2,))], 0.1).state_dict()
    change(state)
    return state


DAMAGE = {
    "not a dict": (lambda s: s.clear(), "param_groups"),
    "no groups": (lambda s: s.update(param_groups=[]), "options of group 0: expected .*got None"),
    "another option": (lambda s: s["param_groups"][0].update(alpha=1), "options of group 0"),
    "an option missing": (lambda s: s["param_groups"][0].pop("lr"), "options of group 0"),
    "other parameters": (lambda s: s["param_groups"][0].update(params=[0]), r"expected \[0, 1\], got \[0\]"),
    "an lr below 0": (lambda s: s["param_groups"][0].update(lr=-1.0), "lr"),
    "a parameter missing": (lambda s: s["state"].pop(), "step of parameter 1: expected a count, got None"),
    "an array missing": (lambda s: s["state"][1].pop("velocity"), "velocity of parameter 1"),
    "another shape": (
        lambda s: s["state"][1].update(velocity=np.zeros(3)),
        r"expected float64 \(2,\), got float64 \(3,\)",
    ),
    "another dtype": (lambda s: s["state"][1].update(velocity=np.zeros(2, "f4")), "float64.*float32"),
    "a list": (lambda s: s["state"][1].update(velocity=[0.0, 0.0]), "list"),
    "a negative step": (
        lambda s: s["state"][0].update(step=-1),
        "step of parameter 0: .*a count, got an integer.*below 0",
    ),
    "a step beyond floats": (lambda s: s["state"][0].update(step=10**400), r"a count, got an integer.*above 2\*\*53"),
    "a state that is no dict": (lambda s: s.update(state=[1, 2]), "state dict"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(what):
    change, message = DAMAGE[what]
    p, q = parameter(), parameter((2,))
    optimizer = SGD([p, q], 0.2)
    list(take(optimizer, p, random_gradients(p, 2)))
    before = split_state(optimizer.state_dict())
    with pytest.raises(sn.CheckpointError, match=message) as caught:
        optimizer.load_state_dict(damaged(change))
    assert "\n" not in str(caught.value)
    after = split_state(optimizer.state_dict())
    assert after[0] == before[0]
    assert all((a == b).all() for a, b in zip(after[1], before[1], strict=True))


def test_the_state_of_another_optimizer_is_refused():
    with pytest.raises(sn.CheckpointError, match="SGD"):
        SGD([parameter()], 0.1).load_state_dict(Adam([parameter()]).state_dict())
