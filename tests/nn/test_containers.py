"""Modules that hold others: as lists and dictionaries, and as modules whose parameters are found, saved and moved."""

import copy
import pickle

import numpy as np
import pytest
from messages import error_line

import scratchnet as sn
from scratchnet import nn


class Stack(nn.Module):
    def __init__(self):
        self.layers = nn.ModuleList([nn.Linear(3, 3) for _ in range(2)])
        self.heads = nn.ModuleDict({"words": nn.Linear(3, 4), "tags": nn.Linear(3, 2)})
        self.scales = nn.ParameterList([np.ones(3, np.float32)])

    def forward(self, x, head):
        for layer in self.layers:
            x = layer(x).relu() * self.scales[0]
        return self.heads[head](x)


def test_what_containers_hold_is_found_trained_saved_and_moved():
    model, x = Stack(), np.ones((5, 3), np.float32)
    names = ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]
    names += [f"heads.{head}.{name}" for head in ("words", "tags") for name in ("weight", "bias")] + ["scales.0"]
    assert sorted(model.state_dict()) == sorted(names)
    assert model(x, "words").shape == (5, 4) and model(x, "tags").shape == (5, 2)
    model(x, "tags").sum().backward()
    assert model.heads["words"].weight.grad is None and model.scales[0].grad is not None
    twin = Stack()
    twin.load_state_dict(model.state_dict())
    for other in (twin, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other(x, "tags").detach().numpy().tobytes() == model(x, "tags").detach().numpy().tobytes()
    assert all(p.device == "numpy" for p in copy.deepcopy(model).to("numpy").parameters())


def test_a_module_list_is_a_list():
    a, b, c, d = (nn.Linear(1, n) for n in (1, 2, 3, 4))
    layers = nn.ModuleList([a, b])
    assert layers.append(c) is layers and [*layers] == [a, b, c] and len(layers) == 3
    assert layers[0] is a and layers[-1] is c and [*layers[1:]] == [b, c] and isinstance(layers[1:], nn.ModuleList)
    layers.insert(0, d)
    assert [*layers] == [d, a, b, c] and [name for name, _ in layers.named_children()] == ["0", "1", "2", "3"]
    del layers[1]
    assert [*layers] == [d, b, c] and [*layers.state_dict()][::2] == ["0.weight", "1.weight", "2.weight"]
    layers[-1] = a
    layers += [c]
    assert [*layers] == [d, b, a, c] and [*layers.extend([b])][-1] is b
    assert len(nn.ModuleList()) == 0


def test_a_module_list_may_hold_a_module_twice_with_one_set_of_parameters():
    layer = nn.Linear(2, 2)
    layers = nn.ModuleList([layer, layer])
    assert len(layers) == 2 and len([*layers.parameters()]) == 2
    del layers[0]
    assert [*layers] == [layer]


def test_a_module_dict_is_a_dictionary():
    a, b = nn.ReLU(), nn.Tanh()
    heads = nn.ModuleDict([("a", a)])
    heads["b"] = b
    assert heads.keys() == ["a", "b"] and heads.values() == [a, b] and heads.items() == [("a", a), ("b", b)]
    assert "a" in heads and "c" not in heads and [*heads] == ["a", "b"] and len(heads) == 2
    heads["a"] = b
    assert heads["a"] is b and heads.pop("b") is b and heads.keys() == ["a"]
    del heads["a"]
    heads.update(nn.ModuleDict({"c": a}))
    assert heads.items() == [("c", a)]


def test_a_sequential_can_be_changed_like_a_list():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model.insert(1, nn.Tanh())
    del model[2]
    model[0] = nn.Linear(2, 3)
    assert repr(model) == "Sequential(\n  (0): Linear(in_features=2, out_features=3, bias=True)\n  (1): Tanh()\n)"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nn.ModuleList([nn.ReLU]), sn.ConfigError, r"ModuleList: expected modules, .*; write ReLU\(...\)"),
        (lambda: nn.ModuleList(nn.ReLU()), sn.ConfigError, "expected a list"),
        (lambda: nn.ModuleList([nn.ReLU()])[1], sn.IndexOutOfRangeError, r"position in \[-1, 1\), got 1"),
        (lambda: nn.ModuleList([nn.ReLU()])["0"], sn.ConfigError, "position"),
        (lambda: nn.ModuleList().insert(1, nn.ReLU()), sn.ConfigError, "from 0 to 0, got 1"),
        (lambda: nn.ModuleDict({"a.b": nn.ReLU()}), sn.ConfigError, "name without a dot"),
        (lambda: nn.ModuleDict({"items": nn.ReLU()}), sn.ConfigError, "expected a new name"),
        (lambda: nn.ModuleDict({1: nn.ReLU()}), sn.ConfigError, "expected a new name"),
        (lambda: nn.ModuleDict([nn.ReLU()]), sn.ConfigError, "expected a dict of modules"),
        (lambda: nn.ModuleDict({"a": 1}), sn.ConfigError, "expected modules"),
        (lambda: nn.ModuleDict({"a": nn.ReLU()})["b"], sn.IndexOutOfRangeError, "a key of a, got 'b'"),
        (lambda: nn.ParameterList(["a"]), sn.DtypeError, "numbers"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    error_line(caught)


def test_a_refused_extend_adds_nothing():
    layers = nn.ModuleList()
    with pytest.raises(sn.ConfigError):
        layers.extend([nn.ReLU(), 1])
    assert len(layers) == 0


def test_a_recorded_step_sees_a_layer_that_is_replaced():
    model, x = nn.ModuleList([nn.ReLU()]), np.array([-1.0, 2.0])
    step = sn.jit(lambda x: model[0](x))
    assert [step(sn.Tensor(x)).numpy().tolist() for _ in range(3)][2] == [0, 2]
    model[0] = nn.Identity()
    assert step(sn.Tensor(x)).numpy().tolist() == [-1, 2]
