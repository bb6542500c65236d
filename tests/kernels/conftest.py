"""What tests of compiled kernels share."""

import shutil

import pytest

from scratchnet.native import cache


@pytest.fixture
def new_cache(tmp_path):
    """A cache folder with no kernel, but with the code of simd.py, which takes seconds to compile, if there is any."""
    ours = cache._folder()
    if ours is not None:
        shutil.copytree(ours, tmp_path / ours.name, ignore=shutil.ignore_patterns("*.kernel", "*.tmp", "lock"))
    return tmp_path
