"""L-BFGS: a quasi-Newton method of few, expensive steps, for small models and whole batches.

It minimises a function of one long vector, the parameters one after the other. A step calls a closure as often as it
likes, so it reads values: no recorded step and no Trainer can hold one. Vectors and sums are float64 on the host, and
sums do not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import checks
from ..errors import CheckpointError, ConfigError, GradientError
from ..grad_mode import recording
from ..ops.operands import overwrite
from .optimizer import Optimizer, Parameters

DECREASE, CURVATURE, TRIALS = 1e-4, 0.9, 25  # c1 and c2 of the Wolfe conditions; evaluations of a line search


class Point(NamedTuple):
    """A point x + t * d on the line of a search: the loss, its gradient, and the slope along d."""

    t: float
    loss: float
    gradient: np.ndarray
    slope: float


class Memory(NamedTuple):
    """What is kept between steps. s, y: differences of points and of gradients, one a row, the oldest first."""

    iterations: int
    evaluations: int
    direction: np.ndarray
    t: float
    gradient: np.ndarray
    scale: float
    s: np.ndarray
    y: np.ndarray


class LBFGS(Optimizer):
    """x += t * d, where d = -H g with the H that the last pairs of steps and gradient differences give.

    Nocedal and Wright 2006, algorithms 7.4 and 7.5; as torch.optim.LBFGS. One `step(closure)` takes up to max_iter
    such iterations; closure forgets the gradients, computes the loss, calls `backward` and returns the loss.

    lr: t, in the first iteration times min(1, 1 / sum of |g|). line_search_fn: None, or "strong_wolfe" to search the t
        that fulfils the strong Wolfe conditions (algorithms 3.5 and 3.6, cubic interpolation).
    max_eval: calls of the closure in a step; None is 5 / 4 * max_iter. history_size: pairs that are kept.
    tolerance_grad, tolerance_change: the step ends where no |g| is larger, or where neither t * d nor the loss changes
        by more. All parameters are one group.

    Raises ConfigError for a step without closure, GradientError for a closure that computed no gradient.
    """

    n_numbers, state_names, takes_closure, takes_rows = 0, (), True, False

    def __init__(
        self,
        params: Parameters,
        lr: float = 1.0,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
    ):
        self._memory: Memory | None = None
        super().__init__(
            params,
            lr=lr,
            max_iter=max_iter,
            max_eval=max_eval,
            tolerance_grad=tolerance_grad,
            tolerance_change=tolerance_change,
            history_size=history_size,
            line_search_fn=line_search_fn,
        )

    def add_param_group(self, group: dict[str, Any]) -> None:
        if self.param_groups:
            raise ConfigError("LBFGS: expected one group of parameters, which is one vector, got another one")
        super().add_param_group(group)

    def _check_options(self, group: Mapping[str, Any]) -> None:
        super()._check_options(group)
        for name in ("max_iter", "history_size"):
            checks.integer(f"LBFGS: {name}", group[name], 1)
        if group["max_eval"] is not None:
            checks.integer("LBFGS: max_eval", group["max_eval"], 1)
        for name in ("tolerance_grad", "tolerance_change"):
            checks.number(f"LBFGS: {name}", group[name], "[0, inf)")
        if group["line_search_fn"] is not None:
            checks.one_of("LBFGS: line_search_fn", group["line_search_fn"], ["strong_wolfe"])

    # --- a step -----------------------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Up to max_iter iterations; returns the loss that closure gave first."""
        self._outside_of_steps("LBFGS.step")
        if closure is None:
            raise ConfigError("LBFGS: step: expected a closure that computes the loss and its gradient, got none")
        checks.function("LBFGS: step", closure)
        options = dict(self.param_groups[0])
        least, change = options["tolerance_grad"], options["tolerance_change"]
        most = options["max_eval"] or options["max_iter"] * 5 // 4
        evaluations = 1
        first, loss, gradient = self._evaluate(closure)
        memory = self._memory
        for iteration in range(1, options["max_iter"] + 1):
            if np.abs(gradient).max(initial=0.0) <= least:
                break
            memory = self._turned(memory, gradient, options)
            start, before, d = self._point(), loss, memory.direction
            if (slope := _dot(gradient, d)) > -change:
                break
            at_0 = Point(0.0, loss, gradient, slope)

            def at(t: float, start: np.ndarray = start, d: np.ndarray = d) -> Point:
                self._move(start + t * d)
                _, loss, gradient = self._evaluate(closure)
                return Point(t, loss, gradient, _dot(gradient, d))

            trials = 0
            if options["line_search_fn"]:
                found, trials = strong_wolfe(at, at_0, memory.t, float(np.abs(d).max()))
                self._move(start + found.t * d)
                memory, loss, gradient = memory._replace(t=found.t), found.loss, found.gradient
            else:
                self._move(start + memory.t * d)
                if iteration < options["max_iter"]:
                    (_, loss, gradient), trials = self._evaluate(closure), 1
            evaluations += trials
            is_still = np.abs(memory.t * d).max() <= change or abs(loss - before) < change
            if evaluations >= most or is_still:
                break
        if memory is not None:
            done = 0 if self._memory is None else self._memory.evaluations
            self._memory = memory._replace(evaluations=done + evaluations)
        return first

    def _turned(self, memory: Memory | None, gradient: np.ndarray, options: Mapping[str, Any]) -> Memory:
        """The direction of the next iteration, by the two loops of algorithm 7.4."""
        lr, size = float(options["lr"]), int(options["history_size"])
        if memory is None:
            none = np.empty((0, gradient.size))
            return Memory(
                1, 0, -gradient, min(1.0, 1.0 / float(np.abs(gradient).sum())) * lr, gradient, 1.0, none, none
            )
        y, s = gradient - memory.gradient, memory.t * memory.direction
        scale, steps, changes = memory.scale, memory.s, memory.y
        if (curvature := _dot(y, s)) > 1e-10:
            steps, changes = np.vstack([steps, s])[-size:], np.vstack([changes, y])[-size:]
            scale = curvature / _dot(y, y)
        weights = [1.0 / _dot(y, s) for s, y in zip(steps, changes, strict=True)]
        d, shares = -gradient, [0.0] * len(steps)
        for i in reversed(range(len(steps))):
            shares[i] = _dot(steps[i], d) * weights[i]
            d = d - shares[i] * changes[i]
        d = d * scale
        for i in range(len(steps)):
            d = d + (shares[i] - _dot(changes[i], d) * weights[i]) * steps[i]
        return Memory(memory.iterations + 1, memory.evaluations, d, lr, gradient, scale, steps, changes)

    def _evaluate(self, closure: Callable[[], Any]) -> tuple[Any, float, np.ndarray]:
        with recording(True):
            result = closure()
        try:
            loss = float(result)
        except (TypeError, ValueError):
            checks.refuse("LBFGS: step", "a closure that returns the loss", result)
        gradients = [(state, state.param.grad) for state in self.states]
        if all(gradient is None for _, gradient in gradients):
            raise GradientError("LBFGS: step: expected a closure that calls backward, got no gradient of any parameter")
        flat = [
            np.zeros(state.shape) if g is None else state.param._device.to_host(self._gradient(state, g))
            for state, g in gradients
        ]
        return result, loss, _joined(flat)

    def _point(self) -> np.ndarray:
        """The parameters as one vector."""
        return _joined([state.param._device.to_host(state.param._data) for state in self.states])

    def _move(self, x: np.ndarray) -> None:
        """The parameters become those of a vector."""
        ends = np.cumsum([state.param.size for state in self.states])
        for state, part in zip(self.states, np.split(x, ends[:-1]), strict=True):
            overwrite(state.param, part.reshape(state.shape).astype(state.dtype))

    # --- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """That of every optimizer, and "memory", what is kept between steps, if there was one."""
        memory = {} if self._memory is None else {"memory": self._memory._asdict()}
        return super().state_dict() | memory

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state. Raises CheckpointError, and changes nothing, if it does not fit."""
        memory = state.get("memory") if isinstance(state, Mapping) else None
        if memory is not None and not self._fits(memory):
            raise CheckpointError(
                f"LBFGS: state dict: expected the memory of {self._point().size} parameters, got another"
            )
        super().load_state_dict(state)
        self._memory = None if memory is None else Memory(**memory)

    def _fits(self, memory: Any) -> bool:
        if not isinstance(memory, Mapping) or set(memory) != set(Memory._fields):
            return False
        arrays = {name: np.asarray(memory[name]) for name in ("direction", "gradient", "s", "y")}
        n, pairs = self._point().size, len(arrays["s"]) if arrays["s"].ndim else 0
        shapes = {"direction": (n,), "gradient": (n,), "s": (pairs, n), "y": (pairs, n)}
        numbers = [memory[name] for name in ("iterations", "evaluations", "t", "scale")]
        return all(a.dtype == np.float64 and a.shape == shapes[name] for name, a in arrays.items()) and all(
            checks.is_number(number) for number in numbers
        )


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum())


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([array.reshape(-1).astype(np.float64) for array in arrays])


# --- the line search --------------------------------------------------------------------------------------------------


def strong_wolfe(at: Callable[[float], Point], start: Point, t: float, length: float) -> tuple[Point, int]:
    """A point whose loss is low enough and whose slope is flat enough, and how many points were tried.

    loss <= start.loss + c1 * t * start.slope and |slope| <= c2 * |start.slope| (Nocedal and Wright 2006, (3.7)).
    at(t): the point there. length: of the longest component of the direction.
    """

    def is_high(p: Point) -> bool:
        return not p.loss <= start.loss + DECREASE * p.t * start.slope  # NaN is

    def is_flat(p: Point) -> bool:
        return abs(p.slope) <= -CURVATURE * start.slope

    before, new, trials = start, at(t), 1
    while True:  # algorithm 3.5: go out until two points have a good one between them
        if trials > TRIALS:
            before = start
            break
        if is_high(new) or (trials > 2 and new.loss >= before.loss):
            break
        if is_flat(new):
            return new, trials
        if new.slope >= 0:
            break
        further = interpolated(before, new, (new.t + 0.01 * (new.t - before.t), 10 * new.t))
        before, new, trials = new, at(further), trials + 1
    low, high = (new, before) if new.loss < before.loss else (before, new)  # NaN is never low
    was_near_an_end = False
    while trials <= TRIALS and abs(high.t - low.t) * length >= 1e-9:  # algorithm 3.6: narrow them
        left, right = sorted((low.t, high.t))
        first, last = sorted((low, high), key=lambda p: p.t)
        t, margin = interpolated(first, last, (left, right)), 0.1 * (right - left)
        is_near_an_end = min(right - t, t - left) < margin
        if is_near_an_end and (was_near_an_end or not left < t < right):
            t = right - margin if abs(t - right) < abs(t - left) else left + margin
            is_near_an_end = False
        was_near_an_end = is_near_an_end
        new, trials = at(t), trials + 1
        if is_high(new) or new.loss >= low.loss:
            low, high = (new, low) if new.loss < low.loss else (low, new)
            continue
        if is_flat(new):
            return new, trials
        low, high = new, low if new.slope * (high.t - low.t) >= 0 else high
    return low, trials


def interpolated(a: Point, b: Point, bounds: tuple[float, float]) -> float:
    """Where the cubic through a and b, a.t < b.t, and their slopes is lowest, within bounds; the middle if nowhere.

    Nocedal and Wright 2006, (3.59).
    """
    low, high = bounds
    d1 = a.slope + b.slope - 3 * (a.loss - b.loss) / (a.t - b.t)
    square = d1 * d1 - a.slope * b.slope
    if not square >= 0:
        return (low + high) / 2
    d2 = math.sqrt(square)
    divisor = b.slope - a.slope + 2 * d2
    t = b.t - (b.t - a.t) * ((b.slope + d2 - d1) / divisor) if divisor else math.nan
    return min(max(t, low), high) if t == t else (low + high) / 2
