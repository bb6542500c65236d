"""Gradients against central differences, in float64, of any order, and with an eye for kinks."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .. import checks
from ..errors import DtypeError, GradcheckError
from ..functions import grad
from ..grad_mode import no_grad
from ..tensor import Tensor

_DIRECTIONS = 2  # how many random directions through all inputs at once


def gradcheck(
    f: Callable[..., Tensor],
    inputs: Sequence[Any],
    *,
    order: int = 1,
    eps: float = 1e-4,
    rtol: float = 1e-6,
    kinks: str = "raise",
    max_elements: int = 64,
    seed: int = 0,
) -> None:
    """Checks the gradient of f with respect to every input against central differences.

    f: a function of tensors that returns a tensor of any shape, computed in float64.
    inputs: tensors, arrays or numbers; taken as float64, on the device of the first tensor among them.
    order: 2 checks the gradient of the gradient as well, and so on.
    eps: the step, times max(1, |x|). rtol: the relative error that passes.
    kinks: where f bends within a step there is no derivative to compare with. "raise" reports it, "skip" leaves the
        element out.
    max_elements: inputs of no more elements are checked element by element; all are checked together along random
        directions.

    f becomes a number by a random projection of its result. The quotients for the steps eps and eps / 2 are
    extrapolated (Richardson), which leaves an error of order eps**4. Their difference and the rounding error of f are
    added to the tolerance. A kink shows in one-sided quotients that do not approach each other when the step is
    halved. An input without a gradient counts as one with gradient 0.

    Raises GradcheckError with the worst element, DtypeError if f does not return a float64 tensor.
    """
    f, inputs = checks.function("gradcheck", f), checks.items("gradcheck", inputs, "a list of inputs")
    order, seed = checks.integer("gradcheck: order", order, 1, 8), checks.integer("gradcheck: seed", seed, 0)
    eps, rtol = checks.number("gradcheck: eps", eps, "(0, inf)"), checks.number("gradcheck: rtol", rtol, "[0, inf)")
    max_elements = checks.integer("gradcheck: max_elements", max_elements, 0)
    checks.one_of("gradcheck: kinks", kinks, ("raise", "skip"))
    rng = np.random.default_rng(seed)
    device = next((x.device for x in inputs if isinstance(x, Tensor)), None)
    points = [
        np.array(x.detach() if isinstance(x, Tensor) else checks.array("gradcheck: an input", x), np.float64)
        for x in inputs
    ]
    name = getattr(f, "__name__", type(f).__name__)

    leaves = [Tensor(x.copy(), requires_grad=True, device=device) for x in points]
    y = f(*leaves)
    if not isinstance(y, Tensor) or y.dtype != np.float64:
        came = f"a {y.dtype} tensor" if isinstance(y, Tensor) else type(y).__name__
        raise DtypeError(f"gradcheck: expected {name} to return a float64 tensor, got {came}")
    weights = rng.uniform(0.5, 1.5, y.shape) * rng.choice([-1.0, 1.0], y.shape)
    if y.requires_grad:
        y.backward(weights)
    gradients = [np.zeros(t.shape) if t.grad is None else t.grad.detach().numpy() for t in leaves]
    for i, (x, g) in enumerate(zip(points, gradients, strict=True)):
        if g.shape != x.shape or g.dtype != x.dtype:
            expected = f"a float64 gradient of shape {x.shape} for input {i}"
            raise GradcheckError(f"gradcheck: {name}: expected {expected}, got {g.dtype} of shape {g.shape}")

    def loss(arrays: Sequence[np.ndarray]) -> tuple[float, float]:
        """The projection of f, and the size of what it adds up."""
        with no_grad():
            parts = f(*[Tensor(x, device=device) for x in arrays]).numpy() * weights
        return float(parts.sum()), float(np.abs(parts).sum())

    _compare(name, loss, points, gradients, list(_directions(points, max_elements, eps, rng)), rtol, kinks)
    if order > 1:
        slope = _directional_derivative(f, [rng.uniform(0.5, 1.5, x.shape) for x in points])
        slope.__name__ = f"derivative of {name}"
        arguments = [Tensor(x, device=device) for x in (*points, weights)]
        options = {"eps": eps, "rtol": rtol, "kinks": kinks, "max_elements": max_elements, "seed": seed + 1}
        gradcheck(slope, arguments, order=order - 1, **options)  # type: ignore[arg-type]


def _directional_derivative(f: Callable[..., Tensor], direction: list[np.ndarray]) -> Callable[..., Tensor]:
    """The derivative of (f * weights).sum() along a direction, as a function of f's inputs and of the weights."""

    def slope(*args: Tensor) -> Tensor:
        *xs, weights = args
        gradients = grad(lambda *xs: (f(*xs) * weights).sum(), tuple(range(len(xs))))(*xs)
        parts = [(g * d).sum() for g, d in zip(gradients, direction, strict=True)]
        return sum(parts[1:], parts[0])

    return slope


def _directions(points: list[np.ndarray], max_elements: int, eps: float, rng) -> Iterator[tuple]:
    """(name, one array an input, step): the elements of small inputs, then random directions through all inputs."""
    for i, x in enumerate(points):
        if x.size <= max_elements:
            for at in np.ndindex(x.shape):
                direction = [np.zeros(p.shape) for p in points]
                direction[i][at] = 1
                yield f"element {at} of input {i}", direction, eps * max(1.0, float(abs(x[at])))
    for _ in range(_DIRECTIONS):
        yield "a random direction", [rng.uniform(-1, 1, p.shape) for p in points], eps


def _compare(name, loss, points, gradients, directions, rtol: float, kinks: str) -> None:
    """Raises GradcheckError for the direction in which gradient and difference quotient are furthest apart."""
    middle = loss(points)
    errors = []
    for where, direction, step in directions:
        expected, doubt, is_kink = _quotient(loss, points, direction, step, *middle)
        if is_kink and kinks == "raise":
            raise GradcheckError(f"gradcheck: {name}: expected a smooth function, got a kink near {where}")
        if not is_kink:
            got = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
            excess = abs(got - expected) / (rtol * max(abs(got), abs(expected)) + doubt)
            errors.append((excess if excess == excess else np.inf, f"{where}: expected {expected:.9g}, got {got:.9g}"))
    wrong = [error for error in errors if error[0] > 1]
    if wrong:
        raise GradcheckError(f"gradcheck: {name}: gradient at {max(wrong)[1]} ({len(wrong)} of {len(errors)} wrong)")


def _quotient(loss, points, direction, step: float, middle: float, size: float) -> tuple[float, float, bool]:
    """The derivative of loss along a direction by differences: (value, how far off it may be, is there a kink)."""

    def at(t: float) -> float:
        return loss([x + t * d for x, d in zip(points, direction, strict=True)])[0]

    right, left, half_right, half_left = at(step), at(-step), at(step / 2), at(-step / 2)
    whole, half = (right - left) / (2 * step), (half_right - half_left) / step
    bend, half_bend = (right - 2 * middle + left) / step, (half_right - 2 * middle + half_left) / (step / 2)
    noise = 32 * np.finfo(float).eps * (size + 1) / step
    scale = abs(whole) + abs(half) + size
    # A smooth f bends half as much over half a step; at a kink the bend stays, beside one the quotients differ.
    is_kink = abs(half_bend) > 0.75 * abs(bend) + noise + 1e-6 * scale or abs(whole - half) > 1e-5 * scale + noise
    return (4 * half - whole) / 3, float(noise + abs(whole - half)), bool(is_kink)
