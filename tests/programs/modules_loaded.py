"""Prints how many LLVM modules a process has loaded after a sum, then products in float32 and in float64: two each."""

import json

import numpy as np

from scratchnet.kernels import device
from scratchnet.native import llvm

cpu = device("cpu")
loaded = []
for kernel, dtype in ((cpu.add, "float64"), (cpu.matmul, "float32"), (cpu.matmul, "float64"), (cpu.matmul, "float32")):
    out = np.empty((40, 40), dtype)
    kernel(np.full_like(out, 2), np.eye(40, dtype=dtype), out)
    assert out[0, 1] == 2
    loaded.append(len(llvm._engines))
print(json.dumps(loaded))
