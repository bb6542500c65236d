"""Checks a gradient and a kernel where neither Hypothesis nor SciPy is installed."""

import sys

sys.modules["hypothesis"] = sys.modules["scipy"] = None

import numpy as np  # noqa: E402

import scratchnet as sn  # noqa: E402
from scratchnet.testing import assert_matches_reference, gradcheck  # noqa: E402

sn.default_device("numpy")
gradcheck(sn.exp, [np.ones(3)])
assert_matches_reference(np.exp, np.exp, [np.ones(3)])
