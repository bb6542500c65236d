"""What is done to the gradients of a model between backward and the optimizer's step."""

import functools
import math
from collections.abc import Iterable, Iterator

from .. import checks
from ..errors import ConfigError, NonFiniteError
from ..functions import maximum, minimum, sqrt
from ..grad_mode import no_grad
from ..tensor import Tensor


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
    given, parameters = parameters, [parameters] if isinstance(parameters, Tensor) else parameters
    parameters = checks.items("clip_grad_norm_", parameters, "parameters")
    for p in parameters:
        checks.instance("clip_grad_norm_", p, Tensor, "parameters")
    if not parameters and isinstance(given, Iterator):
        raise ConfigError("clip_grad_norm_: expected parameters, got a generator that was used up; use a list of them")
    gradients = [(p, g) for p in parameters if (g := p._read_grad()) is not None]
    with no_grad():
        norm = _norm([g for _, g in gradients if g.size], norm_type)
        if error_if_nonfinite and not math.isfinite(norm.item()):
            raise NonFiniteError(f"clip_grad_norm_: expected finite gradients, got norm {norm.item()}")
        factor = minimum(max_norm / (norm + 1e-6), 1.0)
        for p, gradient in gradients:
            p.grad = gradient * factor.astype(gradient.dtype)
    return norm


def _norm(gradients: list[Tensor], p: float) -> Tensor:
    if not gradients:
        return Tensor(0.0, dtype="float64")
    sizes = [g.astype("float64").abs() for g in gradients]
    if p == math.inf:
        return functools.reduce(maximum, [size.max() for size in sizes])
    total = functools.reduce(Tensor.__add__, [(size * size if p == 2 else size**p).sum() for size in sizes])
    return sqrt(total) if p == 2 else total ** (1 / p)
