"""The reference device: every kernel as plain NumPy. This file is the definition of what a kernel computes.

Conventions, for all devices: arrays are C-contiguous (only `copy` takes any strides); elementwise inputs
broadcast to `out`; reductions take x as (outer, n, inner) and reduce the middle axis; row kernels take
(rows, n). Floats are float32 or float64, all of one dtype in a call. Kernels write all their outputs, and only those.
"""

import math

import numpy as np

from .scalars import FADES
from .signatures import HALVES

# --- elementwise, one input: (x, out) -------------------------------------------------------------------------


def neg(x, out):
    np.negative(x, out=out)


def exp(x, out):
    np.exp(x, out=out)


def log(x, out):
    np.log(x, out=out)


def log1p(x, out):
    np.log1p(x, out=out)


def log2(x, out):
    np.log2(x, out=out)


def log10(x, out):
    np.log10(x, out=out)


def expm1(x, out):
    np.expm1(x, out=out)


def sin(x, out):
    np.sin(x, out=out)


def cos(x, out):
    np.cos(x, out=out)


def sqrt(x, out):
    np.sqrt(x, out=out)


def floor(x, out):
    np.floor(x, out=out)


def ceil(x, out):
    np.ceil(x, out=out)


def round(x, out):
    np.rint(x, out=out)  # halves go to the even neighbour


def abs(x, out):
    np.absolute(x, out=out)


def sign(x, out):
    np.sign(x, out=out)


def tanh(x, out):
    np.tanh(x, out=out)


def sigmoid(x, out):
    e = np.exp(-np.abs(x))  # at most 1: no overflow on either side
    out[...] = np.where(x >= 0, 1, e) / (1 + e)


def relu(x, out):
    np.maximum(x, 0, out=out)  # NaN stays NaN


_erf, _erfc = (np.vectorize(function, otypes=[np.float64]) for function in (math.erf, math.erfc))


def erf(x, out):
    """out = 2 / sqrt(pi) * integral of exp(-t**2) from 0 to x."""
    out[...] = _erf(x) if x.size else 0


def softplus(x, out):
    """out = log(1 + exp(x)), without overflow: max(x, 0) + log1p(exp(-|x|))."""
    out[...] = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def gelu(x, out):
    """out = x * Phi(x), Phi the normal distribution function (Hendrycks and Gimpel 2016, the exact form)."""
    out[...] = 0.5 * x * _erfc(-x / math.sqrt(2)) if x.size else 0


def silu(x, out):
    """out = x * sigmoid(x) (Elfwing, Uchibe and Doya 2018)."""
    sigmoid(x, out)
    out *= x


def clip(x, out, low, high):
    """out = x limited to [low, high]; NaN stays NaN."""
    np.clip(x, low, high, out=out)


# --- gradients of the activations: (g, y or x, out), y = f(x) --------------------------------------------------


def tanh_grad(g, y, out):
    out[...] = g * (1 - y * y)


def sigmoid_grad(g, y, out):
    out[...] = g * y * (1 - y)


def relu_grad(g, y, out):
    out[...] = np.where(y > 0, g, 0)


def gelu_grad(g, x, out):
    """out = g * (Phi(x) + x * phi(x)), phi the normal density."""
    cdf = 0.5 * _erfc(-x / math.sqrt(2)) if x.size else 0
    out[...] = g * (cdf + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi))


# --- elementwise, two inputs that broadcast: (a, b, out) --------------------------------------------------------


def add(a, b, out):
    np.add(a, b, out=out)


def sub(a, b, out):
    np.subtract(a, b, out=out)


def mul(a, b, out):
    np.multiply(a, b, out=out)


def div(a, b, out):
    np.divide(a, b, out=out)


def pow(a, b, out):
    np.power(a, b, out=out)


def maximum(a, b, out):
    np.maximum(a, b, out=out)  # NaN if either is NaN


def minimum(a, b, out):
    np.minimum(a, b, out=out)


def lt(a, b, out):
    np.less(a, b, out=out)


def le(a, b, out):
    np.less_equal(a, b, out=out)


def gt(a, b, out):
    np.greater(a, b, out=out)


