"""Sealed objects take the attributes that they have, and no others."""

import inspect

import pytest
from messages import error_line

import scratchnet as sn
from scratchnet.sealed import Sealed


class Machine(Sealed):
    kind = "machine"

    def __init__(self):
        self.speed = 1
        self._hidden = 2

    @property
    def twice(self):
        return 2 * self.speed

    @property
    def half(self):
        return self.speed / 2

    @half.setter
    def half(self, value):
        self.speed = 2 * value


def test_known_attributes_can_be_set_and_others_are_refused():
    machine = Machine()
    machine.speed, machine._hidden, machine.kind = 3, 4, "other"
    machine.half = 5
    assert machine.speed == 10
    for name in ("sped", "twice"):
        with pytest.raises(sn.UnknownAttributeError, match=rf"Machine\.{name}: expected .*speed") as error:
            setattr(machine, name, 1)
        assert isinstance(error.value, AttributeError) and "_hidden" not in error_line(error)
    assert machine.twice == 20 and not hasattr(machine, "sped")


def test_an_object_is_sealed_when_the_last_subclass_is_done():
    class Engine(Machine):
        def __init__(self):
            super().__init__()
            self.power = 1

    engine = Engine()
    engine.power = 2
    with pytest.raises(sn.UnknownAttributeError):
        engine.powr = 3


def test_the_signature_is_that_of_the_constructor():
    assert list(inspect.signature(sn.optim.SGD).parameters)[:2] == ["params", "lr"]
    assert list(inspect.signature(sn.Trainer).parameters)[:3] == ["model", "optimizer", "loss"]
