"""Optimizer steps: one pass over flat arrays, from the old parameter and state to the new.

Outputs may be the inputs themselves: each element is read before it is written.
"""

import math

import numpy as np

from .blocks import ranged
from .compile import jit


@jit
def _sgd(param, grad, velocity, new_param, new_velocity, lr, momentum, nesterov, weight_decay, lo, hi):
    param, grad, velocity = param[lo:hi], grad[lo:hi], velocity[lo:hi]
    new_param, new_velocity, f = new_param[lo:hi], new_velocity[lo:hi], param.dtype.type
    lr, momentum, weight_decay = f(lr), f(momentum), f(weight_decay)
    for i in range(param.size):
        p = param[i]
        g = grad[i] + weight_decay * p
        v = momentum * velocity[i] + g
        new_velocity[i] = v
        new_param[i] = p - lr * (g + momentum * v if nesterov else v)


@jit
def _adam(
    param, grad, m, v, new_param, new_m, new_v, rate, scale, beta1, beta2, rest1, rest2, eps, keep, weight_decay, lo, hi
):
    param, grad, m, v = param[lo:hi], grad[lo:hi], m[lo:hi], v[lo:hi]
    new_param, new_m, new_v, f = new_param[lo:hi], new_m[lo:hi], new_v[lo:hi], param.dtype.type
    rate, scale, eps, keep, weight_decay = f(rate), f(scale), f(eps), f(keep), f(weight_decay)
    beta1, beta2, rest1, rest2 = f(beta1), f(beta2), f(rest1), f(rest2)
    for i in range(param.size):
        p = param[i]
        g = grad[i] + weight_decay * p
        first = beta1 * m[i] + rest1 * g
        second = beta2 * v[i] + rest2 * g * g
        new_m[i], new_v[i] = first, second
        new_param[i] = keep * p - rate * first / (np.sqrt(second) * scale + eps)


@jit
def _rmsprop(
    param, grad, v, velocity, new_param, new_v, new_velocity, lr, alpha, rest, eps, momentum, weight_decay, lo, hi
):
    param, grad, v, velocity = param[lo:hi], grad[lo:hi], v[lo:hi], velocity[lo:hi]
    new_param, new_v, new_velocity, f = new_param[lo:hi], new_v[lo:hi], new_velocity[lo:hi], param.dtype.type
    lr, alpha, rest, eps, momentum, weight_decay = f(lr), f(alpha), f(rest), f(eps), f(momentum), f(weight_decay)
    for i in range(param.size):
        p = param[i]
        g = grad[i] + weight_decay * p
        square = alpha * v[i] + rest * g * g
        u = momentum * velocity[i] + g / (np.sqrt(square) + eps)
        new_v[i], new_velocity[i] = square, u
        new_param[i] = p - lr * u


_run_sgd, _run_adam, _run_rmsprop = ranged(_sgd, "sgd"), ranged(_adam, "adam"), ranged(_rmsprop, "rmsprop")


def sgd(param, grad, velocity, new_param, new_velocity, lr, momentum, nesterov, weight_decay):
    arrays = [x.ravel() for x in (param, grad, velocity, new_param, new_velocity)]
    _run_sgd(param.size, len(arrays), *arrays, float(lr), float(momentum), bool(nesterov), float(weight_decay))


def adam(param, grad, m, v, new_param, new_m, new_v, lr, beta1, beta2, eps, weight_decay, decoupled, step):
    arrays = [x.ravel() for x in (param, grad, m, v, new_param, new_m, new_v)]
    rate, scale = lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)
    keep, decay = (1 - lr * weight_decay, 0.0) if decoupled else (1.0, weight_decay)
    numbers = rate, scale, beta1, beta2, 1 - beta1, 1 - beta2, eps, keep, decay
    _run_adam(param.size, len(arrays), *arrays, *map(float, numbers))


def rmsprop(param, grad, v, velocity, new_param, new_v, new_velocity, lr, alpha, eps, momentum, weight_decay):
    arrays = [x.ravel() for x in (param, grad, v, velocity, new_param, new_v, new_velocity)]
    numbers = lr, alpha, 1 - alpha, eps, momentum, weight_decay
    _run_rmsprop(param.size, len(arrays), *arrays, *map(float, numbers))


KERNELS = {"sgd": sgd, "adam": adam, "rmsprop": rmsprop}