def ge(a, b, out):
    np.greater_equal(a, b, out=out)


def eq(a, b, out):
    np.equal(a, b, out=out)


def ne(a, b, out):
    np.not_equal(a, b, out=out)


def where(condition, a, b, out):
    """out = a where condition (bool) else b; all three broadcast."""
    out[...] = np.where(condition, a, b)


# --- reductions of the middle axis: x (outer, n, inner) -> out (outer, inner) -----------------------------------


def sum(x, out):
    np.sum(x, axis=1, out=out)  # an empty sum is 0


def max(x, out):
    np.max(x, axis=1, out=out)  # n >= 1; NaN if any is NaN


def min(x, out):
    np.min(x, axis=1, out=out)


def argmax(x, out):
    """out (int64) = the first index of the largest element; a NaN counts as the largest."""
    np.argmax(x, axis=1, out=out)


def standardize(x, out, eps):
    """out (outer, n, inner) = (x - mean) / sqrt(variance + eps), over the middle axis; the variance is divided by n."""
    centered = x - x.mean(axis=1, keepdims=True)
    np.divide(centered, np.sqrt((centered * centered).mean(axis=1, keepdims=True) + x.dtype.type(eps)), out=out)


def standardize_grad(g, x, out, eps):
    """out = (g - mean(g) - y * mean(g * y)) / sqrt(variance + eps), where y = standardize(x) and means are as there."""
    centered = x - x.mean(axis=1, keepdims=True)
    scale = 1 / np.sqrt((centered * centered).mean(axis=1, keepdims=True) + x.dtype.type(eps))
    y = centered * scale
    out[...] = (g - g.mean(axis=1, keepdims=True) - y * (g * y).mean(axis=1, keepdims=True)) * scale


# --- movement ----------------------------------------------------------------------------------------------------


def fill(out, value):
    out[...] = value


def copy(x, out):
    """out = x, both of any strides, converted to out's dtype; to halves by way of float32, ties to even."""
    np.copyto(out, x.astype(np.float32) if out.dtype in HALVES and x.dtype != out.dtype else x, casting="unsafe")


def take_rows(x, index, out):
    """out[i] = x[index[i]]: x (n, inner), index (m,) int64 in [0, n), out (m, inner)."""
    np.take(x, index, axis=0, out=out, mode="clip")  # "clip" writes into out directly; the op has checked the range


def scatter_rows(g, index, out):
    """out[j] = sum of g[i] over index[i] == j, in order of i: g (m, inner), index (m,), out (n, inner)."""
    out[...] = 0
    np.add.at(out, index, g)


# Products add up at most SPAN terms from zero before they add that to the rest: so errors do not grow with the sum.
SPAN = 1024  # this is arithmetic, the same on every machine, and no threshold to tune

# --- products ----------------------------------------------------------------------------------------------------


def matmul(a, b, out, transpose_a=False, transpose_b=False):
    """out (m, n) = op(a) (m, k) @ op(b) (k, n), op(x) being x or, if transpose_x, x.T; C order."""
    a, b = a.T if transpose_a else a, b.T if transpose_b else b
    np.matmul(a[:, :SPAN], b[:SPAN], out=out)
    for k in range(SPAN, len(b), SPAN):
        out += a[:, k : k + SPAN] @ b[k : k + SPAN]


def batched_matmul(a, b, out, transpose_a=False, transpose_b=False):
    """The product of each two matrices of a (count, ...) and b (count, ...)."""
    for i in range(len(out)):
        matmul(a[i], b[i], out[i], transpose_a, transpose_b)


def linear(x, weight, bias, out):
    """out (m, n) = x (m, k) @ weight (k, n) + bias (n,)."""
    matmul(x, weight, out)
    np.add(out, bias, out=out)


# --- order: x (rows, n) -> out (rows, n) int64 --------------------------------------------------------------------


def argsort(x, out):
    """out = the positions of each row's elements in ascending order; equal ones in order of position, NaN last."""
    out[...] = np.argsort(x, axis=1, kind="stable")


# --- row softmax and cross-entropy: x (rows, n), n >= 1 ------------------------------------------------------------


