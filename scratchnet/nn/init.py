"""Initialisers: they fill a tensor in place, with numbers from one stream of the current generator, and return it.

The fans of a matrix are read off as (fan_in, fan_out), the layout of Linear: a layer is x @ weight + bias. Filters of a
convolution, (o, c, ...), have c and o times the size of a window, as in PyTorch.
"""

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from .. import checks, random
from ..errors import ConfigError, DtypeError, ShapeError
from ..kernels.signatures import FLOATS
from ..ops.operands import overwrite
from ..tensor import Tensor

# The factor by which a nonlinearity shrinks a signal's standard deviation, to be made up for by the weight before it.
GAINS = {
    "linear": 1.0,
    "conv1d": 1.0,
    "conv2d": 1.0,
    "sigmoid": 1.0,
    "tanh": 5 / 3,
    "relu": math.sqrt(2),
    "selu": 3 / 4,
}
NORMAL = NormalDist()


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The gain of a nonlinearity by name; `param` is leaky_relu's slope (0.01 unless given).

    Raises ConfigError for a name that is not in the table.
    """
    slope = 0.01 if param is None else checks.number("calculate_gain: param", param)
    checks.one_of("calculate_gain", nonlinearity, [*GAINS, "leaky_relu"])
    return math.sqrt(2 / (1 + slope**2)) if nonlinearity == "leaky_relu" else GAINS[nonlinearity]


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    """Uniform on [a, b]. Drawn in float64 and rounded to the tensor's dtype."""
    _checked("uniform_", tensor)
    a, b = checks.number("uniform_: a", a), checks.number("uniform_: b", b)
    if not a <= b:
        raise ConfigError(f"uniform_: expected a <= b, got {a} and {b}")
    return _set("uniform_", tensor, random.current().numpy().uniform(a, b, tensor.shape))


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Normal with a mean and a standard deviation. Drawn in float64 and rounded to the tensor's dtype."""
    _checked("normal_", tensor)
    mean, std = checks.number("normal_: mean", mean), checks.number("normal_: std", std, "[0, inf)")
    return _set("normal_", tensor, random.current().numpy().normal(mean, std, tensor.shape))


def constant_(tensor: Tensor, value: float) -> Tensor:
    """One value everywhere."""
    return _set("constant_", _checked("constant_", tensor), checks.number("constant_: value", value, "[-inf, inf]"))


def zeros_(tensor: Tensor) -> Tensor:
    """0 everywhere."""
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """1 everywhere."""
    return constant_(tensor, 1.0)


def eye_(tensor: Tensor) -> Tensor:
    """1 on the diagonal of a matrix, 0 elsewhere: a layer that keeps its input."""
    return _set("eye_", tensor, np.eye(*_matrix("eye_", tensor)))


def trunc_normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Tensor:
    """Normal with a mean and a standard deviation, cut off outside [a, b]: the inverse distribution function of uniform
    numbers."""
    _checked("trunc_normal_", tensor)
    mean, std = checks.number("trunc_normal_: mean", mean), checks.number("trunc_normal_: std", std, "[0, inf)")
    a = checks.number("trunc_normal_: a", a)
    b = checks.number("trunc_normal_: b", b, f"[{a}, inf)")
    low, high = (NORMAL.cdf((x - mean) / std) for x in (a, b)) if std else (float(a > mean), float(b >= mean))
    if not low < high:
        raise ConfigError(f"trunc_normal_: expected [a, b] within reach of mean {mean} and std {std}, got [{a}, {b}]")
    u = random.current().numpy().uniform(low, high, tensor.shape)
    values = mean + std * np.vectorize(NORMAL.inv_cdf, otypes=[float])(np.clip(u, 1e-300, 1 - 1e-16))
    return _set("trunc_normal_", tensor, np.clip(values, a, b))


def orthogonal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """gain times a matrix with orthonormal rows or columns, whichever are fewer (Saxe, McClelland and Ganguli 2014).

    Q of the QR decomposition of normal numbers, with the signs that make it uniform among such matrices. Axes behind
    the first count as one.
    """
    gain = checks.number("orthogonal_: gain", gain)
    if _checked("orthogonal_", tensor).ndim < 2:
        raise ShapeError(f"orthogonal_: expected at least 2 axes, got {tensor.shape}")
    rows, columns = tensor.shape[0], math.prod(tensor.shape[1:])
    normal = random.current().numpy().normal(size=(max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(normal)
    q = q * np.where(np.diag(r) < 0, -1.0, 1.0)
    return _set("orthogonal_", tensor, gain * (q if rows >= columns else q.T).reshape(tensor.shape))


def xavier_uniform_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """U(-bound, bound), bound = gain * sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    gain = checks.number("xavier_uniform_: gain", gain, "[0, inf)")
    bound = gain * math.sqrt(6 / sum(_fans("xavier_uniform_", tensor)))
    return uniform_(tensor, -bound, bound)


def xavier_normal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """N(0, std**2), std = gain * sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    gain = checks.number("xavier_normal_: gain", gain, "[0, inf)")
    return normal_(tensor, 0.0, gain * math.sqrt(2 / sum(_fans("xavier_normal_", tensor))))


def kaiming_uniform_(tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Tensor:
    """U(-bound, bound), bound = gain * sqrt(3 / fan) (He et al. 2015); a: the slope of leaky_relu."""
    bound = math.sqrt(3) * _kaiming_std("kaiming_uniform_", tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound)


def kaiming_normal_(tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Tensor:
    """N(0, std**2), std = gain / sqrt(fan) (He et al. 2015); a: the slope of leaky_relu."""
    return normal_(tensor, 0.0, _kaiming_std("kaiming_normal_", tensor, a, mode, nonlinearity))


def _kaiming_std(name: str, tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    fans = dict(zip(("fan_in", "fan_out"), _fans(name, tensor), strict=True))
    fan = fans[checks.one_of(f"{name}: mode", mode, fans)]
    return calculate_gain(nonlinearity, a) / math.sqrt(fan)


def _fans(name: str, tensor: Tensor) -> tuple[int, int]:
    if _checked(name, tensor).ndim < 2 or not tensor.size:
        raise ShapeError(f"{name}: expected a weight (fan_in, fan_out), or filters (o, c, ...), got {tensor.shape}")
    if tensor.ndim == 2:
        return tensor.shape[0], tensor.shape[1]
    window = math.prod(tensor.shape[2:])
    return tensor.shape[1] * window, tensor.shape[0] * window


def _matrix(name: str, tensor: Tensor) -> tuple[int, int]:
    if _checked(name, tensor).ndim != 2:
        raise ShapeError(f"{name}: expected a matrix, got shape {tensor.shape}")
    return tensor.shape[0], tensor.shape[1]


def _checked(name: str, tensor: Any) -> Tensor:
    """tensor itself, if it is one of floats."""
    checks.instance(name, tensor, Tensor, "a tensor to fill", "make it by sn.Tensor(...)")
    if tensor.dtype not in FLOATS:
        raise DtypeError(f"{name}: expected a float32 or float64 tensor, got {tensor.dtype}")
    return tensor


def _set(name: str, tensor: Tensor, value: np.ndarray | float) -> Tensor:
    overwrite(tensor, np.broadcast_to(np.asarray(value, tensor.dtype), tensor.shape))
    return tensor
