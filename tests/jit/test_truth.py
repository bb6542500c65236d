"""Law 9: a recorded step never lies. Each kind of thing that a step may take, read, do or give back, against the step
itself: the same values and errors in each of several calls, or a JitError; and where it says RIGHT, no JitError."""

import collections
import copy
import dataclasses
import pickle
import random
import threading
import warnings

import numba
import numpy as np
import pytest

import scratchnet as sn
from scratchnet.nn import functional as F
from scratchnet.ops.table import OPS, define

RIGHT, REFUSED = "right", "refused"


def shown(value):
    """Any result as plain Python: kinds, dtypes and numbers."""
    if isinstance(value, sn.Tensor):
        return "tensor", str(value.dtype), value.detach().numpy().tolist()
    if isinstance(value, np.ndarray | np.generic):
        return type(value).__name__, str(value.dtype), value.tolist()
    if isinstance(value, dict):
        return type(value).__name__, {name: shown(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value).__name__, [shown(item) for item in value]
    if dataclasses.is_dataclass(value):
        return type(value).__name__, [shown(getattr(value, field.name)) for field in dataclasses.fields(value)]
    return repr(value)


def called(step, args):
    """What a call gives: its result, or the kind of its error."""
    try:
        return shown(step(*args))
    except sn.JitError as error:
        assert "\n" not in str(error)
        return "JitError"
    except Exception as error:
        return type(error).__name__, str(error)


def compare(make, calls, expected=None, between=None):
    """make() gives a step and its world, twice; between(world, i) changes the world after call i."""
    (plain, world), (step, other) = make(), make()
    jitted = sn.jit(step)
    refused = False
    for i, args in enumerate(calls):
        a, b = copy.deepcopy(args), copy.deepcopy(args)
        want, got = called(plain, a), called(jitted, b)
        refused = refused or got == "JitError"
        if refused:
            break
        assert got == want, f"call {i}"
        assert shown(b) == shown(a), f"arguments after call {i}"
        if between is not None:
            between(world, i)
            between(other, i)
    if expected is not None:
        assert refused == (expected == REFUSED)
    if expected == RIGHT and len(calls) > 2 and between is None:
        assert jitted.programs
    return jitted


def of(function):
    return lambda: (function, None)


@dataclasses.dataclass
class Pair:
    loss: object
    rest: object = None


Named = collections.namedtuple("Named", "first second")
FLOATS = [(np.float32([i, i + 1.5]),) for i in (1, 2, -3, 4)]
TENSORS = [(sn.Tensor([float(i), i + 1.5]),) for i in (1, 2, -3, 4)]
MATRICES = [(sn.Tensor(np.arange(6, dtype=np.float32).reshape(2, 3) * i),) for i in (1, 2, -3, 4)]
INTEGERS = [(np.array(x),) for x in ([0, 1], [2, 0], [1, 1], [2, 2])]

# --- what comes out ---------------------------------------------------------------------------------------------------

RESULTS = {
    "an argument": lambda x: x,
    "an argument and a sum": lambda x: (x, x.sum()),
    "a view of an argument": lambda x: (x[0], x.reshape(-1), x.T),
    "flattened": sn.nn.Flatten(0),
    "dropout in evaluation": sn.nn.Dropout(0.5).eval(),
    "a dataclass": lambda x: Pair(x.sum(), [x, x * 2]),
    "a named tuple": lambda x: Named(x * 2, x),
    "an ordered dictionary": lambda x: collections.OrderedDict(b=x, a=x + 1),
    "nothing, a number, a text": lambda x: (None, 3, "text", x * 2, x.shape),
    "the same tensor twice": lambda x: (lambda y: (y, y, {"y": y}))(x * 3),
}


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("calls", [TENSORS, MATRICES], ids=["vectors", "matrices"])
def test_results_are_those_of_each_call(name, calls):
    compare(of(RESULTS[name]), calls, RIGHT)


def test_an_array_that_is_returned_is_the_argument_itself_and_a_computed_one_is_new():
    step = sn.jit(lambda x: (x, x * 2, x[:1]))
    kept = []
    for (x,) in FLOATS:
        same, twice, part = step(x)
        assert same is x
        kept.append((twice, x * 2, part, x[:1]))
    assert all((a == b).all() and (c == d).all() for a, b, c, d in kept)


def test_a_parameter_that_is_returned_is_that_parameter():
    model = sn.nn.Linear(2, 1)
    step = sn.jit(lambda x: (model.weight, model(x)))
    assert all(step(sn.Tensor([[1.0, i]]))[0] is model.weight for i in range(4))


@pytest.mark.parametrize(
    "make", [lambda x: {x.shape}, lambda x: iter([x]), lambda x: object(), lambda x: (v for v in [x])]
)
def test_results_that_nobody_can_look_into_are_refused_unless_they_are_constants(make):
    compare(of(make), TENSORS)


# --- what comes in ----------------------------------------------------------------------------------------------------

NUMPY = {
    "x / 255": (lambda x: sn.Tensor(x / 255, dtype="float32") * 2, RIGHT),
    "astype": (lambda x: sn.Tensor(x.astype(np.float64), dtype="float32") * 2, RIGHT),
    "where and stack": (lambda x: sn.Tensor(np.stack([np.where(x > 1, x, -x), x]).astype("float32")), RIGHT),
    "less its mean": (lambda x: sn.Tensor((x - x.mean()) / (x.std() + 1)), RIGHT),
    "rows": (lambda x: sum([sn.Tensor(row) for row in x.reshape(2, 1)], sn.Tensor(0.0)), RIGHT),
    "reversed": (lambda x: sn.Tensor(x[::-1]) + sn.Tensor(x[np.array([1, 0])]), RIGHT),
    "times a tensor": (lambda x: x * sn.Tensor([1.0, 2.0]) + x, RIGHT),
    "its shape": (lambda x: sn.Tensor(x) * len(x) * x.ndim * np.size(x), RIGHT),
    "if isinstance": (lambda x: sn.Tensor(x) * (2 if isinstance(x, np.ndarray) else 3), RIGHT),
    "np.asarray": (lambda x: sn.Tensor(np.asarray(x) * 2), REFUSED),
    "np.array": (lambda x: sn.Tensor(np.array(x) * 2), REFUSED),
    "if sum > 0": (lambda x: sn.Tensor(x) if x.sum() > 0 else -sn.Tensor(x), REFUSED),
    "a list of its elements": (lambda x: sn.Tensor([float(x[0]), 2.0]), REFUSED),
    "tolist": (lambda x: sn.Tensor(x.tolist()), REFUSED),
    "in place": (lambda x: sn.Tensor(x.__iadd__(1)), REFUSED),
    "sorted": (lambda x: x.sort() or sn.Tensor(x), REFUSED),
    "set": (lambda x: x.__setitem__(0, 5.0) or sn.Tensor(x), REFUSED),
    "out": (lambda x: sn.Tensor(np.add(x, 1, out=x)), REFUSED),
    "printed": (lambda x: sn.Tensor(x) * len(f"{x}"), REFUSED),
    "buffer": (lambda x: sn.Tensor(np.frombuffer(x, np.float32) * 2), REFUSED),
}


@pytest.mark.parametrize("name", NUMPY)
def test_numpy_on_an_argument(name):
    compare(of(NUMPY[name][0]), FLOATS, NUMPY[name][1])


@pytest.mark.parametrize("name", ["eye", "labels", "int32 labels", "numbers"])
def test_integer_arguments(name):
    weight = sn.Tensor(np.arange(9, dtype=np.float32).reshape(3, 3))
    steps = {
        "eye": lambda y: sn.Tensor(np.eye(3, dtype=np.float32)[y]),
        "labels": lambda y: F.cross_entropy(weight[:2], y),
        "int32 labels": lambda y: F.cross_entropy(weight[:2], y.astype(np.int32)),
        "numbers": lambda y: (weight[y], weight[y, y], weight[y - 3], F.embedding(y, weight)),
    }
    compare(of(steps[name]), INTEGERS, REFUSED if name == "eye" else RIGHT)


def test_numbers_of_rows_may_become_negative_and_bad_ones_are_the_error_of_the_step():
    table = sn.Tensor([[1.0], [2.0], [3.0]])
    calls = [(sn.Tensor(x),) for x in ([0, 1], [2, 2], [1, 0], [-1, -3], [0, 3], [2, -4], [1, 1])]
    compare(of(lambda i: (table[i], table[i, i * 0])), calls, RIGHT)


TENSORS_OF_TENSORS = {
    "sn.tensor": lambda x: sn.tensor(x),
    "Tensor with a dtype": lambda x: sn.Tensor(x, dtype="float64") * 2,
    "Parameter": lambda x: sn.nn.Parameter(x) * 2,
    "deepcopy": lambda x: copy.deepcopy(x) + 1,
    "astype to integers": lambda x: x.astype(np.int64) + 1,
    "a gradient of an argument": lambda x: sn.grad(lambda v: (v * v * v).sum())(x),
    "requires_grad of an argument": lambda x: (lambda v: ((v * v).sum().backward(), v.grad)[1])(
        x.detach().requires_grad_()
    ),
    "in place": lambda x: x.add_(1.0) * 2,
    "item assignment": lambda x: (x.__setitem__(0, 7.0), x * 2)[1],
}


@pytest.mark.parametrize("name", TENSORS_OF_TENSORS)
def test_tensors_made_of_an_argument(name):
    compare(of(TENSORS_OF_TENSORS[name]), TENSORS, RIGHT)


LOOKS = {
    "item": lambda x: x.sum().item(),
    "numpy": lambda x: x.numpy(),
    "dlpack": lambda x: sn.Tensor(np.from_dlpack(x)),
    "list": lambda x: sn.Tensor([float(v) for v in x]),
    "of tensors": lambda x: sn.Tensor([x[0], x[1]]),
    "text": lambda x: x * len(f"{x}"),
    "format": lambda x: x * float(f"{x[0]:.3f}"),
    "numpy of a global": lambda x: x * float(CONSTANT.numpy().sum()),
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "mask": lambda x: x[x > 1],
    "a gradient of its own": lambda x: (x.requires_grad_() * x).sum(),
}
CONSTANT = sn.Tensor([1.0, 2.0])


@pytest.mark.parametrize("name", LOOKS)
def test_a_look_at_a_value_is_refused_and_names_the_line(name):
    step = sn.jit(LOOKS[name])
    with pytest.raises(sn.JitError, match=r"test_truth\.py:\d+: "):
        step(sn.Tensor([1.0, 2.0]))


def test_a_refusal_that_the_step_catches_is_reported_all_the_same():
    def step(x):
        try:
            return x * x.sum().item()
        except Exception:
            return x

    with pytest.raises(sn.JitError, match="item"):
        sn.jit(step)(sn.Tensor([1.0]))


GENERATOR = np.random.default_rng(0)


def test_a_step_that_catches_an_error_of_its_labels_looks_at_them():
    def step(y):
        try:
            return F.cross_entropy(sn.Tensor([[1.0, 2.0]]), y)
        except IndexError:
            return sn.Tensor(0.0)

    compare(of(step), [(np.array([i]),) for i in (5, 5, 1, 0)], REFUSED)
    jitted = sn.jit(step)
    assert [jitted(np.array([i])).item() == 0 for i in (1, 0, 1, 5, 1)] == [False, False, False, True, False]


DRAWS = {
    "numpy": lambda x: x + sn.Tensor(np.random.rand(2).astype(np.float32)),  # noqa: NPY002 - the kind that others use
    "python": lambda x: x * random.random(),
    "a branch": lambda x: x if random.random() < 0.5 else -x,
    "a generator": lambda x: x + sn.Tensor(GENERATOR.random(2, np.float32)),
    "an initialiser": lambda x: sn.nn.Linear(2, 2)(x),
}


@pytest.mark.parametrize("name", DRAWS)
def test_random_numbers_of_others_are_refused(name):
    compare(of(DRAWS[name]), TENSORS, REFUSED)


def test_own_random_numbers_go_on():
    for step in (lambda x: F.dropout(x, 0.5), sn.nn.Dropout(0.5)):
        sn.manual_seed(3)
        plain = [shown(step(x)) for (x,) in TENSORS * 3]
        sn.manual_seed(3)
        jitted = sn.jit(step)
        assert [shown(jitted(x)) for (x,) in TENSORS * 3] == plain


def test_constants_may_be_made_in_the_step():
    compare(of(lambda x: x + sn.Tensor(np.ones(2, np.float32)) * sn.Tensor([1.0, 2.0]) + 3), TENSORS, RIGHT)


@pytest.fixture
def own_op():
    """An op of the user's, written with NumPy."""
    op = define("own_op", lambda device, x: np.log1p(np.exp(x)), lambda g, y, x: g * sn.sigmoid(x), floating=True)
    yield op
    del OPS["own_op"]


def test_an_op_of_the_users_is_computed_in_each_call(own_op):
    def make():
        weight = sn.nn.Parameter(np.float32([0.5, 1.0]))
        optimizer = sn.optim.SGD([weight], 0.1)

        def step(x):
            optimizer.zero_grad()
            loss = own_op(own_op(x * weight) * weight).sum()
            loss.backward()
            optimizer.step()
            return loss, weight.detach()

        return step, None

    compare(make, TENSORS, RIGHT)


def test_a_trainer_trains_with_an_op_of_the_users(own_op):
    class Net(sn.nn.Module):
        def __init__(self):
            self.first, self.second = sn.nn.Linear(1, 8), sn.nn.Linear(8, 1)

        def forward(self, x):
            return self.second(own_op(self.first(x)))

    assert same_with_and_without_jit(Net) == []


# --- what changes between calls ---------------------------------------------------------------------------------------


class World:
    """A small model with all that a training has; `step` reads it by name."""

    def __init__(self, optimizer=lambda p: sn.optim.SGD(p, 0.1, momentum=0.9)):
        sn.manual_seed(1)
        self.model = sn.nn.Sequential(sn.nn.Linear(2, 3), sn.nn.Dropout(0.5), sn.nn.BatchNorm1d(3), sn.nn.Linear(3, 2))
        self.optimizer = optimizer(self.model.parameters())
        self.scale, self.options, self.bias = 1.0, {"power": 2}, np.ones(2)

    def step(self, x):
        self.optimizer.zero_grad()
        out = self.model(x) * self.scale + sn.Tensor(self.bias, dtype=x.dtype)
        loss = (out ** self.options["power"]).mean()
        loss.backward()
        self.optimizer.step()
        return loss, [p.detach() for p in self.model.parameters()], [b.detach() for b in self.model.buffers()]

    @classmethod
    def make(cls):
        sn.manual_seed(1)
        world = cls()
        return world.step, world


def freeze(world, frozen=True):
    world.model[0].requires_grad_(not frozen)


def thaw(world):
    freeze(world, False)


CHANGES = {
    "nothing": lambda w: None,
    "a layer is frozen": freeze,
    "the learning rate": lambda w: w.optimizer.param_groups[0].update(lr=0.01),
    "momentum": lambda w: w.optimizer.param_groups[0].update(momentum=0.1),
    "evaluation": lambda w: w.model.eval(),
    "the rate of dropout": lambda w: setattr(w.model[1], "p", 0.0),
    "the momentum of batch norm": lambda w: setattr(w.model[2], "momentum", 0.9),
    "the head": lambda w: setattr(w.model, "3", sn.nn.Linear(3, 2)),
    "a parameter": lambda w: setattr(w.model[3], "bias", sn.nn.Parameter(np.float32([5, 6]))),
    "no bias": lambda w: setattr(w.model[3], "bias", None),
    "the optimizer": lambda w: setattr(w, "optimizer", sn.optim.Adam(w.model.parameters(), 0.01)),
    "a number": lambda w: setattr(w, "scale", -0.0),
    "an entry": lambda w: w.options.update(power=3),
    "an array": lambda w: w.bias.fill(3.0),
    "loaded parameters": lambda w: w.model.load_state_dict({k: v * 0.5 for k, v in w.model.state_dict().items()}),
    "float64": lambda w: (
        w.model.to(dtype="float64"),
        setattr(w, "optimizer", sn.optim.SGD(w.model.parameters(), 0.1)),
    ),
    "a seed": lambda w: sn.manual_seed(9),
    "a parameter in place": lambda w: w.model[3].weight.detach().numpy().fill(0.25),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_between_calls_is_seen_by_the_next(name):
    def between(world, i):
        sn.manual_seed(i)
        if i == 3:
            CHANGES[name](world)
        if i == 6 and name == "a layer is frozen":
            thaw(world)

    x = np.float32([[1, 2], [3, 5], [0, -1], [2, 2]])
    calls = [(sn.Tensor(x * (i + 1), dtype="float64" if name == "float64" and i > 3 else None),) for i in range(10)]
    sn.manual_seed(0)
    plain = run_world(calls, between, jit=False)
    assert run_world(calls, between, jit=True) == plain


def run_world(calls, between, jit):
    step, world = World.make()
    step = sn.jit(step) if jit else step
    found = []
    for i, args in enumerate(calls):
        found.append(shown(step(*args)))
        between(world, i)
    assert not jit or step.programs
    return found


GLOBAL = 2.0


def test_a_global_and_a_variable_around_are_guarded(monkeypatch):
    around = 1.0

    def times(x):
        return x * GLOBAL + around

    step = sn.jit(lambda x: times(x))
    x = sn.Tensor([3.0])
    assert [step(x).item() for _ in range(3)] == [7.0] * 3
    monkeypatch.setitem(globals(), "GLOBAL", 5.0)
    assert [step(x).item() for _ in range(3)] == [16.0] * 3
    around = 2.0
    assert [step(x).item() for _ in range(3)] == [17.0] * 3


def test_parameters_may_join_the_optimizer():
    a, b = (sn.nn.Parameter(np.ones(2, np.float32)) for _ in range(2))
    optimizer = sn.optim.SGD([a], 0.5)

    @sn.jit
    def step(x):
        optimizer.zero_grad()
        ((a + b) * x).sum().backward()
        optimizer.step()

    for _ in range(3):
        step(sn.Tensor([1.0, 2.0]))
    optimizer.add_param_group({"params": [b], "lr": 0.25})
    b.zero_grad()
    for _ in range(3):
        step(sn.Tensor([1.0, 2.0]))
    assert a.detach().numpy().tolist() == [-2.0, -5.0] and b.detach().numpy().tolist() == [0.25, -0.5]


# --- what is done inside ----------------------------------------------------------------------------------------------

INSIDE = {
    "load_state_dict": lambda w: w.model.load_state_dict(w.saved),
    "state_dict": lambda w: w.model.state_dict(),
    "an initialiser": lambda w: sn.nn.init.zeros_(w.model[3].bias),
    "a seed": lambda w: sn.manual_seed(4),
    "an option": lambda w: w.optimizer.param_groups[0].update(lr=w.optimizer.param_groups[0]["lr"] * 0.5),
    "a parameter by NumPy": lambda w: w.model[3].weight.detach().numpy().__imul__(0.5),
    "a group": lambda w: w.optimizer.add_param_group({"params": [sn.nn.Parameter(np.ones(1))]}),
    "a device": lambda w: w.model.to("numpy"),
    "an optimizer": lambda w: sn.optim.SGD(w.model.parameters(), 0.1),
    "a counter": lambda w: setattr(w, "scale", w.scale + 1),
    "a count in the model": lambda w: setattr(w.model, "calls", getattr(w.model, "calls", 0) + 1),
    "a log": lambda w: w.options.update({len(w.options): 1}),
    "a mode": lambda w: w.model.train(not w.model.training),
    "a freeze": lambda w: w.model[0].requires_grad_(not w.model[0].weight.requires_grad),
}


@pytest.mark.parametrize("name", INSIDE)
def test_what_python_does_inside_is_refused(name):
    def make():
        step, world = World.make()
        world.model[1].p = 0.0  # both draw from one generator
        world.saved = world.model.state_dict()

        def longer(x):
            result = step(x)
            INSIDE[name](world)
            world.options.get(0), world.scale
            return result

        return longer, world

    calls = [(sn.Tensor(np.float32([[1, 2], [3, 5], [0, -1]])),)] * 4
    compare(make, calls, REFUSED)


def replaced_in(x):
    x[0] += 1.0
    return x.sum()


def reshaped(x):
    x.shape = (-1,)
    return x * 2.0


def typed(x):
    return str(numba.typeof(x))


LOOKED_AT = {  # what a step does with an array that it was given, beside NumPy's arithmetic
    "writes an element": replaced_in,
    "sets its shape": reshaped,
    "asks for Numba's type": typed,
    "looks for a number in it": lambda x: 2.0 in x,
    "makes it a number": lambda x: float(x[0, 0]) * x,
    "gives its address": lambda x: x.__array_interface__["data"][0] % 2,
    "puts numbers into another array": lambda x: np.copyto(np.zeros_like(x), x),
}


@pytest.mark.parametrize("name", LOOKED_AT)
def test_what_is_done_to_an_array_argument_beside_arithmetic_is_refused(name):
    calls = [(np.float32([[1, 2], [3, i]]),) for i in range(4)]
    compare(of(LOOKED_AT[name]), calls, REFUSED)


def test_what_python_sets_and_puts_back_does_not_count():
    def make():
        step, world = World.make()

        def longer(x):
            world.model.eval()
            with sn.no_grad():
                before = world.model(x).sum()
            world.model.train()
            world.model[0].requires_grad_(False)
            world.model[0].requires_grad_(True)
            return before, step(x)

        return longer, world

    calls = [(sn.Tensor(np.float32([[1, 2], [3, 5], [0, -1]]) * i),) for i in range(1, 6)]

    def run(jit):
        step, _ = make()
        step = sn.jit(step) if jit else step
        return [shown(step(*args)) for args in calls], jit and len(step.programs)

    assert run(True) == (run(False)[0], 1)


def test_parameters_updated_by_hand():
    def make():
        weight = sn.nn.Parameter(np.float32([1, 2]))
        average = sn.Tensor(np.float32([0, 0]))

        def step(x):
            weight.grad = None
            loss = ((weight * x - 1) ** 2).sum()
            loss.backward()
            with sn.no_grad():
                for p in [weight]:
                    p -= 0.01 * p.grad
                average.mul_(0.9).add_(weight.detach() * 0.1)
            return loss, weight.detach(), average, weight.grad

        return step, None

    compare(make, TENSORS, RIGHT)


def test_a_first_call_may_prepare_what_later_ones_use():
    class Lazy(sn.nn.Module):
        table = None

        def forward(self, x):
            if self.table is None:
                self.table = sn.Tensor(np.arange(2, dtype=np.float32))
            return x + self.table

    step = sn.jit(Lazy())
    assert [step(x).numpy().tolist() for (x,) in TENSORS] == [[1, 3.5], [2, 4.5], [-3, -0.5], [4, 6.5]]
    assert step.programs


def test_what_has_no_name_in_the_step_is_not_seen():
    """The boundary of the law, as docs/jit.md draws it: should it move, the page moves with it."""
    calls, hidden = iter(range(10)), np.ones(1 << 13, np.float32)
    by_count = sn.jit(lambda x: x * (2 if next(calls) > 4 else 1))
    by_array = sn.jit(lambda x: x * float(hidden.sum() > 0))
    assert [by_count(sn.Tensor([1.0])).item() for _ in range(8)] == [1.0] * 8
    found = []
    for i in range(4):
        hidden.fill(1 if i < 3 else -1)
        found.append(by_array(sn.Tensor([1.0])).item())
    assert found == [1.0] * 4


# --- numbers, gradients, threads --------------------------------------------------------------------------------------


def test_minus_zero_and_nan_are_numbers_of_their_own():
    step = sn.jit(lambda x, s: x / s)
    x = sn.Tensor([1.0])
    for _ in range(3):
        assert step(x, 0.0).item() == np.inf and step(x, -0.0).item() == -np.inf
        assert np.isnan(step(x, float("nan")).item()) and step(x, 1).item() == step(x, True).item() == 1
    assert len(step.programs) == 5


def test_a_new_number_in_each_call_neither_lies_nor_fills_the_memory():
    step = sn.jit(lambda x, s: x * s)
    with pytest.warns(UserWarning, match="one was new.*without a program"):
        assert [step(sn.Tensor([2.0]), float(i)).item() for i in range(200)] == [2.0 * i for i in range(200)]
    assert sum(map(len, step._recorded.values())) <= 64


def test_a_value_that_is_new_in_each_call_is_named():
    scale = [0.0]
    step = sn.jit(lambda x: x * scale[0])
    with pytest.warns(UserWarning, match="in 17 calls in a row scale was new.*without a program"):
        for i in range(20):
            scale[0] = float(i)
            assert step(sn.Tensor([2.0])).item() == 2.0 * i


def test_a_gradient_that_a_program_used_up_is_an_error_and_not_none():
    weight = sn.nn.Parameter(np.ones(2, np.float32))
    optimizer = sn.optim.SGD([weight], 0.1)

    @sn.jit
    def step(x):
        optimizer.zero_grad()
        (weight * x).sum().backward()
        optimizer.step()

    for (x,) in TENSORS:
        step(x)
        with pytest.raises(sn.JitError, match="used up"):
            weight.grad  # noqa: B018
        copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))
    optimizer.zero_grad()
    assert weight.grad is None