def softmax(x, out):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    np.divide(e, e.sum(axis=1, keepdims=True), out=out)


def softmax_grad(g, y, out):
    """out = y * (g - sum over the row of g * y), y = softmax(x)."""
    out[...] = y * (g - (g * y).sum(axis=1, keepdims=True))


def logsumexp(x, out):
    """out (rows,) = log of the row's sum of exp(x), shifted by the row's maximum."""
    top = x.max(axis=1)
    shift = np.where(np.isfinite(top), top, 0)  # a row of -inf gives -inf, not NaN
    out[...] = np.log(np.exp(x - shift[:, None]).sum(axis=1)) + shift


def log_softmax(x, out):
    z = x - x.max(axis=1, keepdims=True)
    np.subtract(z, np.log(np.exp(z).sum(axis=1, keepdims=True)), out=out)


def cross_entropy(logits, labels, out):
    """out (rows,) = -log softmax(logits)[label]; labels (rows,) int64 in [0, n)."""
    z = logits - logits.max(axis=1, keepdims=True)
    out[...] = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(labels)), labels]


def cross_entropy_grad(g, logits, labels, out):
    """out (rows, n) = g[row] * (softmax(logits) - one_hot(label)); g (rows,)."""
    softmax(logits, out)
    out[np.arange(len(labels)), labels] -= 1
    out *= g[:, None]


# --- counter-based random numbers ----------------------------------------------------------------------------------


def _philox(counter, key):
    """Philox 4x32 with 10 rounds (Salmon et al. 2011). counter (n, 4) uint32, key (2,) uint32 -> (n, 4) uint32."""
    c = [counter[:, i].astype(np.uint64) for i in range(4)]
    k0, k1 = int(key[0]), int(key[1])
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(p1 >> 32) ^ c[1] ^ np.uint64(k0), p1 & low, (p0 >> 32) ^ c[3] ^ np.uint64(k1), p0 & low]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, axis=1).astype(np.uint32)


