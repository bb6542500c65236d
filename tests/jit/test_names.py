"""What a step can reach by name: where it changes, the step is recorded again."""

import argparse
import collections
import functools
import operator
import sys
import types

import numpy as np
import pytest

import scratchnet as sn
from scratchnet.jit.names import names_in

X = np.arange(6, dtype=np.float32).reshape(2, 3)


class Config:
    rate = 2.0

    def moved(self, h):
        return h + 1.0

    @classmethod
    def grown(cls, h):
        return h * cls.rate


class Other(Config):
    def moved(self, h):
        return h - 1.0


class Special:
    def __len__(self):
        return config.size

    def __getitem__(self, i):
        return config.size + i

    def __rmul__(self, h):
        return h * config.size


config, special, scale = Config(), Special(), 2.0


def helper(h, by=2.0):
    return h * by


def another(h, by=3.0):
    return h - by


def set_default():
    helper.__defaults__ = (5.0,)


def set_code():
    helper.__code__ = another.__code__


def set_method():
    config.moved = lambda h: h * 4.0


def set_class():
    config.__class__ = Other


def set_size():
    config.size = 7


def set_scale():
    global scale
    scale = 6.0


def set_bonus():
    config.bonus = True


CASES = {
    "a function's default": (lambda x: helper(x), set_default),
    "a function's code": (lambda x: helper(x), set_code),
    "a function's code, in a partial": (functools.partial(lambda f, x: f(x), helper), set_code),
    "a method of one object": (lambda x: config.moved(x), set_method),
    "a class method": (lambda x: Config.grown(x), lambda: setattr(Config, "rate", 3.0)),
    "an attribute that hides its class's": (lambda x: x * config.rate, lambda: setattr(config, "rate", 5.0)),
    "the class of an object": (lambda x: config.moved(x), set_class),
    "an attribute that was not there": (lambda x: x * 2.0 if hasattr(config, "bonus") else x, set_bonus),
    "an attribute by a getter": (lambda x: x * operator.attrgetter("size")(config), set_size),
    "a length": (lambda x: x * len(special), set_size),
    "a global, as an item": (lambda x: x * globals()["scale"], set_scale),
    "an item": (lambda x: x * special[1], set_size),
}  # fmt: skip


@pytest.fixture(autouse=True)
def as_it_was():
    before = helper.__defaults__, helper.__code__
    config.size = 2
    yield
    helper.__defaults__, helper.__code__ = before
    vars(config).clear()
    config.__class__, Config.rate = Config, 2.0
    globals()["scale"] = 2.0


@pytest.mark.parametrize("name", CASES)
def test_a_change_by_name_is_noticed(name):
    plain, change = CASES[name]
    step = sn.jit(plain)
    x = sn.Tensor(X)
    for _ in range(3):
        before = step(x).numpy()
    assert step.programs
    change()
    assert not np.array_equal(plain(x).numpy(), before)
    for _ in range(3):
        np.testing.assert_array_equal(step(x).numpy(), plain(x).numpy())


class Items(dict):
    size = 2.0


class Data(collections.UserDict):
    pass


class Partial:
    def _times(self, factor, by):
        return factor * scale * by

    twice = functools.partialmethod(_times, by=2.0)


def by_import(_):
    import made_for_this_test as made

    return made.size


def from_import(_):
    from made_for_this_test import size

    return size


def by_function(_):
    return by_function.size


def module():
    made = sys.modules["made_for_this_test"] = types.ModuleType("made_for_this_test")
    made.size = 2.0
    return made.__name__


def with_attribute():
    by_function.size = 2.0
    return by_function


SIZE, ITEM = lambda holder: holder.size, lambda holder: holder["size"]
SET_SIZE, SET_ITEM = lambda holder: setattr(holder, "size", 3.0), lambda holder: holder.__setitem__("size", 3.0)
BEHIND = {"size": 2.0}
HOLDERS = {  # what is made, what the step reads of it, the change
    "a namespace": (lambda: types.SimpleNamespace(size=2.0), SIZE, SET_SIZE),
    "arguments of a script": (lambda: argparse.Namespace(size=2.0), SIZE, SET_SIZE),
    "a namespace, by getattr": (lambda: types.SimpleNamespace(size=2.0), lambda x: getattr(x, "siz" + "e"), SET_SIZE),
    "a getter made before": (lambda: types.SimpleNamespace(size=2.0), operator.attrgetter("size"), SET_SIZE),
    "a deque": (lambda: collections.deque([2.0]), lambda x: x[0], lambda x: x.append(x.popleft() + 1)),
    "a UserDict": (lambda: collections.UserDict(size=2.0), ITEM, SET_ITEM),
    "a class of UserDict": (lambda: Data(size=2.0), ITEM, SET_ITEM),
    "a UserList": (lambda: collections.UserList([2.0]), lambda x: x[0], lambda x: x.__setitem__(0, 3.0)),
    "a ChainMap": (lambda: collections.ChainMap({"size": 2.0}), ITEM, SET_ITEM),
    "a view of a dictionary": (
        lambda: types.MappingProxyType(BEHIND), ITEM, lambda _: BEHIND.__setitem__("size", BEHIND["size"] + 1)
    ),
    "an attribute of a dictionary": (Items, SIZE, SET_SIZE),
    "an attribute of a function": (with_attribute, by_function, SET_SIZE),
    "a partial method": (Partial, lambda x: x.twice(1.0), lambda _: set_scale()),
    "a module imported in the step": (module, by_import, lambda name: SET_SIZE(sys.modules[name])),
    "a name imported in the step": (module, from_import, lambda name: SET_SIZE(sys.modules[name])),
}  # fmt: skip


