"""A network whose layers are computed by parts: it has the parameters and buffers of a model, under the same names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from ...errors import ConfigError
from ...nn import Module
from .parts_layers import KINDS, Parted, PartedAttention, PartedSequential, Unit
from .parts_plan import children_of, is_chain, plan_of, runs


def network(model: Module, parts: int, plan: Mapping[str, str] | None) -> Module:
    """What computes `model` in so many parts: see parts_layers.py; for one part the model itself."""
    if not plan_of(model, parts, plan) or parts == 1:  # a plan is checked also for one part
        return model
    return Network(model, parts, plan)


class Network(Module):
    """A model that is computed by parts. Its modules are the model's, and copies of those around layers that are cut,
    as their `forward` calls others; they are copied anew when an attribute of the model was set since.
    """

    def __init__(self, model: Module, parts: int, plan: Mapping[str, str] | None):
        self.model, self.parts, self.plan = model, parts, plan
        self._seen: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model, "parts": self.parts, "plan": self.plan, "_seen": None}

    def forward(self, *inputs: Any, **named: Any) -> Any:
        y = self._current()(*inputs, **named)
        for twin, before in vars(self)["_made"]:
            for name, value in vars(twin).items():
                if name not in before or before[name] is not value:
                    vars(self)["_seen"] = None
                    raise ConfigError(
                        "parts: expected a forward that sets no attribute of a module around layers that are "
                        f"cut, as that is a copy, got {type(twin).__name__}.{name}; return it, or leave the layers out "
                        "of plan="
                    )
        return y

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        return self._current().named_modules()

    def train(self, mode: bool = True) -> Self:
        self.model.train(mode)
        return self

    def _current(self) -> Module:
        modules = list(self.model.modules())
        seen = [(module, list(vars(module).values())) for module in modules]
        if not _are_same(seen, self._seen):
            cut, names = plan_of(self.model, self.parts, self.plan), dict(self.model.named_modules())
            kinds = {id(names[name]): kind for name, kind in cut.items()}
            twins = _Twins(kinds, self.parts)
            copy = twins.of(self.model)
            made = [(twin, dict(vars(twin))) for twin in twins.made.values() if twin not in modules]
            vars(self).update(_seen=seen, _copy=copy, _made=made)
        return vars(self)["_copy"]


def _are_same(seen: Sequence[tuple[Module, list[Any]]], before: Sequence[tuple[Module, list[Any]]] | None) -> bool:
    """The same modules, with the same objects as attributes?"""
    if before is None or len(seen) != len(before):
        return False
    return all(
        a is b and len(own) == len(old) and all(x is y for x, y in zip(own, old, strict=True))
        for (a, own), (b, old) in zip(seen, before, strict=True)
    )


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
        called, around = list(children), list[Any]()
        for run in runs(children, lambda layer, kind: self.kinds.get(id(layer)) == kind):
            layers = [children[name] for name in run]
            twins[run[0]] = _twin(layers[0], Parted, _unit=self._unit(layers), _around=around)
            called = [name for name in called if name not in run[1:]]
        kind = type(f"Parted{type(module).__name__}", (PartedSequential, type(module)), {})  # with its other methods
        return _twin(module, kind, **twins, _called=tuple(called), _around=around)

    def _unit(self, layers: list[Module]) -> Unit:
        kinds = [KINDS[type(layer)][self.kinds[id(layer)]] if id(layer) in self.kinds else None for layer in layers]
        return Unit(list(zip(layers, kinds, strict=True)), self.parts)


ATTENTION = {layer for layer, kinds in KINDS.items() if "heads" in kinds}


def _twin(module: Module, kind: type, **own: Any) -> Module:
    """An object of this class with the attributes of the module, and others in their place."""
    if "forward" in vars(module):
        raise ConfigError(
            "parts: expected the forward of its class in a module around layers that are cut, got one that "
            f"was set, in {type(module).__name__}; leave its layers out of plan="
        )
    twin: Module = object.__new__(kind)
    vars(twin).update(vars(module) | own)
    return twin
