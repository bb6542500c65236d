"""What kernels must compute, from outside of scratchnet: NumPy, SciPy, or the formula on paper.

An oracle computes in the precision of its inputs. `..._size` is the oracle with every term replaced by its absolute
value: rounding errors are proportional to that, see `assert_matches_reference`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np


def _scipy_special() -> Any:
    try:
        import scipy.special
    except ImportError:
        raise ImportError("scratchnet.testing: expected scipy; pip install scipy") from None
    return scipy.special


def special(name: str) -> Callable[..., Any]:
    """A function of scipy.special, looked up when it is called."""
    return lambda *args, **kwargs: getattr(_scipy_special(), name)(*args, **kwargs)


def normal_density(x):
    return np.exp(-x * x / 2) / np.sqrt(2 * np.pi)


def gelu(x):
    return x * special("ndtr")(x)


def gelu_grad(g, x):
    return g * (special("ndtr")(x) + x * normal_density(x))


def gelu_grad_size(g, x):
    return np.abs(g) * (1 + np.abs(x) * normal_density(x) * (1 + x**2))


def tanh_grad(g, y):
    return g * (1 - y**2)


def tanh_grad_size(g, y):
    return np.abs(g) * (1 + y**2)


def sigmoid_grad(g, y):
    return g * (y - y**2)


def sigmoid_grad_size(g, y):
    return np.abs(g) * (np.abs(y) + y**2)


def clip(x, low, high):
    return np.where(x < low, low, np.where(x > high, high, x)).astype(x.dtype)


def pow_size(a, b):
    return np.abs(a**b) * (1 + np.abs(b * np.log(np.abs(a))))  # exp(b log a) rounds b log a


def largest(x):
    """The largest of axis 1, by sorting, which puts NaN last."""
    return np.sort(x, axis=1)[:, -1]


def smallest(x):
    return np.where((x != x).any(axis=1), x.dtype.type(0) / 0 if x.dtype.kind == "f" else 0, np.sort(x, axis=1)[:, 0])


def first_largest(x):
    """The first index of the largest: the sum of "not yet seen" along axis 1."""
    top = largest(x)[:, None]
    hit = (x == top) | ((x != x) & (top != top))
    return (np.cumsum(hit, axis=1) == 0).sum(axis=1)


def argsort(x):
    """By Python's sort, which is stable, of (is it NaN, number)."""
    keys = [[(value != value, 0 if value != value else value) for value in row] for row in x.tolist()]
    order = [sorted(range(x.shape[1]), key=row.__getitem__) for row in keys]
    return np.array(order, np.int64).reshape(x.shape)


def standardized_parts(x, eps):
    """Standardized x along axis 1, 1 / sqrt(variance + eps), and how large the rounding errors of the first are."""
    d = x - x.mean(axis=1, keepdims=True)
    r = 1 / np.sqrt((d * d).mean(axis=1, keepdims=True) + eps)
    error = 2 * np.abs(x).max(axis=1, keepdims=True) * r
    return d * r, r, error


def standardize(x, eps):
    return standardized_parts(x, eps)[0]


def standardize_size(x, eps):
    y, _, error = standardized_parts(x, eps)
    return np.abs(y) + error * (1 + np.abs(y))


def standardize_grad(g, x, eps):
    y, r, _ = standardized_parts(x, eps)
    return (g - g.mean(axis=1, keepdims=True) - y * (g * y).mean(axis=1, keepdims=True)) * r


def standardize_grad_size(g, x, eps):
    y, r, error = standardized_parts(x, eps)
    y, g = np.abs(y) + error * (1 + np.abs(y)), np.abs(g)
    return (g + g.mean(axis=1, keepdims=True) + y * (g * y).mean(axis=1, keepdims=True)) * r * (1 + error)


def take_rows(x, index):
    return np.array([x[i] for i in index], x.dtype).reshape(len(index), *x.shape[1:])


def scatter_rows(g, index, n):
    """out[j] = sum of all g[i] whose index[i] is j."""
    return np.einsum("mn,mi->ni", one_hot(index, n).astype(g.dtype), g)


def one_hot(index, n: int):
    return index[:, None] == np.arange(n)


def product(a, b, transpose_a, transpose_b):
    return np.einsum(f"{'km' if transpose_a else 'mk'},{'nk' if transpose_b else 'kn'}->mn", a, b)


def linear(x, w, b):
    return np.einsum("mk,kn->mn", x, w) + b


def product_shapes(transpose_a, transpose_b):
    return f"{'km' if transpose_a else 'mk'} {'nk' if transpose_b else 'kn'}"


# exp(x - max) rounds its argument: the error of a row of softmax grows with the distances z from the maximum.


