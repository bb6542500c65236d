"""What is done to the gradients of a model between backward and the optimizer's step."""

import math
from collections.abc import Iterable

from ..errors import ConfigError, NonFiniteError
from ..tensor import Tensor, no_grad


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> float:
    """Scales all gradients by one factor so that their norm, as one long vector, is at most max_norm.

    norm_type: p of the p-norm; math.inf for the largest element. The factor is max_norm / (norm + 1e-6), at most 1.
    error_if_nonfinite: raise NonFiniteError, and scale nothing, if the norm is NaN or infinite.

    Returns the norm before scaling. The sums are taken in float64, where squares of float32 cannot overflow.
    """
    if not max_norm >= 0 or not norm_type > 0:
        raise ConfigError(f"clip_grad_norm_: expected max_norm >= 0 and norm_type > 0, got {max_norm} and {norm_type}")
    parameters = [parameters] if isinstance(parameters, Tensor) else parameters
    gradients = [(p, p.grad) for p in parameters if p.grad is not None]
    with no_grad():
        norm = _norm([g for _, g in gradients], norm_type)
        if error_if_nonfinite and not math.isfinite(norm):
            raise NonFiniteError(f"clip_grad_norm_: expected finite gradients, got norm {norm}")
        factor = max_norm / (norm + 1e-6)
        if not factor >= 1:  # a NaN goes on to the gradients, where it is seen
            for p, g in gradients:
                p.grad = g * factor
    return norm


def _norm(gradients: list[Tensor], p: float) -> float:
    sizes = [g.astype("float64").abs() for g in gradients if g.size]
    if p == math.inf:
        largest = [size.max().item() for size in sizes]
        return math.nan if any(map(math.isnan, largest)) else max(largest, default=0.0)
    powers = [(size * size if p == 2 else size**p).sum().item() for size in sizes]
    return sum(powers) ** (1 / p)