def dropout(x, out, p, key):
    """out = x / (1 - p) where u >= p, else 0; u[i], uniform in [0, 1), depends on key and i alone.

    key is (seed, stream), uint64. Element i (in C order) takes the upper 24 bits of word i % 4 of Philox with counter
    (i // 4, stream) and key seed, each split into two 32-bit words, low word first.
    """
    seed, stream = map(int, key)
    blocks = np.arange((x.size + 3) // 4, dtype=np.uint64)
    counter = np.empty((blocks.size, 4), np.uint64)
    counter[:, 0], counter[:, 1] = blocks & np.uint64(0xFFFFFFFF), blocks >> np.uint64(32)
    counter[:, 2], counter[:, 3] = stream & 0xFFFFFFFF, stream >> 32
    words = _philox(counter.astype(np.uint32), (seed & 0xFFFFFFFF, seed >> 32))
    u = (words.reshape(-1)[: x.size] >> 8) * 2.0**-24
    out[...] = np.where((u >= p).reshape(x.shape), x * x.dtype.type(1 / (1 - p)), 0)


# --- optimizers: one step over a flat parameter, from the old state to the new ---------------------------------------
# Outputs may be the inputs (a step in place) or others (a step that can be repeated). numbers: a float64 array.


def _flushed(x, least=1):
    """x as it is stored: subnormal states are zero, as arithmetic on them is slow and they may never go away."""
    return np.where(np.abs(x) < x.dtype.type(least) * np.finfo(x.dtype).tiny, x.dtype.type(0), x)


def sgd(param, grad, velocity, new_param, new_velocity, numbers):
    """g += weight_decay * p;  v = momentum * v + g;  p -= lr * (g + momentum * v if nesterov else v).

    The rule of torch.optim.SGD with dampening 0 (Sutskever et al. 2013 with the learning rate outside).
    numbers: lr, momentum, nesterov, weight_decay.
    """
    lr, momentum, nesterov, weight_decay = numbers
    f = param.dtype.type
    g = grad + f(weight_decay) * param
    v = f(momentum) * velocity + g
    new_param[...] = param - f(lr) * (g + f(momentum) * v if nesterov else v)
    new_velocity[...] = _flushed(v)


def adam(param, grad, m, v, new_param, new_m, new_v, numbers):
    """m = b1*m + (1-b1)*g;  v = b2*v + (1-b2)*g**2;  p -= lr/(1-b1**t) * (m / (sqrt(v)/sqrt(1-b2**t) + eps)).

    Kingma and Ba 2015; t = step >= 1. Weight decay adds weight_decay * p to g, or, if decoupled
    (AdamW, Loshchilov and Hutter 2019), first takes lr * weight_decay * p from p.
    numbers: lr, beta1, beta2, eps, weight_decay, decoupled, step.
    """
    amsgrad(param, grad, m, v, None, new_param, new_m, new_v, None, numbers)


def amsgrad(param, grad, m, v, top, new_param, new_m, new_v, new_top, numbers):
    """Adam that divides by the largest v so far: top = max(top, v) takes the place of v there (Reddi et al. 2018)."""
    lr, beta1, beta2, eps, weight_decay, decoupled, step = numbers
    f = param.dtype.type
    p, g = (param * f(1 - lr * weight_decay), grad) if decoupled else (param, grad + f(weight_decay) * param)
    first = f(beta1) * m + f(1 - beta1) * g
    second = f(beta2) * v + f(1 - beta2) * g * g
    largest = second if top is None else np.maximum(top, second)
    rate, scale = f(lr / (1 - beta1**step)), f(1 / math.sqrt(1 - beta2**step))
    p = p - rate * (first / (np.sqrt(largest) * scale + f(eps)))
    new_param[...] = p if decoupled or not weight_decay else _flushed(p, FADES)
    new_m[...], new_v[...] = _flushed(first), _flushed(second)
    if top is not None:
        new_top[...] = _flushed(largest)


def rmsprop(param, grad, v, velocity, new_param, new_v, new_velocity, numbers):
    """g += weight_decay * p;  v = alpha*v + (1-alpha)*g**2;  u = momentum*u + g / (sqrt(v) + eps);  p -= lr * u.

    The rule of torch.optim.RMSprop (Tieleman and Hinton 2012, lecture 6.5). numbers: lr, alpha, eps, momentum, decay.
    """
    lr, alpha, eps, momentum, weight_decay = numbers
    f = param.dtype.type
    g = grad + f(weight_decay) * param
    square = f(alpha) * v + f(1 - alpha) * g * g
    u = f(momentum) * velocity + g / (np.sqrt(square) + f(eps))
    new_param[...] = _flushed(param - f(lr) * u, FADES if weight_decay else 0)
    new_v[...], new_velocity[...] = _flushed(square), _flushed(u)


def adagrad(param, grad, total, new_param, new_total, numbers):
    """g += weight_decay * p;  s += g**2;  p -= rate * (g / (sqrt(s) + eps)).

    The rule of torch.optim.Adagrad (Duchi, Hazan and Singer 2011). numbers: rate, eps, weight_decay.
    """
    rate, eps, weight_decay = numbers
    f = param.dtype.type
    g = grad + f(weight_decay) * param
    squares = total + g * g
    new_param[...] = param - f(rate) * (g / (np.sqrt(squares) + f(eps)))
    new_total[...] = _flushed(squares)


def adadelta(param, grad, v, u, new_param, new_v, new_u, numbers):
    """g += weight_decay * p;  v = rho*v + (1-rho)*g**2;  d = sqrt(u + eps) / sqrt(v + eps) * g;  p -= lr * d;
    u = rho*u + (1-rho)*d**2.

    The rule of torch.optim.Adadelta (Zeiler 2012). numbers: lr, rho, eps, weight_decay.
    """
    lr, rho, eps, weight_decay = numbers
    f = param.dtype.type
    g = grad + f(weight_decay) * param
    square = f(rho) * v + f(1 - rho) * g * g
    step = np.sqrt(u + f(eps)) / np.sqrt(square + f(eps)) * g
    new_param[...] = param - f(lr) * step
    new_v[...], new_u[...] = _flushed(square), _flushed(f(rho) * u + f(1 - rho) * step * step)
