"""Optimizers: one pass over a flat parameter and its state. The numbers of a step are constants of its formula."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np

from ..scalars import FADES
from .compile import Kernel, cuda, device, kernel, launch, sqrt
from .grids import in_row
from .replay import numbers as numbers_of
from .scalars import scalars

# --- updates of element i, whose gradient is g. arrays: the parameter and its state, then the new ones -----------


@cache
def updates(dtype: np.dtype) -> dict[str, Callable]:
    """name -> helper update(i, g, arrays, numbers)."""
    flushed, ZERO = scalars(dtype)["flushed"], dtype.type(0)
    smallest = np.finfo(dtype).tiny

    @device
    def faded(p, least):
        return ZERO if abs(p) < least * smallest else p

    def sgd(i, g, arrays, numbers):
        param, velocity, new_param, new_velocity = arrays
        lr, momentum, nesterov, weight_decay = numbers[0], numbers[1], numbers[2], numbers[3]
        g += weight_decay * param[i]
        v = momentum * velocity[i] + g
        step = g + momentum * v if nesterov != ZERO else v
        new_param[i] = param[i] - lr * step
        new_velocity[i] = flushed(v)

    def adam(i, g, arrays, numbers):
        param, m, v, new_param, new_m, new_v = arrays
        keep, decay, beta1, rest1 = numbers[0], numbers[1], numbers[2], numbers[3]
        beta2, rest2, rate, scale, eps = numbers[4], numbers[5], numbers[6], numbers[7], numbers[8]
        g += decay * param[i]
        first = beta1 * m[i] + rest1 * g
        second = beta2 * v[i] + rest2 * g * g
        new_param[i] = faded(keep * param[i] - rate * (first / (sqrt(second) * scale + eps)), numbers[9])
        new_m[i] = flushed(first)
        new_v[i] = flushed(second)

    def amsgrad(i, g, arrays, numbers):
        param, m, v, top, new_param, new_m, new_v, new_top = arrays
        keep, decay, beta1, rest1 = numbers[0], numbers[1], numbers[2], numbers[3]
        beta2, rest2, rate, scale, eps = numbers[4], numbers[5], numbers[6], numbers[7], numbers[8]
        g += decay * param[i]
        first = beta1 * m[i] + rest1 * g
        second = beta2 * v[i] + rest2 * g * g
        largest = second if second > top[i] or second != second else top[i]
        new_param[i] = faded(keep * param[i] - rate * (first / (sqrt(largest) * scale + eps)), numbers[9])
        new_m[i] = flushed(first)
        new_v[i] = flushed(second)
        new_top[i] = flushed(largest)

    def adagrad(i, g, arrays, numbers):
        param, total, new_param, new_total = arrays
        rate, eps, weight_decay = numbers[0], numbers[1], numbers[2]
        g += weight_decay * param[i]
        squares = total[i] + g * g
        new_param[i] = param[i] - rate * (g / (sqrt(squares) + eps))
        new_total[i] = flushed(squares)

    def adadelta(i, g, arrays, numbers):
        param, v, u, new_param, new_v, new_u = arrays
        lr, rho, rest, eps, weight_decay = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
        g += weight_decay * param[i]
        square = rho * v[i] + rest * g * g
        step = sqrt(u[i] + eps) / sqrt(square + eps) * g
        new_param[i] = param[i] - lr * step
        new_v[i] = flushed(square)
        new_u[i] = flushed(rho * u[i] + rest * step * step)

    def rmsprop(i, g, arrays, numbers):
        param, v, velocity, new_param, new_v, new_velocity = arrays
        lr, alpha, rest = numbers[0], numbers[1], numbers[2]
        eps, momentum, weight_decay = numbers[3], numbers[4], numbers[5]
        g += weight_decay * param[i]
        square = alpha * v[i] + rest * g * g
        u = momentum * velocity[i] + g / (sqrt(square) + eps)
        new_param[i] = faded(param[i] - lr * u, numbers[6])
        new_v[i] = flushed(square)
        new_velocity[i] = flushed(u)

    return {update.__name__: device(update) for update in (sgd, adam, amsgrad, adagrad, adadelta, rmsprop)}


@cache
def updating(name: str, dtype: np.dtype, threads: int) -> Kernel:
    update = updates(dtype)[name]

    @kernel(threads)
    def loop(grad, arrays, numbers):
        for i in range(cuda.grid(1), grad.size, cuda.gridsize(1)):
            update(i, grad[i], arrays, numbers)

    return loop


# --- the numbers of a step become constants of the formula -----------------------------------------------------------


def _of_adam(numbers):
    lr, beta1, beta2, eps, weight_decay, decoupled, step = numbers
    keep, decay = (1 - lr * weight_decay, 0.0) if decoupled else (1.0, weight_decay)
    rate, scale = lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)
    return keep, decay, beta1, 1 - beta1, beta2, 1 - beta2, rate, scale, eps, FADES if decay else 0.0


def _of_adadelta(numbers):
    lr, rho, eps, weight_decay = numbers
    return lr, rho, 1 - rho, eps, weight_decay


def _of_rmsprop(numbers):
    lr, alpha, eps, momentum, weight_decay = numbers
    return lr, alpha, 1 - alpha, eps, momentum, weight_decay, FADES if weight_decay else 0.0


CONSTANTS: dict[str, Callable] = {
    "sgd": tuple, "adam": _of_adam, "amsgrad": _of_adam, "rmsprop": _of_rmsprop, "adagrad": tuple,
    "adadelta": _of_adadelta,
}  # fmt: skip


def constants_of(name, dtype, numbers):
    """The constants of an update as a kernel takes them."""
    return numbers_of(dtype, CONSTANTS[name], numbers)


def _optimizer(name):
    def run(param, grad, *others):
        if param.size:
            *arrays, numbers = others
            grid, dtype = in_row(param.size), param.dtype
            loop = updating(name, dtype, grid[1])
            launch(loop, *grid, grad, (param, *arrays), constants_of(name, dtype, numbers))

    return run


KERNELS = {name: _optimizer(name) for name in CONSTANTS}