def softmax(x):
    return special("softmax")(x, axis=1)


def below_largest(x):
    """|x - max|, and its mean under softmax(x), a row."""
    z = np.abs(x - x.max(axis=1, keepdims=True))
    return z, np.nansum(z * softmax(x), axis=1, keepdims=True)


def softmax_size(x):
    z, mean = below_largest(x)
    return softmax(x) * (1 + z + mean)


def softmax_grad(g, y):
    return y * g - y * np.einsum("rn,rn->r", g, y)[:, None]


def softmax_grad_size(g, y):
    return np.abs(y * g) + np.abs(y) * np.einsum("rn,rn->r", np.abs(g), np.abs(y))[:, None]


def logsumexp(x):
    return special("logsumexp")(x, axis=1)


def logsumexp_size(x):
    return 1 + below_largest(x)[1][:, 0] + np.abs(x).max(axis=1) + np.abs(logsumexp(x))


def log_softmax(x):
    return special("log_softmax")(x, axis=1)


def log_softmax_size(x):
    z, mean = below_largest(x)
    return 1 + 2 * z + mean + np.log(x.shape[1])


def at_label(x, labels):
    return np.take_along_axis(x, labels[:, None], axis=1)[:, 0]


def cross_entropy(logits, labels):
    return -at_label(log_softmax(logits), labels)


def cross_entropy_size(logits, labels):
    return at_label(log_softmax_size(logits), labels)


def cross_entropy_grad(g, logits, labels):
    return g[:, None] * (softmax(logits) - one_hot(labels, logits.shape[1]))


def cross_entropy_grad_size(g, logits, labels):
    return np.abs(g)[:, None] * (softmax_size(logits) + one_hot(labels, logits.shape[1]))


