"""Optimizers: one pass over a flat parameter and its state. The numbers of a step are arguments of the launch."""

import math
from functools import cache

import numpy as np

from .compile import Kernel, cuda, kernel, launch, sqrt
from .grids import in_row
from .scalars import scalars


@cache
def sgd_step(dtype: np.dtype, threads: int) -> Kernel:
    flushed = scalars(dtype)["flushed"]

    @kernel(threads)
    def loop(param, grad, velocity, new_param, new_velocity, numbers, nesterov):
        lr, momentum, weight_decay = numbers
        for i in range(cuda.grid(1), param.size, cuda.gridsize(1)):
            g = grad[i] + weight_decay * param[i]
            v = momentum * velocity[i] + g
            step = g + momentum * v if nesterov else v
            new_param[i] = param[i] - lr * step
            new_velocity[i] = flushed(v)

    return loop


@cache
def adam_step(dtype: np.dtype, threads: int) -> Kernel:
    flushed = scalars(dtype)["flushed"]

    @kernel(threads)
    def loop(param, grad, m, v, new_param, new_m, new_v, numbers):
        keep, decay, beta1, rest1, beta2, rest2, rate, scale, eps = numbers
        for i in range(cuda.grid(1), param.size, cuda.gridsize(1)):
            g = grad[i] + decay * param[i]
            first = beta1 * m[i] + rest1 * g
            second = beta2 * v[i] + rest2 * g * g
            new_param[i] = keep * param[i] - rate * first / (sqrt(second) * scale + eps)
            new_m[i] = flushed(first)
            new_v[i] = flushed(second)

    return loop


@cache
def amsgrad_step(dtype: np.dtype, threads: int) -> Kernel:
    flushed = scalars(dtype)["flushed"]

    @kernel(threads)
    def loop(param, grad, m, v, top, new_param, new_m, new_v, new_top, numbers):
        keep, decay, beta1, rest1, beta2, rest2, rate, scale, eps = numbers
        for i in range(cuda.grid(1), param.size, cuda.gridsize(1)):
            g = grad[i] + decay * param[i]
            first = beta1 * m[i] + rest1 * g
            second = beta2 * v[i] + rest2 * g * g
            largest = second if second > top[i] or second != second else top[i]
            new_param[i] = keep * param[i] - rate * first / (sqrt(largest) * scale + eps)
            new_m[i] = flushed(first)
            new_v[i] = flushed(second)
            new_top[i] = flushed(largest)

    return loop


@cache
def adagrad_step(dtype: np.dtype, threads: int) -> Kernel:
    flushed = scalars(dtype)["flushed"]

    @kernel(threads)
    def loop(param, grad, total, new_param, new_total, numbers):
        rate, eps, weight_decay = numbers
        for i in range(cuda.grid(1), param.size, cuda.gridsize(1)):
            g = grad[i] + weight_decay * param[i]
            squares = total[i] + g * g
            new_param[i] = param[i] - rate * g / (sqrt(squares) + eps)
            new_total[i] = flushed(squares)

    return loop


@cache
def adadelta_step(dtype: np.dtype, threads: int) -> Kernel:
    flushed = scalars(dtype)["flushed"]

    @kernel(threads)
    def loop(param, grad, v, u, new_param, new_v, new_u, numbers):
        lr, rho, rest, eps, weight_decay = numbers
        for i in range(cuda.grid(1), param.size, cuda.gridsize(1)):
            g = grad[i] + weight_decay * param[i]
            square = rho * v[i] + rest * g * g
            step = sqrt(u[i] + eps) / sqrt(square + eps) * g
            new_param[i] = param[i] - lr * step
            new_v[i] = flushed(square)
            new_u[i] = flushed(rho * u[i] + rest * step * step)

    return loop


@cache
def rmsprop_step(dtype: np.dtype, threads: int) -> Kernel:
    flushed = scalars(dtype)["flushed"]

    @kernel(threads)
    def loop(param, grad, v, velocity, new_param, new_v, new_velocity, numbers):
        lr, alpha, rest, eps, momentum, weight_decay = numbers
        for i in range(cuda.grid(1), param.size, cuda.gridsize(1)):
            g = grad[i] + weight_decay * param[i]
            square = alpha * v[i] + rest * g * g
            u = momentum * velocity[i] + g / (sqrt(square) + eps)
            new_param[i] = param[i] - lr * u
            new_v[i] = flushed(square)
            new_velocity[i] = flushed(u)

    return loop


def sgd(param, grad, velocity, new_param, new_velocity, numbers):
    lr, momentum, nesterov, weight_decay = numbers
    _launch(sgd_step, (param, grad, velocity, new_param, new_velocity), (lr, momentum, weight_decay), bool(nesterov))


def _constants_of_adam(numbers):
    lr, beta1, beta2, eps, weight_decay, decoupled, step = numbers
    keep, decay = (1 - lr * weight_decay, 0.0) if decoupled else (1.0, weight_decay)
    rate, scale = lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)
    return keep, decay, beta1, 1 - beta1, beta2, 1 - beta2, rate, scale, eps


def adam(param, grad, m, v, new_param, new_m, new_v, numbers):
    _launch(adam_step, (param, grad, m, v, new_param, new_m, new_v), _constants_of_adam(numbers))


def amsgrad(param, grad, m, v, top, new_param, new_m, new_v, new_top, numbers):
    arrays = param, grad, m, v, top, new_param, new_m, new_v, new_top
    _launch(amsgrad_step, arrays, _constants_of_adam(numbers))


def adagrad(param, grad, total, new_param, new_total, numbers):
    _launch(adagrad_step, (param, grad, total, new_param, new_total), tuple(numbers))


def adadelta(param, grad, v, u, new_param, new_v, new_u, numbers):
    lr, rho, eps, weight_decay = numbers
    _launch(adadelta_step, (param, grad, v, u, new_param, new_v, new_u), (lr, rho, 1 - rho, eps, weight_decay))


def rmsprop(param, grad, v, velocity, new_param, new_v, new_velocity, numbers):
    lr, alpha, eps, momentum, weight_decay = numbers
    constants = lr, alpha, 1 - alpha, eps, momentum, weight_decay
    _launch(rmsprop_step, (param, grad, v, velocity, new_param, new_v, new_velocity), constants)


def _launch(make, arrays, constants, *flags):
    """The constants become numbers of the arrays' dtype."""
    dtype, size = arrays[0].dtype, arrays[0].size
    if size:
        grid = in_row(size)
        launch(make(dtype, grid[1]), *grid, *arrays, tuple(map(dtype.type, constants)), *flags)


KERNELS = {
    "sgd": sgd,
    "adam": adam,
    "amsgrad": amsgrad,
    "rmsprop": rmsprop,
    "adagrad": adagrad,
    "adadelta": adadelta,
}
