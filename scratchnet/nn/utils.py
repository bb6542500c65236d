"""What is done to the gradients of a model before the optimizer's step, and parameters as one vector or as a table."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator

from .. import checks
from ..errors import ConfigError, NonFiniteError, ShapeError
from ..functions import cat, maximum, minimum, sqrt
from ..grad_mode import no_grad
from ..row_gradient import RowGradient
from ..tensor import Tensor
from .module import Module, Parameter


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """Scales all gradients by one factor so that their norm, as one long vector, is at most max_norm.

    norm_type: p of the p-norm; math.inf for the largest element. The factor is max_norm / (norm + 1e-6), at most 1;
    if it is NaN the gradients become NaN, which hides nothing.
    error_if_nonfinite: raise NonFiniteError, and scale nothing, if the norm is NaN or infinite.
    Raises ConfigError for a generator that was used up.

    Returns the norm before scaling, float64 of shape (). Sums are in float64, where squares of float32 do not overflow.
    """
    max_norm = checks.number("clip_grad_norm_: max_norm", max_norm, "[0, inf]")
    norm_type = checks.number("clip_grad_norm_: norm_type", norm_type, "(0, inf]")
    error_if_nonfinite = checks.flag("clip_grad_norm_: error_if_nonfinite", error_if_nonfinite)
    parameters = _parameters("clip_grad_norm_", parameters)
    gradients = [(p, g) for p in parameters if (g := p.grad) is not None]
    with no_grad():
        values = [g.values if isinstance(g, RowGradient) else g for _, g in gradients]
        norm = _norm([g for g in values if g.size], norm_type)
        if error_if_nonfinite and not math.isfinite(norm.item()):
            raise NonFiniteError(f"clip_grad_norm_: expected finite gradients, got norm {norm.item()}")
        factor = minimum(max_norm / (norm + 1e-6), 1.0)
        for p, gradient in gradients:
            p.grad = _mapped(gradient, lambda values: values * factor.astype(values.dtype))
    return norm


def _norm(gradients: list[Tensor], p: float) -> Tensor:
    if not gradients:
        return Tensor(0.0, dtype="float64")
    sizes = [g.astype("float64").abs() for g in gradients]
    if p == math.inf:
        return functools.reduce(maximum, [size.max() for size in sizes])
    total = functools.reduce(Tensor.__add__, [(size * size if p == 2 else size**p).sum() for size in sizes])
    return sqrt(total) if p == 2 else total ** (1 / p)


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Limits each element of all gradients to [-clip_value, clip_value]; NaN stays NaN."""
    clip_value = checks.number("clip_grad_value_: clip_value", clip_value, "[0, inf]")
    with no_grad():
        for p in _parameters("clip_grad_value_", parameters):
            if (gradient := p.grad) is not None:
                p.grad = _mapped(gradient, lambda values: values.clip(-clip_value, clip_value))


def _mapped(gradient: Tensor | RowGradient, function: Callable[[Tensor], Tensor]) -> Tensor | RowGradient:
    """function(gradient), of a function that leaves 0 as it is."""
    return gradient.map(function) if isinstance(gradient, RowGradient) else function(gradient)


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """The parameters one after the other, as one vector; gradients travel back to them."""
    given = _parameters("parameters_to_vector", parameters)
    if not given:
        raise ConfigError("parameters_to_vector: expected at least one parameter, got none")
    return cat([p.reshape(p.size) for p in given])


def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """Writes the parts of a vector into the parameters, in place, in the order of parameters_to_vector.

    Raises ShapeError for another length, and then nothing was written.
    """
    given = _parameters("vector_to_parameters", parameters)
    checks.instance("vector_to_parameters", vec, Tensor, "a vector as a Tensor", "make it by sn.Tensor(...)")
    total = sum(p.size for p in given)
    if vec.shape != (total,):
        raise ShapeError(f"vector_to_parameters: expected a vector of {total} elements, got shape {vec.shape}")
    start = 0
    with no_grad():
        for p in given:
            p.copy_(vec[start : start + p.size].reshape(p.shape))
            start += p.size


def _parameters(name: str, parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """The parameters as a list. Raises ConfigError for other things, or for a generator that was used up."""
    found = checks.items(name, [parameters] if isinstance(parameters, Tensor) else parameters, "parameters")
    for p in found:
        checks.instance(name, p, Tensor, "parameters")
    if not found and isinstance(parameters, Iterator):
        raise ConfigError(f"{name}: expected parameters, got a generator that was used up; use a list of them")
    return found


class _Summary(str):
    """A text that notebooks and the prompt show with its lines."""

    def __repr__(self) -> str:
        return str(self)


def summary(model: Module) -> _Summary:
    """Each module with its kind, the shapes of its own parameters and their number; then the sums.

    A parameter that two modules share counts once, where it is found first.
    """
    checks.instance("summary", model, Module, "a module")
    seen: set[int] = set()
    rows = [("", "module", "parameters", "number")]
    total, trained, size = 0, 0, sum(buffer._data.nbytes for buffer in model.buffers())
    for name, module in model.named_modules():
        found = {key: value for key, value in vars(module).items() if isinstance(value, Parameter)}
        own = {key: value for key, value in found.items() if id(value) not in seen}
        seen |= {id(value) for value in own.values()}
        shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in own.items())
        number = sum(value.size for value in own.values())
        total, size = total + number, size + sum(value._data.nbytes for value in own.values())
        trained += sum(value.size for value in own.values() if value.requires_grad)
        depth = name.count(".") + bool(name)
        rows.append(
            ("  " * depth + name.rpartition(".")[2], type(module).__name__, shapes, f"{number:,}" * bool(number))
        )
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {shapes:<{widths[2]}}  {number:>{widths[3]}}".rstrip()
        for name, kind, shapes, number in rows
    ]
    lines.append(f"{total:,} parameters, {trained:,} trained; {size / 1e6:,.2f} MB with buffers")
    return _Summary("\n".join(lines))