_MASK = 0xFFFFFFFF


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox 4x32-10 on Python integers, as printed in Salmon et al., Parallel random numbers (2011), section 4.3."""
    (a, b, c, d), (k0, k1) = counter, key
    for _ in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = right >> 32 ^ b ^ k0, right & _MASK, left >> 32 ^ d ^ k1, left & _MASK
        k0, k1 = k0 + 0x9E3779B9 & _MASK, k1 + 0xBB67AE85 & _MASK
    return [a, b, c, d]


def dropout(x, p, key):
    seed, stream = map(int, key)
    words = [seed & _MASK, seed >> 32]
    blocks = [philox([i & _MASK, i >> 32, stream & _MASK, stream >> 32], words) for i in range((x.size + 3) // 4)]
    uniform = np.array([(word >> 8) / 2**24 for block in blocks for word in block])[: x.size].reshape(x.shape)
    return np.where(uniform < p, 0, x / (1 - x.dtype.type(p)))


# Optimizers: the rule on paper, and the same rule with every term replaced by its absolute value.


def sgd(param, grad, velocity, numbers):
    lr, momentum, nesterov, weight_decay = numbers
    g = grad + weight_decay * param
    v = momentum * velocity + g
    return param - lr * (g + momentum * v if nesterov else v), v


def sgd_size(param, grad, velocity, numbers):
    return sgd(np.abs(param), np.abs(grad), np.abs(velocity), (-numbers[0], *numbers[1:]))


def adam_moments(param, grad, m, v, beta1, beta2, weight_decay, decoupled):
    g = grad if decoupled else grad + weight_decay * param
    return beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2


def adam(param, grad, m, v, numbers):
    return amsgrad(param, grad, m, v, np.full_like(v, -np.inf), numbers)[:3]


def amsgrad(param, grad, m, v, top, numbers):
    lr, beta1, beta2, eps, weight_decay, decoupled, step = numbers
    m, v = adam_moments(param, grad, m, v, beta1, beta2, weight_decay, decoupled)
    top = np.maximum(top, v)
    unbiased_m, unbiased_top = m / (1 - beta1**step), top / (1 - beta2**step)
    decayed = param * (1 - lr * weight_decay) if decoupled else param
    return decayed - lr * unbiased_m / (np.sqrt(unbiased_top) + eps), m, v, top


def error_ratio(size, value):
    """How much larger the rounding error of `value` is, relative to it, than one rounding."""
    return np.where(size > 0, size / value, 1)


def adam_size(param, grad, m, v, numbers):
    return amsgrad_size(param, grad, m, v, np.full_like(v, -np.inf), numbers)[:3]


def amsgrad_size(param, grad, m, v, top, numbers):
    lr, beta1, beta2, eps, weight_decay, decoupled, step = numbers
    rule = (beta1, beta2, weight_decay, decoupled)
    size_m, size_v = adam_moments(np.abs(param), np.abs(grad), np.abs(m), v, *rule)
    true_top = np.maximum(adam_moments(param, grad, m, v, *rule)[1], top)
    size_top = np.maximum(size_v, top)
    update = lr * size_m / (1 - beta1**step) / (np.sqrt(true_top / (1 - beta2**step)) + eps)
    sizes = np.abs(param) * (1 + lr * weight_decay) + update * (1 + error_ratio(size_top, true_top)), size_m, size_v
    return *sizes, size_top


def rmsprop(param, grad, v, velocity, numbers):
    lr, alpha, eps, momentum, weight_decay = numbers
    g = grad + weight_decay * param
    v = alpha * v + (1 - alpha) * g**2
    u = momentum * velocity + g / (np.sqrt(v) + eps)
    return param - lr * u, v, u


def rmsprop_size(param, grad, v, velocity, numbers):
    lr, alpha, eps, momentum, weight_decay = numbers
    size_g = np.abs(grad) + weight_decay * np.abs(param)
    size_v = alpha * v + (1 - alpha) * size_g**2
    true_v = rmsprop(param, grad, v, velocity, numbers)[1]
    size_u = momentum * np.abs(velocity) + size_g / (np.sqrt(true_v) + eps) * (1 + error_ratio(size_v, true_v))
    return np.abs(param) + lr * size_u, size_v, size_u


# Windows: of x with zeros around it, as one array, then a sum over products. An image is 8 x 6, a filter 3 x 2.
IMAGE, FILTER, CHANNELS = (8, 6), (3, 2), {1: (3, 5), 2: (4, 6), 4: (4, 4)}  # by groups: of x and of the result


def windows_of(x, window, stride, padding, dilation=(1, 1), fill=0):
    """(..., oh, ow, kh, kw): the windows of x (..., h, w)."""
    padded = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(n, n) for n in padding], constant_values=fill)
    reach = [(k - 1) * apart + 1 for k, apart in zip(window, dilation, strict=True)]
    found = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(-2, -1))
    return found[..., :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def put_back(windows, stride, padding, dilation=(1, 1), size=IMAGE):
    """The transpose of windows_of: each element of a window is added to where it came from."""
    (oh, ow, kh, kw), out = windows.shape[-4:], np.zeros((*windows.shape[:-4], *size), windows.dtype)
    out = np.pad(out, [(0, 0)] * (out.ndim - 2) + [(n, n) for n in padding])
    for y, x, r, s in np.ndindex(oh, ow, kh, kw):
        out[..., y * stride[0] + r * dilation[0], x * stride[1] + s * dilation[1]] += windows[..., y, x, r, s]
    return out[..., padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]


def outputs_of(window, stride, padding, dilation=(1, 1)):
    """Digits: how many outputs along each axis."""
    return "".join(str(n) for n in windows_of(np.zeros(IMAGE), window, stride, padding, dilation).shape[:2])


def in_groups(x, groups, axis):
    """The axis of channels as (group, channel)."""
    return x.reshape(*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])


def conv2d(x, weight, bias, stride, padding, dilation, groups):
    windows = in_groups(windows_of(x, weight.shape[2:], stride, padding, dilation), groups, 1)
    y = np.einsum("ngchwrs,gocrs->ngohw", windows, in_groups(weight, groups, 0))
    return y.reshape(len(x), len(weight), *y.shape[3:]) + bias[:, None, None]


def conv2d_input(g, weight, stride, padding, dilation, groups):
    windows = np.einsum("ngohw,gocrs->ngchwrs", in_groups(g, groups, 1), in_groups(weight, groups, 0))
    return put_back(windows.reshape(len(g), groups * weight.shape[1], *windows.shape[3:]), stride, padding, dilation)


def conv2d_weight(g, x, stride, padding, dilation, groups):
    windows = in_groups(windows_of(x, FILTER, stride, padding, dilation), groups, 1)
    weight = np.einsum("ngohw,ngchwrs->gocrs", in_groups(g, groups, 1), windows)
    return weight.reshape(g.shape[1], *weight.shape[2:])


def conv2d_shapes(words):
    """Words; c, o: channels of x, of the result; d, f: a group's - i, y, k: sizes of x, result, filter."""

    def shapes(stride, padding, dilation, groups, precision=None):
        c, o = CHANNELS[groups]
        sizes = {"i": "86", "k": "32", "y": outputs_of(FILTER, stride, padding, dilation)}
        letters = {"c": c, "o": o, "d": c // groups, "f": o // groups} | sizes
        return "".join(str(letters.get(letter, letter)) for letter in words)

    return shapes


def max_pool2d(x, window, stride, padding, dilation):
    lowest, number = -np.inf, np.arange(x.shape[1] * x.shape[2], dtype=np.int64).reshape(x.shape[1:])
    rank = np.where(x == lowest, np.finfo(x.dtype).min, x) if x.dtype.kind == "f" else x.astype(float)
    values = windows_of(rank, window, stride, padding, dilation, lowest)  # zeros around x would be larger than -inf
    best = values.reshape(*values.shape[:3], window[0] * window[1]).argmax(-1)
    numbers = windows_of(number, window, stride, padding, dilation, -1)
    return np.take_along_axis(numbers.reshape(1, *numbers.shape[:2], -1), best[..., None], -1)[..., 0]


def pool_sizes(window, stride, padding, counts_padding, size):
    inside = windows_of(np.ones(IMAGE), window, stride, padding).sum((-2, -1))
    return np.full(size, float(window[0] * window[1])) if counts_padding else inside


def avg_pool2d(x, window, stride, padding, counts_padding):
    sums = np.einsum("nhwrs->nhw", windows_of(x, window, stride, padding))
    return sums / pool_sizes(window, stride, padding, counts_padding, sums.shape[1:]).astype(x.dtype)


def avg_pool2d_grad(g, window, stride, padding, counts_padding):
    share = g / pool_sizes(window, stride, padding, counts_padding, g.shape[1:]).astype(g.dtype)
    return put_back(np.broadcast_to(share[..., None, None], (*g.shape, *window)), stride, padding)


def take_in_rows(x, index):
    return x[np.arange(len(x))[:, None], index]


def scatter_in_rows(g, index, n):
    return np.einsum("rm,rmn->rn", g, (index[..., None] == np.arange(n)).astype(g.dtype))


def adagrad(param, grad, total, numbers):
    rate, eps, weight_decay = numbers
    g = grad + weight_decay * param
    total = total + g**2
    return param - rate * g / (np.sqrt(total) + eps), total


def adagrad_size(param, grad, total, numbers):
    rate, eps, weight_decay = numbers
    size_g = np.abs(grad) + weight_decay * np.abs(param)
    size, true = np.abs(total) + size_g**2, adagrad(param, grad, total, numbers)[1]
    return np.abs(param) + rate * size_g / (np.sqrt(true) + eps) * (1 + error_ratio(size, true)), size


def adadelta(param, grad, v, u, numbers):
    lr, rho, eps, weight_decay = numbers
    g = grad + weight_decay * param
    v = rho * v + (1 - rho) * g**2
    step = np.sqrt(u + eps) / np.sqrt(v + eps) * g
    return param - lr * step, v, rho * u + (1 - rho) * step**2


def adadelta_size(param, grad, v, u, numbers):
    lr, rho, eps, weight_decay = numbers
    size_g = np.abs(grad) + weight_decay * np.abs(param)
    size_v, true_v = rho * np.abs(v) + (1 - rho) * size_g**2, adadelta(param, grad, v, u, numbers)[1]
    ratio = error_ratio(size_v + eps, true_v + eps) + error_ratio(np.abs(u) + eps, u + eps)
    step = np.sqrt(u + eps) / np.sqrt(true_v + eps) * size_g * (1 + ratio)
    return np.abs(param) + lr * step, size_v, rho * np.abs(u) + (1 - rho) * step**2


# Batch norm: x (n, c, l), moments (2, c).


def channel_moments(x):
    return np.stack([x.mean((0, 2)), x.var((0, 2))])


def channel_moments_size(x):
    mean = np.abs(x).mean((0, 2))
    return np.stack([mean, ((np.abs(x) + mean[:, None]) ** 2).mean((0, 2))])


def by_channel(x, moments, eps, sign):
    mean, variance = moments[:, :, None]
    return (x + sign * mean) / np.sqrt(variance + eps)


def batch_norm(x, moments, weight, bias, eps, sign=-1):
    return by_channel(x, moments, eps, sign) * weight[:, None] + bias[:, None]


def batch_norm_sums(g, x, moments, eps, sign=-1):
    return np.stack([np.einsum("ncl,ncl->c", g, by_channel(x, moments, eps, sign)), g.sum((0, 2))])


def batch_norm_grad(g, x, moments, weight, sums, eps, sign=-1):
    mean = (sums[1][:, None] + by_channel(x, moments, eps, sign) * sums[0][:, None]) / (len(x) * x.shape[2])
    return (weight / np.sqrt(moments[1] + eps))[:, None] * (g + sign * mean)


def all_added(oracle):
    """The oracle with every term replaced by its absolute value, and differences by sums."""
    return lambda *arrays, eps: oracle(*map(np.abs, arrays), eps=eps, sign=1)
