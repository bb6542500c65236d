"""A network whose layers are computed by parts: it has the parameters and buffers of a model, under the same names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...nn import Module
from .parts_layers import KINDS, Parted, PartedAttention, PartedSequential, Unit
from .parts_plan import children_of, is_chain, plan_of, runs


def network(model: Module, parts: int, plan: Mapping[str, str] | None) -> Module:
    """What computes `model` in so many parts: see parts_layers.py; for one part the model itself.

    Layers are shared with the model. The modules around those that are cut are copies, as their `forward` calls others.
    """
    cut = plan_of(model, parts, plan)
    if parts == 1 or not cut:
        return model
    named = dict(model.named_modules())
    return _Twins({id(named[name]): kind for name, kind in cut.items()}, parts).of(model).train()


class _Twins:
    """kinds: how each layer is cut, by its id."""

    def __init__(self, kinds: Mapping[int, str], parts: int):
        self.kinds, self.parts = kinds, parts
        self.made: dict[int, Module] = {}

    def of(self, module: Module) -> Module:
        """The module itself if nothing in it is cut, else what stands for it."""
        if id(module) not in self.made:
            self.made[id(module)] = self._made(module)
        return self.made[id(module)]

    def _made(self, module: Module) -> Module:
        if id(module) in self.kinds:
            if type(module) in ATTENTION:
                return _twin(module, PartedAttention, _parts=self.parts)
            return _twin(module, Parted, _unit=self._unit([module]))
        children = children_of(module)
        twins = {name: self.of(child) for name, child in children.items()}
        if all(twins[name] is child for name, child in children.items()):
            return module
        if not is_chain(module):
            return _twin(module, type(module), **twins)
        called = list(children)
        for run in runs(children, lambda layer, kind: self.kinds.get(id(layer)) == kind):
            layers = [children[name] for name in run]
            twins[run[0]] = _twin(layers[0], Parted, _unit=self._unit(layers))
            called = [name for name in called if name not in run[1:]]
        return _twin(module, PartedSequential, **twins, _called=tuple(called))

    def _unit(self, layers: list[Module]) -> Unit:
        kinds = [KINDS[type(layer)][self.kinds[id(layer)]] if id(layer) in self.kinds else None for layer in layers]
        return Unit(list(zip(layers, kinds, strict=True)), self.parts)


ATTENTION = {layer for layer, kinds in KINDS.items() if "heads" in kinds}


def _twin(module: Module, kind: type, **own: Any) -> Module:
    """An object of this class with the attributes of the module, and others in their place."""
    twin: Module = object.__new__(kind)
    vars(twin).update(vars(module) | own)
    return twin
