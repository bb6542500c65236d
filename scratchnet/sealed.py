"""Sealed: objects whose settings take effect or are refused. `optimizer.lr = 0.1` would be stored, and never read."""

from __future__ import annotations

import inspect
from typing import Any

from .errors import UnknownAttributeError


class _Seals(type):
    """Seals each object when the last `__init__`, which may be a subclass's, is done."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        made.__dict__["_is_sealed"] = True
        return made

    @property
    def __signature__(cls) -> inspect.Signature:
        """Of the constructor, for `help`: that of __call__ above says nothing."""
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]
        return signature.replace(parameters=list(signature.parameters.values())[1:])


class Sealed(metaclass=_Seals):
    """Base of what takes no other attributes, once it is made, than those that it has.

    Raises UnknownAttributeError for others, and for those that are fixed.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if "_is_sealed" in self.__dict__ and (remedy := self._refusal(name)) is not None:
            raise UnknownAttributeError(f"{type(self).__name__}.{name}: expected {remedy}")
        object.__setattr__(self, name, value)

    def _refusal(self, name: str) -> str | None:
        """What to do instead of setting this attribute; None if it may be set."""
        declared = getattr(type(self), name, None)
        if name in self.__dict__ or (declared is not None and getattr(declared, "fset", True)):
            return None
        known = ", ".join(key for key in vars(self) if not key.startswith("_"))
        return f"an attribute that is read, one of {known}, got another one"
