"""Options and parameters with which no optimizer can be made are refused in one line."""

import numpy as np
import pytest
from messages import error_line

import scratchnet as sn

SGD, Adam, AdamW, RMSprop = sn.optim.SGD, sn.optim.Adam, sn.optim.AdamW, sn.optim.RMSprop


def parameter():
    return sn.nn.Parameter(np.zeros((3, 5)))


BAD_OPTIONS = [
    (SGD, {"lr": -0.1}),
    (SGD, {"lr": float("nan")}),
    (SGD, {"lr": "fast"}),
    (SGD, {"lr": None}),
    (SGD, {"lr": 0.1, "momentum": -1}),
    (SGD, {"lr": 0.1, "weight_decay": -1}),
    (SGD, {"lr": 0.1, "nesterov": True}),
    (Adam, {"lr": float("inf")}),
    (Adam, {"betas": (1.0, 0.9)}),
    (Adam, {"betas": (0.9, -0.1)}),
    (Adam, {"betas": 0.9}),
    (Adam, {"betas": (0.9,)}),
    (Adam, {"eps": -1e-8}),
    (AdamW, {"weight_decay": -1}),
    (RMSprop, {"alpha": 1.0}),
    (RMSprop, {"momentum": -0.5}),
    (sn.optim.Adagrad, {"lr_decay": -1}),
    (sn.optim.Adagrad, {"initial_accumulator_value": -1}),
    (sn.optim.Adadelta, {"rho": 1.0}),
    (Adam, {"amsgrad": 1}),
    (SGD, {"lr": 0.1, "maximize": "yes"}),
]


@pytest.mark.parametrize(("optimizer", "options"), BAD_OPTIONS)
def test_an_option_out_of_range_is_refused(optimizer, options):
    with pytest.raises(sn.ConfigError, match=rf"^{optimizer.__name__}: (\w+: )?expected .*, got "):
        optimizer([parameter()], **options)


def twice():
    p = parameter()
    return [p, p]


def read_only():
    array = np.zeros(3)
    array.flags.writeable = False
    return [sn.Tensor(array, requires_grad=True)]


BAD_PARAMETERS = {
    "none": (list, "at least one"),
    "an empty group": (lambda: [{"params": []}], "at least one"),
    "one twice": (twice, "one twice"),
    "one in two groups": (lambda: [{"params": p} for p in twice()], "one twice"),
    "an array": (lambda: [np.zeros(3)], "expected tensors, got ndarray"),
    "a name and a parameter": (lambda: sn.nn.Linear(1, 1).named_parameters(), "expected tensors, got tuple"),
    "the result of an op": (lambda: [parameter() * 2], "the result of an op"),
    "integers": (lambda: [sn.Tensor([1, 2])], "int64"),
    "a transposed view": (lambda: [parameter().detach().T], "strided"),
    "read-only memory": (read_only, "read-only"),
    "a group without params": (lambda: [{"lr": 0.1}], "'params'"),
    "an unknown option": (lambda: [{"params": parameter(), "speed": 1}], "speed"),
    "a tensor after a group": (lambda: [{"params": parameter()}, parameter()], "'params'"),
}


@pytest.mark.parametrize("what", BAD_PARAMETERS)
def test_parameters_that_cannot_be_trained_are_refused(what):
    params, message = BAD_PARAMETERS[what]
    with pytest.raises(sn.ConfigError, match=message) as caught:
        SGD(params(), 0.1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["lr", "momentum", "learning_rate", "param_group"])
def test_an_attribute_that_nothing_reads_is_refused(name):
    optimizer = SGD([parameter()], lr=0.1)
    with pytest.raises(sn.UnknownAttributeError, match=rf"^SGD\.{name}: expected .*param_groups") as error:
        setattr(optimizer, name, 0.5)
    error_line(error)
    assert not hasattr(optimizer, name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda group: group.__setitem__("learning_rate", 0.1), "learning_rate"),
        (lambda group: group.update(momentum=-1.0), "momentum"),
        (lambda group: group.__ior__({"lr": "fast"}), "lr"),
        (lambda group: group.setdefault("rate", 1.0), "rate"),
        (lambda group: group.__setitem__("nesterov", True), "momentum > 0"),
        (lambda group: group.__setitem__("params", [parameter()]), "add_param_group"),
    ],
)
def test_an_option_that_is_changed_later_is_checked_too(change, words):
    optimizer = SGD([parameter()], lr=0.1)
    before = dict(optimizer.param_groups[0])
    with pytest.raises(sn.ConfigError, match=words) as error:
        change(optimizer.param_groups[0])
    error_line(error)
    assert dict(optimizer.param_groups[0]) == before
    optimizer.param_groups[0]["lr"] = 0.5
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_subclass_may_have_attributes_of_its_own():
    class Counting(SGD):
        def __init__(self, params):
            super().__init__(params, lr=0.1)
            self.count = 0

        def step(self):
            self.count += 1
            super().step()

    optimizer = Counting([parameter()])
    optimizer.step()
    assert optimizer.count == 1
    with pytest.raises(sn.UnknownAttributeError):
        optimizer.counts = 1