@pytest.mark.parametrize("name", HOLDERS)
def test_a_change_in_what_holds_values_is_noticed(name):
    make, read, change = HOLDERS[name]
    holder, x = make(), sn.Tensor(X)
    step = sn.jit(lambda x: x * read(holder))
    for _ in range(3):
        before = step(x).numpy()
    assert step.programs
    change(holder)
    assert not np.array_equal((x * read(holder)).numpy(), before)
    for _ in range(3):
        np.testing.assert_array_equal(step(x).numpy(), (x * read(holder)).numpy())
    assert len(step.programs) == 2


def test_an_array_that_kernels_and_numpy_read_is_looked_at():
    weights = np.array([1.0, 2.0, 3.0], np.float32)
    plain = lambda x: x * weights * float(weights.mean())  # noqa: E731
    step = sn.jit(plain)
    for i in range(6):
        weights[0] = i // 2
        np.testing.assert_array_equal(step(sn.Tensor(X)).numpy(), plain(sn.Tensor(X)).numpy())


@pytest.mark.parametrize("by_kernels_too", [False, True])
def test_numpy_that_writes_to_an_array_which_kernels_read_is_refused(by_kernels_too):
    weights = np.ones(3, np.float32)
    tensor = sn.Tensor(weights)

    def step(x):
        if by_kernels_too:
            tensor.add_(1.0)
        weights[0] *= 0.5
        return x * tensor

    step = sn.jit(step)
    with pytest.raises(sn.JitError, match="weights"):
        for _ in range(3):
            step(sn.Tensor(X))


def test_an_array_that_kernels_alone_write_may_change():
    weights = np.ones(3, np.float32)
    tensor = sn.Tensor(weights)
    step = sn.jit(lambda x: tensor.add_(1.0) * weights)
    assert [step(sn.Tensor(X)).numpy().tolist() for _ in range(4)] == [[v * v] * 3 for v in (2.0, 3.0, 4.0, 5.0)]
    assert step.programs


def test_a_model_that_moves_to_another_device_is_followed():
    model = sn.nn.Linear(3, 2)
    step = sn.jit(lambda x: model(x))
    for _ in range(3):
        step(sn.Tensor(X))
    model.to("numpy")
    with pytest.raises(sn.DeviceError):
        step(sn.Tensor(X))
    assert step(sn.Tensor(X, device="numpy")).device == "numpy"


def test_a_masked_array_and_its_mask_are_guarded():
    numbers = np.ma.masked_array([1.0, 2.0], [False, True])
    step = sn.jit(lambda x: x * float(numbers.sum() if numbers is not np.ma.masked else 0))
    x = sn.Tensor([1.0])
    assert [step(x).item() for _ in range(3)] == [1.0] * 3
    numbers.mask = False
    assert [step(x).item() for _ in range(3)] == [3.0] * 3


def test_an_import_in_a_long_function_is_found():
    """From the 257th constant on, each stands behind a prefix."""
    lines = [f"    y = {i}.5" for i in range(300)]
    scope = {}
    exec("\n".join(["def f(x):", *lines, "    from collections import abc", "    return abc"]), scope)
    assert names_in(scope["f"].__code__)[2] == {"collections"}


def test_a_relative_import_in_a_script_names_no_module():
    scope = {"__name__": "__main__", "__package__": None}
    lines = "try:", "    from .layers import scale", "except ImportError:", "    scale = 2.0", "return x * scale"
    exec("\n".join(["def f(x):", *(f"    {line}" for line in lines)]), scope)
    step = sn.jit(scope["f"])
    assert [step(sn.Tensor([3.0])).item() for _ in range(4)] == [6.0] * 4
