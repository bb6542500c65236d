"""Memory of arrays: what a step frees stays for the next one. Truth: the pages that the system had to give."""

import ctypes
import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import numpy as np
from scratchnet.kernels import device

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    [np.ones(1 << 19, np.float32) for _ in range(6)]  # 2 MiB each, 3,072 pages in all

device("numpy")
for _ in range(5):
    step()
before = pages()
for _ in range(10):
    step()
print(pages() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
@pytest.mark.parametrize(
    ("settings", "is_kept"),
    [
        ({}, True),
        ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False),
        ({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}, False),
    ],
)
def test_what_a_step_frees_stays_unless_the_user_says_otherwise(settings, is_kept):
    others = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    ran = subprocess.run([sys.executable, "-c", PROGRAM], env=others | settings, stdout=subprocess.PIPE, text=True)
    assert (int(ran.stdout) < 100) is is_kept, ran.stdout
