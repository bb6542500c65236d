"""Which devices tests run on and how large their arrays are.

With NUMBA_DISABLE_JIT=1 kernels are plain Python, so arrays are small. With NUMBA_ENABLE_CUDASIM=1 the cuda table is
tested, in place of the others; its kernels are interpreted thread by thread (see scratchnet/testing/threads.py).
"""

import os

import numba

from scratchnet.testing import EDGES

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"  # `make thorough`: hours
SIMULATED = bool(numba.config.ENABLE_CUDASIM)
OPENCL = os.environ.get("SCRATCHNET_GPU") == "opencl"
DEVICES = ("cuda",) if SIMULATED or OPENCL else ("numpy", "cpu")
JIT = not numba.config.DISABLE_JIT and not SIMULATED
SIZES = {"sizes": EDGES, "max_elements": 2**13} if JIT else {"sizes": EDGES[:7], "max_elements": 2**7}
if SIMULATED:
    SIZES = {"sizes": EDGES[:10], "max_elements": 2**8}
# In simulators the instructions of tensor cores are interpreted, too: `conv2d_rounded` and `matmul_bfloat16` stand for
# these, which have tests of their own in kernels/cuda.
SLOW = ("conv2d_input_rounded", "conv2d_weight_rounded", "matmul_float16", "matmul_tf32", "matmul_tf32x3")
SLOW *= SIMULATED and not THOROUGH