def test_threads_that_call_one_step_get_their_own_results():
    step = sn.jit(lambda x: (x @ x).sum())
    wrong = []

    def work(value):
        x = sn.Tensor(np.full((16, 16), value, np.float32))
        wrong.extend(v for v in (step(x).item() for _ in range(100)) if abs(v - 16**3 * value**2) > 1)

    threads = [threading.Thread(target=work, args=(i + 1.0,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_method_has_programs_for_each_object():
    class Scaled:
        def __init__(self, factor):
            self.factor = factor

        @sn.jit
        def step(self, x):
            return x * self.factor

    a, b = Scaled(2.0), Scaled(3.0)
    for i in range(4):
        assert (a.step(sn.Tensor([i])).item(), b.step(sn.Tensor([i])).item()) == (2 * i, 3 * i)
    a.factor = 5.0
    assert [a.step(sn.Tensor([1.0])).item() for _ in range(3)] == [5.0] * 3
    assert copy.deepcopy(a).step(sn.Tensor([1.0])).item() == 5.0


@pytest.mark.parametrize("what", [3, int, None, sn.nn.Linear])
def test_only_functions_are_recorded(what):
    with pytest.raises(sn.JitError, match="expected a function"):
        sn.jit(what)


def test_generators_and_coroutines_are_refused():
    def generator(x):
        yield x

    async def coroutine(x):
        return x

    for function in (generator, coroutine):
        with pytest.raises(sn.JitError, match="yields or awaits"):
            sn.jit(function)


# --- a Trainer gives the same bits with and without -------------------------------------------------------------------


def same_with_and_without_jit(make_model, epochs=3, **options):
    """Trains with jit and without; returns the texts of the warnings of the first."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 1)).astype(np.float32), rng.normal(size=(32, 1)).astype(np.float32)
    found, texts = [], []
    for jit in (True, False):
        sn.manual_seed(0)
        model = make_model()
        optimizer = sn.optim.Adam(model.parameters(), 0.02)
        trainer = sn.Trainer(model, optimizer, sn.nn.MSELoss(), progress=False, jit=jit, **options)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            history = trainer.fit(sn.data.DataLoader(sn.data.TensorDataset(x, y), 8), epochs=epochs)
        texts.append([str(w.message) for w in seen])
        found.append((history["train_loss"], [p.detach().numpy().tobytes() for p in model.parameters()]))
    assert found[0] == found[1] and texts[1] == []
    return texts[0]


class Detour(sn.nn.Module):
    """A model with a line that no replay can do."""

    def __init__(self, line):
        self.line, self.layer, self.count = line, sn.nn.Linear(1, 1), 0

    def forward(self, x):
        return self.line(self, self.layer(x))


DETOURS = {
    "a look": lambda m, y: y * (1.0 if y.detach().numpy().sum() > 0 else 0.5),
    "a count": lambda m, y: (setattr(m, "count", m.count + 1), y * m.count)[1],
    "an array": lambda m, y: y + sn.Tensor(np.cos(y.detach().numpy())),
}


@pytest.mark.parametrize("name", DETOURS)
def test_a_trainer_goes_on_without_a_program_and_says_once_why(name):
    (text,) = same_with_and_without_jit(lambda: Detour(DETOURS[name]))
    assert "test_truth.py:" in text and "without a program" in text


@pytest.mark.parametrize("engine", ["one program", "pages and slots, as in a pool"])
def test_a_model_that_may_read_any_attribute_is_recorded(tmp_path, engine):
    """`getattr` watches all attributes that the model can reach; what the engine counts in its own is none of these."""
    options = {} if engine == "one program" else {"timeline": tmp_path / "run.json"}
    reading = Detour(lambda m, y: y * getattr(m, f"scale{m.training}"))
    reading.scaleTrue = 0.5
    assert same_with_and_without_jit(lambda: copy.deepcopy(reading), epochs=12, **options) == []


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_a_trainer_whose_model_draws_from_others_has_the_same_bits_and_says_so(draw):
    (text,) = same_with_and_without_jit(lambda: Detour(lambda m, y: y * float(draw())))
    assert "random numbers of random or np.random" in text and "without a program" in text


def test_layers_that_thaw_between_two_fits_train():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 4)).astype(np.float32), rng.integers(0, 3, 32)
    loader = sn.data.DataLoader(sn.data.TensorDataset(x, y), 8)

    def run(jit):
        sn.manual_seed(0)
        model = sn.nn.Sequential(sn.nn.Linear(4, 5), sn.nn.ReLU(), sn.nn.Linear(5, 3))
        trainer = sn.Trainer(
            model, sn.optim.SGD(model.parameters(), 0.1), F.cross_entropy, shards=2, progress=False, jit=jit
        )
        for frozen in (True, False, True):
            model[0].requires_grad_(not frozen)
            trainer.fit(loader, epochs=2)
        return [p.detach().numpy().tobytes() for p in model.parameters()]

    assert run(True) == run(False)
