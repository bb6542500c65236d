"""How large the arrays of tests are: with NUMBA_DISABLE_JIT=1 kernels are plain Python, so they are small."""

import numba

from scratchnet.testing import EDGES

JIT = not numba.config.DISABLE_JIT
SIZES = {"sizes": EDGES, "max_elements": 2**13} if JIT else {"sizes": EDGES[:7], "max_elements": 2**7}
