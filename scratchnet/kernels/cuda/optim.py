"""Optimizers: one pass over a flat parameter and its state. The numbers of a step are constants of its formula."""

import math
from functools import cache

import numpy as np

from .compile import Kernel, cuda, kernel, launch, sqrt
from .grids import in_row
from .replay import numbers as numbers_of
from .scalars import scalars


@cache
def sgd_step(dtype: np.dtype, threads: int) -> Kernel:
    flushed, ZERO = scalars(dtype)["flushed"], dtype.type(0)

    @kernel(threads)
    def loop(param, grad, velocity, new_param, new_velocity, numbers):
        lr, momentum, nesterov, weight_decay = numbers[0], numbers[1], numbers[2], numbers[3]
        for i in range(cuda.grid(1), param.size, cuda.gridsize(1)):
            g = grad[i] + weight_decay * param[i]
            v = momentum * velocity[i] + g
            step = g + momentum * v if nesterov != ZERO else v
            new_param[i] = param[i] - lr * step
            new_velocity[i] = flushed(v)

    return loop


@cache
def adam_step(dtype: np.dtype, threads: int) -> Kernel:
    flushed = scalars(dtype)["flushed"]

    @kernel(threads)
    def loop(param, grad, m, v, new_param, new_m, new_v, numbers):
        keep, decay, beta1, rest1 = numbers[0], numbers[1], numbers[2], numbers[3]
        beta2, rest2, rate, scale, eps = numbers[4], numbers[5], numbers[6], numbers[7], numbers[8]
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
        keep, decay, beta1, rest1 = numbers[0], numbers[1], numbers[2], numbers[3]
        beta2, rest2, rate, scale, eps = numbers[4], numbers[5], numbers[6], numbers[7], numbers[8]
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
        rate, eps, weight_decay = numbers[0], numbers[1], numbers[2]
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
        lr, rho, rest, eps, weight_decay = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
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
        lr, alpha, rest = numbers[0], numbers[1], numbers[2]
        eps, momentum, weight_decay = numbers[3], numbers[4], numbers[5]
        for i in range(cuda.grid(1), param.size, cuda.gridsize(1)):
            g = grad[i] + weight_decay * param[i]
            square = alpha * v[i] + rest * g * g
            u = momentum * velocity[i] + g / (sqrt(square) + eps)
            new_param[i] = param[i] - lr * u
            new_v[i] = flushed(square)
            new_velocity[i] = flushed(u)

    return loop


def _of_adam(numbers):
    lr, beta1, beta2, eps, weight_decay, decoupled, step = numbers
    keep, decay = (1 - lr * weight_decay, 0.0) if decoupled else (1.0, weight_decay)
    rate, scale = lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)
    return keep, decay, beta1, 1 - beta1, beta2, 1 - beta2, rate, scale, eps


def _of_adadelta(numbers):
    lr, rho, eps, weight_decay = numbers
    return lr, rho, 1 - rho, eps, weight_decay


def _of_rmsprop(numbers):
    lr, alpha, eps, momentum, weight_decay = numbers
    return lr, alpha, 1 - alpha, eps, momentum, weight_decay


OPTIMIZERS = {  # the kernel, and its constants made of the numbers of a step
    "sgd": (sgd_step, tuple),
    "adam": (adam_step, _of_adam),
    "amsgrad": (amsgrad_step, _of_adam),
    "rmsprop": (rmsprop_step, _of_rmsprop),
    "adagrad": (adagrad_step, tuple),
    "adadelta": (adadelta_step, _of_adadelta),
}


def _updating(make, constants):
    def run(param, *arrays_and_numbers):
        *arrays, numbers = arrays_and_numbers
        if param.size:
            grid = in_row(param.size)
            launch(make(param.dtype, grid[1]), *grid, param, *arrays, numbers_of(param.dtype, constants, numbers))

    return run


KERNELS = {name: _updating(*row) for name, row in OPTIMIZERS.items()}
