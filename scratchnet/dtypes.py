"""The types of elements under PyTorch's names, which are NumPy's dtypes; and names of devices as objects."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import checks
from .errors import DeviceError
from .kernels import TABLES
from .kernels.signatures import FLOATS, HALVES

(float32, float64), (bfloat16, float16) = FLOATS, HALVES
int64, int32, int16, int8, uint8 = map(np.dtype, (np.int64, np.int32, np.int16, np.int8, np.uint8))

# Other names of these, and what a tensor becomes by the method of that name.
CONVERSIONS: dict[str, np.dtype] = {
    "float": float32,
    "double": float64,
    "half": float16,
    "bfloat16": bfloat16,
    "long": int64,
    "int": int32,
    "short": int16,
    "byte": uint8,
    "bool": np.dtype(np.bool_),
}

__all__ = ["bfloat16", "device", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8"]


class device(str):
    """The name of a device, "cpu", "numpy" or "cuda", with PyTorch's attributes; equal to the name as a string.

    "cuda:0" is "cuda": a process uses one GPU. Raises DeviceError for other names. Whether there is a GPU is seen when
    a tensor is made on it.
    """

    __slots__ = ()

    def __new__(cls, name: Any = "cpu") -> device:
        plain = "cuda" if isinstance(name, str) and name == "cuda:0" else name
        if not isinstance(plain, str) or plain not in TABLES:
            checks.refuse("device", f"one of {', '.join(map(repr, TABLES))}", name, DeviceError)
        return super().__new__(cls, plain)

    @property
    def type(self) -> str:
        """The name itself."""
        return str(self)

    @property
    def index(self) -> int | None:  # type: ignore[override]
        """0 of a GPU, else None."""
        return 0 if self == "cuda" else None
