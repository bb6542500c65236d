"""FunctionModule: the base of activations and losses, modules that hold the options of a function and call it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..tensor import ArrayLike, Tensor
from .module import Module


class FunctionModule(Module):
    """Calls a function that a subclass names in its head: its arguments with a default are attributes here."""

    _function: Callable[..., Tensor]
    _options: dict[str, Any]

    def __init_subclass__(cls, function: Callable[..., Tensor] | None = None, **others: Any):
        super().__init_subclass__(**others)
        if function is not None:
            cls._function = staticmethod(function)
            parameters = inspect.signature(function).parameters.values()
            cls._options = {p.name: p.default for p in parameters if p.default is not p.empty}

    def forward(self, *inputs: ArrayLike) -> Tensor:
        return self._function(*inputs, **{name: getattr(self, name) for name in self._options})

    def extra_repr(self) -> str:
        """The options that are not the function's defaults."""
        changed = []
        for name, default in self._options.items():
            value = getattr(self, name)
            if isinstance(value, Tensor) or value != default:
                changed.append(f"{name}={list(value.shape) if isinstance(value, Tensor) else value!r}")
        return ", ".join(changed)
